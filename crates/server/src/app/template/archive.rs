//! Images in files of the build context: `archive:PATH[:NAME]`, where PATH is the archive of an OCI layout, what `docker
//! save` writes, the archive of a root file system, or an OCI layout's directory. `NAME` chooses among several images.

use std::path::{Path, PathBuf};

use nullspace_image::{ArchiveKind, Image, ImageError, Images, Listener};

use super::{blob, context::Context, layer};
use crate::{
    app::{App, bundle},
    error::{Error, Result},
};

/// How references to such begin, and what is in the file if that is said.
const PREFIXES: [(&str, Option<ArchiveKind>); 4] = [
    ("archive:", None),
    ("oci-archive:", Some(ArchiveKind::OciLayout)),
    ("docker-archive:", Some(ArchiveKind::Docker)),
    ("rootfs-archive:", Some(ArchiveKind::RootFs)),
];

/// An image in the build context.
#[derive(Debug)]
pub(super) struct Archive {
    place: Place,
    kind: Option<ArchiveKind>,
    /// Which of the images in it.
    name: Option<String>,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    /// A directory that looks like the one in the context, removed when this is dropped.
    Directory(Links),
}

/// See [`Place`].
#[derive(Debug)]
struct Links(PathBuf);

impl Drop for Links {
    fn drop(&mut self) {
        if let Err(error) = bundle::remove_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a directory of links could not be removed");
        }
    }
}

/// Whether a reference means a file of the build context.
pub(super) fn is_one(reference: &str) -> bool {
    split(reference).is_some()
}

fn split(reference: &str) -> Option<(Option<ArchiveKind>, &str)> {
    PREFIXES.iter().find_map(|(prefix, kind)| {
        let rest = reference.strip_prefix(prefix)?;
        Some((*kind, rest))
    })
}

/// What a reference means in a context; nothing if it is none to an archive.
///
/// # Errors
/// What is not there, in words; and those of the disk.
pub(super) fn find(
    app: &App,
    reference: &str,
    context: &Context,
) -> Result<Result<Option<Archive>, String>> {
    let Some((kind, rest)) = split(reference) else {
        return Ok(Ok(None));
    };
    // A path may have colons, and so may a name.
    let ends = (rest.match_indices(':').map(|(at, _)| at)).chain([rest.len()]);
    for end in ends {
        let name = rest.get(end + 1..).map(str::to_owned);
        let path = &rest[..end];
        if let Some(content) = context.file(path) {
            let place = Place::File(blob::path(&app.data_dir, &content.blob_id));
            return Ok(Ok(Some(Archive { place, kind, name })));
        }
        let below = context.below(path);
        if !below.is_empty() {
            if !matches!(kind, None | Some(ArchiveKind::OciLayout)) {
                return Ok(Err(format!("{path:?} is a directory")));
            }
            let links = link(app, &below)?;
            return Ok(Ok(Some(Archive {
                place: Place::Directory(links),
                kind,
                name,
            })));
        }
    }
    Ok(Err(format!("{rest:?} is not in the build context")))
}

/// The files of a directory of the context, by their names there.
fn link(app: &App, files: &[(&str, &str)]) -> Result<Links> {
    // Whatever has such a name is removed at the next start, whoever made it.
    let id = uuid::Uuid::new_v4().simple();
    let links = Links(layer::root(&app.data_dir).join(format!(".incoming-{id}.layout")));
    let work = || {
        std::fs::create_dir(&links.0)?;
        for (name, blob_id) in files {
            // Paths of contexts were checked: none leads out.
            let at = links.0.join(name);
            std::fs::create_dir_all(at.parent().unwrap_or(Path::new("/")))?;
            std::fs::hard_link(blob::path(&app.data_dir, blob_id), at)?;
        }
        Ok::<_, std::io::Error>(())
    };
    work().map_err(|e| Error::internal(format!("laying out an image: {e}")))?;
    Ok(links)
}

impl Archive {
    /// Unpacks it. Blocks.
    pub(super) fn read(
        &self,
        images: &Images,
        listener: Listener<'_>,
    ) -> std::result::Result<Image, ImageError> {
        let name = self.name.as_deref();
        let path = match &self.place {
            Place::Directory(links) => return images.from_layout(&links.0, name, listener),
            Place::File(path) => path,
        };
        let kind = match self.kind {
            Some(kind) => kind,
            None => images.archive_kind(path)?,
        };
        match kind {
            ArchiveKind::OciLayout => images.from_layout(path, name, listener),
            ArchiveKind::Docker => images.from_docker_archive(path, name, listener),
            ArchiveKind::RootFs => images.from_rootfs_archive(path, listener),
        }
    }
}

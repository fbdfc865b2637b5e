//! The files of a build, and what of them an instruction copies.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use base64::Engine as _;
use bytes::Bytes;
use futures_util::Stream;
use globset::GlobBuilder;
use nullspace_api::{
    template::{EntryType, Mode},
    template_build::{BuildContext, ContextFile},
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::blob;
use crate::{
    app::{App, Caller},
    error::{Error, Result},
};

/// Pieces of an archive that wait for the machine.
const WAITING: usize = 8;

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Permission bits.
    pub(super) mode: u32,
    /// Of files: the blob and its digest.
    pub(super) content: Option<Content>,
}

/// The bytes of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) blob_id: String,
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// The files of a build by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context(BTreeMap<String, Entry>);

/// What an instruction copies: a place below the target, and the entry.
pub(super) type Selection = Vec<(String, Entry)>;

/// Puts what came inside a request with the other blobs, and checks that all are there.
///
/// # Errors
/// `invalid_request`, `template_blob_not_found`.
pub(super) async fn admit(app: &App, caller: &Caller, context: &mut BuildContext) -> Result<()> {
    check(context)?;
    for file in &mut context.files {
        if file.entry_type == EntryType::Dir {
            continue;
        }
        if let Some(content) = file.content_base64.take() {
            let bytes = decode(&file.path, &content)?;
            file.blob_id = Some(blob::store(app, caller, bytes).await?.id);
        }
    }
    Context::open(app, &caller.tenant.id, context)
        .await
        .map(drop)
}

/// Checks what can be checked without the blobs.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check(context: &BuildContext) -> Result<()> {
    if context.files.len() > blob::MAX_FILES {
        return Err(Error::invalid(format!(
            "build_context: over {} files and directories",
            blob::MAX_FILES
        )));
    }
    let mut seen = HashSet::new();
    for file in &context.files {
        blob::check_path(&file.path)?;
        let bad = |why: &str| {
            Err(Error::invalid(format!(
                "build_context: {:?} {why}",
                file.path
            )))
        };
        if !seen.insert(&file.path) {
            return bad("is there twice");
        }
        if file.mode.as_ref().is_some_and(|mode| mode.bits().is_none()) {
            return bad("has a mode that is not octal digits up to 7777");
        }
        let sources =
            usize::from(file.blob_id.is_some()) + usize::from(file.content_base64.is_some());
        match file.entry_type {
            EntryType::File if sources != 1 => {
                return bad("needs either blob_id or content_base64");
            }
            EntryType::Dir if sources != 0 => return bad("is a directory and has no bytes"),
            _ => {}
        }
        if let Some(content) = &file.content_base64 {
            decode(&file.path, content)?;
        }
    }
    Ok(())
}

fn decode(path: &str, content: &str) -> Result<Vec<u8>> {
    base64::engine::general_purpose::STANDARD
        .decode(content)
        .map_err(|_| {
            Error::invalid(format!(
                "build_context: {path:?}: content_base64 is not base64"
            ))
        })
}

fn mode(file: &ContextFile) -> u32 {
    let usual = match file.entry_type {
        EntryType::File => 0o644,
        EntryType::Dir => 0o755,
    };
    file.mode.as_ref().and_then(Mode::bits).unwrap_or(usual)
}

impl Context {
    /// Looks up the blobs of a context.
    ///
    /// # Errors
    /// `template_blob_not_found`, also for one that was announced and never sent.
    pub(super) async fn open(app: &App, tenant_id: &str, context: &BuildContext) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for file in &context.files {
            let content = match &file.blob_id {
                Some(blob_id) => {
                    let row = blob::get(app, tenant_id, blob_id).await?;
                    if !row.is_stored || !blob::path(&app.data_dir, &row.id).is_file() {
                        return Err(blob::refused(
                            "blob_upload",
                            &format!("{:?}: blob {blob_id} was never sent", file.path),
                        ));
                    }
                    Some(Content {
                        blob_id: row.id,
                        sha256: row.sha256,
                        size: row.size_bytes,
                    })
                }
                None => None,
            };
            let entry = Entry {
                mode: mode(file),
                content,
            };
            entries.insert(file.path.clone(), entry);
        }
        Ok(Self(entries))
    }

    /// Over every path, mode and digest.
    pub(super) fn digest(&self) -> String {
        let mut digest = Sha256::new();
        for (path, entry) in &self.0 {
            digest.update(described(path, entry));
        }
        hex::encode(digest.finalize())
    }

    /// A file, if there is one of that path.
    pub(super) fn file(&self, path: &str) -> Option<&Content> {
        self.0.get(&clean(path))?.content.as_ref()
    }

    /// The files in a directory: their paths in it, and their blobs.
    pub(super) fn below(&self, path: &str) -> Vec<(&str, &str)> {
        let path = clean(path);
        let prefix = match path.as_str() {
            "" => path,
            _ => format!("{path}/"),
        };
        (self.0.range(prefix.clone()..))
            .map_while(|(inside, entry)| Some((inside.strip_prefix(&prefix)?, entry)))
            .filter_map(|(inside, entry)| Some((inside, entry.content.as_ref()?.blob_id.as_str())))
            .collect()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// What sources mean, as `COPY` has it: what is in a directory, not the directory itself. With one source that is a
    /// file and a target that does not end with a slash the file gets the target's own name.
    ///
    /// # Errors
    /// What is not there, in words.
    pub(super) fn select(&self, sources: &[String], to: &str) -> Result<Selection, String> {
        let mut found: Vec<&str> = Vec::new();
        for source in sources {
            let wanted = clean(source);
            if wanted.is_empty() {
                found.push("");
                continue;
            }
            if self.0.contains_key(&wanted) || self.is_prefix(&wanted) {
                let known = self.0.get_key_value(&wanted).map(|(key, _)| key.as_str());
                match known {
                    Some(known) => found.push(known),
                    None => found.push(self.prefix_of(&wanted).unwrap_or_default()),
                }
                continue;
            }
            let before = found.len();
            if wanted.contains(['*', '?', '[']) {
                let glob = GlobBuilder::new(&wanted)
                    .literal_separator(true)
                    .build()
                    .map_err(|error| format!("{source:?}: {error}"))?
                    .compile_matcher();
                found.extend(
                    self.0
                        .keys()
                        .map(String::as_str)
                        .filter(|path| glob.is_match(path)),
                );
            }
            if found.len() == before {
                return Err(format!("{source:?} is not in the build context"));
            }
        }
        let is_single_file = match found.as_slice() {
            [only] => self
                .0
                .get(*only)
                .is_some_and(|entry| entry.content.is_some()),
            _ => false,
        };
        if found.len() > 1 && !to.ends_with('/') {
            return Err(format!(
                "several files are copied, so {to:?} must be a directory and end with `/`"
            ));
        }
        let mut selection: BTreeMap<String, Entry> = BTreeMap::new();
        for path in found {
            match self.0.get(path) {
                Some(entry) if entry.content.is_some() => {
                    let name = match is_single_file && !to.ends_with('/') {
                        // The target's own name is the caller's to put in.
                        true => String::new(),
                        false => path.rsplit('/').next().unwrap_or(path).to_owned(),
                    };
                    selection.insert(name, entry.clone());
                }
                _ => {
                    let prefix = match path {
                        "" => String::new(),
                        path => format!("{path}/"),
                    };
                    for (inside, entry) in self.0.range(prefix.clone()..) {
                        let Some(rest) = inside.strip_prefix(&prefix) else {
                            break;
                        };
                        selection.insert(rest.to_owned(), entry.clone());
                    }
                }
            }
        }
        Ok(selection.into_iter().collect())
    }

    fn is_prefix(&self, path: &str) -> bool {
        self.prefix_of(path).is_some()
    }

    /// A directory that is only there as the beginning of other paths.
    fn prefix_of<'a>(&'a self, path: &str) -> Option<&'a str> {
        let prefix = format!("{path}/");
        let (key, _) = self.0.range(prefix.clone()..).next()?;
        key.starts_with(&prefix).then(|| &key[..path.len()])
    }
}

fn clean(source: &str) -> String {
    let parts: Vec<&str> = source
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    parts.join("/")
}

fn described(path: &str, entry: &Entry) -> String {
    let content = entry
        .content
        .as_ref()
        .map_or("-", |content| &content.sha256);
    format!("{}:{path}:{:o}:{content}\n", path.len(), entry.mode)
}

/// The digest of what is copied.
pub(super) fn digest(selection: &Selection) -> String {
    let mut digest = Sha256::new();
    for (path, entry) in selection {
        digest.update(described(path, entry));
    }
    hex::encode(digest.finalize())
}

/// What is copied as a tar, made while it is read. The name of a single file with an empty one is `name`.
pub(super) fn archive(
    app: &App,
    selection: Selection,
    name: String,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    let data_dir = app.data_dir.clone();
    tokio::task::spawn_blocking(move || {
        let failed = sender.clone();
        if let Err(error) = write(&data_dir, selection, &name, Pieces(sender)) {
            // Who reads may be gone.
            let _ = failed.blocking_send(Err(error));
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

struct Pieces(mpsc::Sender<std::io::Result<Bytes>>);

impl std::io::Write for Pieces {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(data)))
            .map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write(data_dir: &Path, selection: Selection, name: &str, pieces: Pieces) -> std::io::Result<()> {
    let buffered = std::io::BufWriter::with_capacity(64 << 10, pieces);
    let mut archive = tar::Builder::new(buffered);
    for (path, entry) in selection {
        let path = if path.is_empty() { name } else { &path };
        let mut header = tar::Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_mtime(0);
        match entry.content {
            Some(content) => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(content.size);
                let file = std::fs::File::open(blob::path(data_dir, &content.blob_id))?;
                archive.append_data(&mut header, path, file)?;
            }
            None => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty())?;
            }
        }
    }
    use std::io::Write;
    archive
        .into_inner()?
        .into_inner()
        .map_err(|e| e.into_error())?
        .flush()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn context(paths: &[&str]) -> Context {
        let entry = |path: &&str| {
            let content = Content {
                blob_id: "b".into(),
                sha256: "0".into(),
                size: 1,
            };
            let is_dir = path.ends_with('/');
            let entry = Entry {
                mode: 0o644,
                content: (!is_dir).then_some(content),
            };
            (path.trim_end_matches('/').to_owned(), entry)
        };
        Context(paths.iter().map(entry).collect())
    }

    fn names(context: &Context, sources: &[&str], to: &str) -> Result<Vec<String>, String> {
        let sources: Vec<String> = sources.iter().map(|s| (*s).to_owned()).collect();
        let selection = context.select(&sources, to)?;
        Ok(selection.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn sources_mean_what_copy_means() {
        let context = context(&[
            "a.txt",
            "b.txt",
            "src/",
            "src/x",
            "src/deep/",
            "src/deep/y",
            "src2/z",
        ]);
        let names = |sources: &[&str], to: &str| names(&context, sources, to);
        assert_eq!(names(&["a.txt"], "/to").unwrap(), [""]);
        assert_eq!(names(&["a.txt"], "/to/").unwrap(), ["a.txt"]);
        assert_eq!(names(&["./src/"], "/to").unwrap(), ["deep", "deep/y", "x"]);
        // Only there as the beginning of another path.
        assert_eq!(names(&["src2"], "/to").unwrap(), ["z"]);
        assert_eq!(names(&["*.txt"], "/to/").unwrap(), ["a.txt", "b.txt"]);
        assert_eq!(names(&["src/x", "a.txt"], "/to/").unwrap(), ["a.txt", "x"]);
        assert_eq!(names(&["."], "/to").unwrap().len(), 7);
        assert!(names(&["a.txt", "b.txt"], "/to").is_err());
        assert!(names(&["nothing"], "/to").is_err());
        assert!(names(&["nothing*"], "/to/").is_err());
    }
}

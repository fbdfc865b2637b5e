//! Where unpacked layers are kept, and how a crash at any instant leaves none that is half made.
//!
//! ```text
//! <dir>/<diff id>/               a finished tree; its name is the SHA-256 of the tar archive that it was
//! <dir>/.layer-<diff id>.json    what was found while it was unpacked
//! <dir>/.unpacking-<id>/         a tree being made, locked (flock) by the one process that makes it
//! <dir>/.removing-<id>/          a tree on its way out
//! ```
//!
//! A tree is unpacked, compared with its digest, written to disk, and then renamed. What has an `.unpacking-` name and
//! is locked by nobody was left by a process that died, and is removed.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fd::AsFd,
    fs::{FlockOperation, Mode, OFlags, RenameFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    beneath,
    error::{ImageError, LayerError},
    layer,
    limits::Allowance,
};

const UNPACKING: &str = ".unpacking-";
const REMOVING: &str = ".removing-";
const NOTED: &str = ".layer-";
const NOTED_END: &str = ".json";
/// How often it is looked whether another process is done with a layer.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A directory of layers, named by their content.
///
/// Any number of these may be open on one directory, in one process or several: one layer is unpacked by one of them,
/// the others wait for it and use it. Other things may be in the directory; what begins with `.unpacking-` or
/// `.removing-` is ours.
#[derive(Clone, Debug)]
pub struct Layers {
    directory: PathBuf,
}

/// An unpacked layer, ready to be below an overlay. Nothing in it changes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerTree {
    /// SHA-256 of its tar archive, 64 hex digits; images call it the diff id.
    pub digest: String,
    /// Its root.
    pub path: PathBuf,
    /// What is in it.
    pub facts: Facts,
}

impl LayerTree {
    /// Counts for the image as if it had been unpacked now.
    pub(crate) fn count(&self, allowance: &Allowance) -> Result<(), ImageError> {
        allowance
            .bytes(self.facts.tar_bytes)
            .and_then(|()| allowance.headers(self.facts.headers))
            .map_err(|source| ImageError::Layer {
                digest: format!("sha256:{}", self.digest),
                source,
            })
    }
}

/// What was found while a layer was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes of its tar archive.
    pub tar_bytes: u64,
    /// Sum of the sizes of its files in bytes.
    pub file_bytes: u64,
    /// Files, directories, links and marks in it; a layer without any adds nothing to an image.
    pub entries: u64,
    /// Headers of its tar archive.
    pub headers: u64,
    /// Device nodes that were left out.
    pub devices_left_out: u64,
    /// Whether it hides everything below it.
    pub opaque: bool,
    /// Directories that it has members in but says nothing about, as hex digits of their paths: they belong to the
    /// layer below that has them.
    pub implied: Vec<String>,
}

/// What a layer must turn out to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// How errors call it.
    pub(crate) name: String,
    /// Of its compressed form, as hex digits.
    pub(crate) digest: Option<String>,
    /// Of its tar archive, as hex digits.
    pub(crate) diff_id: Option<String>,
}

impl Layers {
    /// Opens the directory, makes it if it is missing, and removes what killed processes left in it. Takes as long as
    /// that removal.
    ///
    /// # Errors
    /// If the directory cannot be made or read, or what is left over cannot be removed.
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let directory =
            std::path::absolute(directory).map_err(ImageError::file("resolve", directory))?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(ImageError::file("create", &directory))?;
        let layers = Self { directory };
        layers.sweep()?;
        Ok(layers)
    }

    /// The layer with that digest if it is kept.
    #[must_use]
    pub fn get(&self, digest: &str) -> Option<LayerTree> {
        let path = self.place(digest)?;
        if !path.is_dir() {
            return None;
        }
        let facts = fs::read(self.facts_file(digest)).ok()?;
        Some(LayerTree {
            digest: digest.to_owned(),
            path,
            facts: serde_json::from_slice(&facts).ok()?,
        })
    }

    /// The layers that are kept.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn all(&self) -> Result<Vec<LayerTree>, ImageError> {
        let failed = || ImageError::file::<io::Error>("read", &self.directory);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed())? {
            let name = entry.map_err(failed())?.file_name();
            all.extend(name.to_str().and_then(|digest| self.get(digest)));
        }
        Ok(all)
    }

    /// Removes a layer. The caller sees to it that nobody uses it and no image with it is being fetched. Fine if it is
    /// not kept.
    ///
    /// # Errors
    /// If it cannot be removed; it is out of use all the same, and removed when the directory is opened next.
    pub fn remove(&self, digest: &str) -> Result<(), ImageError> {
        let Some(place) = self.place(digest) else {
            return Ok(());
        };
        let facts = self.facts_file(digest);
        match fs::remove_file(&facts) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::file("remove", facts)(e));
            }
            _ => {}
        }
        let name = format!("{REMOVING}{}", uuid::Uuid::new_v4());
        match fs::rename(&place, self.directory.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(ImageError::file("remove", place)(e)),
            Ok(()) => {}
        }
        self.delete(&name)
    }

    /// Where the layer is or would be; none if `digest` is not 64 hex digits.
    fn place(&self, digest: &str) -> Option<PathBuf> {
        is_digest(digest).then(|| self.directory.join(digest))
    }

    fn facts_file(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{NOTED}{digest}{NOTED_END}"))
    }

    fn delete(&self, name: &str) -> Result<(), ImageError> {
        let path = self.directory.join(name);
        let failed = |e: io::Error| ImageError::file("remove", &path)(e);
        let directory = beneath::root(&self.directory).map_err(failed)?;
        beneath::remove(directory.as_fd(), name.as_bytes()).map_err(|e| failed(e.into()))
    }

    fn sweep(&self) -> Result<(), ImageError> {
        let failed = ImageError::file::<io::Error>("read", &self.directory);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) => return Err(failed(e)),
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(REMOVING) {
                self.delete(name)?;
            } else if name.starts_with(UNPACKING)
                && let Some(_lock) = lock(&entry.path())?
            {
                tracing::info!(path = %entry.path().display(), "removing an unfinished layer");
                self.delete(name)?;
            } else if let Some(digest) = whose(name) {
                self.remove_half(digest)?;
            }
        }
        Ok(())
    }

    /// Removes what is there of a layer that lacks its tree or what is known about that: a process was killed between
    /// the two, when it kept the layer or when it removed it.
    fn remove_half(&self, digest: &str) -> Result<(), ImageError> {
        if self.get(digest).is_some() {
            return Ok(());
        }
        // Whoever is between the two right now has this.
        let Some(_building) = self.building(digest)? else {
            return Ok(());
        };
        match self.get(digest) {
            Some(_) => Ok(()),
            None => self.remove(digest),
        }
    }

    /// A file that has no name, and is gone when it is closed.
    pub(crate) fn scratch_file(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        Ok(rustix::fs::open(&self.directory, flags, mode)?.into())
    }

    /// The right to unpack that layer, once nobody else has it.
    pub(crate) async fn claim(&self, diff_id: &str) -> Result<Claim, ImageError> {
        loop {
            if let Some(claim) = self.try_claim(diff_id)? {
                return Ok(claim);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The same, from a thread that may wait.
    pub(crate) fn claim_blocking(&self, diff_id: &str) -> Result<Claim, ImageError> {
        loop {
            if let Some(claim) = self.try_claim(diff_id)? {
                return Ok(claim);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The right to unpack a layer whose digest is not known before.
    pub(crate) fn claim_unknown(&self) -> Result<Building, ImageError> {
        loop {
            let id = uuid::Uuid::new_v4().simple().to_string();
            if let Some(building) = self.building(&id)? {
                return Ok(building);
            }
        }
    }

    fn try_claim(&self, diff_id: &str) -> Result<Option<Claim>, ImageError> {
        if let Some(tree) = self.get(diff_id) {
            return Ok(Some(Claim::Kept(tree)));
        }
        let Some(building) = self.building(diff_id)? else {
            return Ok(None);
        };
        // It may have been finished between the two looks.
        Ok(Some(match self.get(diff_id) {
            Some(tree) => Claim::Kept(tree),
            None => Claim::Mine(building),
        }))
    }

    /// A directory to unpack in, if nobody else has that one.
    fn building(&self, id: &str) -> Result<Option<Building>, ImageError> {
        let name = format!("{UNPACKING}{id}");
        let path = self.directory.join(&name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(ImageError::file("create", path)(e));
            }
            _ => {}
        }
        let Some(lock) = lock(&path)? else {
            return Ok(None);
        };
        let building = Building {
            layers: self.clone(),
            name,
            _lock: lock,
        };
        // Perhaps of one that died.
        let opened = beneath::root(&path).map_err(ImageError::file("open", &path))?;
        beneath::remove(opened.as_fd(), b"root").map_err(ImageError::file("clear", &path))?;
        let root = building.root();
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&root)
            .and_then(|()| set_mode(&root, 0o755))
            .map_err(ImageError::file("create", root))?;
        Ok(Some(building))
    }
}

/// The answer to a wish for a layer.
#[derive(Debug)]
pub(crate) enum Claim {
    /// It is there.
    Kept(LayerTree),
    /// The caller is to unpack it.
    Mine(Building),
}

/// A directory to unpack a layer in, and the right to. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Building {
    layers: Layers,
    name: String,
    _lock: File,
}

impl Building {
    fn path(&self) -> PathBuf {
        self.layers.directory.join(&self.name)
    }

    fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// Unpacks the stream, checks what it was, and keeps it.
    pub(crate) fn unpack(
        self,
        input: impl Read + Send,
        expected: &Expected,
        allowance: &Allowance,
    ) -> Result<LayerTree, ImageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ImageError::NeedsRoot);
        }
        let refused = |source: LayerError| ImageError::Layer {
            digest: expected.name.clone(),
            source,
        };
        let root = self.root();
        let opened = beneath::root(&root).map_err(ImageError::file("open", &root))?;
        let done = layer::unpack(input, opened.as_fd(), allowance).map_err(refused)?;
        for (wanted, found, what) in [
            (&expected.digest, &done.digest, "layer"),
            (&expected.diff_id, &done.diff_id, "content of layer"),
        ] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
                return Err(ImageError::Digest {
                    what: format!("{what} {}", expected.name),
                    expected: format!("sha256:{wanted}"),
                    found: format!("sha256:{found}"),
                });
            }
        }
        let facts = Facts {
            tar_bytes: done.tar_bytes,
            file_bytes: done.unpacked.file_bytes,
            entries: done.unpacked.entries,
            headers: done.unpacked.headers,
            devices_left_out: done.unpacked.devices_left_out,
            opaque: done.unpacked.opaque,
            implied: done.unpacked.implied.iter().map(hex::encode).collect(),
        };
        self.keep(&done.diff_id, facts)
    }

    /// Puts the finished tree in its place.
    fn keep(self, digest: &str, facts: Facts) -> Result<LayerTree, ImageError> {
        let directory = &self.layers.directory;
        let place = directory.join(digest);
        let noted = self.path().join("facts");
        let text = serde_json::to_vec(&facts)
            .map_err(|e| ImageError::file("encode", &noted)(io::Error::from(e)))?;
        fs::write(&noted, text).map_err(ImageError::file("write", &noted))?;
        // The name vouches for the content, so that must be on disk before it.
        let on_disk =
            |path: &Path| -> io::Result<()> { Ok(rustix::fs::syncfs(File::open(path)?)?) };
        on_disk(directory).map_err(ImageError::file("write to disk", self.path()))?;
        // A tree counts when both are there.
        let file = self.layers.facts_file(digest);
        fs::rename(&noted, &file).map_err(ImageError::file("create", &file))?;
        let cwd = rustix::fs::CWD;
        match rustix::fs::renameat_with(cwd, self.root(), cwd, &place, RenameFlags::NOREPLACE) {
            // From an archive whose digest was not known before: the same was there.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(ImageError::file("create", place)(e)),
        }
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(ImageError::file("write to disk", directory))?;
        Ok(LayerTree {
            digest: digest.to_owned(),
            path: place,
            facts,
        })
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if let Err(error) = self.layers.delete(&self.name) {
            tracing::warn!(path = %self.path().display(), %error, "unfinished layer not removed");
        }
    }
}

/// The lock of a directory, if nobody has it and the directory is still there by then.
fn lock(path: &Path) -> Result<Option<File>, ImageError> {
    let failed = |e: io::Error| ImageError::file("lock", path)(e);
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed(e.into())),
        }
    }
    // Whoever had it may have removed the directory, and another may have made a new one.
    let held = file.metadata().map_err(failed)?;
    let there = fs::symlink_metadata(path).is_ok_and(|there| there.ino() == held.ino());
    Ok(there.then_some(file))
}

/// The digest of the layer that a file of the directory belongs to.
fn whose(name: &str) -> Option<&str> {
    let noted = name
        .strip_prefix(NOTED)
        .and_then(|rest| rest.strip_suffix(NOTED_END));
    Some(noted.unwrap_or(name)).filter(|digest| is_digest(digest))
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Whether it is a SHA-256 as 64 lower-case hex digits.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

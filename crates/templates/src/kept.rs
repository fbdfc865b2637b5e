//! Where finished layers are kept, and how a crash at any instant leaves none that is half made.
//!
//! ```text
//! <dir>/layers/<sha256>/              a finished tree; its name says what is in it
//! <dir>/layers/.building-<kind>-<id>/ a tree being made, under the lock of its kind
//! <dir>/layers/.lock-<kind>           held (flock) by the one process that makes that kind
//! <dir>/templates/<name>.json         which layer a template is now
//! ```
//!
//! A tree is written to disk, then renamed to its digest, then recorded. What has a `.building-` name
//! while nobody holds the lock was left by a process that died, and is removed.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::{TemplateError, tree};

/// Which layer a template is, as kept in `templates/<name>.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The template's name.
    pub name: String,
    /// The layer's digest: 64 hex digits over recipe and tree.
    pub digest: String,
    /// The layer's directory, in this data directory or in the shared cache.
    pub path: PathBuf,
    /// When it was made (RFC 3339, UTC).
    pub built_at: String,
    /// The Debian suite it was made from.
    pub suite: String,
    /// What it was made from: a build whose recipe differs does not use this layer.
    pub recipe_digest: String,
    /// Over the names, versions and architectures of its packages.
    pub packages_digest: String,
    /// Sum of its file sizes in bytes.
    pub size_bytes: u64,
}

/// A directory that holds layers and records.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
}

/// The right to make layers of one kind. Ends when every descriptor of it is closed, also those that
/// the build's processes hold.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Another descriptor of the same lock.
    pub(crate) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// A directory to build in. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Building {
    path: PathBuf,
}

impl Building {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if let Err(error) = tree::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "unfinished layer not removed");
        }
    }
}

impl Kept {
    /// Opens the directory and makes its parts.
    pub(crate) fn open(dir: &Path) -> Result<Self, TemplateError> {
        let absolute =
            std::path::absolute(dir).map_err(TemplateError::file("cannot resolve", dir))?;
        for part in ["layers", "templates"] {
            let path = absolute.join(part);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .map_err(TemplateError::file("cannot create", path))?;
        }
        Ok(Self { dir: absolute })
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// Where the layer of that digest is or would be; none if `digest` is not 64 hex digits.
    pub(crate) fn layer(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.len() == 64
            && digest
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        hex.then(|| self.layers().join(digest))
    }

    /// The lock of `kind` if nobody has it; with `wait`, once nobody has it.
    pub(crate) fn lock(&self, kind: &str, wait: bool) -> Result<Option<Lock>, TemplateError> {
        let path = self.layers().join(format!(".lock-{kind}"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .open(&path)
            .map_err(TemplateError::file("cannot open", &path))?;
        let operation = if wait {
            FlockOperation::LockExclusive
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(Some(Lock { file })),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(TemplateError::file("cannot lock", path)(e.into())),
            }
        }
    }

    /// Removes what earlier builds of `kind` left unfinished.
    pub(crate) fn sweep(&self, kind: &str, _held: &Lock) -> Result<(), TemplateError> {
        let prefix = format!(".building-{kind}-");
        let layers = self.layers();
        for entry in fs::read_dir(&layers).map_err(TemplateError::file("cannot read", &layers))? {
            let entry = entry.map_err(TemplateError::file("cannot read", &layers))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let path = entry.path();
                tracing::info!(path = %path.display(), "removing an unfinished layer");
                tree::remove(&path).map_err(TemplateError::file("cannot remove", path))?;
            }
        }
        Ok(())
    }

    /// A fresh directory to build a layer of `kind` in.
    pub(crate) fn building(&self, kind: &str, _held: &Lock) -> Result<Building, TemplateError> {
        let path = self
            .layers()
            .join(format!(".building-{kind}-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).map_err(TemplateError::file("cannot create", &path))?;
        Ok(Building { path })
    }

    /// Puts a finished tree in its place and returns that. If a layer of that digest is there already,
    /// it stays and `tree` is left to be removed by its owner.
    pub(crate) fn keep(&self, tree: &Path, digest: &str) -> Result<PathBuf, TemplateError> {
        let layers = self.layers();
        let place = layers.join(digest);
        // The name vouches for the contents, so they must be on disk before it.
        File::open(tree)
            .and_then(|dir| Ok(rustix::fs::syncfs(&dir)?))
            .map_err(TemplateError::file("cannot write to disk", tree))?;
        match fs::rename(tree, &place) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) => {}
            Err(e) => {
                return Err(TemplateError::file(
                    "cannot rename a finished layer to",
                    place,
                )(e));
            }
        }
        sync_dir(&layers)?;
        Ok(place)
    }

    /// The record of that name, if it can be read and its layer is there.
    pub(crate) fn record(&self, file: &str) -> Option<Record> {
        let path = self.dir.join("templates").join(format!("{file}.json"));
        let record: Record = match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(record)) => record,
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "template record not understood, made again");
                return None;
            }
            Err(_) => return None,
        };
        record.path.is_dir().then_some(record)
    }

    /// Writes a record so that a reader sees the old or the new one, also after a crash.
    pub(crate) fn write_record(&self, file: &str, record: &Record) -> Result<(), TemplateError> {
        let dir = self.dir.join("templates");
        let path = dir.join(format!("{file}.json"));
        let fresh = dir.join(format!(".{file}.{}", uuid::Uuid::new_v4()));
        let json = serde_json::to_vec_pretty(record).map_err(|source| TemplateError::Record {
            name: "base",
            source,
        })?;
        let written = File::create_new(&fresh)
            .and_then(|mut f| {
                f.write_all(&json)?;
                f.sync_all()
            })
            .and_then(|()| fs::rename(&fresh, &path));
        if written.is_err() {
            // The name is fresh each time, so a leftover would only be litter.
            let _ = fs::remove_file(&fresh);
        }
        written.map_err(TemplateError::file("cannot write", &path))?;
        sync_dir(&dir)
    }
}

fn sync_dir(path: &Path) -> Result<(), TemplateError> {
    File::open(path)
        .and_then(|d| d.sync_all())
        .map_err(TemplateError::file("cannot write to disk", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn record(path: PathBuf) -> Record {
        Record {
            name: "base".into(),
            digest: "d".repeat(64),
            path,
            built_at: "2026-01-01T00:00:00Z".into(),
            suite: "bookworm".into(),
            recipe_digest: String::new(),
            packages_digest: String::new(),
            size_bytes: 1,
        }
    }

    #[test]
    fn leftovers_go_and_finished_layers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let done = kept.layers().join("a".repeat(64));
        fs::create_dir(&done).unwrap();
        let dead = kept.layers().join(".building-base-1");
        fs::create_dir_all(dead.join("root/etc")).unwrap();
        let other = kept.layers().join(".building-host-1");
        fs::create_dir(&other).unwrap();

        let lock = kept.lock("base", false).unwrap().unwrap();
        kept.sweep("base", &lock).unwrap();
        assert!(done.is_dir() && other.is_dir() && !dead.exists());
    }

    #[test]
    fn a_dropped_build_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let lock = kept.lock("base", false).unwrap().unwrap();
        let building = kept.building("base", &lock).unwrap();
        fs::create_dir(building.path().join("root")).unwrap();
        let path = building.path().to_owned();
        drop(building);
        assert!(!path.exists());
    }

    #[test]
    fn one_builder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = kept.lock("base", true).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let lock = kept.lock("base", false).unwrap().unwrap();
        assert!(kept.lock("base", false).unwrap().is_none());
        assert!(kept.lock("host", false).unwrap().is_some());
        // As the build's processes hold it: the lock outlives the builder that took it.
        let shared = lock.share().unwrap();
        drop(lock);
        assert!(kept.lock("base", false).unwrap().is_none());
        drop(shared);
        assert!(kept.lock("base", false).unwrap().is_some());
    }

    #[test]
    fn a_record_counts_only_with_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        let digest = "b".repeat(64);
        let place = kept.keep(&tree, &digest).unwrap();
        assert_eq!(kept.layer(&digest), Some(place.clone()));

        assert_eq!(kept.record("base"), None);
        kept.write_record("base", &record(place.clone())).unwrap();
        assert_eq!(kept.record("base"), Some(record(place.clone())));
        tree::remove(&place).unwrap();
        assert_eq!(kept.record("base"), None);
        fs::write(dir.path().join("templates/base.json"), "{\"name\":").unwrap();
        assert_eq!(kept.record("base"), None);
    }

    #[test]
    fn the_same_layer_twice_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let digest = "c".repeat(64);
        for _ in 0..2 {
            let tree = dir.path().join("tree");
            fs::create_dir_all(tree.join("etc")).unwrap();
            kept.keep(&tree, &digest).unwrap();
        }
        assert_eq!(kept.layer("../../etc"), None);
        assert!(dir.path().join("tree").exists());
    }
}

//! Bundles on disk: checked and unpacked while they arrive, kept by digest, never changed.
//!
//! ```text
//!  request body ──bounded channel──▶ blocking thread: check each member against the manifest and unpack it
//!      bundles/.incoming-XXXX/<workdir…>/files ──sync, rename──▶ bundles/<digest>-<workdir>/<workdir…>/files
//! ```
//! The tree is a read-only layer of the machines that run it: a run copies nothing. The archive itself is
//! not kept; the manifest says what was in it.

use std::{
    fs, io,
    io::Read,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_api::error::code;
use nullspace_project::{
    BundleError, Manifest, extract_archive, verify::MAX_END_BYTES, verify_archive,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{agent, agent_config};
use crate::error::{Error, Kind, Result};

/// Prefix of what is being unpacked; such trees are of no use to anybody else.
pub(super) const INCOMING: &str = ".incoming-";
/// Pieces of a body that wait for the unpacking thread.
const IN_FLIGHT: usize = 16;
/// Room for extra headers of other writers than ours, per member.
const MEMBER_SLACK: u64 = 4 << 10;
/// After a refusal, how much of the rest is taken, and for how long.
const DRAIN_BYTES: u64 = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// Up to this many files are synced one by one; for more the file system is synced as a whole.
const SYNC_ONE_BY_ONE: usize = 64;

/// How long a program may go on writing in a tree that is being removed, and the pause until it is tried again.
const STILL_WRITTEN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// The directory that holds the trees.
pub(super) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("bundles")
}

/// Name of the tree of a bundle that is shown at `workdir`.
pub(super) fn name(digest: &str, workdir: &str) -> String {
    let place = Sha256::digest(agent_config::trimmed(workdir));
    format!("{digest}-{}", hex::encode(&place[..4]))
}

/// Where the tree of that name is; a layer of a machine.
pub(super) fn path(data_dir: &Path, name: &str) -> PathBuf {
    root(data_dir).join(name)
}

/// Makes the directory of bundles and removes what an earlier server left half-made.
pub(super) async fn clean(data_dir: &Path) -> Result<()> {
    let root = root(data_dir);
    agent::blocking(move || {
        remove_incoming(&root)
            .map_err(|e| Error::internal(format!("preparing {}: {e}", root.display())))
    })
    .await
}

/// Makes a directory if it is missing, and removes entries that start with [`INCOMING`].
pub(super) fn remove_incoming(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(INCOMING) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a tree whose directories may be closed to their owner. Of a server that was killed a program may be left that still writes
/// in it, copying: that fails once its directories are gone.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + STILL_WRITTEN;
    let mut is_opened = false;
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_opened => {
                open_up(path)?;
                is_opened = true;
            }
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

/// A tree in the making; removed when dropped before it is kept.
pub(super) struct Incoming {
    path: PathBuf,
    kept: bool,
}

impl Incoming {
    /// A new empty directory in `root`.
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(INCOMING)
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(root)?;
        Ok(Self {
            path: dir.keep(),
            kept: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the tree on disk and gives it its name. A tree that has the name already stays.
    pub(super) fn keep(mut self, root: &Path, name: &str, files: usize) -> io::Result<()> {
        sync_tree(&self.path, files)?;
        match fs::rename(&self.path, root.join(name)) {
            Ok(()) => self.kept = true,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            Err(error) => return Err(error),
        }
        fs::File::open(root)?.sync_all()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a half-made tree could not be removed");
        }
    }
}

/// Everything below `path` is on disk when this returns.
fn sync_tree(path: &Path, files: usize) -> io::Result<()> {
    let dir = fs::File::open(path)?;
    if files > SYNC_ONE_BY_ONE {
        return Ok(rustix::fs::syncfs(&dir)?);
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        // A tree with closed directories is rare: then all of the file system is synced.
        let synced = if kind.is_dir() {
            sync_tree(&entry.path(), files)
        } else if kind.is_file() {
            fs::File::open(entry.path()).and_then(|file| file.sync_all())
        } else {
            Ok(())
        };
        match synced {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(rustix::fs::syncfs(&dir)?);
            }
            other => other?,
        }
    }
    dir.sync_all()
}

/// What the blocking side reads.
enum Piece {
    Data(Bytes),
    /// The whole body has arrived.
    End,
}

/// The body as a blocking reader. A channel that closes before the end is a broken upload.
struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let count = out.len().min(self.current.len());
        out[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

/// Takes a bundle from a request body. When this returns `Ok` the tree of that name is there, whole and on
/// disk; otherwise nothing is left of what arrived.
pub(super) async fn receive<S>(
    data_dir: &Path,
    name: &str,
    workdir: &str,
    manifest: Manifest,
    length: Option<u64>,
    body: &mut S,
) -> Result<()>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let members = manifest.included().count() as u64;
    let limit = manifest.archive_len() + members * MEMBER_SLACK + MAX_END_BYTES;
    if length.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let pieces = Pieces {
        receiver,
        current: Bytes::new(),
        ended: false,
    };
    let (root, name, workdir) = (root(data_dir), name.to_owned(), workdir.to_owned());
    let unpacking =
        tokio::task::spawn_blocking(move || unpack(pieces, &manifest, &root, &name, &workdir));
    let mut taken = 0u64;
    let mut broken = None;
    let mut sender = Some(sender);
    while let Some(to) = &sender {
        let piece = match body.next().await {
            Some(Ok(data)) => {
                taken += data.len() as u64;
                if taken > limit {
                    broken = Some(too_large(limit));
                    break;
                }
                Piece::Data(data)
            }
            Some(Err(error)) => {
                broken = Some(broken_off(&error));
                break;
            }
            None => Piece::End,
        };
        let ended = matches!(piece, Piece::End);
        // The other end is gone once it has found something wrong.
        if to.send(piece).await.is_err() || ended {
            break;
        }
    }
    // Closed before the end, this is a broken upload to the other side.
    drop(sender.take());
    let unpacked = unpacking
        .await
        .map_err(|e| Error::internal(format!("unpacking a bundle: {e}")))?;
    match (broken, unpacked) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(refused(error)),
    }
}

/// What went wrong on the blocking side.
enum Failed {
    Archive(BundleError),
    Disk(io::Error),
}

fn unpack(
    pieces: Pieces,
    manifest: &Manifest,
    root: &Path,
    name: &str,
    workdir: &str,
) -> Result<(), Failed> {
    // There already: what arrives is checked all the same, and not stored twice.
    if root.join(name).is_dir() {
        return verify_archive(pieces, manifest)
            .map(drop)
            .map_err(Failed::Archive);
    }
    let incoming = Incoming::new(root).map_err(Failed::Disk)?;
    let mut place = incoming.path().to_owned();
    for segment in agent_config::trimmed(workdir)
        .split('/')
        .filter(|s| !s.is_empty())
    {
        place.push(segment);
        let mode = match place.strip_prefix(incoming.path()) {
            Ok(first) if first == Path::new("tmp") => 0o1777,
            Ok(first) if first == Path::new("root") => 0o700,
            _ => 0o755,
        };
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&place)
            .and_then(|()| fs::set_permissions(&place, fs::Permissions::from_mode(mode)))
            .map_err(Failed::Disk)?;
    }
    let target = fs::File::open(&place).map_err(Failed::Disk)?;
    let stats = extract_archive(pieces, manifest, &target).map_err(Failed::Archive)?;
    let files = usize::try_from(stats.files + stats.dirs).unwrap_or(usize::MAX);
    incoming.keep(root, name, files).map_err(Failed::Disk)
}

fn refused(failed: Failed) -> Error {
    match failed {
        Failed::Disk(source) | Failed::Archive(BundleError::Write { source, .. })
            if agent::is_disk_full(&source) =>
        {
            agent::disk_full(format!("unpacking a bundle: {source}"))
        }
        Failed::Disk(error) => Error::internal(format!("unpacking a bundle: {error}")),
        Failed::Archive(BundleError::Read(error)) => broken_off(&error),
        Failed::Archive(error) if error.is_internal() => {
            Error::internal(crate::error::chain(&error))
        }
        Failed::Archive(error) => {
            let code = match error {
                BundleError::DigestMismatch(_) => code::BUNDLE_DIGEST_MISMATCH,
                _ => code::BUNDLE_INVALID,
            };
            Error::new(Kind::Invalid, code, format!("bundle: {error}"))
                .with_details(json!({"reason": error.reason()}))
        }
    }
}

fn too_large(limit: u64) -> Error {
    Error::new(
        Kind::TooLarge,
        code::BODY_TOO_LARGE,
        format!("the archive is larger than its manifest allows ({limit} bytes)"),
    )
}

fn broken_off(error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::TimedOut {
        return Error::new(
            Kind::SlowClient,
            code::TIMEOUT,
            "the request body took too long to arrive",
        );
    }
    Error::invalid("the request body broke off").with_context(error.to_string())
}

/// Reads on after a refusal, so that the client gets to read the answer.
pub(super) async fn drain<S>(body: &mut S)
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let rest = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(data)) = body.next().await {
            left = left.saturating_sub(data.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_code_of_its_own() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let write = BundleError::Write {
            path: "a".into(),
            source: full(),
        };
        for failed in [Failed::Disk(full()), Failed::Archive(write)] {
            assert_eq!(refused(failed).code, code::INSUFFICIENT_STORAGE);
        }
        let other = Failed::Disk(io::ErrorKind::PermissionDenied.into());
        assert_eq!(refused(other).code, code::INTERNAL_ERROR);
    }

    #[test]
    fn what_is_still_written_is_removed_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree");
        let place = tree.join("a/b");
        fs::create_dir_all(&place).unwrap();
        let (began, begun) = std::sync::mpsc::channel();
        // It ends by itself, as what copies does: against one that never ends nothing is promised.
        let writer = std::thread::spawn(move || {
            let until = Instant::now() + Duration::from_millis(300);
            let names = (0..).take_while(|_| Instant::now() < until);
            let written = names.take_while(|n| fs::write(place.join(n.to_string()), "x").is_ok());
            written
                .inspect(|_| {
                    let _ = began.send(());
                })
                .count()
        });
        begun.iter().take(100).for_each(drop);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(writer.join().unwrap() >= 100);
    }

    #[test]
    fn what_is_dropped_half_made_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let incoming = Incoming::new(root.path()).unwrap();
        fs::create_dir(incoming.path().join("a")).unwrap();
        fs::write(incoming.path().join("a/b"), "x").unwrap();
        fs::set_permissions(incoming.path().join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        drop(incoming);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_kept_tree_stays_when_another_arrives() {
        let root = tempfile::tempdir().unwrap();
        for text in ["first", "second"] {
            let incoming = Incoming::new(root.path()).unwrap();
            fs::write(incoming.path().join("file"), text).unwrap();
            incoming.keep(root.path(), "tree", 1).unwrap();
        }
        assert_eq!(
            fs::read_to_string(root.path().join("tree/file")).unwrap(),
            "first"
        );
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}

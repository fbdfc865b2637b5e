//! Keeping a machine's memory and files, as they are at one moment.
//!
//! ```text
//!  kernel: stands still ─▶ state into a pipe … blocked ……………… ─▶ the rest, pages ─▶ goes on
//!  here:                      first byte ─▶ copy the writable layer ─▶ read the rest ─▶ digest, disk, record
//!                                                                       follow the pages: digest, disk
//! ```
//! The kernel stops the machine's processes and hands all their files to the host before it writes the first byte of
//! its state, and goes on when it has written the last. Its state goes through a pipe that nobody reads until the
//! writable layer is copied: so the two belong together, and if this process dies meanwhile the pipe breaks, the kernel
//! gives up, and the machine goes on. Nothing has to be remembered for that.
//!
//! **A rehearsal comes first.** Connections to others cannot be kept, so the kernel ends them while it writes. Up to
//! the `runsc` of 2026 that is told to programs that wait for such a connection by `epoll` in the middle of the writing,
//! and what is written then contradicts itself: after a restore that program never hears of anything again, the guest
//! too. So the state is written twice, and the first is thrown away: after it connections have ended, and whoever waits
//! has been told. Between the two nobody may open new ones, so the machine is paused before, and goes on or is ended
//! after. A pause outlives this process. It is remembered by a file in the machine's directory, put there first; whoever
//! finds it ([`Source::recover`]) lets the machine go on. Once all is kept of a machine that is to end, that file has
//! another name, and whoever finds it ([`Source::is_left_kept`]) ends the machine.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nullspace_engine::{Checkpoint, EngineError, FileDigest, FileHasher, Purpose};
use nullspace_engine_native::{
    layer,
    place::{LAYER, SECRET},
};
use nullspace_sys::disk;

use crate::control::{self, Error};

/// The kernel's files, by the names that `runsc restore` looks for.
pub(crate) const STATE: &str = "checkpoint.img";
pub(crate) const TABLE: &str = "pages_meta.img";
pub(crate) const PAGES: &str = "pages.img";
/// In a machine's directory while it is paused in order to be kept.
const PAUSED: &str = "paused";
/// What that file is called once all is kept of a machine that is to end.
const ENDED: &str = "kept";
/// What the kernel's state begins with, before the length of its head.
const MAGIC: &[u8; 8] = b"gVisorSF";
/// Bytes of the state that a rehearsal reads: past what is written before the kernel has looked at all that it keeps.
const REHEARSED: usize = 128 << 10;
/// Bytes of pages that are read at once, and after which the disk is told to begin with them.
const PIECE: usize = 1 << 20;
const HANDED: u64 = 8 << 20;
/// How long whoever has read all that the kernel has written waits for more.
const FOLLOWING: Duration = Duration::from_millis(1);
/// Files and directories that are put on the disk one by one.
const FEW: usize = 100;
/// Threads that do that.
const TOGETHER: usize = 16;
/// The most bytes of that head.
const MAX_HEAD: u64 = 1 << 20;

/// A machine to keep.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// Its kernel's control socket.
    pub(crate) control: PathBuf,
    /// Its kernel writes pages from front to end ([`crate::Release::writes_in_order`]).
    pub(crate) in_order: bool,
}

fn step(step: &str, error: impl std::fmt::Display) -> EngineError {
    EngineError::Step {
        step: step.to_owned(),
        reason: error.to_string(),
    }
}

impl Source {
    /// Writes all of a checkpoint. With [`Purpose::Hibernate`] the machine then stands still, for the caller to end it.
    /// Blocks.
    pub(crate) fn write(
        &self,
        target: &Path,
        format: &str,
        purpose: Purpose,
    ) -> Result<Checkpoint, EngineError> {
        let id = || {
            self.directory
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        };
        fs::create_dir(target).map_err(|e| step("make the checkpoint's directory", e))?;
        let written = self.pause().and_then(|mut paused| {
            let kept = self.rehearse().and_then(|()| {
                // One that goes on waits neither for the rest of its digest nor for the disk.
                self.save(target, purpose, || {
                    if purpose != Purpose::Hibernate {
                        paused.end();
                    }
                })
            });
            let made = kept.and_then(|pages| match purpose {
                Purpose::Fork => pass_on(target, format),
                Purpose::Hibernate | Purpose::Snapshot => finish(target, format, pages),
            });
            let made = match purpose {
                Purpose::Hibernate => made.and_then(|made| self.note_ended().map(|()| made)),
                Purpose::Fork | Purpose::Snapshot => made,
            };
            if made.is_err() {
                paused.end();
            }
            made
        });
        written.map_err(|error| {
            let _ = fs::remove_dir_all(target);
            match error {
                Failure::Gone => EngineError::NotFound(id().into_owned()),
                Failure::Step(name, reason) => match deleted(&reason) {
                    Some(path) => {
                        EngineError::Busy(format!("a process has /{path} open, and it was deleted"))
                    }
                    None => step(name, reason),
                },
            }
        })
    }

    /// Has the kernel end connections to others: see the module's docs.
    fn rehearse(&self) -> Result<(), Failure> {
        let (mut reader, writer) = io::pipe().named("make a pipe")?;
        let nowhere = File::options()
            .write(true)
            .open("/dev/null")
            .named("open /dev/null")?;
        std::thread::scope(|scope| {
            let kernel = scope.spawn(|| {
                let files = [writer.as_fd(), nowhere.as_fd(), nowhere.as_fd()];
                let saved = control::save(&self.control, files);
                drop(writer);
                saved
            });
            // What comes after the head is written once all of the state was looked at.
            let heard = reader.read_exact(&mut vec![0; REHEARSED]);
            drop(reader);
            let saved = kernel
                .join()
                .unwrap_or_else(|_| Err(Error::Lost(io::Error::other("a thread ended"))));
            match (heard, saved) {
                (_, Err(Error::Gone)) => Err(Failure::Gone),
                // It was interrupted, as it should be.
                (Ok(()), _) => Ok(()),
                (Err(_), Err(error)) => Err(Failure::Step("look at the memory", error.to_string())),
                (Err(error), Ok(())) => Err(Failure::Step("look at the memory", error.to_string())),
            }
        })
    }

    /// Writes everything but the record, in a machine that stands still. Says what the pages are, if that was found
    /// out meanwhile. Calls `done` once the kernel has written all.
    fn save(
        &self,
        target: &Path,
        purpose: Purpose,
        done: impl FnOnce(),
    ) -> Result<Option<FileDigest>, Failure> {
        let (reader, writer) = io::pipe().named("make a pipe")?;
        let new = |name: &str| {
            OpenOptions::new()
                .create_new(true)
                .read(true)
                .write(true)
                .mode(0o600)
                .open(target.join(name))
        };
        let table = new(TABLE).named("make the checkpoint's files")?;
        let pages = new(PAGES).named("make the checkpoint's files")?;
        let state = new(STATE).named("make the checkpoint's files")?;
        let written = File::open(target.join(PAGES)).named("open the pages")?;
        let whole = AtomicBool::new(false);
        fs::copy(self.directory.join(SECRET), target.join(SECRET)).named("copy the secret")?;
        std::thread::scope(|scope| {
            let follower = (self.in_order && purpose != Purpose::Fork)
                .then(|| scope.spawn(|| follow(&written, &whole)));
            let kernel = scope.spawn(|| {
                let files = [writer.as_fd(), table.as_fd(), pages.as_fd()];
                let saved = control::save(&self.control, files);
                // The kernel has its own; with ours open the pipe would not end.
                drop(writer);
                saved
            });
            let copied = self.copy(reader, state, target);
            let saved = kernel
                .join()
                .unwrap_or_else(|_| Err(Error::Lost(io::Error::other("a thread ended"))));
            whole.store(true, Ordering::Release);
            done();
            let followed = follower.map(|follower| {
                follower
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread ended")))
            });
            match (saved, copied) {
                (Err(Error::Gone), _) => Err(Failure::Gone),
                // When both failed, ours is why the kernel's did, unless it never began.
                (_, Err(Failure::Step(name, reason))) => Err(Failure::Step(name, reason)),
                (Err(error), _) => Err(Failure::Step("keep the memory", error.to_string())),
                (Ok(()), Ok(())) => followed.transpose().named("read the pages again"),
                (Ok(()), Err(gone)) => Err(gone),
            }
        })
    }

    /// Copies the writable layer when the machine stands still, then lets its kernel write.
    fn copy(&self, mut reader: PipeReader, mut state: File, target: &Path) -> Result<(), Failure> {
        let head = match read_head(&mut reader) {
            Ok(head) => head,
            // The kernel did not begin: it says why.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(Failure::Step("read the kernel's state", error.to_string())),
        };
        layer::copy_written(&self.directory, &target.join(LAYER))
            .named("copy the writable layer")?;
        state
            .write_all(&head)
            .and_then(|()| io::copy(&mut reader, &mut state))
            .named("write the kernel's state")
            .map(drop)
    }

    fn pause(&self) -> Result<Paused<'_>, Failure> {
        File::create(self.directory.join(PAUSED)).named("note that it is paused")?;
        match control::pause(&self.control) {
            Ok(()) => Ok(Paused(Some(self))),
            Err(error) => {
                let _ = fs::remove_file(self.directory.join(PAUSED));
                Err(match error {
                    Error::Gone => Failure::Gone,
                    other => Failure::Step("pause the machine", other.to_string()),
                })
            }
        }
    }

    fn note_ended(&self) -> Result<(), Failure> {
        fs::rename(self.directory.join(PAUSED), self.directory.join(ENDED))
            .named("note that it ended")
    }

    fn unpause(&self) {
        if let Err(error) = control::resume(&self.control) {
            tracing::warn!(error = %error, "a machine stays paused");
        }
        let _ = fs::remove_file(self.directory.join(PAUSED));
    }

    /// Whether all of it was kept, and it was to end, when the last process here died.
    pub(crate) fn is_left_kept(&self) -> bool {
        self.directory.join(ENDED).exists()
    }

    /// Whether it was being kept when the last process here died.
    pub(crate) fn is_left_paused(&self) -> bool {
        self.directory.join(PAUSED).exists()
    }

    /// Lets such a machine go on. `answers` says whether its guest does: then it never came to be paused, and a kernel
    /// that is resumed once too often ends.
    pub(crate) fn recover(&self, answers: bool) {
        if answers {
            let _ = fs::remove_file(self.directory.join(PAUSED));
        } else {
            self.unpause();
        }
    }
}

/// A machine that stands still. Not ended by dropping it: one that was kept stays so.
struct Paused<'a>(Option<&'a Source>);

impl Paused<'_> {
    /// Lets it go on; once, however often this is called.
    fn end(&mut self) {
        if let Some(source) = self.0.take() {
            source.unpause();
        }
    }
}

/// Reads a file while the kernel writes it from front to end, for its digest, and has the disk begin with what is there.
/// `whole` says that nothing more comes.
fn follow(pages: &File, whole: &AtomicBool) -> io::Result<FileDigest> {
    let mut hasher = FileHasher::default();
    let mut buffer = vec![0; PIECE];
    let mut reader = pages;
    let (mut read, mut handed) = (0, 0);
    loop {
        // Looked at before the end of the file is.
        let last = whole.load(Ordering::Acquire);
        let length = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        hasher.update(&buffer[..length]);
        read += length as u64;
        if read - handed >= HANDED {
            disk::start_writing(pages, handed, read - handed)?;
            handed = read;
        }
        match (length, last) {
            (0, true) => return Ok(hasher.finish()),
            (0, false) => std::thread::sleep(FOLLOWING),
            _ => {}
        }
    }
}

/// Which file is in the way, when a kernel does not keep a machine because a process has one open that has no path.
fn deleted(reason: &str) -> Option<&str> {
    let (path, rest) = reason
        .split_once("gofer.dentry(\"")?
        .1
        .split_once("\").beforeSave: ")?;
    rest.starts_with("deleted").then_some(path)
}

/// Says of what was written that it is for a fork.
fn pass_on(target: &Path, format: &str) -> Result<Checkpoint, Failure> {
    let made = Checkpoint::passing("gvisor", format);
    made.write(target).named("record the checkpoint")?;
    Ok(made)
}

/// Has what was written put on the disk, and says what it is.
fn finish(target: &Path, format: &str, pages: Option<FileDigest>) -> Result<Checkpoint, Failure> {
    let known: HashMap<_, _> = pages.map(|pages| (PAGES, pages)).into_iter().collect();
    let (flushed, described) = std::thread::scope(|scope| {
        let disk = scope.spawn(|| flush(target));
        let described = Checkpoint::knowing(target, "gvisor", format, &known)
            .and_then(|made| made.draft(target).map(|()| made));
        let flushed = disk
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread ended")));
        (flushed, described)
    });
    flushed.named("write the checkpoint to the disk")?;
    let made = described.named("describe the checkpoint")?;
    Checkpoint::publish(target).named("record the checkpoint")?;
    Ok(made)
}

/// Has a checkpoint's files put on the disk. Not all of the file system, if they are few: that would wait for
/// whatever others have written there.
fn flush(target: &Path) -> io::Result<()> {
    let mut few: Vec<_> = target.parent().map(Path::to_owned).into_iter().collect();
    let mut left = vec![target.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let (entry, kind) =
                entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if kind.is_file() {
                few.push(entry.path());
            }
        }
        few.push(directory);
        if few.len() + left.len() > FEW {
            rustix::fs::syncfs(File::open(target)?)?;
            return Ok(());
        }
    }
    // Each waits for the disk, which does in one go what it is asked at the same time.
    let share = few.len().div_ceil(TOGETHER);
    std::thread::scope(|scope| {
        let syncing: Vec<_> = few
            .chunks(share)
            .map(|share| {
                scope.spawn(|| {
                    share
                        .iter()
                        .try_for_each(|path| File::open(path)?.sync_all())
                })
            })
            .collect();
        syncing.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread ended")))
        })
    })
}

/// Reads the head of the kernel's state and the first byte after it: by then the machine stands still, and its files
/// are written out.
fn read_head(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut fixed = [0; 16];
    reader.read_exact(&mut fixed)?;
    let (magic, length) = fixed.split_at(8);
    let length = u64::from_be_bytes(length.try_into().unwrap_or_default());
    if magic != MAGIC || length > MAX_HEAD {
        return Err(io::Error::other("it is not as expected"));
    }
    let mut head = fixed.to_vec();
    let from = head.len();
    head.resize(from + length as usize + 1, 0);
    reader.read_exact(&mut head[from..])?;
    Ok(head)
}

enum Failure {
    /// There is no such machine.
    Gone,
    Step(&'static str, String),
}

trait Named<T> {
    fn named(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> Named<T> for io::Result<T> {
    fn named(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Step(step, error.to_string()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_followed_is_what_is_there() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(PAGES);
        let mut kernel = File::create(&path).unwrap();
        let pages = File::open(&path).unwrap();
        let whole = AtomicBool::new(false);
        let followed = std::thread::scope(|scope| {
            let follower = scope.spawn(|| follow(&pages, &whole));
            for n in 0..40_u8 {
                kernel.write_all(&vec![n; 700_001]).unwrap();
            }
            whole.store(true, Ordering::Release);
            follower.join().unwrap().unwrap()
        });
        let known = HashMap::from([(PAGES, followed)]);
        let made = Checkpoint::knowing(home.path(), "gvisor", "1", &known).unwrap();
        assert_eq!(made, Checkpoint::of(home.path(), "gvisor", "1").unwrap());
        // It was not read again, so a change after that shows when it is proven.
        kernel.write_all(b"more").unwrap();
        let later = Checkpoint::knowing(home.path(), "gvisor", "1", &known).unwrap();
        assert_eq!(later.digest, made.digest);
        later.prove(home.path()).unwrap_err();
    }

    #[test]
    fn a_deleted_file_is_named() {
        let said = r#"encoding error: gofer.dentry("tmp/a b").beforeSave: deleted and invalidated dentries can't be restored:"#;
        assert_eq!(deleted(said), Some("tmp/a b"));
        assert_eq!(deleted("the disk is full"), None);
    }

    #[test]
    fn the_head_is_read_with_one_byte_more() {
        let mut state = MAGIC.to_vec();
        state.extend(3u64.to_be_bytes());
        state.extend(b"{x}first");
        let mut rest = state.as_slice();
        assert!(read_head(&mut rest).unwrap().ends_with(b"{x}f"));
        assert_eq!(rest, b"irst");
        assert!(read_head(&mut &state[..19]).is_err());
        let mut long = MAGIC.to_vec();
        long.extend(u64::MAX.to_be_bytes());
        assert!(read_head(&mut long.as_slice()).is_err());
        assert!(read_head(&mut &b"something else entirely"[..]).is_err());
    }
}

//! How much disk machines take, measured behind everybody's back.
//!
//! ```text
//!  used ──▶ what was measured last ──(old, and nobody measures)──▶ queue ──▶ one thread of low priority
//! ```
//! There is no quota that would count for us, so the writable layer is walked: by one thread, only for machines that
//! somebody asks about, each at most a twentieth of the time. What is in there is the machine's and hostile: links are
//! not followed, each directory is opened from the one above it, and depth and number of files are bounded.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use tokio::sync::{mpsc, watch};

/// How old a number may be before it is measured again.
const OLD: Duration = Duration::from_secs(5);
/// How much longer than measuring took it is left alone.
const REST: u32 = 20;
/// How long the first one who asks waits; then they get what was counted so far.
const FIRST: Duration = Duration::from_secs(2);
/// Directories within each other that are looked into: each costs a descriptor while it is.
const DEPTH: usize = 256;
/// Names that are looked at. More are not counted.
const NAMES: u64 = 10_000_000;
/// Files with several names that are remembered, so that each counts once.
const LINKED: usize = 1 << 20;

/// Sizes of writable layers.
#[derive(Debug)]
pub(crate) struct Disks {
    machines: Arc<Mutex<HashMap<String, Machine>>>,
    queue: mpsc::UnboundedSender<Job>,
}

#[derive(Debug)]
struct Machine {
    measured: watch::Sender<Option<u64>>,
    /// Counted so far, the first time.
    counting: Arc<AtomicU64>,
    /// When it may be measured again; `None` while it is.
    again: Option<Instant>,
}

struct Job {
    id: String,
    layer: PathBuf,
    counting: Arc<AtomicU64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks {
    /// Starts the thread; it ends with this.
    pub(crate) fn start() -> std::io::Result<Self> {
        let machines: Arc<Mutex<HashMap<String, Machine>>> = Arc::default();
        let (queue, jobs) = mpsc::unbounded_channel();
        let results = machines.clone();
        std::thread::Builder::new()
            .name("machine-disks".into())
            .spawn(move || measure(&results, jobs))?;
        Ok(Self { machines, queue })
    }

    /// Bytes that a writable layer takes, some seconds old at most unless walking it takes long.
    pub(crate) async fn used(&self, id: &str, layer: PathBuf) -> u64 {
        let (mut measured, counting) = {
            let mut machines = lock(&self.machines);
            let machine = machines.entry(id.to_owned()).or_insert_with(|| Machine {
                measured: watch::Sender::new(None),
                counting: Arc::default(),
                again: Some(Instant::now()),
            });
            if machine.again.is_some_and(|at| at <= Instant::now()) {
                machine.again = None;
                let _ = self.queue.send(Job {
                    id: id.to_owned(),
                    layer,
                    counting: machine.counting.clone(),
                });
            }
            (machine.measured.subscribe(), machine.counting.clone())
        };
        let known = tokio::time::timeout(FIRST, measured.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => known.unwrap_or_default(),
            _ => counting.load(Ordering::Relaxed),
        }
    }

    /// A machine is no more.
    pub(crate) fn forget(&self, id: &str) {
        lock(&self.machines).remove(id);
    }
}

fn measure(machines: &Mutex<HashMap<String, Machine>>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    // Of this thread alone, as the kernel counts.
    let _ = rustix::process::setpriority_process(None, 10);
    while let Some(job) = jobs.blocking_recv() {
        let begun = Instant::now();
        let bytes = size(&job.layer, &job.counting);
        let rest = OLD.max(begun.elapsed() * REST);
        if let Some(machine) = lock(machines).get_mut(&job.id) {
            machine.measured.send_replace(Some(bytes));
            machine.again = Some(Instant::now() + rest);
        }
    }
}

/// What a directory and everything beneath it take on disk. What cannot be looked at, or goes away meanwhile, counts
/// nothing.
fn size(directory: &Path, counting: &AtomicU64) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mut names, mut linked) = (0, HashSet::new());
    counting.store(0, Ordering::Relaxed);
    let Ok(top) = rustix::fs::open(directory, flags, Mode::empty()) else {
        return 0;
    };
    let mut open: Vec<(OwnedFd, Vec<CString>)> = Vec::new();
    let mut next = Some(top);
    loop {
        if let Some(directory) = next.take() {
            let inner = look(&directory, &mut names, &mut linked, counting);
            open.push((directory, inner));
        }
        let deep = open.len() >= DEPTH;
        match open.last_mut() {
            None => break,
            Some((directory, inner)) => match inner.pop() {
                Some(name) if !deep => next = openat(&*directory, name, flags, Mode::empty()).ok(),
                Some(_) => {}
                None => {
                    open.pop();
                }
            },
        }
    }
    counting.load(Ordering::Relaxed)
}

/// Counts what is in one directory and answers with the directories there.
fn look(
    directory: &OwnedFd,
    names: &mut u64,
    linked: &mut HashSet<u64>,
    counting: &AtomicU64,
) -> Vec<CString> {
    let mut inner = Vec::new();
    let Ok(entries) = Dir::read_from(directory) else {
        return inner;
    };
    for entry in entries {
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *names += 1;
        if *names > NAMES {
            break;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let again = !is_directory
            && stat.st_nlink > 1
            && linked.len() < LINKED
            && !linked.insert(stat.st_ino);
        if !again {
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            counting.fetch_add(bytes, Ordering::Relaxed);
        }
        if is_directory {
            inner.push(name.to_owned());
        }
    }
    inner
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn sized(directory: &Path) -> u64 {
        size(directory, &AtomicU64::new(7))
    }

    #[test]
    fn everything_beneath_counts_once_and_nothing_else() {
        let at = tempfile::tempdir().unwrap();
        let (tree, outside) = (at.path().join("tree"), at.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("large"), vec![1; 8 * MIB]).unwrap();
        let before = sized(&tree);
        assert!(before < MIB as u64, "{before}");
        std::fs::write(tree.join("a/one"), vec![1; MIB]).unwrap();
        std::fs::write(tree.join("a/b/c/two"), vec![1; 2 * MIB]).unwrap();
        std::fs::hard_link(tree.join("a/one"), tree.join("same")).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("large"), tree.join("a/file")).unwrap();
        let grown = sized(&tree) - before;
        assert!((3 * MIB as u64..4 * MIB as u64).contains(&grown), "{grown}");
        assert_eq!(sized(&at.path().join("none")), 0);
    }

    #[test]
    fn a_tree_without_end_is_not_followed_to_its_end() {
        let at = tempfile::tempdir().unwrap();
        let mut deep = at.path().to_owned();
        for _ in 0..DEPTH + 50 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("large"), vec![1; 8 * MIB]).unwrap();
        assert!(sized(at.path()) < 8 * MIB as u64);
    }

    #[tokio::test]
    async fn what_was_measured_is_told_again_for_a_while() {
        let at = tempfile::tempdir().unwrap();
        let disks = Disks::start().unwrap();
        let used = || disks.used("m", at.path().to_owned());
        let before = used().await;
        std::fs::write(at.path().join("new"), vec![1; MIB]).unwrap();
        assert_eq!(used().await, before, "not measured again at once");
        disks.forget("m");
        assert!(used().await >= before + MIB as u64);
    }
}

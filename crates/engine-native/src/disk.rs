//! How much disk machines take, measured behind everybody's back.
//!
//! ```text
//!  used ──▶ what was measured last ──(old, and nobody measures)──▶ queue ──▶ one thread of low priority
//! ```
//! By one thread, only for machines that somebody asks about, each at most a twentieth of the time. A writable layer that has a
//! file system of its own is asked, and stays mounted here until it is forgotten; any other is walked. What is in there is the machine's
//! and hostile.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nullspace_sys::{image, tree::usage};
use tokio::sync::{mpsc, watch};

use crate::layer::{self, FILES, UPPER};

/// How old a number may be before it is measured again.
const OLD: Duration = Duration::from_secs(5);
/// How much longer than measuring took it is left alone.
const REST: u32 = 20;
/// How long the first one who asks waits; then they get what was counted so far.
const FIRST: Duration = Duration::from_secs(2);

/// Sizes of writable layers.
#[derive(Debug)]
pub(crate) struct Disks {
    machines: Arc<Mutex<HashMap<String, Machine>>>,
    queue: mpsc::UnboundedSender<Job>,
}

#[derive(Debug)]
struct Machine {
    measured: watch::Sender<Option<Measured>>,
    /// Counted so far, the first time.
    counting: Arc<AtomicU64>,
    /// When it may be measured again; `None` while it is.
    again: Option<Instant>,
}

/// What a writable layer takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) used: u64,
    /// How much more there is room for in its file system, if it has one of its own.
    pub(crate) left: Option<u64>,
}

enum Job {
    Measure {
        id: String,
        machine: PathBuf,
        counting: Arc<AtomicU64>,
    },
    /// Here, because letting go of a file system may take a while.
    Forget(String),
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

    /// What the writable layer of the machine in a directory takes, some seconds old at most unless walking it takes long.
    pub(crate) async fn measure(&self, id: &str, machine_directory: &Path) -> Measured {
        let (mut measured, counting) = {
            let mut machines = lock(&self.machines);
            let machine = machines.entry(id.to_owned()).or_insert_with(|| Machine {
                measured: watch::Sender::new(None),
                counting: Arc::default(),
                again: Some(Instant::now()),
            });
            if machine.again.is_some_and(|at| at <= Instant::now()) {
                machine.again = None;
                let _ = self.queue.send(Job::Measure {
                    id: id.to_owned(),
                    machine: machine_directory.to_owned(),
                    counting: machine.counting.clone(),
                });
            }
            (machine.measured.subscribe(), machine.counting.clone())
        };
        let known = tokio::time::timeout(FIRST, measured.wait_for(Option::is_some)).await;
        match known {
            Ok(Ok(known)) => known.unwrap_or_default(),
            _ => Measured {
                used: counting.load(Ordering::Relaxed),
                left: None,
            },
        }
    }

    /// A machine is no more.
    pub(crate) fn forget(&self, id: &str) {
        if lock(&self.machines).remove(id).is_some() {
            let _ = self.queue.send(Job::Forget(id.to_owned()));
        }
    }
}

fn measure(machines: &Mutex<HashMap<String, Machine>>, mut jobs: mpsc::UnboundedReceiver<Job>) {
    // Of this thread alone, as the kernel counts.
    let _ = rustix::process::setpriority_process(None, 10);
    let mut disks = HashMap::new();
    while let Some(job) = jobs.blocking_recv() {
        let (id, directory, counting) = match job {
            Job::Measure {
                id,
                machine,
                counting,
            } => (id, machine, counting),
            Job::Forget(id) => {
                disks.remove(&id);
                continue;
            }
        };
        let begun = Instant::now();
        if !disks.contains_key(&id)
            && let Ok(Some(disk)) = layer::disk(&directory)
        {
            disks.insert(id.clone(), disk);
        }
        let measured = match disks.get(&id) {
            Some(disk) => asked(disk),
            None => Measured {
                used: usage(&directory.join(FILES).join(UPPER), &counting).bytes,
                left: None,
            },
        };
        let rest = OLD.max(begun.elapsed() * REST);
        if let Some(machine) = lock(machines).get_mut(&id) {
            machine.measured.send_replace(Some(measured));
            machine.again = Some(Instant::now() + rest);
        }
    }
}

fn asked(disk: &OwnedFd) -> Measured {
    let used = image::usage(disk).map_or(0, |usage| usage.bytes);
    let left = rustix::fs::fstatvfs(disk).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    Measured {
        used,
        left: left.ok(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn what_was_measured_is_told_again_for_a_while() {
        let at = tempfile::tempdir().unwrap();
        let disks = Disks::start().unwrap();
        let upper = at.path().join(FILES).join(UPPER);
        std::fs::create_dir_all(&upper).unwrap();
        let used = async || disks.measure("m", at.path()).await.used;
        let before = used().await;
        std::fs::write(upper.join("new"), vec![1; MIB]).unwrap();
        assert_eq!(used().await, before, "not measured again at once");
        disks.forget("m");
        assert!(used().await >= before + MIB as u64);
    }
}

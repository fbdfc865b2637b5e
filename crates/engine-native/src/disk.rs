//! How much disk machines take, measured behind everybody's back.
//!
//! ```text
//!  used ──▶ what was measured last ──(old, and nobody measures)──▶ queue ──▶ one thread of low priority
//! ```
//! There is no quota that would count for us, so the writable layer is walked: by one thread, only for machines that
//! somebody asks about, each at most a twentieth of the time. What is in there is the machine's and hostile.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nullspace_sys::tree::usage;
use tokio::sync::{mpsc, watch};

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
        let bytes = usage(&job.layer, &job.counting).bytes;
        let rest = OLD.max(begun.elapsed() * REST);
        if let Some(machine) = lock(machines).get_mut(&job.id) {
            machine.measured.send_replace(Some(bytes));
            machine.again = Some(Instant::now() + rest);
        }
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
        let used = || disks.used("m", at.path().to_owned());
        let before = used().await;
        std::fs::write(at.path().join("new"), vec![1; MIB]).unwrap();
        assert_eq!(used().await, before, "not measured again at once");
        disks.forget("m");
        assert!(used().await >= before + MIB as u64);
    }
}

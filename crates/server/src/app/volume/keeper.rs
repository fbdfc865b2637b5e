//! The keepers of the volumes whose files are being worked on: one process each, started when it is needed and let go of
//! when it was not for a while.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nullspace_protocol::GuestClient;
use nullspace_sys::stream::LocalStream;

use super::backend;
use crate::error::Result;

/// How long one is kept that nobody needs.
const IDLE: Duration = Duration::from_secs(60);
/// The most that are kept; the one that was not needed for longest goes first.
const MOST: usize = 64;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The volumes whose files are worked on.
#[derive(Debug)]
pub(crate) struct State {
    /// The program that is a keeper, and its first arguments.
    program: Vec<String>,
    open: Mutex<HashMap<String, Arc<Open>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) directory: PathBuf,
    program: Vec<String>,
    guest: tokio::sync::Mutex<Option<GuestClient>>,
    used: Mutex<Instant>,
    /// Something was written since it was counted.
    written: AtomicBool,
    /// Held while something is written to a volume with limits: what there is room for is counted before.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    pub(crate) fn new(program: Vec<String>) -> Self {
        Self {
            program,
            open: Mutex::default(),
        }
    }

    pub(super) fn open(&self, id: &str, directory: &Path) -> Arc<Open> {
        let mut open = lock(&self.open);
        let one = open.entry(id.to_owned()).or_insert_with(|| {
            Arc::new(Open {
                directory: directory.to_owned(),
                program: self.program.clone(),
                guest: tokio::sync::Mutex::default(),
                used: Mutex::new(Instant::now()),
                written: AtomicBool::new(false),
                gate: tokio::sync::Mutex::default(),
            })
        });
        *lock(&one.used) = Instant::now();
        one.clone()
    }

    /// Those that were written to since they were counted.
    pub(super) fn written(&self) -> Vec<String> {
        let open = lock(&self.open);
        let written = open.iter().filter(|(_, one)| one.is_written());
        written.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn is_written(&self, id: &str) -> bool {
        lock(&self.open).get(id).is_some_and(|one| one.is_written())
    }

    /// It was counted, or is about to be.
    pub(super) fn counted(&self, id: &str) {
        if let Some(one) = lock(&self.open).get(id) {
            one.written.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn forget(&self, id: &str) {
        lock(&self.open).remove(id);
    }

    /// Lets go of all.
    pub(crate) fn close(&self) {
        lock(&self.open).clear();
    }

    /// Lets go of those that nobody needs. What is under way is carried to its end.
    pub(super) fn let_go(&self) {
        let mut open = lock(&self.open);
        let idle = |one: &Open| lock(&one.used).elapsed();
        // One that was written to is remembered until it was counted.
        open.retain(|_, one| Arc::strong_count(one) > 1 || one.is_written() || idle(one) < IDLE);
        while open.len() > MOST {
            let longest = open
                .iter()
                .max_by_key(|(_, one)| idle(one))
                .map(|(id, _)| id.clone());
            match longest {
                Some(id) => open.remove(&id),
                None => break,
            };
        }
    }
}

impl Open {
    /// Something in it is changed.
    pub(crate) fn write(&self) {
        self.written.store(true, Ordering::Relaxed);
    }

    fn is_written(&self) -> bool {
        self.written.load(Ordering::Relaxed)
    }

    /// A connection to its keeper, which is started if there is none.
    pub(crate) async fn guest(&self) -> Result<GuestClient> {
        let mut slot = self.guest.lock().await;
        if let Some(guest) = slot.as_ref().filter(|guest| !guest.is_closed()) {
            return Ok(guest.clone());
        }
        let (program, directory) = (self.program.clone(), self.directory.clone());
        let started = tokio::task::spawn_blocking(move || {
            let (stream, mut child) = nullspace_keeper::start(&program, &directory)?;
            // It ends when the stream is let go of; this only takes the zombie away.
            std::thread::Builder::new()
                .name("volume-keeper".into())
                .stack_size(64 << 10)
                .spawn(move || child.wait())?;
            Ok::<_, std::io::Error>(stream)
        });
        let connect = async {
            let started = started.await.map_err(|e| backend("a keeper", e))?;
            let stream = started
                .and_then(LocalStream::new)
                .map_err(|e| backend("starting a keeper", e))?;
            GuestClient::connect(Box::new(stream))
                .await
                .map_err(|e| backend("connecting to a keeper", e))
        };
        let guest = tokio::time::timeout(PATIENCE, connect)
            .await
            .unwrap_or_else(|e| Err(backend("waiting for a keeper", e)))?;
        *slot = Some(guest.clone());
        Ok(guest)
    }
}

//! The reader threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use rusqlite::Connection;

use crate::{StoreError, configure};

/// Reads wait for the disk at most: more threads than two only fight over the page cache.
const READERS: usize = 2;

pub(crate) type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Starts the threads; they end when the sender is dropped.
pub(crate) fn start(path: &Path) -> Result<mpsc::Sender<Job>, StoreError> {
    let (sender, receiver) = mpsc::channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for number in 0..READERS {
        let connection = Connection::open(path)?;
        configure(&connection)?;
        connection.pragma_update(None, "query_only", true)?;
        let receiver = receiver.clone();
        std::thread::Builder::new()
            .name(format!("store-read-{number}"))
            .spawn(move || {
                loop {
                    let job = receiver
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .recv();
                    let Ok(job) = job else { return };
                    // A panic answers its own caller (the answer is dropped) and nobody else.
                    let run = std::panic::AssertUnwindSafe(|| job(&connection));
                    if std::panic::catch_unwind(run).is_err() {
                        tracing::error!("a read panicked");
                    }
                }
            })
            .map_err(|e| StoreError::NotCommitted(e.to_string()))?;
    }
    Ok(sender)
}

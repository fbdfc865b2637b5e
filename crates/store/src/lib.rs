//! The record of everything: one SQLite database, one file of this crate per noun.
//!
//! ```text
//!  callers ──write(closure)──▶ queue ──▶ writer thread: takes all that wait, runs each in a savepoint
//!                                        of one transaction, commits once, then answers everyone
//!  callers ──read(closure)───▶ queue ──▶ reader threads (own connections, never wait for the writer)
//! ```
//! Used by `nullspace-server` alone. A caller is answered only after its data is on disk. One
//! state transition is one `write`: the new state and its event together.
//!
//! ```no_run
//! # async fn example() -> Result<(), nullspace_store::StoreError> {
//! let store = nullspace_store::Store::open(std::path::Path::new("/var/lib/nullspace/nullspace.db"))?;
//! let row = store.read(|db| nullspace_store::machine::get(db, "mch_1")).await?;
//! # Ok(()) }
//! ```

pub mod agent_artifact;
pub mod agent_deployment;
pub mod agent_log;
pub mod agent_run;
pub mod agent_service;
pub mod agent_version;
pub mod code;
pub mod event;
pub mod idempotency;
mod json;
pub mod key;
pub mod machine;
mod migrate;
pub mod pool;
pub mod preview;
mod reader;
pub mod snapshot;
pub mod ssh;
pub mod template;
pub mod template_build;
pub mod template_layer;
pub mod tenant;
pub mod upload;
pub mod volume;
pub mod webhook;
mod writer;

use std::{
    cell::Cell,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::{oneshot, watch};

pub use rusqlite;

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused.
    #[error("the database refused")]
    Sqlite(#[from] rusqlite::Error),
    /// A program newer than this one has written the database.
    #[error(
        "the database has schema version {found}, this program knows up to {known}: use the program that wrote it, or a newer one"
    )]
    TooNew {
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
    /// A stored value is not what this program writes.
    #[error("stored {what} is not valid: {value:?}")]
    Corrupt {
        /// Which column.
        what: &'static str,
        /// What it holds.
        value: String,
    },
    /// The log has an event of this number already: its writer lost count.
    #[error("the log has an event {0} already")]
    LogNumberTaken(u64),
    /// The disk could not take the transaction; nothing of it was kept.
    #[error("the transaction was not kept: {0}")]
    NotCommitted(String),
    /// The store is closed, or the closure panicked.
    #[error("the store is closed")]
    Closed,
}

/// A transaction: what is written through it is kept whole or not at all. Reads work on it too.
#[derive(Debug)]
pub struct Tx<'a> {
    db: &'a rusqlite::Connection,
    /// Whether events were appended.
    has_events: &'a Cell<bool>,
}

impl Tx<'_> {
    /// Followers of the event log are to be told after the commit.
    fn tell_followers(&self) {
        self.has_events.set(true);
    }
}

impl std::ops::Deref for Tx<'_> {
    type Target = rusqlite::Connection;

    fn deref(&self) -> &rusqlite::Connection {
        self.db
    }
}

/// The open database. Clones share it; the threads end with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: mpsc::Sender<writer::Job>,
    readers: mpsc::Sender<reader::Job>,
    events: watch::Receiver<()>,
    commits: writer::Commits,
}

impl Store {
    /// Opens the database, making or upgrading it.
    ///
    /// # Errors
    /// [`StoreError::TooNew`], or whatever the database says.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = rusqlite::Connection::open(path)?;
        configure(&connection)?;
        // A journal on disk before every answer: a power cut takes nothing that was answered.
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // The writer checkpoints when it has nothing else to do.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        migrate::run(&mut connection)?;
        let readers = reader::start(path)?;
        let (tell, events) = watch::channel(());
        let commits = writer::Commits::default();
        let writer = writer::start(connection, tell, commits.clone())?;
        Ok(Self {
            writer,
            readers,
            events,
            commits,
        })
    }

    /// Tells this from now on of each transaction: how long it took, and how many writes shared it. It is called on the
    /// writer's thread. Only the first one counts.
    pub fn on_commit(&self, tell: Arc<dyn Fn(Duration, usize) + Send + Sync>) {
        let _ = self.commits.0.set(tell);
    }

    /// Changes whenever events were committed: whoever follows the log reads on from where it was. Nothing is carried
    /// here, so that a slow follower holds up nobody and misses nothing.
    #[must_use]
    pub fn events(&self) -> watch::Receiver<()> {
        self.events.clone()
    }

    /// Runs `work` in a transaction. When it returns an error nothing of it is kept and the error comes
    /// back; when this returns `Ok` everything is on disk.
    ///
    /// # Errors
    /// Those of `work`; [`StoreError`] when the transaction could not be committed.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.writer
            .send(writer::job(work, answer))
            .map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Like [`Store::write`] for what nobody waits for; a failure is logged.
    pub fn write_later<F>(&self, work: F)
    where
        F: FnOnce(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    {
        let work = move |tx: &Tx<'_>| {
            work(tx).inspect_err(|error| tracing::error!(%error, "a later write failed"))
        };
        let _ = self.writer.send(writer::job(work, oneshot::channel().0));
    }

    /// Runs `work` on a read-only connection: it sees everything committed before it started.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&rusqlite::Connection) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.readers
            .send(Box::new(move |db| {
                let _ = answer.send(work(db));
            }))
            .map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

/// What every connection needs.
fn configure(connection: &rusqlite::Connection) -> Result<(), StoreError> {
    connection.busy_timeout(std::time::Duration::from_secs(10))?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

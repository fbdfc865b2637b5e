//! The writer thread: group commit.
//!
//! While one commit waits for the disk, the next callers queue up; they then share one transaction and
//! one wait. Each runs inside a savepoint, so that one that fails undoes only itself. All are answered after
//! the commit, also those that failed: what one was refused for may be what another of the same transaction
//! wrote, and whoever is told of it must find it.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use crate::{StoreError, Tx};

/// Callers that share one transaction at most; bounds how long the first of them waits.
const BATCH: usize = 256;
/// Quiet time after which the journal is folded into the database.
const QUIET: Duration = Duration::from_millis(250);
/// The same once there are [`ENOUGH`] transactions in it: any pause will do.
const PAUSE: Duration = Duration::from_millis(5);
/// A journal that is written over again from its beginning does not grow, and a file that does not grow is synced
/// in a third of the time: so it is folded in often.
const ENOUGH: u32 = 64;
/// Transactions after which that is done even without a pause.
const CHECKPOINT_AFTER: u32 = 1_000;

/// Who is told of transactions: how long one took, and how many writes shared it.
#[derive(Clone, Default)]
pub(crate) struct Commits(pub(crate) Arc<OnceLock<Tell>>);

type Tell = Arc<dyn Fn(Duration, usize) + Send + Sync>;

impl std::fmt::Debug for Commits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commits")
    }
}

/// What became of a job's own part of the transaction.
struct Ran {
    /// Whether its part is kept if the commit succeeds, or undone.
    keep: bool,
    /// Answers the caller, who is told what became of the commit.
    answer: Answer,
}

type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// One caller's work, with the way back to the caller inside.
pub(crate) struct Job(Box<dyn FnOnce(&Tx<'_>) -> Ran + Send>);

/// Packs a closure and where its result goes.
pub(crate) fn job<T, E, F>(work: F, answer: oneshot::Sender<Result<T, E>>) -> Job
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
    F: FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
{
    Job(Box::new(move |tx| {
        let result = work(tx);
        Ran {
            keep: result.is_ok(),
            answer: Box::new(move |committed| {
                let _ = answer.send(match committed {
                    Ok(()) => result,
                    Err(reason) => Err(StoreError::NotCommitted(reason).into()),
                });
            }),
        }
    }))
}

/// Starts the thread; it ends when the sender is dropped, after the last job. `events` is told of each commit with events.
pub(crate) fn start(
    connection: Connection,
    events: watch::Sender<()>,
    commits: Commits,
) -> Result<Sender<Job>, StoreError> {
    let (sender, receiver) = channel();
    std::thread::Builder::new()
        .name("store-write".into())
        .spawn(move || run(&connection, &receiver, &events, &commits))
        .map_err(|e| StoreError::NotCommitted(e.to_string()))?;
    Ok(sender)
}

fn run(db: &Connection, jobs: &Receiver<Job>, events: &watch::Sender<()>, commits: &Commits) {
    let mut since_checkpoint = 0u32;
    loop {
        let first = if since_checkpoint == 0 {
            match jobs.recv() {
                Ok(job) => job,
                Err(_) => break,
            }
        } else {
            let quiet = if since_checkpoint < ENOUGH {
                QUIET
            } else {
                PAUSE
            };
            match jobs.recv_timeout(quiet) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    checkpoint(db);
                    since_checkpoint = 0;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        };
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        let (begun, count) = (Instant::now(), batch.len());
        if commit(db, batch) {
            events.send_replace(());
        }
        if let Some(tell) = commits.0.get() {
            tell(begun.elapsed(), count);
        }
        since_checkpoint += 1;
        if since_checkpoint >= CHECKPOINT_AFTER {
            checkpoint(db);
            since_checkpoint = 0;
        }
    }
    checkpoint(db);
}

fn checkpoint(db: &Connection) {
    let done = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = done {
        tracing::warn!(%error, "the journal could not be folded in");
    }
}

/// Runs the batch in one transaction and answers everyone. Whether there may be new events.
fn commit(db: &Connection, batch: Vec<Job>) -> bool {
    if let Err(error) = statement(db, "BEGIN IMMEDIATE") {
        refuse(db, batch, &error.to_string());
        return false;
    }
    let has_events = Cell::new(false);
    let alone = batch.len() == 1;
    let mut answers = Vec::with_capacity(batch.len());
    let mut any_kept = false;
    let mut broken = None;
    for Job(work) in batch {
        if broken.is_none() && !alone {
            broken = statement(db, "SAVEPOINT caller").err();
        }
        // After the transaction itself broke the rest is not run at all; dropping the job tells its
        // caller that the store is closed to it.
        if broken.is_some() {
            continue;
        }
        let ran = catch_unwind(AssertUnwindSafe(|| {
            work(&Tx {
                db,
                has_events: &has_events,
            })
        }));
        let keep = match ran {
            Ok(Ran { keep, answer }) => {
                answers.push(answer);
                keep
            }
            // The caller sees its answer dropped.
            Err(_) => {
                tracing::error!("a transaction panicked");
                false
            }
        };
        any_kept |= keep;
        broken = match (keep, alone) {
            (true, true) => Ok(()),
            (true, false) => statement(db, "RELEASE caller"),
            (false, true) => statement(db, "ROLLBACK"),
            (false, false) => {
                statement(db, "ROLLBACK TO caller").and_then(|()| statement(db, "RELEASE caller"))
            }
        }
        .err();
    }
    // A full disk ends the transaction by itself: then there is nothing left to commit.
    let committed = match broken {
        Some(error) => Err(error),
        None if db.is_autocommit() && !any_kept => Ok(()),
        None => statement(db, "COMMIT"),
    };
    let committed = committed.map_err(|error| {
        tracing::error!(%error, "a transaction was not kept");
        if !db.is_autocommit() {
            let _ = statement(db, "ROLLBACK");
        }
        error.to_string()
    });
    let has_events = has_events.get() && committed.is_ok() && any_kept;
    for answer in answers {
        answer(committed.clone());
    }
    has_events
}

fn statement(db: &Connection, sql: &str) -> rusqlite::Result<()> {
    db.prepare_cached(sql)?.execute([]).map(drop)
}

/// Tells callers whose transaction could not even begin.
fn refuse(db: &Connection, batch: Vec<Job>, reason: &str) {
    tracing::error!(reason, "a transaction could not begin");
    if !db.is_autocommit() {
        let _ = statement(db, "ROLLBACK");
    }
    // The answers are dropped with the jobs: the callers see a closed store.
    drop(batch);
}

//! Logs of runs and of services: lines of output and what happened, numbered from 0 without holes.

use rusqlite::{Connection, Row, params};

use crate::{StoreError, Tx};

/// An event to append.
#[derive(Clone, Debug, PartialEq)]
pub struct NewLog {
    /// When, in microseconds.
    pub at: i64,
    /// `info`, `warn`, `error`, …
    pub level: &'static str,
    /// `stdout`, `stderr`, or what happened.
    pub event_type: &'static str,
    /// `lifecycle`, `system`, `stdout` or `stderr`.
    pub source: &'static str,
    /// The line.
    pub message: String,
    /// JSON object.
    pub metadata: Option<String>,
    /// Whether the run has a machine.
    pub in_machine: bool,
    /// The process that wrote it.
    pub process_id: Option<u32>,
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRow {
    /// Its number in the run's log.
    pub number: u64,
    /// See [`NewLog`].
    pub at: i64,
    /// See [`NewLog`].
    pub level: String,
    /// See [`NewLog`].
    pub event_type: String,
    /// See [`NewLog`].
    pub source: String,
    /// See [`NewLog`].
    pub message: String,
    /// See [`NewLog`].
    pub metadata: Option<String>,
    /// See [`NewLog`].
    pub in_machine: bool,
    /// See [`NewLog`].
    pub process_id: Option<u32>,
}

/// Whose log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// A run's, by its place in the order.
    Run(i64),
    /// A service's, by its place in the order.
    Service(i64),
}

/// The most events of one log.
pub const MAX_EVENTS: u64 = (1 << 32) - 1;

/// Where event `number` of a log lies: the logs of services below zero.
fn place(log: Log, number: u64) -> i64 {
    let log = match log {
        Log::Run(seq) => seq,
        Log::Service(seq) => -seq,
    };
    (log << 32) | i64::try_from(number.min(MAX_EVENTS)).unwrap_or(i64::MAX)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<LogRow> {
    let place: i64 = row.get(0)?;
    Ok(LogRow {
        number: u64::try_from(place & 0xffff_ffff).unwrap_or_default(),
        at: row.get(1)?,
        level: row.get(2)?,
        event_type: row.get(3)?,
        source: row.get(4)?,
        message: row.get(5)?,
        metadata: row.get(6)?,
        in_machine: row.get(7)?,
        process_id: row.get(8)?,
    })
}

/// Appends events to a log, the first with number `from`. The caller keeps the count.
///
/// # Errors
/// When a number is taken.
pub fn append(tx: &Tx<'_>, log: Log, from: u64, events: &[NewLog]) -> Result<(), StoreError> {
    let mut statement = tx.prepare_cached(
        "INSERT INTO agent_log (place, at, level, event_type, source, message, metadata, in_machine, \
         process_id) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)",
    )?;
    for (number, event) in (from..).zip(events) {
        statement.execute(params![
            place(log, number),
            event.at,
            event.level,
            event.event_type,
            event.source,
            event.message,
            event.metadata,
            event.in_machine,
            event.process_id,
        ])?;
    }
    Ok(())
}

/// Events of a log from number `from` on, in order, at most `limit`.
///
/// # Errors
/// Those of the database.
pub fn page(db: &Connection, log: Log, from: u64, limit: u32) -> Result<Vec<LogRow>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT place, at, level, event_type, source, message, metadata, in_machine, process_id \
         FROM agent_log WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT ?3",
    )?;
    let bounds = (place(log, from), place(log, MAX_EVENTS));
    let rows = statement.query_map(params![bounds.0, bounds.1, limit], from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Drops the events of a log before number `before`.
///
/// # Errors
/// Those of the database.
pub fn drop_before(tx: &Tx<'_>, log: Log, before: u64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM agent_log WHERE place >= ?1 AND place < ?2")?
        .execute([place(log, 0), place(log, before)])?;
    Ok(())
}

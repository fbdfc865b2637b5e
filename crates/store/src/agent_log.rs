//! Logs of runs and of services: lines of output and what happened, numbered from 0 without holes.
//!
//! ```text
//!  numbers   0            1        2 3 4 … 1999                2000
//!  rows     [happened] [happened] [lines of one stream] [lines of the other] …
//! ```
//! A row of output holds all lines that came together: a job that prints a million of them would wait for the database
//! if each was a row.

use rusqlite::{Connection, OptionalExtension, params};

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
    /// What happened, or lines of output with line ends between them.
    pub message: String,
    /// How many lines `message` has, each an event of its own. What happened is one, whatever its text.
    pub lines: u32,
    /// JSON object.
    pub metadata: Option<String>,
    /// Whether the run has a machine.
    pub in_machine: bool,
    /// The process that wrote it.
    pub process_id: Option<u32>,
}

impl NewLog {
    /// The lines, in order.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        lines(&self.message, self.lines)
    }
}

/// How many events these are in the log.
#[must_use]
pub fn count(events: &[NewLog]) -> u64 {
    events.iter().map(|event| u64::from(event.lines)).sum()
}

fn lines(message: &str, count: u32) -> impl DoubleEndedIterator<Item = &str> {
    let (one, many) = match count {
        ..=1 => (Some(message), None),
        _ => (None, Some(message.split('\n'))),
    };
    one.into_iter().chain(many.into_iter().flatten())
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

/// Appends events to a log, the first with number `from`. The caller keeps the count.
///
/// # Errors
/// When a number is taken.
pub fn append(tx: &Tx<'_>, log: Log, from: u64, events: &[NewLog]) -> Result<(), StoreError> {
    let end: Option<i64> = tx
        .prepare_cached(
            "SELECT place + lines FROM agent_log WHERE place BETWEEN ?1 AND ?2 ORDER BY place DESC LIMIT 1",
        )?
        .query_row([place(log, 0), place(log, MAX_EVENTS)], |row| row.get(0))
        .optional()?;
    if end.is_some_and(|end| end > place(log, from)) {
        return Err(StoreError::LogNumberTaken(from));
    }
    let mut statement = tx.prepare_cached(
        "INSERT INTO agent_log (place, at, level, event_type, source, message, metadata, in_machine, \
         process_id, lines) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
    )?;
    let mut number = from;
    for event in events {
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
            event.lines,
        ])?;
        number += u64::from(event.lines);
    }
    Ok(())
}

/// Events of a log from number `from` on, in order, at most `limit`.
///
/// # Errors
/// Those of the database.
pub fn page(db: &Connection, log: Log, from: u64, limit: u32) -> Result<Vec<LogRow>, StoreError> {
    // The row that holds the first number may begin before it.
    let mut statement = db.prepare_cached(
        "SELECT place, at, level, event_type, source, message, metadata, in_machine, process_id, lines \
         FROM agent_log WHERE place <= ?3 AND place >= coalesce( \
         (SELECT max(place) FROM agent_log WHERE place BETWEEN ?1 AND ?2), ?2) ORDER BY place",
    )?;
    let bounds = [place(log, 0), place(log, from), place(log, MAX_EVENTS)];
    let mut rows = statement.query(bounds)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()?.filter(|_| events.len() < limit as usize) {
        let place: i64 = row.get(0)?;
        let first = u64::try_from(place & 0xffff_ffff).unwrap_or_default();
        let message: &str = row.get_ref(5)?.as_str().map_err(rusqlite::Error::from)?;
        let whole = LogRow {
            number: first,
            at: row.get(1)?,
            level: row.get(2)?,
            event_type: row.get(3)?,
            source: row.get(4)?,
            message: String::new(),
            metadata: row.get(6)?,
            in_machine: row.get(7)?,
            process_id: row.get(8)?,
        };
        let wanted = (first..)
            .zip(lines(message, row.get(9)?))
            .filter(|(number, _)| *number >= from)
            .take(limit as usize - events.len());
        events.extend(wanted.map(|(number, line)| LogRow {
            number,
            message: line.to_owned(),
            ..whole.clone()
        }));
    }
    Ok(events)
}

/// Drops the rows of a log whose events all lie before number `before`.
///
/// # Errors
/// Those of the database.
pub fn drop_before(tx: &Tx<'_>, log: Log, before: u64) -> Result<(), StoreError> {
    tx.prepare_cached(
        "DELETE FROM agent_log WHERE place >= ?1 AND place < ?2 AND place + lines <= ?2",
    )?
    .execute([place(log, 0), place(log, before)])?;
    Ok(())
}

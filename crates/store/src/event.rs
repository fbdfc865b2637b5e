//! Events: one global log in the order of commits. Lifecycle lists, streams and webhooks read it.

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use crate::{StoreError, Tx};

/// An event to append.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewEvent {
    /// When it happened, in microseconds.
    pub occurred_at: i64,
    /// `create`, `destroy`, …
    pub operation: &'static str,
    /// `requested`, `succeeded` or `failed`.
    pub status: &'static str,
    /// The machine.
    pub machine_id: Option<String>,
    /// `user`, `system` or `reconcile`.
    pub actor_kind: &'static str,
    /// The key that asked.
    pub key_id: Option<String>,
    /// Why, as one word.
    pub reason: Option<String>,
    /// With `failed`.
    pub error_code: Option<String>,
    /// With `failed`.
    pub error_message: Option<String>,
    /// JSON object.
    pub metadata: Option<String>,
}

/// An event of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Its place.
    pub seq: i64,
    /// UUID v7.
    pub id: String,
    /// When it happened, in microseconds.
    pub occurred_at: i64,
    /// See [`NewEvent`].
    pub operation: String,
    /// See [`NewEvent`].
    pub status: String,
    /// See [`NewEvent`].
    pub machine_id: Option<String>,
    /// See [`NewEvent`].
    pub actor_kind: String,
    /// See [`NewEvent`].
    pub key_id: Option<String>,
    /// See [`NewEvent`].
    pub reason: Option<String>,
    /// See [`NewEvent`].
    pub error_code: Option<String>,
    /// See [`NewEvent`].
    pub error_message: Option<String>,
    /// See [`NewEvent`].
    pub metadata: Option<String>,
}

/// Appends an event and answers with its place.
///
/// # Errors
/// Those of the database.
pub fn append(tx: &Tx<'_>, event: &NewEvent) -> Result<i64, StoreError> {
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    tx.prepare_cached(
        "INSERT INTO event (id, occurred_at, operation, status, machine_id, actor_kind, key_id, reason, \
         error_code, error_message, metadata) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)",
    )?
    .execute(params![
        &*id,
        event.occurred_at,
        event.operation,
        event.status,
        event.machine_id,
        event.actor_kind,
        event.key_id,
        event.reason,
        event.error_code,
        event.error_message,
        event.metadata,
    ])?;
    Ok(tx.last_insert_rowid())
}

/// What a list of events is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this machine.
    pub machine_id: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
    /// Only this status.
    pub status: Option<String>,
    /// Not before this time.
    pub from: Option<i64>,
    /// Before this time.
    pub to: Option<i64>,
    /// Oldest first.
    pub ascending: bool,
    /// Skipped.
    pub offset: u64,
    /// At most this many.
    pub limit: u32,
}

/// Events in the order asked for.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, filter: &Filter) -> Result<Vec<EventRow>, StoreError> {
    let mut sql = String::from(
        "SELECT seq, id, occurred_at, operation, status, machine_id, actor_kind, key_id, reason, \
         error_code, error_message, metadata FROM event WHERE 1 = 1",
    );
    let mut values: Vec<Box<dyn rusqlite::ToSql>> = Vec::new();
    let texts = [
        ("machine_id", &filter.machine_id),
        ("operation", &filter.operation),
        ("status", &filter.status),
    ];
    for (column, value) in texts {
        if let Some(value) = value {
            sql.push_str(&format!(" AND {column} = ?"));
            values.push(Box::new(value.clone()));
        }
    }
    for (test, value) in [
        ("occurred_at >= ?", filter.from),
        ("occurred_at < ?", filter.to),
    ] {
        if let Some(value) = value {
            sql.push_str(&format!(" AND {test}"));
            values.push(Box::new(value));
        }
    }
    let order = if filter.ascending { "ASC" } else { "DESC" };
    sql.push_str(&format!(" ORDER BY seq {order} LIMIT ? OFFSET ?"));
    values.push(Box::new(filter.limit));
    values.push(Box::new(i64::try_from(filter.offset).unwrap_or(i64::MAX)));
    let mut statement = db.prepare_cached(&sql)?;
    let arguments = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    let rows = statement.query_map(arguments, from_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn from_row(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        occurred_at: row.get(2)?,
        operation: row.get(3)?,
        status: row.get(4)?,
        machine_id: row.get(5)?,
        actor_kind: row.get(6)?,
        key_id: row.get(7)?,
        reason: row.get(8)?,
        error_code: row.get(9)?,
        error_message: row.get(10)?,
        metadata: row.get(11)?,
    })
}

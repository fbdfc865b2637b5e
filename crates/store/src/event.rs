//! Events: one global log in the order of commits. Lifecycle lists, streams and webhooks read it.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{StoreError, Tx, json, webhook};

/// Whom an event is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Whoever uses machines: shown unless something else is asked for, and delivered to webhooks. Published clients
    /// know a fixed set of operations and break at any other.
    #[default]
    Customer,
    /// Whoever runs the server: shown only when asked for. The operation is any word.
    Internal,
}

impl Audience {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Internal => "internal",
        }
    }
}

/// How many events were ever recorded, those that are gone too.
///
/// # Errors
/// Those of the database.
pub fn count(db: &Connection) -> Result<u64, StoreError> {
    let last: Option<i64> = db
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'event'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(last.and_then(|last| u64::try_from(last).ok()).unwrap_or(0))
}

/// An event to append.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewEvent {
    /// Whose it is.
    pub tenant_id: String,
    /// When it happened, in microseconds.
    pub occurred_at: i64,
    /// Whom it is for.
    pub audience: Audience,
    /// `create`, `destroy`, …
    pub operation: &'static str,
    /// `requested`, `succeeded` or `failed`.
    pub status: &'static str,
    /// The machine.
    pub machine_id: Option<String>,
    /// The snapshot.
    pub snapshot_id: Option<String>,
    /// The machine that something was made from.
    pub source_machine_id: Option<String>,
    /// The machine that was made from something.
    pub target_machine_id: Option<String>,
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
    pub audience: String,
    /// See [`NewEvent`].
    pub operation: String,
    /// See [`NewEvent`].
    pub status: String,
    /// See [`NewEvent`].
    pub machine_id: Option<String>,
    /// See [`NewEvent`].
    pub snapshot_id: Option<String>,
    /// See [`NewEvent`].
    pub source_machine_id: Option<String>,
    /// See [`NewEvent`].
    pub target_machine_id: Option<String>,
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

pub(crate) const COLUMNS: &str = "event.seq, event.id, event.occurred_at, event.audience, event.operation, event.status, \
     event.machine_id, event.snapshot_id, event.source_machine_id, event.target_machine_id, event.actor_kind, \
     event.key_id, event.reason, event.error_code, event.error_message, event.metadata";

/// Appends an event, queues it for the webhooks that want it, and answers with its place. Whoever follows the log is told
/// after the commit.
///
/// # Errors
/// Those of the database.
pub fn append(tx: &Tx<'_>, event: &NewEvent) -> Result<i64, StoreError> {
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    tx.prepare_cached(
        "INSERT INTO event (id, occurred_at, audience, operation, status, machine_id, snapshot_id, \
         source_machine_id, target_machine_id, actor_kind, key_id, reason, error_code, error_message, metadata, tenant_id) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16)",
    )?
    .execute(params![
        &*id,
        event.occurred_at,
        event.audience.as_str(),
        event.operation,
        event.status,
        event.machine_id,
        event.snapshot_id,
        event.source_machine_id,
        event.target_machine_id,
        event.actor_kind,
        event.key_id,
        event.reason,
        event.error_code,
        event.error_message,
        event.metadata,
        event.tenant_id,
    ])?;
    let place = tx.last_insert_rowid();
    webhook::queue(tx, event, place)?;
    tx.tell_followers();
    Ok(place)
}

/// What events are narrowed to: all of it must be so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Only of this tenant.
    pub tenant_id: String,
    /// Only for this audience.
    pub audience: Audience,
    /// Only about this machine: itself, or as what something was made from or into.
    pub machine_id: Option<String>,
    /// Only about this snapshot.
    pub snapshot_id: Option<String>,
    /// Only what was made from this machine.
    pub source_machine_id: Option<String>,
    /// Only what was made into this machine.
    pub target_machine_id: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
    /// Only this status.
    pub status: Option<String>,
    /// Not before this time.
    pub from: Option<i64>,
    /// Before this time.
    pub to: Option<i64>,
    /// Only with all of this in the metadata.
    pub metadata: Map<String, Value>,
}

impl Filter {
    /// The same as a condition of SQL, without the metadata.
    fn condition(&self) -> (String, Vec<Box<dyn ToSql>>) {
        let mut sql = String::from("tenant_id = ? AND audience = ?");
        let mut values: Vec<Box<dyn ToSql>> = vec![
            Box::new(self.tenant_id.clone()),
            Box::new(self.audience.as_str()),
        ];
        if let Some(id) = &self.machine_id {
            // In this form each part uses its own index.
            sql.push_str(
                " AND seq IN (SELECT seq FROM event WHERE machine_id = ? \
                 UNION ALL SELECT seq FROM event WHERE source_machine_id = ? \
                 UNION ALL SELECT seq FROM event WHERE target_machine_id = ?)",
            );
            for _ in 0..3 {
                values.push(Box::new(id.clone()));
            }
        }
        let texts = [
            ("snapshot_id", &self.snapshot_id),
            ("source_machine_id", &self.source_machine_id),
            ("target_machine_id", &self.target_machine_id),
            ("operation", &self.operation),
            ("status", &self.status),
        ];
        for (column, value) in texts {
            if let Some(value) = value {
                sql.push_str(&format!(" AND {column} = ?"));
                values.push(Box::new(value.clone()));
            }
        }
        for (test, value) in [
            ("occurred_at >= ?", self.from),
            ("occurred_at < ?", self.to),
        ] {
            if let Some(value) = value {
                sql.push_str(&format!(" AND {test}"));
                values.push(Box::new(value));
            }
        }
        (sql, values)
    }

    /// Whether the metadata is as wanted.
    fn has_metadata(&self, row: &EventRow) -> bool {
        json::holds(row.metadata.as_deref().unwrap_or("{}"), &self.metadata)
    }
}

/// Events in the order asked for, oldest first when `ascending`.
///
/// # Errors
/// Those of the database.
pub fn list(
    db: &Connection,
    filter: &Filter,
    ascending: bool,
    offset: u64,
    limit: u32,
) -> Result<Vec<EventRow>, StoreError> {
    let (condition, values) = filter.condition();
    let order = if ascending { "ASC" } else { "DESC" };
    let sql = format!("SELECT {COLUMNS} FROM event WHERE {condition} ORDER BY seq {order}");
    let mut statement = db.prepare_cached(&sql)?;
    let arguments = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    let mut rows = statement.query(arguments)?;
    let (mut found, mut skipped) = (Vec::new(), 0);
    while found.len() < limit as usize
        && let Some(row) = rows.next()?
    {
        if filter.metadata.is_empty() && skipped < offset {
            skipped += 1;
            continue;
        }
        let row = from_row(row)?;
        if !filter.has_metadata(&row) {
            continue;
        }
        if skipped < offset {
            skipped += 1;
        } else {
            found.push(row);
        }
    }
    Ok(found)
}

/// Part of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stretch {
    /// What the filter lets through, oldest first.
    pub events: Vec<EventRow>,
    /// The place up to which the log was looked at: the next stretch begins after it.
    pub end: i64,
    /// Whether the log goes on there already.
    pub more: bool,
}

/// What comes after a place of the log: at most `limit` events of the next `scan` places, so that one answer is
/// bounded whatever the filter leaves out.
///
/// # Errors
/// Those of the database.
pub fn after(
    db: &Connection,
    filter: &Filter,
    place: i64,
    scan: u32,
    limit: u32,
) -> Result<Stretch, StoreError> {
    let last = last(db)?;
    // Places that were forgotten are not looked at one by one.
    let first: Option<i64> = db
        .prepare_cached("SELECT MIN(seq) FROM event WHERE seq > ?1")?
        .query_row([place], |row| row.get(0))?;
    let Some(first) = first else {
        return Ok(Stretch {
            end: place.max(last),
            ..Stretch::default()
        });
    };
    let end = last.min(first + i64::from(scan) - 1);
    let (condition, mut values) = filter.condition();
    let sql = format!(
        "SELECT {COLUMNS} FROM event WHERE {condition} AND seq >= ? AND seq <= ? ORDER BY seq"
    );
    values.push(Box::new(first));
    values.push(Box::new(end));
    let mut statement = db.prepare_cached(&sql)?;
    let arguments = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    let mut rows = statement.query(arguments)?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let row = from_row(row)?;
        if filter.has_metadata(&row) {
            events.push(row);
            if events.len() == limit as usize {
                break;
            }
        }
    }
    let end = match events.last() {
        Some(row) if events.len() == limit as usize => row.seq,
        _ => end,
    };
    Ok(Stretch {
        events,
        end,
        more: end < last,
    })
}

/// Looks back from `place` (which counts) over at most `scan` places: how many events the filter lets through there,
/// up to `limit`, and the place before the oldest one that counts; 0 there when the log begins before that.
///
/// # Errors
/// Those of the database.
pub fn before(
    db: &Connection,
    filter: &Filter,
    place: i64,
    scan: u32,
    limit: u32,
) -> Result<(u32, i64), StoreError> {
    if limit == 0 {
        return Ok((0, place));
    }
    let start = place.saturating_sub(i64::from(scan)).max(0);
    let (condition, mut values) = filter.condition();
    let sql = format!(
        "SELECT {COLUMNS} FROM event WHERE {condition} AND seq > ? AND seq <= ? ORDER BY seq DESC"
    );
    values.push(Box::new(start));
    values.push(Box::new(place));
    let mut statement = db.prepare_cached(&sql)?;
    let arguments = rusqlite::params_from_iter(values.iter().map(AsRef::as_ref));
    let mut rows = statement.query(arguments)?;
    let mut found = 0;
    while let Some(row) = rows.next()? {
        let row = from_row(row)?;
        if filter.has_metadata(&row) {
            found += 1;
            if found == limit {
                return Ok((found, row.seq - 1));
            }
        }
    }
    Ok((found, start))
}

/// The place of the newest event; 0 without any.
///
/// # Errors
/// Those of the database.
pub fn last(db: &Connection) -> Result<i64, StoreError> {
    let last: Option<i64> = db
        .prepare_cached("SELECT MAX(seq) FROM event")?
        .query_row([], |row| row.get(0))?;
    Ok(last.unwrap_or(0))
}

/// The place of an event, if it is known still.
///
/// # Errors
/// Those of the database.
pub fn place_of(db: &Connection, id: &str) -> Result<Option<i64>, StoreError> {
    Ok(db
        .prepare_cached("SELECT seq FROM event WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?)
}

pub(crate) fn from_row(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        seq: row.get(0)?,
        id: row.get(1)?,
        occurred_at: row.get(2)?,
        audience: row.get(3)?,
        operation: row.get(4)?,
        status: row.get(5)?,
        machine_id: row.get(6)?,
        snapshot_id: row.get(7)?,
        source_machine_id: row.get(8)?,
        target_machine_id: row.get(9)?,
        actor_kind: row.get(10)?,
        key_id: row.get(11)?,
        reason: row.get(12)?,
        error_code: row.get(13)?,
        error_message: row.get(14)?,
        metadata: row.get(15)?,
    })
}

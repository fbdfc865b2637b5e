//! Webhooks, what is to be delivered to them, and what became of it.
//!
//! A delivery is written in the transaction of its event ([`queue`]) and leaves the state `queued` only in the transaction
//! that records how its attempt went: whatever happens in between, it is attempted again. That an attempt begins is
//! recorded too, so that one which was cut off is among those that are listed.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use uuid::Uuid;

use crate::{
    StoreError, Tx,
    event::{self, Audience, EventRow, NewEvent},
};

/// Attempts of one delivery that are kept.
const KEPT_ATTEMPTS: u32 = 50;
/// Rows that one transaction removes, so that others get their turn.
const CHUNK: u32 = 2_000;

/// A webhook.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// UUID.
    pub id: String,
    /// Whose events it is told.
    pub tenant_id: String,
    /// Where to.
    pub url: String,
    /// JSON array of operations.
    pub operations: String,
    /// The signing secret, sealed.
    pub secret: Vec<u8>,
    /// Whether events are queued for it and delivered.
    pub enabled: bool,
    /// When it was made.
    pub created_at: i64,
    /// When it was last changed.
    pub updated_at: i64,
    /// When an attempt last ended.
    pub last_delivery_at: Option<i64>,
    /// What became of that delivery.
    pub last_delivery_status: Option<String>,
    /// Why, if it failed.
    pub last_error: Option<String>,
}

impl std::fmt::Debug for WebhookRow {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookRow")
            .field("id", &self.id)
            .field("operations", &self.operations)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its place in the order of events.
    pub seq: i64,
    /// UUID.
    pub id: String,
    /// Where to.
    pub webhook_id: String,
    /// `queued`, `succeeded` or `dead_letter`.
    pub state: String,
    /// Whether later ones go ahead of it.
    pub aside: bool,
    /// Attempts that began.
    pub attempt_count: u32,
    /// When the event was recorded.
    pub created_at: i64,
    /// While it is queued and was attempted: when that is done again.
    pub next_attempt_at: Option<i64>,
    /// When the last attempt began.
    pub last_attempt_at: Option<i64>,
    /// HTTP status of the last answer.
    pub last_response_status: Option<u16>,
    /// Why it failed.
    pub last_error: Option<String>,
}

/// An attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// UUID.
    pub id: String,
    /// Counted from 1.
    pub number: u32,
    /// When it began.
    pub attempted_at: i64,
    /// How long it took.
    pub duration_ms: u64,
    /// HTTP status of the answer, if there was one.
    pub response_status: Option<u16>,
    /// Why it failed, as one word.
    pub error_code: Option<String>,
    /// The same, for people.
    pub error_message: Option<String>,
}

const WEBHOOK: &str = "id, url, operations, secret, enabled, created_at, updated_at, last_delivery_at, \
     last_delivery_status, last_error, tenant_id";
const DELIVERY: &str = "d.seq, d.id, d.webhook_id, d.state, d.aside, d.attempt_count, d.created_at, \
     d.next_attempt_at, d.last_attempt_at, d.last_response_status, d.last_error";

fn webhook_row(row: &Row<'_>) -> rusqlite::Result<WebhookRow> {
    Ok(WebhookRow {
        id: row.get(0)?,
        url: row.get(1)?,
        operations: row.get(2)?,
        secret: row.get(3)?,
        enabled: row.get(4)?,
        created_at: row.get(5)?,
        updated_at: row.get(6)?,
        last_delivery_at: row.get(7)?,
        last_delivery_status: row.get(8)?,
        last_error: row.get(9)?,
        tenant_id: row.get(10)?,
    })
}

/// The event's columns are the first 16.
fn delivery_row(row: &Row<'_>) -> rusqlite::Result<(DeliveryRow, EventRow)> {
    let delivery = DeliveryRow {
        seq: row.get(16)?,
        id: row.get(17)?,
        webhook_id: row.get(18)?,
        state: row.get(19)?,
        aside: row.get(20)?,
        attempt_count: row.get(21)?,
        created_at: row.get(22)?,
        next_attempt_at: row.get(23)?,
        last_attempt_at: row.get(24)?,
        last_response_status: row.get(25)?,
        last_error: row.get(26)?,
    };
    Ok((delivery, event::from_row(row)?))
}

/// Records a new webhook.
///
/// # Errors
/// When the id is taken.
pub fn insert(tx: &Tx<'_>, row: &WebhookRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT INTO webhook (id, url, operations, secret, enabled, created_at, updated_at, tenant_id) \
         VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
    )?
    .execute(params![
        row.id,
        row.url,
        row.operations,
        row.secret,
        row.enabled,
        row.created_at,
        row.updated_at,
        row.tenant_id,
    ])?;
    Ok(())
}

/// Keeps what its owner can change. What waits for another attempt is due at once: it may go well now.
///
/// # Errors
/// Those of the database.
pub fn update(tx: &Tx<'_>, row: &WebhookRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "UPDATE webhook SET url = ?2, operations = ?3, secret = ?4, enabled = ?5, updated_at = ?6 WHERE id = ?1",
    )?
    .execute(params![
        row.id,
        row.url,
        row.operations,
        row.secret,
        row.enabled,
        row.updated_at,
    ])?;
    tx.prepare_cached(
        "UPDATE webhook_delivery SET next_attempt_at = ?2 \
         WHERE state = 'queued' AND webhook_id = ?1 AND next_attempt_at IS NOT NULL",
    )?
    .execute(params![row.id, row.updated_at])?;
    Ok(())
}

/// Removes a webhook; whether there was one. What was queued for it is removed by [`sweep`], a piece at a time.
///
/// # Errors
/// Those of the database.
pub fn delete(tx: &Tx<'_>, id: &str) -> Result<bool, StoreError> {
    let deleted = tx
        .prepare_cached(
            "UPDATE webhook SET deleted = 1, enabled = 0, url = '', secret = x'' WHERE id = ?1 AND NOT deleted",
        )?
        .execute([id])?;
    Ok(deleted > 0)
}

/// One webhook.
///
/// # Errors
/// Those of the database.
pub fn get(db: &Connection, id: &str) -> Result<Option<WebhookRow>, StoreError> {
    Ok(db
        .prepare_cached(&format!(
            "SELECT {WEBHOOK} FROM webhook WHERE id = ?1 AND NOT deleted"
        ))?
        .query_row([id], webhook_row)
        .optional()?)
}

/// Every webhook, oldest first.
///
/// # Errors
/// Those of the database.
pub fn all(db: &Connection) -> Result<Vec<WebhookRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {WEBHOOK} FROM webhook WHERE NOT deleted ORDER BY seq"
    ))?;
    let rows = statement.query_map([], webhook_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The webhooks of a tenant, oldest first.
///
/// # Errors
/// Those of the database.
pub fn list(db: &Connection, tenant_id: &str) -> Result<Vec<WebhookRow>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {WEBHOOK} FROM webhook WHERE NOT deleted AND tenant_id = ?1 ORDER BY seq"
    ))?;
    let rows = statement.query_map([tenant_id], webhook_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Queues an event that was just appended for every webhook that wants it.
///
/// # Errors
/// Those of the database.
pub(crate) fn queue(tx: &Tx<'_>, event: &NewEvent, place: i64) -> Result<(), StoreError> {
    if event.audience != Audience::Customer {
        return Ok(());
    }
    let mut statement = tx.prepare_cached(
        "SELECT id FROM webhook WHERE enabled AND tenant_id = ?2 AND EXISTS \
         (SELECT 1 FROM json_each(operations) WHERE value = ?1)",
    )?;
    let mut rows = statement.query([event.operation, &event.tenant_id])?;
    while let Some(row) = rows.next()? {
        let webhook: String = row.get(0)?;
        tx.prepare_cached(
            "INSERT INTO webhook_delivery (id, webhook_id, event_seq, state, created_at) \
             VALUES (?1,?2,?3,'queued',?4)",
        )?
        .execute(params![
            Uuid::now_v7().to_string(),
            webhook,
            place,
            event.occurred_at
        ])?;
    }
    Ok(())
}

/// What is next for a webhook.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Next {
    /// Those that wait aside and may be attempted at this time, by their time.
    pub aside: Vec<(DeliveryRow, EventRow)>,
    /// The others that are queued, in the order of events.
    pub queued: Vec<(DeliveryRow, EventRow)>,
    /// When the first of those that still wait aside may be attempted.
    pub aside_at: Option<i64>,
}

/// What is next for a webhook at a time; at most `limit` of each. A time that is further away than `longest` is one of
/// before a clock was set back, and counts as over.
///
/// # Errors
/// Those of the database.
pub fn next(
    db: &Connection,
    webhook: &str,
    now: i64,
    longest: i64,
    limit: u32,
) -> Result<Next, StoreError> {
    let then = now.saturating_add(longest);
    let select = |condition: &str, order: &str| {
        format!(
            "SELECT {}, {DELIVERY} FROM webhook_delivery d JOIN event ON event.seq = d.event_seq \
             WHERE d.state = 'queued' AND d.webhook_id = ?1 AND {condition} ORDER BY {order} LIMIT ?2",
            event::COLUMNS
        )
    };
    let mut due = db.prepare_cached(&select(
        "d.aside = 1 AND d.next_attempt_at NOT BETWEEN ?3 + 1 AND ?4",
        "d.next_attempt_at",
    ))?;
    let aside = due.query_map(params![webhook, limit, now, then], delivery_row)?;
    let mut others = db.prepare_cached(&select("d.aside = 0", "d.seq"))?;
    let queued = others.query_map(params![webhook, limit], delivery_row)?;
    let aside_at = db
        .prepare_cached(
            "SELECT MIN(next_attempt_at) FROM webhook_delivery \
             WHERE state = 'queued' AND webhook_id = ?1 AND aside = 1 AND next_attempt_at BETWEEN ?2 + 1 AND ?3",
        )?
        .query_row(params![webhook, now, then], |row| row.get(0))?;
    Ok(Next {
        aside: aside.collect::<Result<_, _>>()?,
        queued: queued.collect::<Result<_, _>>()?,
        aside_at,
    })
}

/// Records that an attempt begins, with what is to be read of it when nothing follows: whether it may. Not that of a
/// delivery that waits no more, or of a webhook that is gone.
///
/// # Errors
/// Those of the database.
pub fn begun(
    tx: &Tx<'_>,
    delivery: &DeliveryRow,
    attempt: &AttemptRow,
) -> Result<bool, StoreError> {
    let waits = tx
        .prepare_cached(
            "UPDATE webhook_delivery SET attempt_count = ?2, last_attempt_at = ?3 WHERE seq = ?1 AND state = 'queued' \
             AND EXISTS (SELECT 1 FROM webhook WHERE webhook.id = webhook_id AND NOT deleted)",
        )?
        .execute(params![
            delivery.seq,
            delivery.attempt_count,
            delivery.last_attempt_at,
        ])?;
    if waits == 0 {
        return Ok(false);
    }
    keep_attempt(tx, delivery.seq, attempt)?;
    Ok(true)
}

/// Records how an attempt went: the delivery as it is now, the attempt, and the webhook's last one. Nothing is recorded of
/// a webhook that is gone.
///
/// # Errors
/// Those of the database.
pub fn attempted(
    tx: &Tx<'_>,
    delivery: &DeliveryRow,
    attempt: &AttemptRow,
    ended_at: i64,
) -> Result<(), StoreError> {
    let known = tx
        .prepare_cached(
            "UPDATE webhook SET last_delivery_at = ?2, last_delivery_status = ?3, last_error = ?4 \
             WHERE id = ?1 AND NOT deleted",
        )?
        .execute(params![
            delivery.webhook_id,
            ended_at,
            delivery.state,
            attempt.error_message
        ])?;
    if known == 0 {
        return Ok(());
    }
    tx.prepare_cached(
        "UPDATE webhook_delivery SET state = ?2, aside = ?3, attempt_count = ?4, next_attempt_at = ?5, \
         last_attempt_at = ?6, last_response_status = ?7, last_error = ?8 WHERE seq = ?1",
    )?
    .execute(params![
        delivery.seq,
        delivery.state,
        delivery.aside,
        delivery.attempt_count,
        delivery.next_attempt_at,
        delivery.last_attempt_at,
        delivery.last_response_status,
        delivery.last_error,
    ])?;
    keep_attempt(tx, delivery.seq, attempt)
}

/// Keeps an attempt in the place of what is known of it, and forgets the oldest.
fn keep_attempt(tx: &Tx<'_>, delivery: i64, attempt: &AttemptRow) -> Result<(), StoreError> {
    tx.prepare_cached(
        "INSERT OR REPLACE INTO webhook_attempt (delivery_seq, number, id, attempted_at, duration_ms, response_status, \
         error_code, error_message) VALUES (?1,?2,?3,?4,?5,?6,?7,?8)",
    )?
    .execute(params![
        delivery,
        attempt.number,
        attempt.id,
        attempt.attempted_at,
        i64::try_from(attempt.duration_ms).unwrap_or(i64::MAX),
        attempt.response_status,
        attempt.error_code,
        attempt.error_message,
    ])?;
    if attempt.number > KEPT_ATTEMPTS {
        tx.prepare_cached("DELETE FROM webhook_attempt WHERE delivery_seq = ?1 AND number <= ?2")?
            .execute(params![delivery, attempt.number - KEPT_ATTEMPTS])?;
    }
    Ok(())
}

/// Deliveries of a webhook, newest first.
///
/// # Errors
/// Those of the database.
pub fn deliveries(
    db: &Connection,
    webhook: &str,
    offset: u64,
    limit: u32,
) -> Result<Vec<(DeliveryRow, EventRow)>, StoreError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT {}, {DELIVERY} FROM webhook_delivery d JOIN event ON event.seq = d.event_seq \
         WHERE d.webhook_id = ?1 ORDER BY d.seq DESC LIMIT ?2 OFFSET ?3",
        event::COLUMNS
    ))?;
    let offset = i64::try_from(offset).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![webhook, limit, offset], delivery_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One delivery of a webhook with its event and its attempts, oldest first.
///
/// # Errors
/// Those of the database.
#[allow(clippy::type_complexity)]
pub fn delivery(
    db: &Connection,
    webhook: &str,
    id: &str,
) -> Result<Option<(DeliveryRow, EventRow, Vec<AttemptRow>)>, StoreError> {
    let found = db
        .prepare_cached(&format!(
            "SELECT {}, {DELIVERY} FROM webhook_delivery d JOIN event ON event.seq = d.event_seq \
             WHERE d.webhook_id = ?1 AND d.id = ?2",
            event::COLUMNS
        ))?
        .query_row([webhook, id], delivery_row)
        .optional()?;
    let Some((delivery, event)) = found else {
        return Ok(None);
    };
    let mut statement = db.prepare_cached(
        "SELECT id, number, attempted_at, duration_ms, response_status, error_code, error_message \
         FROM webhook_attempt WHERE delivery_seq = ?1 ORDER BY number",
    )?;
    let attempts = statement.query_map([delivery.seq], |row| {
        Ok(AttemptRow {
            id: row.get(0)?,
            number: row.get(1)?,
            attempted_at: row.get(2)?,
            duration_ms: u64::try_from(row.get::<_, i64>(3)?).unwrap_or_default(),
            response_status: row.get(4)?,
            error_code: row.get(5)?,
            error_message: row.get(6)?,
        })
    })?;
    let attempts = attempts.collect::<Result<_, _>>()?;
    Ok(Some((delivery, event, attempts)))
}

/// How long things are kept. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Deliveries of events before this time are given up.
    pub give_up_before: i64,
    /// The most that is queued for one webhook; older ones are given up.
    pub max_queued: u32,
    /// Deliveries that are over are forgotten when their event is from before this time.
    pub deliveries_before: i64,
    /// Events from before this time are forgotten.
    pub events_before: i64,
    /// The most events that are kept.
    pub max_events: u32,
}

/// Gives up and forgets what is out of bounds, a piece at a time: whether there is more to do. An event that is to be
/// delivered is never forgotten.
///
/// # Errors
/// Those of the database.
pub fn sweep(tx: &Tx<'_>, bounds: &Bounds) -> Result<bool, StoreError> {
    let mut busy = false;
    let mut full = |count: usize| busy |= count >= CHUNK as usize;
    let mut over = ended_webhooks(tx)?;
    for webhook in all(tx)? {
        full(give_up(tx, &webhook.id, bounds)?);
    }
    // Nothing that old is queued any more: what is over is at the beginning.
    over.extend(seqs(
        tx,
        "SELECT seq FROM (SELECT seq, state, created_at FROM webhook_delivery ORDER BY seq LIMIT ?1) \
         WHERE state != 'queued' AND created_at < ?2",
        params![CHUNK, bounds.deliveries_before],
    )?);
    full(over.len());
    // Then the oldest events, with what was delivered of them.
    let old = seqs(
        tx,
        "SELECT seq FROM (SELECT seq, occurred_at FROM event ORDER BY seq LIMIT ?1) AS oldest \
         WHERE (occurred_at < ?2 OR seq <= (SELECT MAX(seq) FROM event) - ?3) \
         AND NOT EXISTS (SELECT 1 FROM webhook_delivery d WHERE d.event_seq = oldest.seq AND d.state = 'queued')",
        params![CHUNK, bounds.events_before, bounds.max_events],
    )?;
    full(old.len());
    for place in &old {
        let of_event = "SELECT seq FROM webhook_delivery WHERE event_seq = ?1";
        over.extend(seqs(tx, of_event, params![place])?);
    }
    for seq in over {
        forget_delivery(tx, seq)?;
    }
    for place in old {
        tx.prepare_cached("DELETE FROM event WHERE seq = ?1")?
            .execute([place])?;
    }
    Ok(busy)
}

/// Gives up what waits for a webhook for too long, or with too many: how many.
fn give_up(tx: &Tx<'_>, webhook: &str, bounds: &Bounds) -> Result<usize, StoreError> {
    let mut given_up = 0;
    let mut mark = |why: &str, found: Vec<i64>| -> Result<(), StoreError> {
        given_up += found.len();
        for seq in found {
            tx.prepare_cached(
                "UPDATE webhook_delivery SET state = 'dead_letter', next_attempt_at = NULL, \
                 last_error = ?2 || COALESCE(': ' || last_error, '') WHERE seq = ?1",
            )?
            .execute(params![seq, why])?;
        }
        Ok(())
    };
    for aside in [false, true] {
        // The oldest come first, so that those which wait rightly are not looked at.
        let old = seqs(
            tx,
            "SELECT seq FROM (SELECT seq, created_at FROM webhook_delivery \
             WHERE state = 'queued' AND webhook_id = ?1 AND aside = ?2 ORDER BY seq LIMIT ?3) WHERE created_at < ?4",
            params![webhook, aside, CHUNK, bounds.give_up_before],
        )?;
        mark("given up, too old", old)?;
        let last: Option<i64> = tx
            .prepare_cached(
                "SELECT seq FROM webhook_delivery WHERE state = 'queued' AND webhook_id = ?1 AND aside = ?2 \
                 ORDER BY seq DESC LIMIT 1 OFFSET ?3",
            )?
            .query_row(params![webhook, aside, bounds.max_queued], |row| row.get(0))
            .optional()?;
        if let Some(last) = last {
            let many = seqs(
                tx,
                "SELECT seq FROM webhook_delivery WHERE state = 'queued' AND webhook_id = ?1 AND aside = ?2 \
                 AND seq <= ?3 ORDER BY seq LIMIT ?4",
                params![webhook, aside, last, CHUNK],
            )?;
            mark("given up, too many wait", many)?;
        }
    }
    Ok(given_up)
}

/// Forgets webhooks that were deleted and have no deliveries any more; answers with deliveries of the others.
fn ended_webhooks(tx: &Tx<'_>) -> Result<Vec<i64>, StoreError> {
    let mut statement = tx.prepare_cached("SELECT id FROM webhook WHERE deleted")?;
    let ids = statement.query_map([], |row| row.get(0))?;
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    let mut of_them = Vec::new();
    for id in ids {
        let found = seqs(
            tx,
            "SELECT seq FROM webhook_delivery WHERE webhook_id = ?1 LIMIT ?2",
            params![id, CHUNK],
        )?;
        if found.is_empty() {
            tx.execute("DELETE FROM webhook WHERE id = ?1", [&id])?;
        }
        of_them.extend(found);
    }
    Ok(of_them)
}

fn seqs(tx: &Tx<'_>, sql: &str, values: &[&dyn ToSql]) -> Result<Vec<i64>, StoreError> {
    let mut statement = tx.prepare_cached(sql)?;
    let found = statement.query_map(values, |row| row.get(0))?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn forget_delivery(tx: &Tx<'_>, seq: i64) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM webhook_attempt WHERE delivery_seq = ?1")?
        .execute([seq])?;
    tx.prepare_cached("DELETE FROM webhook_delivery WHERE seq = ?1")?
        .execute([seq])?;
    Ok(())
}

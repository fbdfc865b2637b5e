//! Lifecycle events: the read side, and their form in the record.

use nullspace_api::{
    event::{EventInfo, EventPage, ListEventsQuery},
    page, time,
};
use nullspace_lifecycle::machine::{Actor, Event};
use nullspace_store::event::{self as rows, EventRow, NewEvent};

use super::App;
use crate::error::{Error, Result};

/// The record of a lifecycle event.
#[must_use]
pub fn record(machine_id: &str, event: &Event, key_id: Option<&str>, now: i64) -> NewEvent {
    NewEvent {
        occurred_at: now,
        operation: event.operation,
        status: event.status,
        machine_id: Some(machine_id.to_owned()),
        actor_kind: match event.actor {
            Actor::User if key_id.is_none() => "system",
            Actor::User => "user",
            Actor::System => "system",
            Actor::Reconcile => "reconcile",
        },
        key_id: key_id.map(str::to_owned),
        reason: event.reason.map(str::to_owned),
        ..NewEvent::default()
    }
}

/// A page of the log; of one machine when `machine_id` is given.
///
/// # Errors
/// `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    machine_id: Option<String>,
    query: ListEventsQuery,
) -> Result<EventPage> {
    let limit = query.limit.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    let instant = |name: &str, value: &Option<String>| match value.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => time::parse(text)
            .map(Some)
            .ok_or_else(|| Error::invalid(format!("{name}: {text:?} is not an RFC 3339 time"))),
    };
    let ascending = match query.order.as_deref() {
        None | Some("" | "desc") => false,
        Some("asc") => true,
        Some(_) => return Err(Error::invalid("order: must be asc or desc")),
    };
    if !matches!(query.audience.as_deref(), None | Some("" | "customer")) {
        return Err(Error::invalid("audience: must be customer"));
    }
    let filter = rows::Filter {
        machine_id: machine_id.or(query.machine_id).or(query.sandbox_id),
        operation: query.operation.filter(|s| !s.is_empty()),
        status: query.status.filter(|s| !s.is_empty()),
        from: instant("from", &query.from)?,
        to: instant("to", &query.to)?,
        ascending,
        offset: query.offset.unwrap_or(0),
        limit: limit + 1,
    };
    let offset = filter.offset;
    let mut rows = app.store.read(move |db| rows::list(db, &filter)).await?;
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Ok(EventPage {
        events: rows.into_iter().map(info).collect(),
        offset,
        limit,
        has_more,
    })
}

fn info(row: EventRow) -> EventInfo {
    EventInfo {
        id: row.id,
        occurred_at: time::rfc3339(row.occurred_at),
        audience: "customer".into(),
        operation: row.operation,
        status: row.status,
        actor_kind: row.actor_kind,
        sandbox_id: row.machine_id.clone(),
        machine_id: row.machine_id,
        reason: row.reason,
        error_code: row.error_code,
        error_message: row.error_message,
        metadata: row
            .metadata
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
    }
}

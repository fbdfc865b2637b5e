//! Lifecycle events: the lists, what they are narrowed to, and their form in the record.

use nullspace_api::{
    error::code,
    event::{EventInfo, EventPage, ListEventsQuery, OPERATIONS, STATUSES},
    page, time,
};
use nullspace_lifecycle::machine::{Actor, Event};
use nullspace_store::{
    event::{self as rows, Audience, EventRow, Filter, NewEvent},
    machine::MachineRow,
};

use super::{App, Caller, machine};
use crate::error::{Error, Result};

/// The most metadata of a machine that its events carry, as JSON: each machine has several.
const MAX_METADATA: usize = 4 << 10;
/// The longest id or word that is looked for.
const MAX_WORD: usize = 256;

/// The record of a lifecycle event.
#[must_use]
pub fn record(machine: &MachineRow, event: &Event, key_id: Option<&str>, now: i64) -> NewEvent {
    let metadata = Some(&machine.metadata)
        .filter(|text| *text != "{}" && text.len() <= MAX_METADATA)
        .cloned();
    NewEvent {
        tenant_id: machine.tenant_id.clone(),
        occurred_at: now,
        operation: event.operation,
        status: event.status,
        machine_id: Some(machine.id.clone()),
        actor_kind: match event.actor {
            Actor::User if key_id.is_none() => "system",
            Actor::User => "user",
            Actor::System => "system",
            Actor::Reconcile => "reconcile",
        },
        key_id: key_id.map(str::to_owned),
        reason: event.reason.map(str::to_owned),
        metadata,
        ..NewEvent::default()
    }
}

/// What a list or a stream is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything of the tenant.
    Fleet,
    /// One machine.
    Machine(String),
    /// One snapshot.
    Snapshot(String),
}

/// Checks that there is something to list or to follow.
///
/// # Errors
/// `machine_not_found`, `snapshot_not_found`.
pub async fn check_scope(app: &App, caller: &Caller, scope: &Scope) -> Result<()> {
    let mut filter = Filter {
        tenant_id: caller.tenant_id(),
        ..Filter::default()
    };
    match scope {
        Scope::Fleet => return Ok(()),
        Scope::Machine(id) => match machine::get(app, id).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code == code::MACHINE_NOT_FOUND => {}
            Err(error) => return Err(error),
        },
        Scope::Snapshot(_) => {}
    }
    // Events outlive the record of what they are about.
    scope.narrow(&mut filter)?;
    let found = app
        .store
        .read(move |db| rows::list(db, &filter, false, 0, 1))
        .await?;
    match scope {
        Scope::Machine(id) if found.is_empty() => Err(Error::no_machine(id)),
        Scope::Snapshot(id) if found.is_empty() => Err(Error::not_found(
            code::SNAPSHOT_NOT_FOUND,
            format!("no snapshot {id}"),
        )),
        _ => Ok(()),
    }
}

impl Scope {
    /// Puts the scope into a filter, which may name the same thing but no other.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(crate) fn narrow(&self, filter: &mut Filter) -> Result<()> {
        let (name, slot, id) = match self {
            Self::Fleet => return Ok(()),
            Self::Machine(id) => ("machine_id", &mut filter.machine_id, id),
            Self::Snapshot(id) => ("snapshot_id", &mut filter.snapshot_id, id),
        };
        match slot {
            Some(other) if other != id => Err(Error::invalid(format!(
                "{name}: these are the events of {id} alone"
            ))),
            _ => {
                *slot = Some(id.clone());
                Ok(())
            }
        }
    }
}

/// The filters that lists and streams share, as they were said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    pub(crate) audience: Option<String>,
    /// In both spellings.
    pub(crate) machine_id: [Option<String>; 2],
    pub(crate) snapshot_id: Option<String>,
    /// In both spellings.
    pub(crate) source_machine_id: [Option<String>; 2],
    /// In both spellings.
    pub(crate) target_machine_id: [Option<String>; 2],
    pub(crate) operation: Option<String>,
    pub(crate) status: Option<String>,
}

impl Words {
    /// Checks them.
    ///
    /// # Errors
    /// `invalid_request`, with the filter named.
    pub(crate) fn filter(self, caller: &Caller, scope: &Scope) -> Result<Filter> {
        let audience = match said(self.audience).as_deref() {
            None | Some("customer") => Audience::Customer,
            Some("internal") => Audience::Internal,
            Some(_) => return Err(Error::invalid("audience: must be customer or internal")),
        };
        let operation = said(self.operation);
        if audience == Audience::Customer {
            one_of("operation", operation.as_deref(), &OPERATIONS)?;
        }
        let status = said(self.status);
        one_of("status", status.as_deref(), &STATUSES)?;
        let mut filter = Filter {
            tenant_id: caller.tenant_id(),
            audience,
            machine_id: one("machine_id", self.machine_id)?,
            snapshot_id: said(self.snapshot_id),
            source_machine_id: one("source_machine_id", self.source_machine_id)?,
            target_machine_id: one("target_machine_id", self.target_machine_id)?,
            operation,
            status,
            ..Filter::default()
        };
        let long = |word: &Option<String>| word.as_ref().is_some_and(|w| w.len() > MAX_WORD);
        if [
            &filter.machine_id,
            &filter.snapshot_id,
            &filter.source_machine_id,
            &filter.target_machine_id,
            &filter.operation,
        ]
        .into_iter()
        .any(long)
        {
            return Err(Error::invalid(format!("a filter is over {MAX_WORD} bytes")));
        }
        scope.narrow(&mut filter)?;
        Ok(filter)
    }
}

fn said(word: Option<String>) -> Option<String> {
    word.filter(|word| !word.is_empty())
}

/// The same filter in both spellings.
fn one(name: &str, [a, b]: [Option<String>; 2]) -> Result<Option<String>> {
    match (said(a), said(b)) {
        (Some(a), Some(b)) if a != b => Err(Error::invalid(format!(
            "{name}: its two spellings say two things"
        ))),
        (a, b) => Ok(a.or(b)),
    }
}

/// Refuses a word that is none of the known ones.
pub(crate) fn one_of(name: &str, word: Option<&str>, known: &[&str]) -> Result<()> {
    match word {
        Some(word) if !known.contains(&word) => Err(Error::invalid(format!(
            "{name}: must be one of {}",
            known.join(", ")
        ))),
        _ => Ok(()),
    }
}

/// A page of the log.
///
/// # Errors
/// `invalid_request` for a query that means nothing; `machine_not_found`, `snapshot_not_found`.
pub async fn list(
    app: &App,
    caller: &Caller,
    scope: Scope,
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
    let (from, to) = (instant("from", &query.from)?, instant("to", &query.to)?);
    let words = Words {
        audience: query.audience,
        machine_id: [query.machine_id, query.sandbox_id],
        snapshot_id: query.snapshot_id,
        source_machine_id: [query.source_machine_id, query.source_sandbox_id],
        target_machine_id: [query.target_machine_id, query.target_sandbox_id],
        operation: query.operation,
        status: query.status,
    };
    let filter = Filter {
        from,
        to,
        ..words.filter(caller, &scope)?
    };
    let offset = query.offset.unwrap_or(0);
    let mut rows = app
        .store
        .read(move |db| rows::list(db, &filter, ascending, offset, limit + 1))
        .await?;
    if rows.is_empty() {
        check_scope(app, caller, &scope).await?;
    }
    let has_more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Ok(EventPage {
        events: rows.into_iter().map(info).collect(),
        offset,
        limit,
        has_more,
    })
}

/// An event as the wire shows it.
#[must_use]
pub fn info(row: EventRow) -> EventInfo {
    EventInfo {
        id: row.id,
        occurred_at: time::rfc3339(row.occurred_at),
        audience: row.audience,
        operation: row.operation,
        status: row.status,
        actor_kind: row.actor_kind,
        sandbox_id: row.machine_id.clone(),
        machine_id: row.machine_id,
        snapshot_id: row.snapshot_id,
        source_sandbox_id: row.source_machine_id.clone(),
        source_machine_id: row.source_machine_id,
        target_sandbox_id: row.target_machine_id.clone(),
        target_machine_id: row.target_machine_id,
        reason: row.reason,
        error_code: row.error_code,
        error_message: row.error_message,
        metadata: row
            .metadata
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default(),
    }
}

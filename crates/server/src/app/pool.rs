//! Warm pools: machines of one template that are made beforehand, and handed out.
//!
//! ```text
//!  keeper ──▶ decide ──▶ make: record `warming` ──▶ engine.create, start command ──▶ record `ready`
//!                    └─▶ let go: record `releasing` ──▶ engine.destroy ──▶ forget
//!  create ──▶ checkout: one transaction: `claimed`, and the machine ──▶ its owner gives it what is its own
//! ```
//! Until it is handed out a machine of a pool is no machine for anybody else: it has no record among the machines and no
//! handle. What is here in memory follows the record. Called by `http::pool`, and by `http::machine` for a create.

mod adopt;
mod change;
mod checkout;
mod decide;
mod keeper;
mod make;
mod show;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use nullspace_api::{
    error::code,
    id,
    machine::WarmPoolMode,
    pool::{
        CreatePoolRequest, DegradedReason, ListPoolsQuery, PoolCounts, PoolHealth, PoolInfo,
        PoolState, UpdatePoolRequest, VersionPolicy,
    },
    time,
};
use nullspace_protocol::GuestClient;
use nullspace_store::pool::{self as rows, InstanceRow, PoolRow};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{App, AppState, Caller, machine};
use crate::error::{Error, Kind, Result};

pub(super) use adopt::adopt;
pub use checkout::{Asked, ask, create_machine};
pub use keeper::keep_up;
pub(super) use make::{has, lost, waiting};

/// The longest name of a pool, in characters.
const MAX_NAME: usize = 128;
/// The most pools that are not deleted.
const MAX_POOLS: usize = 256;
const IDLE_SECS: u64 = 600;
const STALE_SECS: u64 = 900;

/// Every pool.
#[derive(Debug)]
pub(crate) struct Pools {
    known: Mutex<BTreeMap<String, Pool>>,
    /// A change of a pool, or of what it has, is done alone.
    editing: tokio::sync::Mutex<()>,
    /// There is something to decide.
    wake: Notify,
    /// Something is ready, or a pool is no more what it was.
    changed: watch::Sender<()>,
    making: tokio::sync::Semaphore,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            editing: tokio::sync::Mutex::default(),
            wake: Notify::new(),
            changed: watch::Sender::new(()),
            making: tokio::sync::Semaphore::new(make::TOGETHER),
        }
    }
}

/// One pool.
#[derive(Debug, Default)]
struct Pool {
    row: PoolRow,
    instances: HashMap<String, Instance>,
    /// Requests that wait for one.
    waiting: u32,
    /// Why none can be made, as it was looked at last.
    trouble: Option<DegradedReason>,
    /// That did not get ready, in a row, and why the last one did not.
    failures: u32,
    failed_as: Option<DegradedReason>,
    /// None is made before.
    not_before: Option<Instant>,
    looked_at: Option<i64>,
    /// Ended since the server started.
    released: u32,
    /// Those of before that were let go when it was looked at last.
    released_old: u32,
}

/// Where a machine of a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Warming,
    Ready,
    /// Somebody has it, or is about to.
    Claimed,
    Releasing,
}

/// A machine of a pool.
#[derive(Debug)]
struct Instance {
    row: InstanceRow,
    phase: Phase,
    /// Taken by whoever it is handed out to.
    held: Option<(machine::Place, GuestClient)>,
    /// Ends its making.
    stop: CancellationToken,
}

impl Pools {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Pool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, id: &str) -> Option<PoolRow> {
        self.lock().get(id).map(|pool| pool.row.clone())
    }

    /// Has the keeper look, and those who wait.
    fn poke(&self) {
        self.changed.send_replace(());
        self.wake.notify_one();
    }
}

impl Pool {
    fn state(&self) -> PoolState {
        PoolState::parse(&self.row.state).unwrap_or(PoolState::Disabled)
    }

    fn is_current(&self, instance: &InstanceRow) -> bool {
        self.trouble != Some(DegradedReason::TemplateBuildUnavailable)
            && self.row.digest.as_deref() == Some(&*instance.digest)
            && self.row.vcpus == instance.vcpus
            && self.row.memory_mb == instance.memory_mb
    }

    /// What it should be now.
    fn wanted(&self) -> decide::Wanted {
        let micros = |secs: u64| i64::try_from(secs.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
        decide::Wanted {
            is_enabled: self.state() == PoolState::Enabled,
            min_ready: self.row.min_ready,
            max_ready: self.row.max_ready,
            waiting: self.waiting,
            idle: micros(self.row.idle_timeout_secs),
            stale: micros(self.row.stale_after_secs),
            can_make: self.trouble.is_none()
                && self.not_before.is_none_or(|at| at <= Instant::now()),
        }
    }

    /// What waits in it, and what is on its way.
    fn seen(&self) -> Vec<decide::Seen> {
        let mut seen: Vec<_> = self
            .instances
            .values()
            .filter(|one| matches!(one.phase, Phase::Warming | Phase::Ready))
            .map(|one| decide::Seen {
                id: one.row.machine_id.clone(),
                ready_at: one.row.ready_at.filter(|_| one.phase == Phase::Ready),
                is_current: self.is_current(&one.row),
            })
            .collect();
        seen.sort_by(|a, b| a.id.cmp(&b.id));
        seen
    }
}

pub(crate) fn not_found(id: &str) -> Error {
    let shown: String = id.chars().take(MAX_NAME).collect();
    Error::not_found(code::WARM_POOL_NOT_FOUND, format!("no warm pool {shown:?}"))
}

/// Makes a pool. Its machines are made from now on.
///
/// # Errors
/// `invalid_request` with the field, `template_not_found`, `capacity_exceeded`.
pub async fn create(
    app: &AppState,
    request: CreatePoolRequest,
    caller: &Caller,
) -> Result<PoolInfo> {
    if request.host_pool_id.is_some() || request.cell_id.is_some() {
        return Err(Error::invalid(
            "host_pool_id, cell_id: this server is one host, and has no others to choose from",
        ));
    }
    let now = time::now();
    let mut row = PoolRow {
        id: id::new(id::WARM_POOL),
        state: PoolState::Enabled.as_str().to_owned(),
        idle_timeout_secs: IDLE_SECS,
        stale_after_secs: STALE_SECS,
        checkout_policy: word(&WarmPoolMode::Prefer),
        version_policy: word(&VersionPolicy::PinnedBuild),
        labels: "{}".to_owned(),
        metadata: "{}".to_owned(),
        tenant_id: caller.tenant_id(),
        key_id: Some(caller.key_id.to_string()),
        created_at: now,
        enabled_at: Some(now),
        ..PoolRow::default()
    };
    let wanted = UpdatePoolRequest {
        template_ref: request.template_ref,
        template: request.template,
        name: Some(request.name),
        min_ready: Some(request.min_ready),
        max_ready: Some(request.max_ready),
        resources: Some(request.resources),
        idle_timeout_seconds: request.idle_timeout_seconds,
        stale_after_seconds: request.stale_after_seconds,
        checkout_policy: request.checkout_policy,
        version_policy: request.version_policy,
        track_tag: request.track_tag,
        labels: request.labels,
        metadata: request.metadata,
    };
    if wanted.template_ref.is_none() && wanted.template.is_none() {
        return Err(Error::invalid("template_ref: is needed"));
    }
    let _alone = app.pools.editing.lock().await;
    let count = |pools: &BTreeMap<String, Pool>| {
        let there = pools.values().filter(|one| one.row.deleted_at.is_none());
        there.count()
    };
    if count(&app.pools.lock()) >= MAX_POOLS {
        return Err(Error::new(
            Kind::Limit,
            code::CAPACITY_EXCEEDED,
            format!("{MAX_POOLS} warm pools are there, the most this server allows"),
        )
        .with_action("delete pools that are no longer needed"));
    }
    change::change(app, &mut row, wanted).await?;
    keep(app, row).await
}

/// Changes a pool.
///
/// # Errors
/// As [`create`]; `warm_pool_not_found`, `warm_pool_conflict` for one that is deleted.
pub async fn update(app: &AppState, id: &str, request: UpdatePoolRequest) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    let mut row = editable(app, id)?;
    change::change(app, &mut row, request).await?;
    keep(app, row).await
}

/// Has a pool make and hand out machines.
///
/// # Errors
/// `warm_pool_not_found`, `warm_pool_conflict` for one that is deleted.
pub async fn enable(app: &AppState, id: &str) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    let mut row = editable(app, id)?;
    if row.state != PoolState::Enabled.as_str() {
        row.state = PoolState::Enabled.as_str().to_owned();
        row.enabled_at = Some(time::now());
        row.drain_requested_at = None;
    }
    keep(app, row).await
}

/// Has a pool hand out no machines any more, and ends those that wait.
///
/// # Errors
/// As [`enable`].
pub async fn disable(app: &AppState, id: &str) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    let mut row = editable(app, id)?;
    if row.state != PoolState::Disabled.as_str() {
        row.state = PoolState::Disabled.as_str().to_owned();
        row.disabled_at = Some(time::now());
    }
    keep(app, row).await
}

/// Empties a pool; once it is empty it is disabled.
///
/// # Errors
/// As [`enable`].
pub async fn drain(app: &AppState, id: &str) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    let mut row = editable(app, id)?;
    row.drain_requested_at = Some(time::now());
    if row.state == PoolState::Enabled.as_str() {
        row.state = PoolState::Draining.as_str().to_owned();
    }
    keep(app, row).await
}

/// Empties a pool for good. What was handed out goes on. Doing it again is fine.
///
/// # Errors
/// `warm_pool_not_found`.
pub async fn delete(app: &AppState, id: &str) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    let mut row = app.pools.row(id).ok_or_else(|| not_found(id))?;
    if row.deleted_at.is_none() {
        let now = time::now();
        row.state = PoolState::Deleted.as_str().to_owned();
        row.deleted_at = Some(now);
        row.drain_requested_at.get_or_insert(now);
    }
    keep(app, row).await
}

/// Looks at a pool now, and does what is to be done.
///
/// # Errors
/// `warm_pool_not_found`.
pub async fn reconcile(app: &AppState, id: &str) -> Result<PoolInfo> {
    let _alone = app.pools.editing.lock().await;
    app.pools.row(id).ok_or_else(|| not_found(id))?;
    if let Some(pool) = app.pools.lock().get_mut(id) {
        // Somebody asks: it is tried again now.
        pool.not_before = None;
    }
    keeper::look(app, id).await?;
    get(app, id)
}

/// One pool.
///
/// # Errors
/// `warm_pool_not_found`.
pub fn get(app: &App, id: &str) -> Result<PoolInfo> {
    let pools = app.pools.lock();
    let pool = pools.get(id).ok_or_else(|| not_found(id))?;
    Ok(show::info(app, pool))
}

/// How many machines a pool has.
///
/// # Errors
/// `warm_pool_not_found`.
pub fn counts(app: &App, id: &str) -> Result<PoolCounts> {
    Ok(get(app, id)?.status)
}

/// Pools, newest first.
///
/// # Errors
/// `invalid_request` for a query that means nothing.
pub fn list(app: &App, caller: &Caller, query: &ListPoolsQuery) -> Result<Vec<PoolInfo>> {
    let limit = query.limit.unwrap_or(nullspace_api::page::MAX_LIMIT);
    if limit == 0 || limit > nullspace_api::page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            nullspace_api::page::MAX_LIMIT
        )));
    }
    let state = match query.state.as_deref().filter(|word| !word.is_empty()) {
        None => None,
        Some(word) => Some(
            PoolState::parse(word)
                .ok_or_else(|| Error::invalid(format!("state: unknown state {word:?}")))?,
        ),
    };
    let health = match query.status.as_deref().filter(|word| !word.is_empty()) {
        None => None,
        Some(word) => Some(
            PoolHealth::parse(word)
                .ok_or_else(|| Error::invalid(format!("status: unknown status {word:?}")))?,
        ),
    };
    let labels: Vec<(&str, &str)> = query
        .label
        .iter()
        .map(|text| {
            text.split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| Error::invalid(format!("label: {text:?} is not key=value")))
        })
        .collect::<Result<_>>()?;
    let pools = app.pools.lock();
    let own = |pool: &&Pool| pool.row.tenant_id == *caller.tenant.id;
    let mut found: Vec<&Pool> = pools.values().filter(own).collect();
    found.sort_by_key(|pool| std::cmp::Reverse((pool.row.created_at, pool.row.id.clone())));
    let wanted = |info: &PoolInfo| {
        let is_state = match state {
            Some(state) => info.state == state,
            None => info.state != PoolState::Deleted,
        };
        let template = query.template.as_deref().filter(|text| !text.is_empty());
        is_state
            && template.is_none_or(|text| info.template_ref == text)
            && health.is_none_or(|health| show::health(info) == health)
            && labels
                .iter()
                .all(|(key, value)| match info.labels.get(*key) {
                    Some(Value::String(said)) => said == value,
                    Some(other) => {
                        serde_json::from_str::<Value>(value).is_ok_and(|said| said == *other)
                    }
                    None => false,
                })
    };
    Ok(found
        .into_iter()
        .map(|pool| show::info(app, pool))
        .filter(wanted)
        .take(limit as usize)
        .collect())
}

/// Forgets pools that were deleted long ago. Called now and then.
///
/// # Errors
/// When the record cannot be written.
pub async fn forget_old(app: &App) -> Result<()> {
    let secs = i64::try_from(app.config.ended_retention_secs).unwrap_or(0);
    let before = time::now() - secs.saturating_mul(1_000_000);
    let gone = app.store.write(move |tx| rows::forget(tx, before)).await?;
    let mut pools = app.pools.lock();
    pools.retain(|id, _| !gone.contains(id));
    for pool in pools.values_mut() {
        pool.instances.retain(|id, one| {
            one.phase != Phase::Claimed || one.held.is_some() || app.machines.get(id).is_some()
        });
    }
    Ok(())
}

/// Whose a pool is; `None` when there is no such pool.
pub(crate) fn owner(app: &App, id: &str) -> Option<String> {
    app.pools.row(id).map(|row| row.tenant_id)
}

/// A pool that can still be changed.
fn editable(app: &App, id: &str) -> Result<PoolRow> {
    let row = app.pools.row(id).ok_or_else(|| not_found(id))?;
    match row.deleted_at {
        None => Ok(row),
        Some(_) => Err(Error::conflict(
            code::WARM_POOL_CONFLICT,
            format!("warm pool {id} is deleted"),
        )
        .with_action("make another")),
    }
}

/// Records a pool as it is to be, and has it done.
async fn keep(app: &AppState, mut row: PoolRow) -> Result<PoolInfo> {
    row.updated_at = time::now();
    record(app, row.clone()).await?;
    keeper::look(app, &row.id).await?;
    app.pools.poke();
    get(app, &row.id)
}

/// The record, and what is in memory of it. What a pool has stays as it is.
async fn record(app: &App, row: PoolRow) -> Result<()> {
    let recording = row.clone();
    app.store.write(move |tx| rows::put(tx, &recording)).await?;
    let mut pools = app.pools.lock();
    let id = row.id.clone();
    pools.entry(id).or_default().row = row;
    Ok(())
}

/// The wire's word for it, which is the record's as well.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

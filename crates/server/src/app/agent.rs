//! Agent Deployments: what deployments, versions, runs and logs share, and the way back after a restart.
//!
//! ```text
//!  agent_deployment ──▶ agent_version ──▶ bundle (a verified tree on disk)
//!                            │
//!  agent_run: record `queued`, answer ──▶ agent_task: machine, install, entry point, outputs, end
//!                                              │ lines, events          ▲ cancel
//!                            agent_log ◀───────┘ (follower is woken)    agent_run
//!
//!  agent_service: record `starting`, answer ──▶ its supervisor ──▶ agent_task for each backing
//! ```

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use nullspace_api::{error::code, page};
use nullspace_lifecycle::run::State;
use nullspace_store::{
    StoreError, Tx, agent_deployment as deployments, agent_run as runs,
    idempotency::{self, Claim, Outcome},
};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    App, AppState, Caller, agent_artifact, agent_output, agent_service,
    agent_task::{self, retained},
    agent_version, bundle, machine,
};
use crate::error::{Error, Kind, Result};

/// The agent side's own state: the runs that have a task, and the services that have a supervisor.
#[derive(Debug, Default)]
pub struct Agents {
    live: Mutex<HashMap<String, Arc<Live>>>,
    pub(super) services: agent_service::Live,
    pub(super) building: agent_artifact::Building,
}

/// What others hold of a run that has not ended.
#[derive(Debug)]
pub struct Live {
    /// Cancelled when somebody wants the run ended.
    pub cancel: CancellationToken,
    /// Events in the log, as recorded. Changes for the last time in the transaction that ends the run.
    pub log: watch::Sender<u64>,
    /// Why it is to be ended, if that is a failure: set before `cancel`.
    pub(super) failure: OnceLock<String>,
    /// For how long the machine of a service is kept, in seconds: set before `cancel`.
    pub(super) retain: OnceLock<u64>,
}

impl Agents {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The live side of a run, while it has one.
    #[must_use]
    pub fn get(&self, run_id: &str) -> Option<Arc<Live>> {
        self.lock().get(run_id).cloned()
    }

    pub(super) fn insert(&self, run_id: &str, log_count: u64) -> Arc<Live> {
        let live = Arc::new(Live {
            cancel: CancellationToken::new(),
            log: watch::Sender::new(log_count),
            failure: OnceLock::new(),
            retain: OnceLock::new(),
        });
        self.lock().insert(run_id.to_owned(), live.clone());
        live
    }

    pub(super) fn remove(&self, run_id: &str) {
        self.lock().remove(run_id);
    }
}

/// Carries on what was under way when the last server stopped. Called once, after the machines were
/// adopted and before the first request.
///
/// # Errors
/// When the record cannot be read.
pub async fn start(app: &AppState) -> Result<()> {
    bundle::clean(&app.data_dir).await?;
    agent_output::clean(&app.data_dir).await?;
    agent_artifact::clean(app).await?;
    let kept = agent_output::Kept::new(app.store.clone(), app.data_dir.clone());
    if app.outputs.set(Arc::new(kept)).is_err() {
        return Err(Error::internal("the store of outputs was set twice"));
    }
    release_leftovers(app).await?;
    let unfinished = app.store.read(|db| runs::unfinished(db, None)).await?;
    if !unfinished.is_empty() {
        tracing::info!(count = unfinished.len(), "carrying on with agent runs");
    }
    // The supervisors of services take care of their backings.
    for row in unfinished
        .into_iter()
        .filter(|row| row.service_id.is_none())
    {
        let version = agent_version::prepared(app, &row.version_id).await?;
        agent_task::resume(app, row, version);
    }
    agent_version::settle_builds(app).await?;
    agent_service::resume_all(app).await
}

/// Machines of runs that ended: the server stopped before it could end them or set their time.
async fn release_leftovers(app: &AppState) -> Result<()> {
    for handle in app.machines.all() {
        let machine = handle.row();
        let Some(owner) = machine.owner.clone() else {
            continue;
        };
        let wanted = owner.clone();
        let run = app.store.read(move |db| runs::get(db, &wanted)).await?;
        let Some(run) = run.filter(|run| is_terminal(&run.status)) else {
            continue;
        };
        if run.retained_until.is_none() || machine.timeout_at.is_none() {
            retained::release(app, &run, &machine.id).await;
        } else {
            retained::announce(app, run, machine.id.clone());
        }
    }
    Ok(())
}

/// Whether a run in this status has ended. A word that this version does not know counts as ended: it is
/// left alone.
pub(super) fn is_terminal(status: &str) -> bool {
    State::parse(status).is_none_or(State::is_terminal)
}

/// How many items a page has.
pub(super) fn limit(asked: Option<u32>) -> Result<u32> {
    let limit = asked.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    Ok(limit)
}

/// Reads the cursor of a list.
pub(super) fn cursor(text: Option<&str>) -> Result<Option<i64>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text
            .strip_prefix('a')
            .and_then(|digits| i64::from_str_radix(digits, 16).ok())
            .map(Some)
            .ok_or_else(|| Error::invalid("cursor: not a cursor of this server")),
    }
}

/// Cuts a list that was asked for one item too many, and makes the cursor of the next page.
pub(super) fn cut<T>(rows: &mut Vec<T>, limit: u32, seq: impl Fn(&T) -> i64) -> Option<String> {
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    rows.last()
        .filter(|_| more)
        .map(|last| format!("a{:x}", seq(last)))
}

/// A filter that must be one of these words; empty means none.
pub(super) fn word(field: &str, value: Option<String>, allowed: &[&str]) -> Result<Option<String>> {
    match value.filter(|value| !value.is_empty()) {
        Some(value) if !allowed.contains(&value.as_str()) => Err(Error::invalid(format!(
            "{field}: must be one of {}",
            allowed.join(", ")
        ))),
        other => Ok(other),
    }
}

/// What became of a request with an idempotency key.
#[derive(Debug)]
pub(super) enum Recorded<T> {
    /// It was made.
    New(T),
    /// An earlier request made this.
    Replay(String),
}

/// Claims an idempotency key, if there is one, for `subject`; the id of what an earlier request made
/// comes back for a repeated one.
pub(super) fn claim(
    tx: &Tx<'_>,
    asked: Option<&Claim>,
    subject: &str,
    now: i64,
) -> Result<Option<String>> {
    let Some(asked) = asked else { return Ok(None) };
    let hash = |salt: &[u8], body: &[u8]| {
        Sha256::new()
            .chain_update(salt)
            .chain_update(body)
            .finalize()
            .to_vec()
    };
    match idempotency::claim(tx, asked, subject, now, hash)? {
        Outcome::New => Ok(None),
        Outcome::Replay(id) => Ok(Some(id)),
        Outcome::Conflict => Err(Error::conflict(
            code::IDEMPOTENCY_CONFLICT,
            "this idempotency key was used with another body",
        )
        .with_action("use a new key for a new request")),
    }
}

/// No deployment of that id or name.
pub(crate) fn no_deployment(reference: &str) -> Error {
    Error::not_found(
        code::AGENT_DEPLOYMENT_NOT_FOUND,
        format!("no agent deployment {reference:?}"),
    )
}

/// What a tenant calls a deployment of its own: an id, or a name.
#[derive(Clone, Debug)]
pub struct Reference {
    tenant_id: String,
    text: String,
}

impl Reference {
    /// As a caller says it.
    #[must_use]
    pub fn of(caller: &Caller, text: &str) -> Self {
        Self {
            tenant_id: caller.tenant_id(),
            text: text.to_owned(),
        }
    }

    /// The deployment of a version, a run or a service of the tenant.
    pub(super) fn by_id(tenant_id: &str, id: &str) -> Self {
        Self {
            tenant_id: tenant_id.to_owned(),
            text: id.to_owned(),
        }
    }
}

/// Finds a deployment by id (also a deleted one) or by name.
pub(super) fn find(
    db: &nullspace_store::rusqlite::Connection,
    reference: &Reference,
) -> Result<deployments::DeploymentRow> {
    let Reference { tenant_id, text } = reference;
    let found = if text.starts_with(nullspace_api::id::DEPLOYMENT) {
        deployments::get(db, text)?.filter(|row| row.tenant_id == *tenant_id)
    } else {
        deployments::by_name(db, tenant_id, text)?
    };
    found.ok_or_else(|| no_deployment(text))
}

/// The same for calls that change something: a deleted one is gone.
pub(super) fn find_live(
    db: &nullspace_store::rusqlite::Connection,
    reference: &Reference,
) -> Result<deployments::DeploymentRow> {
    find(db, reference).and_then(|row| {
        if row.status == "deleted" {
            Err(no_deployment(&reference.text))
        } else {
            Ok(row)
        }
    })
}

/// Refuses calls for the other mode.
pub(super) fn require_mode(row: &deployments::DeploymentRow, mode: &str) -> Result<()> {
    if row.mode == mode {
        return Ok(());
    }
    Err(Error::conflict(
        code::AGENT_MODE_CONFLICT,
        format!(
            "deployment {} is a {}: this call is for a {mode}",
            row.name, row.mode
        ),
    ))
}

/// The disk is full, as the caller sees it.
pub(super) fn disk_full(context: String) -> Error {
    Error::new(
        Kind::Storage,
        code::INSUFFICIENT_STORAGE,
        "the server's disk is full; nothing was kept",
    )
    .with_action("free disk space on the server, then try again")
    .with_context(context)
}

/// Whether the system said that there is no room.
pub(super) fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Runs blocking work on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(format!("a task ended: {e}")))?
}

/// Ends with an error of the store as the application's.
pub(super) fn kept<T>(result: Result<T, StoreError>) -> Result<T> {
    result.map_err(Error::from)
}

/// The machine of a run that is alive, whether or not the run knows of it.
pub(super) fn machine_of(app: &App, run_id: &str) -> Option<Arc<machine::Handle>> {
    app.machines
        .all()
        .into_iter()
        .find(|handle| handle.row().owner.as_deref() == Some(run_id))
}

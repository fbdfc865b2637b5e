//! Services: starting, finding, stopping and restarting them. Called by `http::agent_service`; what keeps one alive is
//! its [`supervisor`].
//!
//! ```text
//!  start ──▶ record `starting` ──────────┐
//!  restart ─▶ record what is wanted now ─┼─▶ supervisor (one task per service) ──▶ backings, checks, the door
//!  stop ───▶ record the wish ────────────┘
//! ```

mod check;
mod supervisor;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nullspace_api::{
    agent::{
        CreateServiceRequest, ListQuery, RestartServiceRequest, Service, ServiceUrl,
        StopServiceRequest,
    },
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_lifecycle::service as lifecycle;
use nullspace_project::AgentConfig;
use nullspace_store::{
    agent_run::{self as runs, RunRow},
    agent_service::{self as rows, ServiceRow},
    agent_version as versions,
    idempotency::Claim,
    rusqlite::Connection,
};
use serde_json::{Map, Value};
use tokio::sync::{Notify, mpsc, watch};

use super::{
    App, AppState, Caller,
    agent::{self, Recorded},
    agent_config, agent_log, agent_run,
    agent_task::News,
    agent_version, machine,
};
use crate::error::{Error, Result};

/// The longest reason for a stop or restart that is kept, in characters.
const MAX_REASON: usize = 1000;
/// How long a request to stop waits for the end.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The services that have a supervisor.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<HashMap<String, Arc<ServiceLive>>>);

/// What others hold of a service that has not ended.
#[derive(Debug)]
pub(super) struct ServiceLive {
    /// Events in the log, as recorded.
    pub(super) log: watch::Sender<u64>,
    /// Told when a request has recorded a wish.
    wake: Notify,
    news: mpsc::UnboundedSender<(String, Heard)>,
}

/// What a supervisor hears about a backing.
#[derive(Debug)]
enum Heard {
    News(News),
    /// What the newest check said.
    Checked(Result<(), String>),
    /// Nothing uses a backing any more that was replaced, or the time for that is over.
    Drained,
}

impl ServiceLive {
    /// Called by the task of a backing.
    pub(super) fn tell(&self, run_id: &str, news: News) {
        self.hear(run_id, Heard::News(news));
    }

    fn hear(&self, run_id: &str, heard: Heard) {
        // A supervisor that is gone needs no news.
        let _ = self.news.send((run_id.to_owned(), heard));
    }
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<ServiceLive>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, service_id: &str) -> Option<Arc<ServiceLive>> {
        self.lock().get(service_id).cloned()
    }
}

/// Carries on with every service that had not ended.
pub(super) async fn resume_all(app: &AppState) -> Result<()> {
    let unfinished = app.store.read(|db| rows::unfinished(db, None)).await?;
    if !unfinished.is_empty() {
        tracing::info!(count = unfinished.len(), "carrying on with agent services");
    }
    for row in unfinished {
        wake(app, &row.id, row.log_count);
    }
    Ok(())
}

/// Has a recorded wish followed.
pub(super) fn wake(app: &AppState, id: &str, log_count: u64) {
    supervisor::ensure(app, id, log_count);
}

/// Records a service and starts it; answers without waiting for its machine.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_version_not_found`, `agent_mode_conflict`, `conflict` (paused, or
/// nothing to run), `invalid_request` (a required variable is missing), `capacity_exceeded`,
/// `idempotency_conflict`.
pub async fn create(
    app: &AppState,
    caller: &Caller,
    reference: &agent::Reference,
    request: CreateServiceRequest,
    claim: Option<Claim>,
    host: &str,
) -> Result<Service> {
    let envs = request.envs.unwrap_or_default();
    machine::check_envs(&envs)?;
    let room = app.machines.room(app.config.max_machines);
    let now = time::now();
    let id = id::new(id::SERVICE);
    let row = ServiceRow {
        envs: seal(app, &id, &envs)?,
        id,
        status: lifecycle::State::Starting.as_str().into(),
        readiness: "{}".into(),
        log_count: 1,
        key_id: Some(caller.key_id.to_string()),
        idempotency_key: claim.as_ref().map(|claim| claim.key.clone()),
        created_at: now,
        updated_at: now,
        ..ServiceRow::default()
    };
    let (reference, version_id) = (reference.to_owned(), request.version_id);
    let names: Vec<String> = envs.into_keys().collect();
    let recorded = app
        .store
        .write(move |tx| {
            if let Some(id) = agent::claim(tx, claim.as_ref(), &row.id, now)? {
                return Ok(Recorded::Replay(id));
            }
            room?;
            let deployment = agent::find_live(tx, &reference)?;
            let version = agent_run::runnable(tx, &deployment, "service", version_id)?;
            let config = agent_version::prepare(&version)?.config;
            agent_run::require_envs(&config.env.required, &names)?;
            let mut row = ServiceRow {
                deployment_id: deployment.id,
                version_id: version.id,
                port: port(&config)?,
                ..row
            };
            row.seq = rows::insert(tx, &row)?;
            let message = format!("service of version {}", version.number);
            let event = agent_log::news(lifecycle::STARTING, message, None, false);
            rows::take_log(tx, &row.id, &[event], 0)?;
            Ok::<_, Error>(Recorded::New(row))
        })
        .await?;
    let id = match recorded {
        Recorded::New(row) => {
            wake(app, &row.id, row.log_count);
            return Ok(info(&row, None, host));
        }
        Recorded::Replay(id) => id,
    };
    let found = app.store.read(move |db| with_run(db, &id)).await?;
    let (row, run) = found
        .ok_or_else(|| Error::internal("an idempotency key names a service that is not there"))?;
    Ok(info(&row, run.as_ref(), host))
}

/// Where a service of this config listens.
fn port(config: &AgentConfig) -> Result<u16> {
    config
        .service
        .port
        .ok_or_else(|| Error::internal("a version of a service without a port"))
}

fn seal(app: &App, id: &str, envs: &BTreeMap<String, String>) -> Result<Option<Vec<u8>>> {
    if envs.is_empty() {
        return Ok(None);
    }
    let plain = serde_json::to_vec(envs)
        .map_err(|e| Error::internal(format!("writing an environment: {e}")))?;
    let sealed = app
        .seal
        .seal(id, &plain)
        .map_err(|e| Error::internal(format!("sealing an environment: {e}")))?;
    Ok(Some(sealed))
}

/// No service of that id.
fn no_service(id: &str) -> Error {
    Error::not_found(
        code::AGENT_SERVICE_NOT_FOUND,
        format!("no agent service {id:?}"),
    )
}

/// A service with the run of the backing that is shown: the newest.
fn with_run(db: &Connection, id: &str) -> Result<Option<(ServiceRow, Option<RunRow>)>> {
    let Some(row) = rows::get(db, id)? else {
        return Ok(None);
    };
    let run = match &row.run_id {
        Some(run) => runs::get(db, run)?,
        None => None,
    };
    Ok(Some((row, run)))
}

/// A service of a deployment, as it is recorded, and the run of its newest backing.
pub(super) async fn find(
    app: &App,
    reference: &agent::Reference,
    service_id: &str,
) -> Result<(ServiceRow, Option<RunRow>)> {
    let (reference, id) = (reference.to_owned(), service_id.to_owned());
    app.store
        .read(move |db| {
            let deployment = agent::find(db, &reference)?;
            agent::require_mode(&deployment, "service")?;
            with_run(db, &id)?
                .filter(|(row, _)| row.deployment_id == deployment.id)
                .ok_or_else(|| no_service(&id))
        })
        .await
}

/// One service. `host` is what the caller calls this server, for the address of the service.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_service_not_found`, `agent_mode_conflict`.
pub async fn get(
    app: &App,
    reference: &agent::Reference,
    service_id: &str,
    host: &str,
) -> Result<Service> {
    let (row, run) = find(app, reference, service_id).await?;
    Ok(info(&row, run.as_ref(), host))
}

/// A page of services, newest first.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_mode_conflict`, `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    reference: &agent::Reference,
    query: ListQuery,
    host: &str,
) -> Result<CursorPage<Service>> {
    let limit = agent::limit(query.limit)?;
    let statuses = lifecycle::State::ALL.map(lifecycle::State::as_str);
    let mut filter = rows::Filter {
        deployment_id: String::new(),
        status: agent::word("status", query.status, &statuses)?,
        version_id: query.version_id.filter(|id| !id.is_empty()),
        before: agent::cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let reference = reference.to_owned();
    let mut found = app
        .store
        .read(move |db| {
            let deployment = agent::find(db, &reference)?;
            agent::require_mode(&deployment, "service")?;
            filter.deployment_id = deployment.id;
            let rows = rows::list(db, &filter)?.into_iter().map(|row| {
                let run = match &row.run_id {
                    Some(run) => runs::get(db, run)?,
                    None => None,
                };
                Ok((row, run))
            });
            rows.collect::<Result<Vec<_>>>()
        })
        .await?;
    let next_cursor = agent::cut(&mut found, limit, |(row, _)| row.seq);
    Ok(CursorPage {
        items: found
            .iter()
            .map(|(row, run)| info(row, run.as_ref(), host))
            .collect(),
        next_cursor,
    })
}

fn reason(text: Option<String>) -> Option<String> {
    text.map(|text| text.trim().chars().take(MAX_REASON).collect::<String>())
        .filter(|text| !text.is_empty())
}

/// Ends a service; one that has ended stays as it is. Answers when it has ended, or after a while.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_service_not_found`, `agent_mode_conflict`.
pub async fn stop(
    app: &AppState,
    reference: &agent::Reference,
    service_id: &str,
    request: StopServiceRequest,
    host: &str,
) -> Result<Service> {
    let (row, _) = find(app, reference, service_id).await?;
    let version = agent_version::prepared(app, &row.version_id).await?;
    let retain = request
        .retain_sandbox
        .unwrap_or(false)
        .then(|| agent_config::retention(&version.config));
    let reason = reason(request.reason);
    let id = row.id;
    let asked = agent::kept(
        app.store
            .write(move |tx| rows::request_stop(tx, &id, reason.as_deref(), retain, time::now()))
            .await,
    )?;
    if asked && let Some(live) = app.agents.services.get(service_id) {
        live.wake.notify_one();
        let mut log = live.log.subscribe();
        // Only the supervisor itself is to keep the other end open.
        drop(live);
        let ended = async { while log.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(STOP_PATIENCE, ended).await;
    }
    get(app, reference, service_id, host).await
}

/// Starts a service again, with the version that is active now and this environment alone, also when it has ended.
/// While the old backing takes traffic it goes on until the new one is ready.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_service_not_found`, `agent_mode_conflict`, `conflict` (paused, nothing to run,
/// or being stopped), `invalid_request` (a required variable is missing).
pub async fn restart(
    app: &AppState,
    reference: &agent::Reference,
    service_id: &str,
    request: RestartServiceRequest,
    host: &str,
) -> Result<Service> {
    let envs = request.envs.unwrap_or_default();
    machine::check_envs(&envs)?;
    let sealed = seal(app, service_id, &envs)?;
    let names: Vec<String> = envs.into_keys().collect();
    let (reference, id) = (reference.to_owned(), service_id.to_owned());
    let reason = reason(request.reason);
    let (row, run) = app
        .store
        .write(move |tx| {
            let deployment = agent::find_live(tx, &reference)?;
            let version = agent_run::runnable(tx, &deployment, "service", None)?;
            let row = rows::get(tx, &id)?
                .filter(|row| row.deployment_id == deployment.id)
                .ok_or_else(|| no_service(&id))?;
            if row.stop_requested_at.is_some() && row.stopped_at.is_none() {
                return Err(Error::conflict(
                    code::CONFLICT,
                    format!("service {id} is being stopped"),
                )
                .with_action("restart it once it has stopped"));
            }
            let config = agent_version::prepare(&version)?.config;
            agent_run::require_envs(&config.env.required, &names)?;
            let (port, now) = (port(&config)?, time::now());
            let envs = sealed.as_deref();
            rows::request_restart(tx, &id, &version.id, port, envs, reason.as_deref(), now)?;
            with_run(tx, &id)?.ok_or_else(|| no_service(&id))
        })
        .await?;
    wake(app, &row.id, row.log_count);
    Ok(info(&row, run.as_ref(), host))
}

/// Where a service can be opened now.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_service_not_found`, `agent_mode_conflict`.
pub async fn url(
    app: &App,
    reference: &agent::Reference,
    service_id: &str,
    host: &str,
) -> Result<ServiceUrl> {
    let (row, _) = find(app, reference, service_id).await?;
    let version_id = row.version_id.clone();
    let config = app
        .store
        .read(move |db| match versions::get(db, &version_id)? {
            Some(version) => Ok::<_, Error>(Some(agent_version::prepare(&version)?.config)),
            None => Ok(None),
        })
        .await?;
    let needs_token =
        config.is_some_and(|config| config.permissions.allow_public_traffic == Some(false));
    let public_url = public_url(&row, host);
    let token = (needs_token && public_url.is_some()).then(|| app.seal.token(&row.id));
    Ok(ServiceUrl {
        service_id: row.id,
        status: row.status,
        public_url,
        port: row.port,
        traffic_access_header: token
            .as_ref()
            .map(|_| nullspace_gateway::TOKEN_HEADER.to_owned()),
        traffic_access_token: token,
    })
}

/// The address of a service that takes traffic through a door, as its caller reaches this server.
fn public_url(row: &ServiceRow, host: &str) -> Option<String> {
    row.serving_run_id.as_ref()?;
    Some(format!("http://{host}:{}", row.gateway_port?))
}

/// A recorded service as the wire shows it.
fn info(row: &ServiceRow, run: Option<&RunRow>, host: &str) -> Service {
    let machine = run.and_then(|run| run.machine_id.clone());
    let readiness: Map<String, Value> = serde_json::from_str(&row.readiness).unwrap_or_default();
    Service {
        id: row.id.clone(),
        deployment_id: row.deployment_id.clone(),
        version_id: row.version_id.clone(),
        status: row.status.clone(),
        port: row.port,
        sandbox_id: machine.clone(),
        machine_id: machine,
        process_id: run.and_then(|run| run.process_id),
        public_url: public_url(row, host),
        readiness_status: readiness,
        failure_reason: row.failure_reason.clone(),
        restart_count: row.restart_count,
        retained_until: run
            .and_then(|run| run.retained_until)
            .filter(|_| row.stopped_at.is_some())
            .map(time::rfc3339),
        started_at: row.started_at.map(time::rfc3339),
        stopped_at: row.stopped_at.map(time::rfc3339),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        idempotency_key: row.idempotency_key.clone(),
    }
}

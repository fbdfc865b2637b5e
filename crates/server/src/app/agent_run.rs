//! Runs of job deployments: asking for one, finding and cancelling them. Called by `http::agent_run`; what
//! a run does is in `agent_task`.

use std::collections::BTreeMap;

use nullspace_api::{
    agent::{CreateRunRequest, ListQuery, Run, TimelineStep},
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_lifecycle::run as lifecycle;
use nullspace_store::{
    agent_deployment as deployments,
    agent_log::Log,
    agent_run::{self as rows, RunRow},
    agent_version as versions,
    idempotency::Claim,
    rusqlite::Connection,
};
use serde_json::{Map, Value};

use super::{
    App, AppState, Caller,
    agent::{self, Recorded},
    agent_config, agent_log, agent_output, agent_task, agent_version, machine,
};
use crate::error::{Error, Result};

/// The longest reason for a cancellation that is kept, in characters.
const MAX_REASON: usize = 1000;
/// How long a request to cancel waits for the run to end.
const CANCEL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Records a run and starts it; answers without waiting for its machine.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_version_not_found`, `agent_mode_conflict`, `conflict` (paused, or
/// nothing to run), `invalid_request` (a required variable is missing), `capacity_exceeded`,
/// `idempotency_conflict`.
pub async fn create(
    app: &AppState,
    caller: &Caller,
    reference: &agent::Reference,
    request: CreateRunRequest,
    claim: Option<Claim>,
) -> Result<Run> {
    let envs = request.envs.unwrap_or_default();
    machine::check_envs(&envs)?;
    let most = app.config.max_timeout_ms / 1000;
    if request
        .retention_seconds
        .is_some_and(|s| s == 0 || s > most)
    {
        return Err(Error::invalid(format!(
            "retention_seconds: must be 1 to {most}"
        )));
    }
    let room = app.machines.room(app.config.max_machines);
    let now = time::now();
    let row = RunRow {
        id: id::new(id::RUN),
        status: lifecycle::State::Queued.as_str().into(),
        input: Value::Object(request.input.unwrap_or_default()).to_string(),
        has_envs: !envs.is_empty(),
        log_count: 1,
        key_id: Some(caller.key_id.to_string()),
        idempotency_key: claim.as_ref().map(|claim| claim.key.clone()),
        created_at: now,
        updated_at: now,
        ..RunRow::default()
    };
    let (reference, version_id) = (reference.to_owned(), request.version_id);
    let (asked, seconds) = (request.retain_on_failure, request.retention_seconds);
    let names: Vec<String> = envs.keys().cloned().collect();
    let recorded = app
        .store
        .write(move |tx| {
            if let Some(id) = agent::claim(tx, claim.as_ref(), &row.id, now)? {
                return Ok(Recorded::Replay(id));
            }
            room?;
            let deployment = agent::find_live(tx, &reference)?;
            let version = runnable(tx, &deployment, "job", version_id)?;
            let prepared = agent_version::prepare(&version)?;
            require_envs(&prepared.config.env.required, &names)?;
            let mut row = RunRow {
                deployment_id: deployment.id,
                version_id: version.id,
                retain_seconds: agent_config::retain_seconds(&prepared.config, asked, seconds),
                ..row
            };
            row.seq = rows::insert(tx, &row)?;
            let message = format!("run of version {}", version.number);
            let queued = agent_log::news(lifecycle::QUEUED, message, None, false);
            nullspace_store::agent_log::append(tx, Log::Run(row.seq), 0, &[queued])?;
            Ok::<_, Error>(Recorded::New((row, prepared)))
        })
        .await?;
    match recorded {
        Recorded::New((row, prepared)) => {
            let info = info(&row);
            agent_task::start(app, row, prepared.into(), envs);
            Ok(info)
        }
        Recorded::Replay(id) => {
            let row = app.store.read(move |db| rows::get(db, &id)).await?;
            row.map(|row| info(&row))
                .ok_or_else(|| Error::internal("an idempotency key names a run that is not there"))
        }
    }
}

/// The version that is to run, of a deployment in this mode.
pub(super) fn runnable(
    db: &Connection,
    deployment: &deployments::DeploymentRow,
    mode: &str,
    version_id: Option<String>,
) -> Result<versions::VersionRow> {
    agent::require_mode(deployment, mode)?;
    let name = &deployment.name;
    if deployment.status == "paused" {
        return Err(Error::conflict(
            code::CONFLICT,
            format!("deployment {name} is paused and starts nothing"),
        )
        .with_action("set its status to active first"));
    }
    let id = version_id
        .filter(|id| !id.is_empty())
        .or_else(|| deployment.active_version_id.clone())
        .ok_or_else(|| {
            Error::conflict(
                code::CONFLICT,
                format!("deployment {name} has no version that is ready"),
            )
            .with_action("deploy a version first")
        })?;
    let version = versions::get(db, &id)?
        .filter(|version| version.deployment_id == deployment.id && version.deleted_at.is_none())
        .ok_or_else(|| agent_version::no_version(&id))?;
    if !matches!(version.status.as_str(), "ready" | "superseded") {
        return Err(Error::conflict(
            code::CONFLICT,
            format!("version {id} is {}, not ready", version.status),
        ));
    }
    Ok(version)
}

pub(super) fn require_envs(required: &[String], given: &[String]) -> Result<()> {
    let missing: Vec<&str> = required
        .iter()
        .filter(|name| !given.contains(name))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "envs: required and not given: {}",
        missing.join(", ")
    ))
    .with_action("give the values with the run; they are not stored"))
}

/// No run of that id.
pub(crate) fn no_run(id: &str) -> Error {
    Error::not_found(code::AGENT_RUN_NOT_FOUND, format!("no agent run {id:?}"))
}

/// A run of a deployment, as it is recorded.
pub(super) async fn find(app: &App, reference: &agent::Reference, run_id: &str) -> Result<RunRow> {
    let (reference, run_id) = (reference.to_owned(), run_id.to_owned());
    app.store
        .read(move |db| {
            let deployment = agent::find(db, &reference)?;
            agent::require_mode(&deployment, "job")?;
            rows::get(db, &run_id)?
                .filter(|row| row.deployment_id == deployment.id)
                .ok_or_else(|| no_run(&run_id))
        })
        .await
}

/// One run.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_run_not_found`, `agent_mode_conflict`.
pub async fn get(app: &App, reference: &agent::Reference, run_id: &str) -> Result<Run> {
    find(app, reference, run_id).await.map(|row| info(&row))
}

/// One run, whatever deployment it is of.
///
/// # Errors
/// `agent_run_not_found`.
pub async fn by_id(app: &App, run_id: &str) -> Result<Run> {
    let id = run_id.to_owned();
    let row = app.store.read(move |db| rows::get(db, &id)).await?;
    row.filter(|row| row.service_id.is_none())
        .map(|row| info(&row))
        .ok_or_else(|| no_run(run_id))
}

/// A page of runs, newest first.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_mode_conflict`, `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    reference: &agent::Reference,
    query: ListQuery,
) -> Result<CursorPage<Run>> {
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
    let mut rows = app
        .store
        .read(move |db| {
            let deployment = agent::find(db, &reference)?;
            agent::require_mode(&deployment, "job")?;
            filter.deployment_id = deployment.id;
            Ok::<_, Error>(rows::list(db, &filter)?)
        })
        .await?;
    let next_cursor = agent::cut(&mut rows, limit, |row| row.seq);
    Ok(CursorPage {
        items: rows.iter().map(info).collect(),
        next_cursor,
    })
}

/// Ends a run; one that has ended stays as it is. Answers when it has ended, or after a while.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_run_not_found`, `agent_mode_conflict`.
pub async fn cancel(
    app: &App,
    reference: &agent::Reference,
    run_id: &str,
    reason: Option<String>,
) -> Result<Run> {
    let row = find(app, reference, run_id).await?;
    let reason = reason
        .map(|reason| reason.trim().chars().take(MAX_REASON).collect::<String>())
        .filter(|reason| !reason.is_empty());
    let id = row.id;
    let asked = agent::kept(
        app.store
            .write(move |tx| rows::request_cancel(tx, &id, reason.as_deref(), time::now()))
            .await,
    )?;
    if asked && let Some(live) = app.agents.get(run_id) {
        live.cancel.cancel();
        let mut log = live.log.subscribe();
        // Only the task itself is to keep the other end open.
        drop(live);
        let ended = async { while log.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(CANCEL_PATIENCE, ended).await;
    }
    get(app, reference, run_id).await
}

/// A recorded run as the wire shows it.
fn info(row: &RunRow) -> Run {
    let input: Map<String, Value> = serde_json::from_str(&row.input).unwrap_or_default();
    Run {
        id: row.id.clone(),
        deployment_id: row.deployment_id.clone(),
        version_id: row.version_id.clone(),
        mode: "job".into(),
        status: row.status.clone(),
        input,
        sandbox_id: row.machine_id.clone(),
        machine_id: row.machine_id.clone(),
        process_id: row.process_id,
        exit_code: row.exit_code,
        failure_reason: row.failure_reason.clone(),
        output_manifest: agent_output::manifest(row.outputs.as_deref()),
        retained_until: row.retained_until.map(time::rfc3339),
        timeline: timeline(row),
        started_at: row.started_at.map(time::rfc3339),
        completed_at: row.completed_at.map(time::rfc3339),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        idempotency_key: row.idempotency_key.clone(),
    }
}

/// What happened when, in order.
fn timeline(row: &RunRow) -> Vec<TimelineStep> {
    let steps = [
        ("queued", Some(row.created_at)),
        ("machine_ready", row.machine_at),
        ("bundle_unpacked", row.unpacked_at),
        ("install_started", row.install_started_at),
        ("installed", row.installed_at),
        ("entrypoint", row.started_at),
        ("first_output", row.first_output_at),
        ("end", row.completed_at),
    ];
    let ms = |from: i64, to: i64| u64::try_from((to - from) / 1000).unwrap_or_default();
    let mut before = row.created_at;
    let happened = steps.into_iter().filter_map(|(step, at)| Some((step, at?)));
    happened
        .map(|(step, at)| TimelineStep {
            step: step.into(),
            at: time::rfc3339(at),
            duration_ms: ms(std::mem::replace(&mut before, at), at),
            elapsed_ms: ms(row.created_at, at),
        })
        .collect()
}

/// What a run's processes find in their environment, besides what the caller gave.
pub(super) fn environment(row: &RunRow, workdir: &str, path: &str) -> BTreeMap<String, String> {
    let (name, id) = match &row.service_id {
        Some(service) => ("NULLSPACE_SERVICE_ID", service),
        None => ("NULLSPACE_RUN_ID", &row.id),
    };
    let mut env = BTreeMap::from([
        (name.to_owned(), id.clone()),
        (
            "NULLSPACE_DEPLOYMENT_ID".to_owned(),
            row.deployment_id.clone(),
        ),
        // The newer spelling of the same.
        (
            "NULLSPACE_FUNCTION_ID".to_owned(),
            row.deployment_id.clone(),
        ),
        ("NULLSPACE_VERSION_ID".to_owned(), row.version_id.clone()),
        // What a project installs for itself comes first.
        (
            "PATH".to_owned(),
            format!("{workdir}/.venv/bin:{workdir}/node_modules/.bin:{path}"),
        ),
        // Lines are seen when they are printed, not when a buffer is full.
        ("PYTHONUNBUFFERED".to_owned(), "1".to_owned()),
    ]);
    // Linux takes no longer variable; the file has the input in any case.
    if row.input.len() < agent_config::MAX_INPUT_IN_ENV {
        env.insert("NULLSPACE_INPUT".to_owned(), row.input.clone());
    }
    env
}

//! Deployments: making, finding, changing and deleting them. Called by `http::agent_deployment`.

use nullspace_api::{
    agent::{CreateDeploymentRequest, Deployment, ListDeploymentsQuery, UpdateDeploymentRequest},
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_store::{
    agent_deployment::{self as rows, DeploymentRow},
    agent_run as runs, agent_service as services, agent_version as versions,
    idempotency::Claim,
};
use serde_json::{Map, Value};

use super::{
    App, AppState, Caller,
    agent::{self, Recorded},
    agent_service,
};
use crate::error::{Error, Result};

/// Modes that can be deployed.
const MODES: [&str; 2] = ["job", "service"];
/// Modes that have their name and nothing else.
const RESERVED: [&str; 4] = ["worker", "triggered", "workspace", "interactive"];
/// The longest name, in characters.
const MAX_NAME: usize = 128;
/// The longest description, in bytes.
const MAX_DESCRIPTION: usize = 16 << 10;
/// The most metadata, as JSON, in bytes.
const MAX_METADATA: usize = 64 << 10;

/// Makes a deployment.
///
/// # Errors
/// `invalid_request`, `agent_deployment_name_conflict`, `idempotency_conflict`.
pub async fn create(
    app: &App,
    caller: &Caller,
    request: CreateDeploymentRequest,
    claim: Option<Claim>,
) -> Result<Deployment> {
    let mode = request.mode.trim().to_lowercase();
    check_mode(&mode)?;
    let now = time::now();
    let row = DeploymentRow {
        seq: 0,
        id: id::new(id::DEPLOYMENT),
        tenant_id: caller.tenant_id(),
        name: check_name(&request.name)?,
        mode,
        status: "active".into(),
        description: check_description(request.description)?,
        metadata: check_metadata(request.metadata.unwrap_or_default())?,
        active_version_id: None,
        versions: 0,
        key_id: Some(caller.key_id.to_string()),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    };
    let recorded = app
        .store
        .write(move |tx| {
            if let Some(id) = agent::claim(tx, claim.as_ref(), &row.id, now)? {
                return Ok(Recorded::Replay(id));
            }
            refuse_taken(tx, &row.tenant_id, &row.name)?;
            rows::insert(tx, &row)?;
            Ok::<_, Error>(Recorded::New(row))
        })
        .await?;
    match recorded {
        Recorded::New(row) => Ok(info(row)),
        Recorded::Replay(id) => get(app, &agent::Reference::of(caller, &id)).await,
    }
}

/// Whether deployments can have that mode.
pub(super) fn check_mode(mode: &str) -> Result<()> {
    if MODES.contains(&mode) {
        return Ok(());
    }
    Err(if RESERVED.contains(&mode) {
        Error::invalid(format!(
            "mode: {mode} is reserved for a later deployment model; use job or service"
        ))
    } else {
        Error::invalid(format!("mode: must be job or service, not {mode:?}"))
    })
}

fn refuse_taken(
    db: &nullspace_store::rusqlite::Connection,
    tenant_id: &str,
    name: &str,
) -> Result<()> {
    if rows::by_name(db, tenant_id, name)?.is_some() {
        return Err(Error::conflict(
            code::AGENT_DEPLOYMENT_NAME_CONFLICT,
            format!("another deployment has the name {name:?}"),
        )
        .with_action("choose another name, or deploy a new version of that deployment"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<String> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "name: must be 1 to {MAX_NAME} characters without control characters"
        )));
    }
    if name.starts_with(id::DEPLOYMENT) {
        return Err(Error::invalid(format!(
            "name: must not start with {}, which marks ids",
            id::DEPLOYMENT
        )));
    }
    Ok(name.to_owned())
}

fn check_description(text: Option<String>) -> Result<Option<String>> {
    match text {
        Some(text) if text.len() > MAX_DESCRIPTION => Err(Error::invalid(format!(
            "description: over {MAX_DESCRIPTION} bytes"
        ))),
        other => Ok(other),
    }
}

fn check_metadata(metadata: Map<String, Value>) -> Result<String> {
    let text = Value::Object(metadata).to_string();
    if text.len() > MAX_METADATA {
        return Err(Error::invalid(format!(
            "metadata: over {MAX_METADATA} bytes"
        )));
    }
    Ok(text)
}

/// One deployment by id (also a deleted one) or name.
///
/// # Errors
/// `agent_deployment_not_found`.
pub async fn get(app: &App, reference: &agent::Reference) -> Result<Deployment> {
    let reference = reference.to_owned();
    app.store
        .read(move |db| agent::find(db, &reference))
        .await
        .map(info)
}

/// A page of deployments, newest first; deleted ones only when `status` asks for them.
///
/// # Errors
/// `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    caller: &Caller,
    query: ListDeploymentsQuery,
) -> Result<CursorPage<Deployment>> {
    let limit = agent::limit(query.limit)?;
    let filter = rows::Filter {
        tenant_id: caller.tenant_id(),
        mode: agent::word("mode", query.mode, &MODES)?,
        status: agent::word("status", query.status, &["active", "paused", "deleted"])?,
        before: agent::cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let mut rows = agent::kept(app.store.read(move |db| rows::list(db, &filter)).await)?;
    let next_cursor = agent::cut(&mut rows, limit, |row| row.seq);
    Ok(CursorPage {
        items: rows.into_iter().map(info).collect(),
        next_cursor,
    })
}

/// Changes a deployment; what the request leaves out stays.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_version_not_found`, `agent_deployment_name_conflict`, `conflict` for
/// a version that is not ready, `invalid_request`.
pub async fn update(
    app: &App,
    reference: &agent::Reference,
    request: UpdateDeploymentRequest,
) -> Result<Deployment> {
    let name = request.name.as_deref().map(check_name).transpose()?;
    let description = check_description(request.description)?;
    let metadata = request.metadata.map(check_metadata).transpose()?;
    if request.status.as_deref() == Some("deleted") {
        return Err(Error::invalid("status: use DELETE to delete a deployment"));
    }
    let status = agent::word("status", request.status, &["active", "paused"])?;
    let reference = reference.to_owned();
    let row = app
        .store
        .write(move |tx| {
            let mut row = agent::find_live(tx, &reference)?;
            if let Some(name) = name.filter(|name| *name != row.name) {
                refuse_taken(tx, &row.tenant_id, &name)?;
                row.name = name;
            }
            if let Some(id) = request.active_version_id {
                activate(tx, &mut row, &id)?;
            }
            row.description = description.or(row.description);
            row.metadata = metadata.unwrap_or(row.metadata);
            row.status = status.unwrap_or(row.status);
            row.updated_at = time::now();
            rows::update(tx, &row)?;
            Ok::<_, Error>(row)
        })
        .await?;
    Ok(info(row))
}

/// Makes a ready version the one that runs when none is named, and the one before `superseded`. The
/// caller keeps the row.
pub(super) fn activate(
    tx: &nullspace_store::Tx<'_>,
    row: &mut DeploymentRow,
    version_id: &str,
) -> Result<()> {
    let version = versions::get(tx, version_id)?
        .filter(|version| version.deployment_id == row.id && version.deleted_at.is_none())
        .ok_or_else(|| super::agent_version::no_version(version_id))?;
    if !matches!(version.status.as_str(), "ready" | "superseded") {
        return Err(Error::conflict(
            code::CONFLICT,
            format!("version {version_id} is {}, not ready", version.status),
        ));
    }
    if let Some(before) = row.active_version_id.take().filter(|id| id != version_id)
        && let Some(mut before) = versions::get(tx, &before)?
    {
        before.status = "superseded".into();
        versions::update(tx, &before)?;
    }
    versions::update(
        tx,
        &versions::VersionRow {
            status: "ready".into(),
            ..version
        },
    )?;
    row.active_version_id = Some(version_id.to_owned());
    Ok(())
}

/// Deletes a deployment: its name is free at once, its runs are cancelled and its services stopped. Deleting
/// twice is fine.
///
/// # Errors
/// `agent_deployment_not_found`.
pub async fn delete(app: &AppState, reference: &agent::Reference) -> Result<()> {
    let reference = reference.to_owned();
    let (cancelled, stopped) = app
        .store
        .write(move |tx| {
            let mut row = agent::find(tx, &reference)?;
            if row.status == "deleted" {
                return Ok((Vec::new(), Vec::new()));
            }
            let now = time::now();
            row.status = "deleted".into();
            row.deleted_at = Some(now);
            row.updated_at = now;
            rows::update(tx, &row)?;
            let reason = Some("its deployment was deleted");
            let mut cancelled = Vec::new();
            for run in runs::unfinished(tx, Some(&row.id))? {
                // The backings of services end with them.
                if run.service_id.is_none() {
                    runs::request_cancel(tx, &run.id, reason, now)?;
                    cancelled.push(run.id);
                }
            }
            let mut stopped = Vec::new();
            for service in services::unfinished(tx, Some(&row.id))? {
                services::request_stop(tx, &service.id, reason, None, now)?;
                stopped.push(service);
            }
            Ok::<_, Error>((cancelled, stopped))
        })
        .await?;
    for service in stopped {
        agent_service::wake(app, &service.id, service.log_count);
    }
    for run in cancelled {
        if let Some(live) = app.agents.get(&run) {
            live.cancel.cancel();
        }
    }
    Ok(())
}

/// A recorded deployment as the wire shows it.
fn info(row: DeploymentRow) -> Deployment {
    Deployment {
        id: row.id,
        name: row.name,
        mode: row.mode,
        status: row.status,
        description: row.description,
        active_version_id: row.active_version_id,
        metadata: serde_json::from_str(&row.metadata).unwrap_or_default(),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        deleted_at: row.deleted_at.map(time::rfc3339),
    }
}

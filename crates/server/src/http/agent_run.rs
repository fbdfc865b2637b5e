//! `/v1/agent-deployments/{id}/runs`, their logs and outputs.

use axum::{Extension, body::Bytes, extract::State};
use http::{HeaderMap, StatusCode};
use nullspace_api::{
    ErrorBody,
    agent::{CancelRequest, CreateRunRequest, ListQuery, Logs, LogsQuery, Outputs, Run},
    page::CursorPage,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query, claim, parse};
use crate::{
    app::{AppState, Caller, agent::Reference, agent_log, agent_output, agent_run},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_run, list_runs))
        .routes(routes!(get_run))
        .routes(routes!(cancel_run))
        .routes(routes!(run_logs))
        .routes(routes!(run_outputs))
}

/// Routes that need no deployment.
pub(super) fn routes_by_id() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_run_by_id))
}

/// Get a run, whatever deployment it is of.
#[utoipa::path(get, path = "/{run_id}", tag = "agents", params(("run_id" = String, Path)),
    responses(
        (status = 200, body = Run),
        (status = 404, body = ErrorBody, description = "`agent_run_not_found`"),
    ))]
async fn get_run_by_id(
    State(app): State<AppState>,
    Path(run_id): Path<String>,
) -> Result<Json<Run>> {
    agent_run::by_id(&app, &run_id).await.map(Json)
}

/// Start a run. Answers at once; the run goes on by itself.
#[utoipa::path(post, path = "/{id}/runs", tag = "agents",
    params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same run")),
    request_body = CreateRunRequest,
    responses(
        (status = 201, body = Run),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`, `conflict`, `idempotency_conflict`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn create_run(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<CreateRunRequest>,
) -> Result<(StatusCode, Json<Run>)> {
    let claim = claim(
        &headers,
        &caller,
        format!("POST agents/{id}/runs"),
        &request,
    )?;
    let made =
        agent_run::create(&app, &caller, &Reference::of(&caller, &id), request, claim).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List runs, newest first.
#[utoipa::path(get, path = "/{id}/runs", tag = "agents", params(("id" = String, Path), ListQuery),
    responses(
        (status = 200, body = CursorPage<Run>),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn list_runs(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<CursorPage<Run>>> {
    agent_run::list(&app, &Reference::of(&caller, &id), query)
        .await
        .map(Json)
}

/// Get a run.
#[utoipa::path(get, path = "/{id}/runs/{run_id}", tag = "agents",
    params(("id" = String, Path), ("run_id" = String, Path)),
    responses(
        (status = 200, body = Run),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_run_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn get_run(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, run_id)): Path<(String, String)>,
) -> Result<Json<Run>> {
    agent_run::get(&app, &Reference::of(&caller, &id), &run_id)
        .await
        .map(Json)
}

/// Cancel a run; one that has ended stays as it is.
#[utoipa::path(post, path = "/{id}/runs/{run_id}/cancel", tag = "agents",
    params(("id" = String, Path), ("run_id" = String, Path)),
    request_body = CancelRequest,
    responses(
        (status = 200, body = Run),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_run_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn cancel_run(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, run_id)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<Run>> {
    // No body at all is no reason.
    let request = if body.is_empty() {
        CancelRequest::default()
    } else {
        parse(&body)?
    };
    agent_run::cancel(&app, &Reference::of(&caller, &id), &run_id, request.reason)
        .await
        .map(Json)
}

/// Read a run's log: output by line, and what happened. Follow it with the page's `next_cursor` and `wait_ms`.
#[utoipa::path(get, path = "/{id}/runs/{run_id}/logs", tag = "agents",
    params(("id" = String, Path), ("run_id" = String, Path), LogsQuery),
    responses(
        (status = 200, body = Logs),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_run_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn run_logs(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, run_id)): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Logs>> {
    agent_log::page(
        &app,
        &Reference::of(&caller, &id),
        agent_log::Of::Run(&run_id),
        query,
    )
    .await
    .map(Json)
}

/// Read what a run left behind. The bytes are at `GET /v1/machines/{machine_id}/file`, also when the machine is
/// gone.
#[utoipa::path(get, path = "/{id}/runs/{run_id}/outputs", tag = "agents",
    params(("id" = String, Path), ("run_id" = String, Path)),
    responses(
        (status = 200, body = Outputs),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_run_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn run_outputs(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, run_id)): Path<(String, String)>,
) -> Result<Json<Outputs>> {
    agent_output::get(&app, &Reference::of(&caller, &id), &run_id)
        .await
        .map(Json)
}

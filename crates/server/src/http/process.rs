//! `…/processes`.

use axum::extract::State;
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    process::{ProcessInfo, ProcessLogs, StdinRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, process},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_processes))
        .routes(routes!(kill_process))
        .routes(routes!(process_stdin))
        .routes(routes!(process_logs))
}

/// List the processes that were started through the API.
#[utoipa::path(get, path = "/{id}/processes", tag = "commands", params(("id" = String, Path)),
    responses((status = 200, body = Vec<ProcessInfo>), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn list_processes(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<ProcessInfo>>> {
    process::list(&app, &id).await.map(Json)
}

/// End a process and everything it started.
#[utoipa::path(post, path = "/{id}/processes/{pid}/kill", tag = "commands",
    params(("id" = String, Path), ("pid" = u32, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn kill_process(
    State(app): State<AppState>,
    Path((id, pid)): Path<(String, u32)>,
) -> Result<StatusCode> {
    process::kill(&app, &id, pid).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Write to a background process's standard input.
#[utoipa::path(post, path = "/{id}/processes/{pid}/stdin", tag = "commands",
    params(("id" = String, Path), ("pid" = u32, Path)),
    request_body = StdinRequest,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn process_stdin(
    State(app): State<AppState>,
    Path((id, pid)): Path<(String, u32)>,
    Json(request): Json<StdinRequest>,
) -> Result<StatusCode> {
    process::stdin(&app, &id, pid, request.data).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a process wrote so far.
#[utoipa::path(get, path = "/{id}/processes/{pid}/logs", tag = "commands",
    params(("id" = String, Path), ("pid" = u32, Path)),
    responses((status = 200, body = ProcessLogs), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn process_logs(
    State(app): State<AppState>,
    Path((id, pid)): Path<(String, u32)>,
) -> Result<Json<ProcessLogs>> {
    process::logs(&app, &id, pid).await.map(Json)
}

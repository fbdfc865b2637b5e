//! `…/code`: contexts, executions, runs, artifacts.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use nullspace_api::{
    ErrorBody,
    code::{
        CodeArtifact, CodeContext, CodeError, CodeRun, CodeRunStatus, ContextStatus,
        CreateCodeRunRequest, CreateContextRequest, ExecuteCodeRequest, ExecutionEvent,
        ListArtifactsQuery, ListCodeRunsQuery,
    },
    page::CursorPage,
};
use tokio::sync::mpsc;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, JsonBody, Path, Query};
use crate::{
    app::{
        AppState,
        code::{self, artifact, execution::Running, run},
    },
    error::Result,
};

/// The largest body with code in it: code of 1 MiB, however it is escaped, and variables.
const CODE_LIMIT: usize = 8 << 20;
/// A stream is never silent for longer: clients give up after 30 s.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Events that wait for a slow client.
const WAITING: usize = 16;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(execute_code))
        .routes(routes!(create_code_context, list_code_contexts))
        .routes(routes!(remove_code_context))
        .routes(routes!(restart_code_context))
        .routes(routes!(interrupt_code_context))
        .routes(routes!(create_code_run, list_code_runs))
        .routes(routes!(get_code_run))
        .routes(routes!(cancel_code_run))
        .routes(routes!(list_code_artifacts))
        .routes(routes!(get_code_artifact, delete_code_artifact))
        .routes(routes!(download_code_artifact))
        .routes(routes!(preview_code_artifact))
}

/// Run code and stream what it gives, as server-sent events: lines `data: {json}`. Closing the stream interrupts the code.
#[utoipa::path(post, path = "/{id}/code/execute", tag = "code", params(("id" = String, Path)),
    request_body = ExecuteCodeRequest,
    responses((status = 200, content_type = "text/event-stream", body = ExecutionEvent), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 429, body = ErrorBody),
        (status = 501, body = ErrorBody, description = "the machine's template has no kernels"), (status = 502, body = ErrorBody)))]
async fn execute_code(
    State(app): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<ExecuteCodeRequest, CODE_LIMIT>,
) -> Result<Response> {
    let running = code::execute(&app, &id, request).await?;
    let (sender, receiver) = mpsc::channel(WAITING);
    app.tasks.spawn(forward(app.clone(), running, sender));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, Body::from_stream(lines(receiver))).into_response())
}

/// Hands on events until the end, or until nobody listens: then the execution is dropped, which interrupts it.
async fn forward(app: AppState, mut running: Running, sender: mpsc::Sender<ExecutionEvent>) {
    loop {
        let event = tokio::select! {
            event = running.next_event() => event,
            () = sender.closed() => return,
            () = app.stopping.cancelled() => {
                let _ = sender.send(ExecutionEvent::Error(stopped())).await;
                return;
            }
        };
        let Some(event) = event else { return };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

fn stopped() -> CodeError {
    let value = "the server is going down; the code was interrupted";
    CodeError {
        name: "ServerStopped".into(),
        value: value.into(),
        traceback: format!("ServerStopped: {value}"),
    }
}

/// Events as lines, and a sign of life when there is none for a while.
fn lines(
    receiver: mpsc::Receiver<ExecutionEvent>,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = match tokio::time::timeout(HEARTBEAT, receiver.recv()).await {
            Ok(Some(event)) => {
                let mut line = b"data: ".to_vec();
                // An event is made of text and JSON alone.
                serde_json::to_writer(&mut line, &event).ok()?;
                line.extend_from_slice(b"\n\n");
                Bytes::from(line)
            }
            Ok(None) => return None,
            Err(_) => Bytes::from_static(b": still running\n\n"),
        };
        Some((Ok(line), receiver))
    })
}

/// Make a context: a kernel with variables of its own.
#[utoipa::path(post, path = "/{id}/code/contexts", tag = "code", params(("id" = String, Path)),
    request_body = CreateContextRequest,
    responses((status = 201, body = CodeContext), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 429, body = ErrorBody), (status = 501, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn create_code_context(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<CreateContextRequest>,
) -> Result<(StatusCode, Json<CodeContext>)> {
    let context = code::create(&app, &id, request).await?;
    Ok((StatusCode::CREATED, Json(context)))
}

/// List the contexts of a machine, oldest first.
#[utoipa::path(get, path = "/{id}/code/contexts", tag = "code", params(("id" = String, Path)),
    responses((status = 200, body = Vec<CodeContext>), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn list_code_contexts(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<CodeContext>>> {
    code::list(&app, &id).await.map(Json)
}

/// Remove a context and end its kernel.
#[utoipa::path(delete, path = "/{id}/code/contexts/{context_id}", tag = "code",
    params(("id" = String, Path), ("context_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn remove_code_context(
    State(app): State<AppState>,
    Path((id, context)): Path<(String, String)>,
) -> Result<StatusCode> {
    code::remove(&app, &id, &context).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End a context's kernel and begin with a fresh one.
#[utoipa::path(post, path = "/{id}/code/contexts/{context_id}/restart", tag = "code",
    params(("id" = String, Path), ("context_id" = String, Path)),
    responses((status = 200, body = ContextStatus), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn restart_code_context(
    State(app): State<AppState>,
    Path((id, context)): Path<(String, String)>,
) -> Result<Json<ContextStatus>> {
    code::restart(&app, &id, &context).await?;
    Ok(Json(ContextStatus {
        status: "restarted".into(),
    }))
}

/// Stop what runs in a context, as Ctrl-C does. A JavaScript kernel ends with that.
#[utoipa::path(post, path = "/{id}/code/contexts/{context_id}/interrupt", tag = "code",
    params(("id" = String, Path), ("context_id" = String, Path)),
    responses((status = 200, body = ContextStatus), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn interrupt_code_context(
    State(app): State<AppState>,
    Path((id, context)): Path<(String, String)>,
) -> Result<Json<ContextStatus>> {
    code::interrupt(&app, &id, &context).await?;
    Ok(Json(ContextStatus {
        status: "interrupted".into(),
    }))
}

/// Run code without waiting for it.
#[utoipa::path(post, path = "/{id}/code/runs", tag = "code", params(("id" = String, Path)),
    request_body = CreateCodeRunRequest,
    responses((status = 202, body = CodeRun), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 429, body = ErrorBody), (status = 501, body = ErrorBody), (status = 502, body = ErrorBody)))]
async fn create_code_run(
    State(app): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<CreateCodeRunRequest, CODE_LIMIT>,
) -> Result<(StatusCode, Json<CodeRun>)> {
    let run = run::create(&app, &id, request).await?;
    Ok((StatusCode::ACCEPTED, Json(run)))
}

/// List runs, newest first, for a week.
#[utoipa::path(get, path = "/{id}/code/runs", tag = "code", params(("id" = String, Path), ListCodeRunsQuery),
    responses((status = 200, body = CursorPage<CodeRun>), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_code_runs(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<ListCodeRunsQuery>,
) -> Result<Json<CursorPage<CodeRun>>> {
    run::list(&app, &id, query).await.map(Json)
}

/// Get a run.
#[utoipa::path(get, path = "/{id}/code/runs/{run_id}", tag = "code",
    params(("id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = CodeRun), (status = 404, body = ErrorBody)))]
async fn get_code_run(
    State(app): State<AppState>,
    Path((id, run_id)): Path<(String, String)>,
) -> Result<Json<CodeRun>> {
    run::get(&app, &id, &run_id).await.map(Json)
}

/// Cancel a run. 200 when it has ended with that or before, 202 when it is being interrupted.
#[utoipa::path(post, path = "/{id}/code/runs/{run_id}/cancel", tag = "code",
    params(("id" = String, Path), ("run_id" = String, Path)),
    responses((status = 200, body = CodeRun), (status = 202, body = CodeRun), (status = 404, body = ErrorBody)))]
async fn cancel_code_run(
    State(app): State<AppState>,
    Path((id, run_id)): Path<(String, String)>,
) -> Result<(StatusCode, Json<CodeRun>)> {
    let run = run::cancel(&app, &id, &run_id).await?;
    let status = match CodeRunStatus::has_ended(run.status) {
        true => StatusCode::OK,
        false => StatusCode::ACCEPTED,
    };
    Ok((status, Json(run)))
}

/// List artifacts, newest first, for a week; also of a machine that ended.
#[utoipa::path(get, path = "/{id}/code/artifacts", tag = "code", params(("id" = String, Path), ListArtifactsQuery),
    responses((status = 200, body = CursorPage<CodeArtifact>), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_code_artifacts(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<ListArtifactsQuery>,
) -> Result<Json<CursorPage<CodeArtifact>>> {
    artifact::list(&app, &id, query).await.map(Json)
}

/// Get an artifact.
#[utoipa::path(get, path = "/{id}/code/artifacts/{artifact_id}", tag = "code",
    params(("id" = String, Path), ("artifact_id" = String, Path)),
    responses((status = 200, body = CodeArtifact), (status = 404, body = ErrorBody)))]
async fn get_code_artifact(
    State(app): State<AppState>,
    Path((id, artifact)): Path<(String, String)>,
) -> Result<Json<CodeArtifact>> {
    artifact::get(&app, &id, &artifact).await.map(Json)
}

/// Remove an artifact.
#[utoipa::path(delete, path = "/{id}/code/artifacts/{artifact_id}", tag = "code",
    params(("id" = String, Path), ("artifact_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
async fn delete_code_artifact(
    State(app): State<AppState>,
    Path((id, artifact)): Path<(String, String)>,
) -> Result<StatusCode> {
    artifact::delete(&app, &id, &artifact).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The bytes of an artifact, as a file.
#[utoipa::path(get, path = "/{id}/code/artifacts/{artifact_id}/download", tag = "code",
    params(("id" = String, Path), ("artifact_id" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
async fn download_code_artifact(
    State(app): State<AppState>,
    Path((id, artifact)): Path<(String, String)>,
) -> Result<Response> {
    let (artifact, bytes) = artifact::read(&app, &id, &artifact).await?;
    Ok(shown(&artifact, "attachment", bytes))
}

/// The bytes of an artifact, to look at.
#[utoipa::path(get, path = "/{id}/code/artifacts/{artifact_id}/preview", tag = "code",
    params(("id" = String, Path), ("artifact_id" = String, Path)),
    responses((status = 200, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
async fn preview_code_artifact(
    State(app): State<AppState>,
    Path((id, artifact)): Path<(String, String)>,
) -> Result<Response> {
    let (artifact, bytes) = artifact::read(&app, &id, &artifact).await?;
    Ok(shown(&artifact, "inline", bytes))
}

/// A browser that shows it runs nothing of it with this server's rights.
fn shown(artifact: &CodeArtifact, how: &str, bytes: Vec<u8>) -> Response {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String = (artifact.name.chars())
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    let disposition = format!("{how}; filename=\"{name}\"");
    let headers = [
        (header::CONTENT_TYPE, artifact.mime_type.as_str()),
        (header::CONTENT_DISPOSITION, &disposition),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "sandbox allow-scripts"),
        (header::CACHE_CONTROL, "private, no-store"),
    ];
    (headers, bytes).into_response()
}

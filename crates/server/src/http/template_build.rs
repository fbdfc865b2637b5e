//! `/v1/templates/builds`: builds, what they say, and the files that they copy.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use nullspace_api::{
    ErrorBody,
    template::{PreflightRequest, PreflightResponse, TemplateInfo},
    template_build::{
        Build, BuildLogEntry, BuildLogsQuery, BuildPage, BuildQuery, BuildRequest, BuildSnapshot,
        CancelBuildRequest, ListBuildsQuery, PlanResponse, PromoteBuildRequest, RetryBuildRequest,
        ValidateResponse,
    },
};
use tokio::sync::mpsc;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body,
    extract::{Json, JsonBody, Path, Query},
};
use crate::{
    app::{
        AppState, Caller,
        template::{
            blob,
            build::{self, Follower},
        },
    },
    error::Result,
};

/// The largest body of a build or of a preflight: files may be inside, as base64.
const BUILD_LIMIT: usize = 64 << 20;
/// A stream is never silent for longer: clients give up after 30 s.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Entries that wait for a slow client.
const WAITING: usize = 64;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(preflight_template_blobs))
        .routes(routes!(put_template_blob))
        .routes(routes!(build_template))
        .routes(routes!(start_template_build))
        .routes(routes!(get_template_build))
        .routes(routes!(follow_template_build))
        .routes(routes!(cancel_template_build))
        .routes(routes!(retry_template_build))
        .routes(routes!(promote_template_build))
        .routes(routes!(validate_template))
        .routes(routes!(plan_template))
        .routes(routes!(list_template_builds))
        .routes(routes!(list_template_builds_by_id))
}

/// Ask which files of a build have to be sent. One result for each, in the same order.
#[utoipa::path(post, path = "/v1/templates/blobs/preflight", tag = "template builds", request_body = PreflightRequest,
    responses((status = 200, body = PreflightResponse), (status = 400, body = ErrorBody, description = "`file_upload_error`")))]
async fn preflight_template_blobs(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<PreflightRequest, BUILD_LIMIT>,
) -> Result<Json<PreflightResponse>> {
    let files = blob::preflight(&app, &caller, request.files).await?;
    Ok(Json(PreflightResponse { files }))
}

/// Send a file. The same again is fine.
#[utoipa::path(put, path = "/v1/templates/blobs/{blob_id}", tag = "template builds", params(("blob_id" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody, description = "`file_upload_error`: other bytes than announced"),
        (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn put_template_blob(
    State(app): State<AppState>,
    Path(blob_id): Path<String>,
    request: Request,
) -> Result<StatusCode> {
    blob::put(&app, &blob_id, body::stream(request.into_body())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Build a template and follow it: server-sent events, lines `data: {json}`. The build goes on when the stream is closed.
#[utoipa::path(post, path = "/v1/templates/build", tag = "template builds", request_body = BuildRequest,
    responses((status = 200, content_type = "text/event-stream", body = BuildLogEntry), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn build_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<BuildRequest, BUILD_LIMIT>,
) -> Result<Response> {
    let begun = build::begin(&app, request, &caller).await?;
    let follower = build::follow(&app, &begun.build_id, 0, true).await?;
    Ok(stream(&app, follower))
}

/// Begin to build a template.
#[utoipa::path(post, path = "/v1/templates/builds", tag = "template builds", request_body = BuildRequest,
    responses((status = 202, body = Build), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the name is taken")))]
async fn start_template_build(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<BuildRequest, BUILD_LIMIT>,
) -> Result<(StatusCode, Json<Build>)> {
    let begun = build::begin(&app, request, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

/// Get a build and what it said since an offset.
#[utoipa::path(get, path = "/v1/templates/builds/{build_id}", tag = "template builds",
    params(("build_id" = String, Path), BuildQuery),
    responses((status = 200, body = BuildSnapshot), (status = 404, body = ErrorBody)))]
async fn get_template_build(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<BuildQuery>,
) -> Result<Json<BuildSnapshot>> {
    let snapshot = build::snapshot(&app, &id, query.offset.unwrap_or(0)).await?;
    Ok(Json(snapshot))
}

/// Read what a build says, as server-sent events: lines `data: {json}`.
#[utoipa::path(get, path = "/v1/templates/builds/{build_id}/logs", tag = "template builds",
    params(("build_id" = String, Path), BuildLogsQuery),
    responses((status = 200, content_type = "text/event-stream", body = BuildLogEntry), (status = 404, body = ErrorBody)))]
async fn follow_template_build(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<BuildLogsQuery>,
) -> Result<Response> {
    let offset = query.offset.or(query.cursor).unwrap_or(0);
    let follower = build::follow(&app, &id, offset, query.follow.unwrap_or(false)).await?;
    Ok(stream(&app, follower))
}

/// Stop a build. One that is over stays as it is.
#[utoipa::path(post, path = "/v1/templates/builds/{build_id}/cancel", tag = "template builds",
    params(("build_id" = String, Path)), request_body = CancelBuildRequest,
    responses((status = 200, body = BuildSnapshot), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn cancel_template_build(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(request): Json<CancelBuildRequest>,
) -> Result<Json<BuildSnapshot>> {
    let snapshot = build::cancel(&app, &id, request.reason, &caller.key_id).await?;
    Ok(Json(snapshot))
}

/// Build again as it was asked for. Secrets are not kept, so they have to be sent again.
#[utoipa::path(post, path = "/v1/templates/builds/{build_id}/retry", tag = "template builds",
    params(("build_id" = String, Path)), request_body = RetryBuildRequest,
    responses((status = 202, body = Build), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "it is still at work")))]
async fn retry_template_build(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<RetryBuildRequest, BUILD_LIMIT>,
) -> Result<(StatusCode, Json<Build>)> {
    let begun = build::retry(&app, &id, request, &caller).await?;
    Ok((StatusCode::ACCEPTED, Json(begun)))
}

/// Make a tag mean a build.
#[utoipa::path(post, path = "/v1/templates/builds/{build_id}/promote", tag = "template builds",
    params(("build_id" = String, Path)), request_body = PromoteBuildRequest,
    responses((status = 200, body = TemplateInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "it is not ready")))]
async fn promote_template_build(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PromoteBuildRequest>,
) -> Result<Json<TemplateInfo>> {
    build::promote(&app, &id, request).await.map(Json)
}

/// Check a build without beginning it.
#[utoipa::path(post, path = "/v1/templates/validate", tag = "template builds", request_body = BuildRequest,
    responses((status = 200, body = ValidateResponse, description = "also for a build that is wrong"), (status = 400, body = ErrorBody)))]
async fn validate_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<BuildRequest, BUILD_LIMIT>,
) -> Json<ValidateResponse> {
    Json(build::validate(&app, &caller, request).await)
}

/// Say what a build would do.
#[utoipa::path(post, path = "/v1/templates/plan", tag = "template builds", request_body = BuildRequest,
    responses((status = 200, body = PlanResponse), (status = 400, body = ErrorBody)))]
async fn plan_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    JsonBody(request): JsonBody<BuildRequest, BUILD_LIMIT>,
) -> Result<Json<PlanResponse>> {
    build::plan(&app, &caller, request).await.map(Json)
}

/// List the builds of a template, newest first.
#[utoipa::path(get, path = "/v1/templates/refs/{ref}/builds", tag = "template builds",
    params(("ref" = String, Path), ListBuildsQuery),
    responses((status = 200, body = BuildPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_template_builds(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    Query(query): Query<ListBuildsQuery>,
) -> Result<Json<BuildPage>> {
    build::list(&app, &caller.tenant.id, &reference, query)
        .await
        .map(Json)
}

/// The same by the template's id.
#[utoipa::path(get, path = "/v1/templates/{id}/builds", tag = "template builds",
    params(("id" = String, Path), ListBuildsQuery),
    responses((status = 200, body = BuildPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_template_builds_by_id(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<ListBuildsQuery>,
) -> Result<Json<BuildPage>> {
    build::list(&app, &caller.tenant.id, &id, query)
        .await
        .map(Json)
}

/// What a build says, until its end or until nobody listens.
fn stream(app: &AppState, mut follower: Follower) -> Response {
    let (sender, receiver) = mpsc::channel(WAITING);
    let stopping = app.stopping.clone();
    app.tasks.spawn(async move {
        loop {
            let entry = tokio::select! {
                entry = follower.next() => entry,
                () = sender.closed() => return,
                () = stopping.cancelled() => return,
            };
            match entry {
                Ok(Some(entry)) => {
                    if sender.send(entry).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(context = ?error.context, "the log of a build could not be read");
                    return;
                }
            }
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Body::from_stream(lines(receiver))).into_response()
}

/// Entries as lines, and a sign of life when there is none for a while.
fn lines(
    receiver: mpsc::Receiver<BuildLogEntry>,
) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let line = match tokio::time::timeout(HEARTBEAT, receiver.recv()).await {
            Ok(Some(entry)) => {
                let mut line = b"data: ".to_vec();
                serde_json::to_writer(&mut line, &entry).ok()?;
                line.extend_from_slice(b"\n\n");
                Bytes::from(line)
            }
            Ok(None) => return None,
            Err(_) => Bytes::from_static(b": still building\n\n"),
        };
        Some((Ok(line), receiver))
    })
}

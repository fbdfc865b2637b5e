//! `/v1/agent-deployments/{id}/versions`, and the upload of their bundles.

use axum::{
    Extension,
    extract::{Request, State},
};
use http::{HeaderMap, StatusCode, header};
use nullspace_api::{
    ErrorBody,
    agent::{CreateVersionRequest, ListQuery, Version},
    page::CursorPage,
};
use serde_json::json;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body,
    extract::{Json, JsonBody, Path, Query, claim},
};
use crate::{
    app::{
        AppState, Caller,
        agent::Reference,
        agent_version::{self, Upload},
    },
    error::{Error, Result},
};

/// The largest request for a version: a manifest of 100,000 files and some.
const MAX_MANIFEST: usize = 128 << 20;
/// The header with the digest of an uploaded bundle.
const DIGEST: &str = "x-nullspace-bundle-digest";

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_version, list_versions))
        .routes(routes!(get_version, delete_version))
        .routes(routes!(upload_bundle))
}

/// Create a version. Its bundle is uploaded next.
#[utoipa::path(post, path = "/{id}/versions", tag = "agents",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header)),
    request_body = CreateVersionRequest,
    responses(
        (status = 201, body = Version),
        (status = 400, body = ErrorBody, description = "`invalid_request`, `bundle_digest_mismatch`, `bundle_invalid`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `template_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`, `idempotency_conflict`"),
        (status = 413, body = ErrorBody, description = "`body_too_large`"),
        (status = 501, body = ErrorBody, description = "`not_implemented`"),
    ))]
async fn create_version(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<CreateVersionRequest, MAX_MANIFEST>,
) -> Result<(StatusCode, Json<Version>)> {
    // The digest stands for the manifest, which was made at another time with every attempt.
    let about = json!([request.bundle_digest, request.config, request.cache_policy]);
    let claim = claim(
        &headers,
        &caller,
        format!("POST agents/{id}/versions"),
        &about,
    )?;
    let made = agent_version::create(&app, &Reference::of(&caller, &id), request, claim).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List versions, newest first, their manifests without entries.
#[utoipa::path(get, path = "/{id}/versions", tag = "agents", params(("id" = String, Path), ListQuery),
    responses(
        (status = 200, body = CursorPage<Version>),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
    ))]
async fn list_versions(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<CursorPage<Version>>> {
    agent_version::list(&app, &Reference::of(&caller, &id), query)
        .await
        .map(Json)
}

/// Get a version with its whole manifest.
#[utoipa::path(get, path = "/{id}/versions/{version_id}", tag = "agents",
    params(("id" = String, Path), ("version_id" = String, Path)),
    responses(
        (status = 200, body = Version),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
    ))]
async fn get_version(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, version_id)): Path<(String, String)>,
) -> Result<Json<Version>> {
    agent_version::get(&app, &Reference::of(&caller, &id), &version_id)
        .await
        .map(Json)
}

/// Delete a version. Not the active one, nor one that a run or a service has.
#[utoipa::path(delete, path = "/{id}/versions/{version_id}", tag = "agents",
    params(("id" = String, Path), ("version_id" = String, Path)),
    responses(
        (status = 204),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
        (status = 409, body = ErrorBody, description = "`conflict`"),
    ))]
async fn delete_version(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, version_id)): Path<(String, String)>,
) -> Result<StatusCode> {
    agent_version::delete(&app, &Reference::of(&caller, &id), &version_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Upload a version's bundle: an uncompressed tar of what the manifest includes. Checked while it arrives; when
/// all of it is right the version is ready and the active one.
#[utoipa::path(put, path = "/{id}/versions/{version_id}/bundle", tag = "agents",
    params(("id" = String, Path), ("version_id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header),
        ("X-Nullspace-Bundle-Digest" = String, Header, description = "64 hex digits: the digest of the version")),
    request_body(content_type = "application/x-tar"),
    responses(
        (status = 200, body = Version),
        (status = 400, body = ErrorBody, description = "`invalid_request`, `bundle_digest_mismatch`, `bundle_invalid`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
        (status = 409, body = ErrorBody, description = "`bundle_conflict`, `idempotency_conflict`"),
        (status = 413, body = ErrorBody, description = "`body_too_large`"),
        (status = 507, body = ErrorBody, description = "`insufficient_storage`"),
    ))]
async fn upload_bundle(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, version_id)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Version>> {
    let headers = request.headers();
    let text = |name: &str| -> Result<Option<String>> {
        headers
            .get(name)
            .map(|value| value.to_str().map(str::to_owned))
            .transpose()
            .map_err(|_| Error::invalid(format!("{name}: must be visible ASCII")))
    };
    let upload = Upload {
        digest: text(DIGEST)?,
        length: text(header::CONTENT_LENGTH.as_str())?.and_then(|length| length.parse().ok()),
    };
    let claim = claim(
        headers,
        &caller,
        format!("PUT agents/{id}/versions/{version_id}/bundle"),
        &upload.digest,
    )?;
    let body = Box::pin(body::stream(request.into_body()));
    agent_version::upload(
        &app,
        &Reference::of(&caller, &id),
        &version_id,
        upload,
        claim,
        body,
    )
    .await
    .map(Json)
}

//! `/v1/keys`: the API keys of the caller's tenant.

use axum::{Extension, extract::State};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    key::{CreateKeyRequest, CreatedKey, DefaultKey, KeyInfo, RevokedKey},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, Caller, key},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_key, list_keys))
        .routes(routes!(create_default_key))
        .routes(routes!(revoke_key))
        .routes(routes!(rotate_key))
}

/// Makes a key of the caller's tenant, which may do no more than the one that asks. It is told this once. Needs the scope
/// `keys:write`.
#[utoipa::path(post, path = "/v1/keys", tag = "keys", request_body = CreateKeyRequest,
    responses(
        (status = 201, body = CreatedKey),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn create_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CreateKeyRequest>,
) -> Result<(StatusCode, Json<CreatedKey>)> {
    let tenant = caller.tenant.id.clone();
    let made = key::create(&app, &caller, &tenant, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// The key of the name `default`, made if there is none that is let in: only then it is told. Needs the scope `keys:write`.
#[utoipa::path(post, path = "/v1/keys/default", tag = "keys",
    responses(
        (status = 200, body = DefaultKey, description = "It was there"),
        (status = 201, body = DefaultKey, description = "It was made"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn create_default_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<(StatusCode, Json<DefaultKey>)> {
    let key = key::default_key(&app, &caller).await?;
    let status = match key.created {
        true => StatusCode::CREATED,
        false => StatusCode::OK,
    };
    Ok((status, Json(key)))
}

/// The keys of the caller's tenant, newest first, without the keys themselves. Needs the scope `keys:read`.
#[utoipa::path(get, path = "/v1/keys", tag = "keys",
    responses((status = 200, body = Vec<KeyInfo>), (status = 403, body = ErrorBody, description = "`permission_denied`")))]
async fn list_keys(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<KeyInfo>>> {
    key::list(&app, &caller.tenant.id).await.map(Json)
}

/// Takes a key back: it is refused from now on. Needs the scope `keys:write`.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses(
        (status = 200, body = RevokedKey),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`key_not_found`"),
        (status = 409, body = ErrorBody, description = "`conflict`: it is the key that asks"),
    ))]
async fn revoke_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<RevokedKey>> {
    key::revoke(&app, &caller, &id).await?;
    Ok(Json(RevokedKey { success: true }))
}

/// Makes a key that replaces another with the same name and scope. The old one is let in for 24 hours more. Needs the scope
/// `keys:write`.
#[utoipa::path(post, path = "/v1/keys/{id}/rotate", tag = "keys", params(("id" = String, Path)),
    responses(
        (status = 201, body = CreatedKey),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`key_not_found`"),
        (status = 409, body = ErrorBody, description = "`conflict`: it is not let in any more"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn rotate_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<CreatedKey>)> {
    let made = key::rotate(&app, &caller, &id).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

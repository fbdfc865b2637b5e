//! `/v1/tenants` for the operator, and `/v1/tenant` for everybody: who shares nothing with others, and what each may have.

use axum::{Extension, extract::State};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    key::{CreateKeyRequest, CreatedKey, KeyInfo},
    tenant::{CreateTenantRequest, TenantInfo, TenantList, UpdateTenantRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, Caller, key, tenant},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(get_own_tenant))
        .routes(routes!(create_tenant, list_tenants))
        .routes(routes!(get_tenant, update_tenant, delete_tenant))
        .routes(routes!(create_tenant_key, list_tenant_keys))
}

/// The tenant of the key that asks: what it may have and what it has. Any key may ask.
#[utoipa::path(get, path = "/v1/tenant", tag = "tenants", responses((status = 200, body = TenantInfo)))]
async fn get_own_tenant(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<TenantInfo>> {
    tenant::get(&app, &caller.tenant.id).await.map(Json)
}

/// Makes a tenant. It has no key yet. Needs the scope `server:write`.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = CreateTenantRequest,
    responses(
        (status = 201, body = TenantInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 409, body = ErrorBody, description = "`tenant_conflict`: the name is taken"),
    ))]
async fn create_tenant(
    State(app): State<AppState>,
    Json(request): Json<CreateTenantRequest>,
) -> Result<(StatusCode, Json<TenantInfo>)> {
    let made = tenant::create(&app, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Every tenant, oldest first. Needs the scope `server:read`.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants",
    responses((status = 200, body = TenantList), (status = 403, body = ErrorBody, description = "`permission_denied`")))]
async fn list_tenants(State(app): State<AppState>) -> Result<Json<TenantList>> {
    let items = tenant::list(&app).await?;
    Ok(Json(TenantList { items }))
}

/// One tenant, by id or name. Needs the scope `server:read`.
#[utoipa::path(get, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses(
        (status = 200, body = TenantInfo),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`tenant_not_found`"),
    ))]
async fn get_tenant(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<TenantInfo>> {
    tenant::get(&app, &id).await.map(Json)
}

/// Changes what a tenant may have, or has its keys refused. What runs goes on. Needs the scope `server:write`.
#[utoipa::path(patch, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    request_body = UpdateTenantRequest,
    responses(
        (status = 200, body = TenantInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`tenant_not_found`"),
    ))]
async fn update_tenant(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<UpdateTenantRequest>,
) -> Result<Json<TenantInfo>> {
    tenant::update(&app, &id, request).await.map(Json)
}

/// Removes a tenant that has nothing any more; its keys are refused. Needs the scope `server:write`.
#[utoipa::path(delete, path = "/v1/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 400, body = ErrorBody, description = "`invalid_request`: the first tenant stays"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`tenant_not_found`"),
        (status = 409, body = ErrorBody, description = "`tenant_conflict`: it still has something"),
    ))]
async fn delete_tenant(State(app): State<AppState>, Path(id): Path<String>) -> Result<StatusCode> {
    tenant::delete(&app, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a key of a tenant: its first one, say. Needs the scope `server:write`.
#[utoipa::path(post, path = "/v1/tenants/{id}/keys", tag = "tenants", params(("id" = String, Path)),
    request_body = CreateKeyRequest,
    responses(
        (status = 201, body = CreatedKey),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`tenant_not_found`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn create_tenant_key(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(request): Json<CreateKeyRequest>,
) -> Result<(StatusCode, Json<CreatedKey>)> {
    let made = key::create(&app, &caller, &id, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// The keys of a tenant, newest first, without the keys themselves. Needs the scope `server:read`.
#[utoipa::path(get, path = "/v1/tenants/{id}/keys", tag = "tenants", params(("id" = String, Path)),
    responses(
        (status = 200, body = Vec<KeyInfo>),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
        (status = 404, body = ErrorBody, description = "`tenant_not_found`"),
    ))]
async fn list_tenant_keys(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<KeyInfo>>> {
    key::list(&app, &id).await.map(Json)
}

//! `/v1/template-warm-pools`.

use axum::{Extension, extract::RawQuery, extract::State};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    pool::{CreatePoolRequest, ListPoolsQuery, PoolCounts, PoolInfo, PoolList, UpdatePoolRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, Caller, pool},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_warm_pool, list_warm_pools))
        .routes(routes!(get_warm_pool, update_warm_pool, delete_warm_pool))
        .routes(routes!(enable_warm_pool))
        .routes(routes!(disable_warm_pool))
        .routes(routes!(drain_warm_pool))
        .routes(routes!(reconcile_warm_pool))
        .routes(routes!(get_warm_pool_status))
}

/// Create a warm pool. Its machines are made from now on.
#[utoipa::path(post, path = "/v1/template-warm-pools", tag = "warm pools", request_body = CreatePoolRequest,
    responses(
        (status = 201, body = PoolInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`template_not_found`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn create_warm_pool(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CreatePoolRequest>,
) -> Result<(StatusCode, Json<PoolInfo>)> {
    let made = pool::create(&app, request, &caller).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List warm pools, newest first; deleted ones only when `state` asks for them.
#[utoipa::path(get, path = "/v1/template-warm-pools", tag = "warm pools", params(ListPoolsQuery),
    responses((status = 200, body = PoolList), (status = 400, body = ErrorBody, description = "`invalid_request`")))]
async fn list_warm_pools(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Result<Json<PoolList>> {
    let query = read(query.as_deref().unwrap_or_default())?;
    let items = pool::list(&app, &caller, &query)?;
    Ok(Json(PoolList { items }))
}

/// Get a warm pool.
#[utoipa::path(get, path = "/v1/template-warm-pools/{id}", tag = "warm pools", params(("id" = String, Path)),
    responses((status = 200, body = PoolInfo), (status = 404, body = ErrorBody, description = "`warm_pool_not_found`")))]
async fn get_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::get(&app, &id).map(Json)
}

/// Change a warm pool. A template that means something else than before bumps `rollout_generation`.
#[utoipa::path(patch, path = "/v1/template-warm-pools/{id}", tag = "warm pools", params(("id" = String, Path)),
    request_body = UpdatePoolRequest,
    responses(
        (status = 200, body = PoolInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`warm_pool_not_found`, `template_not_found`"),
        (status = 409, body = ErrorBody, description = "`warm_pool_conflict`: it is deleted"),
    ))]
async fn update_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<UpdatePoolRequest>,
) -> Result<Json<PoolInfo>> {
    pool::update(&app, &id, request).await.map(Json)
}

/// Delete a warm pool. Its machines that wait are ended; those that were handed out go on.
#[utoipa::path(delete, path = "/v1/template-warm-pools/{id}", tag = "warm pools", params(("id" = String, Path)),
    responses((status = 200, body = PoolInfo), (status = 404, body = ErrorBody, description = "`warm_pool_not_found`")))]
async fn delete_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::delete(&app, &id).await.map(Json)
}

/// Have a warm pool make and hand out machines.
#[utoipa::path(post, path = "/v1/template-warm-pools/{id}/enable", tag = "warm pools", params(("id" = String, Path)),
    responses(
        (status = 200, body = PoolInfo),
        (status = 404, body = ErrorBody, description = "`warm_pool_not_found`"),
        (status = 409, body = ErrorBody, description = "`warm_pool_conflict`: it is deleted"),
    ))]
async fn enable_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::enable(&app, &id).await.map(Json)
}

/// Have it hand out none, and end those that wait.
#[utoipa::path(post, path = "/v1/template-warm-pools/{id}/disable", tag = "warm pools", params(("id" = String, Path)),
    responses(
        (status = 200, body = PoolInfo),
        (status = 404, body = ErrorBody, description = "`warm_pool_not_found`"),
        (status = 409, body = ErrorBody, description = "`warm_pool_conflict`: it is deleted"),
    ))]
async fn disable_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::disable(&app, &id).await.map(Json)
}

/// Empty a warm pool. Once it is empty it is disabled.
#[utoipa::path(post, path = "/v1/template-warm-pools/{id}/drain", tag = "warm pools", params(("id" = String, Path)),
    responses(
        (status = 200, body = PoolInfo),
        (status = 404, body = ErrorBody, description = "`warm_pool_not_found`"),
        (status = 409, body = ErrorBody, description = "`warm_pool_conflict`: it is deleted"),
    ))]
async fn drain_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::drain(&app, &id).await.map(Json)
}

/// Look at a warm pool now, and do what is to be done.
#[utoipa::path(post, path = "/v1/template-warm-pools/{id}/reconcile", tag = "warm pools", params(("id" = String, Path)),
    responses((status = 200, body = PoolInfo), (status = 404, body = ErrorBody, description = "`warm_pool_not_found`")))]
async fn reconcile_warm_pool(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolInfo>> {
    pool::reconcile(&app, &id).await.map(Json)
}

/// How many machines a warm pool has.
#[utoipa::path(get, path = "/v1/template-warm-pools/{id}/status", tag = "warm pools", params(("id" = String, Path)),
    responses((status = 200, body = PoolCounts), (status = 404, body = ErrorBody, description = "`warm_pool_not_found`")))]
async fn get_warm_pool_status(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<PoolCounts>> {
    pool::counts(&app, &id).map(Json)
}

/// A query in which `label` may come several times.
fn read(text: &str) -> Result<ListPoolsQuery> {
    let bad = |why: String| Error::invalid(format!("query: {why}"));
    let pairs: Vec<(String, String)> =
        serde_urlencoded::from_str(text).map_err(|error| bad(error.to_string()))?;
    let mut query = ListPoolsQuery::default();
    for (name, value) in pairs {
        match name.as_str() {
            "template" => query.template = Some(value),
            "state" => query.state = Some(value),
            "status" => query.status = Some(value),
            "label" => query.label.push(value),
            "limit" => {
                let limit = value.parse();
                query.limit = Some(limit.map_err(|_| bad("limit: not a number".to_owned()))?);
            }
            _ => {}
        }
    }
    Ok(query)
}

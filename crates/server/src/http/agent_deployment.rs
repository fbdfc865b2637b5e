//! `/v1/agent-deployments`: create, list, get, change, delete.

use axum::{Extension, extract::State};
use http::{HeaderMap, StatusCode};
use nullspace_api::{
    ErrorBody,
    agent::{CreateDeploymentRequest, Deployment, ListDeploymentsQuery, UpdateDeploymentRequest},
    page::CursorPage,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query, claim};
use crate::{
    app::{AppState, Caller, agent::Reference, agent_deployment},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_deployment, list_deployments))
        .routes(routes!(
            get_deployment,
            update_deployment,
            delete_deployment
        ))
}

/// Create a deployment.
#[utoipa::path(post, path = "/", tag = "agents",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same deployment")),
    request_body = CreateDeploymentRequest,
    responses(
        (status = 201, body = Deployment),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 409, body = ErrorBody, description = "`agent_deployment_name_conflict`, `idempotency_conflict`"),
    ))]
async fn create_deployment(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Json(request): Json<CreateDeploymentRequest>,
) -> Result<(StatusCode, Json<Deployment>)> {
    let claim = claim(&headers, &caller, "POST agents".to_owned(), &request)?;
    let made = agent_deployment::create(&app, &caller, request, claim).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List deployments, newest first; deleted ones only when `status` asks for them.
#[utoipa::path(get, path = "/", tag = "agents", params(ListDeploymentsQuery),
    responses(
        (status = 200, body = CursorPage<Deployment>),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
    ))]
async fn list_deployments(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListDeploymentsQuery>,
) -> Result<Json<CursorPage<Deployment>>> {
    agent_deployment::list(&app, &caller, query).await.map(Json)
}

/// Get a deployment by id or name. A deleted one is found by its id.
#[utoipa::path(get, path = "/{id}", tag = "agents", params(("id" = String, Path)),
    responses(
        (status = 200, body = Deployment),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
    ))]
async fn get_deployment(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Deployment>> {
    agent_deployment::get(&app, &Reference::of(&caller, &id))
        .await
        .map(Json)
}

/// Change a deployment; what the request leaves out stays as it is.
#[utoipa::path(patch, path = "/{id}", tag = "agents", params(("id" = String, Path)),
    request_body = UpdateDeploymentRequest,
    responses(
        (status = 200, body = Deployment),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_deployment_name_conflict`, `conflict`"),
    ))]
async fn update_deployment(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(request): Json<UpdateDeploymentRequest>,
) -> Result<Json<Deployment>> {
    agent_deployment::update(&app, &Reference::of(&caller, &id), request)
        .await
        .map(Json)
}

/// Delete a deployment: its name is free, its runs are cancelled. Deleting one that is deleted is fine.
#[utoipa::path(delete, path = "/{id}", tag = "agents", params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
    ))]
async fn delete_deployment(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    agent_deployment::delete(&app, &Reference::of(&caller, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

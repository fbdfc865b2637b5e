//! `/v1/agent-deployments/{id}/services`: there are none yet, and this says so.

use axum::extract::State;
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    agent::{CreateServiceRequest, ListQuery, Service},
    error::code,
    page::CursorPage,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query};
use crate::{
    app::{AppState, agent_service},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(start_service, list_services))
        .routes(routes!(get_service))
        .routes(routes!(stop_service))
        .routes(routes!(restart_service))
        .routes(routes!(service_logs))
        .routes(routes!(service_url))
}

/// Start a service. Not there yet.
#[utoipa::path(post, path = "/{id}/services", tag = "agents", params(("id" = String, Path)),
    request_body = CreateServiceRequest,
    responses(
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
        (status = 501, body = ErrorBody, description = "`not_implemented`"),
    ))]
async fn start_service(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(_request): Json<CreateServiceRequest>,
) -> Result<StatusCode> {
    agent_service::require_service(&app, &id).await?;
    Err(Error::not_implemented("starting services")
        .with_action("deploy the project with mode job to run it once"))
}

/// List services: there are none yet.
#[utoipa::path(get, path = "/{id}/services", tag = "agents", params(("id" = String, Path), ListQuery),
    responses(
        (status = 200, body = CursorPage<Service>),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn list_services(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(_query): Query<ListQuery>,
) -> Result<Json<CursorPage<Service>>> {
    agent_service::require_service(&app, &id).await?;
    Ok(Json(CursorPage {
        items: Vec::new(),
        next_cursor: None,
    }))
}

macro_rules! no_service {
    ($(#[doc = $doc:literal])* $name:ident, $method:ident, $path:literal) => {
        $(#[doc = $doc])*
        #[utoipa::path($method, path = $path, tag = "agents",
            params(("id" = String, Path), ("service_id" = String, Path)),
            responses((status = 404, body = ErrorBody,
                description = "`agent_deployment_not_found`, `agent_service_not_found`")))]
        async fn $name(
            State(app): State<AppState>,
            Path((id, service_id)): Path<(String, String)>,
        ) -> Result<StatusCode> {
            agent_service::require_service(&app, &id).await?;
            Err(Error::not_found(
                code::AGENT_SERVICE_NOT_FOUND,
                format!("no agent service {service_id:?}"),
            ))
        }
    };
}

no_service!(
    /// Get a service.
    get_service, get, "/{id}/services/{service_id}"
);
no_service!(
    /// Stop a service.
    stop_service, post, "/{id}/services/{service_id}/stop"
);
no_service!(
    /// Restart a service.
    restart_service, post, "/{id}/services/{service_id}/restart"
);
no_service!(
    /// Read a service's log.
    service_logs, get, "/{id}/services/{service_id}/logs"
);
no_service!(
    /// Get a service's address.
    service_url, get, "/{id}/services/{service_id}/url"
);

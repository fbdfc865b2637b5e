//! `…/ssh-access`.

use axum::{Extension, extract::State};
use http::HeaderMap;
use nullspace_api::{
    ErrorBody,
    ssh::{SshAccess, SshAccessRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, Caller, ssh},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(ssh_access))
}

/// Let a key log in over SSH.
///
/// The certificate is good for this machine and this user alone. The private key stays with the caller.
#[utoipa::path(post, path = "/{id}/ssh-access", tag = "ssh", params(("id" = String, Path)),
    request_body = SshAccessRequest,
    responses(
        (status = 200, body = SshAccess),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn ssh_access(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<SshAccessRequest>,
) -> Result<Json<SshAccess>> {
    let host = super::agent_service::host(&headers);
    ssh::grant(&app, &caller, &id, request, host)
        .await
        .map(Json)
}

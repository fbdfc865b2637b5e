//! `…/egress`.

use axum::{Extension, extract::State};
use nullspace_api::{
    ErrorBody, Noun,
    egress::{UpdateEgressRequest, UpdateEgressResponse},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, Caller, egress},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(update_egress))
}

/// Replace the rules for traffic out of a running machine.
///
/// As a whole, and for open connections too: those that the new rules do not allow end. Recorded first, so that a
/// server that is killed half-way finishes it. When the rules cannot be put in force the machine reaches nothing
/// until a later request succeeds.
#[utoipa::path(patch, path = "/{id}/egress", tag = "machines", params(("id" = String, Path)),
    request_body = UpdateEgressRequest,
    responses(
        (status = 200, body = UpdateEgressResponse),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
    ))]
async fn update_egress(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<UpdateEgressRequest>,
) -> Result<Json<UpdateEgressResponse>> {
    let egress = egress::set(&app, &id, &request.egress, Some(&caller.key_id)).await?;
    let (machine_id, sandbox_id) = match noun {
        Noun::Machine => (Some(id), None),
        Noun::Sandbox => (None, Some(id)),
    };
    Ok(Json(UpdateEgressResponse {
        machine_id,
        sandbox_id,
        egress,
    }))
}

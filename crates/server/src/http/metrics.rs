//! `…/metrics`: what a machine uses.

use axum::extract::State;
use nullspace_api::{ErrorBody, metrics::MachineMetrics};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, metrics},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(get_metrics))
}

/// What a machine uses now: one sample. The first one takes a fifth of a second, because a load is between two readings.
#[utoipa::path(get, path = "/{id}/metrics", tag = "monitoring", params(("id" = String, Path)),
    responses(
        (status = 200, body = Vec<MachineMetrics>),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
    ))]
async fn get_metrics(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<MachineMetrics>>> {
    Ok(Json(vec![metrics::current(&app, &id).await?]))
}

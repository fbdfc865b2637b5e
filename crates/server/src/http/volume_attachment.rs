//! `/v1/machines/{id}/volumes`: the volumes of a machine.

use axum::{Extension, extract::State, response::IntoResponse};
use http::StatusCode;
use nullspace_api::{ErrorBody, machine::VolumeMount, volume::VolumeAttachment};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{
        AppState, Caller, machine,
        volume::{
            self,
            mount::{self, Change},
        },
    },
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_machine_volumes, attach_volume))
        .routes(routes!(detach_volume))
        .routes(routes!(check_volume))
        .routes(routes!(remount_volume))
}

/// List the volumes of a machine, in the order in which they were asked for.
#[utoipa::path(get, path = "/{id}/volumes", tag = "volumes", params(("id" = String, Path)),
    responses((status = 200, body = Vec<VolumeAttachment>), (status = 404, body = ErrorBody, description = "`machine_not_found`")))]
async fn list_machine_volumes(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<VolumeAttachment>>> {
    let row = machine::get(&app, &id).await?;
    Ok(Json(row.volumes.iter().map(volume::attachment).collect()))
}

/// Mount a volume in a machine that runs. When this answers, every process of the machine sees it.
#[utoipa::path(post, path = "/{id}/volumes", tag = "volumes", params(("id" = String, Path)), request_body = VolumeMount,
    responses(
        (status = 201, body = VolumeAttachment),
        (status = 400, body = ErrorBody, description = "`volume_invalid_mount_path`, `volume_overlapping_mounts`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`, `not_found` (the volume)"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`volume_limit_exceeded`"),
        (status = 501, body = ErrorBody, description = "`volume_backend_capability_unsupported`"),
        (status = 507, body = ErrorBody, description = "`volume_quota_exceeded`"),
    ))]
async fn attach_volume(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(request): Json<VolumeMount>,
) -> Result<impl IntoResponse> {
    caller.must(mount::need(&request))?;
    let row = mount::attach(&app, &id, &request).await?;
    Ok((StatusCode::CREATED, Json(volume::attachment(&row))))
}

/// Take a volume out of a machine that runs. When this answers nothing in it can be opened there; what is open stays open
/// until it is closed.
#[utoipa::path(delete, path = "/{id}/volumes/{attachment_id}", tag = "volumes",
    params(("id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = VolumeAttachment), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 501, body = ErrorBody)))]
async fn detach_volume(
    State(app): State<AppState>,
    Path((id, attachment_id)): Path<(String, String)>,
) -> Result<Json<VolumeAttachment>> {
    change(&app, &id, Change::Detach(attachment_id)).await
}

/// Look whether a volume is where it should be in a machine.
#[utoipa::path(get, path = "/{id}/volumes/{attachment_id}/health", tag = "volumes",
    params(("id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = VolumeAttachment), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn check_volume(
    State(app): State<AppState>,
    Path((id, attachment_id)): Path<(String, String)>,
) -> Result<Json<VolumeAttachment>> {
    change(&app, &id, Change::Check(attachment_id)).await
}

/// Take a volume out of a machine and put it back in its place.
#[utoipa::path(post, path = "/{id}/volumes/{attachment_id}/remount", tag = "volumes",
    params(("id" = String, Path), ("attachment_id" = String, Path)),
    responses((status = 200, body = VolumeAttachment), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 501, body = ErrorBody)))]
async fn remount_volume(
    State(app): State<AppState>,
    Path((id, attachment_id)): Path<(String, String)>,
) -> Result<Json<VolumeAttachment>> {
    change(&app, &id, Change::Remount(attachment_id)).await
}

async fn change(app: &AppState, id: &str, change: Change) -> Result<Json<VolumeAttachment>> {
    let row = machine::change_volume(app, id, change).await?;
    Ok(Json(volume::attachment(&row)))
}

//! `/v1/snapshots`, and under a machine: hibernating, resuming, forking, keeping its state.

use axum::{Extension, extract::State};
use http::{HeaderMap, StatusCode};
use nullspace_api::{
    ErrorBody, Noun,
    machine::MachineInfo,
    snapshot::{ListSnapshotsQuery, SnapshotInfo},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query, claim};
use crate::{
    app::{
        AppState, Caller, machine, preview,
        snapshot::{self, By},
    },
    error::Result,
};

pub(super) fn machine_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_snapshot))
        .routes(routes!(hibernate))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(fork))
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_snapshots))
        .routes(routes!(get_snapshot, delete_snapshot))
}

fn by(caller: &Caller, noun: Noun) -> By {
    By {
        key_id: Some(caller.key_id.to_string()),
        noun,
    }
}

/// Keep a running machine's memory and files, for machines that are made of it with `snapshot_id`. The machine goes on.
///
/// Its volumes are not copied: they are recorded, and a machine of the snapshot mounts them, or others that it names.
#[utoipa::path(post, path = "/{id}/snapshots", tag = "snapshots",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same snapshot")),
    responses((status = 201, body = SnapshotInfo), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It does not run, or a volume of it is not mounted (`volume_busy`)"),
        (status = 501, body = ErrorBody, description = "The machine's engine cannot"), (status = 507, body = ErrorBody)))]
async fn create_snapshot(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<SnapshotInfo>)> {
    let route = format!("POST /v1/machines/{id}/snapshots");
    let claim = claim(&headers, &caller, route, &())?;
    let made = snapshot::create(&app, &id, by(&caller, noun), claim).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// Stop a machine and keep its memory. Answers when nothing of it runs any more and its state is safe.
///
/// Where the engine only stops machines where they stand, `metadata` says that it lasts until the host restarts.
#[utoipa::path(post, path = "/{id}/hibernate", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = SnapshotInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody), (status = 507, body = ErrorBody, description = "The disk is full; the machine runs on")))]
async fn hibernate(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
) -> Result<Json<SnapshotInfo>> {
    snapshot::hibernate(&app, &id, by(&caller, noun))
        .await
        .map(Json)
}

/// The same as `hibernate`.
#[utoipa::path(post, path = "/{id}/pause", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = SnapshotInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn pause(
    state: State<AppState>,
    caller: Extension<Caller>,
    noun: Extension<Noun>,
    id: Path<String>,
) -> Result<Json<SnapshotInfo>> {
    hibernate(state, caller, noun, id).await
}

/// Let a hibernated machine go on. `id` is the machine's, or that of the snapshot it goes on from. One that runs is fine.
#[utoipa::path(post, path = "/{id}/resume", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = MachineInfo), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`incompatible_snapshot`: what is on disk is not what was kept"), (status = 429, body = ErrorBody)))]
async fn resume(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<MachineInfo>> {
    let row = snapshot::resume(&app, &id, &caller.key_id).await?;
    Ok(Json(machine::info(&row)))
}

/// Make another machine that goes on from where this one is. Both run on and share nothing that can change but volumes.
///
/// The new one has the same volumes, with mounts of its own, which its `metadata.volume_attachments` lists.
#[utoipa::path(post, path = "/{id}/fork", tag = "snapshots",
    params(("id" = String, Path), ("Idempotency-Key" = Option<String>, Header, description = "The same key gives the same machine")),
    responses((status = 201, body = MachineInfo), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "It does not run, or a volume of it is not mounted (`volume_busy`)"), (status = 429, body = ErrorBody),
        (status = 501, body = ErrorBody, description = "The machine's engine cannot"), (status = 507, body = ErrorBody)))]
async fn fork(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<MachineInfo>)> {
    let route = format!("POST /v1/machines/{id}/fork");
    let claim = claim(&headers, &caller, route, &())?;
    let row = snapshot::fork(&app, &id, by(&caller, noun), claim).await?;
    let info = MachineInfo {
        traffic_access_token: preview::traffic_token(&app, &row),
        ..machine::info(&row)
    };
    Ok((StatusCode::CREATED, Json(info)))
}

/// List snapshots, newest first, those of hibernated machines among them.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(ListSnapshotsQuery),
    responses((status = 200, body = Vec<SnapshotInfo>), (status = 400, body = ErrorBody)))]
async fn list_snapshots(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListSnapshotsQuery>,
) -> Result<Json<Vec<SnapshotInfo>>> {
    snapshot::list(&app, &query, &caller).await.map(Json)
}

/// Show a snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{id}", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = SnapshotInfo), (status = 404, body = ErrorBody)))]
async fn get_snapshot(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<SnapshotInfo>> {
    snapshot::get(&app, &id, &caller.key_id).await.map(Json)
}

/// Delete a snapshot. Machines that were made of it are as they are.
#[utoipa::path(delete, path = "/v1/snapshots/{id}", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "`snapshot_in_use`")))]
async fn delete_snapshot(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    snapshot::delete(&app, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! `/v1/volumes`. The files of a volume are at the routes of a machine's files (`file`, `search`, `upload`), by the same
//! handlers: an id says whose they are.

use axum::{
    Extension,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    error::code,
    id as ids,
    volume::{CreateVolumeRequest, VOLUME_FIELDS, VolumeAttachment, VolumeInfo, VolumeQuery},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    fields::{self, project},
    socket::{Place, Upgrade, serve},
};
use crate::{
    app::{AppState, Caller, file::Files, socket::Socket, volume},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_volume, list_volumes))
        .routes(routes!(get_volume, delete_volume))
        .routes(routes!(get_volume_by_name))
        .routes(routes!(list_volume_attachments))
        .routes(routes!(volume_ws))
}

/// Lets requests through whose id is a volume's.
pub(super) async fn of_volumes(request: Request, next: Next) -> Response {
    match id(&request).starts_with(ids::VOLUME) {
        true => next.run(request).await,
        false => Error::not_found(code::NOT_FOUND, "no such volume").into_response(),
    }
}

/// Lets requests through whose id is not a volume's.
pub(super) async fn of_machines(request: Request, next: Next) -> Response {
    let id = id(&request);
    match id.starts_with(ids::VOLUME) {
        true => Error::no_machine(id).into_response(),
        false => next.run(request).await,
    }
}

/// The first part of the path, below the noun.
fn id(request: &Request) -> &str {
    request.uri().path().split('/').nth(1).unwrap_or_default()
}

/// Create a volume.
#[utoipa::path(post, path = "/", tag = "volumes", request_body = CreateVolumeRequest,
    responses(
        (status = 200, body = VolumeInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 409, body = ErrorBody, description = "`conflict`: the name is taken"),
        (status = 429, body = ErrorBody, description = "`volume_limit_exceeded`"),
    ))]
async fn create_volume(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CreateVolumeRequest>,
) -> Result<Json<VolumeInfo>> {
    volume::create(&app, request, &caller).await.map(Json)
}

/// List volumes, newest first.
#[utoipa::path(get, path = "/", tag = "volumes", params(VolumeQuery),
    responses((status = 200, body = Vec<VolumeInfo>), (status = 400, body = ErrorBody, description = "`invalid_fields`")))]
async fn list_volumes(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<VolumeQuery>,
) -> Result<Response> {
    let fields = asked_for(&query)?;
    let all = volume::list(&app, &caller.tenant.id).await?;
    Ok(match fields {
        None => Json(all).into_response(),
        Some(fields) => {
            let all = all.iter().map(|one| project(one, &fields));
            Json(all.collect::<Result<Vec<_>>>()?).into_response()
        }
    })
}

/// Get a volume. If it was written to, it is counted again, as far as that is done soon.
#[utoipa::path(get, path = "/{id}", tag = "volumes", params(("id" = String, Path), VolumeQuery),
    responses((status = 200, body = VolumeInfo), (status = 404, body = ErrorBody, description = "`not_found`")))]
async fn get_volume(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<VolumeQuery>,
) -> Result<Response> {
    let fields = asked_for(&query)?;
    let row = volume::get(&app, &id).await?;
    answer(&volume::counted(&app, row).await?, fields)
}

/// Get a volume by its name.
#[utoipa::path(get, path = "/by-name/{name}", tag = "volumes", params(("name" = String, Path), VolumeQuery),
    responses((status = 200, body = VolumeInfo), (status = 404, body = ErrorBody, description = "`not_found`")))]
async fn get_volume_by_name(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Query(query): Query<VolumeQuery>,
) -> Result<Response> {
    let fields = asked_for(&query)?;
    let row = volume::by_name(&app, &caller.tenant.id, &name).await?;
    answer(&volume::counted(&app, row).await?, fields)
}

fn asked_for(query: &VolumeQuery) -> Result<Option<Vec<String>>> {
    fields::asked_for(query.fields.as_deref(), "volume", VOLUME_FIELDS)
}

fn answer(info: &VolumeInfo, fields: Option<Vec<String>>) -> Result<Response> {
    Ok(match fields {
        None => Json(info).into_response(),
        Some(fields) => Json(project(info, &fields)?).into_response(),
    })
}

/// Delete a volume that is empty and that no machine has.
#[utoipa::path(delete, path = "/{id}", tag = "volumes", params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 400, body = ErrorBody, description = "`invalid_request`: it is not empty"),
        (status = 404, body = ErrorBody, description = "`not_found`"),
        (status = 409, body = ErrorBody, description = "`volume_busy`"),
    ))]
async fn delete_volume(State(app): State<AppState>, Path(id): Path<String>) -> Result<StatusCode> {
    volume::delete(&app, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the machines that have a volume, and where.
#[utoipa::path(get, path = "/{id}/attachments", tag = "volumes", params(("id" = String, Path)),
    responses((status = 200, body = Vec<VolumeAttachment>), (status = 404, body = ErrorBody, description = "`not_found`")))]
async fn list_volume_attachments(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<VolumeAttachment>>> {
    volume::attachments(&app, &id).await.map(Json)
}

/// Open a WebSocket to watch files of a volume: `file_watch` goes in, `file_watch_started`, `file_event` and `error` come
/// out.
#[utoipa::path(get, path = "/{id}/ws", tag = "volumes", params(("id" = String, Path)),
    responses((status = 101, description = "WebSocket"), (status = 400, body = ErrorBody, description = "`invalid_request`: not a WebSocket upgrade"),
        (status = 404, body = ErrorBody, description = "`not_found`")))]
async fn volume_ws(
    State(app): State<AppState>,
    Path(id): Path<String>,
    upgrade: Upgrade,
) -> Result<Response> {
    if !id.starts_with(ids::VOLUME) {
        return Err(Error::not_found(code::NOT_FOUND, format!("no volume {id}")));
    }
    Files::open(&app, &id, None).await?;
    Ok(upgrade.accept(move |frames, outgoing| {
        let place = Place::of(&app);
        serve(place, frames, outgoing, move |out| {
            Socket::new(app, id, out)
        })
    }))
}

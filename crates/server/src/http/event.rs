//! Lifecycle events.

use axum::{Extension, extract::State};
use nullspace_api::{
    ErrorBody,
    event::{EventPage, ListEventsQuery},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query};
use crate::{
    app::{
        AppState, Caller,
        event::{self, Scope},
    },
    error::Result,
};

pub(super) fn machine_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_machine_events))
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_events))
        .routes(routes!(list_snapshot_events))
}

/// List the events of one machine, where it is what they are about, or what something was made from or into.
#[utoipa::path(get, path = "/{id}/lifecycle", tag = "lifecycle",
    params(("id" = String, Path), ListEventsQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_machine_events(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<ListEventsQuery>,
) -> Result<Json<EventPage>> {
    event::list(&app, &caller, Scope::Machine(id), query)
        .await
        .map(Json)
}

/// List the events of one snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{id}/lifecycle", tag = "lifecycle",
    params(("id" = String, Path), ListEventsQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_snapshot_events(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<ListEventsQuery>,
) -> Result<Json<EventPage>> {
    event::list(&app, &caller, Scope::Snapshot(id), query)
        .await
        .map(Json)
}

/// List the events of all machines.
#[utoipa::path(get, path = "/v1/lifecycle/events", tag = "lifecycle", params(ListEventsQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody)))]
async fn list_events(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListEventsQuery>,
) -> Result<Json<EventPage>> {
    event::list(&app, &caller, Scope::Fleet, query)
        .await
        .map(Json)
}

//! Lifecycle events.

use axum::extract::State;
use nullspace_api::{
    ErrorBody,
    event::{EventPage, ListEventsQuery},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query};
use crate::{
    app::{AppState, event, machine},
    error::Result,
};

pub(super) fn machine_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_machine_events))
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_events))
}

/// List the events of one machine.
#[utoipa::path(get, path = "/{id}/lifecycle", tag = "lifecycle",
    params(("id" = String, Path), ListEventsQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_machine_events(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<ListEventsQuery>,
) -> Result<Json<EventPage>> {
    let page = event::list(&app, Some(id.clone()), query).await?;
    if page.events.is_empty() {
        // Events outlive the machine's own record, so an empty page needs a second look.
        machine::get(&app, &id).await?;
    }
    Ok(Json(page))
}

/// List the events of all machines.
#[utoipa::path(get, path = "/v1/lifecycle/events", tag = "lifecycle", params(ListEventsQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody)))]
async fn list_events(
    State(app): State<AppState>,
    Query(query): Query<ListEventsQuery>,
) -> Result<Json<EventPage>> {
    event::list(&app, None, query).await.map(Json)
}

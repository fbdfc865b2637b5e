//! `GET /v1/monitor/ws`: all machines over one connection. The messages are in `nullspace_api::monitor`.

use axum::{Extension, extract::State, response::Response};
use nullspace_api::ErrorBody;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::socket::{self, Requests, Upgrade};
use crate::app::{AppState, Caller, monitor::Monitor};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(monitor))
}

impl Requests for Monitor {
    async fn take(&mut self, text: &str) {
        Self::take(self, text).await;
    }
}

/// Open a WebSocket that tells of all machines of the tenant.
///
/// Each frame holds one JSON object with a `type`. `monitor_subscribe` and `monitor_unsubscribe` go in;
/// `monitor_snapshot`, `monitor_update`, `monitor_metrics`, `monitor_processes` and `monitor_error` come out. A browser,
/// which cannot set headers, offers the protocols `nullspace.v1` and `nullspace.bearer.<key>`; a key in the query string
/// is not taken.
#[utoipa::path(get, path = "/v1/monitor/ws", tag = "monitoring", operation_id = "monitor_ws",
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = ErrorBody, description = "`invalid_request`: not a WebSocket upgrade"),
    ))]
async fn monitor(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    upgrade: Upgrade,
) -> Response {
    upgrade.accept(move |frames, outgoing| {
        let place = socket::Place::of(&app);
        socket::serve(place, frames, outgoing, move |out| {
            Monitor::new(app, caller.tenant.id.clone(), out)
        })
    })
}

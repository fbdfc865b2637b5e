//! `GET /healthz`.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::Json;
use crate::app::{AppState, health};

/// Answer of `GET /healthz`.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct Health {
    /// `ok` or `unavailable`.
    status: &'static str,
    /// What is in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What makes machines real here.
    engine: &'static str,
    /// Templates that are ready.
    templates: Vec<String>,
    /// The server's version.
    version: &'static str,
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(healthz))
}

/// Whether a machine can be created from `base` now.
#[utoipa::path(get, path = "/healthz", tag = "server", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health)))]
async fn healthz(State(app): State<AppState>) -> Response {
    let reason = health::check(&app).await.err();
    let (code, status) = match reason {
        None => (StatusCode::OK, "ok"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
    };
    let health = Health {
        status,
        reason,
        engine: app.engine.name(),
        templates: app.templates.names(),
        version: env!("CARGO_PKG_VERSION"),
    };
    (code, Json(health)).into_response()
}

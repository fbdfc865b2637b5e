//! `GET /metrics`, for Prometheus.

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use http::header;
use nullspace_api::{ErrorBody, Noun, error::code, id};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::error;
use crate::{
    app::{AppState, count},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// What an address of its own has: the metrics alone, for everybody who reaches it.
pub(crate) fn alone(app: AppState) -> Router {
    let finish = |request: Request, next: Next| async move {
        let response = next.run(request).await;
        error::finish(response, Noun::Machine, &id::new(id::REQUEST))
    };
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(|| async { Error::not_found(code::NOT_FOUND, "only /metrics is here") })
        .layer(middleware::from_fn(finish))
        .with_state(app)
}

/// What the server counts about itself and what machines use, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "monitoring", operation_id = "metrics",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 401, body = ErrorBody, description = "`unauthorized`"),
    ))]
async fn metrics(State(app): State<AppState>) -> Result<Response> {
    let text = count::scrape(&app).await?;
    Ok(([(header::CONTENT_TYPE, count::CONTENT_TYPE)], text).into_response())
}

//! `/v1/agent-gc`: what deployments left behind and nothing needs.

use axum::{body::Bytes, extract::State};
use nullspace_api::{
    ErrorBody,
    agent::{GcReport, GcRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, parse};
use crate::{
    app::{AppState, agent_gc},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(collect_garbage))
}

/// Remove bundles, outputs and artifacts that nothing points at any more; with `dry_run` only say which.
#[utoipa::path(post, path = "", tag = "agents", request_body = GcRequest,
    responses(
        (status = 200, body = GcReport),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
    ))]
async fn collect_garbage(State(app): State<AppState>, body: Bytes) -> Result<Json<GcReport>> {
    let request = match body.is_empty() {
        true => GcRequest::default(),
        false => parse(&body)?,
    };
    // What was taken off the record is removed also when nobody waits for the answer any more.
    let collecting = tokio::spawn(async move { agent_gc::collect(&app, request.dry_run).await });
    collecting
        .await
        .map_err(|e| Error::internal(format!("a collection ended early: {e}")))?
        .map(Json)
}

//! `…/pty`: terminals. They are made and looked at over the machine's WebSocket.

use axum::extract::State;
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    pty::{PtyInfo, PtyResizeRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{
        AppState,
        pty::{self, Which},
    },
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_ptys))
        .routes(routes!(get_pty, kill_pty))
        .routes(routes!(resize_pty))
}

/// List the terminals of a machine.
#[utoipa::path(get, path = "/{id}/pty", tag = "terminals", params(("id" = String, Path)),
    responses((status = 200, body = Vec<PtyInfo>), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn list_ptys(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Vec<PtyInfo>>> {
    pty::list(&app, &id).await.map(Json)
}

/// Show a terminal.
#[utoipa::path(get, path = "/{id}/pty/{session_id}", tag = "terminals",
    params(("id" = String, Path), ("session_id" = String, Path)),
    responses((status = 200, body = PtyInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn get_pty(
    State(app): State<AppState>,
    Path((id, session)): Path<(String, String)>,
) -> Result<Json<PtyInfo>> {
    pty::get(&app, &id, &Which::Session(session))
        .await
        .map(Json)
}

/// Change the size of a terminal.
#[utoipa::path(post, path = "/{id}/pty/{session_id}/resize", tag = "terminals",
    params(("id" = String, Path), ("session_id" = String, Path)),
    request_body = PtyResizeRequest,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn resize_pty(
    State(app): State<AppState>,
    Path((id, session)): Path<(String, String)>,
    Json(request): Json<PtyResizeRequest>,
) -> Result<StatusCode> {
    let which = Which::Session(session);
    pty::resize(&app, &id, &which, request.cols, request.rows).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// End everything in a terminal.
#[utoipa::path(delete, path = "/{id}/pty/{session_id}", tag = "terminals",
    params(("id" = String, Path), ("session_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn kill_pty(
    State(app): State<AppState>,
    Path((id, session)): Path<(String, String)>,
) -> Result<StatusCode> {
    pty::kill(&app, &id, &Which::Session(session)).await?;
    Ok(StatusCode::NO_CONTENT)
}

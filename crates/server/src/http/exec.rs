//! `POST …/exec`.

use std::{pin::Pin, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use nullspace_api::{
    ErrorBody,
    exec::{ExecRequest, ExecResponse, ExecStarted},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path},
    trickle::{self, Ending},
};
use crate::{
    app::{
        AppState,
        exec::{self, Finished},
    },
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(run))
}

/// Run a command. In the foreground the answer is its result; in the background, its id.
///
/// A foreground command that takes longer than some seconds is answered with 200 and a body that begins
/// with spaces, so that clients keep waiting; a time limit is then exit code 124.
#[utoipa::path(post, path = "/{id}/exec", tag = "commands", operation_id = "exec",
    params(("id" = String, Path)),
    request_body = ExecRequest,
    responses(
        (status = 200, body = ExecResponse, description = "With `background`, only `pid`"),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 502, body = ErrorBody, description = "`exec_failed`"),
        (status = 504, body = ErrorBody, description = "`exec_timeout`"),
    ))]
async fn run(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<ExecRequest>,
) -> Result<Response> {
    if request.background == Some(true) {
        let pid = exec::spawn(&app, &id, request).await?;
        return Ok(Json(ExecStarted { pid }).into_response());
    }
    let patience = Duration::from_millis(app.config.exec_patience_ms);
    let mut finish: Finish = Box::pin(exec::run(app, id, request));
    match tokio::time::timeout(patience, &mut finish).await {
        Ok(finished) => Ok(Json(finished?.or_timeout()?).into_response()),
        Err(_) => Ok(trickled(finish)),
    }
}

type Finish = Pin<Box<dyn Future<Output = Result<Finished>> + Send>>;

/// What is left of a command whose answer has begun.
fn trickled(finish: Finish) -> Response {
    trickle::answer(Box::pin(async move {
        let response = match finish.await {
            Ok(finished) => finished.or_124(),
            // The status is long gone: this is the nearest that can be said.
            Err(error) => ExecResponse {
                exit_code: 137,
                stderr: format!("nullspace: {}\n", error.message),
                ..ExecResponse::default()
            },
        };
        match serde_json::to_vec(&response) {
            Ok(body) => Ending::Whole(body),
            Err(_) => Ending::Broken(Vec::new()),
        }
    }))
}

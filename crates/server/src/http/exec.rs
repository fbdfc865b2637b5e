//! `POST …/exec`.

use std::{pin::Pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use nullspace_api::{
    ErrorBody,
    exec::{ExecRequest, ExecResponse, ExecStarted},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{
        AppState,
        exec::{self, Finished},
    },
    error::Result,
};

/// Between two signs of life in a long answer; clients give up after 30 s of silence.
const TRICKLE: Duration = Duration::from_secs(10);

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

/// Spaces until the command ends, then its result. A client that goes away drops the stream, and with it
/// the command.
fn trickled(finish: Finish) -> Response {
    let stream = futures_util::stream::unfold((Some(finish), true), |(finish, first)| async move {
        let mut finish = finish?;
        if first {
            return Some((space(), (Some(finish), false)));
        }
        match tokio::time::timeout(TRICKLE, &mut finish).await {
            Err(_) => Some((space(), (Some(finish), false))),
            Ok(finished) => {
                let response = match finished {
                    Ok(finished) => finished.or_124(),
                    // The status is long gone: this is the nearest that can be said.
                    Err(error) => ExecResponse {
                        exit_code: 137,
                        stderr: format!("nullspace: {}\n", error.message),
                        ..ExecResponse::default()
                    },
                };
                let body = serde_json::to_vec(&response).map_err(std::io::Error::other);
                Some((body.map(Bytes::from), (None, false)))
            }
        }
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

fn space() -> std::io::Result<Bytes> {
    Ok(Bytes::from_static(b" "))
}

//! From an application error to status, body and request id: the one place.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use nullspace_api::{
    ErrorBody, Noun,
    error::{ErrorDetail, code},
};

use crate::error::{Error, Kind};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

impl IntoResponse for Error {
    /// The body follows in [`finish`], which knows the request's id and noun.
    fn into_response(self) -> Response {
        let mut response = status(self.kind).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::Unauthorized => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Gone => StatusCode::GONE,
        Kind::Range => StatusCode::RANGE_NOT_SATISFIABLE,
        Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Kind::SlowClient => StatusCode::REQUEST_TIMEOUT,
        Kind::Limit => StatusCode::TOO_MANY_REQUESTS,
        Kind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::Machine => StatusCode::BAD_GATEWAY,
        Kind::Deadline => StatusCode::GATEWAY_TIMEOUT,
        Kind::Storage => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Completes an answer: the request id, and for errors the body with the words of this route.
pub(super) fn finish(mut response: Response, noun: Noun, request_id: &str) -> Response {
    if let Some(error) = response.extensions_mut().remove::<Error>() {
        let retryable =
            matches!(error.kind, Kind::Unavailable | Kind::Limit) || error.retry_after.is_some();
        log(&error, request_id);
        let mut error_detail: Option<ErrorDetail> = None;
        let mut details = error.details;
        if error.code == code::FILE_UPLOAD_ERROR {
            error_detail = details.take().and_then(|d| serde_json::from_value(d).ok());
            if let Some(detail) = &mut error_detail {
                detail.set_request_id(request_id);
            }
        }
        let body = ErrorBody {
            error: error.message,
            code: noun.code(error.code).to_owned(),
            request_id: Some(request_id.to_owned()),
            retryable: retryable.then_some(true),
            suggested_action: error.suggested_action.map(String::from),
            details,
            error_detail,
        };
        // What else was said about the answer stays: `Allow`, for one.
        let old = std::mem::replace(
            &mut response,
            (status(error.kind), Json(body)).into_response(),
        );
        if let Some(allow) = old.headers().get(header::ALLOW) {
            response.headers_mut().insert(header::ALLOW, allow.clone());
        }
        if let Some(seconds) = error.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The code of the error that an answer is, in the words of this route.
pub(super) fn code_of(response: &Response, noun: Noun) -> Option<String> {
    let error = response.extensions().get::<Error>();
    error.map(|error| noun.code(error.code).to_owned())
}

/// The body of an error that comes after its answer has begun.
pub(super) fn late(error: Error, noun: Noun) -> Vec<u8> {
    log(&error, "");
    let body = ErrorBody {
        code: noun.code(error.code).to_owned(),
        error: error.message,
        suggested_action: error.suggested_action.map(String::from),
        details: error.details,
        ..ErrorBody::default()
    };
    serde_json::to_vec(&body).unwrap_or_default()
}

fn log(error: &Error, request_id: &str) {
    let context = error.context.as_deref().unwrap_or_default();
    match error.kind {
        Kind::Internal | Kind::Unavailable | Kind::Storage | Kind::Machine => tracing::warn!(
            request_id,
            code = error.code,
            message = error.message,
            context,
            "a request failed"
        ),
        _ => tracing::debug!(
            request_id,
            code = error.code,
            message = error.message,
            context,
            "a request was refused"
        ),
    }
}

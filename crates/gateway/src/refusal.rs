//! What a client is told that gets no answer of a machine.

use http::{HeaderValue, Response, StatusCode, header};

use crate::{body::Body, guard::Refusal};

/// Seconds after which a client should ask again when nothing answers now.
const RETRY_AFTER: u32 = 1;

/// Why a request did not get an answer from a machine.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing is there now.
    NotReady,
    /// The token is missing or another's.
    Token,
    /// The guard says no.
    Refused(Refusal),
    /// No connection could be made.
    Unreachable(std::io::Error),
    /// A connection, or an answer, took too long.
    Slow,
    /// The connection broke before an answer.
    Broken(hyper::Error),
    /// Whoever asked may not any more.
    Cut,
    /// The request cannot be passed on.
    Invalid(&'static str),
}

impl Failure {
    /// Of making a connection.
    pub(crate) fn dialling(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::TimedOut => Self::Slow,
            _ => Self::Unreachable(error),
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NotReady => "service_not_ready",
            Self::Token => "unauthorized",
            Self::Refused(refusal) => refusal.code,
            Self::Unreachable(_) | Self::Broken(_) => "service_unreachable",
            Self::Slow => "service_timeout",
            Self::Cut => "preview_grant_revoked",
            Self::Invalid(_) => "invalid_request",
        }
    }

    /// Says what is wrong, in the shape that the API's errors have. `what` is what the door leads to.
    pub(crate) fn answer(&self, what: &str) -> Response<Body> {
        let (status, message) = match self {
            Self::NotReady => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{what} takes no requests now; ask again in a moment"),
            ),
            Self::Token => (
                StatusCode::UNAUTHORIZED,
                format!(
                    "{what} takes no public traffic: send its token in x-nullspace-traffic-access-token"
                ),
            ),
            Self::Refused(refusal) => (refusal.status, refusal.message.to_owned()),
            Self::Unreachable(_) => (
                StatusCode::BAD_GATEWAY,
                format!("{what} does not answer: nothing listens there"),
            ),
            Self::Slow => (
                StatusCode::GATEWAY_TIMEOUT,
                format!("{what} takes connections or requests, and gives no answer in time"),
            ),
            Self::Broken(_) => (
                StatusCode::BAD_GATEWAY,
                format!("{what} closed the connection without an answer"),
            ),
            Self::Cut => (
                StatusCode::UNAUTHORIZED,
                "this preview was revoked, or its machine ended, while the request was under way"
                    .to_owned(),
            ),
            Self::Invalid(why) => (StatusCode::BAD_REQUEST, (*why).to_owned()),
        };
        match self {
            Self::Unreachable(error) => {
                tracing::debug!(%error, "a machine's port could not be reached");
            }
            Self::Broken(error) => tracing::debug!(%error, "a machine broke a connection"),
            _ => {}
        }
        answer(status, self.code(), &message)
    }
}

/// An error in the shape that the API's errors have, for requests that lead nowhere.
#[must_use]
pub fn refuse(refusal: &Refusal) -> Response<Body> {
    answer(refusal.status, refusal.code, refusal.message)
}

fn answer(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({"error": message, "code": code}).to_string();
    let mut response = Response::new(Body::text(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    // It is about now, and about this client.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
    }
    response
}

//! Extractors whose refusals are our own errors, with the field named.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{header, request::Parts};
use nullspace_api::error::code;
use nullspace_store::idempotency::Claim;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    app::Caller,
    error::{Error, Kind, Result},
};

/// The largest body of an ordinary request.
const SMALL: usize = 1 << 20;
/// How long a whole body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// A JSON request body of at most `LIMIT` bytes, or a JSON answer.
#[derive(Clone, Copy, Debug)]
pub struct JsonBody<T, const LIMIT: usize>(pub T);

/// A JSON request body of ordinary size, or a JSON answer.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync, const LIMIT: usize> FromRequest<S>
    for JsonBody<T, LIMIT>
{
    type Rejection = Error;

    async fn from_request(request: Request, _state: &S) -> Result<Self> {
        let bytes = read_body(request.into_body(), LIMIT).await?;
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self> {
        let JsonBody(value) = JsonBody::<T, SMALL>::from_request(request, state).await?;
        Ok(Self(value))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

/// Collects a body.
///
/// # Errors
/// `body_too_large`, `timeout`, or `invalid_request` when the client broke off.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes> {
    let too_large = || {
        Error::new(
            Kind::TooLarge,
            code::BODY_TOO_LARGE,
            format!("the request body is over {limit} bytes"),
        )
    };
    if http_body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    let read = axum::body::to_bytes(body, limit);
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(
            if std::error::Error::source(&error)
                .is_some_and(|e| e.is::<http_body_util::LengthLimitError>())
            {
                too_large()
            } else {
                Error::invalid("the request body broke off").with_context(error.to_string())
            },
        ),
        Err(_) => Err(slow()),
    }
}

/// The client takes too long to send.
pub(super) fn slow() -> Error {
    Error::new(
        Kind::SlowClient,
        code::TIMEOUT,
        "the request body took too long to arrive",
    )
}

/// Reads JSON, naming the field that is wrong.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::invalid("a JSON request body is needed"));
    }
    // A list would be taken for the fields of an object, in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Error::invalid("the request body must be a JSON object"));
    }
    axum::Json::<T>::from_bytes(bytes)
        .map(|axum::Json(value)| value)
        .map_err(|rejection| {
            let text = rejection.body_text();
            // "Failed to … the target type: vcpus: invalid type: …" becomes "vcpus: invalid type: …".
            let reason = [
                "Failed to deserialize the JSON body into the target type: ",
                "Failed to parse the request body as JSON: ",
            ]
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(&text);
            Error::invalid(without_position(reason))
        })
}

/// The place in the text is of no use once the field is named, and values near it may be secret.
fn without_position(reason: &str) -> String {
    reason
        .rfind(" at line ")
        .map_or(reason, |at| &reason[..at])
        .to_owned()
}

/// A query string.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| {
                let text = rejection.body_text();
                let reason = text
                    .strip_prefix("Failed to deserialize query string: ")
                    .unwrap_or(&text);
                Error::invalid(format!("query: {reason}"))
            })
    }
}

/// Parts of the path.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            // A part that cannot be an id names nothing that exists.
            .map_err(|_| Error::not_found(code::NOT_FOUND, "no such thing: the path is not valid"))
    }
}

/// The caller's idempotency key, if it sent one.
///
/// # Errors
/// `invalid_request` for one that is empty, too long or not text.
fn idempotency_key(headers: &http::HeaderMap) -> Result<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= 255)
        .map(|key| Some(key.to_owned()))
        .ok_or_else(|| Error::invalid("idempotency-key: must be 1 to 255 visible ASCII characters"))
}

/// The claim of a request on its idempotency key, if it has one. A route is a method and a path: the same key
/// below another deployment is another request.
pub(super) fn claim<T: Serialize>(
    headers: &http::HeaderMap,
    caller: &Caller,
    route: String,
    request: &T,
) -> Result<Option<Claim>> {
    let Some(key) = idempotency_key(headers)? else {
        return Ok(None);
    };
    Ok(Some(Claim {
        key_id: caller.key_id.to_string(),
        route,
        key,
        // As it was understood: spaces and the order of fields do not matter.
        body: serde_json::to_vec(request)
            .map_err(|e| Error::internal(format!("writing a request as JSON: {e}")))?,
    }))
}

/// Whether the request's content type is this one.
pub(super) fn is_content_type(headers: &http::HeaderMap, wanted: &str) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .split(';')
                .next()
                .is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted))
        })
}

//! `…/host`, `…/ports/{port}/…`, `…/preview-urls`.

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::HeaderMap;
use nullspace_api::{
    ErrorBody, Noun,
    preview::{
        Grants, Host, HostRequest, ListGrantsQuery, PreviewUrl, ProxyTarget, ProxyTargetRequest,
        Readiness, ReadinessRequest, RevokedGrant, SignedPreviewRequest,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    agent_service::host,
    extract::{Json, Path, Query, parse},
};
use crate::{
    app::{AppState, Caller, preview},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(publish_port))
        .routes(routes!(preview_url))
        .routes(routes!(signed_preview_url))
        .routes(routes!(preview_proxy_target))
        .routes(routes!(preview_readiness))
        .routes(routes!(list_previews))
        .routes(routes!(revoke_preview))
}

/// An answer in the words of its route: clients of one wire know `sandbox_id` alone, those of the other `machine_id`.
struct Spelled<T>(Noun, T);

impl<T: Serialize> IntoResponse for Spelled<T> {
    fn into_response(self) -> Response {
        match serde_json::to_value(self.1) {
            Ok(mut value) => {
                if self.0 == Noun::Sandbox {
                    spell(&mut value);
                }
                axum::Json(value).into_response()
            }
            Err(error) => {
                Error::internal(format!("writing an answer as JSON: {error}")).into_response()
            }
        }
    }
}

/// Says `sandbox_id` for `machine_id`, at every depth: nothing in these answers is a caller's own word.
fn spell(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(id) = fields.remove("machine_id") {
                fields.insert("sandbox_id".to_owned(), id);
            }
            fields.values_mut().for_each(spell);
        }
        Value::Array(items) => items.iter_mut().for_each(spell),
        _ => {}
    }
}

/// A port in a path or a query.
fn port(text: &str) -> Result<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| Error::invalid("port: must be 1 to 65535"))
}

/// A body that may be left out.
fn body<T: DeserializeOwned + Default>(bytes: &Bytes) -> Result<T> {
    match bytes.is_empty() {
        true => Ok(T::default()),
        false => parse(bytes),
    }
}

/// Publish a port: requests to it need no token of their own from now on, until the machine ends. Those to a machine with
/// `network.allow_public_traffic` false need the machine's.
#[utoipa::path(post, path = "/{id}/host", tag = "previews", params(("id" = String, Path)),
    request_body = HostRequest,
    responses(
        (status = 200, body = Host),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn publish_port(
    State(app): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<HostRequest>,
) -> Result<Json<Host>> {
    preview::publish(&app, &id, request.port, host(&headers))
        .await
        .map(Json)
}

/// Get a URL of a port that has its token in it. Each call makes a grant, which works for as long as this server lets
/// previews work.
#[utoipa::path(get, path = "/{id}/ports/{port}/preview-url", tag = "previews",
    params(("id" = String, Path), ("port" = u16, Path)),
    responses(
        (status = 200, body = PreviewUrl),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn preview_url(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    Path((id, number)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    let request = SignedPreviewRequest::default();
    let host = host(&headers);
    let url = preview::signed_url(&app, &caller, &id, port(&number)?, request, host).await?;
    Ok(Spelled(noun, url).into_response())
}

/// Make a URL of a port that has its token in it and works for a while.
#[utoipa::path(post, path = "/{id}/ports/{port}/signed-preview-url", tag = "previews",
    params(("id" = String, Path), ("port" = u16, Path)),
    request_body = SignedPreviewRequest,
    responses(
        (status = 200, body = PreviewUrl),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn signed_preview_url(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    Path((id, number)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    let (request, host) = (body(&bytes)?, host(&headers));
    let url = preview::signed_url(&app, &caller, &id, port(&number)?, request, host).await?;
    Ok(Spelled(noun, url).into_response())
}

/// Say where a proxy of the caller's own reaches a port, and with which tokens in its header.
#[utoipa::path(post, path = "/{id}/ports/{port}/preview-proxy-target", tag = "previews",
    params(("id" = String, Path), ("port" = u16, Path)),
    request_body = ProxyTargetRequest,
    responses(
        (status = 200, body = ProxyTarget),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn preview_proxy_target(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Extension(noun): Extension<Noun>,
    Path((id, number)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Response> {
    let (request, host) = (body(&bytes)?, host(&headers));
    let target = preview::proxy_target(&app, &caller, &id, port(&number)?, request, host).await?;
    Ok(Spelled(noun, target).into_response())
}

/// Wait until a port answers. One that does not within the time is no error: `ready` is false then.
#[utoipa::path(post, path = "/{id}/ports/{port}/readiness", tag = "previews",
    params(("id" = String, Path), ("port" = u16, Path)),
    request_body = ReadinessRequest,
    responses(
        (status = 200, body = Readiness),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
    ))]
async fn preview_readiness(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path((id, number)): Path<(String, String)>,
    bytes: Bytes,
) -> Result<Response> {
    let request = body(&bytes)?;
    let readiness = preview::readiness(&app, &id, port(&number)?, request).await?;
    Ok(Spelled(noun, readiness).into_response())
}

/// List the grants of a machine, newest first: those that are over, too, for a day.
#[utoipa::path(get, path = "/{id}/preview-urls", tag = "previews", params(("id" = String, Path), ListGrantsQuery),
    responses(
        (status = 200, body = Grants),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
    ))]
async fn list_previews(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Query(query): Query<ListGrantsQuery>,
) -> Result<Response> {
    let port = query.port.as_deref().map(port).transpose()?;
    let grants = preview::list(&app, &id, port).await?;
    Ok(Spelled(noun, grants).into_response())
}

/// Revoke a grant: its tokens are refused at once, and what is open with them ends. Revoking twice is fine.
#[utoipa::path(delete, path = "/{id}/preview-urls/{grant_id}", tag = "previews",
    params(("id" = String, Path), ("grant_id" = String, Path)),
    responses(
        (status = 200, body = RevokedGrant),
        (status = 404, body = ErrorBody, description = "`machine_not_found`, `preview_grant_not_found`"),
    ))]
async fn revoke_preview(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path((id, grant_id)): Path<(String, String)>,
) -> Result<Response> {
    let revoked = preview::revoke(&app, &id, &grant_id).await?;
    Ok(Spelled(noun, revoked).into_response())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_machine_is_spelled() {
        let mut value = json!({"machine_id": "a", "items": [{"grant": {"machine_id": "b"}}]});
        spell(&mut value);
        let spelled = json!({"sandbox_id": "a", "items": [{"grant": {"sandbox_id": "b"}}]});
        assert_eq!(value, spelled);
    }
}

//! `/v1/agent-deployments/{id}/services`, their logs and addresses.

use axum::{Extension, body::Bytes, extract::State};
use http::{HeaderMap, StatusCode, header};
use nullspace_api::{
    ErrorBody,
    agent::{
        CreateServiceRequest, ListQuery, Logs, LogsQuery, RestartServiceRequest, Service,
        ServiceUrl, StopServiceRequest,
    },
    page::CursorPage,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query, claim, parse};
use crate::{
    app::{AppState, Caller, agent::Reference, agent_log, agent_service},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(start_service, list_services))
        .routes(routes!(get_service))
        .routes(routes!(stop_service))
        .routes(routes!(restart_service))
        .routes(routes!(service_logs))
        .routes(routes!(service_url))
}

/// What the caller calls this server, without the port: its services are found under the same name.
pub(super) fn host(headers: &HeaderMap) -> &str {
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let name = match host.rfind(':') {
        // Not a colon of an IPv6 address.
        Some(at) if !host[at..].contains(']') => &host[..at],
        _ => host,
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
    match name.is_empty() || !name.chars().all(plain) {
        true => "127.0.0.1",
        false => name,
    }
}

/// Start a service. Answers at once; the service goes on by itself.
#[utoipa::path(post, path = "/{id}/services", tag = "agents",
    params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same service")),
    request_body = CreateServiceRequest,
    responses(
        (status = 201, body = Service),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_version_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`, `conflict`, `idempotency_conflict`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
    ))]
async fn start_service(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<CreateServiceRequest>,
) -> Result<(StatusCode, Json<Service>)> {
    let claim = claim(
        &headers,
        &caller,
        format!("POST agents/{id}/services"),
        &request,
    )?;
    let made = agent_service::create(
        &app,
        &caller,
        &Reference::of(&caller, &id),
        request,
        claim,
        host(&headers),
    )
    .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List services, newest first.
#[utoipa::path(get, path = "/{id}/services", tag = "agents", params(("id" = String, Path), ListQuery),
    responses(
        (status = 200, body = CursorPage<Service>),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn list_services(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<CursorPage<Service>>> {
    agent_service::list(&app, &Reference::of(&caller, &id), query, host(&headers))
        .await
        .map(Json)
}

/// Get a service.
#[utoipa::path(get, path = "/{id}/services/{service_id}", tag = "agents",
    params(("id" = String, Path), ("service_id" = String, Path)),
    responses(
        (status = 200, body = Service),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_service_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn get_service(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, service_id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Service>> {
    agent_service::get(
        &app,
        &Reference::of(&caller, &id),
        &service_id,
        host(&headers),
    )
    .await
    .map(Json)
}

/// Stop a service; one that has ended stays as it is. Answers when it has stopped, or after 15 seconds.
#[utoipa::path(post, path = "/{id}/services/{service_id}/stop", tag = "agents",
    params(("id" = String, Path), ("service_id" = String, Path)),
    request_body = StopServiceRequest,
    responses(
        (status = 200, body = Service),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_service_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn stop_service(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, service_id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Service>> {
    let request = match body.is_empty() {
        true => StopServiceRequest::default(),
        false => parse(&body)?,
    };
    agent_service::stop(
        &app,
        &Reference::of(&caller, &id),
        &service_id,
        request,
        host(&headers),
    )
    .await
    .map(Json)
}

/// Start a service again with the version that is active now, also one that has ended. While it takes traffic the old
/// backing goes on until the new one is ready.
#[utoipa::path(post, path = "/{id}/services/{service_id}/restart", tag = "agents",
    params(("id" = String, Path), ("service_id" = String, Path)),
    request_body = RestartServiceRequest,
    responses(
        (status = 200, body = Service),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_service_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`, `conflict`"),
    ))]
async fn restart_service(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, service_id)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Service>> {
    let request = match body.is_empty() {
        true => RestartServiceRequest::default(),
        false => parse(&body)?,
    };
    agent_service::restart(
        &app,
        &Reference::of(&caller, &id),
        &service_id,
        request,
        host(&headers),
    )
    .await
    .map(Json)
}

/// Read a service's log: output by line, and what happened. Follow it with the page's `next_cursor` and `wait_ms`.
#[utoipa::path(get, path = "/{id}/services/{service_id}/logs", tag = "agents",
    params(("id" = String, Path), ("service_id" = String, Path), LogsQuery),
    responses(
        (status = 200, body = Logs),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_service_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn service_logs(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, service_id)): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Logs>> {
    agent_log::page(
        &app,
        &Reference::of(&caller, &id),
        agent_log::Of::Service(&service_id),
        query,
    )
    .await
    .map(Json)
}

/// Get a service's address. It is there while the service takes traffic and its config has `permissions.public_url`.
#[utoipa::path(get, path = "/{id}/services/{service_id}/url", tag = "agents",
    params(("id" = String, Path), ("service_id" = String, Path)),
    responses(
        (status = 200, body = ServiceUrl),
        (status = 404, body = ErrorBody, description = "`agent_deployment_not_found`, `agent_service_not_found`"),
        (status = 409, body = ErrorBody, description = "`agent_mode_conflict`"),
    ))]
async fn service_url(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((id, service_id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<ServiceUrl>> {
    agent_service::url(
        &app,
        &Reference::of(&caller, &id),
        &service_id,
        host(&headers),
    )
    .await
    .map(Json)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_where_the_server_was() {
        for (given, found) in [
            ("localhost:3000", "localhost"),
            ("127.0.0.1:3000", "127.0.0.1"),
            ("box.example", "box.example"),
            ("[::1]:3000", "[::1]"),
            ("[::1]", "[::1]"),
            ("", "127.0.0.1"),
            ("a/b?c", "127.0.0.1"),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, given.parse().unwrap())]);
            assert_eq!(host(&headers), found, "{given}");
        }
    }
}

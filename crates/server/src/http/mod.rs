//! The HTTP edge: authenticate, check, convert, spell. One file per noun; everything else is in `app`.
//!
//! Machines are served under two prefixes by the same handlers: `/v1/machines` and `/v1/sandboxes`. The
//! words that differ are put in by [`error::finish`], and by [`preview`] into answers whose clients know one word alone.

mod agent;
mod agent_deployment;
mod agent_gc;
mod agent_run;
mod agent_service;
mod agent_version;
mod audit;
mod batch;
mod body;
mod code;
mod egress;
mod error;
mod event;
mod event_stream;
mod exec;
mod extract;
mod fields;
mod file;
mod git;
mod guard;
mod health;
mod key;
mod later;
mod machine;
mod metrics;
mod monitor;
mod openapi;
mod pool;
mod preview;
mod process;
mod prometheus;
mod pty;
mod rest;
mod search;
mod snapshot;
mod socket;
mod ssh;
mod template;
mod template_build;
mod tenant;
mod trickle;
mod upload;
mod volume;
mod volume_attachment;
mod webhook;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use nullspace_api::{Noun, audit::AuditEntry, error::code as error_code, id, time};
use tracing::{Instrument, field::Empty};
use utoipa_axum::router::OpenApiRouter;

pub use extract::{Json, JsonBody, Path, Query, read_body};
pub use openapi::document;
pub(crate) use prometheus::alone as metrics_alone;

use crate::{
    app::{App, AppState, Caller},
    error::{Error, Kind},
    trace,
};

/// Everything under a machine prefix.
fn machine_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(machine::routes())
        .merge(egress::routes())
        .merge(exec::routes())
        .merge(process::routes())
        .merge(pty::routes())
        .merge(socket::routes())
        .merge(code::routes())
        .merge(ssh::routes())
        .merge(preview::routes())
        .merge(file_routes().route_layer(middleware::from_fn(volume::of_machines)))
        .merge(batch::routes())
        .merge(volume_attachment::routes())
        .merge(git::routes())
        .merge(event::machine_routes())
        .merge(metrics::routes())
        .merge(event_stream::machine_routes())
        .merge(snapshot::machine_routes())
}

/// Files, of machines and of volumes.
fn file_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .merge(file::routes())
        .merge(search::routes())
        .merge(upload::routes())
}

/// Everything under `/v1/volumes`.
fn volume_routes() -> OpenApiRouter<AppState> {
    volume::routes().merge(file_routes().route_layer(middleware::from_fn(volume::of_volumes)))
}

/// Every documented route.
fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .nest("/v1/machines", machine_routes())
        .nest("/v1/sandboxes", machine_routes())
        .nest("/v1/volumes", volume_routes())
        .merge(event::routes())
        .merge(monitor::routes())
        .merge(event_stream::routes())
        .merge(snapshot::routes())
        .merge(webhook::routes())
        .merge(agent::routes())
        .merge(template::routes())
        .merge(template_build::routes())
        .merge(pool::routes())
        .merge(key::routes())
        .merge(tenant::routes())
        .merge(audit::routes())
        .merge(health::routes())
        .merge(prometheus::routes())
}

/// The whole API.
pub fn router(app: AppState) -> Router {
    let (router, _) = routes().split_for_parts();
    let document = openapi::json();
    router
        .merge(later::routes())
        .route(
            "/openapi.json",
            get(move || async move { ([("content-type", "application/json")], document.clone()) }),
        )
        .fallback(|| async { Error::not_found(error_code::NOT_FOUND, "no such route") })
        .method_not_allowed_fallback(|| async {
            Error::new(
                Kind::MethodNotAllowed,
                error_code::METHOD_NOT_ALLOWED,
                "this route does not have that method",
            )
        })
        // Each route bounds its own body: see `extract` and `body`.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(app.clone(), edge))
        .with_state(app)
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remote(pub(crate) IpAddr);

/// Around every request: an id, the caller, the words of errors, what is counted, and what nobody read of its body.
async fn edge(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (mut request, rest) = rest::keep(request);
    let request_id = id::new(id::REQUEST);
    let noun = Noun::of_path(request.uri().path());
    request.extensions_mut().insert(noun);
    let method = request.method().clone();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    // Never the query: it may hold tokens.
    let span = tracing::debug_span!(
        "request",
        otel.name = format!("{method} {}", route.unwrap_or_default()).trim_end(),
        otel.kind = "server",
        otel.status_code = Empty,
        id = request_id,
        method = %method,
        path = request.uri().path(),
        route,
        status = Empty,
    );
    trace::go_on(&span, request.headers());
    let remote = request.extensions().get::<Remote>().copied();
    let path = request.uri().path().to_owned();
    let allowed = admit(&app, route, request).instrument(span.clone()).await;
    let (caller, response) = match allowed {
        Ok((caller, request)) => {
            if let (Some(caller), Some(noun)) = (&caller, Noun::said_in(&path)) {
                app.spelling.said(caller, noun);
            }
            (caller, next.run(request).instrument(span.clone()).await)
        }
        Err(refused) => (refused.caller, refused.error.into_response()),
    };
    rest.discard();
    let status = response.status();
    if guard::is_noted(&method, route, status) {
        app.audit.note(AuditEntry {
            at: time::rfc3339(time::now()),
            tenant_id: caller.as_ref().map(Caller::tenant_id),
            key_id: caller.as_ref().map(|caller| caller.key_id.to_string()),
            method: method.to_string(),
            path,
            status: status.as_u16(),
            code: error::code_of(&response, noun),
            remote: remote.map(|Remote(address)| address.to_string()),
            request_id: request_id.clone(),
            duration_ms: millis(begun.elapsed()),
        });
    }
    app.counts.answered(route, &method, status, begun.elapsed());
    span.record("status", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let _entered = span.entered();
    error::finish(response, noun, &request_id)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A request that is not let through, and who made it if that is known.
struct Refused {
    caller: Option<Caller>,
    error: Error,
}

/// Who asks, and the request if it may be made.
async fn admit(
    app: &App,
    route: Option<&str>,
    mut request: Request,
) -> Result<(Option<Caller>, Request), Refused> {
    let nobody = |error| Refused {
        caller: None,
        error,
    };
    let Some(caller) = authenticate(app, &request).map_err(nobody)? else {
        return Ok((None, request));
    };
    let refused = |error| Refused {
        caller: Some(caller.clone()),
        error,
    };
    caller.tenant.take_request().map_err(refused)?;
    // There is nothing to guard where there is no route.
    if let Some(route) = route {
        request = guard::check(app, &caller, route, request)
            .await
            .map_err(refused)?;
    }
    request.extensions_mut().insert(caller.clone());
    Ok((Some(caller), request))
}

/// Everything under `/v1` needs a key, and `/metrics`; the few other routes are public.
fn authenticate(app: &App, request: &Request) -> Result<Option<Caller>, Error> {
    let path = request.uri().path();
    if !path.starts_with("/v1") && path != "/metrics" {
        return Ok(None);
    }
    // The handler checks the token: it knows what for.
    if request
        .headers()
        .get(::http::header::AUTHORIZATION)
        .is_none()
        && file::has_grant(request)
    {
        return Ok(None);
    }
    let refused = |message: &str| {
        Error::new(Kind::Unauthorized, error_code::UNAUTHORIZED, message)
            .with_action("send the header `Authorization: Bearer <key>` with a valid key")
    };
    let Some(header) = request.headers().get(::http::header::AUTHORIZATION) else {
        let key = socket::offered_key(request.headers());
        return key
            .ok_or_else(|| refused("an api key is needed"))
            .and_then(|key| app.keys.check(&app.store, key))
            .map(Some);
    };
    let key = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim())
        .ok_or_else(|| refused("the authorization header is not a bearer key"))?;
    app.keys.check(&app.store, key).map(Some)
}

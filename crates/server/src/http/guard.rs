//! Who may do what to a route: what a key has to be for, and whose the things are that a path names. Both fail closed: a route that
//! is not known here is the operator's.
//!
//! ```text
//!  request ──▶ key ──▶ rate ──▶ need of the route ──▶ owner of what the path names ──▶ handler
//!          401 / 403      429                    403                            404, as if it were not there
//! ```
//! What a path names by name, what a body names, and lists are the handlers' own: they look among the caller's alone.

use axum::{
    RequestPartsExt,
    extract::{RawPathParams, Request},
};
use http::{Method, StatusCode};
use nullspace_api::{error::code, id as ids};
use nullspace_store::tenant::{Thing, owner_of};

use crate::{
    app::{
        App, Caller, agent_run, pool,
        scope::{Access, Area, Need},
        snapshot, template, webhook,
    },
    error::{Error, Result},
};

/// POST routes that change nothing, by their last part.
const LOOKS: [&str; 5] = ["read", "exists", "find", "info", "search"];

/// What a key has to be for; `None` where any is enough.
fn need(method: &Method, route: &str) -> Option<Need> {
    let reads = method == Method::GET || method == Method::HEAD;
    let access = if reads { Access::Read } else { Access::Write };
    let mut parts = route.trim_start_matches('/').split('/');
    if parts.next() != Some("v1") {
        return Some(Need(Area::Server, access));
    }
    let parts: Vec<&str> = parts.collect();
    Some(match parts[..] {
        // Commands and terminals, and a link that leads in.
        ["machines" | "sandboxes", "{id}", "ws"]
        | ["machines" | "sandboxes", "{id}", "ports", _, "preview-url"] => {
            Need(Area::Machines, Access::Write)
        }
        ["machines" | "sandboxes", ..] => Need(Area::Machines, of_files(&parts, access)),
        ["volumes", ..] => Need(Area::Volumes, of_files(&parts, access)),
        ["snapshots", ..] => Need(Area::Machines, access),
        ["lifecycle", "webhooks", ..] => Need(Area::Webhooks, access),
        ["lifecycle", "events" | "ws"] | ["monitor", "ws"] => Need(Area::Machines, access),
        ["templates", "validate" | "plan"] => Need(Area::Templates, Access::Read),
        ["templates" | "template-warm-pools", ..] => Need(Area::Templates, access),
        ["agent-deployments" | "agent-runs", ..] => Need(Area::Agents, access),
        ["keys", ..] | ["audit"] => Need(Area::Keys, access),
        // What the tenant may have itself.
        ["tenant"] => return None,
        _ => Need(Area::Server, access),
    })
}

/// Some routes of files have a body because of what they look for, not because they change anything.
fn of_files(parts: &[&str], access: Access) -> Access {
    match parts {
        [_, "{id}", "files", last] if LOOKS.contains(last) || *last == "download-url" => {
            Access::Read
        }
        _ => access,
    }
}

/// Whether the audit log has it: what changes something or opens a way in, and who was refused. Who makes too many requests is told
/// so and no more: that would fill the log.
pub(super) fn is_noted(method: &Method, route: Option<&str>, status: StatusCode) -> bool {
    if status == StatusCode::TOO_MANY_REQUESTS {
        return false;
    }
    let is_refused = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
    let writes = |Need(_, access)| access == Access::Write;
    is_refused || route.is_some_and(|route| need(method, route).is_some_and(writes))
}

/// What a path names by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    /// Nothing, or what the handler looks for among the caller's own.
    Handler,
    /// What the record says the owner of.
    Thing(Thing, &'static str),
    /// A warm pool, in the parameter.
    Pool(&'static str),
    /// Nothing that is known here.
    Unknown,
}

/// What the path of a route names.
fn root(route: &str) -> Root {
    let parts: Vec<&str> = route.trim_start_matches('/').split('/').collect();
    if !parts.iter().any(|part| part.starts_with('{')) {
        return Root::Handler;
    }
    let Some((&"v1", parts)) = parts.split_first() else {
        return Root::Unknown;
    };
    match parts {
        ["machines" | "sandboxes", "{id}", ..] => Root::Thing(Thing::Machine, "id"),
        ["snapshots", "{id}", ..] => Root::Thing(Thing::Snapshot, "id"),
        ["volumes", "{id}", ..] => Root::Thing(Thing::Volume, "id"),
        ["lifecycle", "webhooks", "{id}", ..] => Root::Thing(Thing::Webhook, "id"),
        ["agent-deployments", "{id}", ..] => Root::Thing(Thing::Deployment, "id"),
        ["agent-runs", "{run_id}"] => Root::Thing(Thing::Run, "run_id"),
        ["template-warm-pools", "{id}", ..] => Root::Pool("id"),
        ["templates", "builds", "{build_id}", ..] => Root::Thing(Thing::Build, "build_id"),
        ["templates", "blobs", "{blob_id}"] => Root::Thing(Thing::Blob, "blob_id"),
        // By name, or by a token that is known to the key alone.
        ["volumes", "by-name", _]
        | ["templates", "refs" | "namespaces" | "claims", ..]
        | ["templates", "{id}", "builds"]
        | ["keys", ..]
        // Only the operator's keys come so far.
        | ["tenants", ..] => Root::Handler,
        _ => Root::Unknown,
    }
}

/// Lets a request through that the caller may make.
///
/// # Errors
/// `permission_denied`; the `…_not_found` of what is another tenant's.
pub(super) async fn check(
    app: &App,
    caller: &Caller,
    route: &str,
    request: Request,
) -> Result<Request> {
    if let Some(need) = need(request.method(), route) {
        caller.must(need)?;
    }
    let (thing, name) = match root(route) {
        Root::Handler => return Ok(request),
        Root::Unknown => return Err(Error::not_found(code::NOT_FOUND, "no such route")),
        Root::Thing(thing, name) => (Some(thing), name),
        Root::Pool(name) => (None, name),
    };
    let (mut parts, body) = request.into_parts();
    // As handlers get it: what is written with percent signs is the same id.
    let params = parts.extract::<RawPathParams>().await;
    let id = params.ok().and_then(|params| {
        let mut params = params.iter();
        params
            .find(|(key, _)| *key == name)
            .map(|(_, id)| id.to_owned())
    });
    let id = id.ok_or_else(|| Error::not_found(code::NOT_FOUND, "no such thing"))?;
    let is_own = match thing {
        None => pool::owner(app, &id).is_some_and(|owner| owner == *caller.tenant.id),
        Some(thing) => is_own(app, caller, thing, &id).await?,
    };
    match is_own {
        true => Ok(Request::from_parts(parts, body)),
        false => Err(no(thing, &id)),
    }
}

/// Whether something is the caller's. What is nobody's is refused here as well: what else is wrong with a request would tell the two
/// apart.
async fn is_own(app: &App, caller: &Caller, thing: Thing, id: &str) -> Result<bool> {
    let own = &*caller.tenant.id;
    let thing = match thing {
        // A snapshot is resumed where machines are.
        Thing::Machine if id.starts_with(ids::SNAPSHOT) => Thing::Snapshot,
        Thing::Machine => match app.machines.get(id) {
            Some(handle) => return Ok(handle.row().tenant_id == own),
            None => thing,
        },
        // A name is looked for among the caller's.
        Thing::Deployment if !id.starts_with(ids::DEPLOYMENT) => return Ok(true),
        thing => thing,
    };
    let wanted = id.to_owned();
    let owner = app
        .store
        .read(move |db| owner_of(db, thing, &wanted))
        .await?;
    Ok(owner.is_some_and(|owner| owner == own))
}

/// There is no such thing, as far as the caller is told.
fn no(thing: Option<Thing>, id: &str) -> Error {
    match thing {
        None => pool::not_found(id),
        Some(Thing::Machine) if id.starts_with(ids::SNAPSHOT) => snapshot::not_found(id),
        Some(Thing::Machine) => Error::no_machine(id),
        Some(Thing::Snapshot) => snapshot::not_found(id),
        Some(Thing::Volume) => crate::app::volume::no_volume(id),
        Some(Thing::Deployment) => crate::app::agent::no_deployment(id),
        Some(Thing::Run) => agent_run::no_run(id),
        Some(Thing::Webhook) => webhook::no_webhook(id),
        Some(Thing::Build) => template::build::no_build(id),
        Some(Thing::Blob) => template::blob::no_blob(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every route of the document is one of the table, and its need is no wider than the operator's.
    #[test]
    fn every_route_is_known() {
        let document = super::super::document();
        for path in document.paths.paths.keys() {
            assert_ne!(root(path), Root::Unknown, "{path}");
            let is_public = !path.starts_with("/v1") && path != "/metrics";
            if is_public {
                continue;
            }
            for method in [Method::GET, Method::POST] {
                let need = need(&method, path);
                let is_servers = need.is_some_and(|Need(area, _)| area == Area::Server);
                let may_be = ["/metrics", "/v1/agent-gc", "/v1/tenants"]
                    .iter()
                    .any(|server| path.starts_with(server));
                assert_eq!(is_servers, may_be, "{path}");
            }
        }
    }

    #[test]
    fn what_looks_and_what_changes() {
        let of = |method: Method, route: &str| need(&method, route).map(|need| need.to_string());
        for (method, route, wanted) in [
            (Method::GET, "/v1/machines/{id}", "machines:read"),
            (Method::POST, "/v1/sandboxes/{id}/exec", "machines:write"),
            (Method::GET, "/v1/sandboxes/{id}/ws", "machines:write"),
            (Method::GET, "/v1/volumes/{id}/ws", "volumes:read"),
            (Method::POST, "/v1/volumes/{id}/files/read", "volumes:read"),
            (
                Method::POST,
                "/v1/volumes/{id}/files/write",
                "volumes:write",
            ),
            (Method::PUT, "/v1/volumes/{id}/file", "volumes:write"),
            (
                Method::GET,
                "/v1/machines/{id}/ports/{port}/preview-url",
                "machines:write",
            ),
            (Method::POST, "/v1/templates/plan", "templates:read"),
            (Method::DELETE, "/v1/keys/{id}", "keys:write"),
            (Method::GET, "/metrics", "server:read"),
            (Method::GET, "/v1/what/is/this", "server:read"),
        ] {
            assert_eq!(of(method, route).as_deref(), Some(wanted), "{route}");
        }
        assert_eq!(of(Method::GET, "/v1/tenant"), None);
    }
}

//! `/v1/agent-deployments`: what its nouns share.

use http::HeaderMap;
use nullspace_store::idempotency::Claim;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;

use super::{agent_deployment, agent_run, agent_service, agent_version, extract::idempotency_key};
use crate::{
    app::{AppState, Caller},
    error::{Error, Result},
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().nest(
        "/v1/agent-deployments",
        OpenApiRouter::new()
            .merge(agent_deployment::routes())
            .merge(agent_version::routes())
            .merge(agent_run::routes())
            .merge(agent_service::routes()),
    )
}

/// The claim of a request on its idempotency key, if it has one. `place` is what of the path matters: the
/// same key below another deployment is another request.
pub(super) fn claim<T: Serialize>(
    headers: &HeaderMap,
    caller: &Caller,
    route: &'static str,
    place: &[&str],
    request: &T,
) -> Result<Option<Claim>> {
    let Some(key) = idempotency_key(headers)? else {
        return Ok(None);
    };
    // As it was understood: spaces and the order of fields do not matter.
    let body = serde_json::to_vec(&(place, request))
        .map_err(|e| Error::internal(format!("writing a request as JSON: {e}")))?;
    Ok(Some(Claim {
        key_id: caller.key_id.to_string(),
        route,
        key,
        body,
    }))
}

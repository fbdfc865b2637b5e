//! `/v1/audit`: who asked for what, and what came of it.

use axum::{Extension, extract::State};
use nullspace_api::{
    ErrorBody,
    audit::{AuditPage, ListAuditQuery},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Query};
use crate::{
    app::{AppState, Caller, audit},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_audit))
}

/// What keys of the caller's tenant changed, used and were refused, newest first. An operator's key has that of all tenants, and
/// what was asked without a valid key. Needs the scope `keys:read`.
#[utoipa::path(get, path = "/v1/audit", tag = "keys", params(ListAuditQuery),
    responses(
        (status = 200, body = AuditPage),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 403, body = ErrorBody, description = "`permission_denied`"),
    ))]
async fn list_audit(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListAuditQuery>,
) -> Result<Json<AuditPage>> {
    audit::list(&app, &caller, query).await.map(Json)
}

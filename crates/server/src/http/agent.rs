//! `/v1/agent-deployments`.

use utoipa_axum::router::OpenApiRouter;

use crate::app::AppState;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
}

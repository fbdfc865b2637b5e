//! `/v1/agent-deployments`, `/v1/agent-runs`, `/v1/agent-gc`: one file per noun below it.

use utoipa_axum::router::OpenApiRouter;

use super::{agent_deployment, agent_gc, agent_run, agent_service, agent_version};
use crate::app::AppState;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .nest(
            "/v1/agent-deployments",
            OpenApiRouter::new()
                .merge(agent_deployment::routes())
                .merge(agent_version::routes())
                .merge(agent_run::routes())
                .merge(agent_service::routes()),
        )
        .nest("/v1/agent-runs", agent_run::routes_by_id())
        .nest("/v1/agent-gc", agent_gc::routes())
}

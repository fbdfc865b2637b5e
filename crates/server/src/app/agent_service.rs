//! Services: deployments can be made for them; starting one is not there yet.

use super::{App, agent};
use crate::error::Result;

/// Refuses calls for services below anything but a service deployment.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_mode_conflict`.
pub async fn require_service(app: &App, reference: &str) -> Result<()> {
    let reference = reference.to_owned();
    app.store
        .read(move |db| agent::require_mode(&agent::find(db, &reference)?, "service"))
        .await
}

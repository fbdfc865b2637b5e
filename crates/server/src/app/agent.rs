//! Agent Deployments.

use super::AppState;
use crate::error::Result;

/// The agent side's own state.
#[derive(Debug, Default)]
pub struct Agents {}

/// Carries on what was under way when the last server stopped. Called once, after the machines were
/// adopted and before the first request.
///
/// # Errors
/// When the record cannot be read.
pub async fn start(_app: &AppState) -> Result<()> {
    Ok(())
}

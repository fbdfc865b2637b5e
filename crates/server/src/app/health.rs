//! Whether a machine can be created now.

use super::App;

/// The template that `healthz` speaks about.
const TEMPLATE: &str = "base";

/// `Ok` when a machine can be created from `base`, otherwise what is in the way.
///
/// # Errors
/// The reason, as a sentence.
pub async fn check(app: &App) -> Result<(), String> {
    if app.stopping.is_cancelled() {
        return Err("the server is going down".into());
    }
    app.templates
        .find_builtin(TEMPLATE)
        .map_err(|e| e.message)?;
    app.engine.health().await.map_err(|e| e.to_string())
}

//! Layers of builds that no template, no build at work and no machine needs.

use nullspace_api::agent::{GcItem, GcReport};

use super::{image, layer};
use crate::{app::App, error::Result};

/// Removes them, or only says which they are.
///
/// # Errors
/// When the disk or the record cannot be read or written.
pub async fn collect(app: &App, dry_run: bool, report: &mut GcReport) -> Result<()> {
    image::note(app).await?;
    let needed = app.store.read(layer::needed).await?;
    for row in layer::all(app).await? {
        if needed.contains(&row.id) || app.templates.held.has(&row.id) {
            continue;
        }
        if dry_run || layer::remove(app, &row.id).await? {
            report.items.push(GcItem {
                kind: "template_layer".into(),
                name: row.id,
                size_bytes: row.size_bytes,
                reason: "no template that is left, and no machine, has it".into(),
            });
        }
    }
    Ok(())
}

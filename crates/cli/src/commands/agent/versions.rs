//! `nullspace agent versions`

use nullspace_api::agent::{Deployment, ListQuery};
use nullspace_client::agents::Version;

use crate::app::App;
use crate::error::Outcome;
use crate::reference;
use crate::ui::time;

/// List the versions of a deployment, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent versions report
  nullspace agent versions report --status ready --json

The active version, which runs when none is named, has a star before its number.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// Only this status.
    #[arg(long, value_parser = ["created", "building", "ready", "failed", "superseded"])]
    status: Option<String>,
    /// The most rows.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: u32,
    /// Go on after a page; printed below it.
    #[arg(long)]
    cursor: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let query = ListQuery {
        status: args.status.clone(),
        version_id: None,
        limit: Some(args.limit),
        cursor: args.cursor.clone(),
    };
    let page = client.list_versions(&deployment.id, &query).await?;
    if ui.json {
        ui.json(&page)?;
        return Ok(0);
    }
    ui.line("NUMBER\tID\tSTATUS\tDIGEST\tCACHE\tCREATED");
    for version in &page.items {
        ui.line(row(&deployment, version));
    }
    if let Some(cursor) = &page.next_cursor {
        ui.note(format!("Next cursor: {cursor}"));
    }
    Ok(0)
}

/// A version in one line.
fn row(deployment: &Deployment, version: &Version) -> String {
    let active = deployment.active_version_id.as_ref() == Some(&version.id);
    let number = format!(
        "{}{}",
        if active { "*" } else { "" },
        version.version_number
    );
    let digest: String = version.bundle_digest.chars().take(12).collect();
    let cache = version
        .cache_summary
        .as_ref()
        .map_or("-", |cache| cache.status.as_str());
    let created = time(version.created_at.as_deref());
    [
        &number,
        &version.id,
        &version.status,
        &digest,
        cache,
        &created,
    ]
    .join("\t")
}

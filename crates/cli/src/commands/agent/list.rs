//! `nullspace agent list`

use nullspace_api::agent::{Deployment, ListDeploymentsQuery};

use crate::app::App;
use crate::error::Outcome;

/// List deployments, newest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nullspace agent list --mode job --json")]
pub(super) struct Args {
    /// Only this mode.
    #[arg(long, value_parser = ["job", "service"])]
    mode: Option<String>,
    /// Only this status; without it all but deleted ones.
    #[arg(long, value_parser = ["active", "paused", "deleted"])]
    status: Option<String>,
    /// The most rows.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: u32,
    /// Go on after a page; printed below it.
    #[arg(long)]
    cursor: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let query = ListDeploymentsQuery {
        mode: args.mode.clone(),
        status: args.status.clone(),
        limit: Some(args.limit),
        cursor: args.cursor.clone(),
    };
    let page = app.client()?.list_deployments(&query).await?;
    if app.ui.json {
        app.ui.json(&page)?;
        return Ok(0);
    }
    app.ui.line("ID\tNAME\tMODE\tSTATUS\tACTIVE_VERSION");
    for deployment in &page.items {
        app.ui.line(row(deployment));
    }
    if let Some(cursor) = &page.next_cursor {
        app.ui.note(format!("Next cursor: {cursor}"));
    }
    Ok(0)
}

/// A deployment in one line.
pub(super) fn row(deployment: &Deployment) -> String {
    let version = deployment.active_version_id.as_deref().unwrap_or("-");
    [
        &deployment.id,
        &deployment.name,
        &deployment.mode,
        &deployment.status,
        version,
    ]
    .join("\t")
}

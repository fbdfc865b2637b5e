//! `nullspace agent gc`

use crate::app::App;
use crate::error::Outcome;
use crate::ui::tame;

/// Remove bundles, artifacts and outputs on the server that nothing points at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent gc --dry-run     what would be removed, and why
  nullspace agent gc --json")]
pub(super) struct Args {
    /// Only show what would be removed.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let spinner = ui.spinner("Looking for what nothing points at");
    let report = client.collect_garbage(args.dry_run).await;
    spinner.finish_and_clear();
    let report = report?;
    if ui.json {
        ui.json(&report)?;
        return Ok(0);
    }
    if !report.items.is_empty() {
        ui.line("KIND\tNAME\tSIZE_BYTES\tREASON");
    }
    for item in &report.items {
        let size = item.size_bytes.to_string();
        ui.line(
            [&item.kind, &item.name, &size, &tame(&item.reason)]
                .map(String::as_str)
                .join("\t"),
        );
    }
    let verb = if report.dry_run {
        "Would free"
    } else {
        "Freed"
    };
    ui.line(format!(
        "{verb} {} bytes in {} items",
        report.freed_bytes,
        report.items.len()
    ));
    Ok(0)
}

//! `nullspace agent logs`

use std::time::Duration;

use nullspace_api::agent::{LogEvent, LogsQuery};

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::follow::{Seen, follow};
use crate::reference::{self, TargetArgs};
use crate::ui::{tame, time};

/// Show the log of a run or a service.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent logs report --run adrun_123 --tail 20
  nullspace agent logs report --run adrun_123 --follow --json     one JSON object per line")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Skip this many lines.
    #[arg(long, default_value_t = 0, value_name = "N")]
    offset: u64,
    /// The most lines of a page.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Go on after a page.
    #[arg(long)]
    cursor: Option<String>,
    /// Only the newest lines.
    #[arg(long, value_name = "N")]
    tail: Option<u32>,
    /// Show new lines until the run or service has ended.
    #[arg(long, short = 'f')]
    follow: bool,
    /// Pause between looks where the server cannot be waited on.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    poll_interval_ms: u64,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let Some(target) = args.target.named() else {
        return Err(
            CliError::usage("exactly one of --run and --service is needed").hint(format!(
                "The latest run: nullspace agent status {}",
                args.deployment
            )),
        );
    };
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let query = LogsQuery {
        offset: Some(args.offset),
        limit: Some(args.limit),
        cursor: args.cursor.clone(),
        tail: args.tail,
        wait_ms: None,
    };
    if args.follow {
        let poll = Duration::from_millis(args.poll_interval_ms.max(10));
        let mut show = |seen: Seen<'_>| {
            match seen {
                Seen::Line(event) if ui.json => ui.json_line(event)?,
                Seen::Line(event) => ui.line(line(event)),
                Seen::State(_) => {}
                Seen::Lost(error) => ui.warn(format!("{error}; trying again")),
            }
            Ok(())
        };
        follow(&client, &deployment.id, &target, query, poll, &mut show).await?;
        return Ok(0);
    }
    let logs = client.get_logs(&deployment.id, &target, &query).await?;
    if ui.json {
        ui.json(&logs)?;
        return Ok(0);
    }
    for event in &logs.events {
        ui.line(line(event));
    }
    if let Some(cursor) = logs.next_cursor.filter(|_| logs.has_more) {
        ui.dim(format!("There is more: --cursor {cursor}"));
    }
    Ok(0)
}

/// A line of a log, with its time and level.
fn line(event: &LogEvent) -> String {
    format!(
        "{} {} {}",
        time(Some(&event.created_at)),
        event.level,
        tame(&event.message)
    )
}

//! `nullspace agent cancel`

use crate::app::App;
use crate::error::Outcome;
use crate::reference;

/// End a run. One that has ended stays as it is.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nullspace agent cancel my-agent --run adrun_123 --reason \"wrong input\""
)]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// This run; without it the latest.
    #[arg(long, value_name = "RUN_ID", value_parser = crate::input::named)]
    run: Option<String>,
    /// Kept with the run.
    #[arg(long)]
    reason: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let id = match &args.run {
        Some(id) => id.clone(),
        None => reference::latest_run(&client, &deployment).await?.id,
    };
    let run = client
        .cancel_run(&deployment.id, &id, args.reason.as_deref())
        .await?;
    if app.ui.json {
        app.ui.json(&run)?;
    } else {
        app.ui.line(format!("{} {}", run.id, run.status));
    }
    Ok(0)
}

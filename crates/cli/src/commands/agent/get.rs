//! `nullspace agent get`

use crate::app::App;
use crate::error::Outcome;
use crate::reference;

/// Show a deployment, by id or name.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let deployment = reference::deployment(&app.client()?, &args.deployment).await?;
    if app.ui.json {
        app.ui.json(&deployment)?;
    } else {
        app.ui.line(super::list::row(&deployment));
    }
    Ok(0)
}

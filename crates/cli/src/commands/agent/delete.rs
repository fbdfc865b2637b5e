//! `nullspace agent delete`

use serde::Serialize;

use crate::app::App;
use crate::error::Outcome;
use crate::{exit, input, reference};

/// Delete a deployment: its runs end, its services stop, its name is free again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// Do not ask.
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: bool,
    id: &'a str,
    name: &'a str,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let question = format!("Delete {} ({})?", deployment.name, deployment.id);
    if !input::confirmed(app, args.yes, &question)? {
        return Ok(exit::GENERAL);
    }
    client.delete_deployment(&deployment.id).await?;
    if app.ui.json {
        app.ui.json(&Deleted {
            deleted: true,
            id: &deployment.id,
            name: &deployment.name,
        })?;
    } else {
        app.ui
            .line(format!("Deleted {} ({})", deployment.name, deployment.id));
    }
    Ok(0)
}

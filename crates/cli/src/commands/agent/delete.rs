//! `nullspace agent delete`

use std::io::{BufRead as _, IsTerminal as _};

use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::reference;

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
    if !args.yes && !app.ui.json {
        if !std::io::stdin().is_terminal() {
            return Err(CliError::usage("not deleted: there is nobody to ask").hint("Add --yes."));
        }
        eprint!("Delete {} ({})? [y/N] ", deployment.name, deployment.id);
        let mut answer = String::new();
        std::io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(|error| CliError::local("cannot read the answer", &error))?;
        if !matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
            app.ui.note("Not deleted.");
            return Ok(crate::exit::GENERAL);
        }
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

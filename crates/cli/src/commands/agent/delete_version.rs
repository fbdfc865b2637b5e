//! `nullspace agent delete-version`

use nullspace_api::agent::Deployment;
use nullspace_client::Client;
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::{exit, input, reference};

/// Delete a version that is not the active one. Its bundle goes with the next `nullspace agent gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent delete-version report adver_123
  nullspace agent delete-version report 3 --yes")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    /// Its id, or its number.
    #[arg(value_name = "VERSION", value_parser = crate::input::named)]
    which: String,
    /// Do not ask.
    #[arg(long, short = 'y')]
    yes: bool,
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: bool,
    id: &'a str,
    deployment_id: &'a str,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let id = version_id(&client, &deployment, &args.which).await?;
    let question = format!("Delete version {id} of {}?", deployment.name);
    if !input::confirmed(app, args.yes, &question)? {
        return Ok(exit::GENERAL);
    }
    client.delete_version(&deployment.id, &id).await?;
    if app.ui.json {
        app.ui.json(&Deleted {
            deleted: true,
            id: &id,
            deployment_id: &deployment.id,
        })?;
    } else {
        app.ui
            .line(format!("Deleted version {id} of {}", deployment.name));
    }
    Ok(0)
}

/// The id of a version that is given by id or number.
async fn version_id(
    client: &Client,
    deployment: &Deployment,
    given: &str,
) -> Result<String, CliError> {
    let Ok(number) = given.parse::<u64>() else {
        return Ok(given.to_owned());
    };
    let versions = client.all_versions(&deployment.id).await?;
    versions
        .into_iter()
        .find(|version| version.version_number == number)
        .map(|version| version.id)
        .ok_or_else(|| {
            CliError::new(
                "agent_version_not_found",
                format!("{} has no version {number}", deployment.name),
            )
            .hint(format!(
                "See them with `nullspace agent versions {}`.",
                deployment.name
            ))
        })
}

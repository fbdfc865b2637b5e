//! `nullspace agent diff`

mod compare;
mod content;
mod lines;
mod show;

use nullspace_api::agent::{Output, Outputs, Run};
use nullspace_client::Client;
use nullspace_client::agents::Version;
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};
use compare::{Difference, is_same};
use content::Content;

/// Compare two runs, be they of one deployment or of two: version, input, how they ended, how long each step took, and
/// what they left behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent diff adrun_123 adrun_456
  nullspace agent diff adrun_123 adrun_456 --json | jq .same

Only what differs is shown. Durations are told, but runs that differ in nothing else are the same.
Contents of outputs are compared up to 8 MiB. The exit code is 0 either way.")]
pub(super) struct Args {
    /// The run to compare with.
    #[arg(value_name = "RUN_A", value_parser = crate::input::named)]
    a: String,
    /// The run that is compared.
    #[arg(value_name = "RUN_B", value_parser = crate::input::named)]
    b: String,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    run_a: &'a str,
    run_b: &'a str,
    /// Whether nothing differs but durations.
    same: bool,
    differences: &'a [Difference],
    /// Declared paths whose content nobody looked at: directories, large files, files that cannot be read any more.
    not_compared: &'a [String],
}

/// All that is known of one of the two.
struct Side {
    run: Run,
    /// Only if the versions differ, and it is still there.
    version: Option<Version>,
    outputs: Vec<Left>,
}

/// What a run left under one declared path.
struct Left {
    output: Output,
    content: Content,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let (a, b) = tokio::try_join!(client.get_run_by_id(&args.a), client.get_run_by_id(&args.b))?;
    let other_version = a.version_id != b.version_id;
    let (left_a, left_b) = tokio::try_join!(outputs(&client, &a), outputs(&client, &b))?;
    let (version_a, version_b) = if other_version {
        tokio::try_join!(version(&client, &a), version(&client, &b))?
    } else {
        (None, None)
    };
    let found = content::look(ui, &client, &left_a, &left_b).await;
    let a = Side {
        run: a,
        version: version_a,
        outputs: found.a,
    };
    let b = Side {
        run: b,
        version: version_b,
        outputs: found.b,
    };
    let differences = compare::sides(&a, &b);
    if ui.json {
        ui.json(&Report {
            run_a: &a.run.id,
            run_b: &b.run.id,
            same: is_same(&differences),
            differences: &differences,
            not_compared: &found.not_compared,
        })?;
    } else {
        show::show(ui, &a, &b, &differences, &found.not_compared);
    }
    Ok(0)
}

async fn outputs(client: &Client, run: &Run) -> Result<Outputs, CliError> {
    Ok(client.get_outputs(&run.deployment_id, &run.id).await?)
}

/// The version of a run, unless it was deleted since.
async fn version(client: &Client, run: &Run) -> Result<Option<Version>, CliError> {
    match client
        .get_version(&run.deployment_id, &run.version_id)
        .await
    {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

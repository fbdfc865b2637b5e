//! `nullspace snapshot …`: machines' states that others are made of.

use clap::Subcommand;
use nullspace_api::snapshot::ListSnapshotsQuery;
use serde_json::Value;

use crate::app::App;
use crate::error::Outcome;
use crate::input;

/// Machines' states that are kept.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep a running machine's memory and files
    Create(Create),
    /// List snapshots
    List(List),
    /// Show a snapshot
    Get(One),
    /// Delete a snapshot
    Delete(One),
}

/// Keep a running machine's memory and files, for machines that are made of them: machine create --snapshot-id.
/// Prints the snapshot as JSON.
#[derive(Debug, clap::Args)]
struct Create {
    /// The machine's id. It goes on running.
    #[arg(value_name = "MACHINE", value_parser = input::named)]
    machine: String,
    /// With the same key it is kept once, however often this is run.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// List snapshots, newest first, as JSON.
#[derive(Debug, clap::Args)]
struct List {
    /// Only those of this machine.
    #[arg(long, alias = "sandbox-id", value_name = "MACHINE")]
    machine_id: Option<String>,
    /// Only those with this in their metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// The same, as a JSON object.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT", value_parser = input::named)]
    snapshot: String,
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            let key = args.idempotency_key.as_deref();
            app.ui
                .json(&client.create_snapshot(&args.machine, key).await?)?;
        }
        Command::List(args) => {
            let metadata = input::metadata(&args.metadata, args.metadata_json.as_deref())?;
            let query = ListSnapshotsQuery {
                machine_id: args.machine_id,
                metadata: metadata.map(|fields| Value::Object(fields).to_string()),
                ..ListSnapshotsQuery::default()
            };
            app.ui.json(&client.list_snapshots(&query).await?)?;
        }
        Command::Get(args) => app.ui.json(&client.get_snapshot(&args.snapshot).await?)?,
        Command::Delete(args) => client.delete_snapshot(&args.snapshot).await?,
    }
    Ok(0)
}

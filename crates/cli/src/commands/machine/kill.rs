//! `nullspace machine kill`

use nullspace_api::machine::ListMachinesQuery;
use serde::Serialize;

use crate::app::App;
use crate::error::Outcome;

/// End machines. What is in them is lost.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine kill mch_123 mch_456
  nullspace machine kill --all")]
pub(super) struct Args {
    /// The machines' ids.
    #[arg(
        value_name = "MACHINE",
        value_parser = crate::input::named,
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    machines: Vec<String>,
    /// All machines that have not ended.
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Killed<'a> {
    id: &'a str,
    status: &'a str,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let ids = if args.all {
        let query = ListMachinesQuery {
            limit: Some(nullspace_api::page::MAX_LIMIT),
            ..Default::default()
        };
        client
            .list_machines(&query)
            .await?
            .into_iter()
            .map(|machine| machine.id)
            .collect()
    } else {
        args.machines.clone()
    };
    let mut killed = Vec::new();
    let mut failed = None;
    for id in &ids {
        match client.delete_machine(id).await {
            Ok(()) => {
                killed.push(Killed {
                    id,
                    status: "destroyed",
                });
                if !ui.json {
                    ui.line(format!("Killed {id}"));
                }
            }
            // With --all, one that ended by itself in the meantime is as good as killed.
            Err(error) if args.all && error.is_not_found() => {}
            // The others are still to be ended.
            Err(error) => {
                if !ui.json && ids.len() > 1 {
                    ui.note(format!("{id}: {error}"));
                }
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failed {
        return Err(error.into());
    }
    if ui.json {
        match killed.as_slice() {
            [one] if !args.all => ui.json(one)?,
            all => ui.json(&all)?,
        }
    } else if ids.is_empty() {
        ui.note("No machines to end.");
    }
    Ok(0)
}

//! `nullspace machine list`

use nullspace_api::machine::ListMachinesQuery;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;
use crate::ui::time;

/// List machines, newest first; those that have ended only with --state.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine list
  nullspace machine list --state destroyed --state error --json
  nullspace machine list --metadata team=platform")]
pub(super) struct Args {
    /// Only these fields of each; implies --json.
    #[arg(long, value_name = "A,B")]
    fields: Option<String>,
    /// Only this state; may be repeated.
    #[arg(long, value_parser = ["creating", "running", "paused", "destroyed", "error"])]
    state: Vec<String>,
    /// Only from this template.
    #[arg(long)]
    template: Option<String>,
    /// Only with this entry of metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// Only with this metadata, a JSON object.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
    /// Machines in one request; all are listed anyway.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on after a page.
    #[arg(long, value_name = "TOKEN")]
    next_token: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let metadata = input::metadata(&args.metadata, args.metadata_json.as_deref())?;
    let query = ListMachinesQuery {
        state: (!args.state.is_empty()).then(|| args.state.join(",")),
        template: args.template.clone(),
        metadata: metadata.map(|metadata| json!(metadata).to_string()),
        limit: args.limit,
        next_token: args.next_token.clone(),
        fields: args.fields.clone(),
    };
    let client = app.client()?;
    if args.fields.is_some() {
        let mut page = client.list_machine_fields(&query).await?;
        let items = match &mut page {
            Value::Object(page) => page.remove("items"),
            items => Some(items.take()),
        };
        app.ui.json(
            &items.ok_or_else(|| CliError::new("invalid_response", "the answer has no items"))?,
        )?;
        return Ok(0);
    }
    let machines = client.list_machines(&query).await?;
    if app.ui.json {
        app.ui.json(&machines)?;
        return Ok(0);
    }
    if machines.is_empty() {
        app.ui
            .note("No machines. Make one with `nullspace machine create`.");
        return Ok(0);
    }
    let header = [
        "ID", "STATUS", "TEMPLATE", "VCPUS", "MEMORY", "CREATED", "ENDS",
    ];
    let rows = machines.iter().map(|machine| {
        [
            machine.id.clone(),
            machine.status.as_str().to_owned(),
            machine.template.clone(),
            machine.config.vcpus.to_string(),
            format!("{} MiB", machine.config.memory_mb),
            time(Some(&machine.created_at)),
            time(machine.timeout_at.as_deref()),
        ]
    });
    app.ui.table(header, rows);
    Ok(0)
}

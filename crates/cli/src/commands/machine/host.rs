//! `nullspace machine host`

use serde_json::json;

use crate::app::App;
use crate::error::Outcome;

/// Publish a port, and print the host that it has from outside. Whoever reaches that needs no token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine host mch_123 8080
  curl \"http://$(nullspace machine host mch_123 8080)/\"

A port for some eyes alone: nullspace machine preview-url create")]
pub(super) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The port in it.
    #[arg(value_name = "PORT")]
    port: u16,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let host = app.client()?.machine_host(&args.machine, args.port).await?;
    match app.ui.json {
        true => app.ui.json(&json!({ "host": host.host }))?,
        false => app.ui.line(host.host),
    }
    Ok(0)
}

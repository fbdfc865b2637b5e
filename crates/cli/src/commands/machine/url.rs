//! `nullspace machine url`

use nullspace_api::preview::{Host, Readiness};
use serde::Serialize;

use super::readiness::{WaitArgs, not_ready};
use crate::app::App;
use crate::error::Outcome;

/// Publish a port, and print its URL. Whoever reaches that needs no token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine url mch_123 8080 --wait
  curl \"$(nullspace machine url mch_123 8080)\"

A port for some eyes alone: nullspace machine preview-url create")]
pub(super) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The port in it.
    #[arg(value_name = "PORT")]
    port: u16,
    /// Print the URL for WebSockets.
    #[arg(long)]
    websocket: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// As published clients print it.
#[derive(Serialize)]
struct Report {
    host: String,
    url: String,
    websocket_url: String,
    access_token_expires_at: Option<String>,
    access_token_transport: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    readiness: Option<Readiness>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let client = app.client()?;
    let Host {
        host,
        url,
        websocket_url,
    } = client.machine_host(&args.machine, args.port).await?;
    let readiness = args.wait.wait(&client, &args.machine, args.port).await?;
    let report = Report {
        url: url.unwrap_or_else(|| format!("http://{host}")),
        websocket_url: websocket_url.unwrap_or_else(|| format!("ws://{host}")),
        host,
        access_token_expires_at: None,
        access_token_transport: None,
        readiness,
    };
    if app.ui.json {
        app.ui.json(&report)?;
        return Ok(0);
    }
    if let Some(readiness) = report.readiness.as_ref().filter(|r| !r.ready) {
        return Err(not_ready(readiness));
    }
    app.ui.line(match args.websocket {
        true => report.websocket_url,
        false => report.url,
    });
    Ok(0)
}

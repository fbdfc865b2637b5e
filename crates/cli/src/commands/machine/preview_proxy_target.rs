//! `nullspace machine preview-proxy-target …`: ports behind a proxy of the caller's own.

use clap::{Subcommand, ValueEnum};
use nullspace_api::preview::{ProxyTarget, ProxyTargetRequest, Readiness, Transport};
use serde::Serialize;

use super::preview_url::{expires, show_grant};
use super::readiness::{self, WaitArgs};
use crate::app::App;
use crate::error::Outcome;

/// Ports behind a proxy of your own, which has its own name and its own users.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the addresses and tokens that a proxy needs
    Create(Create),
}

/// Make the addresses and tokens that a proxy needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine preview-proxy-target create mch_123 8080 --expires 1h --json
  nullspace machine preview-proxy-target create mch_123 8080 --transport http --raw

The proxy sends the token in the header x-nullspace-preview-proxy-token of each request: one
token for requests, another for WebSockets. Without --raw or --json they are not shown.")]
struct Create {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The port in it.
    #[arg(value_name = "PORT")]
    port: u16,
    /// How long they work: 120, 10m or 1h; bare seconds.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// What may pass; may be repeated [default: both].
    #[arg(long, value_enum, value_name = "TRANSPORT")]
    transport: Vec<TransportArg>,
    /// Show the tokens.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TransportArg {
    /// Requests.
    Http,
    /// WebSockets.
    Websocket,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    target: &'a ProxyTarget,
    #[serde(skip_serializing_if = "Option::is_none")]
    readiness: Option<&'a Readiness>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let Command::Create(create) = args.command;
    let (ui, client) = (app.ui, app.client()?);
    let transports = create.transport.iter().map(|transport| match transport {
        TransportArg::Http => Transport::Http,
        TransportArg::Websocket => Transport::Websocket,
    });
    let request = ProxyTargetRequest {
        expires_in_seconds: expires(create.expires.as_deref())?,
        transports: (!create.transport.is_empty()).then(|| transports.collect()),
        ..ProxyTargetRequest::default()
    };
    let target = client.preview_proxy_target(&create.machine, create.port, &request);
    let target = target.await?;
    let readiness = create.wait.wait(&client, &create.machine, create.port);
    let readiness = readiness.await?;
    if ui.json {
        ui.json(&Report {
            target: &target,
            readiness: readiness.as_ref(),
        })?;
        return Ok(0);
    }
    let token = |token: &str| match create.raw {
        true => token.to_owned(),
        false => "<redacted>".to_owned(),
    };
    for (what, url, given) in [
        ("HTTP", &target.http_url, &target.http_token),
        ("WebSocket", &target.websocket_url, &target.websocket_token),
    ] {
        ui.line(format!(
            "{what} upstream: {}",
            url.as_deref().unwrap_or("none")
        ));
        if let Some(given) = given {
            ui.line(format!("{what} token: {}", token(given)));
        }
    }
    ui.line(format!("Token header: {}", target.token_header_name));
    show_grant(ui, &target.grant);
    ui.line(format!("Expires: {}", target.expires_at));
    ui.line(format!(
        "Forward headers: {}",
        target.required_forwarded_headers.join(", ")
    ));
    if let Some(header) = &target.traffic_access_header_name {
        ui.line(format!("Private traffic header: {header}"));
    }
    for warning in &target.warnings {
        ui.warn(warning);
    }
    readiness::show(ui, readiness.as_ref());
    Ok(0)
}

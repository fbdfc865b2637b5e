//! `nullspace machine preview-url …`: URLs of ports that have their token in them.

use clap::Subcommand;
use nullspace_api::preview::{
    AuthMode, Grant, GrantStatus, PreviewUrl, Readiness, SignedPreviewRequest, TokenTransport,
};
use serde::Serialize;

use super::readiness::{self, WaitArgs};
use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::ui::Ui;

/// URLs of ports that have their token in them. Whoever has one gets in until it is over or revoked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a URL that works for as long as the server lets previews work
    Get(One),
    /// Make a URL that works for a while
    Create(Create),
    /// List who may see ports of a machine
    List(List),
    /// Make a URL work no more
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The port in it.
    #[arg(value_name = "PORT")]
    port: u16,
    /// Select the URL for WebSockets.
    #[arg(long)]
    websocket: bool,
    /// Show the tokens.
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Make a URL that works for a while.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine preview-url create mch_123 8080 --expires 15m --wait --raw
  nullspace machine preview-url create mch_123 8080 --json

Without --raw or --json the tokens are not shown: who has one gets in.")]
struct Create {
    #[command(flatten)]
    one: One,
    /// How long it works: 120, 10m or 1h; bare seconds.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Only for this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

#[derive(Debug, clap::Args)]
struct Revoke {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The grant, as `preview-url list` shows it.
    #[arg(value_name = "GRANT", value_parser = crate::input::named)]
    grant: String,
}

/// As published clients print it.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    preview: &'a PreviewUrl,
    selected_transport: &'a str,
    selected_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    readiness: Option<&'a Readiness>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Get(one) => {
            let preview = app.client()?.preview_url(&one.machine, one.port).await?;
            show(&one, &preview, app).await
        }
        Command::Create(create) => {
            let one = &create.one;
            let request = SignedPreviewRequest {
                expires_in_seconds: expires(create.expires.as_deref())?,
            };
            let made = app.client()?;
            let made = made.signed_preview_url(&one.machine, one.port, &request);
            show(one, &made.await?, app).await
        }
        Command::List(list) => {
            let client = app.client()?;
            let grants = client.list_preview_urls(&list.machine, list.port).await?;
            if app.ui.json {
                app.ui.json(&grants)?;
                return Ok(0);
            }
            for grant in &grants.items {
                app.ui.line(line(grant));
            }
            if grants.items.is_empty() {
                app.ui.note("No preview URLs");
            }
            Ok(0)
        }
        Command::Revoke(revoke) => {
            let client = app.client()?;
            let revoked = client.revoke_preview_url(&revoke.machine, &revoke.grant);
            let revoked = revoked.await?;
            match app.ui.json {
                true => app.ui.json(&revoked)?,
                false => app.ui.line(format!("Revoked {}", revoked.grant.id)),
            }
            Ok(0)
        }
    }
}

async fn show(one: &One, preview: &PreviewUrl, app: &App) -> Outcome {
    let (ui, client) = (app.ui, app.client()?);
    let readiness = one.wait.wait(&client, &one.machine, one.port).await?;
    let (transport, selected) = match one.websocket {
        true => ("websocket", &preview.websocket_url),
        false => ("http", &preview.url),
    };
    if ui.json {
        ui.json(&Report {
            preview,
            selected_transport: transport,
            selected_url: selected,
            readiness: readiness.as_ref(),
        })?;
        return Ok(0);
    }
    let url = |url: &str| match one.raw {
        true => url.to_owned(),
        false => redacted(url),
    };
    ui.line(format!("Selected {transport}: {}", url(selected)));
    ui.line(format!("URL: {}", url(&preview.url)));
    ui.line(format!("WebSocket URL: {}", url(&preview.websocket_url)));
    show_grant(ui, &preview.grant);
    ui.line(format!("Expires: {}", preview.access_token_expires_at));
    readiness::show(ui, readiness.as_ref());
    if !one.raw {
        ui.dim("The token is not shown; --raw shows it.");
    }
    Ok(0)
}

/// What people want to know of a grant.
pub(super) fn show_grant(ui: Ui, grant: &Grant) {
    ui.line(format!("Grant: {}", grant.id));
    ui.line(format!("Status: {}", status(grant)));
    ui.line(format!("Auth: {}", auth(grant)));
}

fn status(grant: &Grant) -> &'static str {
    match grant.status {
        GrantStatus::Active => "active",
        GrantStatus::Revoked => "revoked",
        GrantStatus::Expired => "expired",
        GrantStatus::Disabled => "disabled",
    }
}

fn auth(grant: &Grant) -> String {
    let mode = match grant.auth_mode {
        AuthMode::Direct => "direct",
        AuthMode::Proxy => "proxy",
    };
    let transport = match grant.bootstrap_transport {
        TokenTransport::Query => "query",
        TokenTransport::Header => "header",
    };
    format!("{mode}/{transport}")
}

fn line(grant: &Grant) -> String {
    let mut line = format!(
        "{} port={} status={} auth={} expires={} uses={} http={} ws={} bytes_in={} bytes_out={}",
        grant.id,
        grant.port,
        status(grant),
        auth(grant),
        grant.expires_at,
        grant.use_count,
        grant.http_request_count,
        grant.websocket_connection_count,
        grant.bytes_in_count,
        grant.bytes_out_count,
    );
    if let Some(code) = &grant.last_error_code {
        line.push_str(&format!(" last_error={code}"));
        if let Some(at) = &grant.last_error_at {
            line.push_str(&format!(" last_error_at={at}"));
        }
    }
    if let Some(at) = &grant.disabled_at {
        line.push_str(&format!(" disabled_at={at}"));
    }
    line
}

/// A URL without its token.
fn redacted(url: &str) -> String {
    match url.split_once("edge_token=") {
        Some((before, rest)) => {
            let after = rest.find('&').map_or("", |at| &rest[at..]);
            format!("{before}edge_token=<redacted>{after}")
        }
        None => url.to_owned(),
    }
}

/// What `--expires` says, in seconds.
pub(super) fn expires(text: Option<&str>) -> Result<Option<u64>, CliError> {
    text.map(seconds)
        .transpose()
        .map_err(|error| CliError::usage(format!("--expires: {error}")))
}

/// A time as whole seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let text = text.trim().to_ascii_lowercase();
    let (number, factor) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        _ => (text.as_str(), 1),
    };
    match number.parse::<u64>() {
        Ok(number) if number > 0 => Ok(number.saturating_mul(factor)),
        _ => Err("must be a whole number above 0, such as 120, 10m or 1h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_seconds() {
        for (text, expected) in [("120", 120), ("90s", 90), ("10m", 600), ("2H", 7200)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "0m", "-1", "1d", "h", "1.5h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        for (url, shown) in [
            (
                "http://h:1/?edge_token=t",
                "http://h:1/?edge_token=<redacted>",
            ),
            (
                "http://h:1/?edge_token=t&a=b",
                "http://h:1/?edge_token=<redacted>&a=b",
            ),
            ("http://h:1/", "http://h:1/"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}

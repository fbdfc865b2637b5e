//! `nullspace doctor`

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use nullspace_api::machine::ListMachinesQuery;
use nullspace_client::Client;
use serde::Serialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::error::Outcome;
use crate::exit;

#[cfg(target_os = "linux")]
pub(crate) mod attack;
#[cfg(target_os = "linux")]
mod host;

/// Check this program, its configuration, the server, and on Linux whether this host can run machines.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exits with 1 if a check fails; with --json always with 0, see `ok` in the output."
)]
pub(crate) struct Args {
    /// Try on this host what is promised of machines: escapes, other machines' and the host's services, what is the server's, floods.
    /// Takes two minutes, in a server of its own
    #[arg(long)]
    attack: bool,
}

/// How long the server may take for one check.
const LIMIT: Duration = Duration::from_secs(5);

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Probe {
    name: &'static str,
    status: &'static str,
    message: String,
    fix: Option<String>,
    details: Value,
}

impl Probe {
    fn new(name: &'static str, status: &'static str, message: impl Into<String>) -> Self {
        Self {
            name,
            status,
            message: message.into(),
            fix: None,
            details: json!({}),
        }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    fn details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    probes: Vec<Probe>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    next_steps: Vec<String>,
}

pub(crate) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    if args.attack {
        #[cfg(target_os = "linux")]
        return attack::run(app).await;
        #[cfg(not(target_os = "linux"))]
        return Err(crate::error::CliError::usage(
            "machines run on Linux: attack them there",
        ));
    }
    let mut probes = vec![Probe::new(
        "cli_version",
        "pass",
        concat!("nullspace ", env!("CARGO_PKG_VERSION")),
    )];
    probes.push(key_probe(app));
    let client = Client::new(&app.config);
    let (reachable, local) = match &client {
        Ok(client) => {
            let probe = reachability(app, client).await;
            let ok = probe.status == "pass";
            probes.push(probe);
            probes.push(key_validity(app, client, ok).await);
            (ok, client.is_local())
        }
        Err(error) => {
            let details = json!({"base_url": app.config.base_url.value, "source": app.config.base_url.source.to_string()});
            let fix =
                "Set NULLSPACE_API_URL or --api-url to an address like http://localhost:3000.";
            probes.push(
                Probe::new("api_reachability", "fail", error.to_string())
                    .fix(fix)
                    .details(details),
            );
            (false, false)
        }
    };
    #[cfg(target_os = "linux")]
    {
        let mut host = host::probes();
        if reachable || !local {
            // The server lives elsewhere, or lives well here: what this host lacks stops nobody now.
            host.iter_mut()
                .filter(|probe| probe.status == "fail")
                .for_each(|probe| probe.status = "warn");
        }
        probes.extend(host);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (reachable, local);
    let ok = probes.iter().all(|probe| probe.status != "fail");
    let next_steps = if ok { Vec::new() } else { next_steps(&probes) };
    if ui.json {
        ui.json(&Report {
            ok,
            probes,
            next_steps,
        })?;
        return Ok(0);
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    for probe in &probes {
        let mut message = probe.message.clone();
        if let Some(fix) = &probe.fix {
            message += &format!("\n→ {fix}");
        }
        table.add_row([probe.status, probe.name, &message]);
    }
    for line in table.lines() {
        ui.line(line.trim_end());
    }
    ui.note(if ok {
        "All is well."
    } else {
        "Something needs attention."
    });
    Ok(if ok { 0 } else { exit::GENERAL })
}

fn key_probe(app: &App) -> Probe {
    match &app.config.api_key {
        Some(key) => Probe::new("api_key", "pass", format!("API key from {}", key.source))
            .details(json!({"source": key.source.to_string()})),
        None => Probe::new("api_key", "fail", "no API key is configured")
            .fix("Export NULLSPACE_API_KEY or run `nullspace auth login`; a server that starts on this host puts its own key in place."),
    }
}

async fn reachability(app: &App, client: &Client) -> Probe {
    let url = &app.config.base_url;
    let mut details = json!({"base_url": url.value, "source": url.source.to_string()});
    match client.health(LIMIT).await {
        Ok((status, body)) => {
            details["status_code"] = json!(status);
            let told = if status == 200 {
                String::new()
            } else {
                format!(": {}", crate::commands::quickstart::reason(&body))
            };
            let message = format!("{} answers with status {status}{told}", url.value);
            if status < 500 {
                Probe::new("api_reachability", "pass", message).details(details)
            } else {
                Probe::new("api_reachability", "fail", message)
                    .fix("The server is there but cannot make machines yet; its log says what it waits for.")
                    .details(details)
            }
        }
        Err(error) => {
            let message = format!("{} does not answer: {error}", url.value);
            details["error"] = json!(error.to_string());
            Probe::new("api_reachability", "fail", message)
                .fix("Start a server with `nullspace serve`, or set NULLSPACE_API_URL to where it is.")
                .details(details)
        }
    }
}

async fn key_validity(app: &App, client: &Client, reachable: bool) -> Probe {
    if app.config.api_key.is_none() {
        return Probe::new(
            "key_validity",
            "fail",
            "not checked, as there is no API key",
        )
        .fix("Export NULLSPACE_API_KEY or run `nullspace auth login`.");
    }
    let query = ListMachinesQuery {
        limit: Some(1),
        ..ListMachinesQuery::default()
    };
    match tokio::time::timeout(LIMIT, client.list_machine_fields(&query)).await {
        Ok(Ok(_)) => Probe::new("key_validity", "pass", "the server knows the key"),
        Ok(Err(error)) if exit::of_code(error.code()) == exit::UNAUTHENTICATED => Probe::new(
            "key_validity",
            "fail",
            format!("the server refuses the key: {error}"),
        )
        .fix("Save the right key with `nullspace auth login`.")
        .details(json!({"code": error.code()})),
        Ok(Err(error)) if reachable || error.code() != "transport_error" => Probe::new(
            "key_validity",
            "fail",
            format!("not checked, as the server answers: {error}"),
        )
        .fix("Is that a Nullspace server? Its log may say more.")
        .details(json!({"code": error.code()})),
        _ => Probe::new(
            "key_validity",
            "fail",
            "not checked, as the server does not answer",
        )
        .fix("Start the server first."),
    }
}

fn next_steps(probes: &[Probe]) -> Vec<String> {
    probes
        .iter()
        .filter(|probe| probe.status == "fail")
        .filter_map(|probe| probe.fix.clone())
        .collect()
}

//! `nullspace agent run`

use std::path::PathBuf;
use std::time::Duration;

use nullspace_api::agent::{CreateRunRequest, Deployment, LogEvent, Logs, LogsQuery, Run};
use nullspace_client::Client;
use nullspace_client::agents::{Target, is_terminal};
use serde::Serialize;
use serde_json::Map;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::follow::{Seen, State, follow};
use crate::input::EnvArgs;
use crate::ui::{Ui, between, tame};
use crate::{exit, fields, input, reference};

/// Run a job. With --follow, show its log as it grows and its result.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent run report --input-json '{\"topic\": \"machines\"}' --follow
  nullspace agent run report --input task.json --env-file .env.production
  nullspace agent run report --retain-on-failure --retention-seconds 3600
  nullspace agent run --from adrun_123 --set topic=birds --set limits.pages=3 --follow

With --from, the version and the input are those of an earlier run, and --set changes single
fields of the input: the key may be dotted, the value is JSON if it reads as JSON and text
otherwise. Variables are not stored, so they are not taken over.

Variables that the project names under [env] are taken from --env, --env-file, then from this
environment. With --follow the exit code is 0 if the run succeeded and 1 if it did not; an
interrupt leaves the run alone.")]
pub(crate) struct Args {
    /// Id or name; with --from that of the run if left out.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named, required_unless_present = "from")]
    deployment: Option<String>,
    /// Take the version and the input of this run.
    #[arg(long, value_name = "RUN_ID", group = "inputs", value_parser = crate::input::named)]
    from: Option<String>,
    /// A file with the input, a JSON object; - is standard input.
    #[arg(long, value_name = "FILE", group = "inputs", alias = "input-file")]
    input: Option<PathBuf>,
    /// The input itself, a JSON object.
    #[arg(long, value_name = "JSON", group = "inputs")]
    input_json: Option<String>,
    /// Change one field of the input; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "inputs")]
    set: Vec<String>,
    /// Run this version; without it the active one, or that of --from.
    #[arg(long, value_name = "ID")]
    version_id: Option<String>,
    #[command(flatten)]
    envs: EnvArgs,
    /// Keep the machine if the run fails.
    #[arg(long, overrides_with = "no_retain_on_failure")]
    retain_on_failure: bool,
    /// Do not keep it.
    #[arg(long, overrides_with = "retain_on_failure")]
    no_retain_on_failure: bool,
    /// How long a failed run's machine is kept.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    retention_seconds: Option<u64>,
    /// Run once, however often this is called with the same key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Show the log until the run has ended.
    #[arg(long, short = 'f')]
    follow: bool,
    /// Pause between looks where the server cannot be waited on.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    poll_interval_ms: u64,
}

/// The most lines that `--follow --json` holds until the run has ended.
const MAX_LINES: usize = 100_000;

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    // What can be refused without the server is.
    let given = match (&args.input, &args.input_json) {
        (Some(path), _) => input::object_file("--input", path)?,
        (_, Some(json)) => input::object("--input-json", json)?,
        _ => Map::new(),
    };
    let client = app.client()?;
    let (deployment, from) = start(&client, args).await?;
    let version = args
        .version_id
        .clone()
        .or_else(|| Some(from.as_ref()?.version_id.clone()));
    let mut input = from.map_or(given, |run| run.input);
    for pair in &args.set {
        fields::set(&mut input, pair)?;
    }
    let envs = reference::envs(
        app,
        &client,
        "agent run",
        &deployment,
        version.as_deref(),
        &args.envs,
    )
    .await?;
    let retain = match (args.retain_on_failure, args.no_retain_on_failure) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    };
    let request = CreateRunRequest {
        input: Some(input),
        version_id: version,
        envs,
        retain_on_failure: retain,
        retention_seconds: args.retention_seconds,
    };
    let run = client
        .create_run(&deployment.id, &request, args.idempotency_key.as_deref())
        .await?;
    if !args.follow {
        if ui.json {
            ui.json(&run)?;
            return Ok(0);
        }
        ui.line(format!("Run: {} ({})", run.id, run.status));
        ui.dim(format!(
            "Next: nullspace agent logs {} --run {} --follow",
            deployment.name, run.id
        ));
        return Ok(0);
    }
    let poll = Duration::from_millis(args.poll_interval_ms.max(10));
    let Some(watched) = watch(ui, &client, &deployment.name, run, poll).await? else {
        return Ok(exit::INTERRUPTED);
    };
    if ui.json {
        ui.json(&watched)?;
    }
    Ok(watched.exit_code())
}

/// The deployment, and the run that this one begins from.
async fn start(client: &Client, args: &Args) -> Result<(Deployment, Option<Run>), CliError> {
    match (&args.deployment, &args.from) {
        (Some(reference), None) => Ok((reference::deployment(client, reference).await?, None)),
        (Some(reference), Some(from)) => {
            let deployment = reference::deployment(client, reference).await?;
            let run = client.get_run(&deployment.id, from).await?;
            Ok((deployment, Some(run)))
        }
        (None, Some(from)) => {
            let run = client.get_run_by_id(from).await?;
            let deployment = client.get_deployment(&run.deployment_id).await?;
            Ok((deployment, Some(run)))
        }
        // The parser does not let this pass.
        (None, None) => Err(CliError::usage("a deployment or --from is needed")),
    }
}

/// A run that was followed to its end.
#[derive(Serialize)]
pub(crate) struct Watched {
    pub(crate) run: Run,
    /// All lines with `--json`, none otherwise: they were shown.
    pub(crate) logs: Logs,
}

impl Watched {
    pub(crate) fn exit_code(&self) -> u8 {
        if self.run.status == "succeeded" {
            0
        } else {
            exit::GENERAL
        }
    }
}

/// Follows a run to its end and tells how it went. `None` when the user interrupted it.
pub(crate) async fn watch(
    ui: Ui,
    client: &Client,
    name: &str,
    run: Run,
    poll: Duration,
) -> Result<Option<Watched>, CliError> {
    let (deployment, target) = (run.deployment_id.clone(), Target::Run(run.id.clone()));
    let mut lines = Vec::new();
    let spinner = ui.spinner(format!("{} {}", run.id, run.status));
    if !ui.json {
        ui.note(format!(
            "Run {} {}",
            ui.bold(&run.id),
            ui.status(&run.status)
        ));
    }
    let mut last = run.status.clone();
    let mut show = |seen: Seen<'_>| {
        match seen {
            Seen::Line(event) if ui.json => {
                if lines.len() < MAX_LINES {
                    lines.push(event.clone());
                }
            }
            Seen::Line(event) => spinner.suspend(|| print_line(ui, event)),
            Seen::State(state) => {
                spinner.set_message(format!("{} {}", run.id, state.status()));
                // The end is told with all that belongs to it, below.
                if !ui.json && state.status() != last && !is_terminal(state.status()) {
                    last = state.status().to_owned();
                    spinner.suspend(|| {
                        ui.note(format!("Run {} {}", ui.bold(&run.id), ui.status(&last)))
                    });
                }
            }
            Seen::Lost(error) => spinner.suspend(|| ui.warn(format!("{error}; trying again"))),
        }
        Ok(())
    };
    let query = LogsQuery {
        limit: Some(500),
        ..LogsQuery::default()
    };
    let followed = follow(client, &deployment, &target, query, poll, &mut show);
    let state = tokio::select! {
        state = followed => state,
        _ = tokio::signal::ctrl_c() => {
            spinner.finish_and_clear();
            ui.note(format!("\nThe run goes on. See it with: nullspace agent logs {name} --run {} --follow", run.id));
            ui.note(format!("End it with: nullspace agent cancel {name} --run {}", run.id));
            return Ok(None);
        }
    };
    spinner.finish_and_clear();
    let State::Run(run) = state? else {
        return Err(CliError::new(
            "internal_error",
            "followed a run and found a service",
        ));
    };
    if !ui.json {
        outcome(ui, client, name, &run).await;
    }
    let limit = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    let logs = Logs {
        limit,
        has_more: lines.len() == MAX_LINES,
        offset: 0,
        events: lines,
        next_cursor: None,
    };
    Ok(Some(Watched { run: *run, logs }))
}

/// How a run ended, what it left behind and what can be done next; on stderr.
async fn outcome(ui: Ui, client: &Client, name: &str, run: &Run) {
    let mut told = format!("Run {} {}", ui.bold(&run.id), ui.status(&run.status));
    if let Some(took) = between(run.started_at.as_deref(), run.completed_at.as_deref()) {
        told += &format!(" in {took}");
    }
    if let Some(code) = run.exit_code {
        told += &format!(", exit code {code}");
    }
    ui.note(told);
    if let Some(reason) = &run.failure_reason {
        ui.note(format!("Reason: {}", tame(reason)));
    }
    // The run is over and told; outputs that cannot be listed now can be later.
    if let Ok(outputs) = client.get_outputs(&run.deployment_id, &run.id).await {
        for output in &outputs.outputs {
            let size = output
                .size_bytes
                .map(|size| format!(", {size} bytes"))
                .unwrap_or_default();
            ui.note(format!(
                "Output {}: {}{size}",
                output.configured_path,
                ui.status(&output.status)
            ));
        }
        if outputs
            .outputs
            .iter()
            .any(|output| output.status == "available")
        {
            ui.dim(format!(
                "Next: nullspace agent outputs {name} --run {} --download DIR",
                run.id
            ));
        }
    }
    if run.status == "failed" || run.status == "timed_out" {
        if let Some(machine) = &run.sandbox_id
            && client
                .get_machine(machine)
                .await
                .is_ok_and(|m| m.status.as_str() == "running")
        {
            ui.dim(format!(
                "Its machine is kept: nullspace agent shell {name} --run {}",
                run.id
            ));
        } else {
            ui.dim(format!(
                "To look around next time: nullspace agent run {name} --retain-on-failure --follow"
            ));
        }
    }
}

/// A line of a run's log: what the program printed goes where it printed it, the rest is news for people.
fn print_line(ui: Ui, event: &LogEvent) {
    let message = tame(&event.message);
    match event.source.as_str() {
        "stdout" => ui.line(message),
        "stderr" => ui.note(message),
        _ => ui.dim(format!("· {message}")),
    }
}

//! `nullspace agent dev`
//!
//! ```text
//!  make a machine ─ upload ─ install ─┬─ entry point ── ended ──┐
//!                                     │        │ change         │ change
//!                                     └─ sync ◀┴────────────────┘
//! ```
//! Whatever happens, the machine is deleted in the end, unless it is to be kept. While it is used its time limit is
//! short and renewed, so that one whose owner was killed does not stay.

mod output;
mod project;
mod published;
mod session;
mod signals;
mod sync;
mod watch;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nullspace_api::machine::{CreateMachineRequest, NetworkPolicy};
use nullspace_client::Client;
use nullspace_client::agents::EnvSpec;
use nullspace_project::{AgentConfig, Mode};
use serde_json::{Map, Value};

use super::deploy::reserved_mode;
use crate::app::App;
use crate::error::Outcome;
use crate::input::{self, EnvArgs};
use crate::ui::Ui;
use project::Project;
use session::Session;
use signals::Signals;

/// Run a local project in a machine of its own, and again whenever it changes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent dev my-agent
  nullspace agent dev --input-json '{\"topic\": \"machines\"}'
  nullspace agent dev --once --env-file .env.local      run it once; exits with its exit code
  nullspace agent dev --keep                            leave the machine for a look inside

What is uploaded is what `agent deploy` would bundle; a change of anything else is ignored. After
a change the changed files are uploaded and the entry point is run again; the install step runs
again when requirements.txt, pyproject.toml, uv.lock, package.json or package-lock.json changed.
What the program made in the machine stays there. The port of a service is published: its URL is
printed, and open to whoever reaches the server.

Ctrl-C ends the program and deletes the machine. With --json the project is run once and its
machine stays until its time limit, as the answer names it.")]
pub(super) struct Args {
    /// The project.
    #[arg(value_name = "DIR", conflicts_with = "project_dir")]
    dir: Option<PathBuf>,
    /// The same.
    #[arg(long, value_name = "DIR")]
    project_dir: Option<PathBuf>,
    /// Use this file instead of DIR/nullspace.agent.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    envs: EnvArgs,
    /// A file with the input of a job, a JSON object; - is standard input.
    #[arg(long, value_name = "FILE", group = "inputs")]
    input: Option<PathBuf>,
    /// The input itself, a JSON object.
    #[arg(long, value_name = "JSON", group = "inputs")]
    input_json: Option<String>,
    /// Run it once, without watching for changes.
    #[arg(long)]
    once: bool,
    /// Do not delete the machine in the end.
    #[arg(long)]
    keep: bool,
}

/// Time limit of a machine in use; renewed long before.
const LEASE: Duration = Duration::from_secs(600);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(120);
/// Time limit of a machine that is kept.
const KEPT: Duration = Duration::from_secs(3600);
/// A variable holds no more, with room for its name.
const MAX_INPUT_IN_ENV: usize = 100_000;
/// Where no time limit is configured, as published clients have it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let root = args
        .dir
        .as_deref()
        .or(args.project_dir.as_deref())
        .unwrap_or(Path::new("."));
    let input = match (&args.input, &args.input_json) {
        (Some(path), _) => input::object_file("--input", path)?,
        (_, Some(json)) => input::object("--input-json", json)?,
        _ => Map::new(),
    };
    let project = Project::read(root.to_owned(), args.config.clone()).await?;
    if let Some(error) = reserved_mode(&project.config) {
        return Err(error);
    }
    let spec = EnvSpec {
        required: project.config.env.required.clone(),
        optional: project.config.env.optional.clone(),
    };
    let envs = input::runtime_envs("agent dev", args.envs.given()?, &spec, |name| app.var(name))?;
    let limit = if ui.json {
        project
            .config
            .resources
            .timeout_seconds
            .map_or(DEFAULT_TIMEOUT, Duration::from_secs)
    } else {
        LEASE
    };
    let client = app.client()?;
    let mut signals = Signals::listen()?;
    let request = machine_request(&project.config, envs, &input, limit);
    let spinner = ui.spinner("Making a machine");
    let making = client.create_machine(&request, None);
    tokio::pin!(making);
    let mut interrupted = None;
    let machine = tokio::select! {
        machine = &mut making => machine,
        code = signals.next() => {
            // It may be there already: only who has its id can delete it.
            interrupted = Some(code);
            making.await
        }
    };
    spinner.finish_and_clear();
    let made = machine?;
    let machine = made.id.clone();
    let mut session = Session::new(ui, &client, made, project, input);
    if !ui.json {
        ui.note(format!("Machine {}", ui.bold(&machine)));
    }
    let outcome = match interrupted {
        Some(code) => Ok(code),
        None => tokio::select! {
            outcome = work(args, ui, &mut session) => outcome,
            never = renew(ui, &client, &machine) => match never {},
            code = signals.next() => {
                interrupted = Some(code);
                Ok(code)
            }
        },
    };
    // An answer that names the machine is of no use without it.
    let answered = ui.json && outcome.is_ok() && interrupted.is_none();
    if !answered {
        session.end(outcome.is_ok(), args.keep, &mut signals).await;
    }
    outcome
}

async fn work(args: &Args, ui: Ui, session: &mut Session<'_>) -> Outcome {
    session.upload().await?;
    if ui.json {
        return published::run(ui, session).await;
    }
    if args.once {
        return session.once().await;
    }
    session.watch().await
}

/// Keeps the machine from reaching its time limit, for as long as this is polled.
async fn renew(ui: Ui, client: &Client, machine: &str) -> Infallible {
    loop {
        tokio::time::sleep(RENEW).await;
        // With --json the limit is the project's own.
        if ui.json {
            continue;
        }
        if let Err(error) = client.set_timeout(machine, LEASE, None).await {
            ui.warn(format!(
                "the time limit of the machine could not be renewed: {error}"
            ));
        }
    }
}

/// The machine of a run of this project, as far as it can be asked for from here.
fn machine_request(
    config: &AgentConfig,
    envs: BTreeMap<String, String>,
    input: &Map<String, Value>,
    limit: Duration,
) -> CreateMachineRequest {
    let permissions = &config.permissions;
    let listed = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let (allow_out, deny_out) = (
        listed(&permissions.allow_out),
        listed(&permissions.deny_out),
    );
    let allow_public_traffic = permissions.allow_public_traffic.filter(|allowed| !allowed);
    let is_ruled = allow_out.is_some() || deny_out.is_some() || allow_public_traffic.is_some();
    let network = is_ruled.then(|| NetworkPolicy {
        allow_public_traffic,
        allow_out,
        deny_out,
        ..NetworkPolicy::default()
    });
    // Lines are seen when they are printed, not when a buffer is full.
    let mut all = BTreeMap::from([("PYTHONUNBUFFERED".to_owned(), "1".to_owned())]);
    let text = Value::Object(input.clone()).to_string();
    // Linux takes no longer variable; the file has the input in any case.
    if config.mode == Mode::Job && text.len() < MAX_INPUT_IN_ENV {
        all.insert("NULLSPACE_INPUT".to_owned(), text);
    }
    all.extend(envs);
    CreateMachineRequest {
        template: Some(config.template.clone()),
        vcpus: config
            .resources
            .vcpus
            .and_then(|count| u32::try_from(count).ok()),
        memory_mb: config.resources.memory_mb,
        disk_mb: config.resources.disk_mb,
        timeout_ms: Some(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        cwd: Some(config.workdir.clone()),
        envs: Some(all),
        metadata: Some(Map::from_iter([(
            "agent_dev".to_owned(),
            Value::from(config.name.clone()),
        )])),
        internet_access: permissions.internet_access,
        network,
        ..CreateMachineRequest::default()
    }
}

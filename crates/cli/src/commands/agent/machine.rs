//! `nullspace agent machine`

use nullspace_client::agents::Target;
use serde::Serialize;

use crate::app::App;
use crate::error::Outcome;
use crate::reference::{self, TargetArgs};
use crate::ui::Ui;

/// Show the machine behind a run or a service, and what can be done with it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --run and --service: the machine of the newest failed run, else of the newest run; of a
service, that of its live instance."
)]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    sandbox_id: &'a str,
    target_kind: &'a str,
    commands: Commands,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_id: Option<&'a str>,
}

/// What can be done with the machine.
#[derive(Serialize)]
struct Commands {
    get: String,
    exec: String,
    pty: String,
    files: String,
    destroy: String,
}

impl Commands {
    fn of(deployment: &str, target: &Target, machine: &str) -> Self {
        let (kind, _, id) = words(target);
        Self {
            get: format!("nullspace machine get {machine}"),
            exec: format!("nullspace machine exec {machine} --shell 'ls -la'"),
            pty: format!("nullspace agent shell {deployment} --{kind} {id}"),
            files: format!("nullspace machine cp {machine}:/workspace ."),
            destroy: format!("nullspace machine kill {machine}"),
        }
    }
}

/// A target's kind, its kind with a capital letter, and its id.
fn words(target: &Target) -> (&'static str, &'static str, &str) {
    match target {
        Target::Run(id) => ("run", "Run", id),
        Target::Service(id) => ("service", "Service", id),
    }
}

/// Tells people which machine it is and what can be done with it.
pub(super) fn tell(ui: Ui, deployment: &str, target: &Target, machine: &str) {
    let commands = Commands::of(deployment, target, machine);
    let (_, label, id) = words(target);
    ui.line(format!("Machine: {machine}"));
    ui.line(format!("{label}: {id}"));
    ui.line("Commands:");
    ui.line(format!("  get: {}", commands.get));
    ui.line(format!("  exec: {}", commands.exec));
    ui.line(format!("  shell: {}", commands.pty));
    ui.line(format!("  files: {}", commands.files));
    ui.line(format!("  destroy: {}", commands.destroy));
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let backing = args.target.backing(&client, &deployment).await?;
    if ui.json {
        let (kind, _, id) = words(&backing.target);
        ui.json(&Report {
            sandbox_id: &backing.machine,
            target_kind: kind,
            commands: Commands::of(&deployment.name, &backing.target, &backing.machine),
            run_id: (kind == "run").then_some(id),
            service_id: (kind == "service").then_some(id),
        })?;
    } else {
        tell(ui, &deployment.name, &backing.target, &backing.machine);
    }
    Ok(0)
}

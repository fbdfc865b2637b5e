//! `nullspace machine exec`

use nullspace_api::exec::{ExecRequest, ExecResponse};
use nullspace_client::Error;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;
use crate::ui::Ui;

/// Run a command in a machine. Exits with the command's own code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine exec mch_123 ls -la
  nullspace machine exec mch_123 --shell 'pip list | wc -l'
  nullspace machine exec mch_123 --timeout 600 -- make --json      options after -- are the command's

Options of this program are taken wherever they stand before a --.")]
pub(crate) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The program; with --shell a script for /bin/sh.
    #[arg(value_name = "COMMAND")]
    command: String,
    /// Its arguments.
    #[arg(value_name = "ARGS")]
    args: Vec<String>,
    /// Seconds after which the command is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Start it, print its process id, and do not wait.
    #[arg(long)]
    background: bool,
    /// Working directory.
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// A variable for the command; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Run it with the machine's shell.
    #[arg(long)]
    shell: bool,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let envs = input::pairs("--env", &args.env)?;
    let request = ExecRequest {
        command: args.command.clone(),
        args: (!args.args.is_empty()).then(|| args.args.clone()),
        cwd: args.cwd.clone(),
        envs: (!envs.is_empty()).then_some(envs),
        shell: args.shell.then_some(true),
        background: Some(args.background),
        timeout_secs: Some(args.timeout),
    };
    let client = app.client()?;
    let failed = |error: Error| match error.code() {
        // `exec $(…) -- ls` where nothing was printed: the first word of the command stands in the id's place.
        "machine_not_found" if !args.machine.starts_with(nullspace_api::id::MACHINE) => {
            CliError::from(error).hint(format!(
                "{:?} stands where the machine's id belongs, before the command.",
                args.machine
            ))
        }
        _ => error.into(),
    };
    if args.background {
        let started = client.exec_background(&args.machine, &request).await;
        let started = started.map_err(failed)?;
        if ui.json {
            ui.json(&started)?;
        } else {
            ui.line(format!("Started process {}", started.pid));
        }
        return Ok(0);
    }
    let response = client.exec(&args.machine, &request).await.map_err(failed)?;
    if ui.json {
        ui.json(&response)?;
    } else {
        print(ui, &response);
    }
    Ok(exit_code(response.exit_code))
}

/// What a command printed, where it printed it.
pub(crate) fn print(ui: Ui, response: &ExecResponse) {
    ui.data(response.stdout.as_bytes());
    if !response.stderr.is_empty() {
        // Not a line of ours: as it is, without a newline that was not there.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), response.stderr.as_bytes());
    }
    if response.truncated {
        ui.warn("the output was longer than one answer holds and was cut; write it to a file and copy that");
    }
}

/// A command's exit code as this program's.
pub(crate) fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(crate::exit::GENERAL)
}

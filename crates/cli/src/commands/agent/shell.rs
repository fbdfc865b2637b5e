//! `nullspace agent shell`

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use nullspace_api::exec::{ExecRequest, ExecResponse};
use nullspace_client::Client;

use crate::app::App;
use crate::commands::machine::exec::{exit_code, print};
use crate::error::{CliError, Outcome};
use crate::reference::{self, TargetArgs};

/// Run commands in the machine behind a run or a service.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent shell report --run adrun_123 --cmd 'ls -la /workspace/project'
  nullspace agent shell report < script.sh
  nullspace agent shell report                      a prompt; each line runs on its own

Exits with the command's own code.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    #[command(flatten)]
    target: TargetArgs,
    /// The command, for the machine's shell. Without it, lines are read from the terminal, or a script from
    /// standard input.
    #[arg(long, value_name = "COMMAND")]
    cmd: Option<String>,
    /// Seconds after which a command is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let machine = args.target.backing(&client, &deployment).await?.machine;
    let command = match &args.cmd {
        Some(command) => command.clone(),
        None if ui.json => "/bin/bash".to_owned(),
        None if std::io::stdin().is_terminal() => {
            return prompt(args, app, &client, &machine).await;
        }
        None => std::io::read_to_string(std::io::stdin()).map_err(|error| {
            CliError::local("cannot read the script from standard input", &error)
        })?,
    };
    let response = client
        .exec(&machine, &request(command, args.timeout))
        .await?;
    if ui.json {
        ui.json(&response)?;
    } else {
        print(ui, &response);
    }
    Ok(exit_code(response.exit_code))
}

fn request(command: String, timeout: u64) -> ExecRequest {
    ExecRequest {
        command,
        shell: Some(true),
        background: Some(false),
        timeout_secs: Some(timeout),
        ..ExecRequest::default()
    }
}

/// Goes to directory `$1`, runs `$2` there, and prints after `$3` where that ended.
const LINE: &str =
    r#"cd -- "$1" 2>/dev/null; eval "$2"; code=$?; printf '%s%s' "$3" "$PWD"; exit "$code""#;

/// Reads lines and runs each on its own; only the working directory is carried over.
async fn prompt(args: &Args, app: &App, client: &Client, machine: &str) -> Outcome {
    let ui = app.ui;
    let mark = format!("\n{}:", nullspace_api::id::new("cwd_"));
    let mut cwd = "/workspace".to_owned();
    let mut code = 0;
    ui.dim(format!("Each line runs on its own in {machine}; variables are not carried over. End with exit or Ctrl-D."));
    loop {
        eprint!("{}:{cwd}$ ", ui.bold(machine));
        // Where there is no stderr there is no prompt; lines still run.
        let _ = std::io::stderr().flush();
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let read =
            read.map_err(|error| CliError::local("cannot read from the terminal", &error))?;
        match line.trim() {
            "" if read == 0 => {
                ui.note("");
                return Ok(exit_code(code));
            }
            "exit" => return Ok(exit_code(code)),
            "" => continue,
            line => {
                let mut request = request(LINE.to_owned(), args.timeout);
                request.args = Some(vec![cwd.clone(), line.to_owned(), mark.clone()]);
                match client.exec(machine, &request).await {
                    Ok(response) => {
                        let (stdout, now) = match response.stdout.rsplit_once(&mark) {
                            Some((stdout, now)) => (stdout.to_owned(), now.to_owned()),
                            None => (response.stdout.clone(), cwd),
                        };
                        cwd = now;
                        code = response.exit_code;
                        let newline = if stdout.is_empty() || stdout.ends_with('\n') {
                            ""
                        } else {
                            "\n"
                        };
                        print(
                            ui,
                            &ExecResponse {
                                stdout: stdout + newline,
                                ..response
                            },
                        );
                    }
                    Err(error) => ui.failure(&error.into()),
                }
            }
        }
    }
}

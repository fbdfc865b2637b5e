//! `nullspace machine process …`: what runs in a machine, and commands whose output comes as they print it.

use std::io::Write as _;

use clap::Subcommand;
use nullspace_api::{
    exec::{ExecRequest, ExecResponse},
    socket::{ClientMessage, ServerMessage},
};
use nullspace_client::socket::Socket;
use serde_json::json;

use super::exec::{exit_code, print};
use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;
use crate::ui::tame;

/// Processes that go on by themselves, and commands that are streamed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List what was started
    List(Of),
    /// Show what a process printed so far
    Logs(One),
    /// Write standard input to a background process
    Stdin(One),
    /// End a process and everything it started
    Kill(One),
    /// Run a command and show its output as it comes
    Stream(Stream),
    /// Show a process's output from its start until it ends
    Attach(One),
    /// Run a few lines in a language
    CodeRun(CodeRun),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The process, as `process list` shows it.
    #[arg(value_name = "PID")]
    pid: u32,
}

/// Run a command and show its output as it comes. Exits with the command's own code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine process stream mch_123 make -j4
  nullspace machine process stream mch_123 --shell 'for i in 1 2 3; do echo $i; sleep 1; done'

Without --timeout it may take as long as it likes, and with 30, which clients say when they were
told nothing. It goes on if this program is interrupted:
see `process list` and `process attach`.")]
struct Stream {
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
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
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

/// Run a few lines in a language. Exits with the code's own exit code.
#[derive(Debug, clap::Args)]
struct CodeRun {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The code.
    #[arg(value_name = "CODE")]
    code: String,
    /// The language; one that is not python, javascript, ruby, bash or sh is a program that takes -c.
    #[arg(long, value_name = "NAME", default_value = "python")]
    language: String,
    /// Seconds after which it is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::List(args) => list(&args, app).await,
        Command::Logs(args) => logs(&args, app).await,
        Command::Stdin(args) => stdin(&args, app).await,
        Command::Kill(args) => kill(&args, app).await,
        Command::Stream(args) => stream(&args, app).await,
        Command::Attach(args) => attach(&args, app).await,
        Command::CodeRun(args) => code_run(&args, app).await,
    }
}

async fn list(args: &Of, app: &App) -> Outcome {
    let processes = app.client()?.list_processes(&args.machine).await?;
    if app.ui.json {
        app.ui.json(&processes)?;
    } else if processes.is_empty() {
        app.ui.line("No processes.");
    } else {
        for process in processes {
            let status = if process.running { "running" } else { "exited" };
            let line = format!("{}\t{status}\t{}", process.pid, tame(&process.command));
            app.ui.line(line);
        }
    }
    Ok(0)
}

async fn logs(args: &One, app: &App) -> Outcome {
    let logs = app.client()?.process_logs(&args.machine, args.pid).await?;
    if app.ui.json {
        app.ui.json(&logs)?;
    } else {
        app.ui.data(logs.output.as_bytes());
    }
    Ok(0)
}

async fn stdin(args: &One, app: &App) -> Outcome {
    let text = std::io::read_to_string(std::io::stdin())
        .map_err(|error| CliError::local("cannot read standard input", &error))?;
    let bytes = text.len();
    let client = app.client()?;
    client.process_stdin(&args.machine, args.pid, text).await?;
    if app.ui.json {
        app.ui
            .json(&json!({"pid": args.pid, "bytes_sent": bytes}))?;
    } else {
        app.ui
            .line(format!("Sent {bytes} bytes to process {}", args.pid));
    }
    Ok(0)
}

async fn kill(args: &One, app: &App) -> Outcome {
    app.client()?.kill_process(&args.machine, args.pid).await?;
    if app.ui.json {
        app.ui.json(&json!({"pid": args.pid, "status": "killed"}))?;
    } else {
        app.ui.line(format!("Killed process {}", args.pid));
    }
    Ok(0)
}

async fn stream(args: &Stream, app: &App) -> Outcome {
    let envs = input::pairs("--env", &args.env)?;
    let mut socket = app.client()?.socket(&args.machine).await?;
    let start = ClientMessage::ExecStart {
        id: ID.into(),
        command: args.command.clone(),
        args: args.args.clone(),
        timeout_secs: args.timeout,
        cwd: args.cwd.clone(),
        envs: (!envs.is_empty()).then_some(envs),
        shell: args.shell.then_some(true),
    };
    socket.send(&start).await?;
    follow(socket, app).await
}

async fn attach(args: &One, app: &App) -> Outcome {
    let mut socket = app.client()?.socket(&args.machine).await?;
    let connect = ClientMessage::ExecConnect {
        id: ID.into(),
        pid: args.pid,
    };
    socket.send(&connect).await?;
    follow(socket, app).await
}

/// The only request of a connection.
const ID: &str = "cli";

/// Shows what a process prints until it ends; as JSON, all of it at the end.
async fn follow(mut socket: Socket, app: &App) -> Outcome {
    let mut all = ExecResponse::default();
    while let Some(message) = socket.next().await? {
        match message {
            ServerMessage::ExecStarted { pid, .. } => all.pid = Some(pid),
            ServerMessage::ExecStdout { data, .. } if app.ui.json => all.stdout.push_str(&data),
            ServerMessage::ExecStderr { data, .. } if app.ui.json => all.stderr.push_str(&data),
            ServerMessage::ExecStdout {
                data, data_base64, ..
            } => {
                app.ui.data(&bytes(&data, data_base64.as_deref()));
            }
            ServerMessage::ExecStderr {
                data, data_base64, ..
            } => {
                let bytes = bytes(&data, data_base64.as_deref());
                let _ = std::io::stderr().write_all(&bytes);
            }
            ServerMessage::ExecGap { bytes, .. } => app.ui.warn(format!(
                "{bytes} bytes were printed while nobody looked, and are not there any more"
            )),
            ServerMessage::ExecExit {
                exit_code: code, ..
            } => {
                all.exit_code = code;
                if app.ui.json {
                    app.ui.json(&all)?;
                }
                return Ok(exit_code(code));
            }
            ServerMessage::Error { code, message, .. } => {
                return Err(CliError::new(&*code, message.into_owned()));
            }
            _ => {}
        }
    }
    Err(CliError::new(
        "transport_error",
        "the connection ended before the process",
    ))
}

/// What was printed, byte by byte.
fn bytes(data: &str, data_base64: Option<&str>) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
    data_base64
        .and_then(|encoded| BASE64.decode(encoded).ok())
        .unwrap_or_else(|| data.as_bytes().to_owned())
}

async fn code_run(args: &CodeRun, app: &App) -> Outcome {
    let (program, flag) = match args.language.as_str() {
        "python" => ("python3", "-c"),
        "javascript" => ("node", "-e"),
        "ruby" => ("ruby", "-e"),
        other => (other, "-c"),
    };
    let request = ExecRequest {
        command: program.into(),
        args: Some(vec![flag.into(), args.code.clone()]),
        timeout_secs: Some(args.timeout),
        ..ExecRequest::default()
    };
    let response = app.client()?.exec(&args.machine, &request).await?;
    if app.ui.json {
        app.ui.json(&response)?;
    } else {
        print(app.ui, &response);
    }
    Ok(exit_code(response.exit_code))
}

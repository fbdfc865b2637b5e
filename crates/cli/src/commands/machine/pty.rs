//! `nullspace machine pty …`: terminals of a machine.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::Subcommand;
use nullspace_api::{
    pty::PtyResizeRequest,
    socket::{ClientMessage, ServerMessage},
};
use nullspace_client::socket::Socket;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::json;
use tokio::sync::mpsc;

use super::exec::exit_code;
use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;

/// Terminals.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a terminal with a shell in it
    Create(Create),
    /// List terminals
    List(Of),
    /// Show a terminal's details
    Get(One),
    /// Sit down at a terminal
    Connect(Connect),
    /// End everything in a terminal
    Kill(One),
    /// Change a terminal's size
    Resize(Resize),
}

/// Make a terminal with a shell in it. It lives until its shell ends; prints its details as JSON.
#[derive(Debug, clap::Args)]
struct Create {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// A word of yours for the request.
    #[arg(long, value_name = "TEXT", default_value = "cli")]
    id: String,
    /// Characters in a line.
    #[arg(long, value_name = "N", default_value_t = 120)]
    cols: u16,
    /// Lines.
    #[arg(long, value_name = "N", default_value_t = 30)]
    rows: u16,
    /// Working directory.
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// A variable for the shell; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
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
    /// The terminal, as `pty list` shows it.
    #[arg(value_name = "SESSION", value_parser = crate::input::named)]
    session: String,
}

/// Sit down at a terminal. It shows the last that it showed, and goes on when you leave. Exits with the shell's code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine pty connect mch_123 --session-id pty_456
  echo 'make; exit' | nullspace machine pty connect mch_123 --session-id pty_456

What comes from a pipe is typed as it is: end it with `exit`, or the shell goes on and so does
this.")]
struct Connect {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The process of the terminal's shell.
    #[arg(value_name = "PID", conflicts_with = "session_id")]
    target: Option<u32>,
    /// The terminal, as `pty list` shows it.
    #[arg(long, value_name = "SESSION")]
    session_id: Option<String>,
    /// A word of yours for the request.
    #[arg(long, value_name = "TEXT", default_value = "cli")]
    id: String,
    /// Seconds after which to leave, with exit code 124.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct Resize {
    #[command(flatten)]
    one: One,
    /// Characters in a line.
    #[arg(long, value_name = "N")]
    cols: u16,
    /// Lines.
    #[arg(long, value_name = "N")]
    rows: u16,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Create(args) => create(args, app).await,
        Command::List(args) => {
            let all = app.client()?.list_ptys(&args.machine).await?;
            app.ui.json(&all)?;
            Ok(0)
        }
        Command::Get(args) => {
            let client = app.client()?;
            app.ui
                .json(&client.get_pty(&args.machine, &args.session).await?)?;
            Ok(0)
        }
        Command::Connect(args) => connect(args, app).await,
        Command::Kill(args) => {
            let client = app.client()?;
            client.kill_pty(&args.machine, &args.session).await?;
            Ok(0)
        }
        Command::Resize(args) => {
            let size = PtyResizeRequest {
                cols: args.cols,
                rows: args.rows,
            };
            let client = app.client()?;
            let One { machine, session } = &args.one;
            client.resize_pty(machine, session, size).await?;
            Ok(0)
        }
    }
}

async fn create(args: Create, app: &App) -> Outcome {
    let envs = input::pairs("--env", &args.env)?;
    let mut socket = app.client()?.socket(&args.machine).await?;
    let start = ClientMessage::PtyStart {
        id: args.id,
        cols: Some(args.cols),
        rows: Some(args.rows),
        cwd: args.cwd,
        envs: (!envs.is_empty()).then_some(envs),
    };
    socket.send(&start).await?;
    let started = started(&mut socket).await?;
    app.ui.json(&json!({
        "session_id": started.session,
        "pid": started.pid,
        "cols": args.cols,
        "rows": args.rows,
    }))?;
    Ok(0)
}

/// The terminal that a connection shows.
struct Started {
    session: String,
    pid: u32,
}

async fn started(socket: &mut Socket) -> Result<Started, CliError> {
    match socket.next().await? {
        Some(ServerMessage::PtyStarted {
            session_id, pid, ..
        }) => Ok(Started {
            session: session_id.into_owned(),
            pid,
        }),
        Some(ServerMessage::Error { code, message, .. }) => {
            Err(CliError::new(&*code, message.into_owned()))
        }
        _ => Err(gone()),
    }
}

fn gone() -> CliError {
    CliError::new("transport_error", "the connection ended before the shell")
}

async fn connect(args: Connect, app: &App) -> Outcome {
    if args.target.is_none() && args.session_id.is_none() {
        return Err(CliError::usage("PID or --session-id is needed")
            .hint("`nullspace machine pty list` shows both."));
    }
    let mut socket = app.client()?.socket(&args.machine).await?;
    let connect = ClientMessage::PtyConnect {
        id: args.id.clone(),
        session_id: args.session_id,
        pid: args.target,
    };
    socket.send(&connect).await?;
    let started = started(&mut socket).await?;
    let limit = args.timeout.map(Duration::from_secs);
    let end = {
        // Restored however this ends.
        let _raw = Raw::enter();
        let sitting = sit(&mut socket, &args.id, &started.session, app.ui.json);
        match limit {
            Some(limit) => tokio::time::timeout(limit, sitting).await,
            None => Ok(sitting.await),
        }
    };
    let (code, error, timed_out) = match end {
        Err(_) => (124, None, true),
        Ok(Ok(code)) => (code, None, false),
        Ok(Err(error)) => (1, Some(error.message), false),
    };
    if app.ui.json {
        app.ui
            .json(&json!({"exit_code": code, "error": error, "timed_out": timed_out}))?;
    } else if let Some(error) = error {
        app.ui.warn(format!("PTY connection error: {error}"));
    }
    Ok(exit_code(code))
}

/// Shows and types until the shell ends: its exit code.
async fn sit(socket: &mut Socket, id: &str, session: &str, quiet: bool) -> Result<i32, CliError> {
    let mut typed = typed();
    let mut resized = resized();
    if let Some((cols, rows)) = size() {
        socket.send(&resize(id, session, cols, rows)).await?;
    }
    loop {
        tokio::select! {
            message = socket.next() => match message?.ok_or_else(gone)? {
                ServerMessage::PtyOutput { data_base64, .. } if !quiet => {
                    let bytes = BASE64.decode(data_base64.as_bytes()).unwrap_or_default();
                    let mut out = std::io::stdout().lock();
                    let shown = out.write_all(&bytes).and_then(|()| out.flush());
                    shown.map_err(|error| CliError::local("cannot show the terminal", &error))?;
                }
                ServerMessage::PtyExited { exit_code, .. } => return Ok(exit_code),
                ServerMessage::Error { code, message, .. } => {
                    return Err(CliError::new(&*code, message.into_owned()));
                }
                _ => {}
            },
            Some(bytes) = typed.recv() => {
                let input = ClientMessage::PtyInput {
                    id: id.to_owned(),
                    session_id: session.to_owned(),
                    data_base64: Some(BASE64.encode(bytes)),
                    data: None,
                };
                socket.send(&input).await?;
            }
            Some(()) = resized.recv() => {
                if let Some((cols, rows)) = size() {
                    socket.send(&resize(id, session, cols, rows)).await?;
                }
            }
        }
    }
}

fn resize(id: &str, session: &str, cols: u16, rows: u16) -> ClientMessage {
    ClientMessage::PtyResize {
        id: id.to_owned(),
        session_id: session.to_owned(),
        cols,
        rows,
    }
}

/// What is typed here. Read by a thread of its own: a read of a terminal cannot be given up.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut piece) {
            if sender.blocking_send(piece[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// News of this terminal's size.
fn resized() -> mpsc::Receiver<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = mpsc::channel(1);
    if std::io::stdin().is_terminal()
        && let Ok(mut changes) = signal(SignalKind::window_change())
    {
        tokio::spawn(async move {
            while changes.recv().await.is_some() {
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// This terminal's size, if there is one.
fn size() -> Option<(u16, u16)> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let size = tcgetwinsize(&stdin).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// This terminal, handing over every key as it is, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

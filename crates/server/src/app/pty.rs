//! Terminals: shells that people and programs look at and type into. A terminal lives in its machine and outlives every
//! connection to it and this server.

use std::collections::BTreeMap;

use nullspace_api::{error::code, exec::ExecRequest, id, pty::PtyInfo};
use nullspace_protocol::{ExecRequest as GuestExec, ProcessInfo, Retain, Terminal, TerminalSize};

use super::{App, exec, machine, process::KILL};
use crate::error::{Error, Result};

/// The size of a terminal that nobody has said one for.
const DEFAULT_SIZE: (u16, u16) = (120, 30);
/// The longest line and the most lines of a terminal.
const MAX_SIZE: u16 = 2000;
/// bash where there is one.
const SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash; else exec /bin/sh; fi";

/// What a terminal is asked for by.
#[derive(Clone, Debug)]
pub enum Which {
    /// Its id.
    Session(String),
    /// The shell in it.
    Pid(u32),
}

/// Makes one, with a shell in it.
///
/// # Errors
/// `invalid_request` (size, directory, variables) and those of [`machine::guest`].
pub async fn start(
    app: &App,
    machine_id: &str,
    (cols, rows): (Option<u16>, Option<u16>),
    cwd: Option<String>,
    envs: Option<BTreeMap<String, String>>,
) -> Result<PtyInfo> {
    let size = size(
        cols.unwrap_or(DEFAULT_SIZE.0),
        rows.unwrap_or(DEFAULT_SIZE.1),
    )?;
    let mut env = BTreeMap::from([("TERM".to_owned(), "xterm-256color".to_owned())]);
    env.extend(envs.unwrap_or_default());
    let request = exec::guest_request(ExecRequest {
        command: SHELL.into(),
        shell: Some(true),
        cwd,
        envs: Some(env),
        ..ExecRequest::default()
    })?;
    let session = id::new(id::PTY);
    let mut request = GuestExec {
        label: Some("shell".into()),
        retain: Retain::Tail,
        terminal: Some(Terminal {
            session: session.clone(),
            size,
        }),
        ..request
    };
    let guest = machine::guest(app, machine_id).await?;
    // A guest that does not know terminals would run the shell without.
    exec::require_streams(&guest, "terminals")?;
    request.user = exec::user(app, machine_id, &guest)?;
    let pid = guest.spawn(&request).await?;
    Ok(PtyInfo {
        session_id: session,
        pid,
        cols: size.cols,
        rows: size.rows,
        running: true,
        exit_code: None,
    })
}

/// All of a machine, oldest first, recently ended ones too.
///
/// # Errors
/// Those of [`machine::guest`].
pub async fn list(app: &App, machine_id: &str) -> Result<Vec<PtyInfo>> {
    let guest = machine::guest(app, machine_id).await?;
    let processes = guest.processes().await?;
    Ok(processes.into_iter().filter_map(info).collect())
}

/// One terminal.
///
/// # Errors
/// `not_found` and those of [`machine::guest`].
pub async fn get(app: &App, machine_id: &str, which: &Which) -> Result<PtyInfo> {
    let all = list(app, machine_id).await?;
    all.into_iter()
        .rev()
        .find(|pty| match which {
            Which::Session(session) => pty.session_id == *session,
            Which::Pid(pid) => pty.pid == *pid,
        })
        .ok_or_else(|| {
            let what = match which {
                Which::Session(session) => format!("{session:?}"),
                Which::Pid(pid) => format!("with process {pid}"),
            };
            Error::not_found(code::NOT_FOUND, format!("no terminal {what}"))
        })
}

/// Changes its size.
///
/// # Errors
/// `not_found`, `invalid_request` (size).
pub async fn resize(
    app: &App,
    machine_id: &str,
    which: &Which,
    cols: u16,
    rows: u16,
) -> Result<()> {
    let size = size(cols, rows)?;
    let pty = get(app, machine_id, which).await?;
    let guest = machine::guest(app, machine_id).await?;
    Ok(guest.resize(pty.pid, size).await?)
}

/// Ends everything in it. One that ended already is fine.
///
/// # Errors
/// `not_found`.
pub async fn kill(app: &App, machine_id: &str, which: &Which) -> Result<()> {
    let pty = get(app, machine_id, which).await?;
    let guest = machine::guest(app, machine_id).await?;
    Ok(guest.signal(pty.pid, KILL).await?)
}

fn size(cols: u16, rows: u16) -> Result<TerminalSize> {
    for (name, value) in [("cols", cols), ("rows", rows)] {
        if value == 0 || value > MAX_SIZE {
            return Err(Error::invalid(format!("{name}: must be 1 to {MAX_SIZE}")));
        }
    }
    Ok(TerminalSize { cols, rows })
}

fn info(process: ProcessInfo) -> Option<PtyInfo> {
    // One without a name belongs to somebody who logged in over SSH.
    let terminal = process
        .terminal
        .filter(|terminal| !terminal.session.is_empty())?;
    Some(PtyInfo {
        session_id: terminal.session,
        pid: process.pid,
        cols: terminal.size.cols,
        rows: terminal.size.rows,
        running: process.running,
        exit_code: process.exit_code.map(|code| code & 0xff),
    })
}

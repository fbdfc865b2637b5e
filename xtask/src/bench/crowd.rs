//! 500 terminals and 2,000 WebSockets at once: each shows what is typed, and what the server needs for them.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{api::Server, socket::Socket, table::Table};

const MACHINES: usize = 10;
/// Of each machine.
const TERMINALS: usize = 50;
/// That look at each terminal.
const VIEWERS: usize = 4;
/// In MB.
const GOAL: u64 = 300;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let before = resident(server.pid())?;
    let mut machines = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..MACHINES {
        let machine = client.create().await?;
        for _ in 0..TERMINALS {
            let mut first = Socket::open(&server.address, &machine)?;
            first.send(&json!({"type": "pty_start", "id": "t", "cols": 80, "rows": 24}))?;
            let session = started(&mut first)?;
            let mut viewers = vec![first];
            while viewers.len() < VIEWERS {
                let mut viewer = Socket::open(&server.address, &machine)?;
                viewer.send(&json!({"type": "pty_connect", "id": "t", "session_id": session}))?;
                started(&mut viewer)?;
                viewers.push(viewer);
            }
            sockets.push((session, viewers));
        }
        machines.push(machine);
    }
    for word in ["first", "second"] {
        for (session, viewers) in &mut sockets {
            for n in 0..viewers.len() {
                let text = format!("{word}-{n}");
                viewers[n].send(
                    &json!({"type": "pty_input", "id": "t", "session_id": session, "data": text}),
                )?;
                for viewer in viewers.iter_mut() {
                    shows(viewer, &text)?;
                }
            }
        }
    }
    let after = resident(server.pid())?;
    let terminals = sockets.len();
    let open: usize = sockets.iter().map(|(_, viewers)| viewers.len()).sum();
    table.check(
        after <= GOAL,
        format!("{terminals} terminals and {open} WebSockets all echo: serve {after} MB resident, {before} MB before (goal ≤ {GOAL})"),
    );
    drop(sockets);
    for machine in machines {
        client.delete(&machine).await?;
    }
    Ok(())
}

fn started(socket: &mut Socket) -> Result<String> {
    let message = socket.next()?;
    socket.shrink();
    ensure!(message["type"] == "pty_started", "{message}");
    Ok(message["session_id"]
        .as_str()
        .context("no session")?
        .to_owned())
}

/// Waits until a terminal has shown something.
fn shows(socket: &mut Socket, text: &str) -> Result<()> {
    let mut shown = String::new();
    while !shown.contains(text) {
        let message: Value = socket.next()?;
        ensure!(message["type"] == "pty_output", "{message}");
        shown.push_str(message["data"].as_str().unwrap_or_default());
    }
    socket.shrink();
    Ok(())
}

/// Resident memory of a process in MB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?;
    Ok(kb.parse::<u64>()? / 1024)
}

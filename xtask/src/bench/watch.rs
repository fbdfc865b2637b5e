//! A file that changes in a machine: when a client that watches hears of it.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    api::Server,
    socket::Socket,
    table::{Samples, Table},
};

const CHANGES: usize = 500;
/// Files that are named after the moment at which they are made; host and machine have one clock.
const CHANGE: &str = "import time, os\n\
    for n in range(500):\n  time.sleep(0.01)\n  os.close(os.open(f'/srv/watched/{time.time_ns()}', os.O_CREAT | os.O_WRONLY))\n";

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let machine = client.create().await?;
    let mut socket = Socket::open(&server.address, &machine)?;
    socket.shell("mkdir -p /srv/watched")?;
    while socket.next()?["type"] != "exec_exit" {}
    socket.send(&json!({"type": "file_watch", "id": "w", "path": "/srv/watched", "user": null, "recursive": false}))?;
    ensure!(socket.next()?["type"] == "file_watch_started");
    socket.send(
        &json!({"type": "exec_start", "id": "s", "command": "python3", "args": ["-c", CHANGE]}),
    )?;
    let mut times = Vec::new();
    while times.len() < CHANGES {
        let message = socket.next()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        match message["type"].as_str() {
            Some("file_event") if message["event"] == "create" => {
                let name = message["name"].as_str().context("no name")?;
                times.push(now.saturating_sub(Duration::from_nanos(name.parse()?)));
            }
            Some("exec_stderr" | "error") => anyhow::bail!("{message}"),
            _ => {}
        }
    }
    table.row_within(
        "file change → watch event at the client",
        &Samples::new(times),
        50.0,
    );
    client.delete(&machine).await
}

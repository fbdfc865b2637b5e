//! A thousand idle machines: do they answer, what do they cost, and how long does a restart take with
//! them.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

pub(crate) async fn run(machines: usize, server: &mut Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    // One after the other without a pause, as below: nothing but the other machines may differ.
    let alone = cycles(&mut client).await?;
    table.row("create → true, again and again", &alone, &[]);
    let before = available()?;
    let mut ids = Vec::new();
    for _ in 0..machines {
        ids.push(client.create().await?);
    }
    for id in &ids {
        client
            .exec(id, "true")
            .await
            .context("an idle machine answers")?;
    }
    let each = (before.saturating_sub(available()?)) as f64 / machines as f64 / 1024.0;
    table.note(format!(
        "{machines} idle machines all answer: {each:.2} MB of host memory each (goal ≤ 4)"
    ));
    let own = resident(server.pid())?;
    table.note(format!(
        "serve with {machines} machines: {own} MB resident (goal ≤ 150)"
    ));
    let crowded = cycles(&mut client).await?;
    table.row(
        &format!("the same with {machines} alive"),
        &crowded,
        &[("with none alive", Some(alone.p50()), Some(2.0))],
    );

    server.kill();
    let took = server.spawn().await?;
    table.note(format!(
        "serve → healthz 200 with {machines} machines to adopt: {} ms (goal ≤ 3000)",
        took.as_millis()
    ));
    let mut client = Client::connect(&server.address).await?;
    for id in ids.iter().step_by(97) {
        client
            .exec(id, "true")
            .await
            .context("an adopted machine answers")?;
    }
    let start = Instant::now();
    for id in &ids {
        client.delete(id).await?;
    }
    table.note(format!(
        "deleting {machines}: {:.2} ms each",
        start.elapsed().as_secs_f64() * 1e3 / machines as f64
    ));
    Ok(())
}

/// Machines that are asked for, run `true` and are deleted: the time to the result.
async fn cycles(client: &mut Client) -> Result<Samples> {
    let mut times = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        let id = client.create().await?;
        client.exec(&id, "true").await?;
        times.push(start.elapsed());
        client.delete(&id).await?;
    }
    Ok(Samples::new(times))
}

/// `MemAvailable` in KiB.
fn available() -> Result<u64> {
    field(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// Resident memory of a process in MiB.
fn resident(pid: u32) -> Result<u64> {
    Ok(field(
        &fs::read_to_string(format!("/proc/{pid}/status"))?,
        "VmRSS:",
    )? / 1024)
}

fn field(text: &str, name: &str) -> Result<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name))
        .context("no such field")?;
    let number = line.split_whitespace().next().context("no number")?;
    ensure!(!number.is_empty());
    Ok(number.parse()?)
}

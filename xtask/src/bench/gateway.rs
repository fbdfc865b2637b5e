//! Requests to a service and to a preview: through the gateway and, between them, through nginx to the same program in the same machine.

use std::{net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    agent::Deployment,
    api::Server,
    nginx::Nginx,
    table::{Samples, Table},
    wire::{Connection, WebSocket},
};

/// Samples in a row on one side before it is the other's turn.
const BLOCK: usize = 50;
/// The pause in the middle of a streamed answer, in milliseconds.
const STREAM_PAUSE: f64 = 500.0;
/// Runs of `wrk` on each side.
const WRK_ROUNDS: usize = 3;

pub(crate) async fn run(server: &Server, samples: usize, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let web = Deployment::web(server, "bench-gateway")?;
    let service = web.serve(&mut client).await?;
    let upstream = service.upstream(&mut client).await?;
    let nginx = match Nginx::start(upstream) {
        Ok(nginx) => Some(nginx),
        Err(error) => {
            table.note(format!("peer nginx left out: {error:#}"));
            None
        }
    };
    let pair = Pair {
        ours: service.address,
        theirs: nginx.as_ref().map(|nginx| nginx.address),
    };
    // These are short: ten times as many cost little.
    let blocks = (samples * 10).div_ceil(BLOCK);
    pair.measure(
        table,
        "GET",
        Some(1.5),
        &[],
        (blocks, BLOCK),
        Connection::open,
        |connection| connection.get("/"),
    )?;
    pair.measure(
        table,
        "first chunk of a stream",
        None,
        &[("the pause after it", Some(STREAM_PAUSE), Some(0.1))],
        (10, 1),
        Connection::open,
        |connection| connection.first_chunk("/stream"),
    )?;
    pair.measure(
        table,
        "WebSocket echo",
        Some(1.5),
        &[],
        (blocks, BLOCK),
        WebSocket::open,
        |socket| socket.echo("a line of text, as chats send it"),
    )?;
    // The same program as a port of its machine, for who has the token.
    let (address, path) = service.preview(&mut client).await?;
    let preview = Pair {
        ours: address,
        ..pair
    };
    preview.measure(
        table,
        "signed preview, GET",
        Some(1.6),
        &[],
        (blocks, BLOCK),
        Connection::open,
        |connection| connection.get(&path),
    )?;
    if let Err(error) = pair.throughput(table) {
        table.note(format!("requests per second left out: {error:#}"));
    }
    drop(nginx);
    web.delete(&mut client).await
}

/// Two ways to the same program.
#[derive(Clone, Copy)]
struct Pair {
    ours: SocketAddr,
    theirs: Option<SocketAddr>,
}

impl Pair {
    /// Takes so many blocks of so many samples on each side by turns. `goal` is the most that ours may be of nginx's.
    #[allow(clippy::too_many_arguments)]
    fn measure<C>(
        &self,
        table: &mut Table,
        what: &str,
        goal: Option<f64>,
        against: &[(&str, Option<f64>, Option<f64>)],
        (blocks, block): (usize, usize),
        open: impl Fn(SocketAddr) -> Result<C>,
        mut sample: impl FnMut(&mut C) -> Result<Duration>,
    ) -> Result<()> {
        let mut sides = Vec::new();
        for (name, address) in [("the gateway", Some(self.ours)), ("nginx", self.theirs)] {
            if let Some(address) = address {
                let connection = open(address).with_context(|| format!("{what}: {name}"))?;
                sides.push((name, connection, Vec::new()));
            }
        }
        // The first block fills caches.
        for n in 0..=blocks {
            for (name, connection, times) in &mut sides {
                for _ in 0..block {
                    let took = sample(connection).with_context(|| format!("{what}: {name}"))?;
                    if n > 0 {
                        times.push(took);
                    }
                }
            }
        }
        let mut sides = sides.into_iter().map(|(_, _, times)| Samples::new(times));
        let ours = sides.next().context("no samples")?;
        let theirs = sides.next();
        if let Some(theirs) = &theirs {
            table.row(&format!("peer: {what}, nginx"), theirs, &[]);
        }
        let mut all = vec![("nginx", theirs.map(|theirs| theirs.p50()), goal)];
        all.extend_from_slice(against);
        table.row(&format!("{what} through the gateway"), &ours, &all);
        Ok(())
    }

    fn throughput(&self, table: &mut Table) -> Result<()> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..WRK_ROUNDS {
            ours.push(wrk(self.ours)?);
            if let Some(address) = self.theirs {
                theirs.push(wrk(address)?);
            }
        }
        let nginx = (!theirs.is_empty()).then(|| table.rate("peer: wrk, nginx", theirs, None));
        let goal = nginx.map(|rate| ("nginx", rate, 0.7));
        table.rate("wrk through the gateway", ours, goal);
        Ok(())
    }
}

/// Requests per second on 32 connections.
fn wrk(address: SocketAddr) -> Result<f64> {
    let output = Command::new("wrk")
        .args(["-t2", "-c32", "-d5s", &format!("http://{address}/")])
        .output()
        .context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "wrk: {text}"
    );
    let rate = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    Ok(rate.context("wrk says no rate")?.trim().parse()?)
}

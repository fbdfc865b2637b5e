//! Output on its way from a job to whoever follows it: how late a line is, and how much a flood of them costs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::Value;

use super::{
    agent::{self, Deployment},
    api::{Client, Server},
    table::{Samples, Table},
};

/// Lines that one run of `programs/stamps.py` prints.
const STAMPS: usize = 300;
/// Lines that one run of `programs/lines.py` prints.
const LINES: u64 = 1_000_000;
/// Runs of each.
const ROUNDS: usize = 3;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    lateness(server, &mut client, table).await?;
    flood(server, &mut client, table).await
}

/// Machines have the clock of their host: a line that says when it was printed tells how late it is.
async fn lateness(server: &Server, client: &mut Client, table: &mut Table) -> Result<()> {
    let config = "name = 'bench-stamps'\nmode = 'job'\nentrypoint = 'python3 stamps.py'\n";
    let files = [("stamps.py", include_str!("programs/stamps.py"))];
    let job = Deployment::new(server, config, &files)?;
    let mut late = Vec::new();
    for _ in 0..ROUNDS {
        let run = job.start(client).await?;
        let before = late.len();
        agent::follow(client, &run, |event| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let printed = event["message"].as_str().and_then(|text| text.parse().ok());
            if let (Ok(now), Some(printed), true) = (now, printed, event["event_type"] == "stdout")
            {
                late.push(now.saturating_sub(Duration::from_nanos(printed)));
            }
            late.len() == before + STAMPS
        })
        .await?;
        ended(client, &run).await?;
    }
    let what = "line printed → at a follower";
    table.row_within(what, &Samples::new(late), 100.0);
    job.delete(client).await
}

/// 100 MB of lines into the log, against the same into a file of the machine.
async fn flood(server: &Server, client: &mut Client, table: &mut Table) -> Result<()> {
    let config = "name = 'bench-lines'\nmode = 'job'\nentrypoint = 'python3 lines.py'\n\
         [resources]\nvcpus = 2\nmemory_mb = 1024\n[outputs]\npaths = ['result.json']\n";
    let files = [("lines.py", include_str!("programs/lines.py"))];
    let job = Deployment::new(server, config, &files)?;
    let (mut file, mut log) = (Vec::new(), Vec::new());
    let (mut lost, mut reading) = (0, Vec::new());
    for _ in 0..ROUNDS {
        let run = job.start(client).await?;
        ended(client, &run).await?;
        let result = output(client, &run).await?;
        for (times, key) in [(&mut file, "file"), (&mut log, "stdout")] {
            let seconds = result[key].as_f64().context("no time in the result")?;
            times.push(Duration::from_secs_f64(seconds));
        }
        let start = Instant::now();
        lost += LINES - in_order(client, &run).await?;
        reading.push(start.elapsed());
    }
    let file = Samples::new(file);
    table.row("100 MB of lines into a file", &file, &[]);
    let goal = [("a file", Some(file.p50()), Some(2.0))];
    table.row("100 MB of lines into the log", &Samples::new(log), &goal);
    table.row(
        "reading them back, 1,000 a page",
        &Samples::new(reading),
        &[],
    );
    let all = LINES * ROUNDS as u64;
    table.check(
        lost == 0,
        format!("{lost} of {all} lines are missing in the log (goal 0)"),
    );
    job.delete(client).await
}

/// Waits until a run has ended well, without reading its log.
async fn ended(client: &mut Client, run: &str) -> Result<()> {
    loop {
        let info = client.call(Method::GET, run, None).await?;
        match info["status"].as_str().unwrap_or_default() {
            "succeeded" => return Ok(()),
            "failed" | "cancelled" | "timed_out" => {
                anyhow::bail!("{run}: {}", info["failure_reason"])
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// The only output file of a run.
async fn output(client: &mut Client, run: &str) -> Result<Value> {
    let outputs = client
        .call(Method::GET, &format!("{run}/outputs"), None)
        .await?;
    let access = &outputs["outputs"][0]["access"];
    let machine = access["sandbox_id"].as_str().context("no output")?;
    let path = access["path"].as_str().context("no output")?;
    let path = format!("/v1/sandboxes/{machine}/file?path={path}");
    client.call(Method::GET, &path, None).await
}

/// How many numbered lines the log has before the first that is not the next one.
async fn in_order(client: &mut Client, run: &str) -> Result<u64> {
    let (mut next, mut cursor) = (0, String::new());
    loop {
        let path = format!("{run}/logs?limit=1000&cursor={cursor}");
        let page = client.call(Method::GET, &path, None).await?;
        let events = page["events"].as_array().context("no events")?;
        for event in events
            .iter()
            .filter(|event| event["event_type"] == "stdout")
        {
            let line = event["message"].as_str().unwrap_or_default();
            if line.len() != 99 || line.parse() != Ok(next) {
                return Ok(next);
            }
            next += 1;
        }
        if events.is_empty() || page["has_more"] == false {
            ensure!(next <= LINES, "more lines than were printed");
            return Ok(next);
        }
        cursor = page["next_cursor"].as_str().unwrap_or_default().to_owned();
    }
}

//! Machines of a warm pool: one taken next to one that is made, and more asked for at once than are ready.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

const POOLS: &str = "/v1/template-warm-pools";
/// Samples that are thrown away: they fill caches.
const WARM_UP: usize = 5;
/// Machines that the pool has for the burst.
const READY: usize = 20;
/// Machines that are asked for at once.
const BURST: usize = 50;
/// How long a pool may take to have what it should.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn run(server: &Server, n: usize, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    one_by_one(&mut client, n, table).await?;
    burst(server, &mut client, table).await
}

async fn one_by_one(client: &mut Client, n: usize, table: &mut Table) -> Result<()> {
    let pool = make(client, 2).await?;
    let (mut cold, mut warm, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..n + WARM_UP {
        until_ready(client, &pool, 2).await?;
        let (_, new) = first_command(client, size()).await?;
        until_ready(client, &pool, 2).await?;
        let mut asked = size();
        asked["warm_pool"] = json!({"id": pool, "mode": "require"});
        asked["envs"] = json!({"WHO": "bench"});
        let (alone, done) = first_command(client, asked).await?;
        if round >= WARM_UP {
            cold.push(new);
            taken.push(alone);
            warm.push(done);
        }
    }
    empty(client, &pool).await?;
    let cold = Samples::new(cold);
    table.row("create → result of true, beside a pool", &cold, &[]);
    let against = [("own create → true", Some(cold.p50()), Some(0.5))];
    table.row(
        "taken from a pool → result of true",
        &Samples::new(warm),
        &against,
    );
    table.row("taken from a pool, alone", &Samples::new(taken), &[]);
    Ok(())
}

/// All succeed, and those that miss do not wait for the pool.
async fn burst(server: &Server, client: &mut Client, table: &mut Table) -> Result<()> {
    // The same with no pool, as many as will miss.
    let (mut alone, _) = at_once(server, None, BURST - READY).await?;
    alone.sort();
    let pool = make(client, READY).await?;
    until_ready(client, &pool, READY).await?;
    let (times, hits) = at_once(server, Some(&pool), BURST).await?;
    empty(client, &pool).await?;
    table.check(
        times.len() == BURST && hits.iter().filter(|hit| **hit).count() >= READY,
        format!(
            "{BURST} at once on a pool of {READY}, prefer: {} succeed, {} of the pool",
            times.len(),
            hits.iter().filter(|hit| **hit).count()
        ),
    );
    let of = |wanted: bool| {
        let all = times.iter().zip(&hits);
        all.filter(|(_, hit)| **hit == wanted)
            .map(|(time, _)| *time)
            .collect::<Vec<_>>()
    };
    let alone = Samples::new(alone);
    table.row(&format!("{} at once, no pool", BURST - READY), &alone, &[]);
    table.row("those of a burst that hit", &Samples::new(of(true)), &[]);
    let against = [("as many with no pool", Some(alone.p50()), Some(1.3))];
    table.row("those that miss", &Samples::new(of(false)), &against);
    Ok(())
}

/// Asks for machines at once, and ends them: how long each took, and whether it was of the pool.
async fn at_once(
    server: &Server,
    pool: Option<&str>,
    count: usize,
) -> Result<(Vec<Duration>, Vec<bool>)> {
    let mut body = size();
    if let Some(pool) = pool {
        body["warm_pool"] = json!({"id": pool, "mode": "prefer"});
    }
    let mut tasks = Vec::new();
    for _ in 0..count {
        let (mut client, body) = (server.client().await?, body.clone());
        tasks.push(tokio::spawn(async move {
            let begun = Instant::now();
            let made = client
                .call(Method::POST, "/v1/machines", Some(body))
                .await?;
            anyhow::Ok((client, begun.elapsed(), made))
        }));
    }
    let (mut times, mut hits) = (Vec::new(), Vec::new());
    let mut made = Vec::new();
    for task in tasks {
        let (client, time, machine) = task.await??;
        times.push(time);
        hits.push(machine["warm_pool_checkout"]["hit"] == true);
        made.push((client, machine));
    }
    for (mut client, machine) in made {
        client.delete(id(&machine)?).await?;
    }
    Ok((times, hits))
}

/// How long a machine took, and its first command with it.
async fn first_command(client: &mut Client, body: Value) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let made = client
        .call(Method::POST, "/v1/machines", Some(body))
        .await?;
    let alone = begun.elapsed();
    let id = id(&made)?;
    client.exec(id, "true").await?;
    let done = begun.elapsed();
    client.delete(id).await?;
    Ok((alone, done))
}

fn size() -> Value {
    json!({"template": "base", "vcpus": 1, "memory_mb": 512})
}

fn id(made: &Value) -> Result<&str> {
    made["id"].as_str().context("no id")
}

async fn make(client: &mut Client, ready: usize) -> Result<String> {
    let body = json!({
        "template_ref": "base", "name": "bench", "min_ready": ready, "max_ready": ready,
        "resources": {"vcpus": 1, "memory_mb": 512},
    });
    let made = client.call(Method::POST, POOLS, Some(body)).await?;
    Ok(id(&made)?.to_owned())
}

async fn until_ready(client: &mut Client, pool: &str, count: usize) -> Result<()> {
    let begun = Instant::now();
    loop {
        let path = format!("{POOLS}/{pool}/status");
        let counts = client.call(Method::GET, &path, None).await?;
        let busy = ["warming", "draining"]
            .iter()
            .any(|word| counts[*word] != 0);
        if counts["ready"] == count && !busy {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "the pool does not get ready: {counts}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn empty(client: &mut Client, pool: &str) -> Result<()> {
    let path = format!("{POOLS}/{pool}");
    client.call(Method::DELETE, &path, None).await?;
    until_ready(client, pool, 0).await
}

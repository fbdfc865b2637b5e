//! What a build costs that has little to do.

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

/// Steps of the template.
const STEPS: usize = 10;
/// The goal for a build with nothing to do, in milliseconds.
const GOAL_MS: f64 = 500.0;

pub(crate) async fn run(server: &Server, samples: usize, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let samples = samples.min(20);
    let all = build(&mut client, "all").await?;
    table.row(
        &format!("template of {STEPS} steps, built whole"),
        &Samples::new(vec![all]),
        &[],
    );
    let (mut unchanged, mut changed) = (Vec::new(), Vec::new());
    for n in 0..samples {
        unchanged.push(build(&mut client, "all").await?);
        changed.push(build(&mut client, &n.to_string()).await?);
    }
    let unchanged = Samples::new(unchanged);
    table.row("the same again, nothing changed → ready", &unchanged, &[]);
    table.check(
        unchanged.p50() <= GOAL_MS,
        format!(
            "a build with nothing to do takes {:.0} ms (goal {GOAL_MS:.0})",
            unchanged.p50()
        ),
    );
    let one = Samples::new(changed);
    let goal = [("all steps", Some(all.as_secs_f64() * 1000.0), Some(0.5))];
    table.row("the same again, its last step changed → ready", &one, &goal);
    let path = "/v1/templates/refs/bench";
    client.call(Method::DELETE, path, None).await?;
    Ok(())
}

/// From the request to the answer that it is ready.
async fn build(client: &mut Client, last: &str) -> Result<std::time::Duration> {
    let mut steps: Vec<Value> = (1..STEPS)
        .map(|n| json!({"action": "run", "command": format!("head -c 100000 /dev/urandom > /opt/{n}")}))
        .collect();
    steps.push(json!({"action": "run", "command": format!("echo {last} > /opt/last")}));
    let body = json!({"name": "bench", "base_image": "base", "steps": steps});
    let start = std::time::Instant::now();
    let begun = client
        .call(Method::POST, "/v1/templates/builds", Some(body))
        .await?;
    let id = begun["build_id"].as_str().unwrap_or_default();
    loop {
        // As published clients do, only more often.
        let path = format!("/v1/templates/builds/{id}?offset=1000000");
        let snapshot = client.call(Method::GET, &path, None).await?;
        match snapshot["build"]["status"].as_str() {
            Some("ready") => return Ok(start.elapsed()),
            Some("waiting" | "building") => {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            _ => ensure!(false, "the build failed: {snapshot}"),
        }
    }
}

//! Machines that are stopped in place, let go, and woken by a command.

use std::time::Instant;

use anyhow::{Result, ensure};
use hyper::Method;
use serde_json::json;

use super::{
    api::Server,
    table::{Samples, Table},
};

const ROUNDS: usize = 100;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let body = json!({"timeout_ms": 3_600_000, "timeout_action": "hibernate", "auto_resume": true});
    let made = client
        .call(Method::POST, "/v1/machines", Some(body))
        .await?;
    let machine = made["id"].as_str().unwrap_or_default().to_owned();
    let path = format!("/v1/machines/{machine}");
    let (mut stop, mut go, mut wake) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        client
            .call(Method::POST, &format!("{path}/hibernate"), None)
            .await?;
        stop.push(begun.elapsed());
        let begun = Instant::now();
        client
            .call(Method::POST, &format!("{path}/resume"), None)
            .await?;
        go.push(begun.elapsed());
        client
            .call(Method::POST, &format!("{path}/hibernate"), None)
            .await?;
        let begun = Instant::now();
        let done = client
            .call(
                Method::POST,
                &format!("{path}/exec"),
                Some(json!({"command": "true"})),
            )
            .await?;
        ensure!(done["exit_code"] == 0, "{done}");
        wake.push(begun.elapsed());
    }
    let within = |limit: f64| [("the goal in ms", Some(limit), Some(1.0))];
    table.row(
        "hibernate in place, recorded",
        &Samples::new(stop),
        &within(10.0),
    );
    table.row("resume, recorded", &Samples::new(go), &within(5.0));
    table.row("`true` in a machine that sleeps", &Samples::new(wake), &[]);
    client.delete(&machine).await
}

//! Machines that stand still.

use std::{path::PathBuf, time::Duration};

use nullspace_protocol::GuestClient;

use super::{PATIENCE, connect, sh, spec};
use crate::{Engine, EngineError};

/// Waits until a shell command succeeds in a machine.
async fn until(guest: &GuestClient, condition: &str) {
    let waiting = async { while sh(guest, condition).await.0 != 0 {} };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {condition}"));
}

/// A process that writes down the time stands still and goes on, unharmed.
pub(super) async fn pauses(engine: &dyn Engine, lower: &[PathBuf]) {
    let unknown = engine.pause("c-nobody").await;
    assert!(
        matches!(unknown, Err(EngineError::NotFound(_))),
        "{unknown:?}"
    );
    let unknown = engine.unpause("c-nobody").await;
    assert!(
        matches!(unknown, Err(EngineError::NotFound(_))),
        "{unknown:?}"
    );
    let id = "c-pause";
    engine.create(&spec(id, lower)).await.expect("create");
    let guest = connect(engine, id).await;
    let clock = "while read now rest < /proc/uptime && echo $now >> /tmp/times; do :; done";
    let (code, _, err) = sh(
        &guest,
        &format!("({clock}) > /dev/null 2>&1 & echo $! > /tmp/pid"),
    )
    .await;
    assert_eq!(code, 0, "{err}");
    until(&guest, "[ -s /tmp/times ]").await;
    engine.unpause(id).await.expect("one that runs goes on");
    engine.pause(id).await.expect("pause");
    let begun = std::time::Instant::now();
    engine.pause(id).await.expect("a second time");
    let alive = engine.list().await.expect("list");
    assert!(alive.iter().any(|m| m.id == id), "it is alive all the same");
    engine.usage(id).await.expect("and uses memory");
    tokio::time::sleep(Duration::from_millis(250)).await;
    let stood = begun.elapsed();
    engine.unpause(id).await.expect("unpause");
    until(&guest, "kill -0 $(cat /tmp/pid) && n=$(wc -l < /tmp/times); sleep 0.05; [ $(wc -l < /tmp/times) -gt $n ]").await;
    let (_, times, _) = sh(&guest, "cat /tmp/times").await;
    let times: Vec<f64> = times.lines().filter_map(|l| l.parse().ok()).collect();
    let gap = times.windows(2).map(|t| t[1] - t[0]).fold(0.0, f64::max);
    // The clock of /proc/uptime has hundredths.
    assert!(
        gap + 0.02 > stood.as_secs_f64(),
        "it stood still for {stood:?} and wrote again after {gap} s"
    );
    engine.pause(id).await.expect("pause again");
    engine
        .destroy(id)
        .await
        .expect("one that stands still is ended");
    let alive = engine.list().await.expect("list");
    assert!(!alive.iter().any(|m| m.id == id));
}

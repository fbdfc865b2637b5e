//! Machines that stand still, and machines made of what was kept of others.

use std::{path::PathBuf, time::Duration};

use nullspace_protocol::GuestClient;

use super::{PATIENCE, connect, sh, spec};
use crate::{Afterwards, Checkpoint, Engine, EngineError};

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

/// A machine goes on from its checkpoint, several times over, and the copies share nothing. Engines that do not keep
/// memory say so.
pub(super) async fn keeps_memory(engine: &dyn Engine, lower: &[PathBuf]) {
    let directory = tempfile::tempdir().expect("a directory");
    let id = "c-kept";
    engine.create(&spec(id, lower)).await.expect("create");
    let guest = connect(engine, id).await;
    let (code, _, err) = sh(&guest, "echo one > file").await;
    assert_eq!(code, 0, "{err}");
    let at = |name: &str| directory.path().join(name);
    let can = engine.capabilities();
    if !can.hibernate {
        assert!(!can.fork, "who cannot keep memory cannot branch it");
        let kept = engine.checkpoint(id, &at("no"), Afterwards::Run).await;
        assert!(
            matches!(kept, Err(EngineError::Unsupported { .. })),
            "{kept:?}"
        );
        assert!(!at("no").exists());
        let made = engine.restore(&spec("c-no", lower), directory.path()).await;
        assert!(
            matches!(made, Err(EngineError::Unsupported { .. })),
            "{made:?}"
        );
        engine.destroy(id).await.expect("destroy");
        return;
    }
    let unknown = engine
        .checkpoint("c-nobody", &at("nobody"), Afterwards::Run)
        .await;
    assert!(
        matches!(unknown, Err(EngineError::NotFound(_))),
        "{unknown:?}"
    );
    assert!(!at("nobody").exists());

    let first = engine
        .checkpoint(id, &at("first"), Afterwards::Run)
        .await
        .expect("checkpoint");
    assert_eq!(Checkpoint::read(&at("first")), Some(first.clone()));
    assert_eq!(first.engine, engine.name());
    let guest = connect(engine, id).await;
    let (_, text, _) = sh(&guest, "cat file; echo two > file").await;
    assert_eq!(text, "one\n", "it goes on running");

    for copy in ["c-copy-1", "c-copy-2"] {
        engine
            .restore(&spec(copy, lower), &at("first"))
            .await
            .expect("restore");
        let guest = connect(engine, copy).await;
        let (_, text, _) = sh(&guest, &format!("cat file; echo {copy} > file")).await;
        assert_eq!(text, "one\n", "what it was when it was kept");
    }
    let again = engine.restore(&spec("c-copy-1", lower), &at("first")).await;
    assert!(matches!(again, Err(EngineError::Exists(_))), "{again:?}");
    engine.destroy("c-copy-1").await.expect("destroy");
    engine.destroy("c-copy-2").await.expect("destroy");

    engine
        .checkpoint(id, &at("second"), Afterwards::End)
        .await
        .expect("checkpoint");
    let alive = engine.list().await.expect("list");
    assert!(!alive.iter().any(|m| m.id == id), "it was ended");
    engine
        .restore(&spec("c-woken", lower), &at("second"))
        .await
        .expect("restore");
    let guest = connect(engine, "c-woken").await;
    let (_, text, _) = sh(&guest, "cat file").await;
    assert_eq!(text, "two\n");
    engine.destroy("c-woken").await.expect("destroy");

    let nothing = engine
        .restore(&spec("c-nothing", lower), &at("nobody"))
        .await;
    assert!(
        matches!(nothing, Err(EngineError::Checkpoint(_))),
        "{nothing:?}"
    );
}

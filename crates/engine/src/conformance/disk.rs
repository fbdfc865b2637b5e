//! Machines that may write so much and no more.

use std::{path::PathBuf, time::Duration};

use super::{PATIENCE, connect, sh, spec};
use crate::{Engine, MachineSpec};

const LIMIT: u64 = 32 << 20;
/// Bytes that what keeps a file system together may take beside.
const OWN: u64 = 4 << 20;
/// Writes until it is refused; says why, and how many bytes there are.
const FILL: &str = "n=0; while [ $n -lt 2000 ] && why=$(head -c 65536 /dev/zero 2>&1 >> /opt/fill); do n=$((n+1)); done; \
                    echo \"$why\"; stat -c %s /opt/fill";

fn limited(id: &str, lower: &[PathBuf]) -> MachineSpec {
    MachineSpec {
        disk_bytes: Some(LIMIT),
        ..spec(id, lower)
    }
}

/// One fills its own disk; it goes on, others do not notice, and what it wrote can be kept.
pub(super) async fn ends(engine: &dyn Engine, lower: &[PathBuf]) {
    let mut refused = limited("c-disk", lower);
    refused.disk_bytes = Some(1);
    engine.create(&refused).await.expect_err("too little");
    for id in ["c-disk", "c-disk-2"] {
        engine.create(&limited(id, lower)).await.expect("create");
    }
    let guest = connect(engine, "c-disk").await;
    let empty = engine.usage("c-disk").await.expect("usage");
    assert!(
        (LIMIT..LIMIT + OWN).contains(&empty.disk_total_bytes),
        "{empty:?}"
    );
    let (code, out, error) = sh(&guest, &format!("mkdir -p /opt; {FILL}")).await;
    assert_eq!(code, 0, "{error}");
    let (why, written) = out.split_once('\n').expect("two lines");
    assert!(why.contains("No space left"), "{out}");
    let written: u64 = written.trim().parse().expect("a number");
    assert!(
        (LIMIT - OWN..LIMIT + OWN).contains(&written),
        "{written} of {LIMIT}"
    );
    let full = async {
        while engine.usage("c-disk").await.expect("usage").disk_used_bytes < written {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full)
        .await
        .expect("it is told how full it is");
    // The other has room as before.
    let other = connect(engine, "c-disk-2").await;
    let (code, _, error) = sh(
        &other,
        "mkdir -p /opt && head -c 16000000 /dev/zero > /opt/some && rm /opt/some && echo other > /opt/word",
    )
    .await;
    assert_eq!(code, 0, "{error}");
    // This one has again once there is less.
    let (code, _, error) = sh(&guest, "rm /opt/fill && echo one > /opt/word").await;
    assert_eq!(code, 0, "{error}");
    let home = tempfile::tempdir_in(lower[0].parent().expect("a parent")).expect("a directory");
    let layer = home.path().join("layer");
    engine.keep("c-disk", &layer).await.expect("keep");
    engine.destroy("c-disk-2").await.expect("destroy");
    let layers: Vec<PathBuf> = [layer].into_iter().chain(lower.iter().cloned()).collect();
    engine
        .create(&limited("c-disk-3", &layers))
        .await
        .expect("create");
    let guest = connect(engine, "c-disk-3").await;
    let (code, out, error) = sh(
        &guest,
        "cat /opt/word; echo more > /opt/word; id -u; stat -c %u /opt/word",
    )
    .await;
    assert_eq!((code, out.as_str()), (0, "one\n0\n0\n"), "{error}");
    engine.destroy("c-disk-3").await.expect("destroy");
}

//! Checkpoints and machines made of them: checked as far as an engine says that it can.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nullspace_protocol::{ExecRequest, GuestClient};

use super::{PATIENCE, connect, in_workspace, sh, spec};
use crate::{Checkpoint, Engine, EngineError, MachineSpec, Purpose};

pub(super) async fn run(engine: &dyn Engine, lower: &[PathBuf]) {
    let can = engine.capabilities();
    let home = tempfile::tempdir_in(lower[0].parent().expect("a parent")).expect("a directory");
    if can.hibernate {
        sleeps_and_wakes(engine, lower, home.path()).await;
    } else {
        assert!(!can.fork, "who cannot keep memory cannot branch it");
        let id = "m-refused";
        engine.create(&spec(id, lower)).await.expect("create");
        let target = home.path().join("none");
        let refused = engine.checkpoint(id, &target, Purpose::Snapshot).await;
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{refused:?}"
        );
        assert!(!target.exists());
        let refused = engine.restore(&spec("m-none", lower), &target).await;
        assert!(
            matches!(refused, Err(EngineError::Unsupported { .. })),
            "{refused:?}"
        );
        engine.destroy(id).await.expect("destroy");
    }
    if can.fork {
        branches(engine, lower, home.path()).await;
    }
    assert!(engine.list().await.expect("list").is_empty());
}

/// Reads a machine's counter, which a process of its own raises as long as it runs.
async fn counted(guest: &GuestClient) -> u64 {
    let (_, out, err) = sh(guest, "cat ./counter").await;
    out.trim().parse().unwrap_or_else(|_| panic!("{out} {err}"))
}

async fn count(guest: &GuestClient) -> u32 {
    let script =
        "n=0; while :; do n=$((n+1)); echo $n > ./next && mv ./next ./counter; sleep 0.01; done";
    let request = ExecRequest {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..ExecRequest::default()
    };
    let pid = guest.spawn(&request).await.expect("spawn");
    grows(guest, 0).await;
    pid
}

/// Waits until the counter is past a number.
async fn grows(guest: &GuestClient, past: u64) -> u64 {
    let work = async {
        loop {
            let (code, out, _) = sh(guest, "cat ./counter").await;
            match out.trim().parse() {
                Ok(now) if code == 0 && now > past => return now,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("the counter grows")
}

async fn sleeps_and_wakes(engine: &dyn Engine, lower: &[PathBuf], home: &Path) {
    let unknown = engine
        .checkpoint("m-nobody", &home.join("no"), Purpose::Snapshot)
        .await;
    assert!(matches!(unknown, Err(EngineError::NotFound(_))));
    assert!(!home.join("no").exists());

    let wanted = spec("m-sleep", lower);
    engine.create(&wanted).await.expect("create");
    let guest = connect(engine, "m-sleep").await;
    let isolated = engine.capabilities().isolated;
    let script = in_workspace(engine, "echo here > /workspace/file; mkdir -p /workspace/d");
    assert_eq!(sh(&guest, &script).await.0, 0);
    let pid = match isolated {
        true => Some(count(&guest).await),
        false => None,
    };
    // Where it cannot be written the machine goes on, and nothing is left.
    let nowhere = home.join("missing/checkpoint");
    let failed = engine
        .checkpoint("m-sleep", &nowhere, Purpose::Hibernate)
        .await;
    assert!(
        matches!(failed, Err(EngineError::Step { .. })),
        "{failed:?}"
    );
    assert!(!nowhere.exists());
    assert_eq!(sh(&guest, "echo fine").await.1, "fine\n");

    let target = home.join("sleep");
    let made = engine
        .checkpoint("m-sleep", &target, Purpose::Hibernate)
        .await
        .expect("checkpoint");
    assert!(made.bytes > 0 && made.digest.is_some(), "{made:?}");
    assert!(matches!(
        engine.dial("m-sleep").await,
        Err(EngineError::NotFound(_))
    ));
    assert!(engine.list().await.expect("list").is_empty());

    assert_eq!(Checkpoint::read(&target), Some(made.clone()));
    let none = engine.restore(&wanted, &home.join("none")).await;
    assert!(matches!(none, Err(EngineError::Checkpoint(_))), "{none:?}");
    engine.restore(&wanted, &target).await.expect("restore");
    let guest = connect(engine, "m-sleep").await;
    let script = in_workspace(engine, "cat /workspace/file; test -d /workspace/d");
    assert_eq!(
        sh(&guest, &script).await,
        (0, "here\n".into(), String::new())
    );
    if let Some(pid) = pid {
        assert!(guest.process(pid).await.expect("it is remembered").running);
        let now = counted(&guest).await;
        grows(&guest, now).await;
        let (_, out, _) = sh(&guest, "date +%s").await;
        let inside: u64 = out.trim().parse().expect("seconds");
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let here = clock.expect("a clock").as_secs();
        assert!(here.abs_diff(inside) < 5, "{here} here, {inside} inside");
    }
    assert!(matches!(
        engine.restore(&wanted, &target).await,
        Err(EngineError::Exists(_))
    ));
    engine.destroy("m-sleep").await.expect("destroy");
    made.prove(&target).expect("a checkpoint is only read");

    // One bit is enough.
    let file = largest(&target);
    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).expect("write");
    let flipped = engine.restore(&wanted, &target).await;
    assert!(
        matches!(flipped, Err(EngineError::Checkpoint(_))),
        "{flipped:?}"
    );
    assert!(engine.list().await.expect("list").is_empty());
}

async fn branches(engine: &dyn Engine, lower: &[PathBuf], home: &Path) {
    engine
        .create(&spec("m-parent", lower))
        .await
        .expect("create");
    let parent = connect(engine, "m-parent").await;
    let isolated = engine.capabilities().isolated;
    let say = |word: &str| in_workspace(engine, &format!("echo {word} > /workspace/word"));
    assert_eq!(sh(&parent, &say("before")).await.0, 0);
    if isolated {
        count(&parent).await;
    }
    let target = home.join("fork");
    engine
        .checkpoint("m-parent", &target, Purpose::Snapshot)
        .await
        .expect("checkpoint");
    // One that is used at once and not kept, beside one that is.
    let passing = home.join("passing");
    let made = engine
        .checkpoint("m-parent", &passing, Purpose::Fork)
        .await
        .expect("checkpoint");
    assert_eq!(made.digest, None);
    let parent = connect(engine, "m-parent").await;
    assert_eq!(sh(&parent, &say("parent")).await.0, 0);
    let children = ["m-child-1", "m-child-2", "m-child-3", "m-child-4"];
    super::futures::all(children.iter().map(|id| {
        let target = match *id {
            "m-child-4" => &passing,
            _ => &target,
        };
        let child = MachineSpec {
            hostname: (*id).to_owned(),
            env: [("GREETING".to_owned(), format!("I am {id}"))].into(),
            ..spec(id, lower)
        };
        async move { engine.restore(&child, target).await.expect("restore") }
    }))
    .await;
    for id in children {
        let guest = connect(engine, id).await;
        let read = in_workspace(engine, "cat /workspace/word; echo $GREETING");
        let expected = format!("before\nI am {id}\n");
        assert_eq!(sh(&guest, &read).await.1, expected, "{id}");
        assert_eq!(sh(&guest, &say(id)).await.0, 0);
        if isolated {
            let (_, out, _) = sh(&guest, "hostname; grep -c $(hostname) /etc/hosts").await;
            assert_eq!(out.lines().next(), Some(id));
            assert!(out.lines().nth(1).is_some_and(|n| n != "0"), "{out}");
            let now = counted(&guest).await;
            grows(&guest, now).await;
        }
    }
    let read = in_workspace(engine, "cat /workspace/word");
    assert_eq!(sh(&parent, &read).await.1, "parent\n");
    for id in children {
        let guest = connect(engine, id).await;
        assert_eq!(sh(&guest, &read).await.1, format!("{id}\n"));
        engine.destroy(id).await.expect("destroy");
    }
    engine.destroy("m-parent").await.expect("destroy");
}

fn largest(directory: &Path) -> PathBuf {
    let files = std::fs::read_dir(directory).expect("a directory").flatten();
    files
        .filter(|file| file.metadata().is_ok_and(|m| m.is_file()))
        .max_by_key(|file| file.metadata().map(|m| m.len()).unwrap_or(0))
        .expect("a file")
        .path()
}

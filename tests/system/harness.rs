//! The tests' own checks find what they look for.

use serde_json::json;

use crate::{host::run, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_behind_is_seen() {
    let mut world = World::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    let body = json!({"command": "sleep", "args": ["3600"], "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert!(started["pid"].is_number(), "{started}");
    assert_eq!(world.settled().await, [id.clone()].into());
    let at = world.data().join("mounted");
    std::fs::create_dir(&at).unwrap();
    let at = at.to_str().unwrap();
    run("mount", &["-t", "tmpfs", "nullspace-test", at]);
    world.kill();
    let left = world.host.leftovers();
    run("umount", &[at]);
    for kind in ["mount", "process", "cgroup", "nft", "interface", "address"] {
        assert!(
            left.iter().any(|line| line.starts_with(kind)),
            "{kind}: {left:#?}"
        );
    }
    // Also what a machine runs, which does not name the directory.
    assert!(
        left.iter().any(|line| line.contains("sleep 3600")),
        "{left:#?}"
    );
}

//! What may be written in a machine, and what becomes of it.

use reqwest::StatusCode;
use serde_json::json;

use crate::{gvisor, world::World};

/// MiB.
const GIVEN: u64 = 48;
/// Bytes that are given, and that a file system may need for itself.
const LIMIT: u64 = GIVEN << 20;
const OWN: u64 = 6 << 20;
const PYTHON: &str = "i = open('/opt/fill', 'wb', 0)\ntry:\n  for n in range(4000): i.write(bytes(1 << 16))\nexcept OSError as e: print(e.strerror)";

async fn fill(world: &World, id: &str) {
    let said = world.out(id, &format!("python3 -c \"{PYTHON}\"")).await;
    assert_eq!(said, "No space left on device");
    let length: u64 = world.out(id, "stat -c %s /opt/fill").await.parse().unwrap();
    assert!((LIMIT - OWN..LIMIT + OWN).contains(&length), "{length}");
}

/// A machine fills what it was given, by programs and by the API, and goes on; nothing of it is on the host afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_may_write_so_much_and_no_more() {
    if !std::path::Path::new("/dev/loop-control").exists() {
        println!(
            "skipped: this host has no loop devices, so there are no limits to what a machine writes"
        );
        return;
    }
    for isolation in ["native", "gvisor"] {
        if isolation == "gvisor" && !gvisor::is_here() {
            continue;
        }
        let mut world = gvisor::world(isolation).await;
        let body = json!({"template": "host", "disk_mb": GIVEN, "timeout_ms": 3_600_000});
        let id = world.machine(body.clone()).await;
        let neighbour = world.machine(body).await;
        fill(&world, &id).await;
        let (status, metrics) = world.get(&format!("/v1/machines/{id}/metrics")).await;
        assert_eq!(status, StatusCode::OK, "{metrics}");
        world
            .out(&neighbour, "head -c 8000000 /dev/zero > /opt/some")
            .await;
        let write = json!({"path": "/opt/more", "content": "x".repeat(1 << 20)});
        let (status, body) = world
            .post(&format!("/v1/machines/{id}/files/write"), write)
            .await;
        assert_eq!(status, StatusCode::INSUFFICIENT_STORAGE, "{body}");
        // The server's end changes nothing, and there is room again once less is there.
        world.kill();
        world.serve().await;
        world
            .out(&id, "rm /opt/fill && echo kept > /opt/word")
            .await;

        if isolation == "gvisor" {
            let path = format!("/v1/machines/{id}");
            let (status, child) = world.post(&format!("{path}/fork"), json!({})).await;
            assert!(status.is_success(), "{child}");
            let child = child["id"].as_str().unwrap().to_owned();
            let (status, kept) = world.post(&format!("{path}/hibernate"), json!({})).await;
            assert!(status.is_success(), "{kept}");
            let (status, body) = world.post(&format!("{path}/resume"), json!({})).await;
            assert!(status.is_success(), "{body}");
            for machine in [&id, &child] {
                assert_eq!(world.out(machine, "cat /opt/word").await, "kept");
                fill(&world, machine).await;
            }
            world.delete(&format!("/v1/machines/{child}")).await;
        }
        for machine in [&id, &neighbour] {
            world.delete(&format!("/v1/machines/{machine}")).await;
        }
        // What is left of them, devices too, is looked for when the world ends.
        world.until_empty().await;
    }
}

/// Who asks for nothing has the server's limit; more than the disk has is refused.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_nothing_has_the_default() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&settings, format!("[limits]\ndefault_disk_mb = {GIVEN}\n")).unwrap();
    let path = settings.path().to_str().unwrap();
    let world = World::with(&["--isolation", "native", "--config", path]).await;
    let id = world.machine(json!({"template": "host"})).await;
    if std::path::Path::new("/dev/loop-control").exists() {
        fill(&world, &id).await;
    }
    let body = json!({"template": "host", "disk_mb": 1_u64 << 40});
    let (status, body) = world.post("/v1/machines", body).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
}

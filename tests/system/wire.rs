//! One machine under both spellings of the wire.

use reqwest::StatusCode;
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn both_spellings_are_one_machine() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    for prefix in ["machines", "sandboxes"] {
        let base = format!("/v1/{prefix}/{id}");
        let (status, machine) = world.get(&base).await;
        assert_eq!((status, &machine["id"]), (StatusCode::OK, &json!(id)));
        let body = json!({"command": "cat", "args": ["/proc/sys/kernel/hostname"]});
        let (status, done) = world.post(&format!("{base}/exec"), body).await;
        assert_eq!(
            (status, done["stdout"].as_str()),
            (
                StatusCode::OK,
                Some(&*format!("{}\n", id.replace('_', "-")))
            )
        );
        let (_, list) = world.get(&format!("/v1/{prefix}")).await;
        assert_eq!(list["items"][0]["id"], json!(id));
    }
    // What is begun under one is seen under the other.
    let body = json!({"command": "sleep", "args": ["600"], "background": true});
    let (_, started) = world.post(&format!("/v1/sandboxes/{id}/exec"), body).await;
    let (_, list) = world.get(&format!("/v1/machines/{id}/processes")).await;
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .any(|process| process["pid"] == started["pid"] && process["running"] == true),
        "{list}"
    );
    let (status, _) = world
        .post(
            &format!("/v1/machines/{id}/timeout"),
            json!({"timeout_ms": 500_000}),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    let (_, machine) = world
        .get(&format!("/v1/sandboxes/{id}?fields=timeout_ms"))
        .await;
    assert_eq!(machine, json!({"timeout_ms": 500_000}));
    let content = json!({"path": "/note", "content": "one"});
    world
        .post(&format!("/v1/machines/{id}/files/write"), content)
        .await;
    let (_, read) = world
        .post(
            &format!("/v1/sandboxes/{id}/files/read"),
            json!({"path": "/note"}),
        )
        .await;
    assert_eq!(read["content"], "one");
    for (prefix, noun) in [("machines", "machine"), ("sandboxes", "sandbox")] {
        let (status, body) = world.get(&format!("/v1/{prefix}/mch_none")).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!(format!("{noun}_not_found")))
        );
    }
    let (status, _) = world.delete(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    let (_, machine) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(machine["status"], "destroyed");
    for (prefix, noun) in [("machines", "machine"), ("sandboxes", "sandbox")] {
        let body = json!({"command": "true"});
        let (status, body) = world.post(&format!("/v1/{prefix}/{id}/exec"), body).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::CONFLICT, &json!(format!("{noun}_not_ready")))
        );
    }
}

/// Half a gibibyte in and out: what neither the server nor the guest could hold.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_any_size_are_streamed() {
    use futures_util::StreamExt;
    const SIZE: u64 = 512 << 20;
    const PIECE: usize = 1 << 20;
    let world = World::start().await;
    let id = world
        .machine(json!({"template": "host", "memory_mb": 256}))
        .await;
    let path = format!("/v1/machines/{id}/file?path=/big");
    let pieces = futures_util::stream::iter(
        (0..SIZE / PIECE as u64).map(|n| Ok::<_, std::io::Error>(vec![n as u8; PIECE])),
    );
    let upload = world
        .request(reqwest::Method::PUT, &path)
        .header("content-length", SIZE)
        .body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(
        upload.send().await.unwrap().status(),
        StatusCode::NO_CONTENT
    );
    let response = world
        .request(reqwest::Method::GET, &path)
        .send()
        .await
        .unwrap();
    assert_eq!(response.content_length(), Some(SIZE));
    let mut stream = response.bytes_stream();
    let mut at = 0u64;
    while let Some(piece) = stream.next().await {
        for byte in piece.unwrap() {
            assert_eq!(byte, (at / PIECE as u64) as u8, "byte {at}");
            at += 1;
        }
    }
    assert_eq!(at, SIZE);
    // The whole server never held a good part of it.
    let peak: u64 = std::fs::read_to_string(format!("/proc/{}/status", world.serve_pid()))
        .unwrap()
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap();
    assert!(peak < 200 << 10, "serve had {peak} kB");
}

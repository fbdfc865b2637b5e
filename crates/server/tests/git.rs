//! Git over real HTTP, on the fake engine: answers that take longer than clients wait in silence. What git does is tested on
//! real machines (`tests/system/git.rs`).

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::World;
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A server that answers everything with this, after a while.
async fn slow(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}/a.git")
}

async fn impatient() -> (World, String) {
    let world = World::with(Config {
        exec_patience_ms: 20,
        ..Config::default()
    })
    .await;
    let id = world.machine().await;
    (world, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_late_breaks_off_and_says_why() {
    let (world, id) = impatient().await;
    let url =
        slow("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    for prefix in ["machines", "sandboxes"] {
        let path = format!("/v1/{prefix}/{id}/git/clone");
        let request = world
            .request(Method::POST, &path)
            .json(&json!({"url": url, "path": "/workspace/a"}));
        let mut response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "it had begun");
        let mut body = Vec::new();
        let broken = loop {
            match response.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(
            broken,
            "whoever does not look must not take it for a success"
        );
        assert!(body.starts_with(b" "));
        let error: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(error["code"], "git_remote_not_found", "{error}");
        assert!(error["suggested_action"].is_string());
    }
    let (_, listed) = world
        .get(&format!("/v1/machines/{id}/files?path=/workspace"))
        .await;
    assert_eq!(
        listed
            .as_array()
            .unwrap()
            .iter()
            .filter(|f| f["name"] != ".nullspace")
            .count(),
        0,
        "{listed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_succeeds_late_is_whole() {
    let (world, id) = impatient().await;
    let make = "git init -q -b main seed; cd seed; echo one > file; git add .; \
        git -c user.name=s -c user.email=s@x commit -qm first";
    let made = world
        .exec(&id, json!({"command": make, "shell": true}))
        .await;
    assert_eq!(made["exit_code"], 0, "{made}");
    // A hook that takes its time.
    let hook = "printf '#!/bin/sh\\nsleep 0.2\\n' > seed/.git/hooks/post-checkout; chmod +x seed/.git/hooks/post-checkout";
    world
        .exec(&id, json!({"command": hook, "shell": true}))
        .await;
    let body = json!({"path": "/workspace/seed", "ref": "topic", "create": true});
    let (status, done) = world
        .post(&format!("/v1/machines/{id}/git/checkout"), body)
        .await;
    assert_eq!((status, done), (StatusCode::OK, json!({"ok": true})));
    let (_, found) = world
        .get(&format!(
            "/v1/machines/{id}/git/status?path=/workspace/seed"
        ))
        .await;
    assert_eq!(found["branch"], "topic", "{found}");
}

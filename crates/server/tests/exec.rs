//! Commands and processes over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::World;
use nullspace_server::Config;
use reqwest::StatusCode;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn results() {
    let world = World::new().await;
    let id = world.machine().await;
    let table = [
        (
            json!({"command": "printf", "args": ["%s|", "a b", "$HOME"]}),
            0,
            "a b|$HOME|",
        ),
        (
            json!({"command": "echo out; echo err >&2; exit 7", "shell": true}),
            7,
            "out\n",
        ),
        (json!({"command": "kill -9 $$", "shell": true}), 137, ""),
        (json!({"command": "no-such-program"}), 127, ""),
        (json!({"command": "/etc"}), 126, ""),
        (
            json!({"command": "echo $A $B", "shell": true, "envs": {"A": "1", "B": "2"}}),
            0,
            "1 2\n",
        ),
        (
            json!({"command": "printf '\\377ok'", "shell": true}),
            0,
            "\u{fffd}ok",
        ),
        (
            json!({"command": "cat", "cwd": null, "args": null, "envs": null, "shell": null}),
            0,
            "",
        ),
    ];
    for (request, code, stdout) in table {
        let ran = world.exec(&id, request.clone()).await;
        assert_eq!(ran["exit_code"], code, "{request} gave {ran}");
        assert_eq!(ran["stdout"], stdout, "{request} gave {ran}");
        assert_eq!(ran["pid"].is_u64(), !(126..128).contains(&code), "{ran}");
    }
    let ran = world
        .exec(&id, json!({"command": "pwd", "cwd": "/tmp/"}))
        .await;
    assert!(ran["stdout"].as_str().unwrap().ends_with("/tmp\n"), "{ran}");
    let ran = world.exec(&id, json!({"command": "no-such-program"})).await;
    assert!(ran["stderr"].as_str().unwrap().contains("no-such-program"));
}

#[tokio::test(flavor = "multi_thread")]
async fn working_directories_that_cannot_be() {
    let world = World::new().await;
    let id = world.machine().await;
    for cwd in [
        "relative",
        "/no/such",
        "/etc/passwd",
        "/workspace/.nullspace/x",
        "/a/../b",
    ] {
        let (status, body) = world
            .post(
                &format!("/v1/machines/{id}/exec"),
                json!({"command": "true", "cwd": cwd}),
            )
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{cwd}: {body}");
        assert_eq!(body["code"], "invalid_request");
        assert!(
            body["error"].as_str().unwrap().starts_with("cwd: "),
            "{body}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_ends_the_whole_tree() {
    let world = World::new().await;
    let id = world.machine().await;
    let started = Instant::now();
    // In its group, in a session of its own, and itself.
    let command = "sh -c 'echo $$ >> pids; exec sleep 86399' & setsid sh -c 'echo $$ >> pids; exec sleep 86399' & \
         echo $$ >> pids; sleep 86399";
    let (status, body) = world
        .post(
            &format!("/v1/sandboxes/{id}/exec"),
            json!({"command": command, "shell": true, "timeout_secs": 1}),
        )
        .await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body}");
    assert_eq!(body["code"], "exec_timeout");
    assert!(started.elapsed() < Duration::from_secs(10));
    let count = json!({"command": "wc -l < pids", "shell": true});
    assert_eq!(world.exec(&id, count).await["stdout"], "3\n");
    // One that is dead may wait to be collected.
    let living = "for p in $(cat pids); do grep -q '^State:.[^ZX]' /proc/$p/status && echo $p; done 2>/dev/null; true";
    let living = json!({"command": living, "shell": true});
    while world.exec(&id, living.clone()).await["stdout"] != "" {
        assert!(started.elapsed() < Duration::from_secs(60), "some live on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_command_is_answered_with_spaces_first() {
    let world = World::with(Config {
        exec_patience_ms: 100,
        ..Config::default()
    })
    .await;
    let id = world.machine().await;
    let response = world
        .request(reqwest::Method::POST, &format!("/v1/machines/{id}/exec"))
        .json(&json!({"command": "sleep 0.4; echo done", "shell": true}))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let text = response.text().await.unwrap();
    assert!(text.starts_with(" {"), "{text}");
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&body["exit_code"], &body["stdout"]),
        (&json!(0), &json!("done\n"))
    );

    let late = world
        .exec(
            &id,
            json!({"command": "echo begun; sleep 60", "shell": true, "timeout_secs": 1}),
        )
        .await;
    assert_eq!(late["exit_code"], 124, "{late}");
    assert_eq!(late["stdout"], "begun\n");
    assert!(late["stderr"].as_str().unwrap().contains("time limit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_command_along() {
    let world = World::new().await;
    let id = world.machine().await;
    let request = world
        .request(reqwest::Method::POST, &format!("/v1/machines/{id}/exec"))
        .json(&json!({"command": "sleep", "args": ["86398"]}))
        .timeout(Duration::from_millis(300));
    assert!(request.send().await.is_err());
    for _ in 0..100 {
        let (_, list) = world.get(&format!("/v1/machines/{id}/processes")).await;
        if list[0]["running"] == false {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the command still runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn background_processes() {
    let world = World::new().await;
    let id = world.machine().await;
    let base = format!("/v1/sandboxes/{id}");
    let (status, body) = world
        .post(
            &format!("{base}/exec"),
            json!({"command": "read line; echo got $line; echo oops >&2; exit 3", "shell": true, "background": true, "timeout_secs": 1}),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let pid = body["pid"].as_u64().unwrap();
    // Longer than its time limit: that is for the foreground.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    // More often than a connection takes pieces without content.
    for _ in 0..150 {
        let (status, logs) = world.get(&format!("{base}/processes/{pid}/logs")).await;
        assert_eq!(status, StatusCode::OK, "{logs}");
        assert_eq!(logs["exit_code"], json!(null));
    }
    let (status, _) = world
        .post(
            &format!("{base}/processes/{pid}/stdin"),
            json!({"data": "hello\n"}),
        )
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let logs = loop {
        let (_, logs) = world.get(&format!("{base}/processes/{pid}/logs")).await;
        if !logs["exit_code"].is_null() {
            break logs;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(logs["stdout"], "got hello\n");
    assert_eq!(logs["stderr"], "oops\n");
    assert_eq!(logs["exit_code"], 3);
    assert_eq!(logs["output"].as_str().unwrap().len(), 15);
    let (_, list) = world.get(&format!("{base}/processes")).await;
    assert_eq!(list[0]["running"], false);
    assert_eq!(list[0].as_object().unwrap().len(), 3);

    let body = world
        .exec(
            &id,
            json!({"command": "sleep", "args": ["1000"], "background": true}),
        )
        .await;
    let pid = body["pid"].as_u64().unwrap();
    for _ in 0..2 {
        let (status, _) = world
            .post(&format!("{base}/processes/{pid}/kill"), json!(null))
            .await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
    let (status, body) = world
        .post(&format!("{base}/processes/999999/kill"), json!(null))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(body["code"], "not_found");
    let (status, body) = world
        .post(
            &format!("{base}/exec"),
            json!({"command": "no-such-program", "background": true}),
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
}

//! Terminals, on the fake engine: shells run for real, on the host.

#![allow(clippy::unwrap_used)]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use common::{World, socket::Client};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// One who looks at a terminal and types into it.
struct Viewer {
    client: Client,
    session: String,
    pid: u64,
    shown: String,
}

impl Viewer {
    async fn open(world: &World, id: &str, request: Value) -> Self {
        let mut client = Client::open(world, id).await;
        client.say(request).await;
        let started = client.hear().await;
        assert_eq!(started["type"], "pty_started", "{started}");
        Self {
            session: started["session_id"].as_str().unwrap().to_owned(),
            pid: started["pid"].as_u64().unwrap(),
            client,
            shown: String::new(),
        }
    }

    async fn new(world: &World, id: &str) -> Self {
        // Without what the host's own shell does at its start.
        let envs = json!({"PS1": "$ ", "HOME": "/nowhere", "HISTFILE": ""});
        let start = json!({"type": "pty_start", "id": "p", "cols": 80, "rows": 24, "envs": envs});
        Self::open(world, id, start).await
    }

    async fn again(&self, world: &World, id: &str) -> Self {
        let connect = json!({"type": "pty_connect", "id": "q", "session_id": self.session});
        Self::open(world, id, connect).await
    }

    async fn types(&mut self, text: &str) {
        let message = json!({"type": "pty_input", "id": "i", "session_id": self.session,
            "data_base64": BASE64.encode(text)});
        self.client.say(message).await;
    }

    async fn resizes(&mut self, cols: u16, rows: u16) {
        let message = json!({"type": "pty_resize", "id": "r", "session_id": self.session, "cols": cols, "rows": rows});
        self.client.say(message).await;
    }

    /// The next message; what is shown is kept.
    async fn hears(&mut self) -> Value {
        let message = self.client.hear().await;
        if message["type"] == "pty_output" {
            assert_eq!(message["session_id"], self.session.as_str());
            let bytes = BASE64
                .decode(message["data_base64"].as_str().unwrap())
                .unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert_eq!(message["data"], text.as_str());
            self.shown.push_str(&text);
        }
        message
    }

    /// Looks until this is shown, and forgets what came up to it.
    async fn sees(&mut self, text: &str) {
        while !self.shown.contains(text) {
            // Of a flood its end is enough.
            let mut old = self.shown.len().saturating_sub(4096);
            while !self.shown.is_char_boundary(old) {
                old -= 1;
            }
            self.shown.drain(..old);
            let message = self.hears().await;
            assert_eq!(
                message["type"], "pty_output",
                "{message}, not {text:?} in {:?}",
                self.shown
            );
        }
        let end = self.shown.find(text).unwrap() + text.len();
        self.shown.drain(..end);
    }

    async fn exits(&mut self) -> Value {
        loop {
            let message = self.hears().await;
            if message["type"] != "pty_output" {
                assert_eq!(message["type"], "pty_exited", "{message}");
                return message["exit_code"].clone();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut viewer = Viewer::new(&world, &id).await;
    viewer
        .types("tty; stty size; echo $TERM $((6*7)) é\r")
        .await;
    viewer.sees("/dev/pts/").await;
    viewer.sees("24 80\r\n").await;
    viewer.sees("xterm-256color 42 é\r\n").await;
    viewer.resizes(100, 40).await;
    viewer.types("stty size\r").await;
    viewer.sees("40 100\r\n").await;
    // The shell has job control, and ^C reaches what runs in the foreground alone.
    viewer
        .types("sh -c 'echo wa\"\"its; exec sleep 600'; echo after $?\r")
        .await;
    viewer.sees("waits\r\n").await;
    viewer.types("\u{3}").await;
    viewer.types("echo he\"\"re\r").await;
    viewer.sees("here\r\n").await;
    viewer.types("exit 7\r").await;
    assert_eq!(viewer.exits().await, 7);
    // Its shell is no process that was started, and the terminal is remembered.
    let (_, processes) = world.get(&format!("/v1/machines/{id}/processes")).await;
    assert_eq!(processes, json!([]));
    let (_, all) = world.get(&format!("/v1/sandboxes/{id}/pty")).await;
    assert_eq!(
        all,
        json!([{"session_id": viewer.session, "pid": viewer.pid, "cols": 100, "rows": 40, "running": false, "exit_code": 7}])
    );
    let mut late = viewer.again(&world, &id).await;
    late.sees("here\r\n").await;
    assert_eq!(late.exits().await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_look_and_type_and_it_outlives_them_and_the_server() {
    let mut world = World::new().await;
    let id = world.machine().await;
    let mut ann = Viewer::new(&world, &id).await;
    ann.types("echo from-$((1+1))-ann\r").await;
    ann.sees("from-2-ann\r\n").await;
    let mut bob = ann.again(&world, &id).await;
    bob.sees("from-2-ann\r\n").await;
    bob.types("echo from-$((1+2))-bob\r").await;
    for viewer in [&mut ann, &mut bob] {
        viewer.sees("from-3-bob\r\n").await;
    }
    // One who does not look holds nobody up: far more than fits between is shown to the other.
    bob.types("seq 800000; echo the-$((1+3))-end\r").await;
    bob.sees("the-4-end\r\n").await;
    drop(ann);
    let bobs = bob.session.clone();
    drop(bob);
    world.restart().await;
    let connect = json!({"type": "pty_connect", "id": "c", "session_id": bobs});
    let mut carl = Viewer::open(&world, &id, connect).await;
    carl.sees("the-4-end\r\n").await;
    carl.types("echo from-$((1+4))-carl\r").await;
    carl.sees("from-5-carl\r\n").await;
    // By the process of its shell, too.
    let connect = json!({"type": "pty_connect", "id": "d", "pid": carl.pid});
    let mut dora = Viewer::open(&world, &id, connect).await;
    dora.sees("from-5-carl\r\n").await;
    let path = format!("/v1/machines/{id}/pty/{bobs}");
    let (status, _) = world
        .post(&format!("{path}/resize"), json!({"cols": 90, "rows": 20}))
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(world.get(&path).await.1["cols"], 90);
    let (status, _) = world.delete(&path).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    for viewer in [&mut carl, &mut dora] {
        assert_eq!(viewer.exits().await, 137);
    }
    // Again is fine.
    assert_eq!(world.delete(&path).await.0, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut viewer = Viewer::new(&world, &id).await;
    let session = viewer.session.clone();
    for (message, code) in [
        (
            json!({"type": "pty_start", "id": "x", "cols": 0, "rows": 24}),
            "invalid_request",
        ),
        (
            json!({"type": "pty_start", "id": "x", "cols": 80, "rows": 2001}),
            "invalid_request",
        ),
        (
            json!({"type": "pty_start", "id": "x", "cwd": "relative"}),
            "invalid_request",
        ),
        (json!({"type": "pty_connect", "id": "x"}), "invalid_request"),
        (
            json!({"type": "pty_connect", "id": "x", "session_id": "pty_none"}),
            "not_found",
        ),
        (
            json!({"type": "pty_connect", "id": "x", "pid": 999_999}),
            "not_found",
        ),
        (
            json!({"type": "pty_input", "id": "x", "session_id": "pty_none", "data": "x"}),
            "not_found",
        ),
        (
            json!({"type": "pty_input", "id": "x", "session_id": session, "data_base64": "%"}),
            "invalid_request",
        ),
        (
            json!({"type": "pty_input", "id": "x", "session_id": session}),
            "invalid_request",
        ),
        (
            json!({"type": "pty_kill", "id": "x", "session_id": "pty_none"}),
            "not_found",
        ),
        (json!({"type": "file_watch", "id": "x"}), "invalid_request"),
    ] {
        let mut client = Client::open(&world, &id).await;
        client.say(message.clone()).await;
        let error = client.hear().await;
        assert_eq!(
            (&error["type"], &error["id"], &error["code"]),
            (&json!("error"), &json!("x"), &json!(code)),
            "{message}: {error}"
        );
    }
    // A size that makes no sense ends nobody's session.
    viewer.resizes(0, 0).await;
    viewer.types("echo well-$((1+1))\r").await;
    viewer.sees("well-2\r\n").await;
    let base = format!("/v1/machines/{id}/pty");
    for (method, path, body, status) in [
        (Method::GET, "pty_none".to_owned(), Value::Null, 404),
        (Method::DELETE, "pty_none".to_owned(), Value::Null, 404),
        (
            Method::POST,
            "pty_none/resize".to_owned(),
            json!({"cols": 1, "rows": 1}),
            404,
        ),
        (
            Method::POST,
            format!("{session}/resize"),
            json!({"cols": 0, "rows": 1}),
            400,
        ),
        (
            Method::POST,
            format!("{session}/resize"),
            json!({"cols": 1}),
            400,
        ),
        (
            Method::POST,
            format!("{session}/resize"),
            json!({"cols": 1, "rows": 1, "x": 1}),
            400,
        ),
    ] {
        let request = world.request(method, &format!("{base}/{path}"));
        let (got, answer) = common::answer(if body.is_null() {
            request
        } else {
            request.json(&body)
        })
        .await;
        assert_eq!(got.as_u16(), status, "{path}: {answer}");
    }
    viewer.types("exit\r").await;
    assert_eq!(viewer.exits().await, 0);
    // What is typed after the end ends nothing else.
    viewer.types("x").await;
    viewer
        .client
        .say(json!({"type": "exec_start", "id": "y", "command": "true"}))
        .await;
    viewer.client.started("y").await;
}

//! A machine's WebSocket, on the fake engine: commands run for real, on the host.

#![allow(clippy::unwrap_used)]

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use common::{
    World,
    socket::{Client, LIMIT},
};
use futures_util::{SinkExt, StreamExt};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_tungstenite::tungstenite::Message;

fn shell(id: &str, line: &str) -> Value {
    json!({"type": "exec_start", "id": id, "command": line, "args": [], "shell": true, "timeout_secs": 30})
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_streamed() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    client
        .say(shell("a", "echo out; echo err >&2; exit 3"))
        .await;
    let (out, err, exit) = client.finish("a").await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    assert_eq!(
        (&exit["type"], &exit["exit_code"]),
        (&json!("exec_exit"), &json!(3))
    );
    // Arguments, a directory, variables.
    client
        .say(json!({"type": "exec_start", "id": "b", "command": "sh", "args": ["-c", "echo $A; pwd; echo \"$1\"", "sh", "b c"],
            "envs": {"A": "é"}, "cwd": "/tmp", "timeout_secs": 30}))
        .await;
    let (out, ..) = client.finish("b").await;
    assert!(out.starts_with("é\n") && out.ends_with("b c\n"), "{out}");
    // As it is written, and not at the end.
    client
        .say(shell(
            "c",
            "echo first; while [ ! -e go ]; do sleep 0.01; done; echo second",
        ))
        .await;
    let pid = client.started("c").await;
    assert_eq!(client.hear().await["data"], "first\n");
    client.say(shell("d", "touch go")).await;
    let (mut second, mut touched, mut over) = (false, false, 0);
    while over < 2 {
        let message = client.hear().await;
        second |= message["data"] == "second\n" && message["id"] == "c" && message["pid"] == pid;
        touched |= message["id"] == "d";
        over += usize::from(message["type"] == "exec_exit");
    }
    assert!(second && touched);
    // Half a character waits; bytes that are no text come as they are beside it.
    client
        .say(shell(
            "e",
            r"printf '\303'; sleep 0.1; printf '\251'; sleep 0.1; printf 'a\377b'",
        ))
        .await;
    client.started("e").await;
    assert_eq!(client.hear().await["data"], "é");
    let bytes = client.hear().await;
    assert_eq!(
        (&bytes["data"], &bytes["data_base64"]),
        (&json!("a\u{fffd}b"), &json!("Yf9i"))
    );
    client.finish("e").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_says_so_and_nothing_else_ends() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    client
        .say(json!({"type": "exec_start", "id": "a", "command": "no-such-program", "args": []}))
        .await;
    let (_, err, exit) = client.finish("a").await;
    assert!(
        err.contains("no-such-program") && exit["exit_code"] == 127,
        "{err} {exit}"
    );
    client
        .say(json!({"type": "exec_start", "id": "b", "command": "sleep 600", "shell": true, "timeout_secs": 1}))
        .await;
    let (_, err, exit) = client.finish("b").await;
    assert!(
        err.contains("time limit") && exit["exit_code"] == 124,
        "{err} {exit}"
    );
    for (message, code) in [
        (
            json!({"type": "exec_start", "id": "c", "command": ""}),
            "invalid_request",
        ),
        (json!({"type": "exec_start", "id": "c"}), "invalid_request"),
        (
            json!({"type": "exec_start", "id": "c", "command": "true", "cwd": "relative"}),
            "invalid_request",
        ),
        (
            json!({"type": "exec_start", "id": "c", "command": "true", "timeout_secs": 0}),
            "invalid_request",
        ),
        (
            json!({"type": "exec_connect", "id": "c", "pid": 999_999}),
            "not_found",
        ),
        (
            json!({"type": "exec_kill", "id": "c", "pid": 999_999}),
            "not_found",
        ),
        (
            json!({"type": "exec_stdin", "id": "c", "pid": 999_999, "data": "x"}),
            "not_found",
        ),
        (json!({"type": "what", "id": "c"}), "invalid_request"),
    ] {
        client.say(message.clone()).await;
        let error = client.hear().await;
        assert_eq!(
            (&error["type"], &error["id"], &error["code"]),
            (&json!("error"), &json!("c"), &json!(code)),
            "{message}: {error}"
        );
    }
    for garbage in ["", "{", "[]", "7", "\"x\""] {
        client.0.send(Message::text(garbage)).await.unwrap();
        assert_eq!(client.hear().await["code"], "invalid_request");
    }
    // Binary frames with the same text are fine, and the connection is too.
    let frame = shell("d", "echo well").to_string();
    client
        .0
        .send(Message::binary(frame.into_bytes()))
        .await
        .unwrap();
    assert_eq!(client.finish("d").await.0, "well\n");
    let (status, body) = world.get(&format!("/v1/machines/{id}/ws")).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    // One that is too large ends it.
    let huge = Message::text("x".repeat(2 << 20));
    let _ = client.0.send(huge).await;
    let end = tokio::time::timeout(LIMIT, async {
        while let Some(Ok(_)) = client.0.next().await {}
    });
    end.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_outlive_their_connection_and_are_found_again() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    let line = "echo one; while [ ! -e two ]; do sleep 0.01; done; echo two; read -r word; echo \"$word\"; cat; exit 4";
    client.say(shell("a", line)).await;
    let pid = client.started("a").await;
    assert_eq!(client.hear().await["data"], "one\n");
    // Gone without a word.
    drop(client);
    let mut client = Client::open(&world, &id).await;
    client
        .say(json!({"type": "exec_connect", "id": "b", "pid": pid}))
        .await;
    assert_eq!(client.started("b").await, pid);
    assert_eq!(client.hear().await["data"], "one\n");
    let mut other = Client::open(&world, &id).await;
    other.say(shell("c", "touch two")).await;
    other.finish("c").await;
    assert_eq!(client.hear().await["data"], "two\n");
    for word in ["th", "ree\n", "fo", "ur"] {
        client
            .say(json!({"type": "exec_stdin", "id": "d", "pid": pid, "data": word}))
            .await;
    }
    client
        .say(json!({"type": "exec_stdin_close", "id": "d", "pid": pid}))
        .await;
    let (out, _, exit) = client.finish("b").await;
    assert_eq!(
        (out.as_str(), &exit["exit_code"]),
        ("three\nfour", &json!(4))
    );
    // Whoever comes after the end hears it all.
    other
        .say(json!({"type": "exec_connect", "id": "e", "pid": pid}))
        .await;
    let (out, _, exit) = other.finish("e").await;
    assert_eq!(
        (out.as_str(), &exit["exit_code"]),
        ("one\ntwo\nthree\nfour", &json!(4))
    );
    // One that is killed takes what it started with it.
    client
        .say(shell("f", "sleep 600 & sleep 600; echo never"))
        .await;
    let pid = client.started("f").await;
    client
        .say(json!({"type": "exec_kill", "id": "g", "pid": pid}))
        .await;
    let (out, _, exit) = client.finish("f").await;
    assert_eq!((out.as_str(), &exit["exit_code"]), ("", &json!(137)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_nothing_and_a_late_one_is_told() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    // Far more than is kept.
    client.say(shell("a", "seq 8000000; touch done")).await;
    let pid = client.started("a").await;
    // Nothing is read, so it cannot have come to its end.
    let mut other = Client::open(&world, &id).await;
    other.say(shell("b", "sleep 0.3; ls")).await;
    assert!(!other.finish("b").await.0.contains("done"));
    let (mut next, mut rest) = (1u64, String::new());
    loop {
        let message = client.hear().await;
        match message["type"].as_str().unwrap() {
            "exec_stdout" => rest.push_str(message["data"].as_str().unwrap()),
            "exec_exit" => break,
            other => panic!("{other}"),
        }
        let whole = rest.rfind('\n').map_or(0, |end| end + 1);
        for line in rest[..whole].lines() {
            assert_eq!(line.parse::<u64>().unwrap(), next);
            next += 1;
        }
        rest.drain(..whole);
    }
    assert_eq!(next, 8_000_001);
    // What was over the limit when nobody else followed is not there any more, and that is said.
    client
        .say(json!({"type": "exec_connect", "id": "c", "pid": pid}))
        .await;
    let (out, _, gap) = client.finish("c").await;
    assert_eq!(gap["type"], "exec_gap", "{gap}");
    let all: u64 = (1..=8_000_000u64)
        .map(|n| n.to_string().len() as u64 + 1)
        .sum();
    assert_eq!(out.len() as u64 + gap["bytes"].as_u64().unwrap(), all);
    assert_eq!(client.hear().await["exit_code"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_exact_and_the_protocol_is_answered_meanwhile() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    // No text, so that it is cut wherever it is read; both streams, pieces of every size.
    let script =
        "head -c 24000000 /dev/urandom > bytes; cat bytes & head -c 3000000 bytes >&2; wait";
    client.say(shell("a", script)).await;
    let (mut out, mut err, mut pongs) = (Vec::new(), Vec::new(), 0);
    client.0.send(Message::Ping("early".into())).await.unwrap();
    loop {
        let frame = tokio::time::timeout(LIMIT, client.0.next()).await;
        let text = match frame.unwrap().unwrap().unwrap() {
            Message::Text(text) => text,
            Message::Pong(said) => {
                let asked = if pongs == 0 { "early" } else { "late" };
                assert_eq!(said, asked);
                pongs += 1;
                continue;
            }
            Message::Ping(_) => continue,
            other => panic!("{other:?}"),
        };
        let message: Value = serde_json::from_str(&text).unwrap();
        let bytes = match message["data_base64"].as_str() {
            Some(encoded) => BASE64.decode(encoded).unwrap(),
            None => message["data"].as_str().unwrap_or_default().into(),
        };
        match message["type"].as_str().unwrap() {
            "exec_started" => {}
            "exec_stdout" => out.extend(bytes),
            "exec_stderr" => err.extend(bytes),
            "exec_exit" => break,
            other => panic!("{other}"),
        }
        if pongs == 1 && out.len() > 12_000_000 {
            pongs += 1;
            client.0.send(Message::Ping("late".into())).await.unwrap();
        }
    }
    assert_eq!((out.len(), err.len(), pongs), (24_000_000, 3_000_000, 3));
    assert!(err == out[..err.len()]);
    client.say(shell("b", "sha256sum bytes; rm bytes")).await;
    let (sum, ..) = client.finish("b").await;
    assert_eq!(sum[..64], hex::encode(Sha256::digest(&out)));
    // Who asks faster than it reads is told less, and is not given up.
    for n in 0..10_000u32 {
        let asked = n.to_be_bytes().to_vec();
        client.0.feed(Message::Ping(asked.into())).await.unwrap();
    }
    client.0.flush().await.unwrap();
    client.say(shell("c", "echo still there")).await;
    assert_eq!(client.finish("c").await.0, "still there\n");
    // The end is said by both.
    client.0.close(None).await.unwrap();
    let last = tokio::time::timeout(LIMIT, client.0.next()).await.unwrap();
    assert!(matches!(last, Some(Ok(Message::Close(_)))), "{last:?}");
    assert!(client.0.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asks_for_no_websocket_is_told() {
    let world = World::new().await;
    let id = world.machine().await;
    let path = format!("/v1/machines/{id}/ws");
    let whole = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let ask = async |left_out: Option<usize>| {
        let client = reqwest::Client::new();
        let mut request = client.get(world.url(&path)).bearer_auth(common::KEY);
        for (n, (name, value)) in whole.into_iter().enumerate() {
            if Some(n) != left_out {
                request = request.header(name, value);
            }
        }
        request.send().await.unwrap()
    };
    for (left_out, (name, _)) in whole.into_iter().enumerate() {
        let answer = ask(Some(left_out)).await;
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{left_out}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], "invalid_request", "{body}");
        let said = body["error"].as_str().unwrap();
        assert!(said.contains(name), "{said}");
    }
    let answer = ask(None).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    // As RFC 6455 says it for this key.
    let accepted = &answer.headers()["sec-websocket-accept"];
    assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_on_one_connection() {
    let world = World::new().await;
    let id = world.machine().await;
    let mut client = Client::open(&world, &id).await;
    for number in 0..200 {
        client
            .say(shell(
                &number.to_string(),
                &format!("echo {number}; exit {number}"),
            ))
            .await;
    }
    let mut ended = 0;
    while ended < 200 {
        let message = client.hear().await;
        let id = message["id"].as_str().unwrap();
        match message["type"].as_str().unwrap() {
            "exec_stdout" => assert_eq!(message["data"], format!("{id}\n")),
            "exec_exit" => {
                assert_eq!(message["exit_code"].to_string(), id);
                ended += 1;
            }
            _ => {}
        }
    }
}

//! The published clients against this server, unchanged.

use std::{io::Write, process::Stdio};

use serde_json::Value;

use crate::{
    python::{next_python, published, python, script},
    world::{World, repository},
};

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_the_sdk() {
    let world = World::start().await;
    script(&world, &python(), "machines.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_with_the_sdk() {
    let world = World::start().await;
    script(
        &world,
        &python(),
        "agents.py",
        &[&repository().join("examples/minimal-job")],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_the_newer_sdk() {
    let world = World::start().await;
    script(&world, &next_python(), "machines_next.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line() {
    let world = World::start().await;
    let run = |arguments: &[&str]| {
        let done = published(&world, &python())
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            done.status.code().unwrap(),
            text(&done.stdout),
            text(&done.stderr),
        )
    };
    let ok = |arguments: &[&str]| {
        let (code, out, err) = run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {out}{err}");
        out
    };
    let json = |arguments: &[&str]| -> Value { serde_json::from_str(&ok(arguments)).unwrap() };

    let report = json(&["doctor", "--json"]);
    assert_eq!(report["ok"], true, "{report}");

    let machine = json(&["sandbox", "create", "--template", "host", "--env", "A=b"]);
    let id = machine["id"]
        .as_str()
        .or(machine["sandbox_id"].as_str())
        .unwrap()
        .to_owned();
    assert!(ok(&["sandbox", "list", "--json"]).contains(&id));
    assert_eq!(
        json(&["sandbox", "get", &id, "--json"])["status"],
        "running"
    );
    let (code, out, _) = run(&["sandbox", "exec", &id, "--shell", "echo $A; exit 3"]);
    assert_eq!((code, out.trim()), (3, "b"));
    // Streams and terminals, over the WebSocket.
    let (code, out, err) = run(&[
        "sandbox",
        "process",
        "stream",
        &id,
        "sh",
        "-c",
        "echo out; echo err >&2; exit 4",
    ]);
    assert_eq!((code, out.trim(), err.trim()), (4, "out", "err"));
    let spawned = json(&[
        "sandbox",
        "exec",
        &id,
        "--background",
        "--shell",
        "read word; echo got $word; exit 6",
        "--json",
    ]);
    let pid = spawned["pid"].to_string();
    let mut stdin = published(&world, &python())
        .args(["sandbox", "process", "stdin", &id, &pid])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    stdin.stdin.take().unwrap().write_all(b"it\n").unwrap();
    assert!(stdin.wait().unwrap().success());
    let (code, out, _) = run(&["sandbox", "process", "attach", &id, &pid]);
    assert_eq!((code, out.trim()), (6, "got it"));
    let terminal = json(&["sandbox", "pty", "create", &id]);
    let session = terminal["session_id"].as_str().unwrap();
    let listed = json(&["sandbox", "pty", "list", &id]);
    assert_eq!(listed[0]["session_id"], session, "{listed}");
    ok(&[
        "sandbox", "pty", "resize", &id, session, "--cols", "77", "--rows", "33",
    ]);
    let mut connect = published(&world, &python())
        .args(["sandbox", "pty", "connect", &id, "--session-id", session])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let typed = connect.stdin.take();
    typed.unwrap().write_all(b"stty size; exit 9\n").unwrap();
    let done = connect.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.code() == Some(9) && shown.contains("33 77"),
        "{shown}"
    );

    ok(&["sandbox", "kill", &id, "--json"]);
    let (code, ..) = run(&["sandbox", "get", "mch_none", "--json"]);
    assert_eq!(code, 3);

    let example = repository().join("examples/minimal-job");
    let example = example.to_str().unwrap();
    let deployed = json(&["agent", "deploy", "--project-dir", example, "--json"]);
    assert_eq!(deployed["version"]["status"], "ready");
    let started = json(&[
        "agent",
        "run",
        "minimal-job",
        "--input-json",
        "{\"text\": \"x y\"}",
        "--json",
    ]);
    let run_id = started["id"].as_str().unwrap().to_owned();
    let events = ok(&[
        "agent",
        "logs",
        "minimal-job",
        "--run",
        &run_id,
        "--follow",
        "--poll-interval-ms",
        "50",
        "--json",
    ]);
    assert!(
        events
            .lines()
            .any(|line| line.contains("writing the result")),
        "{events}"
    );
    let status = json(&["agent", "status", "minimal-job", "--run", &run_id, "--json"]);
    assert_eq!(status["target"]["status"], "succeeded");
    assert_eq!(status["triage"]["exit_code"], 0);
    let outputs = json(&[
        "agent",
        "outputs",
        "minimal-job",
        "--run",
        &run_id,
        "--json",
    ]);
    assert_eq!(outputs["outputs"][0]["status"], "available");
    assert!(ok(&["agent", "list"]).contains("minimal-job"));
    assert_eq!(
        json(&["agent", "get", "minimal-job", "--json"])["id"],
        deployed["deployment"]["id"]
    );
    ok(&["agent", "delete", "minimal-job", "--yes", "--json"]);
    let (code, ..) = run(&["agent", "get", "minimal-job"]);
    assert_eq!(code, 2);
}

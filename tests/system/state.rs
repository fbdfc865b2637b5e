//! Machines that are stopped where they stand and go on: with the published clients, woken by every kind of use, and
//! through `kill -9`.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python, script},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn with_the_published_sdk() {
    let world = World::native().await;
    script(&world, &python(), "state.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_newer_sdk() {
    let world = World::native().await;
    script(&world, &next_python(), "state_next.py", &[]);
}

async fn hibernate(world: &World, id: &str) -> Value {
    let (status, kept) = world
        .post(&format!("/v1/machines/{id}/hibernate"), json!({}))
        .await;
    assert_eq!(status, StatusCode::OK, "{kept}");
    kept
}

/// A machine that is woken by use, with a process that must stay the same one.
async fn sleeper(world: &World) -> (String, String) {
    let body = json!({"timeout_ms": 900_000, "timeout_action": "hibernate", "auto_resume": true});
    let id = world.machine(body).await;
    let pid = world
        .out(&id, "sleep 1000 > /dev/null 2>&1 & echo $!")
        .await;
    (id, pid)
}

fn said(output: &std::process::Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_command_lines() {
    let world = World::native().await;
    let (id, pid) = sleeper(&world).await;
    let run = |arguments: &[&str]| {
        let output = world.nullspace(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let theirs = |arguments: &[&str]| {
        let program = python().with_file_name("nullspace");
        let output = published(&world, &program)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let kept = run(&["machine", "hibernate", &id]);
    let snapshot = kept["id"].as_str().unwrap().to_owned();
    assert_eq!(run(&["snapshot", "get", &snapshot]), kept);
    assert_eq!(
        run(&["snapshot", "list", "--machine-id", &id]),
        json!([kept])
    );
    assert_eq!(run(&["machine", "get", &id])["status"], "paused");
    let refused = world.nullspace(&["snapshot", "delete", &snapshot]);
    assert!(
        said(&refused).contains("goes on from it"),
        "{}",
        said(&refused)
    );
    assert_eq!(run(&["machine", "resume", &snapshot])["status"], "running");

    let kept = theirs(&["sandbox", "hibernate", &id]);
    assert_eq!(kept["sandbox_id"], *id, "{kept}");
    let snapshot = kept["id"].as_str().unwrap().to_owned();
    let listed = theirs(&["snapshot", "list", "--sandbox-id", &id]);
    assert!(listed.to_string().contains(&snapshot), "{listed}");
    theirs(&["sandbox", "resume", &snapshot]);
    let forked = world.nullspace(&["machine", "fork", &id]);
    assert!(said(&forked).contains("gvisor"), "{}", said(&forked));
    world.out(&id, &format!("kill -0 {pid}")).await;
}

/// Each kind of use waits for the machine and is then served; many that come at once wake it once.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_use_wakes_it() {
    let world = World::native().await;
    let (id, pid) = sleeper(&world).await;
    let machine = format!("/v1/machines/{id}");
    let serve = json!({"command": "python3 -m http.server 8000 --bind 127.0.0.1 -d /workspace", "shell": true, "background": true});
    assert_eq!(
        world.post(&format!("{machine}/exec"), serve).await.0,
        StatusCode::OK
    );
    world.out(&id, "echo page > /workspace/page").await;
    let ready = json!({"timeout_secs": 20, "interval_ms": 50});
    let (_, ready) = world
        .post(&format!("{machine}/ports/8000/readiness"), ready)
        .await;
    let (_, host) = world
        .post(&format!("{machine}/host"), json!({"port": 8000}))
        .await;
    let url = format!(
        "http://{}/page",
        host["host"]
            .as_str()
            .unwrap_or_else(|| panic!("{host} {ready}"))
    );
    let woken = async |what: &str| {
        assert_eq!(
            world.get(&machine).await.1["status"],
            "running",
            "after {what}"
        );
        world.out(&id, &format!("kill -0 {pid}")).await;
        hibernate(&world, &id).await;
    };
    hibernate(&world, &id).await;
    let page = || async { reqwest::get(&url).await.unwrap().text().await.unwrap() };
    let (a, b, c) = tokio::join!(page(), page(), page());
    assert_eq!([a, b, c], ["page\n"; 3]);
    woken("a preview").await;
    let (status, found) = world.get(&format!("{machine}/files?path=/workspace")).await;
    assert_eq!(status, StatusCode::OK, "{found}");
    woken("files").await;
    let ssh = world.nullspace(&["ssh", &id, "--", "echo", "hello"]);
    assert!(ssh.status.success(), "{}", said(&ssh));
    woken("ssh").await;
    let run = world.nullspace(&["machine", "exec", &id, "--", "echo", "hello"]);
    assert!(run.status.success(), "{}", said(&run));
    woken("a command").await;
    let (_, events) = world
        .get(&format!(
            "{machine}/lifecycle?operation=resume_from_snapshot&status=requested"
        ))
        .await;
    assert_eq!(events["events"].as_array().unwrap().len(), 4, "{events}");
    // One that is looked at sleeps on.
    world.get(&format!("{machine}/metrics")).await;
    world.get(&format!("{machine}/preview-urls")).await;
    assert_eq!(world.get(&machine).await.1["status"], "paused");
}

/// Whoever is not to be woken says so, also to visitors of its ports.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_must_be_asked_sleeps_on() {
    let world = World::native().await;
    let id = world.machine(json!({})).await;
    let (_, host) = world
        .post(&format!("/v1/machines/{id}/host"), json!({"port": 8000}))
        .await;
    hibernate(&world, &id).await;
    let url = format!("http://{}/", host["host"].as_str().unwrap());
    let refused = reqwest::get(&url).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.text().await.unwrap().contains("resume it"));
    let ssh = world.nullspace(&["ssh", &id, "--", "true"]);
    assert!(!ssh.status.success());
    let (status, said) = world
        .post(
            &format!("/v1/machines/{id}/exec"),
            json!({"command": "true"}),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");
    assert_eq!(
        world.get(&format!("/v1/machines/{id}")).await.1["status"],
        "paused"
    );
}

/// A paused machine outlives the server; it is lost with the launcher, and that is on record.
#[tokio::test(flavor = "multi_thread")]
async fn servers_are_killed_while_it_sleeps() {
    let mut world = World::native().await;
    let (id, pid) = sleeper(&world).await;
    for _ in 0..3 {
        hibernate(&world, &id).await;
        world.kill();
        world.serve().await;
        let (_, info) = world.get(&format!("/v1/machines/{id}")).await;
        assert_eq!(info["status"], "paused", "{info}");
        world.out(&id, &format!("kill -0 {pid}")).await;
    }
    // In the middle of it: it runs or is paused, and goes on in either way.
    for pause in [0, 1, 2, 4] {
        let request = world
            .request(
                reqwest::Method::POST,
                &format!("/v1/machines/{id}/hibernate"),
            )
            .send();
        let asked = tokio::spawn(request);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        world.kill();
        let _ = asked.await;
        world.serve().await;
        world.out(&id, &format!("kill -0 {pid}")).await;
    }
    hibernate(&world, &id).await;
    let launcher = world.host.launcher().unwrap();
    world.host.look();
    crate::host::run("kill", &["-9", &launcher.to_string()]);
    let info = world.until(&id, |info| info["status"] == "error").await;
    assert_eq!(info["snapshot_id"], Value::Null, "{info}");
    let (_, all) = world.get("/v1/snapshots").await;
    assert_eq!(all, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_stop_and_do_not_end() {
    let world = World::native().await;
    let body = json!({"timeout_ms": 700, "timeout_action": "hibernate", "auto_resume": true});
    let id = world.machine(body).await;
    world.until(&id, |info| info["status"] == "paused").await;
    // Used, it has its time again, and is stopped again.
    world.out(&id, "true").await;
    world.until(&id, |info| info["status"] == "paused").await;
    let (_, info) = world.delete(&format!("/v1/machines/{id}")).await;
    assert_eq!(info["status"], "destroyed");
}

//! Hibernating, resuming, forking and keeping states over real HTTP, on a fake engine that keeps files and no process.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;

use common::{World, answer};
use nullspace_engine::Engine;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

async fn make(world: &World, body: Value) -> String {
    let (status, made) = world.post("/v1/machines", body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn sh(world: &World, id: &str, line: &str) -> String {
    let ran = world
        .exec(id, json!({"command": line, "shell": true}))
        .await;
    assert_eq!(ran["exit_code"], 0, "{ran}");
    ran["stdout"].as_str().unwrap().trim().to_owned()
}

async fn ok(world: &World, path: &str) -> Value {
    let (status, body) = world.post(path, json!({})).await;
    assert!(status.is_success(), "{path}: {status} {body}");
    body
}

async fn refused(world: &World, path: &str, status: StatusCode, code: &str) -> Value {
    let (got, body) = world.post(path, json!({})).await;
    assert_eq!(
        (got, body["code"].as_str()),
        (status, Some(code)),
        "{path}: {body}"
    );
    body
}

/// What is on disk of snapshots.
fn kept(world: &World) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(world.data.path().join("snapshots")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

async fn until_kept(world: &World, count: usize) {
    for _ in 0..400 {
        if kept(world).len() == count {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("on disk: {:?}", kept(world));
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_made_of_a_snapshot() {
    let world = World::with_memory().await;
    let id = make(
        &world,
        json!({"vcpus": 3, "envs": {"TOKEN": "not-for-the-record"}}),
    )
    .await;
    sh(&world, &id, "echo one > file").await;
    let path = format!("/v1/machines/{id}/snapshots");
    let request = || {
        world
            .request(Method::POST, &path)
            .header("idempotency-key", "k")
    };
    let (status, snapshot) = answer(request()).await;
    assert_eq!(status, StatusCode::CREATED, "{snapshot}");
    assert_eq!(snapshot["machine_id"], *id);
    assert!(snapshot["size_bytes"].as_u64().unwrap() > 0);
    assert_eq!(answer(request()).await.1, snapshot, "the same key");
    let snapshot = snapshot["id"].as_str().unwrap();
    assert_eq!(sh(&world, &id, "cat file; echo two > file").await, "one");

    let body = json!({"snapshot_id": snapshot, "metadata": {"copy": 1}, "timeout_ms": 60_000});
    let (status, made) = world.post("/v1/machines", body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(
        (&made["config"]["vcpus"], &made["metadata"]["copy"]),
        (&json!(3), &json!(1))
    );
    let copy = made["id"].as_str().unwrap();
    assert_ne!(copy, id);
    assert_eq!(sh(&world, copy, "cat file; echo three > file").await, "one");
    let other = make(&world, json!({"snapshot_id": snapshot})).await;
    assert_eq!(sh(&world, &other, "cat file").await, "one");
    assert_eq!(sh(&world, &id, "cat file").await, "two");

    // The record outlives the server, and never has the values of variables.
    let mut world = world;
    world.restart().await;
    let (_, all) = world.get("/v1/snapshots").await;
    assert_eq!(all.as_array().unwrap().len(), 1);
    for entry in std::fs::read_dir(world.data.path()).unwrap().flatten() {
        if entry.path().is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(
                !bytes.windows(18).any(|w| w == b"not-for-the-record"),
                "{entry:?}"
            );
        }
    }
    for field in ["template", "cwd"] {
        let body = json!({"snapshot_id": snapshot, field: "/base"});
        let (status, said) = world.post("/v1/machines", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(said["error"].as_str().unwrap().starts_with(field), "{said}");
    }
    let path = format!("/v1/machines/{snapshot}/resume");
    refused(&world, &path, StatusCode::CONFLICT, "conflict").await;

    let path = format!("/v1/snapshots/{snapshot}");
    assert_eq!(world.delete(&path).await.0, StatusCode::NO_CONTENT);
    let (status, said) = world.delete(&path).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::NOT_FOUND, &json!("snapshot_not_found"))
    );
    until_kept(&world, 0).await;
    assert_eq!(sh(&world, &other, "cat file").await, "one", "machines stay");
    let (status, _) = world
        .post("/v1/machines", json!({"snapshot_id": snapshot}))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// Each published client takes one word for a machine and no other, on a path that is the same for both.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_speak_as_they_are_spoken_to() {
    let mut world = World::with_memory().await;
    let id = make(&world, json!({})).await;
    let made = ok(&world, &format!("/v1/sandboxes/{id}/snapshots")).await;
    assert_eq!(
        (&made["sandbox_id"], &made["machine_id"]),
        (&json!(id), &Value::Null)
    );
    let path = format!("/v1/snapshots/{}", made["id"].as_str().unwrap());
    for (machines, word, other) in [
        ("/v1/machines", "machine_id", "sandbox_id"),
        ("/v1/sandboxes", "sandbox_id", "machine_id"),
    ] {
        world.get(machines).await;
        let (_, one) = world.get(&path).await;
        let (_, all) = world.get(&format!("/v1/snapshots?{word}={id}")).await;
        for said in [&one, &all[0]] {
            assert_eq!(
                (&said[word], &said[other]),
                (&json!(id), &Value::Null),
                "{said}"
            );
        }
    }
    // Nothing is known of the key after a restart, and the snapshot was made by who says sandbox.
    world.get("/v1/machines").await;
    world.restart().await;
    let (_, said) = world.get(&path).await;
    assert_eq!(said["sandbox_id"], *id);
    let (_, none) = world.get("/v1/snapshots?sandbox_id=mch_other").await;
    assert_eq!(none, json!([]));
    let (_, none) = world.get("/v1/snapshots?metadata=%7B%22a%22:1%7D").await;
    assert_eq!(none, json!([]));
    let (status, _) = world.get("/v1/snapshots?metadata=x").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_is_another_machine() {
    let world = World::with_memory().await;
    let id = make(
        &world,
        json!({"metadata": {"of": "parent"}, "timeout_ms": 120_000}),
    )
    .await;
    sh(&world, &id, "echo one > file").await;
    let path = format!("/v1/machines/{id}/fork");
    let request = || {
        world
            .request(Method::POST, &path)
            .header("idempotency-key", "k")
    };
    let (status, child) = answer(request()).await;
    assert_eq!(status, StatusCode::CREATED, "{child}");
    assert_eq!(
        (&child["status"], &child["metadata"]["of"]),
        (&json!("running"), &json!("parent"))
    );
    assert_eq!(child["timeout_ms"], 120_000);
    assert_eq!(answer(request()).await.1["id"], child["id"], "the same key");
    let child = child["id"].as_str().unwrap();
    assert_eq!(sh(&world, child, "cat file; echo two > file").await, "one");
    assert_eq!(sh(&world, &id, "cat file").await, "one");
    until_kept(&world, 0).await;
    let (_, snapshots) = world.get("/v1/snapshots").await;
    assert_eq!(snapshots, json!([]));
    let (_, events) = world
        .get(&format!(
            "/v1/machines/{id}/lifecycle?operation=fork&order=asc"
        ))
        .await;
    let told: Vec<_> = events["events"].as_array().unwrap().iter().collect();
    assert_eq!(told.len(), 2, "{events}");
    for (event, status) in told.iter().zip(["requested", "succeeded"]) {
        assert_eq!(event["status"], status);
        assert_eq!(
            (&event["source_sandbox_id"], &event["target_sandbox_id"]),
            (&json!(id), &json!(child))
        );
    }
    // One that cannot be branched is as before, and the key is free again.
    world.engine.fail_checkpoint(&id, true);
    let request = || {
        world
            .request(Method::POST, &path)
            .header("idempotency-key", "l")
    };
    assert_eq!(answer(request()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(sh(&world, &id, "cat file").await, "one");
    world.engine.fail_checkpoint(&id, false);
    assert_eq!(answer(request()).await.0, StatusCode::CREATED);
    until_kept(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_sleeps_and_goes_on() {
    let mut world = World::with_memory().await;
    let id = make(&world, json!({"timeout_ms": 600_000})).await;
    let machine = format!("/v1/machines/{id}");
    sh(&world, &id, "echo one > file").await;
    let snapshot = ok(&world, &format!("{machine}/hibernate")).await;
    assert_eq!(snapshot["metadata"]["memory"], "on_disk");
    let (_, info) = world.get(&machine).await;
    assert_eq!(
        (&info["status"], &info["snapshot_id"]),
        (&json!("paused"), &snapshot["id"])
    );
    assert_eq!(info["timeout_at"], Value::Null, "no time runs");
    let said = refused(
        &world,
        &format!("{machine}/exec"),
        StatusCode::BAD_REQUEST,
        "invalid_request",
    )
    .await;
    assert!(said["error"].is_string());
    let (status, said) = world
        .post(&format!("{machine}/exec"), json!({"command": "true"}))
        .await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("machine_not_ready"))
    );
    assert!(
        said["suggested_action"]
            .as_str()
            .unwrap()
            .contains("resume"),
        "{said}"
    );
    for what in ["hibernate", "fork", "snapshots"] {
        refused(
            &world,
            &format!("{machine}/{what}"),
            StatusCode::CONFLICT,
            "machine_not_ready",
        )
        .await;
    }
    let path = format!("/v1/snapshots/{}", snapshot["id"].as_str().unwrap());
    let (status, said) = world.delete(&path).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("snapshot_in_use"))
    );
    let (status, said) = world
        .post("/v1/machines", json!({"snapshot_id": snapshot["id"]}))
        .await;
    assert_eq!(status, StatusCode::CONFLICT, "{said}");

    world.restart().await;
    assert_eq!(world.status(&id).await, "paused");
    let (status, _) = world
        .post(
            &format!("{machine}/timeout"),
            json!({"timeout_ms": 300_000}),
        )
        .await;
    assert_eq!(status, StatusCode::OK);
    let info = ok(
        &world,
        &format!("/v1/machines/{}/resume", snapshot["id"].as_str().unwrap()),
    )
    .await;
    assert_eq!(
        (&info["id"], &info["status"]),
        (&json!(id), &json!("running"))
    );
    assert_eq!(info["snapshot_id"], Value::Null);
    assert!(info["remaining_ms"].as_u64().unwrap() > 290_000, "{info}");
    assert_eq!(sh(&world, &id, "cat file").await, "one");
    ok(&world, &format!("{machine}/resume")).await;
    until_kept(&world, 0).await;
    assert_eq!(
        world.events(&id).await[2..],
        [
            "hibernate/requested",
            "hibernate/succeeded",
            "timeout_updated/succeeded",
            "resume_from_snapshot/requested",
            "resume_from_snapshot/succeeded"
        ]
    );

    // One that sleeps is ended without being woken.
    ok(&world, &format!("{machine}/hibernate")).await;
    assert_eq!(world.delete(&machine).await.0, StatusCode::OK);
    assert_eq!(world.status(&id).await, "destroyed");
    until_kept(&world, 0).await;
    let (_, all) = world.get("/v1/snapshots").await;
    assert_eq!(all, json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_first_wakes_it() {
    let world = World::with_memory().await;
    let id = make(
        &world,
        json!({"timeout_ms": 600_000, "timeout_action": "hibernate", "auto_resume": true}),
    )
    .await;
    sh(&world, &id, "echo one > file").await;
    ok(&world, &format!("/v1/machines/{id}/hibernate")).await;
    let all = (0..8).map(|_| sh(&world, &id, "cat file"));
    for said in futures_util::future::join_all(all).await {
        assert_eq!(said, "one");
    }
    let woken = world.events(&id).await;
    let count = woken
        .iter()
        .filter(|e| *e == "resume_from_snapshot/requested")
        .count();
    assert_eq!(count, 1, "{woken:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_hibernate_after_a_warning() {
    let world = World::with_memory().await;
    let id = make(
        &world,
        json!({"timeout_ms": 500, "lifecycle": {"on_timeout": "pause"}}),
    )
    .await;
    world.until(&id, "paused").await;
    assert_eq!(
        world.events(&id).await[2..],
        [
            "timeout_expired/requested",
            "timeout_expired/succeeded",
            "hibernate/requested",
            "hibernate/succeeded"
        ]
    );
    let ended = make(&world, json!({"timeout_ms": 500})).await;
    world.until(&ended, "destroyed").await;
    assert_eq!(world.events(&ended).await[2], "timeout_expired/requested");

    // One that cannot be kept runs on: its time is over, its work is not lost.
    let id = make(
        &world,
        json!({"timeout_ms": 60_000, "timeout_action": "hibernate"}),
    )
    .await;
    world.engine.fail_checkpoint(&id, true);
    let path = format!("/v1/machines/{id}/timeout");
    world.post(&path, json!({"timeout_ms": 1})).await;
    for _ in 0..400 {
        if world
            .events(&id)
            .await
            .contains(&"hibernate/failed".to_owned())
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(world.status(&id).await, "running");
    sh(&world, &id, "true").await;
    let (status, said) = world
        .post("/v1/machines", json!({"auto_resume": true}))
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
}

/// What is on disk is looked at before a machine is made of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_on_disk_is_refused() {
    let world = World::with_memory().await;
    let id = make(&world, json!({})).await;
    let machine = format!("/v1/machines/{id}");
    ok(&world, &format!("{machine}/hibernate")).await;
    let record = kept(&world)[0].join("checkpoint.json");
    let whole = std::fs::read_to_string(&record).unwrap();
    let other = whole.replace("\"digest\":\"", "\"digest\":\"0");
    assert_ne!(other, whole);
    std::fs::write(&record, other).unwrap();
    let path = format!("{machine}/resume");
    refused(&world, &path, StatusCode::CONFLICT, "incompatible_snapshot").await;
    std::fs::remove_file(&record).unwrap();
    refused(&world, &path, StatusCode::CONFLICT, "incompatible_snapshot").await;
    assert_eq!(world.status(&id).await, "paused");
    std::fs::write(&record, whole).unwrap();
    // What the record is of counts as well.
    let memory = record.with_file_name("memory");
    let there = std::fs::read(&memory).unwrap();
    std::fs::write(&memory, "another").unwrap();
    refused(&world, &path, StatusCode::CONFLICT, "incompatible_snapshot").await;
    std::fs::write(&memory, there).unwrap();
    ok(&world, &path).await;
    let said = world.events(&id).await;
    assert!(
        said.contains(&"resume_from_snapshot/failed".to_owned()),
        "{said:?}"
    );
}

/// What a server that died was at: it is undone, or done to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_died_in_between() {
    let mut world = World::with_memory().await;
    let id = make(&world, json!({})).await;
    sh(&world, &id, "echo one > file").await;
    let snapshot = ok(&world, &format!("/v1/machines/{id}/hibernate")).await;
    world.stop().await;
    // As if it had died after the engine was done, before that was recorded.
    let db = rusqlite(&world);
    db.execute_batch("UPDATE machine SET state = 'running', snapshot_id = NULL; UPDATE snapshot SET state = 'writing'")
        .unwrap();
    drop(db);
    world.start().await;
    assert_eq!(world.status(&id).await, "paused");
    let (_, info) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(info["snapshot_id"], snapshot["id"]);

    // As if it had died in the middle of that.
    world.stop().await;
    let db = rusqlite(&world);
    db.execute_batch("UPDATE machine SET state = 'running', snapshot_id = NULL; UPDATE snapshot SET state = 'writing'")
        .unwrap();
    drop(db);
    std::fs::remove_file(kept(&world)[0].join("checkpoint.json")).unwrap();
    world.start().await;
    assert_eq!(world.status(&id).await, "error");
    assert_eq!(kept(&world), Vec::<PathBuf>::new());

    // As if it had died while it woke a machine: that runs, and is not put back to where it was.
    let id = make(&world, json!({})).await;
    sh(&world, &id, "echo one > file").await;
    let snapshot = ok(&world, &format!("/v1/machines/{id}/hibernate")).await;
    let snapshot = snapshot["id"].as_str().unwrap();
    let row = {
        let db = rusqlite(&world);
        db.query_row("SELECT shape FROM snapshot", [], |row| {
            row.get::<_, String>(0)
        })
        .unwrap()
    };
    ok(&world, &format!("/v1/machines/{id}/resume")).await;
    sh(&world, &id, "echo two > file").await;
    world.stop().await;
    let db = rusqlite(&world);
    db.execute(
        "INSERT INTO snapshot (id, machine_id, kind, state, in_place, size_bytes, digest, shape, metadata, noun, created_at) \
         VALUES (?1, ?2, 'hibernate', 'ready', 0, 1, '0', ?3, '{}', 'machine', 1)",
        [snapshot, &id, &row],
    )
    .unwrap();
    db.execute(
        "UPDATE machine SET state = 'paused', snapshot_id = ?1 WHERE id = ?2",
        [snapshot, &id],
    )
    .unwrap();
    drop(db);
    world.start().await;
    assert_eq!(world.status(&id).await, "running");
    assert_eq!(sh(&world, &id, "cat file").await, "two");
    let (_, all) = world.get("/v1/snapshots").await;
    assert_eq!(all, json!([]));
}

/// A fork that a server died in can be asked for again with the same key; one that came to be is found by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_was_cut_off() {
    let mut world = World::with_memory().await;
    let id = make(&world, json!({})).await;
    let path = format!("/v1/machines/{id}/fork");
    let request = |world: &World| {
        world
            .request(Method::POST, &path)
            .header("idempotency-key", "k")
    };
    let (_, child) = answer(request(&world)).await;
    let child = child["id"].as_str().unwrap().to_owned();
    let cut_off = |world: &World| {
        let db = rusqlite(world);
        db.execute(
            "INSERT INTO snapshot (id, machine_id, kind, state, in_place, size_bytes, shape, metadata, child_id, noun, created_at) \
             VALUES ('snap_cut', ?1, 'fork', 'writing', 0, 0, '{}', '{}', ?2, 'machine', 1)",
            [&id, &child],
        )
        .unwrap();
        db
    };
    world.stop().await;
    cut_off(&world);
    world.start().await;
    assert_eq!(answer(request(&world)).await.1["id"], *child);
    world.stop().await;
    cut_off(&world)
        .execute("DELETE FROM machine WHERE id = ?1", [&child])
        .unwrap();
    world.engine.destroy(&child).await.unwrap();
    world.start().await;
    let (status, again) = answer(request(&world)).await;
    assert_eq!(status, StatusCode::CREATED, "{again}");
    assert_ne!(again["id"], *child);
}

fn rusqlite(world: &World) -> nullspace_store::rusqlite::Connection {
    nullspace_store::rusqlite::Connection::open(world.data.path().join("nullspace.db")).unwrap()
}

/// An engine that can do nothing of it says so by name, and names one that can.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_memory_says_so() {
    let world = World::new().await;
    let id = make(&world, json!({})).await;
    for what in ["hibernate", "fork", "snapshots", "pause"] {
        let path = format!("/v1/machines/{id}/{what}");
        let said = refused(
            &world,
            &path,
            StatusCode::NOT_IMPLEMENTED,
            "not_implemented",
        )
        .await;
        assert!(
            said["suggested_action"]
                .as_str()
                .unwrap()
                .contains("gvisor"),
            "{said}"
        );
    }
    let (status, _) = world
        .post("/v1/machines", json!({"timeout_action": "hibernate"}))
        .await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(sh(&world, &id, "echo well").await, "well");
    refused(
        &world,
        "/v1/machines/mch_none/hibernate",
        StatusCode::NOT_FOUND,
        "machine_not_found",
    )
    .await;
    refused(
        &world,
        "/v1/machines/snap_none/resume",
        StatusCode::NOT_FOUND,
        "snapshot_not_found",
    )
    .await;
}

async fn volume(world: &World, name: &str) -> String {
    let (status, made) = world.post("/v1/volumes", json!({"name": name})).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

fn mount(reference: &str, path: &str, read_only: bool) -> Value {
    json!({"ref": reference, "mount_path": path, "read_only": read_only})
}

/// What a machine says of its volumes: where, which, whether only to be read, and how that stands.
async fn volumes(world: &World, id: &str) -> Vec<(String, String, bool, String)> {
    let (_, info) = world.get(&format!("/v1/machines/{id}")).await;
    let all = info["metadata"]["volume_attachments"].as_array().cloned();
    let (_, listed) = world.get(&format!("/v1/machines/{id}/volumes")).await;
    assert_eq!(listed, json!(all.clone().unwrap_or_default()));
    let word = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
    let all = all.unwrap_or_default().into_iter().map(|one| {
        assert_eq!(one["machine_id"], *id);
        (
            word(&one, "mount_path"),
            word(&one, "volume_id"),
            one["read_only"] == true,
            word(&one, "state"),
        )
    });
    all.collect()
}

/// Machines that are there.
async fn listed(world: &World) -> Vec<String> {
    let (_, page) = world.get("/v1/machines").await;
    let all = page["items"].as_array().unwrap().iter();
    all.map(|one| one["id"].as_str().unwrap().to_owned())
        .collect()
}

async fn mounts(world: &World, volume: &str) -> u64 {
    let (_, one) = world.get(&format!("/v1/volumes/{volume}")).await;
    one["mount_count"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_has_the_same_volumes_and_mounts_of_its_own() {
    let world = World::with_memory().await;
    let (data, look, gone) = (
        volume(&world, "data").await,
        volume(&world, "look").await,
        volume(&world, "gone").await,
    );
    let id = make(
        &world,
        json!({"volumes": [mount("data", "/data", false), mount("gone", "/gone", false)]}),
    )
    .await;
    let path = format!("/v1/machines/{id}/volumes");
    let mut part = mount("look", "/look", true);
    world
        .post(
            &format!("/v1/volumes/{look}/files/mkdir"),
            json!({"path": "/in"}),
        )
        .await;
    part["subpath"] = json!("in");
    world.post(&path, part).await;
    let (_, all) = world.get(&path).await;
    let released = all[1]["id"].as_str().unwrap();
    world.delete(&format!("{path}/{released}")).await;

    let child = ok(&world, &format!("/v1/machines/{id}/fork")).await;
    assert_eq!(
        child["metadata"]["volume_attachments"][1]["subpath"], "in",
        "{child}"
    );
    let child = child["id"].as_str().unwrap();
    let expected = vec![
        (
            "/data".to_owned(),
            data.clone(),
            false,
            "mounted".to_owned(),
        ),
        ("/look".to_owned(), look.clone(), true, "mounted".to_owned()),
    ];
    assert_eq!(volumes(&world, child).await, expected);
    assert_eq!(volumes(&world, &id).await, expected);
    assert_eq!(
        world.engine.attached(child).await.unwrap(),
        world.engine.attached(&id).await.unwrap()
    );
    assert_eq!(
        [
            mounts(&world, &data).await,
            mounts(&world, &look).await,
            mounts(&world, &gone).await
        ],
        [2, 2, 0]
    );
    sh(&world, child, "echo child > ../data/word").await;
    assert_eq!(sh(&world, &id, "cat ../data/word").await, "child");

    // Each lets go of its own.
    let (_, own) = world.get(&format!("/v1/machines/{child}/volumes")).await;
    let own = own[0]["id"].as_str().unwrap();
    let other = format!("/v1/machines/{id}/volumes/{own}");
    assert_eq!(world.delete(&other).await.0, StatusCode::NOT_FOUND);
    world
        .delete(&format!("/v1/machines/{child}/volumes/{own}"))
        .await;
    assert_eq!(volumes(&world, child).await, expected[1..]);
    assert_eq!(volumes(&world, &id).await, expected);
    assert_eq!(mounts(&world, &data).await, 1);
    // And it sleeps and goes on with what it has.
    ok(&world, &format!("/v1/machines/{child}/hibernate")).await;
    ok(&world, &format!("/v1/machines/{child}/resume")).await;
    assert_eq!(volumes(&world, child).await, expected[1..]);
    world.delete(&format!("/v1/machines/{child}")).await;
    assert_eq!(mounts(&world, &look).await, 1);
    until_kept(&world, 0).await;

    // A mount of which nobody knows whether the memory has it: refused, and nothing is half made.
    world.engine.detach(&id, "/look".as_ref()).await.unwrap();
    let (_, all) = world.get(&path).await;
    let look = all[1]["id"].as_str().unwrap();
    world.get(&format!("{path}/{look}/health")).await;
    for what in ["fork", "snapshots"] {
        let path = format!("/v1/machines/{id}/{what}");
        let said = refused(&world, &path, StatusCode::CONFLICT, "volume_busy").await;
        assert!(said["error"].as_str().unwrap().contains("/look"), "{said}");
    }
    assert_eq!(listed(&world).await, [id]);
    assert_eq!(kept(&world), Vec::<PathBuf>::new());
    assert_eq!(mounts(&world, &data).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_that_would_write_to_a_full_volume_is_refused_whole() {
    let world = World::with_memory().await;
    let body = json!({"name": "small", "max_file_count": 1});
    let (_, small) = world.post("/v1/volumes", body).await;
    let id = make(&world, json!({"volumes": [mount("small", "/s", false)]})).await;
    sh(&world, &id, "echo x > ../s/x").await;
    let path = format!("/v1/machines/{id}/fork");
    refused(
        &world,
        &path,
        StatusCode::INSUFFICIENT_STORAGE,
        "volume_quota_exceeded",
    )
    .await;
    assert_eq!(listed(&world).await, [id]);
    assert_eq!(kept(&world), Vec::<PathBuf>::new());
    assert_eq!(mounts(&world, small["id"].as_str().unwrap()).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_a_snapshot_has_its_volumes_or_those_that_are_named() {
    let mut world = World::with_memory().await;
    let data = volume(&world, "data").await;
    let other = volume(&world, "other").await;
    let id = make(&world, json!({"volumes": [mount("data", "/data", false)]})).await;
    sh(&world, &id, "echo kept > ../data/word").await;
    let snapshot = ok(&world, &format!("/v1/machines/{id}/snapshots")).await;
    let snapshot = snapshot["id"].as_str().unwrap().to_owned();
    world.delete(&format!("/v1/machines/{id}")).await;
    assert_eq!(mounts(&world, &data).await, 0, "a snapshot holds none");
    world.restart().await;

    let has = |path: &str, volume: &str, read_only| {
        (
            path.to_owned(),
            volume.to_owned(),
            read_only,
            "mounted".to_owned(),
        )
    };
    // None named: those that are recorded.
    let one = make(&world, json!({"snapshot_id": snapshot})).await;
    assert_eq!(volumes(&world, &one).await, [has("/data", &data, false)]);
    assert_eq!(sh(&world, &one, "cat ../data/word").await, "kept");
    // Others in their place, and one more.
    let body = json!({"snapshot_id": snapshot, "volumes": [mount(&other, "/data", true), mount("data", "/more", false)]});
    let two = make(&world, body).await;
    assert_eq!(
        volumes(&world, &two).await,
        [has("/data", &other, true), has("/more", &data, false)]
    );
    assert_eq!(
        sh(&world, &two, "ls ../data; cat ../more/word").await,
        "kept"
    );
    // What the memory has cannot just be gone, and what is wrong by itself is wrong here.
    for (named, status, code) in [
        (
            json!([mount("data", "/more", false)]),
            409,
            "incompatible_snapshot",
        ),
        (json!([mount("nope", "/data", false)]), 404, "not_found"),
        (
            json!([
                mount("data", "/data", false),
                mount("data", "/data/in", false)
            ]),
            400,
            "volume_overlapping_mounts",
        ),
        (
            json!([mount("data", "/proc/x", false)]),
            400,
            "volume_invalid_mount_path",
        ),
    ] {
        let body = json!({"snapshot_id": snapshot, "volumes": named});
        let (got, said) = world.post("/v1/machines", body).await;
        assert_eq!(
            (got.as_u16(), said["code"].as_str()),
            (status, Some(code)),
            "{said}"
        );
    }
    assert_eq!(mounts(&world, &data).await, 2);
    for id in [one, two] {
        world.delete(&format!("/v1/machines/{id}")).await;
    }
    // A volume that went meanwhile is told by its name; another can be named for its place.
    let body = json!({"path": "/word"});
    world
        .post(&format!("/v1/volumes/{data}/files/remove"), body)
        .await;
    world.delete(&format!("/v1/volumes/{data}")).await;
    volume(&world, "data").await;
    let body = json!({"snapshot_id": snapshot});
    let (status, said) = world.post("/v1/machines", body).await;
    assert_eq!(
        (status.as_u16(), said["code"].as_str()),
        (404, Some("not_found")),
        "{said}"
    );
    for word in ["data", &data, "/data"] {
        assert!(said["error"].as_str().unwrap().contains(word), "{said}");
    }
    assert_eq!(listed(&world).await, Vec::<String>::new());
    let body = json!({"snapshot_id": snapshot, "volumes": [mount("data", "/data", false)]});
    let three = make(&world, body).await;
    assert_eq!(sh(&world, &three, "ls ../data").await, "");
    // Its own copies go on from there.
    let child = ok(&world, &format!("/v1/machines/{three}/fork")).await;
    assert_eq!(
        volumes(&world, child["id"].as_str().unwrap()).await.len(),
        1
    );
}

/// A server that died while it made a fork with volumes: the mounts are those of machines that are there.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_a_fork_that_was_cut_off_are_gone() {
    let mut world = World::with_memory().await;
    let data = volume(&world, "data").await;
    let id = make(&world, json!({"volumes": [mount("data", "/data", false)]})).await;
    let child = ok(&world, &format!("/v1/machines/{id}/fork")).await;
    let child = child["id"].as_str().unwrap();
    world.stop().await;
    // As if it had not come further than the record.
    world.engine.destroy(child).await.unwrap();
    let db = rusqlite(&world);
    db.execute(
        "UPDATE machine SET state = 'creating', started_at = NULL WHERE id = ?1",
        [child],
    )
    .unwrap();
    db.execute(
        "UPDATE volume_attachment SET state = 'mounting' WHERE machine_id = ?1",
        [child],
    )
    .unwrap();
    drop(db);
    world.start().await;
    assert_eq!(listed(&world).await, std::slice::from_ref(&id));
    assert_eq!(mounts(&world, &data).await, 1);
    let (_, all) = world.get(&format!("/v1/volumes/{data}/attachments")).await;
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
}

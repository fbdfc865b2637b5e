//! Volumes of machines with a kernel of their own, when such a machine is branched, kept and woken.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    gvisor::{is_here, status, world},
    python::{next_python, python, script},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_branched_with_the_published_sdk() {
    if !is_here() {
        return;
    }
    let world = world("auto").await;
    script(&world, &python(), "memory_volumes.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_branched_with_the_newer_sdk() {
    if !is_here() {
        return;
    }
    let world = world("auto").await;
    script(&world, &next_python(), "memory_volumes.py", &[]);
}

async fn volume(world: &World, name: &str) -> String {
    let (status, body) = world.post("/v1/volumes", json!({"name": name})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body["id"].as_str().unwrap().to_owned()
}

fn mount(reference: &str, path: &str) -> Value {
    json!({"ref": reference, "mount_path": path})
}

async fn files(world: &World, volume: &str, what: &str, body: Value) {
    let path = format!("/v1/volumes/{volume}/files/{what}");
    let (status, said) = world.post(&path, body).await;
    assert!(status.is_success(), "{said}");
}

async fn done(world: &World, path: &str) -> Value {
    let (status, said) = world.post(path, json!({})).await;
    assert!(status.is_success(), "{path}: {status} {said}");
    said
}

async fn refused(world: &World, path: &str, code: &str) -> String {
    let (status, said) = world.post(path, json!({})).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!(code)),
        "{path}: {said}"
    );
    said["error"].as_str().unwrap().to_owned()
}

async fn mounts(world: &World, volume: &str) -> u64 {
    let (_, one) = world.get(&format!("/v1/volumes/{volume}")).await;
    one["mount_count"].as_u64().unwrap()
}

/// Starts a program in the background that says `/workspace/up` when it is ready. Answers with its process.
async fn runs(world: &World, id: &str, line: &str) -> String {
    let line = format!(
        "rm -f up; {{ {line}; touch /workspace/up; exec sleep 1000; }} > /dev/null 2>&1 & echo $!; \
         while [ ! -e up ]; do sleep 0.01; done"
    );
    world.out(id, &line).await
}

/// A state is not kept of which no machine could be made: what is in the way is told, and when it is gone the machine is
/// kept and woken.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_opened_again_is_in_the_way_of_keeping() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let (data, late) = (volume(&world, "data").await, volume(&world, "late").await);
    let body = json!({"timeout_ms": 3_600_000, "volumes": [mount("data", "/data")]});
    let id = world.machine(body).await;
    let path = format!("/v1/machines/{id}");
    let all = ["hibernate", "fork", "snapshots"];

    // Open in a volume that was taken away since.
    let (_, attached) = world
        .post(&format!("{path}/volumes"), mount("late", "/late"))
        .await;
    let pid = runs(&world, &id, "exec 3>>/late/log; cd /late").await;
    let attached = attached["id"].as_str().unwrap();
    world.delete(&format!("{path}/volumes/{attached}")).await;
    for what in all {
        let said = refused(&world, &format!("{path}/{what}"), "conflict").await;
        assert!(said.contains(&format!("process {pid}")), "{said}");
        assert!(said.contains("/log"), "{said}");
    }
    world.out(&id, &format!("kill {pid}")).await;

    // Deleted from outside while it is open.
    let pid = runs(&world, &id, "echo x > /data/f; exec 3</data/f").await;
    files(&world, &data, "remove", json!({"path": "/f"})).await;
    for what in all {
        let said = refused(&world, &format!("{path}/{what}"), "conflict").await;
        assert!(said.contains(&format!("process {pid}")), "{said}");
        assert!(said.contains("/data/f"), "{said}");
    }
    world.out(&id, &format!("kill {pid}")).await;

    // Deleted by the machine itself, anywhere.
    let pid = runs(&world, &id, "exec 3>>/tmp/of-its-own; rm /tmp/of-its-own").await;
    for what in all {
        let said = refused(&world, &format!("{path}/{what}"), "conflict").await;
        assert!(said.contains("/tmp/of-its-own"), "{said}");
    }
    world.out(&id, &format!("kill {pid}")).await;

    // What is where it was is not in the way: a file, a directory, memory that is a file's.
    let maps = "import mmap, os; open('/data/m', 'w').write('x' * 4096); f = open('/data/m', 'r+b'); \
                m = mmap.mmap(f.fileno(), 4096); f.close(); os.chdir('/data/d'); open('/workspace/up', 'w'); \
                import time; time.sleep(1000)";
    world
        .out(&id, &format!("mkdir /data/d; rm -f up; python3 -c \"{maps}\" > /dev/null 2>&1 & while [ ! -e up ]; do sleep 0.01; done"))
        .await;
    let pid = runs(&world, &id, "exec 3>>/data/log").await;
    let child = done(&world, &format!("{path}/fork")).await;
    let child = child["id"].as_str().unwrap();
    world.out(child, &format!("kill -0 {pid}")).await;
    world.delete(&format!("/v1/machines/{child}")).await;
    done(&world, &format!("{path}/hibernate")).await;
    done(&world, &format!("{path}/resume")).await;
    world.out(&id, &format!("kill -0 {pid}")).await;
    assert_eq!(
        (mounts(&world, &data).await, mounts(&world, &late).await),
        (1, 0)
    );
}

/// What others do to a volume meanwhile: the machine stays where it is, and goes on when that is undone.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_open_file_went_while_it_slept_goes_on_once_it_is_back() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let data = volume(&world, "data").await;
    let body = json!({"timeout_ms": 3_600_000, "volumes": [mount("data", "/data")]});
    let id = world.machine(body).await;
    let path = format!("/v1/machines/{id}");
    let pid = runs(&world, &id, "echo before > /data/f; exec 3>>/data/f").await;
    let kept = done(&world, &format!("{path}/snapshots")).await;
    done(&world, &format!("{path}/hibernate")).await;
    let body = json!({"old_path": "/f", "new_path": "/away"});
    files(&world, &data, "rename", body).await;
    let said = refused(&world, &format!("{path}/resume"), "incompatible_snapshot").await;
    assert!(said.contains("volume"), "{said}");
    assert_eq!(status(&world, &id).await, "paused");
    let body = json!({"snapshot_id": kept["id"]});
    let (refused, said) = world.post("/v1/machines", body.clone()).await;
    assert_eq!(
        (refused, &said["code"]),
        (StatusCode::CONFLICT, &json!("incompatible_snapshot")),
        "{said}"
    );
    assert_eq!(
        mounts(&world, &data).await,
        1,
        "that of the one that sleeps"
    );
    let body_back = json!({"old_path": "/away", "new_path": "/f"});
    files(&world, &data, "rename", body_back).await;
    done(&world, &format!("{path}/resume")).await;
    world.out(&id, &format!("kill -0 {pid}")).await;

    // It may only be read now, and the process writes; a target that leads elsewhere. Nothing of either is left.
    let mut only_read = mount("data", "/data");
    only_read["read_only"] = json!(true);
    world.out(&id, "ln -s /etc /link").await;
    let linked = done(&world, &format!("{path}/snapshots")).await;
    for (snapshot, volumes, status, code) in [
        (&kept, json!([only_read]), 409, "incompatible_snapshot"),
        (
            &linked,
            json!([mount("data", "/data"), mount("data", "/link")]),
            400,
            "volume_invalid_mount_path",
        ),
    ] {
        let body = json!({"snapshot_id": snapshot["id"], "volumes": volumes});
        let (got, said) = world.post("/v1/machines", body).await;
        assert_eq!(
            (got.as_u16(), &said["code"]),
            (status, &json!(code)),
            "{said}"
        );
        assert_eq!(mounts(&world, &data).await, 1);
    }
    let made = world.machine(body).await;
    world
        .out(&made, &format!("kill -0 {pid}; cat /data/f"))
        .await;
}

/// Whatever is killed and when: every machine that runs has all of its volumes and knows which one it is, and mounts are
/// counted for machines that are there.
#[tokio::test(flavor = "multi_thread")]
async fn servers_are_killed_while_machines_with_volumes_are_branched() {
    if !is_here() {
        return;
    }
    let mut world = world("gvisor").await;
    let (data, more) = (volume(&world, "data").await, volume(&world, "more").await);
    let body = json!({"timeout_ms": 3_600_000, "volumes": [mount("data", "/data")]});
    let id = world.machine(body).await;
    let path = format!("/v1/machines/{id}");
    let pid = runs(&world, &id, "exec 3>>/data/log").await;
    let kept = done(&world, &format!("{path}/snapshots")).await;
    let named = json!({"snapshot_id": kept["id"], "timeout_ms": 3_600_000,
        "volumes": [mount("data", "/data"), mount("more", "/more")]});
    for pause in [0, 60, 150, 300, 450, 600, 800] {
        for (what, body) in [
            (format!("{path}/fork"), json!({})),
            ("/v1/machines".to_owned(), named.clone()),
            (format!("{path}/hibernate"), json!({})),
        ] {
            let asked = world.request(Method::POST, &what).json(&body).send();
            let asked = tokio::spawn(asked);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.kill();
            let answered = asked.await.unwrap().map(|answer| answer.status());
            world.serve().await;
            if status(&world, &id).await == "paused" {
                done(&world, &format!("{path}/resume")).await;
            }
            let (mut of_data, mut of_more) = (0, 0);
            for one in world.listed().await {
                let seen = format!("{what} after {pause} ms ({answered:?}), {one}");
                assert_eq!(status(&world, &one).await, "running", "{seen}");
                let line =
                    format!("kill -0 {pid}; hostname; ls -d /proc/{pid}/fd/3; touch /data/x");
                let said = world.out(&one, &line).await;
                assert_eq!(said.lines().next(), Some(&*one.replace('_', "-")), "{seen}");
                let (_, has) = world.get(&format!("/v1/machines/{one}/volumes")).await;
                let has = has.as_array().unwrap();
                assert!(
                    has.iter().all(|one| one["state"] == "mounted"),
                    "{seen}: {has:?}"
                );
                of_data += 1;
                if has.len() == 2 {
                    of_more += 1;
                    world.out(&one, "touch /more/it").await;
                    files(&world, &more, "remove", json!({"path": "/it"})).await;
                }
            }
            let counted = (mounts(&world, &data).await, mounts(&world, &more).await);
            assert_eq!(counted, (of_data, of_more), "{what} after {pause} ms");
            for one in world.listed().await {
                if one != id {
                    world.delete(&format!("/v1/machines/{one}")).await;
                }
            }
            assert_eq!(mounts(&world, &data).await, 1);
        }
    }
    let kept = kept["id"].as_str().unwrap();
    world.delete(&format!("/v1/snapshots/{kept}")).await;
    let snapshots = world.data().join("snapshots");
    let left = || std::fs::read_dir(&snapshots).map_or(0, Iterator::count);
    while left() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

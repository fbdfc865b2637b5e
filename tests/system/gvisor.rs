//! Machines with a kernel of their own, through the whole system.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    python::{next_python, python, script},
    world::World,
};

/// Whether this host has what these tests need; says so otherwise.
pub fn is_here() -> bool {
    let here = Command::new("runsc").arg("--version").output().is_ok();
    if !here {
        println!("skipped: runsc is not installed");
    }
    here
}

pub async fn world(isolation: &str) -> World {
    World::with(&["--isolation", isolation]).await
}

/// The version of the kernel that a machine runs on, as it says itself.
async fn kernel(world: &World, id: &str) -> String {
    world.out(id, "cat /proc/version").await
}

/// A process costs a machine's own kernel memory that no process is seen to have: enough of them would end the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_ended_and_its_machine_goes_on() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let id = world
        .machine(json!({"template": "base", "memory_mb": 512}))
        .await;
    let process = |pid: &Value| format!("/v1/machines/{id}/processes/{pid}/logs");
    let begun = async |line: &str| {
        let body = json!({"command": line, "shell": true, "background": true});
        let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
        started["pid"].clone()
    };
    let innocent = begun("sleep 1000").await;
    for bomb in [
        // What it starts is in its session, and each in one of its own.
        "exec perl -e 'while (1) { my $p = fork; sleep 3600 if defined $p && !$p }'",
        "exec perl -MPOSIX -e 'while (1) { my $p = fork; if (defined $p && !$p) { setsid(); sleep 3600 } }'",
    ] {
        let bomb = begun(bomb).await;
        // Killed; now and then it is hung up on instead. Why was not looked into.
        world
            .until_at(&process(&bomb), |logs| {
                logs["exit_code"] == 137 || logs["exit_code"] == 129
            })
            .await;
        // What it started is over, too.
        let few = "[ $(ls /proc | grep -c '^[0-9]') -lt 40 ]";
        let deadline = Instant::now() + Duration::from_secs(60);
        while world.shell(&id, few).await["exit_code"] != 0 {
            assert!(Instant::now() < deadline, "they are there still");
        }
    }
    let innocent = world.get(&process(&innocent)).await.1;
    assert_eq!(innocent["exit_code"], Value::Null, "{innocent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_strongest_engine_that_works_is_used_and_its_machines_outlive_the_server() {
    if !is_here() {
        return;
    }
    // As with no settings at all.
    let mut world = World::in_surroundings(vec![("NULLSPACE_ISOLATION", String::new())]).await;
    let id = world
        .machine(json!({"template": "base", "envs": {"A": "b"}}))
        .await;
    let own = kernel(&world, &id).await;
    let hosts = std::fs::read_to_string("/proc/version").unwrap();
    assert_ne!(own, hosts.trim(), "a kernel of its own");
    assert_eq!(
        world.out(&id, "echo $A; hostname").await,
        format!("b\n{}", id.replace('_', "-"))
    );
    let line = "python3 -c 'import ssl, sqlite3; c = sqlite3.connect(\"/workspace/d\"); c.execute(\"create table t(x)\"); c.commit(); print(2 + 2)'";
    assert_eq!(world.out(&id, line).await, "4");
    let body = json!({"command": "echo begun; read x < /dev/null; sleep 1000", "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let process = format!("/v1/machines/{id}/processes/{}/logs", started["pid"]);
    world
        .until_at(&process, |logs| logs["stdout"] == "begun\n")
        .await;

    world.kill();
    world.serve().await;
    assert_eq!(
        world.get(&format!("/v1/machines/{id}")).await.1["status"],
        "running"
    );
    assert_eq!(
        world.out(&id, "test -e /workspace/d && echo there").await,
        "there"
    );
    assert_eq!(world.get(&process).await.1["stdout"], "begun\n");

    // Another kind lives beside it after the default has changed, and both are found.
    world.kill();
    world.set_argument("--isolation", "native");
    world.serve().await;
    let native = world.machine(json!({"template": "base"})).await;
    assert_eq!(kernel(&world, &native).await, hosts.trim());
    assert_eq!(kernel(&world, &id).await, own);
    assert!(
        world
            .nullspace(&["machine", "kill", "--all"])
            .status
            .success()
    );
    for id in [&id, &native] {
        let (_, body) = world.get(&format!("/v1/machines/{id}")).await;
        assert_eq!(body["status"], "destroyed");
    }
}

/// A machine, or its template, says what keeps it apart; what is not there is refused and never replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_or_its_template_chooses() {
    if !is_here() {
        return;
    }
    let hosts = std::fs::read_to_string("/proc/version").unwrap();
    for usual in ["native", "gvisor"] {
        let world = world(usual).await;
        let made = async |more: Value| {
            let mut body = json!({"template": "base"});
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let id = world.machine(body).await;
            let (_, machine) = world.get(&format!("/v1/machines/{id}")).await;
            let is_hosts = kernel(&world, &id).await == hosts.trim();
            let said = machine["isolation"].as_str().unwrap().to_owned();
            assert_eq!(said == "native", is_hosts, "{machine}");
            said
        };
        assert_eq!(made(json!({})).await, usual);
        for (asked, got) in [
            ("native", "native"),
            ("gvisor", "gvisor"),
            ("strongest", "gvisor"),
        ] {
            assert_eq!(made(json!({"isolation": asked})).await, got);
        }
        let other = if usual == "native" {
            "gvisor"
        } else {
            "native"
        };
        let build =
            json!({"name": "other", "base_image": "base", "runtime_config": {"isolation": other}});
        let (_, begun) = world.post("/v1/templates/builds", build).await;
        let path = format!(
            "/v1/templates/builds/{}",
            begun["build_id"].as_str().unwrap()
        );
        let over = world
            .until_at(&path, |seen| {
                !["waiting", "building"].contains(&seen["build"]["status"].as_str().unwrap())
            })
            .await;
        assert_eq!(over["build"]["status"], "ready", "{over:#}");
        assert_eq!(made(json!({"template": "other"})).await, other);
        assert_eq!(
            made(json!({"template": "other", "isolation": usual})).await,
            usual
        );

        // What an engine cannot do is said of the machine's own, whatever the usual one is.
        let native = world
            .machine(json!({"template": "base", "isolation": "native"}))
            .await;
        let (status, refused) = world
            .post(&format!("/v1/machines/{native}/fork"), json!({}))
            .await;
        assert_eq!(status, StatusCode::NOT_IMPLEMENTED, "{refused}");
        assert!(
            refused["error"].as_str().unwrap().contains("native"),
            "{refused}"
        );
        let own = world
            .machine(json!({"template": "base", "isolation": "gvisor"}))
            .await;
        let (status, child) = world
            .post(&format!("/v1/machines/{own}/fork"), json!({}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{child}");
        assert_eq!(child["isolation"], "gvisor");
        for body in [
            json!({"isolation": "microvm"}),
            json!({"isolation": "microvm", "template": "other"}),
        ] {
            let (status, refused) = world.post("/v1/machines", body).await;
            assert_eq!(status, StatusCode::NOT_IMPLEMENTED, "{refused}");
            assert_eq!(refused["code"], "not_implemented");
        }
        let (status, _) = world
            .post("/v1/machines", json!({"isolation": "docker"}))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_the_host_nor_the_guest_can_be_reached_from_inside() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let id = world.machine(json!({"template": "base"})).await;
    // The host's own services are not there, by whichever of its addresses.
    let gateway = world
        .out(&id, "sed -n 's/^nameserver //p' /etc/resolv.conf")
        .await;
    for address in [gateway.as_str(), "127.0.0.1", "169.254.169.254"] {
        let line = format!(
            "python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 2)' 2>&1 | tail -1"
        );
        let said = world.out(&id, &line).await;
        assert!(said.contains("Error"), "{address}: {said}");
    }
    // A stranger in the machine does not get to speak to its guest.
    let line = "cat > /tmp/stranger.py <<'END'
import socket
s = socket.create_connection(('127.0.0.1', 4), 5)
s.sendall(b'x' * 64)
s.settimeout(20)
try:
    print(s.recv(10))
except ConnectionError:
    print(b'')
END
python3 /tmp/stranger.py";
    assert_eq!(world.out(&id, line).await, "b''");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_kept_with_the_published_sdk() {
    if !is_here() {
        return;
    }
    let world = world("auto").await;
    script(&world, &python(), "memory.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_kept_with_the_newer_sdk() {
    if !is_here() {
        return;
    }
    let world = world("auto").await;
    script(&world, &next_python(), "memory_next.py", &[]);
}

pub async fn status(world: &World, id: &str) -> String {
    let (_, info) = world.get(&format!("/v1/machines/{id}")).await;
    info["status"].as_str().unwrap_or_default().to_owned()
}

/// Whatever is killed and when: the machine is there once, with its process, and nothing is left on the disk.
#[tokio::test(flavor = "multi_thread")]
async fn servers_are_killed_while_memory_is_kept() {
    if !is_here() {
        return;
    }
    let mut world = world("gvisor").await;
    let body = json!({"timeout_ms": 3_600_000, "timeout_action": "hibernate", "auto_resume": true});
    let id = world.machine(body).await;
    let pid = world
        .out(&id, "sleep 1000 > /dev/null 2>&1 & echo $!")
        .await;
    let path = format!("/v1/machines/{id}");
    for pause in [0, 20, 60, 120, 200, 350] {
        for what in ["hibernate", "resume", "fork", "snapshots"] {
            if what == "resume" && status(&world, &id).await == "running" {
                let (kept, said) = world.post(&format!("{path}/hibernate"), json!({})).await;
                assert_eq!(kept, StatusCode::OK, "{said}");
            }
            let asked = world
                .request(reqwest::Method::POST, &format!("{path}/{what}"))
                .send();
            let asked = tokio::spawn(asked);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.kill();
            let answered = asked.await.unwrap().map(|answer| answer.status());
            world.serve().await;
            let now = status(&world, &id).await;
            assert!(
                now == "running" || now == "paused",
                "{what} after {pause} ms ({answered:?}): {now}"
            );
            world.out(&id, &format!("kill -0 {pid}")).await;
            // What came of a fork is whole.
            for other in world.listed().await {
                if other != id && status(&world, &other).await == "running" {
                    world.out(&other, &format!("kill -0 {pid}")).await;
                    world.delete(&format!("/v1/machines/{other}")).await;
                }
            }
            let (_, kept) = world.get("/v1/snapshots").await;
            for one in kept.as_array().into_iter().flatten() {
                let one = one["id"].as_str().unwrap();
                let (gone, said) = world.delete(&format!("/v1/snapshots/{one}")).await;
                assert_eq!(gone, StatusCode::NO_CONTENT, "{said}");
            }
        }
    }
    let snapshots = world.data().join("snapshots");
    let left = || std::fs::read_dir(&snapshots).map_or(0, Iterator::count);
    while left() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_was_changed_is_refused_and_nothing_is_lost() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let id = world.machine(json!({"timeout_ms": 3_600_000})).await;
    let pid = world
        .out(&id, "sleep 1000 > /dev/null 2>&1 & echo $!")
        .await;
    let path = format!("/v1/machines/{id}");
    let (_, kept) = world.post(&format!("{path}/hibernate"), json!({})).await;
    let state = world
        .data()
        .join("snapshots")
        .join(kept["id"].as_str().unwrap());
    for name in ["pages.img", "checkpoint.img"] {
        let file = state.join(name);
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        for wrong in [&flipped[..], &whole[..middle]] {
            std::fs::write(&file, wrong).unwrap();
            let (refused, said) = world.post(&format!("{path}/resume"), json!({})).await;
            assert_eq!(refused, StatusCode::CONFLICT, "{said}");
            assert_eq!(said["code"], "incompatible_snapshot", "{said}");
            assert_eq!(status(&world, &id).await, "paused");
        }
        std::fs::write(&file, whole).unwrap();
    }
    let (resumed, said) = world.post(&format!("{path}/resume"), json!({})).await;
    assert_eq!(resumed, StatusCode::OK, "{said}");
    assert_eq!(said["status"], "running");
    world.out(&id, &format!("kill -0 {pid}")).await;
    let (_, all) = world.get("/v1/snapshots").await;
    assert_eq!(all, Value::Array(Vec::new()));
}

/// The host sees one process for the whole machine, and would end that.
#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_ends_the_program_and_not_the_machine() {
    if !is_here() {
        return;
    }
    let world = world("gvisor").await;
    let id = world
        .machine(json!({"template": "base", "memory_mb": 256}))
        .await;
    let body = json!({"command": "sleep 1000", "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let pid = started["pid"].to_string();
    for greedy in [
        "x = b'x' * (1 << 30)",
        "x = []\nwhile True: x.append(b'x' * (1 << 20))",
    ] {
        let path = format!("/v1/machines/{id}/file?path=/tmp/greedy.py");
        let put = world.request(reqwest::Method::PUT, &path).body(greedy);
        assert!(put.send().await.unwrap().status().is_success());
        let done = world.shell(&id, "python3 /tmp/greedy.py").await;
        assert_eq!(done["exit_code"], 137, "{greedy}: {done}");
        world.out(&id, &format!("kill -0 {pid}")).await;
    }
    // What fits is left alone.
    assert_eq!(
        world
            .out(&id, "python3 -c 'print(len(b\"x\" * (200 << 20)))'")
            .await,
        "209715200"
    );
    // Files in memory have an end, also where the machine was prepared before it was known how much memory it has.
    for _ in 0..3 {
        let line =
            "head -c 1G /dev/zero > /dev/shm/x; echo $?; stat -c %s /dev/shm/x; rm /dev/shm/x";
        assert_eq!(world.out(&id, line).await, format!("1\n{}", 128 << 20));
    }
    world.out(&id, &format!("kill -0 {pid}")).await;
}

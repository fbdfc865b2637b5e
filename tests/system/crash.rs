//! Any process may be killed at any instant.

use std::{collections::BTreeSet, time::Duration};

use futures_util::stream;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    host::run,
    world::{World, repository},
};

#[tokio::test(flavor = "multi_thread")]
async fn machines_outlive_the_server() {
    let mut world = World::start().await;
    let id = world
        .machine(json!({"template": "host", "envs": {"A": "b"}}))
        .await;
    let body = json!({"command": "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done", "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let logs = format!("/v1/machines/{id}/processes/{}/logs", started["pid"]);
    let count = |logs: &Value| logs["stdout"].as_str().unwrap_or_default().lines().count();
    let before = count(&world.until_at(&logs, |logs| count(logs) >= 2).await);
    world.kill();
    world.serve().await;
    assert_eq!(
        world.get(&format!("/v1/machines/{id}")).await.1["status"],
        "running"
    );
    assert_eq!(world.out(&id, "echo $A").await, "b");
    // It went on counting meanwhile, and not a line is missing.
    let after = world.until_at(&logs, |logs| count(logs) > before + 2).await;
    let lines: Vec<usize> = after["stdout"]
        .as_str()
        .unwrap()
        .lines()
        .map(|l| l.parse().unwrap())
        .collect();
    assert_eq!(lines, (0..lines.len()).collect::<Vec<_>>());

    // Told to stop, it ends what it is doing and leaves the machines where they are.
    let line = "touch /under-way; while [ ! -e /enough ]; do sleep 0.05; done; echo whole";
    let under_way = tokio::spawn(
        world
            .request(Method::POST, &format!("/v1/machines/{id}/exec"))
            .json(&json!({"command": line, "shell": true}))
            .send(),
    );
    let exists = json!({"path": "/under-way"});
    let until_there = async {
        while world
            .post(&format!("/v1/machines/{id}/files/exists"), exists.clone())
            .await
            .1["exists"]
            != true
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), until_there)
        .await
        .expect("the command starts");
    // What lets the command end comes from the machine: the server takes no more requests.
    let body = json!({"command": "sleep 1; touch /enough", "shell": true, "background": true});
    world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert!(world.terminate().success());
    let answer = under_way.await.unwrap().expect("an answer");
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["stdout"], "whole\n", "{answer}");
    assert_eq!(world.host.machines(), [id.clone()].into());
    world.serve().await;
    assert_eq!(world.out(&id, "echo still").await, "still");
    assert_eq!(world.settled().await, [id.clone()].into());
    let done = world.nullspace(&["machine", "kill", "--all"]);
    assert!(done.status.success());
    assert_eq!(
        world.get(&format!("/v1/machines/{id}")).await.1["status"],
        "destroyed"
    );
    assert_eq!(world.settled().await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_without_a_hole_or_a_double() {
    let mut world = World::start().await;
    let project = world.home().join("project");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(
        project.join("nullspace.agent.toml"),
        "name = 'counter'\ntemplate = 'host'\nentrypoint = 'sh main.sh'\n[outputs]\npaths = ['result']\n",
    )
    .unwrap();
    std::fs::write(
        project.join("main.sh"),
        "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo $SECRET > result; exit 6\n",
    )
    .unwrap();
    let deployed = world.nullspace(&["agent", "deploy", project.to_str().unwrap(), "--json"]);
    assert!(deployed.status.success(), "{deployed:?}");
    let (_, run) = world
        .post(
            "/v1/agent-deployments/counter/runs",
            json!({"input": {}, "envs": {"SECRET": "kept"}}),
        )
        .await;
    let path = format!(
        "/v1/agent-deployments/counter/runs/{}",
        run["id"].as_str().unwrap()
    );
    // Killed again and again while it prints.
    for lines in [5, 60, 150] {
        world
            .until_at(&format!("{path}/logs?tail=1"), |page| {
                page["offset"].as_u64().unwrap_or(0) > lines
            })
            .await;
        world.kill();
        world.serve().await;
    }
    let ended = world
        .until_at(&path, |run| !run["completed_at"].is_null())
        .await;
    assert_eq!(
        (&ended["status"], &ended["exit_code"]),
        (&json!("failed"), &json!(6)),
        "{ended}"
    );
    let (_, page) = world.get(&format!("{path}/logs?limit=1000")).await;
    let lines: Vec<&str> = page["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["source"] == "stdout")
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    let expected: Vec<String> = (0..300).map(|i| format!("line {i}")).collect();
    assert_eq!(lines, expected);
    let machine = ended["machine_id"].as_str().unwrap();
    let kept = world.request(
        Method::GET,
        &format!("/v1/machines/{machine}/file?path=/workspace/project/result"),
    );
    assert_eq!(kept.send().await.unwrap().text().await.unwrap(), "kept\n");
    world
        .until(machine, |machine| machine["status"] == "destroyed")
        .await;
}

/// Kills the launcher and waits until the kernel has taken its machines with it.
async fn kill_launcher(world: &mut World) {
    world.host.look();
    let launcher = world.host.launcher().expect("a launcher").to_string();
    run("kill", &["-9", &launcher]);
    let gone = async {
        while !world.host.machines().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("machines end with their launcher");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_launcher_is_recorded_and_leaks_nothing() {
    let mut world = World::native().await;
    let id = world.machine(json!({"template": "host"})).await;
    let body = json!({"command": "sleep", "args": ["98765"], "background": true});
    let (status, _) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert_eq!(status, StatusCode::OK);
    let sleeps = |world: &World| {
        let left = world.host.leftovers();
        left.iter().any(|line| line.contains("sleep 98765"))
    };
    assert!(sleeps(&world), "the background process is there");
    kill_launcher(&mut world).await;
    let lost = world
        .until(&id, |machine| machine["status"] == "error")
        .await;
    assert!(lost["failure_reason"].is_string(), "{lost}");
    let (status, refused) = world
        .post(
            &format!("/v1/machines/{id}/exec"),
            json!({"command": "true"}),
        )
        .await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::CONFLICT, &json!("machine_not_ready"))
    );
    // Another launcher takes its place by itself, and cleans up.
    let next = world.machine(json!({"template": "host"})).await;
    assert_eq!(world.out(&next, "echo new").await, "new");
    assert_eq!(world.settled().await, [next.clone()].into());
    assert!(!sleeps(&world));
    // The same with the server away: what was lost is found out at its start.
    world.kill();
    kill_launcher(&mut world).await;
    world.serve().await;
    let lost = world.get(&format!("/v1/machines/{next}")).await.1;
    assert_eq!(lost["status"], "error", "{lost}");
    assert_eq!(world.settled().await, BTreeSet::new());
}

/// Asks for a machine with this key until it is there; its id. `None` when the server is gone.
async fn ask(client: &reqwest::Client, url: &str, key: &str) -> Option<String> {
    loop {
        let answer = client
            .post(url)
            .bearer_auth(crate::world::KEY)
            .header("idempotency-key", key)
            .json(&json!({"template": "host"}))
            .send()
            .await
            .ok()?;
        let status = answer.status();
        let body: Value = answer.json().await.ok()?;
        if status == StatusCode::CREATED {
            return Some(body["id"].as_str()?.to_owned());
        }
        assert_eq!(body["code"], "transition_in_progress", "{body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_burst_nothing_is_half_made() {
    let mut world = World::start().await;
    let client = reqwest::Client::new();
    // Killed with the first of them on record, with some there, and with many.
    for there in [1, 8, 20] {
        let url = format!("{}/v1/machines", world.base_url());
        // Eight that ask for one machine after the other until the server is gone.
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let (url, client) = (url.clone(), client.clone());
                tokio::spawn(async move {
                    let mut made = Vec::new();
                    loop {
                        let key = format!("{there}-{caller}-{}", made.len());
                        let id = ask(&client, &url, &key).await;
                        let gone = id.is_none();
                        made.push((key, id));
                        if gone {
                            return made;
                        }
                    }
                })
            })
            .collect();
        world
            .until_at("/v1/machines?limit=200", |page| {
                page["items"].as_array().is_some_and(|l| l.len() >= there)
            })
            .await;
        world.kill();
        let mut asked = Vec::new();
        for caller in callers {
            asked.extend(caller.await.unwrap());
        }
        world.serve().await;
        // What lives has a record and what is on record lives, without anybody asking.
        let listed = world.settled().await;
        for id in &listed {
            assert_eq!(world.out(id, "echo here").await, "here");
        }
        for id in asked.iter().filter_map(|(_, id)| id.as_ref()) {
            assert!(listed.contains(id), "{id} was answered and is gone");
        }
        // Who asks again with the same key gets the same machine, or now gets one: never two.
        let mut all = BTreeSet::new();
        for (key, before) in asked {
            let id = ask(&client, &url, &key).await.expect("an answer");
            assert!(
                before.is_none_or(|before| before == id),
                "another for {key}"
            );
            assert!(all.insert(id), "one machine for two keys");
        }
        let now = world.settled().await;
        assert!(now == all, "{:?}", now.symmetric_difference(&all));
        let done = world.nullspace(&["machine", "kill", "--all"]);
        assert!(done.status.success(), "{done:?}");
        assert_eq!(world.settled().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_cut_off_is_asked_for_again() {
    let mut world = World::start().await;
    let client = reqwest::Client::new();
    // The launcher, stopped in the middle, goes on while the server is away, or goes with it.
    for goes_on in [true, false] {
        let url = format!("{}/v1/machines", world.base_url());
        let key = format!("key-{goes_on}");
        let launcher = world.host.launcher().expect("a launcher").to_string();
        run("kill", &["-STOP", &launcher]);
        let cut_off = tokio::spawn({
            let (client, url, key) = (client.clone(), url.clone(), key.clone());
            async move { ask(&client, &url, &key).await }
        });
        world
            .until_at("/v1/machines", |page| {
                page["items"][0]["status"] == "creating"
            })
            .await;
        world.kill();
        assert_eq!(cut_off.await.unwrap(), None);
        run(
            "kill",
            &[if goes_on { "-CONT" } else { "-KILL" }, &launcher],
        );
        world.serve().await;
        let id = ask(&client, &url, &key).await.expect("an answer");
        assert_eq!(world.out(&id, "echo here").await, "here");
        assert_eq!(world.settled().await, [id.clone()].into());
        world.delete(&format!("/v1/machines/{id}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let world = World::start().await;
    let example = repository().join("examples/minimal-job");
    let config = nullspace_project::load(&example, None).unwrap().0;
    let bundle = nullspace_project::Bundle::build(&example, &config).unwrap();
    let (_, deployment) = world
        .post(
            "/v1/agent-deployments",
            json!({"name": "broken", "mode": "job"}),
        )
        .await;
    let base = format!(
        "/v1/agent-deployments/{}/versions",
        deployment["id"].as_str().unwrap()
    );
    let body = json!({
        "bundle_digest": bundle.manifest().bundle_digest,
        "bundle_manifest": bundle.manifest(),
        "config": config.to_wire(),
    });
    let (status, version) = world.post(&base, body).await;
    assert_eq!(status, StatusCode::CREATED, "{version}");
    let mut archive = Vec::new();
    bundle.write_archive(&mut archive).unwrap();
    let whole = archive.len() as u64;
    archive.truncate(1500);
    let pieces = stream::iter([
        Ok(archive),
        Err(std::io::Error::other("the client is gone")),
    ]);
    let path = format!("{base}/{}/bundle", version["id"].as_str().unwrap());
    let upload = world
        .request(Method::PUT, &path)
        .header(
            "x-nullspace-bundle-digest",
            &bundle.manifest().bundle_digest,
        )
        .header("content-length", whole)
        .body(reqwest::Body::wrap_stream(pieces));
    assert!(upload.send().await.is_err());
    let bundles = world.data().join("bundles");
    for _ in 0..500 {
        if std::fs::read_dir(&bundles).unwrap().next().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_dir(&bundles).unwrap().count(), 0);
    let (_, same) = world
        .get(&format!("{base}/{}", version["id"].as_str().unwrap()))
        .await;
    assert_eq!(same["status"], "created");
}

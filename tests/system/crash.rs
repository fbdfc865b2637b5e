//! Any process may be killed at any instant.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
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

    // Told to stop, it drains and leaves the machines where they are.
    assert!(world.terminate().success());
    world.serve().await;
    assert_eq!(world.out(&id, "echo still").await, "still");
    let done = world.nullspace(&["machine", "kill", "--all"]);
    assert!(done.status.success());
    assert_eq!(
        world.get(&format!("/v1/machines/{id}")).await.1["status"],
        "destroyed"
    );
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

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_launcher_is_recorded_and_leaks_nothing() {
    let mut world = World::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    let launcher = world.host.launcher().expect("a launcher").to_string();
    run("kill", &["-9", &launcher]);
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
    // The same with the server away: what was lost is found out at its start.
    world.kill();
    run(
        "kill",
        &[
            "-9",
            &world.host.launcher().expect("a launcher").to_string(),
        ],
    );
    world.serve().await;
    let lost = world.get(&format!("/v1/machines/{next}")).await.1;
    assert_eq!(lost["status"], "error", "{lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_a_burst_nothing_is_half_made() {
    let mut world = World::start().await;
    for _ in 0..3 {
        let url = format!("{}/v1/machines", world.base_url());
        let client = reqwest::Client::new();
        let burst = tokio::spawn(async move {
            let one = |_| {
                let request = client
                    .post(&url)
                    .bearer_auth(crate::world::KEY)
                    .json(&json!({"template": "host"}));
                async move {
                    let answer = request
                        .send()
                        .await
                        .ok()
                        .filter(|a| a.status() == StatusCode::CREATED)?;
                    let machine: Value = answer.json().await.ok()?;
                    Some(machine["id"].as_str()?.to_owned())
                }
            };
            stream::iter(0..40)
                .map(one)
                .buffer_unordered(8)
                .filter_map(async |id| id)
                .collect::<Vec<String>>()
                .await
        });
        // As soon as the first are there.
        world
            .until_at("/v1/machines?limit=200", |page| {
                page["items"].as_array().is_some_and(|l| l.len() > 4)
            })
            .await;
        world.kill();
        let answered: BTreeSet<String> = burst.await.unwrap().into_iter().collect();
        world.serve().await;
        let (_, page) = world.get("/v1/machines?limit=200").await;
        let listed: BTreeSet<String> = page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["id"].as_str().unwrap().to_owned())
            .collect();
        // What was answered lives; what lives answers, and has a record.
        assert!(
            answered.is_subset(&listed),
            "{:?}",
            answered.difference(&listed)
        );
        for id in &listed {
            assert_eq!(world.out(id, "echo here").await, "here");
        }
        let alive: BTreeSet<String> = std::fs::read_dir(world.data().join("machines"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("mch_"))
            .collect();
        assert!(alive.is_subset(&listed), "{:?}", alive.difference(&listed));
        assert!(
            world
                .nullspace(&["machine", "kill", "--all"])
                .status
                .success()
        );
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

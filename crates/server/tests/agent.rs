//! Agent Deployments over real HTTP, on the fake engine: commands run for real, in a folder of the host.

#![allow(clippy::unwrap_used)]

mod common;

use std::{os::unix::fs::PermissionsExt, time::Duration};

use common::{World, answer, project::Project};
use nullspace_project::AgentConfig;
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const BASE: &str = "/v1/agent-deployments";

trait Agents {
    async fn deployment(&self, name: &str, mode: &str) -> String;
    async fn version(&self, deployment: &str, project: &Project) -> (StatusCode, Value);
    async fn upload(&self, version: &Value, digest: &str, archive: Vec<u8>) -> (StatusCode, Value);
    async fn deploy(&self, project: &Project) -> String;
    async fn run(&self, deployment: &str, body: Value) -> Value;
    async fn finished(&self, run: &Value) -> Value;
    async fn log(&self, run: &Value) -> Vec<Value>;
}

impl Agents for World {
    async fn deployment(&self, name: &str, mode: &str) -> String {
        let (status, body) = self.post(BASE, json!({"name": name, "mode": mode})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    async fn version(&self, deployment: &str, project: &Project) -> (StatusCode, Value) {
        let path = format!("{BASE}/{deployment}/versions");
        self.post(&path, project.version_request()).await
    }

    async fn upload(&self, version: &Value, digest: &str, archive: Vec<u8>) -> (StatusCode, Value) {
        let path = format!(
            "{BASE}/{}/versions/{}/bundle",
            version["deployment_id"].as_str().unwrap(),
            version["id"].as_str().unwrap()
        );
        let request = self
            .request(Method::PUT, &path)
            .header("x-nullspace-bundle-digest", digest)
            .header("content-type", "application/x-tar")
            .body(archive);
        answer(request).await
    }

    /// A deployment with a version that is ready.
    async fn deploy(&self, project: &Project) -> String {
        let deployment = self.deployment("worker", "job").await;
        let (status, version) = self.version(&deployment, project).await;
        assert_eq!(status, StatusCode::CREATED, "{version}");
        let digest = version["bundle_digest"].as_str().unwrap().to_owned();
        let (status, version) = self.upload(&version, &digest, project.archive()).await;
        assert_eq!(status, StatusCode::OK, "{version}");
        assert_eq!(version["status"], "ready");
        deployment
    }

    async fn run(&self, deployment: &str, body: Value) -> Value {
        let (status, run) = self.post(&format!("{BASE}/{deployment}/runs"), body).await;
        assert_eq!(status, StatusCode::CREATED, "{run}");
        run
    }

    /// The run once it has ended.
    async fn finished(&self, run: &Value) -> Value {
        // The log is quiet when the run has ended: no need to ask again and again.
        let path = run_path(run);
        let mut cursor = String::new();
        for _ in 0..600 {
            let (status, page) = self
                .get(&format!(
                    "{path}/logs?limit=1000&wait_ms=5000&cursor={cursor}"
                ))
                .await;
            assert_eq!(status, StatusCode::OK, "{page}");
            cursor = page["next_cursor"].as_str().unwrap_or_default().to_owned();
            let (_, now) = self.get(&path).await;
            if !now["completed_at"].is_null() {
                return now;
            }
        }
        panic!("{path} did not end");
    }

    async fn log(&self, run: &Value) -> Vec<Value> {
        let (status, page) = self
            .get(&format!("{}/logs?limit=1000", run_path(run)))
            .await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["events"].as_array().unwrap().clone()
    }
}

fn run_path(run: &Value) -> String {
    format!(
        "{BASE}/{}/runs/{}",
        run["deployment_id"].as_str().unwrap(),
        run["id"].as_str().unwrap()
    )
}

fn types(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|e| e["event_type"].as_str().unwrap())
        .collect()
}

fn lines<'a>(events: &'a [Value], source: &str) -> Vec<&'a str> {
    events
        .iter()
        .filter(|e| e["source"] == source)
        .map(|e| e["message"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_run_that_is_over_do_not_come_from_its_machine() {
    let world = World::new().await;
    let project = Project::new("[outputs]\npaths = ['kept']\n", "echo kept > kept\n");
    let deployment = world.deploy(&project).await;
    let engine = world.engine.clone();
    let held = engine.hold_destroys().await;
    let run = world.run(&deployment, json!({"input": {}})).await;
    let run = world.finished(&run).await;
    // The machine is on its way out and still answers.
    let machine = run["sandbox_id"].as_str().unwrap();
    let (_, info) = world.get(&format!("/v1/sandboxes/{machine}")).await;
    assert_eq!(info["status"], "running", "{info}");
    let inside = engine.machine_root(machine).join("workspace/project/kept");
    std::fs::write(inside, "changed\n").unwrap();
    let file = format!("/v1/sandboxes/{machine}/file?path=/workspace/project/kept");
    let (status, body) = world.get(&file).await;
    assert_eq!((status, body), (StatusCode::OK, json!("kept\n")));
    drop(held);
    world.until(machine, "destroyed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_from_deploy_to_outputs() {
    let world = World::new().await;
    let project = Project::new(
        "install = 'echo installing; touch installed'\n[env]\nrequired = ['TOKEN']\n\
         [outputs]\npaths = ['result.json', 'reports/', 'none']\n",
        r#"ls installed
echo "$NULLSPACE_INPUT" ; cat .nullspace/run.json; echo
echo oops >&2
mkdir -p reports/deep; printf '{"ok":"%s"}' "$TOKEN" > result.json
echo report > reports/deep/a.txt
"#,
    );
    let deployment = world.deploy(&project).await;
    let run = world
        .run(
            &deployment,
            json!({"input": {"a": 1}, "envs": {"TOKEN": "s3cret"}}),
        )
        .await;
    assert_eq!(run["status"], "queued");
    let run = world.finished(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["exit_code"], 0);
    assert_eq!(run["input"], json!({"a": 1}));
    let events = world.log(&run).await;
    assert_eq!(
        lines(&events, "stdout"),
        ["installing", "installed", "{\"a\":1}", "{\"a\":1}"]
    );
    assert_eq!(lines(&events, "stderr"), ["oops"]);
    let life: Vec<&str> = types(&events)
        .into_iter()
        .filter(|t| !t.starts_with("std"))
        .collect();
    assert_eq!(
        life,
        [
            "run_queued",
            "run_starting",
            "sandbox_created",
            "install_started",
            "install_finished",
            "install_kept",
            "sandbox_created",
            "run_started",
            "run_succeeded"
        ]
    );

    // The machine is gone; what it left behind is not.
    let machine = run["sandbox_id"].as_str().unwrap();
    world.until(machine, "destroyed").await;
    let (_, outputs) = world.get(&format!("{}/outputs", run_path(&run))).await;
    let found: Vec<_> = outputs["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| {
            (
                o["configured_path"].as_str().unwrap(),
                o["status"].as_str().unwrap(),
                o["kind"].clone(),
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("result.json", "available", json!("file")),
            ("reports/", "available", json!("directory")),
            ("none", "missing", Value::Null)
        ]
    );
    let file = |path: &str| format!("/v1/sandboxes/{machine}/file?path=/workspace/project/{path}");
    let (status, body) = world.get(&file("result.json")).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"ok": "s3cret"})));
    let (status, body) = world.get(&file("reports/deep/a.txt")).await;
    assert_eq!((status, body), (StatusCode::OK, json!("report\n")));
    let (_, list) = world
        .get(&format!(
            "/v1/sandboxes/{machine}/files?path=/workspace/project/reports&depth=2"
        ))
        .await;
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "/workspace/project/reports/deep",
            "/workspace/project/reports/deep/a.txt"
        ]
    );
    for gone in ["main.sh", "reports/../main.sh", "none"] {
        let (status, body) = world.get(&file(gone)).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::CONFLICT, &json!("sandbox_not_ready")),
            "{gone}"
        );
    }
    // Values of variables are in no record.
    let database = std::fs::read(world.data.path().join("nullspace.db-wal")).unwrap_or_default();
    let record = [
        std::fs::read(world.data.path().join("nullspace.db")).unwrap(),
        database,
    ]
    .concat();
    assert!(!record.windows(6).any(|w| w == b"s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_runs_fail() {
    let world = World::new().await;
    for (toml, script, status, reason, exit_code) in [
        (
            "",
            "exit 3",
            "failed",
            "entrypoint failed with exit code 3",
            json!(3),
        ),
        (
            "install = 'exit 4'",
            "true",
            "failed",
            "install failed with exit code 4",
            json!(4),
        ),
        (
            "[resources]\ntimeout_seconds = 1",
            "sleep 60",
            "timed_out",
            "entrypoint was ended at its time limit of 1 s",
            json!(137),
        ),
        (
            "",
            "kill -9 $$",
            "failed",
            "entrypoint failed with exit code 137",
            json!(137),
        ),
    ] {
        let project = Project::new(toml, script);
        let deployment = world.deploy(&project).await;
        let run = world.run(&deployment, json!({"input": {}})).await;
        let run = world.finished(&run).await;
        assert_eq!(run["status"], status, "{run}");
        assert_eq!(run["failure_reason"], reason);
        assert_eq!(run["exit_code"], exit_code);
        let events = world.log(&run).await;
        let last = events.last().unwrap();
        assert_eq!(last["level"], "error");
        assert!(
            reason.starts_with(last["metadata"]["failure_phase"].as_str().unwrap()),
            "{last}"
        );
        world
            .until(run["sandbox_id"].as_str().unwrap(), "destroyed")
            .await;
        let (status, _) = world.delete(&format!("{BASE}/{deployment}")).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_machine_is_kept_if_somebody_asked() {
    let world = World::new().await;
    let project = Project::new(
        "[debug]\nretain_on_failure = true\nretain_seconds = 600\n",
        "echo x > left; exit 1",
    );
    let deployment = world.deploy(&project).await;
    let run = world.run(&deployment, json!({"input": {}})).await;
    let run = world.finished(&run).await;
    assert!(run["retained_until"].is_string(), "{run}");
    let machine = run["sandbox_id"].as_str().unwrap();
    let left = world
        .exec(machine, json!({"command": "cat", "args": ["left"]}))
        .await;
    assert_eq!(left["stdout"], "x\n");
    let mut info = Value::Null;
    for _ in 0..200 {
        info = world.get(&format!("/v1/sandboxes/{machine}")).await.1;
        if info["timeout_at"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(info["status"], "running");
    assert!(info["remaining_ms"].as_u64().unwrap() <= 600_000, "{info}");
    // The run's own word comes first.
    let run = world
        .run(
            &deployment,
            json!({"input": {}, "retain_on_failure": false}),
        )
        .await;
    let run = world.finished(&run).await;
    assert!(run["retained_until"].is_null());
    world
        .until(run["sandbox_id"].as_str().unwrap(), "destroyed")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_cancelled_once() {
    let world = World::new().await;
    let project = Project::new("", "echo up; sleep 600");
    let deployment = world.deploy(&project).await;
    let run = world.run(&deployment, json!({"input": {}})).await;
    let (_, page) = wait_for_line(&world, &run, "up").await;
    assert!(page > 0);
    let cancel = format!("{}/cancel", run_path(&run));
    let (status, ended) = world.post(&cancel, json!({"reason": "enough"})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(ended["status"], "cancelled", "{ended}");
    assert_eq!(ended["failure_reason"], "cancelled: enough");
    world
        .until(ended["sandbox_id"].as_str().unwrap(), "destroyed")
        .await;
    let (status, again) = world.post(&cancel, json!({})).await;
    assert_eq!((status, again), (StatusCode::OK, ended));
}

/// Waits for a line of output; answers with its event and number.
async fn wait_for_line(world: &World, run: &Value, line: &str) -> (Value, usize) {
    let mut cursor = String::new();
    let mut count = 0;
    for _ in 0..100 {
        let (_, page) = world
            .get(&format!(
                "{}/logs?wait_ms=5000&cursor={cursor}",
                run_path(run)
            ))
            .await;
        cursor = page["next_cursor"].as_str().unwrap_or_default().to_owned();
        for event in page["events"].as_array().unwrap() {
            if event["message"] == line && event["source"] == "stdout" {
                return (event.clone(), count);
            }
            count += 1;
        }
    }
    panic!("the line {line:?} did not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_paged_without_holes_or_doubles() {
    let world = World::new().await;
    let project = Project::new(
        "",
        "i=0; while [ $i -lt 450 ]; do echo line $i; i=$((i+1)); done; printf end",
    );
    let deployment = world.deploy(&project).await;
    let run = world.run(&deployment, json!({"input": {}})).await;
    let run = world.finished(&run).await;
    let path = format!("{}/logs", run_path(&run));
    let expected: Vec<String> = (0..450)
        .map(|i| format!("line {i}"))
        .chain(["end".into()])
        .collect();

    // As the published clients follow: a cursor is given back with every page that has events.
    let (mut seen, mut query) = (Vec::new(), "offset=0&limit=100".to_owned());
    loop {
        let (_, page) = world.get(&format!("{path}?{query}")).await;
        let events = page["events"].as_array().unwrap().clone();
        let cursor = page["next_cursor"].as_str().expect("a cursor").to_owned();
        assert_eq!(page["offset"], seen.len());
        seen.extend(events.clone());
        assert_eq!(page["has_more"], seen.len() < 450 + 6, "{}", seen.len());
        if events.is_empty() {
            break;
        }
        query = format!("cursor={cursor}&limit=100");
    }
    assert_eq!(lines(&seen, "stdout"), expected);
    let ids: std::collections::BTreeSet<_> = seen.iter().map(|e| e["id"].to_string()).collect();
    assert_eq!(ids.len(), seen.len());

    let (_, page) = world.get(&format!("{path}?offset=400&limit=1000")).await;
    assert_eq!(page["events"], json!(seen[400..]));
    let (_, page) = world.get(&format!("{path}?tail=3")).await;
    assert_eq!(page["events"], json!(seen[seen.len() - 3..]));
    assert!(page["next_cursor"].is_string());
    for bad in [
        "limit=0",
        "limit=1001",
        "cursor=x",
        "wait_ms=99999",
        "tail=0",
        "limit=x",
    ] {
        let (status, body) = world.get(&format!("{path}?{bad}")).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_when_the_server_comes_back() {
    let mut world = World::new().await;
    let gate = tempfile::tempdir().unwrap();
    let go = gate.path().join("go");
    let script = format!(
        "echo before; printf half; while [ ! -e {go} ]; do sleep 0.02; done; echo -way; echo after; exit 5",
        go = go.display()
    );
    let project = Project::new("[outputs]\npaths = ['main.sh']\n", &script);
    let deployment = world.deploy(&project).await;
    let run = world
        .run(&deployment, json!({"input": {}, "envs": {"SECRET": "x"}}))
        .await;
    wait_for_line(&world, &run, "before").await;
    world.restart().await;
    let (_, still) = world.get(&run_path(&run)).await;
    assert_eq!(still["status"], "running");
    std::fs::write(&go, "").unwrap();
    let run = world.finished(&run).await;
    assert_eq!(
        (run["status"].as_str(), run["exit_code"].as_i64()),
        (Some("failed"), Some(5)),
        "{run}"
    );
    let events = world.log(&run).await;
    assert_eq!(lines(&events, "stdout"), ["before", "half-way", "after"]);
    assert_eq!(
        types(&events)
            .iter()
            .filter(|t| **t == "run_started")
            .count(),
        1
    );
    assert_eq!(run["output_manifest"]["outputs"][0]["status"], "available");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_machine_dies_says_so() {
    let world = World::new().await;
    let project = Project::new("", "echo up; sleep 600");
    let deployment = world.deploy(&project).await;
    for deleted in [false, true] {
        let run = world.run(&deployment, json!({"input": {}})).await;
        wait_for_line(&world, &run, "up").await;
        let (_, run) = world.get(&run_path(&run)).await;
        let machine = run["sandbox_id"].as_str().unwrap();
        if deleted {
            world.delete(&format!("/v1/sandboxes/{machine}")).await;
        } else {
            world.engine.crash(machine);
        }
        let run = world.finished(&run).await;
        assert_eq!(run["status"], "failed");
        let reason = run["failure_reason"].as_str().unwrap();
        let what = if deleted {
            "the machine was deleted"
        } else {
            "the machine was lost"
        };
        assert!(
            reason.starts_with(what) && reason.ends_with("during entrypoint"),
            "{reason}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_makes_one_thing() {
    let world = World::new().await;
    let project = Project::new("", "true");
    let deployment = world.deploy(&project).await;
    let post = async |path: String, key: &str, body: Value| {
        answer(
            world
                .request(Method::POST, &path)
                .header("idempotency-key", key)
                .json(&body),
        )
        .await
    };
    for (path, body, other) in [
        (
            BASE.to_owned(),
            json!({"name": "n", "mode": "job"}),
            json!({"name": "m", "mode": "job"}),
        ),
        (
            format!("{BASE}/{deployment}/versions"),
            project.version_request(),
            {
                let mut body = project.version_request();
                body["cache_policy"] = json!("rebuild");
                body
            },
        ),
        (
            format!("{BASE}/{deployment}/runs"),
            json!({"input": {}}),
            json!({"input": {"a": 1}}),
        ),
    ] {
        let (first, made) = post(path.clone(), "k", body.clone()).await;
        let (second, again) = post(path.clone(), "k", body).await;
        assert_eq!(
            (first, second),
            (StatusCode::CREATED, StatusCode::CREATED),
            "{made} {again}"
        );
        assert_eq!(made["id"], again["id"]);
        let (status, refused) = post(path, "k", other).await;
        assert_eq!(
            (status, &refused["code"]),
            (StatusCode::CONFLICT, &json!("idempotency_conflict"))
        );
    }
    let (_, runs) = world.get(&format!("{BASE}/{deployment}/runs")).await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1);
    assert_eq!(runs["items"][0]["idempotency_key"], "k");
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_are_found_changed_and_deleted() {
    let world = World::new().await;
    let project = Project::new("", "true");
    let first = world.deploy(&project).await;
    let (status, body) = world
        .post(BASE, json!({"name": "worker", "mode": "job"}))
        .await;
    assert_eq!(
        (status, &body["code"]),
        (
            StatusCode::CONFLICT,
            &json!("agent_deployment_name_conflict")
        )
    );
    let (_, by_name) = world.get(&format!("{BASE}/worker")).await;
    assert_eq!(by_name["id"], json!(first));

    let patch = async |body: Value| {
        answer(
            world
                .request(Method::PATCH, &format!("{BASE}/{first}"))
                .json(&body),
        )
        .await
    };
    let (_, paused) = patch(json!({"status": "paused", "description": "d"})).await;
    assert_eq!(
        (&paused["status"], &paused["description"]),
        (&json!("paused"), &json!("d"))
    );
    let (status, body) = world
        .post(&format!("{BASE}/{first}/runs"), json!({"input": {}}))
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("conflict"))
    );
    patch(json!({"status": "active"})).await;

    // A new version takes over; the one before can still be run, and made active again.
    let active =
        async || world.get(&format!("{BASE}/{first}")).await.1["active_version_id"].clone();
    let old = active().await;
    let (_, version) = world.version(&first, &Project::new("", "exit 7")).await;
    let second = Project::new("", "exit 7");
    let (_, version) = world
        .upload(
            &version,
            version["bundle_digest"].as_str().unwrap(),
            second.archive(),
        )
        .await;
    assert_eq!(version["version_number"], 2);
    assert_eq!(active().await, version["id"]);
    let (_, before) = world
        .get(&format!(
            "{BASE}/{first}/versions/{}",
            old.as_str().unwrap()
        ))
        .await;
    assert_eq!(before["status"], "superseded");
    let run = world
        .run(&first, json!({"input": {}, "version_id": old}))
        .await;
    assert_eq!(world.finished(&run).await["status"], "succeeded");
    let run = world.run(&first, json!({"input": {}})).await;
    assert_eq!(world.finished(&run).await["exit_code"], 7);
    patch(json!({"active_version_id": old})).await;
    assert_eq!(active().await, old);

    // Newest first, page by page.
    let (_, page) = world.get(&format!("{BASE}/{first}/runs?limit=1")).await;
    assert_eq!(page["items"][0]["id"], run["id"]);
    let cursor = page["next_cursor"].as_str().unwrap();
    let (_, page) = world
        .get(&format!("{BASE}/{first}/runs?limit=1&cursor={cursor}"))
        .await;
    assert_eq!(
        (
            page["items"].as_array().unwrap().len(),
            &page["next_cursor"]
        ),
        (1, &Value::Null)
    );
    let (_, failed) = world
        .get(&format!("{BASE}/{first}/runs?status=failed"))
        .await;
    assert_eq!(failed["items"].as_array().unwrap().len(), 1);

    // Deleting cancels what runs and frees the name.
    let (_, version) = world
        .version(&first, &Project::new("", "echo up; sleep 600"))
        .await;
    let slow = Project::new("", "echo up; sleep 600");
    world
        .upload(
            &version,
            version["bundle_digest"].as_str().unwrap(),
            slow.archive(),
        )
        .await;
    let run = world.run(&first, json!({"input": {}})).await;
    wait_for_line(&world, &run, "up").await;
    assert_eq!(
        world.delete(&format!("{BASE}/{first}")).await.0,
        StatusCode::NO_CONTENT
    );
    assert_eq!(world.finished(&run).await["status"], "cancelled");
    let (_, list) = world.get(BASE).await;
    assert_eq!(list["items"], json!([]));
    let (_, list) = world.get(&format!("{BASE}?status=deleted")).await;
    assert_eq!(list["items"][0]["id"], json!(first));
    world.deployment("worker", "job").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_other_mode_is_refused() {
    let world = World::new().await;
    let project = Project::new("mode = 'service'\n[service]\nport = 8000\n", "true");
    let deployment = world.deployment("worker", "service").await;
    let (status, version) = world.version(&deployment, &project).await;
    assert_eq!(status, StatusCode::CREATED, "{version}");
    assert_eq!(version["service_port"], 8000);
    let base = format!("{BASE}/{deployment}");
    for (path, status, code) in [
        // Its version has no bundle yet.
        ("services", StatusCode::CONFLICT, "conflict"),
        (
            "services/adsvc_x/stop",
            StatusCode::NOT_FOUND,
            "agent_service_not_found",
        ),
        ("runs", StatusCode::CONFLICT, "agent_mode_conflict"),
    ] {
        let (got, body) = world.post(&format!("{base}/{path}"), json!({})).await;
        assert_eq!((got, &body["code"]), (status, &json!(code)), "{path}");
    }
    let (_, list) = world.get(&format!("{base}/services")).await;
    assert_eq!(list["items"], json!([]));
}

/// Each refusal has its code, and leaves nothing on disk or in the record.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_by_name() {
    let world = World::with(Config {
        max_memory_mb: 4096,
        ..Config::default()
    })
    .await;
    let deployment = world.deployment("worker", "job").await;
    let base = format!("{BASE}/{deployment}");

    for body in [
        json!({"name": "", "mode": "job"}),
        json!({"name": "adpl_x", "mode": "job"}),
        json!({"name": "x", "mode": "worker"}),
        json!({"name": "x", "mode": "other"}),
        json!({"name": "x"}),
        json!({"name": "x", "mode": "job", "extra": 1}),
        json!({"name": 1, "mode": "job"}),
    ] {
        let (status, answer) = world.post(BASE, body.clone()).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{body}"
        );
    }

    let good = Project::new("", "true");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = good.version_request();
        change(&mut body);
        body
    };
    let digest = "0".repeat(64);
    let versions: Vec<(Value, u16, &str)> = vec![
        (
            with(&|b| b["bundle_digest"] = json!("x")),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["bundle_digest"] = json!(digest)),
            400,
            "bundle_digest_mismatch",
        ),
        (
            with(&|b| b["bundle_manifest"]["entries"][0]["path"] = json!("other")),
            400,
            "bundle_digest_mismatch",
        ),
        (
            with(&|b| b["bundle_manifest"]["entries"][0]["path"] = json!("../x")),
            400,
            "bundle_invalid",
        ),
        (
            with(&|b| b["bundle_manifest"]["entries"][0]["path"] = json!("/etc/x")),
            400,
            "bundle_invalid",
        ),
        (
            with(&|b| b["bundle_manifest"] = json!([])),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["entrypoint"] = json!("other")),
            400,
            "bundle_digest_mismatch",
        ),
        (
            with(&|b| b["config"]["entrypoint"] = Value::Null),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["unknown"] = json!(1)),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["mode"] = json!("triggered")),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["workdir"] = json!("relative")),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["workdir"] = json!("/usr/x")),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["resources"] = json!({"memory_mb": 8192})),
            400,
            "invalid_request",
        ),
        (
            with(&|b| {
                b["config"]["resources"] = json!({"memory_mb": 1024});
                b["config"]["permissions"] = json!({"max_memory_mb": 512});
            }),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["env"] = json!({"required": ["A=b"]})),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["permissions"] = json!({"allow_out": ["10.0.0.1/8"]})),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["cache_policy"] = json!("always")),
            400,
            "invalid_request",
        ),
        (
            with(&|b| b["config"]["mode"] = json!("service")),
            400,
            "invalid_request",
        ),
    ];
    for (body, status, code) in versions {
        let (got, answer) = world.post(&format!("{base}/versions"), body).await;
        assert_eq!(
            (got.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{answer}"
        );
    }
    let project = Project {
        config: AgentConfig {
            template: "none".into(),
            ..good.config.clone()
        },
        ..Project::new("", "true")
    };
    let (status, answer) = world.version(&deployment, &project).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::NOT_FOUND, &json!("template_not_found"))
    );

    // Archives that are not what the manifest says.
    let (_, version) = world.version(&deployment, &good).await;
    let digest = version["bundle_digest"].as_str().unwrap().to_owned();
    let archive = good.archive();
    let hostile = |name: &str, kind: tar::EntryType| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    };
    let mut changed = archive.clone();
    changed[512] ^= 1;
    let mut long = archive.clone();
    long.resize(archive.len() + (64 << 20), 0);
    for (what, archive, status) in [
        ("another byte", changed, 400),
        ("nothing", Vec::new(), 400),
        ("half of it", archive[..600].to_vec(), 400),
        ("a path out", hostile("../x", tar::EntryType::Regular), 400),
        (
            "an absolute path",
            hostile("/etc/x", tar::EntryType::Regular),
            400,
        ),
        ("a device", hostile("main.sh", tar::EntryType::Block), 400),
        (
            "a link out",
            hostile("main.sh", tar::EntryType::Symlink),
            400,
        ),
        ("far too long", long, 413),
    ] {
        let (got, answer) = world.upload(&version, &digest, archive).await;
        assert_eq!(got.as_u16(), status, "{what}: {answer}");
        let code = if status == 413 {
            "body_too_large"
        } else {
            "bundle_"
        };
        assert!(
            answer["code"].as_str().unwrap().starts_with(code),
            "{what}: {answer}"
        );
    }
    let (got, answer) = world
        .upload(&version, &"0".repeat(64), archive.clone())
        .await;
    assert_eq!(
        (got, &answer["code"]),
        (StatusCode::BAD_REQUEST, &json!("bundle_digest_mismatch"))
    );
    let kept: Vec<_> = std::fs::read_dir(world.data.path().join("bundles"))
        .unwrap()
        .collect();
    assert!(kept.is_empty(), "{kept:?}");
    let (_, same) = world
        .get(&format!(
            "{base}/versions/{}",
            version["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(same["status"], "created");

    // Without a version that is ready there is nothing to run; then the right archive still works.
    let (status, answer) = world
        .post(&format!("{base}/runs"), json!({"input": {}}))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("conflict"))
    );
    let (status, _) = world.upload(&version, &digest, archive.clone()).await;
    assert_eq!(status, StatusCode::OK);
    let (status, again) = world.upload(&version, &digest, archive).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &version["id"]));
    let (status, answer) = world.upload(&version, &"0".repeat(64), Vec::new()).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::CONFLICT, &json!("bundle_conflict"))
    );
    for body in [
        json!({"input": []}),
        json!({"input": {}, "envs": {"A=B": "x"}}),
        json!({"input": {}, "envs": {"A": 1}}),
        json!({"input": {}, "retention_seconds": 0}),
        json!({"input": {}, "unknown": 1}),
    ] {
        let (status, answer) = world.post(&format!("{base}/runs"), body.clone()).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{body}"
        );
    }
    for (path, code) in [
        (format!("{BASE}/adpl_none"), "agent_deployment_not_found"),
        (
            format!("{base}/versions/adver_none"),
            "agent_version_not_found",
        ),
        (format!("{base}/runs/adrun_none"), "agent_run_not_found"),
        (
            format!("{base}/runs/adrun_none/logs"),
            "agent_run_not_found",
        ),
        (
            format!("{base}/runs/adrun_none/outputs"),
            "agent_run_not_found",
        ),
    ] {
        let (status, answer) = world.get(&path).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::NOT_FOUND, &json!(code)),
            "{path}"
        );
    }
    let (_, runs) = world.get(&format!("{base}/runs")).await;
    assert_eq!(runs["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_variable_is_named_and_a_full_server_says_so() {
    let world = World::with(Config {
        max_machines: 1,
        ..Config::default()
    })
    .await;
    let project = Project::new("[env]\nrequired = ['TOKEN', 'OTHER']\n", "true");
    let deployment = world.deploy(&project).await;
    let path = format!("{BASE}/{deployment}/runs");
    let (status, answer) = world
        .post(&path, json!({"input": {}, "envs": {"OTHER": "1"}}))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    assert!(
        answer["error"].as_str().unwrap().ends_with(": TOKEN"),
        "{answer}"
    );
    world.machine().await;
    let (status, answer) = world
        .post(
            &path,
            json!({"input": {}, "envs": {"OTHER": "1", "TOKEN": "2"}}),
        )
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("capacity_exceeded"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_inputs_are_in_the_file_alone() {
    let world = World::new().await;
    let project = Project::new("", "echo ${#NULLSPACE_INPUT}; wc -c < .nullspace/run.json");
    let deployment = world.deploy(&project).await;
    let text = "x".repeat(300_000);
    let run = world
        .run(&deployment, json!({"input": {"text": text}}))
        .await;
    let run = world.finished(&run).await;
    assert_eq!(run["status"], "succeeded", "{}", run["failure_reason"]);
    assert_eq!(lines(&world.log(&run).await, "stdout"), ["0", "300011"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_modes_of_files_arrive() {
    let world = World::new().await;
    let project = Project::new("", "./tool; stat -c %a tool main.sh");
    std::fs::write(project.dir.path().join("tool"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(
        project.dir.path().join("tool"),
        std::fs::Permissions::from_mode(0o750),
    )
    .unwrap();
    std::fs::set_permissions(
        project.dir.path().join("main.sh"),
        std::fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let deployment = world.deploy(&project).await;
    let run = world.run(&deployment, json!({"input": {}})).await;
    let run = world.finished(&run).await;
    assert_eq!(
        lines(&world.log(&run).await, "stdout"),
        ["ran", "750", "600"]
    );
}

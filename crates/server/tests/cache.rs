//! The install cache over real HTTP, on the fake engine: install commands run for real, in folders of the host, and
//! leave a mark in a file of the test, which counts them.

#![allow(clippy::unwrap_used)]

mod common;

use std::{path::Path, time::Duration};

use common::{World, answer, project::Project};
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const BASE: &str = "/v1/agent-deployments";

struct Cache {
    world: World,
    marks: tempfile::TempDir,
}

impl Cache {
    async fn new(config: Config) -> Self {
        let world = World::with(config).await;
        let (status, body) = world
            .post(BASE, json!({"name": "worker", "mode": "job"}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        Self {
            world,
            marks: tempfile::tempdir().unwrap(),
        }
    }

    /// A project whose install leaves `dependency` behind and a mark outside, and whose run shows the first.
    fn project(&self, word: &str) -> Project {
        let mut project = Project::new("", "cat dependency");
        let marks = self.marks.path().join("marks");
        project.config.install = Some(format!(
            "echo installing; echo {word} >> {}; mkdir -p ../../root/.cache; echo x > ../../root/.cache/x; \
             echo made of {word} > dependency",
            marks.display()
        ));
        project
    }

    fn installs(&self) -> usize {
        std::fs::read_to_string(self.marks.path().join("marks"))
            .unwrap_or_default()
            .lines()
            .count()
    }

    async fn deploy(&self, project: &Project, policy: &str) -> (StatusCode, Value) {
        let mut request = project.version_request();
        request["cache_policy"] = policy.into();
        let (status, version) = self
            .world
            .post(&format!("{BASE}/worker/versions"), request)
            .await;
        assert_eq!(status, StatusCode::CREATED, "{version}");
        let path = format!(
            "{BASE}/worker/versions/{}/bundle",
            version["id"].as_str().unwrap()
        );
        let digest = version["bundle_digest"].as_str().unwrap();
        let request = self
            .world
            .request(Method::PUT, &path)
            .header("x-nullspace-bundle-digest", digest)
            .body(project.archive());
        answer(request).await
    }

    async fn version(&self, version: &Value) -> Value {
        let id = version["id"].as_str().unwrap();
        self.world
            .get(&format!("{BASE}/worker/versions/{id}"))
            .await
            .1
    }

    async fn start(&self) -> String {
        let (status, run) = self
            .world
            .post(&format!("{BASE}/worker/runs"), json!({"input": {}}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{run}");
        run["id"].as_str().unwrap().to_owned()
    }

    /// The run once it has ended.
    async fn ended(&self, id: &str) -> Value {
        for _ in 0..1200 {
            let (_, run) = self.world.get(&format!("/v1/agent-runs/{id}")).await;
            if run["completed_at"].is_string() {
                return run;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{id} did not end: {:#?}", self.log(id).await);
    }

    async fn log(&self, id: &str) -> Vec<String> {
        let (_, page) = self
            .world
            .get(&format!("{BASE}/worker/runs/{id}/logs?limit=1000"))
            .await;
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        page["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| format!("{}: {}", text(e, "event_type"), text(e, "message")))
            .collect()
    }

    /// A run to its end: how it ended, and its log.
    async fn run(&self) -> (Value, Vec<String>) {
        let id = self.start().await;
        (self.ended(&id).await, self.log(&id).await)
    }

    fn artifacts(&self) -> usize {
        names(&self.world.data.path().join("artifacts")).len()
    }
}

fn names(path: &Path) -> Vec<String> {
    std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn has(log: &[String], start: &str) -> bool {
    log.iter().any(|line| line.starts_with(start))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_run_does_not_install() {
    let cache = Cache::new(Config::default()).await;
    let (_, version) = cache.deploy(&cache.project("one"), "auto").await;
    let summary = &version["cache_summary"];
    assert_eq!(
        (&summary["status"], &summary["artifact_ready"]),
        (&json!("cache_miss"), &json!(false))
    );
    let (run, log) = cache.run().await;
    assert_eq!(run["status"], "succeeded", "{log:#?}");
    assert!(
        has(&log, "stdout: installing") && has(&log, "install_kept"),
        "{log:#?}"
    );
    assert!(has(&log, "stdout: made of one"), "{log:#?}");
    let steps: Vec<&str> = run["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["step"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        [
            "queued",
            "machine_ready",
            "bundle_unpacked",
            "install_started",
            "installed",
            "entrypoint",
            "first_output",
            "end"
        ]
    );
    let (run, log) = cache.run().await;
    assert_eq!(run["status"], "succeeded", "{log:#?}");
    assert!(
        has(&log, "install_cached: install skipped") && !has(&log, "install_started"),
        "{log:#?}"
    );
    assert!(has(&log, "stdout: made of one"), "{log:#?}");
    assert_eq!(cache.installs(), 1);
    let summary = cache.version(&version).await["cache_summary"].clone();
    assert_eq!(
        (&summary["status"], &summary["artifact_ready"]),
        (&json!("cache_hit"), &json!(true))
    );
    assert!(
        summary["cache_key_digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    let artifact = summary["artifact_id"].as_str().unwrap();
    let layer = cache.world.data.path().join("artifacts").join(artifact);
    assert!(!layer.join("root/.cache").exists(), "caches are not kept");

    // What it depends on makes another one.
    cache.deploy(&cache.project("two"), "auto").await;
    let (run, log) = cache.run().await;
    assert_eq!(
        (&run["status"], cache.installs()),
        (&json!("succeeded"), 2),
        "{log:#?}"
    );
    assert!(has(&log, "stdout: made of two"), "{log:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_need_the_same_build_it_once() {
    let cache = Cache::new(Config::default()).await;
    let mut project = cache.project("one");
    // Long enough that the others come while it goes on.
    let install = project.config.install.take().unwrap();
    let gate = cache.marks.path().join("gate");
    project.config.install = Some(format!(
        "while [ ! -e {} ]; do sleep 0.02; done; {install}",
        gate.display()
    ));
    cache.deploy(&project, "auto").await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(cache.start().await);
    }
    for id in &runs {
        for _ in 0..1200 {
            let log = cache.log(id).await;
            if has(&log, "install_waiting") || has(&log, "install_started") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    std::fs::write(gate, "").unwrap();
    for id in &runs {
        assert_eq!(
            cache.ended(id).await["status"],
            "succeeded",
            "{:#?}",
            cache.log(id).await
        );
    }
    assert_eq!((cache.installs(), cache.artifacts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_install_is_not_kept_and_the_next_run_tries_itself() {
    let cache = Cache::new(Config::default()).await;
    let mut project = cache.project("one");
    let install = project.config.install.take().unwrap();
    let bad = cache.marks.path().join("bad");
    std::fs::write(&bad, "").unwrap();
    project.config.install = Some(format!("{install}; test ! -e {}", bad.display()));
    cache.deploy(&project, "auto").await;
    let (run, log) = cache.run().await;
    assert_eq!(run["status"], "failed", "{log:#?}");
    assert_eq!(run["failure_reason"], "install failed with exit code 1");
    assert_eq!(cache.artifacts(), 0);
    std::fs::remove_file(bad).unwrap();
    let (run, log) = cache.run().await;
    assert_eq!(
        (&run["status"], cache.installs()),
        (&json!("succeeded"), 2),
        "{log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_cache_every_run_installs() {
    let cache = Cache::new(Config::default()).await;
    cache.deploy(&cache.project("one"), "auto").await;
    cache.run().await;
    let (_, version) = cache.deploy(&cache.project("one"), "no_cache").await;
    let summary = &version["cache_summary"];
    assert_eq!(
        (&summary["status"], &summary["enabled"]),
        (&json!("bypassed"), &json!(false))
    );
    for _ in 0..2 {
        let (run, log) = cache.run().await;
        assert_eq!(run["status"], "succeeded", "{log:#?}");
        assert!(
            has(&log, "stdout: installing") && !has(&log, "install_kept"),
            "{log:#?}"
        );
    }
    assert_eq!((cache.installs(), cache.artifacts()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_builds_at_the_upload() {
    let cache = Cache::new(Config::default()).await;
    let (status, version) = cache.deploy(&cache.project("one"), "rebuild").await;
    assert_eq!(
        (status, &version["status"]),
        (StatusCode::OK, &json!("ready")),
        "{version}"
    );
    assert_eq!(version["cache_summary"]["status"], "ready", "{version}");
    let build = &version["build_summary"];
    assert_eq!(
        (&build["status"], &build["artifact_ready"]),
        (&json!("ready"), &json!(true)),
        "{build}"
    );
    assert!(build["size_bytes"].as_u64().unwrap() > 0, "{build}");
    assert_eq!(cache.installs(), 1);
    let log = cache.log(build["build_id"].as_str().unwrap()).await;
    assert!(
        has(&log, "stdout: installing") && has(&log, "build_succeeded"),
        "{log:#?}"
    );
    let (run, log) = cache.run().await;
    assert_eq!(
        (&run["status"], cache.installs()),
        (&json!("succeeded"), 1),
        "{log:#?}"
    );
    // Builds are nobody's runs.
    let (_, list) = cache.world.get(&format!("{BASE}/worker/runs")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    // Once more makes a fresh one, although the first is there.
    cache.deploy(&cache.project("one"), "rebuild").await;
    assert_eq!(cache.installs(), 2);

    let mut broken = cache.project("two");
    broken.config.install = Some("echo no such package >&2; exit 9".into());
    let (status, refused) = cache.deploy(&broken, "rebuild").await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::BAD_REQUEST, &json!("build_error")),
        "{refused}"
    );
    assert!(
        refused["error"].as_str().unwrap().contains("exit code 9"),
        "{refused}"
    );
    let (_, list) = cache
        .world
        .get(&format!("{BASE}/worker/versions?status=failed"))
        .await;
    assert_eq!(
        list["items"][0]["cache_summary"]["status"], "failed",
        "{list}"
    );
    let (run, _) = cache.run().await;
    assert_eq!(
        run["status"], "succeeded",
        "the version before is still the active one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_make_room_for_newer_ones_unless_something_needs_them() {
    let cache = Cache::new(Config {
        agent_cache_mb: 0,
        ..Config::default()
    })
    .await;
    let mut project = cache.project("one");
    let go_on = cache.marks.path().join("go-on");
    project.config.entrypoint = Some(format!(
        "cat dependency; while [ ! -e {} ]; do sleep 0.02; done; cat dependency",
        go_on.display()
    ));
    cache.deploy(&project, "auto").await;
    let first = cache.start().await;
    for _ in 0..1200 {
        if has(&cache.log(&first).await, "stdout: made of one") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cache.artifacts(), 1, "it is needed");
    std::fs::write(go_on, "").unwrap();
    let log = cache.log(&first).await;
    assert_eq!(cache.ended(&first).await["status"], "succeeded", "{log:#?}");
    // Another one pushes it out.
    cache.deploy(&cache.project("two"), "auto").await;
    cache.run().await;
    cache.deploy(&cache.project("three"), "auto").await;
    cache.run().await;
    for _ in 0..1200 {
        if cache.artifacts() <= 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", names(&cache.world.data.path().join("artifacts")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_during_an_install_goes_on_with_it() {
    let mut cache = Cache::new(Config::default()).await;
    let mut project = cache.project("one");
    let gate = cache.marks.path().join("gate");
    let install = project.config.install.take().unwrap();
    project.config.install = Some(format!(
        "while [ ! -e {} ]; do sleep 0.02; done; {install}",
        gate.display()
    ));
    cache.deploy(&project, "auto").await;
    let run = cache.start().await;
    for _ in 0..1200 {
        if has(&cache.log(&run).await, "install_started") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cache.world.restart().await;
    std::fs::write(gate, "").unwrap();
    let ended = cache.ended(&run).await;
    let log = cache.log(&run).await;
    assert_eq!(ended["status"], "succeeded", "{log:#?}");
    assert!(has(&log, "install_kept"), "{log:#?}");
    cache.world.restart().await;
    let (again, log) = cache.run().await;
    assert_eq!(
        (&again["status"], cache.installs()),
        (&json!("succeeded"), 1),
        "{log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_deleted_and_garbage_is_collected_when_somebody_asks() {
    let cache = Cache::new(Config::default()).await;
    let world = &cache.world;
    let (_, first) = cache.deploy(&cache.project("one"), "auto").await;
    cache.run().await;
    let (_, second) = cache.deploy(&cache.project("two"), "auto").await;
    cache.run().await;
    let gc = async |dry_run: bool| {
        let (status, report) = world
            .post("/v1/agent-gc", json!({"dry_run": dry_run}))
            .await;
        assert_eq!(
            (status, &report["dry_run"]),
            (StatusCode::OK, &json!(dry_run)),
            "{report}"
        );
        let kinds = report["items"].as_array().unwrap().iter();
        let mut kinds: Vec<String> = kinds
            .map(|i| i["kind"].as_str().unwrap().to_owned())
            .collect();
        kinds.sort_unstable();
        (kinds, report["freed_bytes"].as_u64().unwrap())
    };
    assert_eq!(gc(false).await, (vec![], 0), "everything is needed");

    let path =
        |version: &Value| format!("{BASE}/worker/versions/{}", version["id"].as_str().unwrap());
    let (status, refused) = world.delete(&path(&second)).await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::CONFLICT, &json!("conflict")),
        "it is active"
    );
    assert_eq!(world.delete(&path(&first)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(world.delete(&path(&first)).await.0, StatusCode::NOT_FOUND);
    assert_eq!(world.get(&path(&first)).await.0, StatusCode::NOT_FOUND);
    let (_, list) = world.get(&format!("{BASE}/worker/versions")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let body = json!({"input": {}, "version_id": first["id"]});
    assert_eq!(
        world.post(&format!("{BASE}/worker/runs"), body).await.0,
        StatusCode::NOT_FOUND
    );

    let (kinds, bytes) = gc(true).await;
    assert_eq!(kinds, ["artifact", "bundle"]);
    assert!(bytes > 0);
    assert_eq!(
        (
            cache.artifacts(),
            names(&world.data.path().join("bundles")).len()
        ),
        (2, 2)
    );
    assert_eq!(gc(false).await, (kinds, bytes));
    assert_eq!(
        (
            cache.artifacts(),
            names(&world.data.path().join("bundles")).len()
        ),
        (1, 1)
    );
    let (run, log) = cache.run().await;
    assert_eq!(run["status"], "succeeded", "{log:#?}");

    // A deployment that is gone needs nothing.
    let (_, deployment) = world.get(&format!("{BASE}/worker")).await;
    let by_id = format!("{BASE}/{}", deployment["id"].as_str().unwrap());
    assert_eq!(world.delete(&by_id).await.0, StatusCode::NO_CONTENT);
    assert_eq!(gc(false).await.0, ["artifact", "bundle"]);
    assert_eq!(
        (
            cache.artifacts(),
            names(&world.data.path().join("bundles")).len()
        ),
        (0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_machine_that_was_kept_is_announced() {
    let cache = Cache::new(Config::default()).await;
    let mut project = cache.project("one");
    project.config.entrypoint = Some("exit 1".into());
    project.config.debug.retain_on_failure = Some(true);
    project.config.debug.retain_seconds = Some(2);
    cache.deploy(&project, "auto").await;
    let (run, log) = cache.run().await;
    assert!(has(&log, "machine_retained: machine mch_"), "{log:#?}");
    let machine = run["sandbox_id"].as_str().unwrap();
    assert_eq!(cache.world.status(machine).await, "running");
    cache.world.until(machine, "destroyed").await;
    let log = cache.log(run["id"].as_str().unwrap()).await;
    assert!(
        has(
            &log,
            &format!("machine_expiring: machine {machine} is ended at")
        ),
        "{log:#?}"
    );
}

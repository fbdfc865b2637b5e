//! Templates that callers build, in real machines: with both published SDKs and command lines, over kills of the server.

use std::{os::fd::AsRawFd, path::Path};

use nullspace_sys::image;
use serde_json::{Value, json};

use crate::{
    host::run,
    python::{next_python, published, python, script},
    world::World,
};

/// What must be found nowhere.
const SECRET: &str = "s3cr3t-of-a-build-4711";

impl World {
    pub async fn begin_build(&self, body: Value) -> String {
        let (status, build) = self.post("/v1/templates/builds", body).await;
        assert_eq!(status, 202, "{build}");
        build["build_id"].as_str().unwrap().to_owned()
    }

    pub async fn built(&self, id: &str) -> Value {
        let over = |snapshot: &Value| {
            let status = snapshot["build"]["status"].as_str().unwrap_or_default();
            ["ready", "error", "cancelled"].contains(&status)
        };
        self.until_at(&format!("/v1/templates/builds/{id}"), over)
            .await
    }

    pub async fn build_ready(&self, body: Value) -> Value {
        let id = self.begin_build(body).await;
        let built = self.built(&id).await;
        assert_eq!(built["build"]["status"], "ready", "{built:#}");
        built
    }

    pub fn template_layers(&self) -> usize {
        std::fs::read_dir(self.data().join("template-layers")).map_or(0, Iterator::count)
    }

    /// Files below the data directory that hold a text, and in what machines wrote.
    pub fn holding(&self, text: &str) -> String {
        let search = |place: &Path, at: &Path| {
            // Not in images as files: they are large, and nearly all of them is nothing.
            let found = std::process::Command::new("grep")
                .args(["-rlaF", "--exclude=*.image", "--exclude-dir=empty"])
                .args([text, "."])
                .current_dir(at)
                .output()
                .unwrap();
            let found = String::from_utf8_lossy(&found.stdout).into_owned();
            let lines = found.lines();
            lines
                .map(|path| format!("{}: {path}\n", place.display()))
                .collect::<String>()
        };
        let mut found = search(&self.data(), &self.data());
        let machines = std::fs::read_dir(self.data().join("machines")).unwrap();
        for machine in machines.flatten() {
            if let Ok(Some(disk)) = image::mount(&machine.path().join("fs")) {
                let at = format!("/proc/self/fd/{}", disk.as_raw_fd());
                found += &search(&machine.path(), Path::new(&at));
            }
        }
        found
    }
}

fn steps(name: &str, steps: Value) -> Value {
    json!({"name": name, "base_image": "base", "steps": steps})
}

fn step(command: &str) -> Value {
    json!({"action": "run", "command": command})
}

async fn with_sdk(python: &Path) {
    let world = World::start().await;
    let work = world.home().join("work");
    std::fs::create_dir(&work).unwrap();
    script(&world, python, "templates.py", &[&work]);
    assert_eq!(world.holding(SECRET), "");
    assert!(!world.serve_log().contains(SECRET));
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_sdk_builds_templates() {
    with_sdk(&python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_published_sdk_builds_templates() {
    with_sdk(&next_python()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_command_lines_build_templates() {
    let world = World::start().await;
    for (python, name) in [(python(), "old"), (next_python(), "new")] {
        let theirs = |arguments: &[&str]| {
            let done = published(&world, &python).args(arguments).output().unwrap();
            assert!(done.status.success(), "{arguments:?}: {done:?}");
            String::from_utf8_lossy(&done.stdout).into_owned()
        };
        theirs(&[
            "template",
            "build",
            "--from-template",
            "base",
            "--run-cmd",
            "echo built > /etc/built",
            "--name",
            name,
        ]);
        assert!(theirs(&["template", "get", name]).contains(name));
        theirs(&["template", "tag", "assign", name, "stable"]);
        assert!(theirs(&["template", "tag", "list", name]).contains("stable"));
        assert!(theirs(&["template", "list"]).contains(name));
        assert!(theirs(&["template", "builds", name]).contains("tb_"));
        let id = world
            .machine(json!({"template": format!("{name}:stable")}))
            .await;
        assert_eq!(world.out(&id, "cat /etc/built").await, "built");
        world.delete(&format!("/v1/machines/{id}")).await;
        theirs(&["template", "delete", name]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_are_installed_and_many_layers_become_one() {
    let world = World::start().await;
    let mut all = vec![
        json!({"action": "pip_install", "packages": ["humanize"]}),
        step(
            "rm -f /etc/motd; rm -rf /usr/share/doc/bash; mkdir /usr/share/doc/bash; mv /usr/share/perl5 /usr/share/perl",
        ),
    ];
    all.extend((0..26).map(|n| step(&format!("echo {n} >> /etc/count"))));
    let built = world.build_ready(steps("deep", json!(all))).await;
    let id = world.machine(json!({"template": "deep"})).await;
    let counted = world
        .out(&id, "wc -l < /etc/count; tail -1 /etc/count")
        .await;
    assert_eq!(counted, "26\n25");
    let look = "python3 -c 'import humanize'; test ! -e /etc/motd && ls -A /usr/share/doc/bash && \
                test -d /usr/share/perl && test ! -e /usr/share/perl5 && stat -c %a /usr/bin/passwd /tmp";
    assert_eq!(world.out(&id, look).await, "4755\n1777");
    let again = world.build_ready(steps("deep", json!(all))).await;
    assert_eq!(
        again["build"]["cache_summary"]["layer_misses"], 0,
        "{again:#}"
    );
    assert_eq!(
        again["build"]["artifact_ids"],
        built["build"]["artifact_ids"]
    );
    // On top of one that was built.
    let more = json!([step("echo more >> /etc/count")]);
    let body = json!({"name": "deeper", "base_image": "default/deep", "steps": more});
    world.build_ready(body).await;
    let id = world.machine(json!({"template": "deeper"})).await;
    assert_eq!(world.out(&id, "tail -1 /etc/count").await, "more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_leaves_nothing_half_built() {
    let mut world = World::start().await;
    let body = steps(
        "killed",
        json!([
            step("head -c 20000000 /dev/urandom > /opt/a; echo first"),
            step(
                "for i in $(seq 30); do head -c 2000000 /dev/urandom > /opt/$i; echo $i; sleep 0.05; done"
            ),
        ]),
    );
    for moment in ["starting from", "first", "5", "25"] {
        let mut body = body.clone();
        body["skip_cache"] = json!(true);
        let id = world.begin_build(body).await;
        let path = format!("/v1/templates/builds/{id}");
        let said = |snapshot: &Value| {
            let entries = snapshot["entries"].as_array().cloned().unwrap_or_default();
            entries
                .iter()
                .any(|entry| entry["message"].as_str().unwrap().starts_with(moment))
        };
        let heard = world.until_at(&path, said).await;
        world.kill();
        world.serve().await;
        let (_, after) = world.get(&path).await;
        let build = &after["build"];
        assert_eq!(build["status"], "error", "{moment}: {after:#}");
        assert_eq!(build["failure_phase"], "interrupted");
        assert_eq!(build["error_detail"]["retryable"], true);
        // What somebody was told is still there.
        let heard = heard["entries"].as_array().unwrap();
        assert_eq!(
            after["entries"].as_array().unwrap()[..heard.len()],
            heard[..]
        );
        assert!(world.listed().await.is_empty(), "{moment}");
        let layers = world.data().join("template-layers");
        let left = run(
            "find",
            &[layers.to_str().unwrap(), "-maxdepth", "1", "-name", ".*"],
        );
        assert_eq!(left.trim(), "", "{moment}");
    }
    // And at once after its end.
    let mut last = String::new();
    for _ in 0..4 {
        last = world.begin_build(body.clone()).await;
        world.built(&last).await;
        world.kill();
        world.serve().await;
    }
    let (_, after) = world.get(&format!("/v1/templates/builds/{last}")).await;
    assert_eq!(after["build"]["status"], "ready", "{after:#}");
    let id = world.machine(json!({"template": "killed"})).await;
    assert_eq!(world.out(&id, "ls /opt | wc -l").await, "31");
    world.delete(&format!("/v1/machines/{id}")).await;
    // Nothing is left of it once nobody needs it.
    let (status, _) = world.delete("/v1/templates/refs/killed").await;
    assert_eq!(status, 204);
    world.post("/v1/agent-gc", json!({"dry_run": false})).await;
    assert_eq!(world.template_layers(), 0);
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fills_the_disk_is_ended() {
    let world = World::start().await;
    let mut body = steps(
        "full",
        json!([step("head -c 1000000000 /dev/zero > /opt/a; sleep 60")]),
    );
    body["build_config"] = json!({"disk_mb": 100});
    let id = world.begin_build(body).await;
    let built = world.built(&id).await;
    let detail = &built["build"]["error_detail"];
    assert_eq!(detail["details"]["reason"], "disk_full", "{built:#}");
    world.until_empty().await;
    assert_eq!(world.template_layers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_cache_mount_is_in_no_layer() {
    let world = World::start().await;
    let incoming = || {
        let layers = world.data().join("template-layers");
        run("find", &[layers.to_str().unwrap(), "-name", ".incoming-*"])
    };
    let mounts = "--mount=type=cache,target=/var/mine,sharing=locked --mount=type=cache,id=a,target=/new/cache/,mode=0770,uid=1000";
    let dockerfile = format!(
        "FROM base\nRUN mkdir /var/mine && echo below > /var/mine/below\n\
         RUN {mounts} ls /var/mine > /said && stat -c '%u %g %a' /new/cache >> /said && \
         echo cached-{SECRET} | tee /var/mine/x > /new/cache/y\n\
         RUN ls /var/mine /new/cache >> /said"
    );
    let body = json!({"name": "cached", "dockerfile": dockerfile});
    world.build_ready(body).await;
    assert_eq!(incoming(), "");
    let id = world.machine(json!({"template": "cached"})).await;
    let said = world.out(&id, "cat /said").await;
    assert_eq!(said, "1000 0 770\n/new/cache:\n\n/var/mine:\nbelow");
    world.delete(&format!("/v1/machines/{id}")).await;
    // It counts for what a step may write, and is gone when that failed.
    let dockerfile =
        "FROM base\nRUN --mount=type=cache,target=/c head -c 300000000 /dev/zero > /c/a; sleep 60";
    let body = json!({"name": "full", "dockerfile": dockerfile, "build_config": {"disk_mb": 100}});
    let built = world.built(&world.begin_build(body).await).await;
    let detail = &built["build"]["error_detail"];
    assert_eq!(detail["details"]["reason"], "disk_full", "{built:#}");
    assert_eq!(incoming(), "");
    let dockerfile = "FROM base\nRUN --mount=type=cache,target=relative true";
    let body = json!({"name": "bad", "dockerfile": dockerfile});
    let (status, error) = world.post("/v1/templates/builds", body).await;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"].to_string().contains("line 2"), "{error}");
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_readiness_nobody_saw_does_not_run() {
    let mut world = World::start().await;
    let mut body = steps("slow", json!([]));
    body["start_cmd"] = json!("sleep 600");
    body["runtime_config"] = json!({"readiness": {"kind": "timeout", "timeout_ms": 4000}});
    world.build_ready(body).await;
    let making = (world.request(reqwest::Method::POST, "/v1/machines"))
        .json(&json!({"template": "slow"}))
        .send();
    let making = tokio::spawn(making);
    let creating = |page: &Value| {
        let first = &page["items"][0];
        first["status"] == "creating"
            && world
                .data()
                .join("machines")
                .join(first["id"].as_str().unwrap())
                .exists()
    };
    let page = world.until_at("/v1/machines?limit=1", creating).await;
    let id = page["items"][0]["id"].as_str().unwrap().to_owned();
    world.kill();
    let answer = making.await.unwrap();
    assert!(answer.is_err(), "{answer:?}");
    world.serve().await;
    let (_, machine) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(machine["status"], "error", "{machine:#}");
    world.until_empty().await;
}

//! Templates at the edge: names, tags, builds as records, files of contexts. What steps do is tested on real machines.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{World, answer};
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

impl World {
    async fn begin(&self, body: Value) -> String {
        let (status, build) = self.post("/v1/templates/builds", body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{build}");
        build["build_id"].as_str().unwrap().to_owned()
    }

    async fn build(&self, id: &str) -> Value {
        let (status, snapshot) = self.get(&format!("/v1/templates/builds/{id}")).await;
        assert_eq!(status, StatusCode::OK, "{snapshot}");
        snapshot
    }

    /// Waits until a build is over.
    async fn over(&self, id: &str) -> Value {
        for _ in 0..400 {
            let snapshot = self.build(id).await;
            let status = snapshot["build"]["status"].as_str().unwrap();
            if !["waiting", "building"].contains(&status) {
                return snapshot;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("build {id} is not over: {}", self.build(id).await);
    }

    async fn ready(&self, body: Value) -> Value {
        let id = self.begin(body).await;
        let over = self.over(&id).await;
        assert_eq!(over["build"]["status"], "ready", "{over:#}");
        over
    }

    async fn refused(&self, path: &str, body: Value) -> (StatusCode, String, String) {
        let (status, body) = self.post(path, body).await;
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        (status, text("code"), text("error"))
    }

    fn layers(&self) -> usize {
        std::fs::read_dir(self.data.path().join("template-layers"))
            .unwrap()
            .count()
    }
}

fn steps(name: &str, steps: Value) -> Value {
    json!({"name": name, "base_image": "base", "steps": steps})
}

fn run(command: &str) -> Value {
    json!({"action": "run", "command": command})
}

fn kinds(snapshot: &Value) -> Vec<String> {
    let entries = snapshot["entries"].as_array().unwrap();
    let kind = |entry: &Value| {
        let status = entry["cache_status"].as_str().unwrap_or_default();
        format!("{}{status}", entry["kind"].as_str().unwrap())
    };
    entries.iter().map(kind).collect()
}

#[tokio::test]
async fn a_build_ends_as_a_template_that_machines_start_from() {
    let world = World::new().await;
    let over = world
        .ready(json!({
            "name": "mine", "tags": ["v1", "default"], "base_image": "nullspace/base:latest",
            "steps": [{"action": "workdir", "path": "/srv/app"}, run("echo made > made; echo said")],
            "runtime_config": {"default_envs": {"GREETING": "hello"}},
        }))
        .await;
    let build = &over["build"];
    assert_eq!(build["source_type"], "declarative");
    assert_eq!(build["canonical_ref"], "default/mine");
    assert_eq!(build["cache_summary"]["layer_stores"], 2);
    let entries = over["entries"].as_array().unwrap();
    assert_eq!(entries[0]["kind"], "start");
    let offsets: Vec<u64> = entries
        .iter()
        .map(|e| e["offset"].as_u64().unwrap())
        .collect();
    assert_eq!(offsets, (0..entries.len() as u64).collect::<Vec<_>>());
    assert!(
        entries
            .iter()
            .any(|e| e["message"] == "said" && e["step_index"] == 2),
        "{entries:#?}"
    );
    let end = entries.last().unwrap();
    assert_eq!(
        (&end["kind"], &end["result"]["name"]),
        (&json!("end"), &json!("mine"))
    );
    assert_eq!(end["result"]["tags"], json!(["default", "v1"]));
    let defaults = &end["result_metadata"]["runtime_defaults"];
    assert_eq!(defaults["default_workdir"], "/srv/app");
    let keys = defaults["default_env_keys"].as_array().unwrap();
    assert!(keys.contains(&json!("GREETING")), "{defaults}");
    let id = build["build_id"].as_str().unwrap();
    let template = build["template_id"].as_str().unwrap();
    for reference in [
        "mine".to_owned(),
        "mine:v1".into(),
        "default/mine".into(),
        "mine:latest".into(),
        "nullspace/mine:latest".into(),
        format!("mine:{id}"),
        template.to_owned(),
    ] {
        let (status, machine) = world
            .post("/v1/machines", json!({"template": reference}))
            .await;
        assert_eq!(status, StatusCode::CREATED, "{reference}: {machine}");
        let machine = machine["id"].as_str().unwrap();
        let said = world
            .exec(
                machine,
                json!({"command": "cat made; echo $GREETING", "shell": true}),
            )
            .await;
        assert_eq!(said["stdout"], "made\nhello\n", "{reference}");
        world.delete(&format!("/v1/machines/{machine}")).await;
    }
    for reference in ["yours", "mine:v2", "other/mine", "mine:tb_none", "Mine"] {
        let (status, code, _) = world
            .refused("/v1/machines", json!({"template": reference}))
            .await;
        assert_eq!(
            (status, &*code),
            (StatusCode::NOT_FOUND, "template_not_found"),
            "{reference}"
        );
    }
}

#[tokio::test]
async fn what_did_not_change_is_not_done_again() {
    let world = World::new().await;
    let two = |second: &str| steps("cached", json!([run("echo one"), run(second)]));
    let first = world.ready(two("echo two")).await;
    assert_eq!(first["build"]["cache_summary"]["layer_misses"], 2);
    let again = world.ready(two("echo two")).await;
    let summary = &again["build"]["cache_summary"];
    assert_eq!(
        (&summary["layer_hits"], &summary["final_artifact_hits"]),
        (&json!(2), &json!(1))
    );
    assert_ne!(again["build"]["build_id"], first["build"]["build_id"]);
    let changed = world.ready(two("echo three")).await;
    let summary = &changed["build"]["cache_summary"];
    assert_eq!(
        (&summary["layer_hits"], &summary["layer_misses"]),
        (&json!(1), &json!(1))
    );
    let mut whole = two("echo two");
    whole["skip_cache"] = json!(true);
    let whole = world.ready(whole).await;
    assert_eq!(whole["build"]["cache_summary"]["layer_bypasses"], 2);
    assert!(
        kinds(&whole).contains(&"cachebypass".to_owned()),
        "{whole:#}"
    );
    let boundary = steps(
        "cached",
        json!([run("echo one"), {"action": "skip_cache"}, run("echo two")]),
    );
    let boundary = world.ready(boundary).await;
    let summary = &boundary["build"]["cache_summary"];
    assert_eq!(
        (&summary["layer_hits"], &summary["layer_bypasses"]),
        (&json!(1), &json!(1))
    );
    let reasons: Vec<&Value> = (boundary["entries"].as_array().unwrap().iter())
        .filter_map(|entry| entry.get("cache_reason"))
        .collect();
    assert!(
        reasons.contains(&&json!("builder_cache_boundary")),
        "{reasons:?}"
    );
}

#[tokio::test]
async fn a_step_that_fails_says_how_and_leaves_nothing() {
    let world = World::new().await;
    let id = world
        .begin(steps(
            "broken",
            json!([run("echo fine"), run("echo no good >&2; exit 3")]),
        ))
        .await;
    let over = world.over(&id).await;
    let (build, last) = (
        &over["build"],
        over["entries"].as_array().unwrap().last().unwrap(),
    );
    assert_eq!(build["status"], "error", "{over:#}");
    assert_eq!(last["kind"], "error");
    let detail = &build["error_detail"];
    assert_eq!(
        (&detail["phase"], &detail["step_index"]),
        (&json!("build_step"), &json!(2))
    );
    assert_eq!(
        (
            &detail["details"]["reason"],
            &detail["details"]["exit_code"]
        ),
        (&json!("exit_code"), &json!(3))
    );
    assert!(
        detail["message"].as_str().unwrap().contains("no good"),
        "{detail}"
    );
    // What went well is kept for the next try, and there is no template.
    assert_eq!(world.layers(), 1);
    let (status, body) = world.get("/v1/templates/refs/broken").await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("template_not_found"))
    );
    let (_, builds) = world.get("/v1/templates/refs/broken/builds").await;
    assert_eq!(builds["builds"][0]["build_id"], json!(id));
    // Done again, its parent is named.
    let path = format!("/v1/templates/builds/{id}/retry");
    let (status, again) = world.post(&path, json!({})).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{again}");
    assert_eq!(again["retry_of_build_id"], json!(id));
    let again = world.over(again["build_id"].as_str().unwrap()).await;
    assert_eq!(again["build"]["cache_summary"]["layer_hits"], 1);
    let promote = format!("/v1/templates/builds/{id}/promote");
    let (status, code, _) = world.refused(&promote, json!({"tag": "x"})).await;
    assert_eq!(
        (status, &*code),
        (StatusCode::CONFLICT, "template_build_conflict")
    );
}

#[tokio::test]
async fn a_build_is_cancelled_and_one_that_hangs_is_ended() {
    let config = Config {
        template_build_secs: 2,
        ..Config::default()
    };
    let world = World::with(config).await;
    let id = world
        .begin(steps("slow", json!([run("echo on; sleep 60")])))
        .await;
    for _ in 0..200 {
        let snapshot = world.build(&id).await;
        if snapshot["entries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["message"] == "on")
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let path = format!("/v1/templates/builds/{id}/cancel");
    let (status, body) = world
        .post(&path, json!({"reason": "changed my mind"}))
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let build = &body["build"];
    assert_eq!(
        (&build["status"], &build["cancellation_reason"]),
        (&json!("cancelled"), &json!("changed my mind"))
    );
    assert!(build["cancel_requested_at"].is_string());
    // Again it is the same.
    let (status, again) = world.post(&path, json!({})).await;
    assert_eq!(
        (status, &again["build"]["cancellation_reason"]),
        (StatusCode::OK, &json!("changed my mind"))
    );
    let id = world.begin(steps("slow", json!([run("sleep 60")]))).await;
    let over = world.over(&id).await;
    assert_eq!(
        over["build"]["error_detail"]["details"]["reason"], "timeout",
        "{over:#}"
    );
    let (_, machines) = world.get("/v1/machines").await;
    assert_eq!(machines["items"], json!([]));
    assert_eq!(world.layers(), 0);
}

#[tokio::test]
async fn a_build_of_a_server_that_ended_is_interrupted() {
    let mut world = World::new().await;
    let id = world
        .begin(steps(
            "cut",
            json!([run("echo one"), run("echo on; sleep 60")]),
        ))
        .await;
    for _ in 0..200 {
        let snapshot = world.build(&id).await;
        if snapshot["entries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["message"] == "on")
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.restart().await;
    let over = world.build(&id).await;
    let build = &over["build"];
    assert_eq!(
        (&build["status"], &build["failure_phase"]),
        (&json!("error"), &json!("interrupted"))
    );
    assert_eq!(build["error_detail"]["retryable"], true);
    let entries = over["entries"].as_array().unwrap();
    assert!(entries.iter().any(|e| e["message"] == "on"), "{entries:#?}");
    assert_eq!(entries.last().unwrap()["kind"], "error");
    let (_, machines) = world.get("/v1/machines").await;
    assert_eq!(machines["items"], json!([]));
}

#[tokio::test]
async fn files_are_announced_sent_and_checked() {
    let world = World::new().await;
    let bytes = b"what is in it".to_vec();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    let file = json!({"path": "d/f", "entry_type": "file", "mode": "0644", "sha256": sha256, "size_bytes": bytes.len()});
    let announced = json!({"files": [{"path": "d", "entry_type": "dir", "mode": "0755"}, file]});
    let (status, body) = world
        .post("/v1/templates/blobs/preflight", announced.clone())
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(
        body["files"][0],
        json!({"path": "d", "entry_type": "dir", "mode": "0755", "missing": false})
    );
    assert_eq!(body["files"][1]["missing"], true);
    let blob = body["files"][1]["blob_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/templates/blobs/{blob}");
    let put = async |path: &str, bytes: Vec<u8>| {
        answer(world.request(Method::PUT, path).body(bytes)).await
    };
    for wrong in [
        b"what is in IT".to_vec(),
        b"short".to_vec(),
        b"what is in it, and more".to_vec(),
    ] {
        let (status, body) = put(&path, wrong).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("file_upload_error")),
            "{body}"
        );
        assert_eq!(body["error_detail"]["phase"], "blob_upload", "{body}");
        assert!(body["error_detail"].get("reason").is_none());
    }
    let build = |blob: &str| {
        json!({
            "name": "files", "base_image": "base",
            "steps": [{"action": "copy", "sources": ["d"], "dst": "/put", "mode": "0600"}],
            "build_context": {"files": [{"path": "d", "entry_type": "dir"}, {"path": "d/f", "entry_type": "file", "blob_id": blob}]},
        })
    };
    // Never sent.
    let (status, code, _) = world.refused("/v1/templates/builds", build(&blob)).await;
    assert_eq!(
        (status, &*code),
        (StatusCode::BAD_REQUEST, "file_upload_error")
    );
    let (status, _) = put(&path, bytes.clone()).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(put(&path, bytes.clone()).await.0, StatusCode::NO_CONTENT);
    let (_, body) = world.post("/v1/templates/blobs/preflight", announced).await;
    assert_eq!(
        (&body["files"][1]["missing"], &body["files"][1]["blob_id"]),
        (&json!(false), &json!(blob))
    );
    let mut forced = file.clone();
    forced["force_upload"] = json!(true);
    let (_, body) = world
        .post("/v1/templates/blobs/preflight", json!({"files": [forced]}))
        .await;
    assert_eq!(body["files"][0]["missing"], true);
    assert_ne!(body["files"][0]["blob_id"], json!(blob));
    world.ready(build(&blob)).await;
    let (status, code, _) = world
        .refused("/v1/templates/builds", build("tblob_none"))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::NOT_FOUND, "template_blob_not_found")
    );
    let (status, body) = put("/v1/templates/blobs/tblob_none", bytes).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("template_blob_not_found"))
    );
    let (_, made) = world
        .post("/v1/machines", json!({"template": "files"}))
        .await;
    let said = world
        .exec(
            made["id"].as_str().unwrap(),
            json!({"command": "cat ../put/f; stat -c %a ../put/f", "shell": true}),
        )
        .await;
    assert_eq!(said["stdout"], "what is in it600\n");
}

#[tokio::test]
async fn tags_names_and_aliases() {
    let world = World::new().await;
    let first = world.ready(steps("one", json!([run("echo 1")]))).await;
    let first = first["build"]["build_id"].as_str().unwrap().to_owned();
    let second = world.ready(steps("one", json!([run("echo 2")]))).await;
    let second = second["build"]["build_id"].as_str().unwrap().to_owned();
    let means = async |tag: &str| {
        let (_, tags) = world.get("/v1/templates/refs/one/tags").await;
        let found = tags
            .as_array()
            .unwrap()
            .iter()
            .find(|t| t["tag"] == tag)
            .cloned();
        found.map(|tag| tag["build_id"].as_str().unwrap().to_owned())
    };
    assert_eq!(means("default").await, Some(second.clone()));
    // On an exact build, by promotion, and on what a tag means.
    let path = format!("/v1/templates/refs/one%3A{first}/tags");
    let (status, info) = world.post(&path, json!({"tags": ["old", "older"]})).await;
    assert_eq!(
        (status, &info["tags"]),
        (StatusCode::OK, &json!(["default", "old", "older"]))
    );
    assert_eq!(means("old").await, Some(first.clone()));
    let (status, _) = world
        .post(
            &format!("/v1/templates/builds/{second}/promote"),
            json!({"tag": "old"}),
        )
        .await;
    assert_eq!((status, means("old").await), (StatusCode::OK, Some(second)));
    let (status, _) = world.delete("/v1/templates/refs/one/tags/older").await;
    assert_eq!(
        (status, means("older").await),
        (StatusCode::NO_CONTENT, None)
    );
    let (status, body) = world.delete("/v1/templates/refs/one/tags/older").await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("template_tag_not_found"))
    );
    // A new name; the old one goes on to lead there, and nobody else gets it.
    let (status, info) = world
        .post(
            "/v1/templates/refs/default%2Fone/rename",
            json!({"new_name": "two"}),
        )
        .await;
    assert_eq!(
        (status, &info["canonical_ref"]),
        (StatusCode::OK, &json!("default/two"))
    );
    for name in ["one", "two"] {
        assert_eq!(
            world.get(&format!("/v1/templates/refs/{name}")).await.1["name"],
            "two"
        );
        let (status, _) = world.post("/v1/machines", json!({"template": name})).await;
        assert_eq!(status, StatusCode::CREATED, "{name}");
    }
    let (_, aliases) = world.get("/v1/templates/refs/two/aliases").await;
    assert_eq!(aliases[0]["alias_ref"], "default/one");
    let (status, code, _) = world
        .refused("/v1/templates/builds", steps("one", json!([])))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::CONFLICT, "template_name_conflict")
    );
    let (status, _) = world
        .delete("/v1/templates/refs/two/aliases/default%2Fone")
        .await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(
        world.get("/v1/templates/refs/one").await.0,
        StatusCode::NOT_FOUND
    );
    world.ready(steps("one", json!([]))).await;
    let (status, code, _) = world
        .refused("/v1/templates/refs/two/rename", json!({"new_name": "one"}))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::CONFLICT, "template_name_conflict")
    );
    let visibility = world
        .request(Method::PATCH, "/v1/templates/refs/two/visibility")
        .json(&json!({"visibility": "public"}));
    assert_eq!(answer(visibility).await.1["visibility"], "public");
    // Names that are kept.
    let (status, claim) = world
        .post("/v1/templates/claims", json!({"template_ref": "kept"}))
        .await;
    assert_eq!(
        (status, &claim["canonical_ref"]),
        (StatusCode::CREATED, &json!("default/kept"))
    );
    let (status, code, _) = world
        .refused("/v1/templates/claims", json!({"template_ref": "kept"}))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::CONFLICT, "template_name_conflict")
    );
    let path = format!(
        "/v1/templates/claims/{}",
        claim["claim_token"].as_str().unwrap()
    );
    assert_eq!(world.delete(&path).await.0, StatusCode::NO_CONTENT);
    let (status, body) = world.delete(&path).await;
    assert_eq!(
        (status, &body["code"]),
        (
            StatusCode::NOT_FOUND,
            &json!("template_name_claim_not_found")
        )
    );
    assert_eq!(
        world.get("/v1/templates/namespaces/nullspace").await.1["kind"],
        "system"
    );
    assert_eq!(
        world.get("/v1/templates/namespaces/nobody").await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_template_that_is_deleted_stays_below_its_machines() {
    let mut world = World::new().await;
    world
        .ready(steps("gone", json!([run("echo here > here")])))
        .await;
    let (_, made) = world
        .post("/v1/machines", json!({"template": "gone"}))
        .await;
    let id = made["id"].as_str().unwrap().to_owned();
    let (status, _) = world.delete("/v1/templates/refs/gone").await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, code, _) = world
        .refused("/v1/machines", json!({"template": "gone"}))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::NOT_FOUND, "template_not_found")
    );
    let collect = async |world: &World, dry: bool| {
        let (status, report) = world.post("/v1/agent-gc", json!({"dry_run": dry})).await;
        assert_eq!(status, StatusCode::OK, "{report}");
        let items = report["items"].as_array().unwrap().clone();
        items
            .iter()
            .filter(|item| item["kind"] == "template_layer")
            .count()
    };
    assert_eq!(collect(&world, false).await, 0);
    assert_eq!(world.layers(), 1);
    world.restart().await;
    assert_eq!(world.layers(), 1);
    world.delete(&format!("/v1/machines/{id}")).await;
    assert_eq!((collect(&world, true).await, world.layers()), (1, 1));
    assert_eq!((collect(&world, false).await, world.layers()), (1, 0));
    for builtin in ["base", "nullspace%2Fbase%3Alatest"] {
        let (status, body) = world.delete(&format!("/v1/templates/refs/{builtin}")).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::FORBIDDEN, &json!("permission_denied")),
            "{body}"
        );
    }
}

/// Each layer is removed by one of those who collect at the same time, and reported by that one.
#[tokio::test]
async fn garbage_that_two_collect_at_once_is_collected_once() {
    let world = World::new().await;
    let all: Vec<Value> = (0..12).map(|n| run(&format!("echo {n} > {n}"))).collect();
    world.ready(steps("gone", json!(all))).await;
    assert_eq!(world.layers(), 12);
    world.delete("/v1/templates/refs/gone").await;
    let collect = || world.post("/v1/agent-gc", json!({"dry_run": false}));
    let (a, b, c) = tokio::join!(collect(), collect(), collect());
    let mut names = Vec::new();
    for (status, report) in [a, b, c] {
        assert_eq!(status, StatusCode::OK, "{report}");
        for item in report["items"].as_array().unwrap() {
            names.push(item["name"].clone().to_string());
        }
    }
    names.sort_unstable();
    let found = names.len();
    names.dedup();
    assert_eq!((found, names.len(), world.layers()), (12, 12, 0));
}

#[tokio::test]
async fn bad_builds_are_refused_and_say_why() {
    let world = World::new().await;
    let big = "x".repeat(200);
    let cases = [
        (json!({"name": "a"}), "base_image or dockerfile"),
        (
            json!({"name": "a", "base_image": "base", "dockerfile": "FROM base"}),
            "only one",
        ),
        (json!({"name": "A", "base_image": "base"}), "name"),
        (json!({"name": "tb_a", "base_image": "base"}), "name"),
        (json!({"name": big, "base_image": "base"}), "name"),
        (
            json!({"name": "a", "base_image": "base", "tags": []}),
            "tags",
        ),
        (
            json!({"name": "a", "base_image": "base", "tags": ["a:b"]}),
            "tags",
        ),
        (json!({"name": "a", "base_image": "ba se"}), "base_image"),
        (steps("a", json!([{"action": "fly"}])), "fly"),
        (
            steps("a", json!([{"action": "apt_install", "packages": []}])),
            "steps[0]: packages",
        ),
        (
            steps(
                "a",
                json!([{"action": "make_dir", "path": "/x", "mode": "0999"}]),
            ),
            "mode",
        ),
        (
            steps("a", json!([{"action": "copy", "sources": [], "dst": "/x"}])),
            "copy",
        ),
        (
            json!({"name": "a", "dockerfile": "FROM base\nONBUILD RUN x"}),
            "line 2",
        ),
        (
            json!({"name": "a", "dockerfile": "FROM base", "build_backend": "native"}),
            "build_backend",
        ),
        (
            json!({"name": "a", "base_image": "base", "build_config": {"vcpus": 0}}),
            "vcpus",
        ),
        (
            json!({"name": "a", "base_image": "base", "start_cmd": " "}),
            "start_cmd",
        ),
        (
            json!({"name": "a", "base_image": "base", "runtime_config": {"default_workdir": "x"}}),
            "default_workdir",
        ),
        (
            json!({"name": "a", "base_image": "base", "runtime_config": {"readiness": {"kind": "tcp", "port": 0}}}),
            "port",
        ),
        (
            json!({"name": "a", "base_image": "base", "build_secrets": [{"id": "a/b", "value": "v"}]}),
            "id",
        ),
        (
            json!({"name": "a", "base_image": "base", "build_context": {"files": [{"path": "../x", "entry_type": "dir"}]}}),
            "../x",
        ),
        (
            json!({"name": "a", "base_image": "base", "build_context": {"files": [{"path": "x", "entry_type": "file"}]}}),
            "blob_id",
        ),
        (
            json!({"name": "a", "base_image": "base", "build_context": {"files": [
            {"path": "x", "entry_type": "file", "_local_path": "/x", "_size_bytes": 1, "_sha256": "0"}]}}),
            "_local_path",
        ),
    ];
    for (body, word) in cases {
        let (status, code, error) = world.refused("/v1/templates/builds", body.clone()).await;
        assert_eq!(
            (status, &*code),
            (StatusCode::BAD_REQUEST, "invalid_request"),
            "{body}: {error}"
        );
        assert!(error.contains(word), "{body}: {error}");
    }
    let (status, code, _) = world
        .refused("/v1/templates/builds", steps("base", json!([])))
        .await;
    assert_eq!(
        (status, &*code),
        (StatusCode::CONFLICT, "template_name_conflict")
    );
    for path in ["", "/logs"] {
        let (status, body) = world
            .get(&format!("/v1/templates/builds/tb_none{path}"))
            .await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!("template_build_not_found"))
        );
    }
    let (status, body) = world.get("/v1/templates?fields=id,size").await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_fields"))
    );
    // What is wrong is told without being refused.
    let (status, body) = world
        .post(
            "/v1/templates/validate",
            json!({"dockerfile": "FROM base\nFOO"}),
        )
        .await;
    assert_eq!(
        (status, &body["valid"]),
        (StatusCode::OK, &json!(false)),
        "{body}"
    );
    assert!(
        body["errors"][0]["message"]
            .as_str()
            .unwrap()
            .contains("FOO")
    );
    let (_, body) = world
        .post(
            "/v1/templates/validate",
            json!({"base_image": "default/none"}),
        )
        .await;
    assert_eq!(body["errors"][0]["code"], "template_not_found", "{body}");
    let (status, plan) = world
        .post(
            "/v1/templates/plan",
            json!({"dockerfile": "FROM base\nENV A=b\nRUN x\nEXPOSE 80"}),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    assert_eq!(plan["build_plan"]["run_steps"], json!(["RUN x"]));
    assert_eq!(plan["build_plan"]["env_assignments"], json!([["A", "b"]]));
    assert_eq!(
        plan["build_plan"]["ignored_instructions"],
        json!(["EXPOSE"])
    );
    assert_eq!(plan["requires_base_image_auth"], false);
}

#[tokio::test]
async fn a_retry_needs_the_secrets_again() {
    let world = World::new().await;
    // Nothing here mounts them: commands of this engine run on the host.
    let mut body = json!({"name": "secret", "dockerfile": "FROM base\nRUN exit 1"});
    body["build_secrets"] =
        json!([{"id": "token", "value": "s3cr3t-value-of-the-test", "source": "value"}]);
    let id = world.begin(body).await;
    let over = world.over(&id).await;
    assert!(!over.to_string().contains("s3cr3t-value"));
    let path = format!("/v1/templates/builds/{id}/retry");
    let (status, code, error) = world.refused(&path, json!({})).await;
    assert_eq!(
        (status, &*code),
        (StatusCode::BAD_REQUEST, "invalid_request")
    );
    assert!(error.contains("token"), "{error}");
}

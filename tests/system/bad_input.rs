//! Bad input against a real server: each kind has its code, and leaves nothing behind. What needs no real machine is in
//! the server's own tests; this is what does, and the whole list once through the real edge.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, answer};

#[tokio::test(flavor = "multi_thread")]
async fn the_table() {
    let world = World::start().await;
    let id = world
        .machine(json!({"template": "host", "memory_mb": 128}))
        .await;
    let m = format!("/v1/machines/{id}");
    let long = "x".repeat(2 << 20);
    let post = Method::POST;
    let get = Method::GET;
    let rows: Vec<(Method, String, Option<Value>, u16, &str)> = vec![
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"template": "nothing"})),
            404,
            "template_not_found",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"vcpus": "two"})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"vcpus": 0})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"memory_mb": 1})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"memory_mb": 1u64 << 40})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"timeout_ms": 0})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"cwd": "relative"})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"envs": {"A=B": "x"}})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"disk_mb": 1u64 << 40})),
            503,
            "no_eligible_runtime_host",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"snapshot_id": "snap_x"})),
            501,
            "not_implemented",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"timeout_action": "hibernate"})),
            501,
            "not_implemented",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!([])),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/machines".into(),
            Some(json!({"metadata": {"x": long}})),
            413,
            "body_too_large",
        ),
        (
            get.clone(),
            "/v1/machines/mch_none".into(),
            None,
            404,
            "machine_not_found",
        ),
        (
            get.clone(),
            "/v1/sandboxes/mch_none".into(),
            None,
            404,
            "sandbox_not_found",
        ),
        (
            get.clone(),
            "/v1/machines?limit=0".into(),
            None,
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            "/v1/machines?state=asleep".into(),
            None,
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            "/v1/machines?next_token=x".into(),
            None,
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            "/v1/machines?fields=nothing".into(),
            None,
            400,
            "invalid_fields",
        ),
        (get.clone(), "/v1/nothing".into(), None, 404, "not_found"),
        (
            Method::PUT,
            "/v1/machines".into(),
            None,
            405,
            "method_not_allowed",
        ),
        (
            post.clone(),
            format!("{m}/exec"),
            Some(json!({"command": ""})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/exec"),
            Some(json!({"command": "true", "cwd": "/nothing"})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/exec"),
            Some(json!({"command": "true", "timeout_secs": 0})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/exec"),
            Some(json!({"command": "sleep", "args": ["9"], "timeout_secs": 1})),
            504,
            "exec_timeout",
        ),
        (
            post.clone(),
            format!("{m}/fork"),
            Some(json!({})),
            501,
            "not_implemented",
        ),
        (
            get.clone(),
            format!("{m}/processes/99999/logs"),
            None,
            404,
            "not_found",
        ),
        (
            get.clone(),
            format!("{m}/processes/x/logs"),
            None,
            404,
            "not_found",
        ),
        (
            get.clone(),
            format!("{m}/file?path=/none"),
            None,
            404,
            "not_found",
        ),
        (
            get.clone(),
            format!("{m}/file?path=/etc"),
            None,
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            format!("{m}/file?path=/dev/zero"),
            None,
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            format!("{m}/file"),
            None,
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/files/write"),
            Some(json!({"path": "/workspace/.nullspace/x", "content": ""})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/files/write"),
            Some(json!({"path": "/x", "content": "?", "encoding": "base64"})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/files/write"),
            Some(json!({"path": "/usr/x", "content": ""})),
            403,
            "permission_denied",
        ),
        (
            post.clone(),
            format!("{m}/files/rename"),
            Some(json!({"old_path": "/none", "new_path": "/x"})),
            404,
            "not_found",
        ),
        (
            post.clone(),
            format!("{m}/files/permissions"),
            Some(json!({"path": "/tmp", "permissions": "rwx"})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            format!("{m}/timeout"),
            Some(json!({"timeout_ms": 0})),
            400,
            "invalid_request",
        ),
        (
            post.clone(),
            "/v1/agent-deployments".into(),
            Some(json!({"name": "x", "mode": "worker"})),
            400,
            "invalid_request",
        ),
        (
            get.clone(),
            "/v1/agent-deployments/none".into(),
            None,
            404,
            "agent_deployment_not_found",
        ),
        (
            post.clone(),
            "/v1/agent-deployments/none/runs".into(),
            Some(json!({"input": {}})),
            404,
            "agent_deployment_not_found",
        ),
    ];
    for (method, path, body, status, code) in rows {
        let mut request = world.request(method.clone(), &path);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let (got, answer) = answer(request).await;
        let told = body.map(|b| b.to_string().chars().take(120).collect::<String>());
        assert_eq!(
            (got.as_u16(), &answer["code"]),
            (status, &json!(code)),
            "{method} {path} {told:?}: {answer}"
        );
        assert!(
            answer["request_id"].is_string() && answer["error"].is_string(),
            "{answer}"
        );
    }
    for key in [None, Some("wrong")] {
        let mut request = reqwest::Client::new().get(format!("{}/v1/machines", world.base_url()));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let (status, body) = answer(request).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::UNAUTHORIZED, &json!("unauthorized"))
        );
    }
    let broken = world
        .request(post, "/v1/machines")
        .header("content-type", "application/json")
        .body("{");
    let (status, body) = answer(broken).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    // Nothing of all this made a machine, or hurt the one that is there.
    let (_, page) = world.get("/v1/machines").await;
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.out(&id, "echo well").await, "well");
}

/// A small file system as the data directory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=755");
        crate::host::run(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "nullspace-test",
                dir.path().to_str().unwrap(),
            ],
        );
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_undone() {
    let disk = SmallDisk::new("48m");
    let world = World::on(disk.0.path(), &[]).await;
    let id = world.machine(json!({"template": "host"})).await;
    // Two of these do not fit.
    let path = format!("/v1/machines/{id}/file?path=/fill");
    let put = |path: String, size: usize| {
        answer(world.request(Method::PUT, &path).body(vec![b'x'; size]))
    };
    assert_eq!(put(path, 24 << 20).await.0, StatusCode::NO_CONTENT);
    let (status, body) = put(format!("/v1/machines/{id}/file?path=/more"), 24 << 20).await;
    assert!(
        status.is_client_error() || status.is_server_error(),
        "{status}"
    );
    assert_eq!(body["code"], "insufficient_storage", "{body}");
    let (_, found) = world
        .post(
            &format!("/v1/machines/{id}/files/exists"),
            json!({"path": "/more"}),
        )
        .await;
    assert_eq!(found["exists"], false);

    // A bundle that does not fit.
    let project = tempfile::tempdir().unwrap();
    std::fs::write(project.path().join("main.sh"), "true\n").unwrap();
    std::fs::write(project.path().join("large"), vec![b'y'; 24 << 20]).unwrap();
    let config = nullspace_project::AgentConfig::from_toml(
        "name = 'n'\ntemplate = 'host'\nentrypoint = 'true'\n",
    )
    .unwrap();
    let bundle = nullspace_project::Bundle::build(project.path(), &config).unwrap();
    let (_, deployment) = world
        .post("/v1/agent-deployments", json!({"name": "n", "mode": "job"}))
        .await;
    let base = format!(
        "/v1/agent-deployments/{}/versions",
        deployment["id"].as_str().unwrap()
    );
    let request = json!({
        "bundle_digest": bundle.manifest().bundle_digest, "bundle_manifest": bundle.manifest(), "config": config.to_wire(),
    });
    let (_, version) = world.post(&base, request).await;
    let mut archive = Vec::new();
    bundle.write_archive(&mut archive).unwrap();
    let upload = || {
        world
            .request(
                Method::PUT,
                &format!("{base}/{}/bundle", version["id"].as_str().unwrap()),
            )
            .header(
                "x-nullspace-bundle-digest",
                &bundle.manifest().bundle_digest,
            )
            .body(archive.clone())
    };
    let (status, body) = answer(upload()).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (507, &json!("insufficient_storage")),
        "{body}"
    );
    // With room again it works: nothing was left in the way.
    assert_eq!(
        world.delete(&format!("/v1/machines/{id}")).await.0,
        StatusCode::OK
    );
    let mut last = (StatusCode::OK, Value::Null);
    for _ in 0..100 {
        last = answer(upload()).await;
        if last.0 == StatusCode::OK {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(last.0, StatusCode::OK, "{}", last.1);
    drop(world);
}

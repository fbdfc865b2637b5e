//! Bad input against a real server: each kind has its code, and leaves nothing behind.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};

use crate::world::{World, answer};

/// How it is refused, and what is sent. `{m}` is the path of a running machine, `{d}` of a deployment without a
/// version; `{2M}` and `{80K}` are so many characters.
const TABLE: &[&str] = &[
    // Creating machines.
    r#"404 template_not_found: POST /v1/machines {"template": "nothing"}"#,
    r#"400 invalid_request: POST /v1/machines {"template": 1}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpu": 1}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpus": "two"}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpus": 0}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpus": -1}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpus": 1.5}"#,
    r#"400 invalid_request: POST /v1/machines {"vcpus": 100000}"#,
    r#"400 invalid_request: POST /v1/machines {"memory_mb": 1}"#,
    r#"400 invalid_request: POST /v1/machines {"memory_mb": 1099511627776}"#,
    r#"503 no_eligible_runtime_host: POST /v1/machines {"disk_mb": 1099511627776}"#,
    r#"400 invalid_request: POST /v1/machines {"timeout_ms": 0}"#,
    r#"400 invalid_request: POST /v1/machines {"timeout_ms": 99999999999999}"#,
    r#"400 invalid_request: POST /v1/machines {"timeout_action": "sleep"}"#,
    r#"400 invalid_request: POST /v1/machines {"timeout_action": "sleep"}"#,
    r#"400 invalid_request: POST /v1/machines {"auto_resume": true}"#,
    r#"400 invalid_request: POST /v1/machines {"cwd": "relative"}"#,
    r#"400 invalid_request: POST /v1/machines {"cwd": "/workspace/.nullspace"}"#,
    r#"400 invalid_request: POST /v1/machines {"envs": {"A=B": "x"}}"#,
    r#"400 invalid_request: POST /v1/machines {"envs": {"A": 1}}"#,
    r#"400 invalid_request: POST /v1/machines {"envs": ["A"]}"#,
    r#"400 invalid_request: POST /v1/machines {"metadata": "text"}"#,
    r#"400 invalid_request: POST /v1/machines {"metadata": {"x": "{80K}"}}"#,
    r#"413 body_too_large: POST /v1/machines {"metadata": {"x": "{2M}"}}"#,
    r#"404 snapshot_not_found: POST /v1/machines {"snapshot_id": "snap_x"}"#,
    r#"400 invalid_request: POST /v1/machines {"snapshot_id": "snap_x", "vcpus": 2}"#,
    r#"404 snapshot_not_found: POST /v1/machines/snap_x/resume {}"#,
    r#"404 machine_not_found: POST /v1/machines/mch_none/hibernate {}"#,
    r#"400 invalid_request: POST /v1/machines {"volumes": [{"ref": "v"}]}"#,
    r#"400 invalid_request: POST /v1/machines []"#,
    r#"400 invalid_request: POST /v1/machines "text""#,
    r#"400 invalid_request: POST /v1/machines {"#,
    r#"400 invalid_request: POST /v1/machines"#,
    // Events and webhooks.
    r#"400 invalid_request: GET /v1/lifecycle/events?operation=explode"#,
    r#"400 invalid_request: GET /v1/lifecycle/events?status=done"#,
    r#"400 invalid_request: GET /v1/lifecycle/events?audience=everybody"#,
    r#"400 invalid_request: GET /v1/lifecycle/events?from=yesterday"#,
    r#"400 invalid_request: GET /v1/lifecycle/events?limit=0"#,
    r#"400 invalid_request: GET {m}/lifecycle?sandbox_id=mch_other"#,
    r#"404 machine_not_found: GET /v1/machines/mch_none/lifecycle"#,
    r#"404 sandbox_not_found: GET /v1/sandboxes/mch_none/lifecycle"#,
    r#"404 snapshot_not_found: GET /v1/snapshots/snap_none/lifecycle"#,
    r#"400 invalid_request: GET /v1/lifecycle/ws"#,
    r#"400 invalid_request: GET {m}/lifecycle/ws"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks []"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "ftp://example.com", "operations": ["create"], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "http://127.0.0.1/", "operations": ["create"], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "http://localhost/", "operations": ["create"], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "http://169.254.169.254/", "operations": ["create"], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "https://93.184.216.34/", "operations": [], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "https://93.184.216.34/", "operations": ["explode"], "signing_secret": "s"}"#,
    r#"400 invalid_request: POST /v1/lifecycle/webhooks {"url": "https://93.184.216.34/", "operations": ["create"], "signing_secret": ""}"#,
    r#"413 body_too_large: POST /v1/lifecycle/webhooks {"url": "{2M}"}"#,
    r#"404 webhook_not_found: GET /v1/lifecycle/webhooks/none"#,
    r#"404 webhook_not_found: PATCH /v1/lifecycle/webhooks/none {"enabled": true}"#,
    r#"404 webhook_not_found: DELETE /v1/lifecycle/webhooks/none"#,
    r#"404 webhook_not_found: GET /v1/lifecycle/webhooks/none/deliveries"#,
    r#"404 webhook_not_found: GET /v1/lifecycle/webhooks/none/deliveries/none"#,
    r#"404 webhook_not_found: GET /v1/lifecycle/webhooks/none/deliveries?limit=0"#,
    // Finding them.
    r#"404 machine_not_found: GET /v1/machines/mch_none"#,
    r#"404 sandbox_not_found: GET /v1/sandboxes/mch_none"#,
    r#"404 machine_not_found: GET /v1/machines/%00"#,
    r#"400 invalid_fields: GET {m}?fields=nothing"#,
    r#"400 invalid_fields: GET /v1/machines?fields=nothing"#,
    r#"400 invalid_request: GET /v1/machines?limit=0"#,
    r#"400 invalid_request: GET /v1/machines?limit=x"#,
    r#"400 invalid_request: GET /v1/machines?limit=100000"#,
    r#"400 invalid_request: GET /v1/machines?state=asleep"#,
    r#"400 invalid_request: GET /v1/machines?metadata=x"#,
    r#"400 invalid_request: GET /v1/machines?next_token=x"#,
    r#"404 machine_not_found: DELETE /v1/machines/mch_none"#,
    r#"404 sandbox_not_found: DELETE /v1/sandboxes/mch_none"#,
    r#"404 machine_not_found: POST /v1/machines/mch_none/timeout {"timeout_ms": 1000}"#,
    r#"400 invalid_request: POST {m}/timeout {"timeout_ms": 0}"#,
    r#"400 invalid_request: POST {m}/timeout {}"#,
    r#"501 not_implemented: POST {m}/fork {}"#,
    // Code.
    r#"400 invalid_request: POST {m}/code/execute {"code": ""}"#,
    r#"400 invalid_request: POST {m}/code/execute {"code": "1", "language": "cobol"}"#,
    r#"400 invalid_request: POST {m}/code/execute {"code": "1", "timeout": 0}"#,
    r#"501 not_implemented: POST {m}/code/execute {"code": "1"}"#,
    r#"404 machine_not_found: POST /v1/machines/mch_none/code/execute {"code": "1"}"#,
    r#"400 invalid_request: POST {m}/code/contexts {"cwd": "/nowhere"}"#,
    r#"404 not_found: DELETE {m}/code/contexts/ctx_none"#,
    r#"404 not_found: POST {m}/code/runs {"code": "1", "context_id": "ctx_none"}"#,
    r#"400 invalid_request: GET {m}/code/artifacts?kind=movie"#,
    r#"404 not_found: GET {m}/code/artifacts/..%2f..%2fnullspace.db/download"#,
    r#"400 invalid_request: POST {m}/uploads {}"#,
    r#"404 not_found: GET /v1/nothing"#,
    r#"405 method_not_allowed: PUT /v1/machines"#,
    // Commands and processes.
    r#"404 machine_not_found: POST /v1/machines/mch_none/exec {"command": "true"}"#,
    r#"404 sandbox_not_found: POST /v1/sandboxes/mch_none/exec {"command": "true"}"#,
    r#"400 invalid_request: POST {m}/exec {}"#,
    r#"400 invalid_request: POST {m}/exec {"command": ""}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "arguments": []}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "args": "x"}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "a\u0000b"}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "cwd": "/nothing"}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "cwd": "etc"}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "envs": {"=": ""}}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "timeout_secs": 0}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "true", "timeout_secs": 9999999}"#,
    r#"504 exec_timeout: POST {m}/exec {"command": "sleep 9", "shell": true, "timeout_secs": 1}"#,
    r#"400 invalid_request: POST {m}/exec {"command": "no-such-program", "background": true}"#,
    r#"404 machine_not_found: GET /v1/machines/mch_none/processes"#,
    r#"404 not_found: GET {m}/processes/99999/logs"#,
    r#"404 not_found: GET {m}/processes/x/logs"#,
    r#"404 not_found: POST {m}/processes/99999/kill {}"#,
    r#"404 not_found: POST {m}/processes/1/kill {}"#,
    r#"404 not_found: POST {m}/processes/99999/stdin {"data": "x"}"#,
    // What machines use.
    r#"404 machine_not_found: GET /v1/machines/mch_none/metrics"#,
    r#"404 sandbox_not_found: GET /v1/sandboxes/mch_none/metrics"#,
    r#"405 method_not_allowed: POST {m}/metrics {}"#,
    r#"400 invalid_request: GET /v1/monitor/ws"#,
    r#"405 method_not_allowed: POST /v1/monitor/ws {}"#,
    // Previews.
    r#"404 machine_not_found: POST /v1/machines/mch_none/host {"port": 80}"#,
    r#"404 sandbox_not_found: GET /v1/sandboxes/mch_none/ports/80/preview-url"#,
    r#"404 machine_not_found: GET /v1/machines/mch_none/preview-urls"#,
    r#"400 invalid_request: POST {m}/host {}"#,
    r#"400 invalid_request: POST {m}/host {"port": 22}"#,
    r#"400 invalid_request: POST {m}/host {"port": 65536}"#,
    r#"400 invalid_request: POST {m}/host {"port": "80"}"#,
    r#"400 invalid_request: GET {m}/ports/0/preview-url"#,
    r#"400 invalid_request: GET {m}/ports/22/preview-url"#,
    r#"400 invalid_request: GET {m}/ports/5999/preview-url"#,
    r#"400 invalid_request: GET {m}/ports/http/preview-url"#,
    r#"400 invalid_request: POST {m}/ports/80/signed-preview-url {"expires_in_seconds": 0}"#,
    r#"400 invalid_request: POST {m}/ports/80/signed-preview-url {"expires_in_seconds": "1h"}"#,
    r#"400 invalid_request: POST {m}/ports/80/preview-proxy-target {"transports": ["udp"]}"#,
    r#"400 invalid_request: POST {m}/ports/80/preview-proxy-target {"transports": []}"#,
    r#"400 invalid_request: POST {m}/ports/5900/readiness {}"#,
    r#"400 invalid_request: POST {m}/ports/80/readiness {"kind": "udp"}"#,
    r#"400 invalid_request: POST {m}/ports/80/readiness {"kind": "http", "path": "x"}"#,
    r#"400 invalid_request: GET {m}/preview-urls?port=x"#,
    r#"404 preview_grant_not_found: DELETE {m}/preview-urls/pvg_none"#,
    r#"400 invalid_request: POST /v1/machines {"network": {"mask_request_host": "a b"}}"#,
    r#"405 method_not_allowed: POST /metrics {}"#,
    // Files.
    r#"404 machine_not_found: GET /v1/machines/mch_none/file?path=/etc/passwd"#,
    r#"404 not_found: GET {m}/file?path=/none"#,
    r#"400 invalid_request: GET {m}/file?path=/etc"#,
    r#"400 invalid_request: GET {m}/file?path=/dev/zero"#,
    r#"403 permission_denied: GET {m}/file?path=/proc/1/mem"#,
    r#"400 invalid_request: GET {m}/file"#,
    r#"403 permission_denied: PUT {m}/file?path=/usr/x {}"#,
    r#"400 invalid_request: PUT {m}/file?path=/etc {}"#,
    r#"404 not_found: GET {m}/files?path=/none"#,
    r#"400 invalid_request: GET {m}/files?path=/etc/passwd"#,
    r#"404 not_found: POST {m}/files/read {"path": "/none"}"#,
    r#"400 invalid_request: POST {m}/files/read {"path": "/etc/passwd", "user": "nobody-here"}"#,
    r#"400 invalid_request: POST {m}/files/read {"path": ""}"#,
    r#"400 invalid_request: POST {m}/files/write {"path": "/x"}"#,
    r#"400 invalid_request: POST {m}/files/write {"path": "/workspace/.nullspace/x", "content": ""}"#,
    r#"400 invalid_request: POST {m}/files/write {"path": "/workspace/a/../.nullspace/x", "content": ""}"#,
    r#"400 invalid_request: POST {m}/files/write {"path": "/x", "content": "?", "encoding": "base64"}"#,
    r#"400 invalid_request: POST {m}/files/write {"path": "/x", "content": "", "encoding": "rot13"}"#,
    r#"403 permission_denied: POST {m}/files/write {"path": "/usr/x", "content": ""}"#,
    r#"404 not_found: POST {m}/files/rename {"old_path": "/none", "new_path": "/x"}"#,
    r#"404 not_found: POST {m}/files/remove {"path": "/none"}"#,
    r#"404 not_found: POST {m}/files/info {"path": "/none"}"#,
    r#"400 invalid_request: POST {m}/files/permissions {"path": "/tmp", "permissions": "rwx"}"#,
    r#"400 invalid_request: POST {m}/files/batch-write {}"#,
    r#"400 invalid_request: POST {m}/files/find {"path": "/etc", "pattern": "("}"#,
    r#"404 not_found: POST {m}/files/find {"path": "/none", "pattern": "x"}"#,
    r#"400 invalid_request: POST {m}/files/find {"path": "/etc"}"#,
    r#"400 invalid_request: POST {m}/files/search {"path": "/etc", "pattern": "[z-a]"}"#,
    r#"404 not_found: POST {m}/files/search {"path": "/none", "pattern": "*"}"#,
    r#"400 invalid_request: POST {m}/files/replace {"files": ["/etc/none"], "pattern": "(", "replacement": ""}"#,
    r#"404 not_found: POST {m}/files/replace {"files": ["/none"], "pattern": "x", "replacement": ""}"#,
    r#"404 not_found: POST {m}/files/download-url {"path": "/none"}"#,
    r#"400 invalid_request: POST {m}/files/download-url {"path": "/etc"}"#,
    r#"400 invalid_request: POST {m}/files/upload-url {"path": ""}"#,
    r#"400 invalid_request: GET {m}/file?path=/etc/passwd&archive_format=tar"#,
    r#"403 permission_denied: POST {m}/uploads {"kind": "file", "source_kind": "restartable_file", "target_path": "/usr/x", "content_length": 1}"#,
    r#"413 file_upload_error: POST {m}/uploads {"kind": "file", "source_kind": "restartable_file", "target_path": "/x", "content_length": 1099511627776}"#,
    r#"404 not_found: GET {m}/uploads/upl_none"#,
    // Git.
    r#"404 not_found: GET {m}/git/status?path=/none"#,
    r#"409 git_not_a_repository: GET {m}/git/status?path=/etc"#,
    r#"400 invalid_request: GET {m}/git/log?path=/etc&limit=0"#,
    r#"400 invalid_request: POST {m}/git/clone {"url": "ext::true", "path": "/x"}"#,
    r#"400 invalid_request: POST {m}/git/clone {"url": "https://h/x", "path": "/x", "auth": {"kind": "none"}}"#,
    r#"409 git_exists_conflict: POST {m}/git/clone {"url": "https://h/x", "path": "/etc"}"#,
    r#"400 invalid_request: POST {m}/git/branch {"path": "/etc", "name": "-x"}"#,
    r#"409 git_not_a_repository: POST {m}/git/commit {"path": "/etc", "message": "x"}"#,
    // Agent Deployments.
    r#"400 invalid_request: POST /v1/agent-deployments {}"#,
    r#"400 invalid_request: POST /v1/agent-deployments {"name": "x", "mode": "worker"}"#,
    r#"400 invalid_request: POST /v1/agent-deployments {"name": "", "mode": "job"}"#,
    r#"409 agent_deployment_name_conflict: POST /v1/agent-deployments {"name": "given", "mode": "job"}"#,
    r#"400 invalid_request: GET /v1/agent-deployments?limit=0"#,
    r#"404 agent_deployment_not_found: GET /v1/agent-deployments/none"#,
    r#"404 agent_deployment_not_found: DELETE /v1/agent-deployments/none"#,
    r#"404 agent_deployment_not_found: POST /v1/agent-deployments/none/runs {"input": {}}"#,
    r#"409 conflict: POST {d}/runs {"input": {}}"#,
    r#"404 agent_version_not_found: POST {d}/runs {"version_id": "adver_none"}"#,
    r#"404 agent_run_not_found: GET {d}/runs/adrun_none"#,
    r#"404 agent_run_not_found: GET {d}/runs/adrun_none/logs"#,
    r#"404 agent_version_not_found: GET {d}/versions/adver_none"#,
    r#"400 invalid_request: POST {d}/versions {}"#,
    r#"404 agent_version_not_found: PUT {d}/versions/adver_none/bundle {}"#,
];

/// Everything that a request may leave behind: on record and on disk.
async fn all(world: &World) -> (BTreeSet<String>, Value, Vec<String>) {
    let mut files = Vec::new();
    for part in ["machines", "bundles", "outputs"] {
        for entry in std::fs::read_dir(world.data().join(part)).unwrap() {
            files.push(format!("{part}/{}", entry.unwrap().file_name().display()));
        }
    }
    files.sort();
    let (_, deployments) = world.get("/v1/agent-deployments").await;
    (world.listed().await, deployments, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table() {
    let world = World::native().await;
    let machine = world
        .machine(json!({"template": "host", "memory_mb": 128}))
        .await;
    let given = json!({"name": "given", "mode": "job"});
    let (_, deployment) = world.post("/v1/agent-deployments", given).await;
    let deployment = deployment["id"].as_str().unwrap();
    let before = all(&world).await;
    let mut wrong = Vec::new();
    for line in TABLE {
        let (refused, rest) = line.split_once(": ").unwrap();
        let (method, rest) = rest.split_once(' ').unwrap();
        let (path, body) = rest.split_once(' ').unwrap_or((rest, ""));
        let path = path
            .replace("{m}", &format!("/v1/machines/{machine}"))
            .replace("{d}", &format!("/v1/agent-deployments/{deployment}"));
        let body = body
            .replace("{2M}", &"x".repeat(2 << 20))
            .replace("{80K}", &"x".repeat(80 << 10));
        let request = world
            .request(Method::from_bytes(method.as_bytes()).unwrap(), &path)
            .header("content-type", "application/json")
            .body(body);
        let (got, answer) = answer(request).await;
        let whole = answer["request_id"].is_string()
            && answer["error"]
                .as_str()
                .is_some_and(|text| !text.is_empty());
        let told = answer["code"].as_str().unwrap_or_default();
        if format!("{} {told}", got.as_u16()) != refused || !whole {
            wrong.push(format!("{line}\n  {got} {answer}"));
        }
        let after = all(&world).await;
        assert_eq!(before, after, "{line} left something behind");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.out(&machine, "echo well").await, "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_without_a_key() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    let good = crate::world::KEY;
    let truncated = &good[..good.len() - 1];
    for header in [
        None,
        Some(String::new()),
        Some("Bearer".into()),
        Some("Bearer ".into()),
        Some("Bearer wrong".into()),
        Some(format!("Bearer {truncated}")),
        Some(format!("Bearer {good}x")),
        Some(format!("Basic {good}")),
        Some(good.to_owned()),
    ] {
        for (method, path) in [
            (Method::GET, "/v1/machines".to_owned()),
            (Method::POST, "/v1/machines".to_owned()),
            (Method::DELETE, format!("/v1/machines/{id}")),
            (Method::POST, format!("/v1/sandboxes/{id}/exec")),
            (
                Method::GET,
                format!("/v1/machines/{id}/file?path=/etc/passwd"),
            ),
            (Method::GET, "/v1/agent-deployments".to_owned()),
            (Method::GET, "/v1/nothing".to_owned()),
        ] {
            let url = format!("{}{path}", world.base_url());
            let mut request = reqwest::Client::new().request(method.clone(), url);
            let body = json!({"template": "host", "command": "true"});
            if method == Method::POST {
                request = request.json(&body);
            }
            if let Some(header) = &header {
                request = request.header("authorization", header);
            }
            let (status, body) = answer(request).await;
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::UNAUTHORIZED, &json!("unauthorized")),
                "{method} {path} {header:?}"
            );
        }
    }
    assert_eq!(world.listed().await, [id].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_one_request() {
    let world = World::start().await;
    let create = async |prefix: &str, key: &str, body: Value| {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", key.parse().unwrap());
        let path = format!("/v1/{prefix}");
        answer(
            world
                .request(Method::POST, &path)
                .headers(headers)
                .json(&body),
        )
        .await
    };
    let body = json!({"template": "host", "envs": {"A": "one"}});
    let (status, first) = create("machines", "a", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{first}");
    // However it is spelled, and however often.
    for prefix in ["machines", "sandboxes", "machines"] {
        let (status, again) = create(prefix, "a", body.clone()).await;
        assert_eq!((status, &again["id"]), (StatusCode::CREATED, &first["id"]));
    }
    for other in [
        json!({"template": "host", "envs": {"A": "two"}}),
        json!({"template": "base", "envs": {"A": "one"}}),
        json!({}),
    ] {
        let (status, refused) = create("machines", "a", other).await;
        assert_eq!(
            (status, &refused["code"]),
            (StatusCode::CONFLICT, &json!("idempotency_conflict"))
        );
    }
    for key in ["", &"k".repeat(256)] {
        let (status, refused) = create("machines", key, body.clone()).await;
        assert_eq!(
            (status, &refused["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request"))
        );
    }
    // A request that failed does not use its key up.
    let (status, _) = create("machines", "b", json!({"template": "nothing"})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, second) = create("machines", "b", body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{second}");
    let ids = [&first, &second].map(|made| made["id"].as_str().unwrap().to_owned());
    assert_eq!(world.listed().await, ids.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so_and_has_room_again() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), "[limits]\nmax_machines = 2\n").unwrap();
    let world = World::with(&["--config", settings.path().to_str().unwrap()]).await;
    let body = json!({"template": "host"});
    let first = world.machine(body.clone()).await;
    let second = world.machine(body.clone()).await;
    for _ in 0..3 {
        let request = world.request(Method::POST, "/v1/machines").json(&body);
        let refused = request.send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let seconds = refused.headers()["retry-after"].to_str().unwrap();
        assert!(seconds.parse::<u32>().is_ok(), "{seconds}");
        let refused: Value = refused.json().await.unwrap();
        assert_eq!(refused["code"], "capacity_exceeded");
    }
    assert_eq!(
        world.settled().await,
        [first.clone(), second.clone()].into()
    );
    world.delete(&format!("/v1/machines/{first}")).await;
    let third = world.machine(body).await;
    assert_eq!(world.settled().await, [second, third].into());
}

/// A caller that is still sending when it is refused gets to read why, and goes on with the same connection.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_reach_who_is_still_sending() {
    let world = World::start().await;
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(1)
        .build()
        .unwrap();
    let url = |path: &str| format!("{}{path}", world.base_url());
    let large = "x".repeat(8 << 20);
    for _ in 0..20 {
        for (method, path, key, refused) in [
            (Method::POST, "/v1/machines", crate::world::KEY, 413),
            (Method::POST, "/v1/machines", "wrong", 401),
            (
                Method::PUT,
                "/v1/machines/mch_none/file?path=/x",
                crate::world::KEY,
                404,
            ),
            (Method::PUT, "/v1/nothing", crate::world::KEY, 404),
        ] {
            let request = client
                .request(method, url(path))
                .bearer_auth(key)
                .body(large.clone());
            let status = request.send().await.unwrap().status();
            assert_eq!(status.as_u16(), refused, "{path}");
            let health = client.get(url("/healthz")).send().await.unwrap();
            assert_eq!(health.status(), StatusCode::OK);
        }
    }
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
    // Natively: the guest's program, which other machines need a copy of, would not fit.
    let world = World::on(disk.0.path(), &["--isolation", "native"]).await;
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

//! Machines over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use common::{World, answer};
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_and_dies() {
    let world = World::new().await;
    let (status, body) = world
        .post(
            "/v1/sandboxes",
            // What the published client always sends, nulls and all.
            json!({
                "template": "base", "vcpus": 2, "memory_mb": 512, "timeout_ms": 300_000,
                "auto_resume": false, "envs": {"GREETING": "hello"}, "metadata": {"team": "a"},
                "network": null, "internet_access": true, "cwd": null, "desktop": null, "volumes": null,
            }),
        )
        .await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    assert_eq!(body["status"], "running");
    assert_eq!(body["config"], json!({"vcpus": 2, "memory_mb": 512}));
    assert_eq!(body["timeout_action"], "destroy");
    assert_eq!(body["expires_at"], body["timeout_at"]);
    let id = body["id"].as_str().unwrap().to_owned();

    let ran = world
        .exec(
            &id,
            json!({"command": "echo $GREETING $FROM_TEMPLATE $1; pwd", "args": ["x"], "shell": true, "timeout_secs": 30, "background": false}),
        )
        .await;
    assert_eq!(ran["exit_code"], 0, "{ran}");
    assert!(ran["stdout"].as_str().unwrap().starts_with("hello yes x\n"));
    assert!(ran["stdout"].as_str().unwrap().contains("/workspace"));

    let (status, body) = world.delete(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(
        (status, body),
        (StatusCode::OK, json!({"id": id, "status": "destroyed"}))
    );
    let (status, _) = world.delete(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(world.status(&id).await, "destroyed");
    // The last one is written behind the caller's back.
    let mut told = world.events(&id).await;
    for _ in 0..200 {
        if told.len() == 4 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        told = world.events(&id).await;
    }
    assert_eq!(
        told,
        [
            "create/requested",
            "create/succeeded",
            "destroy/requested",
            "destroy/succeeded"
        ]
    );
    let (status, body) = world
        .post(
            &format!("/v1/sandboxes/{id}/exec"),
            json!({"command": "true"}),
        )
        .await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(body["code"], "sandbox_not_ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_out_of_the_record() {
    let world = World::new().await;
    let secret = "do-not-write-me-down";
    let request = world
        .request(Method::POST, "/v1/machines")
        .header("idempotency-key", "k")
        .json(&json!({"envs": {"TOKEN": secret}}));
    let (status, _) = answer(request).await;
    assert_eq!(status, StatusCode::CREATED);
    for entry in std::fs::read_dir(world.data.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_keys() {
    let mut world = World::new().await;
    let create = |body: Value, path: &str| {
        answer(
            world
                .request(Method::POST, path)
                .header("idempotency-key", "one")
                .json(&body),
        )
    };
    let (_, first) = create(json!({"metadata": {"a": 1, "b": 2}}), "/v1/machines").await;
    let (status, second) = create(json!({"metadata": {"b": 2, "a": 1}}), "/v1/sandboxes").await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(first["id"], second["id"]);
    let (status, body) = create(json!({"metadata": {"a": 2}}), "/v1/machines").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(body["code"], "idempotency_conflict");
    let (_, list) = world.get("/v1/machines").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);

    // Also after a restart, and truthfully once the machine is gone.
    world.restart().await;
    let id = first["id"].as_str().unwrap().to_owned();
    world.delete(&format!("/v1/machines/{id}")).await;
    let again = world
        .request(Method::POST, "/v1/machines")
        .header("idempotency-key", "one")
        .json(&json!({"metadata": {"a": 1, "b": 2}}));
    let (_, replayed) = answer(again).await;
    assert_eq!(replayed["id"], first["id"]);
    assert_eq!(replayed["status"], "destroyed");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_with_one_key_make_one_machine() {
    let world = World::new().await;
    let requests = (0..12).map(|_| {
        answer(
            world
                .request(Method::POST, "/v1/machines")
                .header("idempotency-key", "same")
                .json(&json!({})),
        )
    });
    let answers = futures_util::future::join_all(requests).await;
    let mut ids: Vec<&str> = Vec::new();
    for (status, body) in &answers {
        match *status {
            StatusCode::CREATED => ids.push(body["id"].as_str().unwrap()),
            _ => assert_eq!(body["code"], "transition_in_progress"),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    let (_, list) = world.get("/v1/machines").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits() {
    let world = World::new().await;
    let (_, body) = world
        .post("/v1/machines", json!({"timeout_ms": 60_000}))
        .await;
    let id = body["id"].as_str().unwrap();
    let (status, body) = world
        .post(
            &format!("/v1/machines/{id}/timeout"),
            json!({"timeout_ms": 50}),
        )
        .await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["timeout_ms"], 50);
    assert_eq!(body["timeout_action"], "destroy");
    assert!(body["remaining_ms"].as_u64().unwrap() <= 50);
    world.until(id, "destroyed").await;
    assert_eq!(
        world.events(id).await[2..6],
        [
            "timeout_updated/succeeded",
            "timeout_expired/requested",
            "timeout_expired/succeeded",
            "destroy/requested"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_page_filter_and_project() {
    let world = World::new().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let (_, body) = world
            .post(
                "/v1/machines",
                json!({"metadata": {"n": n, "odd": n % 2 == 1}}),
            )
            .await;
        ids.push(body["id"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    let mut seen = Vec::new();
    let mut path = "/v1/machines?limit=2".to_owned();
    loop {
        let (status, page) = world.get(&path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        for item in page["items"].as_array().unwrap() {
            seen.push(item["id"].as_str().unwrap().to_owned());
        }
        let Some(token) = page["next_token"].as_str() else {
            assert_eq!(page["has_next"], false);
            break;
        };
        assert_eq!(page["has_next"], true);
        path = format!("/v1/machines?limit=2&next_token={token}");
    }
    assert_eq!(seen, ids);
    world.delete(&format!("/v1/machines/{}", ids[0])).await;
    let count = async |path: &str| {
        let (status, page) = world.get(path).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count("/v1/machines").await, 4);
    assert_eq!(count("/v1/machines?state=destroyed").await, 1);
    assert_eq!(count("/v1/machines?state=running,destroyed").await, 5);
    assert_eq!(
        count("/v1/machines?metadata=%7B%22odd%22%3Atrue%7D").await,
        2
    );
    assert_eq!(count("/v1/machines?template=other").await, 0);
    let (_, page) = world.get("/v1/machines?fields=id,status,id&limit=1").await;
    assert_eq!(page["items"], json!([{"id": ids[1], "status": "running"}]));
    let (_, one) = world
        .get(&format!("/v1/sandboxes/{}?fields=config", ids[1]))
        .await;
    assert_eq!(one, json!({"config": {"vcpus": 1, "memory_mb": 512}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_outlive_the_server() {
    let mut world = World::new().await;
    let stays = world.machine().await;
    let vanishes = world.machine().await;
    let pid = world
        .exec(
            &stays,
            json!({"command": "sleep", "args": ["100"], "background": true}),
        )
        .await["pid"]
        .clone();
    world.stop().await;
    world.engine.crash(&vanishes);
    world.start().await;
    assert_eq!(world.status(&stays).await, "running");
    let (_, processes) = world.get(&format!("/v1/machines/{stays}/processes")).await;
    assert_eq!(
        processes,
        json!([{"pid": pid, "command": "sleep 100", "running": true}])
    );
    let (_, gone) = world.get(&format!("/v1/machines/{vanishes}")).await;
    assert_eq!(gone["status"], "error");
    assert_eq!(gone["failure_reason"], "gone_at_start");
    assert_eq!(
        world.events(&vanishes).await.last().unwrap(),
        "reconcile/failed"
    );
    // An error can be deleted like anything else.
    let (status, _) = world.delete(&format!("/v1/machines/{vanishes}")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(world.status(&vanishes).await, "destroyed");
}

/// A server that is killed between ending a machine and saying so: the next one says it, once.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_machine_is_always_told() {
    let mut world = World::new().await;
    let id = world.machine().await;
    let lives = world.machine().await;
    world.delete(&format!("/v1/machines/{id}")).await;
    let whole = [
        "create/requested",
        "create/succeeded",
        "destroy/requested",
        "destroy/succeeded",
    ];
    until_told(&world, &id, &whole).await;
    let store = &world.server.as_ref().unwrap().app().store;
    store
        .write(|tx| {
            let last = "DELETE FROM event WHERE operation = 'destroy' AND status = 'succeeded'";
            Ok::<_, nullspace_store::StoreError>(tx.execute(last, ()).map(drop)?)
        })
        .await
        .unwrap();
    for _ in 0..2 {
        world.restart().await;
        world.exec(&lives, json!({"command": "true"})).await;
        until_told(&world, &id, &whole).await;
        assert_eq!(world.events(&lives).await, whole[..2]);
    }
}

async fn until_told(world: &World, id: &str, events: &[&str]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let told = world.events(id).await;
        if told == events {
            return;
        }
        let is_more = told.len() > events.len();
        assert!(!is_more && std::time::Instant::now() < deadline, "{told:?}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_are_ended_at_start() {
    use nullspace_engine::{Engine, MachineSpec};
    let mut world = World::new().await;
    world.stop().await;
    let spec = MachineSpec {
        id: "mch_stray".into(),
        hostname: "stray".into(),
        lower: vec![world.layer.path().to_owned()],
        binds: Vec::new(),
        env: Default::default(),
        cwd: "/workspace".into(),
        cpu_millis: 1000,
        memory_bytes: 64 << 20,
        pids_max: 64,
        disk_bytes: None,
        egress: nullspace_engine::egress::Rules::deny_all(),
        engine: None,
    };
    world.engine.create(&spec).await.unwrap();
    world.start().await;
    assert!(world.engine.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_ends_by_itself_is_an_error() {
    let world = World::new().await;
    let id = world.machine().await;
    world.engine.crash(&id);
    world.until(&id, "error").await;
    let (_, body) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(body["failure_reason"], "guest_ended");
    let (_, list) = world.get("/v1/machines?state=error").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_machines_holds_and_frees() {
    let world = World::with(Config {
        max_machines: 2,
        ..Config::default()
    })
    .await;
    let first = world.machine().await;
    world.machine().await;
    let (status, body) = world.post("/v1/machines", json!({})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(body["code"], "capacity_exceeded");
    world.delete(&format!("/v1/machines/{first}")).await;
    let mut created = false;
    for _ in 0..50 {
        let (status, _) = world.post("/v1/machines", json!({})).await;
        created = status == StatusCode::CREATED;
        if created {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(created);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_keys_and_the_second_server() {
    use nullspace_server::{ServeError, Server};
    let world = World::new().await;
    let (status, body) = answer(world.client.get(world.url("/healthz"))).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["status"], "ok");
    let engine: std::sync::Arc<dyn nullspace_engine::Engine> = world.engine.clone();
    let second = Server::start(world.options(), engine.clone()).await;
    assert!(matches!(second, Err(ServeError::InUse(_))));

    // Without any key one is minted, handed over, and not kept in the clear.
    let data = tempfile::tempdir().unwrap();
    let (sender, minted) = std::sync::mpsc::channel();
    let mut options = world.options();
    options.data_dir = data.path().to_owned();
    options.bootstrap_key = None;
    options.on_minted_key =
        Box::new(move |key| sender.send(key.to_owned()).map_err(std::io::Error::other));
    let engine = std::sync::Arc::new(nullspace_engine::fake::FakeEngine::new().unwrap());
    let server = Server::start(options, engine).await.unwrap();
    let key = minted.recv().unwrap();
    let url = format!("http://{}/v1/sandboxes?limit=1", server.address());
    let (status, _) = answer(world.client.get(&url).bearer_auth(&key)).await;
    assert_eq!(status, StatusCode::OK);
    let (status, body) = answer(world.client.get(&url).bearer_auth("ns_live_wrong")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["code"], "unauthorized");
    server.stop().await;
    let db = std::fs::read(data.path().join("nullspace.db")).unwrap();
    assert!(!db.windows(key.len()).any(|w| w == key.as_bytes()));
}

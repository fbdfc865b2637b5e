//! Warm pools over real HTTP, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::HashSet, time::Duration};

use common::{World, answer};
use nullspace_engine::Engine;
use nullspace_server::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const POOLS: &str = "/v1/template-warm-pools";

fn request(min: u32, max: u32) -> Value {
    json!({
        "template_ref": "base", "name": "a pool", "min_ready": min, "max_ready": max,
        "resources": {"vcpus": 1, "memory_mb": 512},
    })
}

async fn pool(world: &World, body: Value) -> String {
    let (status, made) = world.post(POOLS, body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn info(world: &World, id: &str) -> Value {
    let (status, body) = world.get(&format!("{POOLS}/{id}")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

async fn act(world: &World, id: &str, verb: &str) -> Value {
    let (status, body) = world.post(&format!("{POOLS}/{id}/{verb}"), json!({})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

async fn patch(world: &World, id: &str, body: Value) -> (StatusCode, Value) {
    let path = format!("{POOLS}/{id}");
    answer(world.request(Method::PATCH, &path).json(&body)).await
}

/// Waits until a pool is as it should be.
async fn until(world: &World, id: &str, what: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..400 {
        let body = info(world, id).await;
        if what(&body) {
            return body;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the pool did not get there: {:#}", info(world, id).await);
}

async fn ready(world: &World, id: &str, count: u64) -> Value {
    until(world, id, |body| {
        body["status"]["ready"] == count && body["status"]["warming"] == 0
    })
    .await
}

/// A machine, and how it was come by.
async fn take(world: &World, id: &str, mode: &str, more: Value) -> (StatusCode, Value) {
    let mut body = json!({"warm_pool": {"id": id, "mode": mode}});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    world.post("/v1/machines", body).await
}

async fn alive(world: &World) -> HashSet<String> {
    let machines = world.engine.list().await.unwrap();
    machines.into_iter().map(|one| one.id).collect()
}

async fn until_alive(world: &World, count: usize) {
    for _ in 0..400 {
        if alive(world).await.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("alive: {:?}, not {count}", alive(world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_of_a_pool_becomes_one_like_any_other() {
    let world = World::new().await;
    let id = pool(&world, request(2, 3)).await;
    let before = ready(&world, &id, 2).await;
    assert_eq!(before["state"], "enabled");
    assert_eq!(before["resolved_template"], "base");
    assert_eq!(before["rollout_generation"], 1);
    assert_eq!(before["rollout_status"]["current_counts"]["ready"], 2);
    let waiting = alive(&world).await;
    let (_, list) = world.get("/v1/machines").await;
    assert_eq!(list["items"], json!([]), "they are nobody's yet");
    for one in &waiting {
        let (status, _) = world.get(&format!("/v1/machines/{one}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let path = format!("/v1/machines/{one}/exec");
        let (status, _) = world.post(&path, json!({"command": "id"})).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let (status, _) = world.delete(&format!("/v1/machines/{one}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }

    let (status, volume) = world.post("/v1/volumes", json!({"name": "data"})).await;
    assert!(status.is_success(), "{volume}");
    let own = json!({
        "envs": {"WHO": "me"}, "metadata": {"a": 1}, "cwd": "/work/here", "timeout_ms": 60_000,
        "internet_access": false, "volumes": [{"ref": "data", "mount_path": "/data"}],
    });
    let (status, made) = take(&world, &id, "require", own).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let machine = made["id"].as_str().unwrap();
    assert!(waiting.contains(machine));
    assert_eq!(
        made["warm_pool_checkout"],
        json!({"source": "ready_instance", "hit": true, "id": id, "mode": "require"})
    );
    assert_eq!(made["status"], "running");
    assert_eq!(made["metadata"]["a"], 1);
    assert_eq!(
        made["metadata"]["volume_attachments"][0]["state"],
        "mounted"
    );
    assert_eq!(
        (&made["cwd"], &made["timeout_ms"]),
        (&json!("/work/here"), &json!(60_000))
    );
    assert_eq!(made["internet_access"], false);
    let ran = world
        .exec(
            machine,
            json!({"command": "echo $WHO $FROM_TEMPLATE; pwd; echo kept > /data/x", "shell": true}),
        )
        .await;
    let said = ran["stdout"].as_str().unwrap();
    assert!(
        said.starts_with("me yes\n") && said.trim_end().ends_with("/work/here"),
        "{said}"
    );
    assert!(!world.engine.egress(machine).unwrap().is_open());
    assert_eq!(
        world.events(machine).await[..2],
        ["create/requested", "create/succeeded"]
    );
    let after = ready(&world, &id, 2).await;
    assert_eq!(after["status"]["claimed"], 1);
    // It is not the pool's again, whatever becomes of it.
    world.delete(&format!("/v1/machines/{machine}")).await;
    let after = ready(&world, &id, 2).await;
    assert_eq!(after["status"]["claimed"], 0);
    until_alive(&world, 2).await;
    assert!(!alive(&world).await.contains(machine));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_told_and_costs_a_cold_create() {
    let world = World::new().await;
    let id = pool(&world, request(0, 2)).await;
    let (status, made) = take(&world, &id, "prefer", json!({})).await;
    assert_eq!(status, StatusCode::CREATED);
    let told = &made["warm_pool_checkout"];
    assert_eq!(
        (&told["source"], &told["hit"]),
        (&json!("cold_create"), &json!(false))
    );
    let (status, said) = take(&world, &id, "require", json!({})).await;
    assert_eq!(
        (status, &said["code"]),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            &json!("warm_pool_unavailable")
        )
    );
    // Who waits has one made, although none is kept.
    let waits = json!({"warm_pool": {"id": id, "mode": "require", "wait_ms": 20_000}});
    let (status, made) = world.post("/v1/machines", waits).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["warm_pool_checkout"]["source"], "ready_instance");
    assert_eq!(made["warm_pool_checkout"]["wait_ms"], 20_000);
    let (status, made) = take(&world, &id, "bypass", json!({})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(made["warm_pool_checkout"]["source"], "bypassed");
    // Template and size are the pool's, where nothing else is said.
    assert_eq!(made["config"], json!({"vcpus": 1, "memory_mb": 512}));

    let other = json!({"vcpus": 2});
    let (status, made) = take(&world, &id, "prefer", other.clone()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(made["warm_pool_checkout"]["source"], "cold_create");
    assert!(
        made["warm_pool_checkout"]["reason"]
            .as_str()
            .unwrap()
            .contains("vcpus")
    );
    let (status, said) = take(&world, &id, "require", other).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("warm_pool_conflict"))
    );

    // What a pool says counts for requests that say nothing.
    patch(&world, &id, json!({"checkout_policy": "require"})).await;
    let (status, _) = world
        .post("/v1/machines", json!({"warm_pool": {"id": id}}))
        .await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_never_get_the_same() {
    let world = World::new().await;
    let id = pool(&world, request(5, 5)).await;
    ready(&world, &id, 5).await;
    let asked = (0..12).map(|n| {
        let world = &world;
        let id = &id;
        async move {
            let own = json!({"envs": {"N": n.to_string()}});
            let (status, made) = take(world, id, "prefer", own).await;
            assert_eq!(status, StatusCode::CREATED, "{made}");
            let machine = made["id"].as_str().unwrap().to_owned();
            let ran = world
                .exec(&machine, json!({"command": "echo $N", "shell": true}))
                .await;
            assert_eq!(ran["stdout"], format!("{n}\n"));
            (machine, made["warm_pool_checkout"]["hit"] == true)
        }
    });
    let got = futures_util::future::join_all(asked).await;
    let ids: HashSet<&String> = got.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 12);
    assert!(got.iter().filter(|(_, hit)| *hit).count() >= 5);
    ready(&world, &id, 5).await;
    until_alive(&world, 17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_are_scaled_drained_disabled_enabled_and_deleted() {
    let world = World::new().await;
    let id = pool(&world, request(3, 3)).await;
    ready(&world, &id, 3).await;
    let (status, _) = patch(&world, &id, json!({"min_ready": 1, "max_ready": 1})).await;
    assert_eq!(status, StatusCode::OK);
    ready(&world, &id, 1).await;
    until_alive(&world, 1).await;
    patch(&world, &id, json!({"max_ready": 2, "min_ready": 2})).await;
    ready(&world, &id, 2).await;
    let (_, made) = take(&world, &id, "require", json!({})).await;
    let machine = made["id"].as_str().unwrap().to_owned();

    let drained = act(&world, &id, "drain").await;
    assert!(drained["drain_requested_at"].is_string());
    let drained = until(&world, &id, |body| body["state"] == "disabled").await;
    assert_eq!(drained["degraded_reason"], "controller_disabled");
    assert_eq!(
        (&drained["status"]["ready"], &drained["status"]["claimed"]),
        (&json!(0), &json!(1))
    );
    // It answers at once with what it can do, however long one would wait.
    let waits = |mode: &str| json!({"warm_pool": {"id": id, "mode": mode, "wait_ms": 30_000}});
    let begun = std::time::Instant::now();
    let (status, made) = world.post("/v1/machines", waits("prefer")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(made["warm_pool_checkout"]["source"], "cold_create");
    let (status, said) = world.post("/v1/machines", waits("require")).await;
    assert_eq!(
        (status, &said["code"]),
        (
            StatusCode::SERVICE_UNAVAILABLE,
            &json!("warm_pool_unavailable")
        )
    );
    assert!(begun.elapsed() < Duration::from_secs(25), "it did not wait");

    let enabled = act(&world, &id, "enable").await;
    assert_eq!(
        (&enabled["state"], &enabled["drain_requested_at"]),
        (&json!("enabled"), &Value::Null)
    );
    ready(&world, &id, 2).await;
    act(&world, &id, "disable").await;
    ready(&world, &id, 0).await;
    act(&world, &id, "enable").await;
    ready(&world, &id, 2).await;

    let path = format!("{POOLS}/{id}");
    let (status, gone) = world.delete(&path).await;
    assert_eq!(
        (status, &gone["state"]),
        (StatusCode::OK, &json!("deleted"))
    );
    assert!(gone["deleted_at"].is_string());
    ready(&world, &id, 0).await;
    assert_eq!(
        world.status(&machine).await,
        "running",
        "what was handed out goes on"
    );
    assert_eq!(world.get(POOLS).await.1["items"], json!([]));
    let (_, list) = world.get(&format!("{POOLS}?state=deleted")).await;
    assert_eq!(list["items"][0]["id"], *id);
    let (status, said) = world.post(&format!("{path}/enable"), json!({})).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("warm_pool_conflict"))
    );
    let (status, said) = take(&world, &id, "prefer", json!({})).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::NOT_FOUND, &json!("warm_pool_not_found"))
    );
    until_alive(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_end_or_grow_old_are_replaced() {
    let world = World::new().await;
    let mut body = request(2, 2);
    body["stale_after_seconds"] = json!(1);
    let id = pool(&world, body).await;
    ready(&world, &id, 2).await;
    let first = alive(&world).await;
    // They grow old, and others take their place.
    for _ in 0..800 {
        if alive(&world).await.is_disjoint(&first) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(alive(&world).await.is_disjoint(&first));
    patch(&world, &id, json!({"stale_after_seconds": 900})).await;
    ready(&world, &id, 2).await;
    until_alive(&world, 2).await;
    let one = alive(&world).await.into_iter().next().unwrap();
    world.engine.crash(&one);
    let is_replaced = async || {
        let now = alive(&world).await;
        now.len() == 2 && !now.contains(&one)
    };
    for _ in 0..400 {
        if is_replaced().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_replaced().await, "{:?}", alive(&world).await);
    ready(&world, &id, 2).await;
    assert!(!alive(&world).await.contains(&one));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gets_the_same_machine_whatever_the_pool_has() {
    let world = World::new().await;
    let id = pool(&world, request(1, 1)).await;
    ready(&world, &id, 1).await;
    let body = json!({"warm_pool": {"id": id, "mode": "require"}});
    let ask = |body: Value| {
        let request = world.request(Method::POST, "/v1/machines");
        answer(request.header("idempotency-key", "k").json(&body))
    };
    let (status, made) = ask(body.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    act(&world, &id, "disable").await;
    let (status, again) = ask(body).await;
    assert_eq!((status, &again["id"]), (StatusCode::CREATED, &made["id"]));
    assert_eq!(again["warm_pool_checkout"], made["warm_pool_checkout"]);
    let (status, said) = ask(json!({"warm_pool": {"id": id, "mode": "prefer"}})).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("idempotency_conflict"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_outlives_the_server_with_its_machines() {
    let mut world = World::new().await;
    let id = pool(&world, request(2, 2)).await;
    ready(&world, &id, 2).await;
    let (_, made) = take(
        &world,
        &id,
        "require",
        json!({"envs": {"A": "not-for-the-record"}}),
    )
    .await;
    let machine = made["id"].as_str().unwrap().to_owned();
    ready(&world, &id, 2).await;
    let before = alive(&world).await;
    world.restart().await;
    let after = ready(&world, &id, 2).await;
    assert_eq!(after["status"]["claimed"], 1);
    assert_eq!(alive(&world).await, before);
    assert_eq!(world.status(&machine).await, "running");
    let ran = world
        .exec(&machine, json!({"command": "echo $A", "shell": true}))
        .await;
    assert_eq!(ran["stdout"], "not-for-the-record\n");
    let (status, made) = take(&world, &id, "require", json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    for entry in std::fs::read_dir(world.data.path()).unwrap().flatten() {
        if entry.path().is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(
                !bytes.windows(18).any(|w| w == b"not-for-the-record"),
                "{entry:?}"
            );
        }
    }
    // One that dies while no server looks is replaced.
    ready(&world, &id, 2).await;
    world.stop().await;
    let lost = alive(&world)
        .await
        .difference(&before)
        .next()
        .unwrap()
        .clone();
    world.engine.destroy(&lost).await.unwrap();
    world.start().await;
    ready(&world, &id, 2).await;
    assert!(!alive(&world).await.contains(&lost));
}

/// What the server before this one was about when it died: the record as it was at that moment.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_is_ended_and_nothing_is_doubled() {
    let mut world = World::new().await;
    let id = pool(&world, request(3, 3)).await;
    ready(&world, &id, 3).await;
    let ask = |world: &World, key: &str| {
        let body = json!({"warm_pool": {"id": id, "mode": "prefer"}, "envs": {"A": key}});
        let request = world.request(Method::POST, "/v1/machines");
        answer(request.header("idempotency-key", key).json(&body))
    };
    let (_, whole) = ask(&world, "whole").await;
    let (_, half) = ask(&world, "half").await;
    let whole = whole["id"].as_str().unwrap().to_owned();
    let half = half["id"].as_str().unwrap().to_owned();
    ready(&world, &id, 3).await;
    world.stop().await;
    let mut waiting = alive(&world).await;
    waiting.remove(&whole);
    waiting.remove(&half);
    let waiting: Vec<String> = waiting.into_iter().collect();
    let database = world.data.path().join("nullspace.db");
    let db = nullspace_store::rusqlite::Connection::open(&database).unwrap();
    let is = |id: &str, state: &str| {
        let sql = "UPDATE warm_instance SET state = ?2 WHERE machine_id = ?1";
        assert_eq!(db.execute(sql, [id, state]).unwrap(), 1);
    };
    // One was on its way, one was being let go, one waits.
    is(&waiting[0], "warming");
    is(&waiting[1], "releasing");
    // Two were being handed out: one has what is its own, the other is as it waited.
    is(&whole, "claimed");
    is(&half, "claimed");
    db.execute("DELETE FROM event WHERE status = 'succeeded'", [])
        .unwrap();
    let spec = nullspace_engine::MachineSpec {
        id: half.clone(),
        hostname: half.replace('_', "-"),
        lower: vec![world.layer.path().to_owned()],
        binds: Vec::new(),
        env: std::collections::BTreeMap::new(),
        cwd: "/workspace".to_owned(),
        cpu_millis: 1000,
        memory_bytes: 512 << 20,
        pids_max: 100,
        disk_bytes: None,
        egress: nullspace_engine::egress::Rules::default(),
        engine: None,
    };
    world.engine.destroy(&half).await.unwrap();
    world.engine.create(&spec).await.unwrap();
    drop(db);
    world.start().await;
    ready(&world, &id, 3).await;
    until_alive(&world, 4).await;
    let now = alive(&world).await;
    assert!(now.contains(&whole) && now.contains(&waiting[2]), "{now:?}");
    assert!(!now.contains(&half) && !now.contains(&waiting[0]) && !now.contains(&waiting[1]));
    assert_eq!(world.status(&whole).await, "running");
    let ran = world
        .exec(&whole, json!({"command": "echo $A", "shell": true}))
        .await;
    assert_eq!(ran["stdout"], "whole\n");
    assert_eq!(
        world.events(&whole).await[..2],
        ["create/requested", "create/succeeded"]
    );
    // Nobody was told of the other: who asks again gets another.
    assert_eq!(world.status(&half).await, "error");
    let (status, again) = ask(&world, "half").await;
    assert_eq!(status, StatusCode::CREATED, "{again}");
    assert_ne!(again["id"], *half);
    let (_, same) = ask(&world, "whole").await;
    assert_eq!(same["id"], *whole);
}

/// A pool follows a tag, or keeps to a build.
#[tokio::test(flavor = "multi_thread")]
async fn builds_are_followed_or_kept_to() {
    let world = World::new().await;
    let build = async |word: &str| {
        let steps = json!([{"action": "run", "command": format!("echo {word} > said")}]);
        let body = json!({"name": "mine", "base_image": "base", "steps": steps});
        let (status, begun) = world.post("/v1/templates/builds", body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{begun}");
        let id = begun["build_id"].as_str().unwrap().to_owned();
        let path = format!("/v1/templates/builds/{id}");
        for _ in 0..400 {
            if world.get(&path).await.1["build"]["status"] == "ready" {
                return id;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{}", world.get(&path).await.1);
    };
    let first = build("one").await;
    let with = |change: Value| {
        let mut body = request(1, 1);
        body["template_ref"] = json!("mine");
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        body
    };
    let pinned = pool(&world, with(json!({}))).await;
    let follows = pool(
        &world,
        with(json!({"version_policy": "track_tag", "track_tag": "default"})),
    )
    .await;
    let named = with(json!({"version_policy": "track_tag", "template_ref": "mine:default"}));
    let named = pool(&world, named).await;
    for id in [&pinned, &follows, &named] {
        let body = ready(&world, id, 1).await;
        assert_eq!(body["resolved_template_build_id"], *first);
    }
    assert_eq!(info(&world, &named).await["track_tag"], "default");
    let taken = async |id: &str, mode: &str, more: Value| take(&world, id, mode, more).await;
    let second = build("two").await;
    for id in [&follows, &named] {
        let body = until(&world, id, |body| body["rollout_generation"] == 2).await;
        assert_eq!(body["resolved_template_build_id"], *second);
        assert_eq!(body["previous_resolved_template_build_id"], *first);
        let body = ready(&world, id, 1).await;
        assert_eq!(body["rollout_status"]["old_ready_or_warming"], 0);
        let (status, made) = taken(id, "require", json!({"template": "mine"})).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let machine = made["id"].as_str().unwrap();
        let ran = world
            .exec(machine, json!({"command": "cat said", "shell": true}))
            .await;
        assert_eq!(ran["stdout"], "two\n");
    }
    // The other has the first build, which is not what the template means now, and is what the pool means.
    assert_eq!(info(&world, &pinned).await["rollout_generation"], 1);
    let (status, said) = taken(&pinned, "require", json!({"template": "mine"})).await;
    assert_eq!(
        (status, &said["code"]),
        (StatusCode::CONFLICT, &json!("warm_pool_conflict"))
    );
    let (status, made) = taken(&pinned, "require", json!({})).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let (status, body) = patch(&world, &pinned, json!({"template_ref": "mine"})).await;
    assert_eq!(
        (status, &body["rollout_generation"]),
        (StatusCode::OK, &json!(2))
    );
    ready(&world, &pinned, 1).await;
    for bad in [
        json!({"version_policy": "track_tag", "track_tag": "no such"}),
        json!({"version_policy": "track_tag", "track_tag": "other", "template_ref": "mine:default"}),
        json!({"version_policy": "track_tag", "track_tag": "other", "template_ref": format!("mine:{first}")}),
    ] {
        let (status, said) = world.post(POOLS, with(bad.clone())).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}: {said}");
    }
    let (status, _) = world.delete("/v1/templates/refs/mine").await;
    assert!(status.is_success());
    for id in [&pinned, &follows] {
        until(&world, id, |body| {
            body["degraded_reason"] == "template_build_unavailable"
        })
        .await;
        ready(&world, id, 0).await;
    }
}

/// What cannot be is refused, and costs the pool one machine at most.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_is_refused() {
    let world = World::new().await;
    let id = pool(&world, request(2, 2)).await;
    ready(&world, &id, 2).await;
    let before = alive(&world).await;
    let (status, said) = take(&world, &id, "require", json!({"cwd": "/etc/passwd/x"})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    assert!(said["error"].as_str().unwrap().contains("cwd: "), "{said}");
    ready(&world, &id, 2).await;
    assert_eq!(alive(&world).await.intersection(&before).count(), 1);
    let (_, list) = world.get("/v1/machines").await;
    assert_eq!(list["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_is_told() {
    let config = Config {
        max_machines: 2,
        ..Config::default()
    };
    let world = World::with(config).await;
    let held = world.machine().await;
    let id = pool(&world, request(2, 2)).await;
    let body = until(&world, &id, |body| {
        body["degraded_reason"] == "quota_exceeded"
    })
    .await;
    assert_eq!(body["status"]["target"], 2);
    let (_, list) = world.get(&format!("{POOLS}?status=degraded")).await;
    assert_eq!(list["items"][0]["id"], *id);
    world.delete(&format!("/v1/machines/{held}")).await;
    let body = ready(&world, &id, 2).await;
    assert_eq!(body.get("degraded_reason"), None);
    let (_, list) = world
        .get(&format!("{POOLS}?status=ready&state=enabled"))
        .await;
    assert_eq!(list["items"][0]["id"], *id);
    world.delete(&format!("{POOLS}/{id}")).await;
    ready(&world, &id, 0).await;

    // The folder that machines start from is gone.
    let id = pool(&world, request(0, 1)).await;
    std::fs::remove_dir_all(world.layer.path()).unwrap();
    patch(&world, &id, json!({"min_ready": 1})).await;
    let body = until(&world, &id, |body| {
        body["degraded_reason"] == "artifact_prewarm_failed"
    })
    .await;
    assert!(body["status"]["failed"].as_u64().unwrap() >= 1);
    std::fs::create_dir_all(world.layer.path()).unwrap();
    act(&world, &id, "reconcile").await;
    let body = ready(&world, &id, 1).await;
    assert_eq!(
        (&body["status"]["failed"], body.get("degraded_reason")),
        (&json!(0), None)
    );
    until_alive(&world, 1).await;
}

/// What a machine does before it is somebody's is in nobody's log.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_knows_no_machines_that_wait() {
    let world = World::new().await;
    let id = pool(&world, request(1, 1)).await;
    ready(&world, &id, 1).await;
    let waits = alive(&world).await.into_iter().next().unwrap();
    let other = world.machine().await;
    let denial = |id: &str| nullspace_engine::Denial {
        id: id.to_owned(),
        target: nullspace_engine::DeniedTarget::Address {
            address: [192, 0, 2, 1].into(),
            protocol: 6,
            port: 443,
        },
        count: 1,
    };
    world.engine.deny(denial(&waits));
    world.engine.deny(denial(&other));
    for _ in 0..400 {
        let (status, log) = world.get("/v1/lifecycle/events?audience=internal").await;
        assert_eq!(status, StatusCode::OK, "{log}");
        let log = log.to_string();
        assert!(!log.contains(&waits), "{log}");
        if log.contains("egress_denied") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the denial of {other} is not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_narrowed() {
    let world = World::new().await;
    let mut body = request(0, 1);
    body["labels"] = json!({"team": "a", "n": 1});
    let a = pool(&world, body.clone()).await;
    body["labels"] = json!({"team": "b"});
    let b = pool(&world, body).await;
    let found = async |query: &str| -> Vec<String> {
        let (status, list) = world.get(&format!("{POOLS}?{query}")).await;
        assert_eq!(status, StatusCode::OK, "{list}");
        let items = list["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(found("").await, [b.clone(), a.clone()]);
    let both = found("label=team%3Da&label=n%3D1").await;
    assert_eq!(both, [&*a]);
    let one = found("label=n%3D1").await;
    assert_eq!(one, [&*a]);
    assert_eq!(
        found("label=team%3Da&label=n%3D2").await,
        Vec::<String>::new()
    );
    assert_eq!(found("template=base&limit=1").await, [b]);
    assert_eq!(found("template=host").await, Vec::<String>::new());
    assert_eq!(found("status=unavailable").await, Vec::<String>::new());
    let (_, counts) = world.get(&format!("{POOLS}/{a}/status")).await;
    assert_eq!(counts["target"], 0);
    for bad in [
        "state=asleep",
        "status=fine",
        "limit=0",
        "limit=x",
        "label=a",
    ] {
        let (status, said) = world.get(&format!("{POOLS}?{bad}")).await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_by_field() {
    let world = World::new().await;
    let id = pool(&world, request(0, 1)).await;
    let cases = [
        (json!({"min_ready": 3}), 400, "max_ready"),
        (json!({"max_ready": 100_000}), 400, "max_ready"),
        (json!({"min_ready": -1}), 400, "min_ready"),
        (json!({"name": ""}), 400, "name"),
        (json!({"name": "x".repeat(129)}), 400, "name"),
        (json!({"name": "a\u{0}b"}), 400, "name"),
        (
            json!({"resources": {"vcpus": 0, "memory_mb": 512}}),
            400,
            "resources.vcpus",
        ),
        (
            json!({"resources": {"vcpus": 1, "memory_mb": 1}}),
            400,
            "resources.memory_mb",
        ),
        (
            json!({"resources": {"vcpus": 1, "memory_mb": 512, "disk_mb": 0}}),
            400,
            "resources.disk_mb",
        ),
        (
            json!({"idle_timeout_seconds": 0}),
            400,
            "idle_timeout_seconds",
        ),
        (
            json!({"stale_after_seconds": u64::MAX}),
            400,
            "stale_after_seconds",
        ),
        (json!({"checkout_policy": "maybe"}), 400, "checkout_policy"),
        (json!({"version_policy": "newest"}), 400, "version_policy"),
        (json!({"track_tag": "stable"}), 400, "track_tag"),
        (json!({"version_policy": "track_tag"}), 400, "track_tag"),
        (json!({"labels": {"a": "x".repeat(70_000)}}), 400, "labels"),
        (json!({"metadata": []}), 400, "metadata"),
        (json!({"surprise": 1}), 400, "surprise"),
        (json!({"template": "host"}), 400, "template"),
        (json!({"template_ref": "no-such"}), 404, "no template"),
        (json!({"template_ref": "../etc"}), 404, "no template"),
        (
            json!({"host_pool_id": "h", "cell_id": "c"}),
            400,
            "host_pool_id",
        ),
    ];
    for (change, status, word) in cases {
        let mut body = request(0, 1);
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let (got, said) = world.post(POOLS, body).await;
        assert_eq!(got.as_u16(), status, "{change}: {said}");
        assert!(
            said["error"].as_str().unwrap().contains(word),
            "{change}: {said}"
        );
        if change.get("template").is_none()
            && change.get("template_ref").is_none()
            && change.get("host_pool_id").is_none()
        {
            let (got, said) = patch(&world, &id, change.clone()).await;
            assert_eq!(got.as_u16(), status, "{change}: {said}");
        }
    }
    for missing in [
        "template_ref",
        "name",
        "min_ready",
        "max_ready",
        "resources",
    ] {
        let mut body = request(0, 1);
        body.as_object_mut().unwrap().remove(missing);
        let (got, said) = world.post(POOLS, body).await;
        assert_eq!(got, StatusCode::BAD_REQUEST, "{missing}: {said}");
    }
    assert_eq!(
        info(&world, &id).await["max_ready"],
        1,
        "nothing of it was taken"
    );
    for (verb, path) in [
        (Method::GET, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::GET, "/status"),
        (Method::POST, "/enable"),
        (Method::POST, "/disable"),
        (Method::POST, "/drain"),
        (Method::POST, "/reconcile"),
    ] {
        let path = format!("{POOLS}/twp_none{path}");
        let (status, said) = answer(world.request(verb.clone(), &path).json(&json!({}))).await;
        assert_eq!(
            (status, &said["code"]),
            (StatusCode::NOT_FOUND, &json!("warm_pool_not_found")),
            "{verb} {path}"
        );
    }
    for (warm_pool, status, code) in [
        (json!({}), 400, "invalid_request"),
        (json!({"mode": "prefer"}), 400, "invalid_request"),
        (json!({"mode": "soon", "id": id}), 400, "invalid_request"),
        (json!({"id": id, "wait_ms": 30_001}), 400, "invalid_request"),
        (json!({"id": id, "wait_ms": -1}), 400, "invalid_request"),
        (json!({"id": "twp_none"}), 404, "warm_pool_not_found"),
        (
            json!({"id": "twp_none", "mode": "require"}),
            404,
            "warm_pool_not_found",
        ),
    ] {
        let (got, said) = world
            .post("/v1/machines", json!({"warm_pool": warm_pool}))
            .await;
        assert_eq!(
            (got.as_u16(), said["code"].as_str()),
            (status, Some(code)),
            "{warm_pool}: {said}"
        );
    }
    let (_, list) = world.get("/v1/machines").await;
    assert_eq!(list["items"], json!([]));
}

//! Warm pools of real machines: through the published clients and ours, in a burst, and across crashes.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python, script},
    world::{World, answer},
};

const POOLS: &str = "/v1/template-warm-pools";

impl World {
    async fn pool(&self, min: u32, max: u32) -> String {
        let body = json!({
            "template_ref": "host", "name": "a pool", "min_ready": min, "max_ready": max,
            "resources": {"vcpus": 1, "memory_mb": 256},
        });
        let (status, made) = self.post(POOLS, body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    async fn pool_ready(&self, id: &str, count: usize) -> Value {
        self.until_at(&format!("{POOLS}/{id}"), |pool| {
            let counts = &pool["status"];
            counts["ready"] == count && counts["warming"] == 0 && counts["draining"] == 0
        })
        .await
    }

    /// Waits until what is alive is what is on record and what waits in pools, and nothing else.
    async fn settled_beside(&self, waiting: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let listed = self.listed().await;
            let alive = self.host.machines();
            if alive.len() == listed.len() + waiting && listed.is_subset(&alive) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "on record {listed:?}, alive {alive:?}, in pools {waiting}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_sdk() {
    let world = World::start().await;
    script(&world, &python(), "pools.py", &[]);
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_newer_sdk() {
    let world = World::start().await;
    script(&world, &next_python(), "pools.py", &[]);
    world.until_empty().await;
}

/// The same commands, of both published programs and ours.
#[tokio::test(flavor = "multi_thread")]
async fn with_each_command_line() {
    let world = World::start().await;
    let programs: [(&str, &dyn Fn() -> std::process::Command, &str); 3] = [
        ("ours", &|| world.program(), "machine"),
        ("theirs", &|| published(&world, &python()), "sandbox"),
        ("newer", &|| published(&world, &next_python()), "machine"),
    ];
    for (name, program, noun) in programs {
        let run = |arguments: &[&str]| program().args(arguments).output().unwrap();
        let ok = |arguments: &[&str]| {
            let done = run(arguments);
            assert!(done.status.success(), "{name} {arguments:?}: {done:?}");
            String::from_utf8(done.stdout).unwrap()
        };
        let json = |arguments: &[&str]| -> Value {
            let text = ok(arguments);
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name} {arguments:?}: {text}"))
        };
        let pool = |arguments: &[&str]| {
            json(&[&["template", "warm-pool"], arguments, &["--json"]].concat())
        };
        let made = pool(&[
            "create",
            "host",
            "--name",
            name,
            "--min-ready",
            "1",
            "--max-ready",
            "2",
            "--vcpus",
            "1",
            "--memory",
            "256",
            "--checkout-policy",
            "require",
            "--idle-timeout",
            "60",
            "--stale-after",
            "600",
            "--version-policy",
            "pinned_build",
            "--label",
            "team=a",
            "--metadata-json",
            "{\"a\": 1}",
            "--metadata",
            "b=2",
        ]);
        let id = made["id"].as_str().unwrap();
        assert_eq!(made["warm_pool"]["id"], id);
        assert_eq!(
            (&made["labels"], &made["metadata"]),
            (&json!({"team": "a"}), &json!({"a": 1, "b": "2"}))
        );
        assert_eq!(made["resources"], json!({"vcpus": 1, "memory_mb": 256}));
        let waited = pool(&[
            "wait",
            id,
            "--min-ready",
            "1",
            "--timeout",
            "60",
            "--interval",
            "0.05",
        ]);
        assert_eq!(waited["status"]["ready"], 1);
        let text = ok(&["template", "warm-pool", "get", id]);
        assert!(
            text.starts_with(&format!("{id}\tenabled\tready 1/1\thost")),
            "{text}"
        );
        let listed = pool(&[
            "list",
            "--template",
            "host",
            "--state",
            "enabled",
            "--label",
            "team=a",
            "--limit",
            "3",
        ]);
        assert_eq!(listed["items"][0]["id"], id);
        assert!(
            ok(&["template", "warm-pool", "list", "--status", "unavailable"])
                .trim()
                .is_empty()
                || name != "ours"
        );
        // 0.1.9 does not print JSON unless told to.
        let arguments = [
            noun,
            "create",
            "--template",
            "host",
            "--vcpus",
            "1",
            "--memory",
            "256",
            "--warm-pool",
            id,
            "--warm-pool-mode",
            "require",
            "--warm-pool-wait",
            "5000",
            "--env",
            "WHO=me",
        ];
        let with_json = [&arguments[..], &["--json"]].concat();
        let machine: Value = match serde_json::from_str(&ok(&arguments)) {
            Ok(machine) => machine,
            Err(_) => json(&with_json),
        };
        let told = &machine["warm_pool_checkout"];
        assert_eq!(
            (&told["source"], &told["hit"]),
            (&json!("ready_instance"), &json!(true)),
            "{name}: {machine}"
        );
        let machine = machine["id"].as_str().unwrap();
        assert_eq!(world.out(machine, "echo $WHO").await, "me");
        let scaled = pool(&["scale", id, "--min-ready", "2"]);
        assert_eq!(
            (&scaled["min_ready"], &scaled["max_ready"]),
            (&json!(2), &json!(2))
        );
        pool(&["wait", id, "--timeout", "60", "--interval", "0.05"]);
        assert!(
            !run(&["template", "warm-pool", "scale", id])
                .status
                .success()
        );
        assert_eq!(
            run(&["template", "warm-pool", "scale", id]).status.code(),
            Some(2)
        );
        let late = run(&[
            "template",
            "warm-pool",
            "wait",
            id,
            "--min-ready",
            "9",
            "--timeout",
            "0.1",
        ]);
        assert_eq!(late.status.code(), Some(8), "{late:?}");
        pool(&["reconcile", id]);
        let drained = pool(&["drain", id]);
        assert!(["draining", "disabled"].contains(&drained["state"].as_str().unwrap()));
        world.pool_ready(id, 0).await;
        let refused = run(&[
            noun,
            "create",
            "--template",
            "host",
            "--vcpus",
            "1",
            "--memory",
            "256",
            "--warm-pool",
            id,
            "--warm-pool-mode",
            "require",
        ]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert_eq!(pool(&["enable", id])["state"], "enabled");
        assert_eq!(pool(&["disable", id])["state"], "disabled");
        assert_eq!(pool(&["delete", id])["deleted"], true);
        assert!(
            !run(&["template", "warm-pool", "get", "twp_none"])
                .status
                .success()
        );
        world.delete(&format!("/v1/machines/{machine}")).await;
    }
    world.until_empty().await;
}

/// More are asked for at once than are ready: all get one, each its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_served() {
    let world = World::start().await;
    let pool = world.pool(8, 8).await;
    world.pool_ready(&pool, 8).await;
    let asked = (0..20).map(|n| {
        let (world, pool) = (&world, &pool);
        async move {
            let body = json!({"warm_pool": {"id": pool}, "envs": {"N": n.to_string()}});
            let (status, made) = world.post("/v1/machines", body).await;
            assert_eq!(status, StatusCode::CREATED, "{made}");
            let id = made["id"].as_str().unwrap().to_owned();
            assert_eq!(world.out(&id, "echo $N").await, n.to_string());
            (id, made["warm_pool_checkout"]["hit"] == true)
        }
    });
    let got = join_all(asked).await;
    let ids: BTreeSet<&String> = got.iter().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 20);
    let hits = got.iter().filter(|(_, hit)| *hit).count();
    assert!(hits >= 8, "{hits}");
    world.pool_ready(&pool, 8).await;
    world.settled_beside(8).await;
    // Machines of a pool cannot be reached before they are somebody's.
    let waiting = world.host.machines();
    let listed = world.listed().await;
    let one = waiting.difference(&listed).next().unwrap();
    for path in ["", "/metrics", "/processes", "/preview-urls"] {
        let (status, _) = world.get(&format!("/v1/machines/{one}{path}")).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
    let command = json!({"command": "id"});
    let (status, _) = world
        .post(&format!("/v1/machines/{one}/exec"), command)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = world.delete(&format!("{POOLS}/{pool}")).await;
    assert_eq!(status, StatusCode::OK);
    world.pool_ready(&pool, 0).await;
    assert!(
        world
            .nullspace(&["machine", "kill", "--all"])
            .status
            .success()
    );
    world.until_empty().await;
}

/// The server dies again and again while machines are made for a pool, handed out and let go.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_double_nothing() {
    let mut world = World::start().await;
    let pool = world.pool(4, 4).await;
    world.pool_ready(&pool, 4).await;
    let mut handed_out: BTreeSet<String> = BTreeSet::new();
    for round in 0..12u64 {
        let asked: Vec<_> = (0..4)
            .map(|n| {
                let key = format!("k-{round}-{n}");
                let body = json!({
                    "warm_pool": {"id": pool, "mode": "prefer"}, "envs": {"KEY": key}, "cwd": "/work",
                    "internet_access": n % 2 == 0,
                });
                let request = world.request(Method::POST, "/v1/machines").header("idempotency-key", &key);
                (key, request.json(&body))
            })
            .collect();
        let under_way: Vec<_> = asked
            .iter()
            .map(|(_, request)| tokio::spawn(request.try_clone().unwrap().send()))
            .collect();
        if round % 4 == 3 {
            // Together with what lets machines go.
            let scale = json!({"min_ready": round % 5, "max_ready": 4});
            let request = world
                .request(Method::PATCH, &format!("{POOLS}/{pool}"))
                .json(&scale);
            tokio::spawn(request.send());
        }
        // At another moment each time, from before the first record to after the last.
        tokio::time::sleep(Duration::from_millis(1 + round * 4)).await;
        world.kill();
        for one in under_way {
            let _ = one.await;
        }
        world.serve().await;
        let back = json!({"min_ready": 4, "max_ready": 4});
        answer(
            world
                .request(Method::PATCH, &format!("{POOLS}/{pool}"))
                .json(&back),
        )
        .await;
        for (key, request) in asked {
            let (status, made) = answer(request).await;
            assert_eq!(status, StatusCode::CREATED, "{made}");
            let id = made["id"].as_str().unwrap().to_owned();
            assert_eq!(
                world.out(&id, "echo $KEY; pwd").await,
                format!("{key}\n/work"),
                "what was handed out has its own"
            );
            assert!(handed_out.insert(id), "one machine for two");
        }
        world.pool_ready(&pool, 4).await;
        world.settled_beside(4).await;
        assert_eq!(world.listed().await, handed_out);
    }
    world.delete(&format!("{POOLS}/{pool}")).await;
    world.kill();
    world.serve().await;
    world.pool_ready(&pool, 0).await;
    assert_eq!(world.settled().await, handed_out);
    assert!(
        world
            .nullspace(&["machine", "kill", "--all"])
            .status
            .success()
    );
    world.until_empty().await;
}

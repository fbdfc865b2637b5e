//! What machines use, and the monitor that tells of all of them, on the fake engine.

#![allow(clippy::unwrap_used)]

mod common;

use common::{KEY, World, socket::Client};
use futures_util::{SinkExt, StreamExt};
use nullspace_engine::fake::Counted;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message};

const PATH: &str = "/v1/monitor/ws";

/// Only what published clients know: anything else ends them.
const FIELDS: [&str; 9] = [
    "timestamp",
    "cpu_percent",
    "cpu_count",
    "mem_used_bytes",
    "mem_total_bytes",
    "disk_used_bytes",
    "disk_total_bytes",
    "network_rx_bytes",
    "network_tx_bytes",
];

fn closed(sample: &Value) {
    let mut names: Vec<&str> = sample
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    let mut wanted = FIELDS.to_vec();
    wanted.sort_unstable();
    assert_eq!(names, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sample_of_what_a_machine_uses() {
    let world = World::new().await;
    let body = json!({"memory_mb": 300, "vcpus": 3});
    let (_, machine) = world.post("/v1/machines", body).await;
    let id = machine["id"].as_str().unwrap().to_owned();
    let counted = Counted {
        cpu_micros: 5_000_000,
        memory_bytes: 7 << 20,
        network_rx_bytes: 11,
        network_tx_bytes: 13,
    };
    world.engine.set_counted(&id, counted);
    let (status, samples) = world.get(&format!("/v1/machines/{id}/metrics")).await;
    assert_eq!(status, StatusCode::OK, "{samples}");
    let [sample] = samples.as_array().unwrap().as_slice() else {
        panic!("{samples}");
    };
    closed(sample);
    assert_eq!(
        sample["cpu_percent"], 0.0,
        "what it spent before is no load"
    );
    assert_eq!(sample["cpu_count"], 3);
    assert_eq!(sample["mem_used_bytes"], 7 << 20);
    assert_eq!(sample["mem_total_bytes"], 300 << 20);
    assert_eq!(sample["network_rx_bytes"], 11);
    assert_eq!(sample["network_tx_bytes"], 13);
    let (used, total) = (&sample["disk_used_bytes"], &sample["disk_total_bytes"]);
    assert!(used.as_u64().unwrap() < total.as_u64().unwrap());

    // Told again while it is fresh; then what was spent since shows as load.
    let spent = Counted {
        cpu_micros: 65_000_000,
        ..counted
    };
    world.engine.set_counted(&id, spent);
    let path = format!("/v1/sandboxes/{id}/metrics");
    let load = loop {
        let (_, samples) = world.get(&path).await;
        let load = samples[0]["cpu_percent"].as_f64().unwrap();
        if load > 0.0 {
            break load;
        }
        tokio::task::yield_now().await;
    };
    // A minute's worth of one core in under ten seconds.
    assert!(load > 600.0, "{load}");

    let (status, body) = world.get("/v1/sandboxes/mch_none/metrics").await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("sandbox_not_found"))
    );
    world.delete(&format!("/v1/machines/{id}")).await;
    let (status, body) = world.get(&path).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("sandbox_not_ready"))
    );
}

async fn subscribed(world: &World, request: Value) -> Client {
    let mut client = Client::at(world, PATH).await;
    client.say(request).await;
    client
}

/// The next message of a type; others are left out.
async fn next(client: &mut Client, kind: &str) -> Value {
    loop {
        let message = client.hear().await;
        if message["type"] == kind {
            return message;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_machines_are_told_of_as_they_change() {
    let world = World::new().await;
    let first = world.machine().await;
    let mut client = subscribed(
        &world,
        json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 3_600_000}),
    )
    .await;
    let snapshot = client.hear().await;
    assert_eq!(snapshot["type"], "monitor_snapshot");
    assert_eq!(snapshot["id"], "m");
    let (_, info) = world.get(&format!("/v1/machines/{first}")).await;
    for spelling in ["machines", "sandboxes"] {
        let told = snapshot[spelling].as_array().unwrap();
        assert_eq!(told.len(), 1);
        // Time goes on.
        let mut told = told[0].clone();
        told["remaining_ms"] = info["remaining_ms"].clone();
        assert_eq!(told, info);
    }

    let second = world.machine().await;
    for status in ["creating", "running"] {
        let update = next(&mut client, "monitor_update").await;
        assert_eq!(update["machine_id"], second.as_str());
        assert_eq!(update["sandbox_id"], second.as_str());
        assert_eq!(update["removed"], false);
        assert_eq!(update["machine"]["status"], status);
        assert_eq!(update["sandbox"], update["machine"]);
    }
    let path = format!("/v1/machines/{second}/timeout");
    world.post(&path, json!({"timeout_ms": 77_000})).await;
    let update = next(&mut client, "monitor_update").await;
    assert_eq!(update["machine"]["timeout_ms"], 77_000);

    world.delete(&format!("/v1/machines/{first}")).await;
    let update = next(&mut client, "monitor_update").await;
    assert_eq!(update["machine_id"], first.as_str());
    assert_eq!(update["removed"], true);
    assert_eq!(update["machine"]["status"], "destroyed");
    world.engine.crash(&second);
    let update = next(&mut client, "monitor_update").await;
    assert_eq!(
        (&update["machine_id"], &update["removed"]),
        (&json!(second), &json!(true))
    );
    assert_eq!(update["sandbox"]["status"], "error");

    // Who comes later sees what lives, and only that.
    let again = json!({"type": "monitor_subscribe", "id": "n"});
    let mut client = subscribed(&world, again).await;
    assert_eq!(client.hear().await["machines"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_each_uses_and_runs_is_told_at_each_interval() {
    let world = World::new().await;
    let id = world.machine().await;
    let command = format!("exec sleep 600 # {}", "é".repeat(2000));
    let body = json!({"command": command, "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let request = json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 1, "include_processes": true});
    let mut client = subscribed(&world, request).await;
    for _ in 0..3 {
        let message = next(&mut client, "monitor_metrics").await;
        assert_eq!(message["machine_id"], id.as_str());
        assert_eq!(message["sandbox_id"], id.as_str());
        closed(&message["metrics"]);
        let message = next(&mut client, "monitor_processes").await;
        assert_eq!(message["sandbox_id"], id.as_str());
        let [process] = message["processes"].as_array().unwrap().as_slice() else {
            panic!("{message}");
        };
        assert_eq!(process["pid"], started["pid"]);
        assert_eq!(process["running"], true);
        let told = process["command"].as_str().unwrap();
        assert!(command.starts_with(told) && told.chars().count() == 512);
    }
    // One that came later is measured like the others; what was not asked for is not told.
    let later = world.machine().await;
    let request = json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 250});
    client.say(request).await;
    let mut met = std::collections::BTreeSet::new();
    while next(&mut client, "monitor_snapshot").await["machines"]
        .as_array()
        .is_none_or(|all| all.len() < 2)
    {}
    while met.len() < 2 {
        let message = client.hear().await;
        assert_eq!(message["type"], "monitor_metrics", "{message}");
        met.insert(message["machine_id"].as_str().unwrap().to_owned());
    }
    assert!(met.contains(&later) && met.contains(&id));
    world.delete(&format!("/v1/machines/{id}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_several_subscriptions_that_end_alone() {
    let world = World::new().await;
    let mut client = Client::at(&world, PATH).await;
    for n in 0..16 {
        let request =
            json!({"type": "monitor_subscribe", "id": format!("s{n}"), "interval_ms": 3_600_000});
        client.say(request).await;
        let snapshot = client.hear().await;
        assert_eq!(snapshot["id"], format!("s{n}"));
    }
    let bad = [
        (
            r#"{"type": "monitor_subscribe", "id": "s16"}"#,
            "s16",
            "16 subscriptions",
        ),
        (
            r#"{"type": "monitor_unsubscribe", "id": "s99"}"#,
            "s99",
            "no such subscription",
        ),
        (r#"{"type": "monitor_subscribe"}"#, "", "missing field `id`"),
        (
            r#"{"type": "monitor_subscribe", "id": "x", "interval_ms": -1}"#,
            "x",
            "invalid value",
        ),
        (
            r#"{"type": "monitor_subscribe", "id": "x", "interval_ms": 1.5}"#,
            "x",
            "invalid type",
        ),
        (
            r#"{"type": "monitor_subscribe", "id": 7}"#,
            "",
            "invalid type",
        ),
        (r#"{"type": "other", "id": "x"}"#, "x", "unknown variant"),
        ("no json", "", "expected"),
        ("[]", "", "message"),
        ("", "", "EOF"),
    ];
    for (text, id, what) in bad {
        client.0.send(Message::text(text)).await.unwrap();
        let answer = client.hear().await;
        assert_eq!(
            (&answer["type"], &answer["id"]),
            (&json!("monitor_error"), &json!(id)),
            "{text}"
        );
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(what), "{text}: {message}");
    }
    let long = json!({"type": "monitor_subscribe", "id": "x".repeat(257)});
    client.say(long).await;
    assert_eq!(client.hear().await["message"], "id: over 256 bytes");

    client
        .say(json!({"type": "monitor_unsubscribe", "id": "s3"}))
        .await;
    let request = json!({"type": "monitor_subscribe", "id": "new", "interval_ms": 3_600_000});
    client.say(request).await;
    assert_eq!(client.hear().await["id"], "new");
    world.machine().await;
    let mut told = std::collections::BTreeSet::new();
    for _ in 0..32 {
        let update = next(&mut client, "monitor_update").await;
        told.insert(update["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(told.len(), 16);
    assert!(!told.contains("s3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_told_in_frames_that_clients_take() {
    let world = World::new().await;
    let words = json!({"metadata": {"words": "w".repeat(60_000)}});
    for _ in 0..8 {
        world.post("/v1/machines", words.clone()).await;
    }
    let request = json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 3_600_000});
    let mut client = subscribed(&world, request).await;
    let mut machines = std::collections::BTreeSet::new();
    while machines.len() < 8 {
        let frame = client.0.next().await.unwrap().unwrap();
        assert!(frame.len() < 1 << 20, "{}", frame.len());
        let Message::Text(text) = frame else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let told = match message["type"].as_str().unwrap() {
            "monitor_snapshot" => message["machines"].as_array().unwrap().clone(),
            "monitor_update" => vec![message["machine"].clone()],
            _ => continue,
        };
        machines.extend(told.iter().map(|m| m["id"].as_str().unwrap().to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_slowly_is_brought_up_to_date() {
    let world = World::new().await;
    let kept = world.machine().await;
    let request = json!({"type": "monitor_subscribe", "id": "m", "interval_ms": 3_600_000});
    let mut client = subscribed(&world, request).await;
    assert_eq!(client.hear().await["type"], "monitor_snapshot");
    // Far more than fits the connection, and than is kept for who does not read.
    let words = json!({"metadata": {"words": "w".repeat(60_000)}});
    for _ in 0..250 {
        let (_, machine) = world.post("/v1/machines", words.clone()).await;
        world
            .delete(&format!("/v1/machines/{}", machine["id"].as_str().unwrap()))
            .await;
    }
    let last = world.machine().await;
    let snapshot = next(&mut client, "monitor_snapshot").await;
    let mut alive: std::collections::BTreeSet<String> = snapshot["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap().to_owned())
        .collect();
    while !alive.contains(&last) {
        let update = next(&mut client, "monitor_update").await;
        let id = update["machine_id"].as_str().unwrap().to_owned();
        if update["removed"] == true {
            alive.remove(&id);
        } else {
            alive.insert(id);
        }
    }
    assert_eq!(alive, [kept, last].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_offer_the_key_as_a_protocol() {
    let world = World::new().await;
    let id = world.machine().await;
    let refused = |error: tungstenite::Error| match error {
        tungstenite::Error::Http(response) => response.status().as_u16(),
        other => panic!("{other}"),
    };
    let offer = |key: &str| format!("nullspace.v1, nullspace.bearer.{key}");
    for path in [PATH.to_owned(), format!("/v1/machines/{id}/ws")] {
        let opened = Client::with(&world, &path, &[("sec-websocket-protocol", &offer(KEY))]).await;
        let (_, response) = opened.unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "nullspace.v1");
        assert!(
            !format!("{response:?}").contains(KEY),
            "the key is not answered"
        );
        let wrong = Client::with(
            &world,
            &path,
            &[("sec-websocket-protocol", &offer("ns_live_wrong"))],
        )
        .await;
        assert_eq!(wrong.map(|_| ()).map_err(refused), Err(401));
        for query in ["api_key", "key", "token", "access_token"] {
            let path = format!("{path}?{query}={KEY}");
            let opened = Client::with(&world, &path, &[]).await;
            assert_eq!(opened.map(|_| ()).map_err(refused), Err(401), "{path}");
        }
    }
    // Only of a WebSocket: anything else can say it as it should.
    let answer = world
        .client
        .get(world.url("/v1/machines"))
        .header("sec-websocket-protocol", offer(KEY))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_goodbye() {
    let mut world = World::new().await;
    let request = json!({"type": "monitor_subscribe", "id": "m"});
    let mut client = subscribed(&world, request).await;
    assert_eq!(client.hear().await["type"], "monitor_snapshot");
    world.stop().await;
    loop {
        match client.0.next().await {
            Some(Ok(Message::Close(frame))) => {
                assert_eq!(u16::from(frame.unwrap().code), 1001);
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

//! Webhooks against a real receiver.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::{collections::HashSet, time::Duration};

use common::{
    World, answer,
    receiver::{Answer, Receiver, SECRET},
};
use nullspace_server::Config;
use nullspace_store::{
    StoreError,
    event::{self, Audience, NewEvent},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const WEBHOOKS: &str = "/v1/lifecycle/webhooks";
const OPERATIONS: [&str; 2] = ["create", "destroy"];

fn config() -> Config {
    Config {
        webhook_private_receivers: true,
        webhook_retry_pause_ms: 10,
        webhook_timeout_ms: 2_000,
        ..Config::default()
    }
}

async fn hook(world: &World, url: &str, operations: &[&str]) -> String {
    let body =
        json!({"url": url, "operations": operations, "signing_secret": SECRET, "enabled": true});
    let (status, made) = world.post(WEBHOOKS, body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn patch(world: &World, id: &str, body: Value) -> Value {
    let request = world.request(Method::PATCH, &format!("{WEBHOOKS}/{id}"));
    let (status, body) = answer(request.json(&body)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

/// Waits until all deliveries are in this state; they come oldest first.
async fn until_all(world: &World, id: &str, count: usize, state: &str) -> Vec<Value> {
    let path = format!("{WEBHOOKS}/{id}/deliveries?limit=200");
    let mut last = Value::Null;
    for _ in 0..1200 {
        let (_, body) = world.get(&path).await;
        let mut all = body.as_array().unwrap().clone();
        if all.len() == count && all.iter().all(|d| d["delivery_status"] == state) {
            all.reverse();
            return all;
        }
        last = body;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {count} deliveries in {state}: {last}");
}

/// Appends events of machines, as the rest of the server does.
async fn happen(world: &World, numbers: std::ops::Range<usize>) {
    let store = &world.server.as_ref().unwrap().app().store;
    for number in numbers {
        let event = NewEvent {
            tenant_id: nullspace_store::tenant::DEFAULT.into(),
            occurred_at: nullspace_api::time::now(),
            operation: OPERATIONS[number % 2],
            status: "succeeded",
            machine_id: Some(format!("mch_{number}")),
            actor_kind: "system",
            ..NewEvent::default()
        };
        store
            .write(move |tx| event::append(tx, &event).map(drop))
            .await
            .unwrap();
    }
}

fn machines(calls: &[common::receiver::Call]) -> Vec<String> {
    calls
        .iter()
        .map(|call| call.event()["machine_id"].as_str().unwrap().to_owned())
        .collect()
}

fn named(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("mch_{n}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_signed_in_order_and_are_accounted_for() {
    let world = World::with(config()).await;
    let receiver = Receiver::start().await;
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    let other = hook(&world, &receiver.url(), &["fork"]).await;

    let machine = world.machine().await;
    world.delete(&format!("/v1/machines/{machine}")).await;
    let calls = receiver.until(4).await;
    let told: Vec<String> = calls
        .iter()
        .map(|call| {
            assert!(call.is_signed_with(SECRET) && !call.is_signed_with("other"));
            assert!(
                call.head
                    .starts_with("POST /hook?token=in-the-url HTTP/1.1")
            );
            assert_eq!(call.header("content-type"), "application/json");
            let event = call.event();
            assert_eq!(call.header("x-nullspace-event-id"), event["id"]);
            assert_eq!(
                (&event["machine_id"], &event["sandbox_id"]),
                (&json!(machine), &json!(machine))
            );
            format!(
                "{}/{}",
                event["operation"].as_str().unwrap(),
                event["status"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "create/requested",
            "create/succeeded",
            "destroy/requested",
            "destroy/succeeded"
        ]
    );

    let deliveries = until_all(&world, &id, 4, "succeeded").await;
    for (delivery, call) in deliveries.iter().zip(&calls) {
        assert_eq!(delivery["id"], call.header("x-nullspace-delivery-id"));
        assert_eq!(delivery["event_id"], call.header("x-nullspace-event-id"));
        assert_eq!(
            (&delivery["webhook_id"], &delivery["attempt_count"]),
            (&json!(id), &json!(1))
        );
        assert_eq!(delivery["last_response_status"], 204);
        assert!(!delivery.as_object().unwrap().values().any(Value::is_null));
        let delivery_id = delivery["id"].as_str().unwrap();
        let path = format!("{WEBHOOKS}/{id}/deliveries/{delivery_id}");
        let (_, detail) = world.get(&path).await;
        assert_eq!(detail["delivery"], *delivery);
        assert_eq!(detail["event"], call.event());
        let attempt = &detail["attempts"][0];
        assert_eq!(
            (
                &attempt["attempt_number"],
                &attempt["response_status"],
                &attempt["delivery_id"]
            ),
            (&json!(1), &json!(204), &delivery["id"])
        );
        for uuid in [&delivery["id"], &delivery["webhook_id"], &attempt["id"]] {
            assert!(uuid::Uuid::parse_str(uuid.as_str().unwrap()).is_ok());
        }
        // Only through its own webhook.
        let forged = format!("{WEBHOOKS}/{other}/deliveries/{delivery_id}");
        let (status, body) = world.get(&forged).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!("webhook_delivery_not_found"))
        );
    }
    let (_, page) = world
        .get(&format!("{WEBHOOKS}/{id}/deliveries?limit=2&offset=1"))
        .await;
    assert_eq!(page, json!([deliveries[2], deliveries[1]]));
    assert!(until_all(&world, &other, 0, "succeeded").await.is_empty());
    let (_, webhook) = world.get(&format!("{WEBHOOKS}/{id}")).await;
    assert_eq!(webhook["last_delivery_status"], "succeeded");
    assert!(webhook["last_delivery_at"].is_string() && webhook["last_error"].is_null());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_away_loses_nothing_even_when_the_server_restarts() {
    let mut world = World::with(config()).await;
    let mut receiver = Receiver::start().await;
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..3).await;
    receiver.until(3).await;
    receiver.down().await;
    happen(&world, 3..10).await;
    world.restart().await;
    happen(&world, 10..20).await;
    let waiting = until_all_but(&world, &id, 3).await;
    assert!(waiting[0]["attempt_count"].as_u64().unwrap() > 0);
    assert!(
        waiting[0]["last_error"]
            .as_str()
            .unwrap()
            .contains("no connection")
    );
    // The later ones wait for it: the order is kept.
    assert!(
        waiting[1..]
            .iter()
            .all(|delivery| delivery["attempt_count"] == 0)
    );
    receiver.up().await;
    let calls = receiver.until(20).await;
    assert_eq!(machines(&calls), named(0..20));
    until_all(&world, &id, 20, "succeeded").await;
    world.stop().await;
    assert_eq!(receiver.calls().len(), 20, "none came twice");
}

/// What waits, oldest first, once the oldest of it was attempted.
async fn until_all_but(world: &World, id: &str, done: usize) -> Vec<Value> {
    for _ in 0..400 {
        let (_, body) = world
            .get(&format!("{WEBHOOKS}/{id}/deliveries?limit=200"))
            .await;
        let mut all = body.as_array().unwrap().clone();
        all.reverse();
        let waiting = all.split_off(done.min(all.len()));
        if waiting.first().is_some_and(|d| d["last_error"].is_string()) {
            return waiting;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nothing was attempted");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_tried_again_and_listed() {
    let world = World::with(config()).await;
    let receiver = Receiver::start().await;
    receiver.answers(Answer::StatusFor(3, 503));
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..2).await;
    let calls = receiver.until(5).await;
    assert_eq!(machines(&calls), named([0, 0, 0, 0, 1]));
    let ids: HashSet<String> = calls[..4]
        .iter()
        .map(|call| call.header("x-nullspace-delivery-id"))
        .collect();
    assert_eq!(ids.len(), 1, "one delivery, however often it is attempted");
    assert_eq!(calls[0].body, calls[3].body);
    let deliveries = until_all(&world, &id, 2, "succeeded").await;
    assert_eq!(deliveries[0]["attempt_count"], 4);
    let path = format!(
        "{WEBHOOKS}/{id}/deliveries/{}",
        deliveries[0]["id"].as_str().unwrap()
    );
    let (_, detail) = world.get(&path).await;
    let statuses: Vec<&Value> = detail["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| &attempt["response_status"])
        .collect();
    assert_eq!(statuses, [503, 503, 503, 200]);
    assert_eq!(detail["attempts"][0]["error_code"], "http_status");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_refused_for_good_lets_the_others_by() {
    let world = World::with(config()).await;
    let receiver = Receiver::start().await;
    receiver.answers(Answer::StatusOf("create", 500));
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..2).await;
    let calls = receiver.until(9).await;
    assert_eq!(machines(&calls[..9]), named([0, 0, 0, 0, 0, 0, 0, 0, 1]));
    receiver.answers(Answer::Status(200));
    until_all(&world, &id, 2, "succeeded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_in_time_is_given_up() {
    let config = Config {
        webhook_give_up_secs: 0,
        ..config()
    };
    let world = World::with(config).await;
    let receiver = Receiver::start().await;
    receiver.answers(Answer::Status(500));
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..3).await;
    let over = until_all(&world, &id, 3, "dead_letter").await;
    assert!(
        over.iter()
            .all(|d| d["last_error"] == "the receiver answered 500")
    );
    assert_eq!(machines(&receiver.calls()), named(0..3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_nobody_else() {
    let mut world = World::with(config()).await;
    let (hanging, endless, fine) = (
        Receiver::start().await,
        Receiver::start().await,
        Receiver::start().await,
    );
    hanging.answers(Answer::Hang);
    endless.answers(Answer::Endless);
    let stuck = hook(&world, &hanging.url(), &OPERATIONS).await;
    let large = hook(&world, &endless.url(), &OPERATIONS).await;
    hook(&world, &fine.url(), &OPERATIONS).await;
    happen(&world, 0..1).await;
    hanging.until(1).await;
    let (_, deliveries) = world.get(&format!("{WEBHOOKS}/{stuck}/deliveries")).await;
    assert_eq!(deliveries[0]["delivery_status"], "in_progress");
    happen(&world, 1..20).await;
    assert_eq!(machines(&fine.until(20).await), named(0..20));
    // An answer that never ends is an answer.
    assert_eq!(machines(&endless.until(20).await), named(0..20));
    until_all(&world, &large, 20, "succeeded").await;
    hanging.until(2).await;
    let waiting = until_all_but(&world, &stuck, 0).await;
    assert_eq!(waiting[0]["last_error"], "the receiver took too long");
    // Nor does it hold up the end of the server.
    tokio::time::timeout(Duration::from_secs(8), world.stop())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_was_cut_off_is_listed_and_made_again() {
    let mut world = World::with(config()).await;
    let receiver = Receiver::start().await;
    receiver.answers(Answer::Hang);
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..1).await;
    receiver.until(1).await;
    let path = format!("{WEBHOOKS}/{id}/deliveries");
    let (_, deliveries) = world.get(&path).await;
    let path = format!("{path}/{}", deliveries[0]["id"].as_str().unwrap());
    let (_, detail) = world.get(&path).await;
    assert_eq!(detail["delivery"]["delivery_status"], "in_progress");
    assert_eq!(detail["delivery"]["attempt_count"], 1);
    assert_eq!(detail["attempts"], json!([]), "how it goes is not known");
    world.stop().await;
    receiver.answers(Answer::Status(204));
    world.start().await;
    until_all(&world, &id, 1, "succeeded").await;
    let (_, detail) = world.get(&path).await;
    let attempts = detail["attempts"].as_array().unwrap();
    let told: Vec<(&Value, &Value)> = attempts
        .iter()
        .map(|attempt| (&attempt["error_code"], &attempt["response_status"]))
        .collect();
    assert_eq!(
        told,
        [
            (&json!("interrupted"), &Value::Null),
            (&Value::Null, &json!(204))
        ]
    );
    assert_eq!(detail["delivery"]["attempt_count"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed() {
    let world = World::with(config()).await;
    let (receiver, elsewhere) = (Receiver::start().await, Receiver::start().await);
    receiver.answers(Answer::Redirect(elsewhere.url()));
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..1).await;
    receiver.until(2).await;
    let waiting = until_all_but(&world, &id, 0).await;
    assert!(
        waiting[0]["last_error"]
            .as_str()
            .unwrap()
            .contains("redirects are not followed")
    );
    assert!(elsewhere.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_changed_turned_off_and_deleted() {
    let mut world = World::with(config()).await;
    let (mut old, new) = (Receiver::start().await, Receiver::start().await);
    let id = hook(&world, &old.url(), &OPERATIONS).await;
    happen(&world, 0..1).await;
    old.until(1).await;

    // Off: nothing is queued, and what was queued waits.
    old.down().await;
    happen(&world, 1..2).await;
    until_all_but(&world, &id, 1).await;
    let off = patch(&world, &id, json!({"enabled": false})).await;
    assert_eq!(
        (&off["enabled"], &off["url"]),
        (&json!(false), &json!(old.url()))
    );
    happen(&world, 2..5).await;
    world.restart().await;
    let (_, deliveries) = world.get(&format!("{WEBHOOKS}/{id}/deliveries")).await;
    assert_eq!(deliveries.as_array().unwrap().len(), 2, "{deliveries}");

    // On again, elsewhere, with another secret and for less.
    let changed = patch(
        &world,
        &id,
        json!({"enabled": true, "url": new.url(), "signing_secret": "another", "operations": ["destroy", "destroy"]}),
    )
    .await;
    assert_eq!(changed["operations"], json!(["destroy"]));
    happen(&world, 5..8).await;
    let calls = new.until(3).await;
    assert_eq!(machines(&calls), named([1, 5, 7]));
    assert!(calls.iter().all(|call| call.is_signed_with("another")));

    // Gone, in the middle of an attempt.
    new.answers(Answer::Hang);
    happen(&world, 9..10).await;
    new.until(4).await;
    let (status, _) = world.delete(&format!("{WEBHOOKS}/{id}")).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    for (method, path) in [
        (Method::GET, format!("{WEBHOOKS}/{id}")),
        (Method::DELETE, format!("{WEBHOOKS}/{id}")),
        (Method::GET, format!("{WEBHOOKS}/{id}/deliveries")),
        (Method::GET, format!("{WEBHOOKS}/{id}/deliveries/x")),
    ] {
        let (status, body) = answer(world.request(method, &path)).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::NOT_FOUND, &json!("webhook_not_found"))
        );
    }
    new.answers(Answer::Status(200));
    happen(&world, 11..13).await;
    world.restart().await;
    let (_, all) = world.get(WEBHOOKS).await;
    assert_eq!(all, json!([]));
    assert_eq!(new.calls().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_events_are_delivered_to_nobody() {
    let world = World::with(config()).await;
    let receiver = Receiver::start().await;
    hook(&world, &receiver.url(), &OPERATIONS).await;
    let hidden = NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        audience: Audience::Internal,
        operation: "create",
        status: "succeeded",
        actor_kind: "system",
        ..NewEvent::default()
    };
    let store = &world.server.as_ref().unwrap().app().store;
    store
        .write(move |tx| event::append(tx, &hidden).map(drop))
        .await
        .unwrap();
    happen(&world, 0..1).await;
    assert_eq!(machines(&receiver.until(1).await), named([0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_stays_inside() {
    let mut world = World::with(config()).await;
    let receiver = Receiver::start().await;
    receiver.answers(Answer::StatusFor(2, 500));
    let id = hook(&world, &receiver.url(), &OPERATIONS).await;
    happen(&world, 0..1).await;
    receiver.until(3).await;
    let delivery = until_all(&world, &id, 1, "succeeded").await.remove(0);
    let mut said = Vec::new();
    for path in [
        WEBHOOKS.to_owned(),
        format!("{WEBHOOKS}/{id}"),
        format!("{WEBHOOKS}/{id}/deliveries"),
        format!(
            "{WEBHOOKS}/{id}/deliveries/{}",
            delivery["id"].as_str().unwrap()
        ),
    ] {
        said.push(world.get(&path).await.1.to_string());
    }
    said.push(
        patch(&world, &id, json!({"signing_secret": SECRET}))
            .await
            .to_string(),
    );
    // What is no secret at all may have been meant as one.
    let (status, body) = world
        .post(
            WEBHOOKS,
            json!({"url": receiver.url(), "operations": ["create"], "signing_secret": [SECRET]}),
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    said.push(body.to_string());
    for text in &said {
        assert!(!text.contains(SECRET), "{text}");
    }
    let request = nullspace_api::webhook::CreateWebhookRequest {
        url: receiver.url(),
        operations: vec![],
        signing_secret: nullspace_api::webhook::Secret(SECRET.into()),
        enabled: None,
    };
    assert!(!format!("{request:?}").contains(SECRET));
    world.stop().await;
    for entry in std::fs::read_dir(world.data.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes
                .windows(SECRET.len())
                .any(|part| part == SECRET.as_bytes());
            assert!(!found, "{path:?}");
        }
    }
    // And still opens after a restart.
    world.start().await;
    happen(&world, 1..2).await;
    assert!(receiver.until(4).await[3].is_signed_with(SECRET));
}

#[tokio::test]
async fn bad_webhooks_are_refused() {
    let world = World::new().await;
    let good = json!({"url": "https://93.184.216.34/hook", "operations": ["create"], "signing_secret": SECRET});
    let (status, made) = world.post(WEBHOOKS, good.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    assert_eq!(
        (&made["enabled"], &made["has_signing_secret"]),
        (&json!(true), &json!(true))
    );
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let id = made["id"].as_str().unwrap();
    for (field, value) in [
        ("url", json!("")),
        ("url", json!("ftp://example.com")),
        ("url", json!("https://user:pw@example.com/")),
        ("url", json!("http://169.254.169.254/latest/meta-data")),
        (
            "url",
            json!(format!("https://example.com/{}", "x".repeat(3000))),
        ),
        ("operations", json!([])),
        ("operations", json!(["explode"])),
        ("operations", json!("create")),
        ("signing_secret", json!("")),
        ("signing_secret", json!("s".repeat(1025))),
        ("signing_secret", json!(7)),
        ("enabled", json!("yes")),
    ] {
        let (status, body) = world.post(WEBHOOKS, with(field, value.clone())).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{field} {value}"
        );
        assert!(
            body["error"].as_str().unwrap().contains(field),
            "{field} {value}: {body}"
        );
        let request = world.request(Method::PATCH, &format!("{WEBHOOKS}/{id}"));
        let (status, _) = answer(request.json(&json!({field: value}))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "patch {field} {value}");
    }
    for missing in ["url", "operations", "signing_secret"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(missing);
        assert_eq!(
            world.post(WEBHOOKS, body).await.0,
            StatusCode::BAD_REQUEST,
            "{missing}"
        );
    }
    // Private receivers need the setting, however they are written, and the answer says which.
    for host in [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "[::1]",
        "10.0.0.1",
        "192.168.0.1:8080",
        "[::ffff:127.0.0.1]",
    ] {
        let (status, body) = world
            .post(WEBHOOKS, with("url", json!(format!("http://{host}/"))))
            .await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{host}");
        assert!(
            body["error"]
                .as_str()
                .unwrap()
                .contains("webhook_private_receivers"),
            "{host}: {body}"
        );
    }
    let open = world.client.get(world.url(WEBHOOKS));
    assert_eq!(answer(open).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_receiver_is_not_called_once_the_setting_is_gone() {
    let mut world = World::with(config()).await;
    let receiver = Receiver::start().await;
    let by_name = receiver.url().replace("127.0.0.1", "localhost");
    let ids = [
        hook(&world, &receiver.url(), &OPERATIONS).await,
        hook(&world, &by_name, &OPERATIONS).await,
    ];
    happen(&world, 0..1).await;
    receiver.until(2).await;
    for id in &ids {
        until_all(&world, id, 1, "succeeded").await;
    }
    world.config.webhook_private_receivers = false;
    world.restart().await;
    happen(&world, 1..2).await;
    for id in &ids {
        let waiting = until_all_but(&world, id, 1).await;
        let error = waiting[0]["last_error"].as_str().unwrap();
        assert!(error.contains("webhook_private_receivers"), "{error}");
    }
    assert_eq!(receiver.calls().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_go_but_not_before_they_are_delivered() {
    let mut world = World::with(config()).await;
    let mut receiver = Receiver::start().await;
    let id = hook(&world, &receiver.url(), &["fork"]).await;
    let old = |operation: &'static str| NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        occurred_at: nullspace_api::time::now() - 40 * 86_400 * 1_000_000,
        operation,
        status: "succeeded",
        machine_id: Some("mch_old".into()),
        actor_kind: "system",
        ..NewEvent::default()
    };
    receiver.down().await;
    world.config.webhook_give_up_secs = 365 * 86_400;
    world.restart().await;
    let (first, second) = (old("fork"), old("create"));
    let store = world.server.as_ref().unwrap().app().store.clone();
    store
        .write(move |tx| {
            event::append(tx, &first)?;
            event::append(tx, &second)?;
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
    drop(store);
    let operations = async |world: &World| -> Vec<String> {
        let (_, page) = world
            .get("/v1/lifecycle/events?machine_id=mch_old&order=asc")
            .await;
        let events = page["events"].as_array().unwrap().clone();
        events
            .iter()
            .map(|e| e["operation"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(operations(&world).await, ["fork", "create"]);
    // Each start begins with it.
    world.restart().await;
    until(async || operations(&world).await == ["fork"]).await;
    receiver.up().await;
    receiver.until(1).await;
    until_all(&world, &id, 1, "succeeded").await;
    world.restart().await;
    until(async || operations(&world).await.is_empty()).await;
    assert!(until_all(&world, &id, 0, "succeeded").await.is_empty());
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it did not come to that");
}

//! Lifecycle events: what the lists show.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{World, answer};
use nullspace_store::{
    StoreError,
    event::{self, Audience, NewEvent},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Half an hour, in microseconds.
const HALF: i64 = 1_800_000_000;

/// One of an hour ago: what is much older the server forgets as it starts.
fn forked(number: i64) -> NewEvent {
    NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        occurred_at: nullspace_api::time::now() - 2 * HALF + number,
        operation: "fork",
        status: "succeeded",
        machine_id: Some("mch_target".into()),
        snapshot_id: Some("snap_1".into()),
        source_machine_id: Some("mch_source".into()),
        target_machine_id: Some("mch_target".into()),
        actor_kind: "user",
        ..NewEvent::default()
    }
}

async fn append(world: &World, events: Vec<NewEvent>) {
    let store = &world.server.as_ref().unwrap().app().store;
    store
        .write(move |tx| {
            for event in &events {
                event::append(tx, event)?;
            }
            Ok::<_, StoreError>(())
        })
        .await
        .unwrap();
}

async fn ids(world: &World, path: &str) -> Vec<String> {
    let (status, page) = world.get(path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {page}");
    page["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn every_filter_narrows() {
    let world = World::new().await;
    let (_, machine) = world
        .post("/v1/sandboxes", json!({"metadata": {"team": "a"}}))
        .await;
    let id = machine["id"].as_str().unwrap();
    let mut hidden = forked(1);
    hidden.audience = Audience::Internal;
    hidden.operation = "egress_denied";
    append(&world, vec![forked(0), hidden]).await;

    let (_, page) = world.get("/v1/lifecycle/events?order=asc").await;
    assert_eq!(page["events"].as_array().unwrap().len(), 3, "{page}");
    let first = &page["events"][0];
    assert_eq!(
        (&first["sandbox_id"], &first["machine_id"]),
        (&json!(id), &json!(id))
    );
    assert_eq!(first["metadata"], json!({"team": "a"}));
    let fork = &page["events"][2];
    for (field, value) in [
        ("machine_id", "mch_target"),
        ("sandbox_id", "mch_target"),
        ("snapshot_id", "snap_1"),
        ("source_machine_id", "mch_source"),
        ("source_sandbox_id", "mch_source"),
        ("target_machine_id", "mch_target"),
        ("target_sandbox_id", "mch_target"),
        ("audience", "customer"),
    ] {
        assert_eq!(fork[field], value, "{field}");
    }
    assert!(!fork.as_object().unwrap().values().any(Value::is_null));

    let fork = fork["id"].as_str().unwrap();
    let half = nullspace_api::time::rfc3339(nullspace_api::time::now() - HALF);
    let before = format!("/v1/lifecycle/events?to={half}");
    for path in [
        "/v1/lifecycle/events?operation=fork",
        "/v1/lifecycle/events?snapshot_id=snap_1",
        "/v1/lifecycle/events?machine_id=mch_target",
        "/v1/lifecycle/events?sandbox_id=mch_source",
        "/v1/lifecycle/events?source_sandbox_id=mch_source",
        "/v1/lifecycle/events?target_machine_id=mch_target&status=succeeded",
        &before,
        "/v1/sandboxes/mch_source/lifecycle",
        "/v1/machines/mch_target/lifecycle?operation=fork&audience=customer",
        "/v1/snapshots/snap_1/lifecycle",
    ] {
        assert_eq!(ids(&world, path).await, [fork], "{path}");
    }
    for path in [
        "/v1/lifecycle/events?operation=hibernate",
        "/v1/lifecycle/events?snapshot_id=snap_1&status=failed",
        "/v1/lifecycle/events?machine_id=mch_source&target_machine_id=mch_source",
        "/v1/machines/mch_target/lifecycle?operation=create",
    ] {
        assert!(ids(&world, path).await.is_empty(), "{path}");
    }
    let inside = ids(&world, "/v1/lifecycle/events?audience=internal").await;
    assert_eq!(inside.len(), 1);
    let path =
        "/v1/lifecycle/events?audience=internal&operation=egress_denied&sandbox_id=mch_source";
    assert_eq!(ids(&world, path).await, inside);
    let pages = [
        ids(&world, "/v1/lifecycle/events?limit=2&order=asc").await,
        ids(&world, "/v1/lifecycle/events?limit=2&order=asc&offset=2").await,
    ];
    let mut all = ids(&world, "/v1/lifecycle/events").await;
    all.reverse();
    assert_eq!(pages.concat(), all);
}

#[tokio::test]
async fn filters_that_mean_nothing_are_refused() {
    let world = World::new().await;
    let id = world.machine().await;
    for query in [
        "operation=explode",
        "operation=egress_denied",
        "status=done",
        "audience=everybody",
        "order=random",
        "from=yesterday",
        "to=1700000000",
        "limit=0",
        "limit=201",
        "offset=-1",
        "machine_id=mch_1&sandbox_id=mch_2",
        &format!("snapshot_id={}", "s".repeat(300)),
    ] {
        let (status, body) = world.get(&format!("/v1/lifecycle/events?{query}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {body}");
        assert_eq!(body["code"], "invalid_request", "{query}");
    }
    // The path says which machine; a query does not say another.
    let forged = format!("/v1/machines/{id}/lifecycle?machine_id=mch_other");
    assert_eq!(world.get(&forged).await.0, StatusCode::BAD_REQUEST);
    for (path, code) in [
        ("/v1/machines/mch_none/lifecycle", "machine_not_found"),
        ("/v1/sandboxes/mch_none/lifecycle", "sandbox_not_found"),
        ("/v1/snapshots/snap_none/lifecycle", "snapshot_not_found"),
    ] {
        let (status, body) = world.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(body["code"], code);
    }
    let open = world
        .client
        .request(Method::GET, world.url("/v1/lifecycle/events"));
    assert_eq!(answer(open).await.0, StatusCode::UNAUTHORIZED);
}

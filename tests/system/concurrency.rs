//! Many at once.

use futures_util::{StreamExt, stream};
use reqwest::StatusCode;
use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_machines_asked_for_at_once() {
    let world = World::start().await;
    let one = async |number: u32| {
        let id = world
            .machine(json!({"template": "host", "metadata": {"number": number}}))
            .await;
        assert_eq!(
            world.out(&id, &format!("echo {number}")).await,
            number.to_string()
        );
        id
    };
    let ids: Vec<String> = stream::iter(0..100)
        .map(one)
        .buffer_unordered(100)
        .collect()
        .await;
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), 100);
    assert_eq!(world.settled().await, ids.iter().cloned().collect());
    let gone = async |id: String| world.delete(&format!("/v1/machines/{id}")).await.0;
    let statuses: Vec<StatusCode> = stream::iter(ids)
        .map(gone)
        .buffer_unordered(100)
        .collect()
        .await;
    assert!(
        statuses.iter().all(|s| *s == StatusCode::OK),
        "{statuses:?}"
    );
    assert!(world.settled().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_in_one_machine() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    let one = async |number: u32| {
        let line = format!("i=0; while [ $i -lt 200 ]; do echo {number} $i; i=$((i+1)); done");
        let out = world.out(&id, &line).await;
        assert_eq!(out.lines().count(), 200);
        assert!(
            out.lines()
                .all(|line| line.starts_with(&format!("{number} ")))
        );
    };
    stream::iter(0..100)
        .map(one)
        .buffer_unordered(50)
        .collect::<Vec<_>>()
        .await;
}

//! The OpenAPI document: what is served, what is checked in, and what is routed are one.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::Value;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/nullspace.json");

/// `UPDATE_OPENAPI=1` writes the file anew.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_that_is_checked_in_is_the_one_that_is_served() {
    let world = World::new().await;
    let served = world
        .client
        .get(world.url("/openapi.json"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(FILE, format!("{served}\n")).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        kept.trim_end() == served,
        "openapi/nullspace.json is not what the server says: run UPDATE_OPENAPI=1 cargo test -p nullspace-server --test openapi"
    );
}

#[test]
fn every_operation_has_a_name_of_its_own_and_a_summary() {
    let document: Value =
        serde_json::from_str(&nullspace_server::http::document().to_json().unwrap()).unwrap();
    let mut names = std::collections::BTreeSet::new();
    let mut count = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation.get("responses").is_none() {
                continue;
            }
            count += 1;
            let name = operation["operationId"].as_str().unwrap();
            assert!(
                names.insert(name.to_owned()),
                "{method} {path}: {name} twice"
            );
            assert!(
                operation["summary"].is_string(),
                "{method} {path} has no summary"
            );
        }
    }
    // All of the machines' routes twice, the agents' once.
    assert!(count > 60, "{count}");
}

//! Rules for traffic out, as far as the server goes: what it takes, records, tells the engine and puts into the log.

#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Duration;

use common::{World, answer};
use nullspace_engine::{
    Denial, DeniedTarget, Engine,
    egress::{Mode, Rules},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

impl World {
    async fn patch(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::PATCH, path).json(&body)).await
    }

    async fn with_network(&self, network: Value) -> (StatusCode, Value) {
        self.post("/v1/machines", json!({"network": network})).await
    }

    /// Waits for events that clients are not shown.
    async fn internal(&self, id: &str, operation: &str, count: usize) -> Vec<Value> {
        let path = format!(
            "/v1/lifecycle/events?audience=internal&machine_id={id}&operation={operation}&order=asc"
        );
        for _ in 0..400 {
            let (_, page) = self.get(&path).await;
            let events = page["events"].as_array().unwrap().clone();
            if events.len() >= count {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{operation} of {id} is not in the log {count} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_asked_for_in_every_spelling() {
    let world = World::new().await;
    for (network, shown) in [
        (json!({}), json!({"mode": "allow_all"})),
        (json!({"egress": {}}), json!({"mode": "allow_all"})),
        (
            json!({"egress": {"mode": "deny_all"}}),
            json!({"mode": "deny_all"}),
        ),
        (
            json!({"allow_out": ["1.1.1.1"], "deny_out": ["0.0.0.0/0"]}),
            json!({"mode": "custom", "allow_cidrs": ["1.1.1.1/32"], "deny_cidrs": ["0.0.0.0/0"]}),
        ),
        (
            json!({"egress": null, "allow_out": null, "deny_out": ["10.0.0.0/8"]}),
            json!({"mode": "custom", "deny_cidrs": ["10.0.0.0/8"]}),
        ),
        (
            json!({"egress": {"allow_cidrs": ["1.1.1.1/32"], "deny_cidrs": []}}),
            json!({"mode": "custom", "allow_cidrs": ["1.1.1.1/32"]}),
        ),
        (
            json!({"egress": {"mode": "custom", "allow_domains": ["*.Bücher.example."], "deny_domains": ["*"],
                "rate_limit": {"kbit_per_sec": 1000, "burst": 64}}}),
            json!({"mode": "custom", "allow_domains": ["*.xn--bcher-kva.example"], "deny_domains": ["*"],
                "rate_limit": {"kbit_per_sec": 1000, "burst": 64}}),
        ),
        (
            json!({"egress": {"mode": "deny_all", "allow_cidrs": ["0.0.0.0/0"]}}),
            json!({"mode": "deny_all"}),
        ),
    ] {
        let (status, body) = world.with_network(network.clone()).await;
        assert_eq!(status, StatusCode::CREATED, "{network}: {body}");
        assert_eq!(body["egress"], shown, "{network}");
        assert_eq!(body["internet_access"], shown["mode"] != "deny_all");
        let id = body["id"].as_str().unwrap();
        let rules = world.engine.egress(id).unwrap();
        assert_eq!(serde_json::to_value(&rules).unwrap(), shown);
        let (_, one) = world
            .get(&format!("/v1/sandboxes/{id}?fields=egress"))
            .await;
        assert_eq!(one, json!({"egress": shown}));
    }
    // No internet is no internet, whatever else is said.
    let body = json!({"internet_access": false, "network": {"egress": {"mode": "allow_all"}}});
    let (_, made) = world.post("/v1/sandboxes", body).await;
    assert_eq!(made["egress"], json!({"mode": "deny_all"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_recorded_told_and_kept() {
    let mut world = World::new().await;
    let id = world.machine().await;
    let path = format!("/v1/machines/{id}/egress");
    let egress =
        json!({"mode": "custom", "allow_cidrs": ["10.0.0.0/8"], "allow_domains": ["a.example"]});
    let (status, body) = world.patch(&path, json!({"egress": egress})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body, json!({"machine_id": id, "egress": egress}));
    assert_eq!(world.engine.egress(&id).unwrap().mode, Mode::Custom);
    // As a whole: nothing of the rules before is left.
    let path = format!("/v1/sandboxes/{id}/egress");
    let next = json!({"mode": "custom", "deny_cidrs": ["10.1.0.0/16"]});
    let (_, body) = world.patch(&path, json!({"egress": next})).await;
    assert_eq!(body, json!({"sandbox_id": id, "egress": next}));
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(shown["egress"], next);

    // What the engine did not get to hear, the next server tells it: the record counts.
    world.stop().await;
    world
        .engine
        .set_egress(&id, &Rules::default())
        .await
        .unwrap();
    world.start().await;
    for _ in 0..400 {
        if world.engine.egress(&id).unwrap() != Rules::default() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rules = world.engine.egress(&id).unwrap();
    assert_eq!(serde_json::to_value(rules).unwrap(), next);
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(shown["egress"], next);

    let changes = world.internal(&id, "egress_updated", 2).await;
    assert_eq!(changes.len(), 2);
    assert_eq!(changes[0]["metadata"], json!({"egress": egress}));
    assert_eq!(changes[1]["metadata"], json!({"egress": next}));
    assert_eq!(changes[1]["actor_kind"], "user");
    assert_eq!(changes[1]["audience"], "internal");
    // Published clients know a fixed set of operations.
    assert_eq!(
        world.events(&id).await,
        ["create/requested", "create/succeeded"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_fails_is_no_success() {
    let world = World::new().await;
    let id = world.machine().await;
    world.engine.fail_create(&id);
    let egress = json!({"mode": "deny_all"});
    let (status, body) = world
        .patch(
            &format!("/v1/machines/{id}/egress"),
            json!({"egress": egress}),
        )
        .await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{body}");
    // Recorded first: the next attempt, or the next server, finishes it.
    let (_, shown) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(shown["egress"], egress);
}

#[tokio::test(flavor = "multi_thread")]
async fn denials_are_told_once_and_then_counted() {
    let world = World::new().await;
    let id = world.machine().await;
    let denial = |target: DeniedTarget, count| Denial {
        id: id.clone(),
        target,
        count,
    };
    let address = DeniedTarget::Address {
        address: [192, 0, 2, 1].into(),
        protocol: 6,
        port: 443,
    };
    for _ in 0..5 {
        world.engine.deny(denial(address.clone(), 3));
    }
    world.engine.deny(denial(
        DeniedTarget::Name("evil.example".parse().unwrap()),
        1,
    ));
    let events = world.internal(&id, "egress_denied", 2).await;
    let told: Vec<&Value> = events.iter().map(|event| &event["metadata"]).collect();
    assert_eq!(
        told,
        [
            &json!({"address": "192.0.2.1", "port": 443, "protocol": "tcp", "count": 3}),
            &json!({"name": "evil.example", "port": 53, "protocol": "dns", "count": 1}),
        ]
    );
    assert_eq!(
        world.events(&id).await,
        ["create/requested", "create/succeeded"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_rules_say_what_is_wrong() {
    let world = World::new().await;
    let id = world.machine().await;
    let many: Vec<String> = (0..257).map(|n| format!("10.0.{}.0/24", n % 256)).collect();
    let rows = [
        (json!({"mode": "some"}), "mode"),
        (
            json!({"mode": "custom", "allow_cidrs": ["2001:db8::/32"]}),
            "allow_cidrs[0]",
        ),
        (
            json!({"mode": "custom", "allow_cidrs": ["::ffff:1.2.3.4"]}),
            "allow_cidrs[0]",
        ),
        (
            json!({"mode": "custom", "deny_cidrs": ["1.1.1.1", "10.0.0.1/8"]}),
            "deny_cidrs[1]",
        ),
        (
            json!({"mode": "custom", "deny_cidrs": ["10.0.0.0/33"]}),
            "deny_cidrs[0]",
        ),
        (
            json!({"mode": "custom", "deny_cidrs": ["example.com"]}),
            "deny_cidrs[0]",
        ),
        (
            json!({"mode": "custom", "deny_cidrs": "10.0.0.0/8"}),
            "deny_cidrs",
        ),
        (json!({"mode": "custom", "deny_cidrs": [1]}), "deny_cidrs"),
        (
            json!({"mode": "custom", "allow_cidrs": many}),
            "allow_cidrs",
        ),
        (
            json!({"mode": "custom", "allow_domains": ["1.2.3.4"]}),
            "allow_domains[0]",
        ),
        (
            json!({"mode": "custom", "allow_domains": ["https://a.example"]}),
            "allow_domains[0]",
        ),
        (
            json!({"mode": "custom", "allow_domains": ["a.*.example"]}),
            "allow_domains[0]",
        ),
        (
            json!({"mode": "custom", "allow_domains": [""]}),
            "allow_domains[0]",
        ),
        (
            json!({"mode": "custom", "allow_domains": ["a.example"], "deny_domains": ["A.Example."]}),
            "deny_domains",
        ),
        (json!({"mode": "custom", "rate_limit": {}}), "rate_limit"),
        (
            json!({"mode": "custom", "rate_limit": {"burst": 5}}),
            "rate_limit",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"pps": 1, "kbit_per_sec": 1}}),
            "rate_limit",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"pps": 0}}),
            "rate_limit.pps",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"pps": -1}}),
            "rate_limit",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"pps": 4_294_967_295u32}}),
            "rate_limit",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"pps": 1, "burst": 2_000_000}}),
            "rate_limit.burst",
        ),
        (
            json!({"mode": "custom", "rate_limit": {"bps": 1}}),
            "rate_limit",
        ),
        (
            json!({"mode": "allow_all", "deny_cidrs": ["10.0.0.0/8"]}),
            "deny_cidrs",
        ),
        (
            json!({"mode": "deny_all", "allow_cidrs": ["x"]}),
            "allow_cidrs[0]",
        ),
        (json!({"mode": "custom", "domains": []}), "domains"),
        (json!(5), "egress"),
    ];
    for (egress, field) in rows {
        let (status, body) = world.with_network(json!({"egress": egress})).await;
        let message = body["error"].as_str().unwrap_or_default();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{egress}: {body}");
        assert_eq!(body["code"], "invalid_request", "{egress}");
        assert!(message.contains(field), "{egress}: {message}");
        let path = format!("/v1/machines/{id}/egress");
        let (status, body) = world.patch(&path, json!({"egress": egress})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{egress}: {body}");
    }
    for network in [
        json!({"allow_out": ["10.0.0.0/8"], "egress": {"mode": "allow_all"}}),
        json!({"deny_out": ["10.0.0.1/8"]}),
        json!({"deny_out": ["example.com"]}),
        json!({"allow_out": many}),
    ] {
        let (status, body) = world.with_network(network.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{network}: {body}");
    }
    let path = format!("/v1/machines/{id}/egress");
    for body in [
        json!({}),
        json!({"egress": {}}),
        json!({"egress": null}),
        json!({"mode": "deny_all"}),
    ] {
        let (status, answer) = world.patch(&path, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
    }
    assert_eq!(world.engine.egress(&id), Some(Rules::default()));

    let open = json!({"egress": {"mode": "allow_all"}});
    let (status, body) = world
        .patch("/v1/machines/mch_nobody/egress", open.clone())
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("machine_not_found"))
    );
    world.delete(&format!("/v1/machines/{id}")).await;
    let (status, body) = world.patch(&path, open).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::CONFLICT, &json!("machine_not_ready"))
    );
}

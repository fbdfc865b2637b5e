//! What the server tells about itself: metrics for Prometheus, spans for OpenTelemetry.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, status::StatusCode as SpanStatus},
};
use prost::Message;
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    python::{script, tools_python},
    world::{KEY, World},
};

/// The address that a server says it has its metrics at.
fn metrics_url(world: &World) -> String {
    let log = world.serve_log();
    let line = log
        .lines()
        .find(|line| line.starts_with("Metrics: "))
        .unwrap();
    line["Metrics: ".len()..].to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_the_metrics() {
    let world = World::with(&["--metrics-addr", "127.0.0.1:0", "--isolation", "native"]).await;
    let id = world
        .machine(json!({"template": "host", "memory_mb": 128}))
        .await;
    for _ in 0..2 {
        world.out(&id, "true").await;
    }
    world.get("/secret-in-a-path?secret=in-a-query").await;
    let url = metrics_url(&world);
    let client = reqwest::Client::new();
    let refused = client
        .get(format!("{}/metrics", world.base_url()))
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let mut monitor = world
        .program()
        .args(["monitor", "stream"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // Without a key where it has an address of its own.
    let text = loop {
        let answer = client.get(&url).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(
            answer.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        let text = answer.text().await.unwrap();
        if text.contains("nullspace_websockets 1\n") {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}");
    };
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let file = world.home().join("metrics");
    std::fs::write(&file, text).unwrap();
    script(
        &world,
        &tools_python(),
        "prometheus.py",
        &[&file, Path::new(&id)],
    );

    // With a key at the address of the API; nothing else without one.
    let (status, text) = world.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        text.as_str()
            .unwrap()
            .contains("nullspace_machines{state=\"running\"} 1")
    );
    let other = url.replace("/metrics", "/v1/machines");
    let refused = client.get(other).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    // One that has ended is not measured any more.
    world.delete(&format!("/v1/machines/{id}")).await;
    let text = client.get(&url).send().await.unwrap().text().await.unwrap();
    assert!(!text.contains(&id), "{text}");
}

/// What a collector got.
#[derive(Default)]
struct Collected {
    spans: Mutex<Vec<Span>>,
    bytes: Mutex<Vec<u8>>,
    key: Mutex<String>,
}

async fn take(State(collected): State<Arc<Collected>>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let key = headers
        .get("x-collector-key")
        .map(|key| key.to_str().unwrap());
    *collected.key.lock().unwrap() = key.unwrap_or_default().to_owned();
    let request = ExportTraceServiceRequest::decode(body.clone()).unwrap();
    for resource in request.resource_spans {
        let name = resource.resource.unwrap().attributes;
        assert!(name.iter().any(|a| a.key == "service.name"), "{name:?}");
        for scope in resource.scope_spans {
            collected.spans.lock().unwrap().extend(scope.spans);
        }
    }
    collected.bytes.lock().unwrap().extend_from_slice(&body);
    Vec::new()
}

/// A collector that decodes what comes.
async fn collector() -> (SocketAddr, Arc<Collected>) {
    let collected = Arc::new(Collected::default());
    let router = Router::new()
        .route("/v1/traces", post(take))
        .with_state(collected.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, collected)
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|a| a.key == name);
    let value = found
        .unwrap_or_else(|| panic!("{name} in {span:?}"))
        .value
        .clone();
    format!("{:?}", value.unwrap().value.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_exported() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CALLER: &str = "b7ad6b7169203331";
    let (address, collected) = collector().await;
    let endpoint = format!("http://{address}");
    let mut world = World::with(&["--otlp-endpoint", &endpoint]).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let traced = |method, path: &str| world.request(method, path).header("traceparent", &parent);
    let body = json!({"template": "host", "memory_mb": 128, "envs": {"TOKEN": "hidden-in-envs"}});
    let answer = traced(reqwest::Method::POST, "/v1/machines?x=hidden-in-query")
        .json(&body)
        .send()
        .await
        .unwrap();
    let machine: serde_json::Value = answer.json().await.unwrap();
    let id = machine["id"].as_str().unwrap().to_owned();
    let body = json!({"command": "echo hidden-in-command; exit 3", "shell": true, "envs": {"A": "hidden-in-exec"}});
    traced(reqwest::Method::POST, &format!("/v1/machines/{id}/exec"))
        .json(&body)
        .send()
        .await
        .unwrap();
    // What is no context counts as none.
    let answer = world
        .request(reqwest::Method::GET, "/v1/machines/mch_none")
        .header("traceparent", "00-nonsense-01")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let project = world.home().join("traced");
    std::fs::create_dir(&project).unwrap();
    let config = "name = \"traced\"\nmode = \"job\"\ntemplate = \"host\"\nentrypoint = \"echo done\"\n\
                  [env]\noptional = [\"B\"]\n";
    std::fs::write(project.join("nullspace.agent.toml"), config).unwrap();
    let done = world.nullspace(&["agent", "deploy", project.to_str().unwrap()]);
    assert!(done.status.success(), "{done:?}");
    let done = world.nullspace(&[
        "agent",
        "run",
        "traced",
        "--follow",
        "--env",
        "B=hidden-in-run",
    ]);
    assert!(done.status.success(), "{done:?}");
    // What is not sent yet is sent at a clean stop.
    assert!(world.terminate().success());
    let spans = collected.spans.lock().unwrap().clone();
    let all = |name: &str| -> Vec<&Span> { spans.iter().filter(|s| s.name == name).collect() };
    let one = |name: &str| -> &Span {
        let found = all(name);
        assert_eq!(
            found.len(),
            1,
            "{name}: {:#?}",
            spans.iter().map(|s| &s.name).collect::<Vec<_>>()
        );
        found[0]
    };

    let request = all("POST /v1/machines/")
        .into_iter()
        .chain(all("POST /v1/machines"))
        .find(|s| hex::encode(&s.trace_id) == TRACE)
        .expect("the request goes on with its caller's trace");
    assert_eq!(hex::encode(&request.parent_span_id), CALLER);
    assert_eq!(request.kind, 2, "a server's");
    assert!(attribute(request, "status").contains("201"));
    let create = all("machine.create")
        .into_iter()
        .find(|s| s.parent_span_id == request.span_id)
        .expect("what it made");
    assert!(attribute(create, "machine").contains(&id));
    for step in ["engine.create", "guest.connect", "machine.record"] {
        assert!(
            all(step).iter().any(|s| s.parent_span_id == create.span_id),
            "{step}"
        );
    }
    let exec = one("exec");
    assert_eq!(hex::encode(&exec.trace_id), TRACE);
    assert!(attribute(exec, "exit_code").contains('3'));
    let lost = all("GET /v1/machines/{id}")
        .into_iter()
        .find(|s| attribute(s, "path").contains("mch_none"))
        .expect("a request that was refused");
    assert!(lost.parent_span_id.is_empty(), "{lost:?}");
    assert_ne!(
        lost.status.as_ref().map(|s| s.code),
        Some(SpanStatus::Error as i32)
    );

    let run = one("agent.run");
    assert!(attribute(run, "state").contains("succeeded"));
    for step in ["agent.machine", "agent.entrypoint", "agent.finish"] {
        assert_eq!(one(step).parent_span_id, run.span_id, "{step}");
    }

    let bytes = collected.bytes.lock().unwrap().clone();
    let has = |what: &str| {
        bytes
            .windows(what.len())
            .any(|part| part == what.as_bytes())
    };
    assert!(has(&id), "what is there is found");
    for secret in [
        "hidden-in-envs",
        "hidden-in-query",
        "hidden-in-command",
        "hidden-in-exec",
        "hidden-in-run",
        KEY,
    ] {
        assert!(!has(secret), "{secret}");
    }
    world.serve().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_hurts_nobody() {
    // Taken and closed: nothing listens there. And one that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = closed.local_addr().unwrap();
    drop(closed);
    for address in [gone, silent.local_addr().unwrap()] {
        let endpoint = format!("http://{address}");
        let mut world = World::with(&["--otlp-endpoint", &endpoint]).await;
        let id = world
            .machine(json!({"template": "host", "memory_mb": 128}))
            .await;
        for _ in 0..20 {
            assert_eq!(world.out(&id, "echo well").await, "well");
        }
        assert!(world.terminate().success(), "{address}");
        world.serve().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_collector_is_refused() {
    let world = World::start().await;
    for endpoint in ["nowhere", "ftp://127.0.0.1/", "grpc://127.0.0.1:4317"] {
        let done = world.nullspace(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--otlp-endpoint",
            endpoint,
        ]);
        assert_eq!(done.status.code(), Some(2), "{endpoint}");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(said.contains("no address of a collector"), "{said}");
    }
}

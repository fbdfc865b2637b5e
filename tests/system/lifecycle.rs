//! Events and webhooks of real machines: with the published SDKs, with both command lines, and through `kill -9`.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python},
    receiver::{Answer, Call, Receiver, SECRET},
    world::{World, repository},
};

/// How long anything may take: far more than it ever does.
const LIMIT: Duration = Duration::from_secs(60);

/// A server that sends webhooks to this host, and tries again soon.
async fn world() -> (World, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let settings = "[limits]\nwebhook_private_receivers = true\nwebhook_retry_pause_ms = 50\nwebhook_timeout_ms = 2000\n";
    std::fs::write(file.path(), settings).unwrap();
    let world = World::with(&["--config", file.path().to_str().unwrap()]).await;
    (world, file)
}

/// Runs a script while the receiver is served: the test's own threads must go on.
async fn script(python: PathBuf, name: &'static str) {
    let (world, _settings) = world().await;
    let receiver = Receiver::start().await;
    let url = receiver.url();
    let done = tokio::task::spawn_blocking(move || {
        let done = world
            .isolated(python)
            .arg(repository().join("tests/python").join(name))
            .arg(url)
            .output()
            .unwrap();
        (world, done)
    });
    let (_world, done) = done.await.unwrap();
    assert!(done.status.success(), "{name}: {}", said(&done));
}

fn said(done: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_the_sdk() {
    script(python(), "events.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_with_the_newer_sdk() {
    script(next_python(), "events_next.py").await;
}

async fn hook(world: &World, receiver: &Receiver) -> String {
    let body = json!({"url": receiver.url(), "operations": ["create", "destroy"], "signing_secret": SECRET});
    let (status, made) = world.post("/v1/lifecycle/webhooks", body).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

/// The ids of events in the order in which each first arrived.
fn first_arrivals(calls: &[Call]) -> Vec<String> {
    let mut seen = HashSet::new();
    calls
        .iter()
        .map(|call| call.header("x-nullspace-event-id"))
        .filter(|id| seen.insert(id.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_the_server_delivers_everything() {
    let (mut world, _settings) = world().await;
    let mut receiver = Receiver::start().await;
    let webhook = hook(&world, &receiver).await;
    for round in 0..4 {
        // In the middle of an attempt, without a receiver, with one that refuses, and in full flow.
        match round {
            0 => receiver.answers(Answer::Hang),
            1 => receiver.down().await,
            2 => {
                receiver.up().await;
                receiver.answers(Answer::Status(503));
            }
            _ => receiver.answers(Answer::Status(204)),
        }
        let before = receiver.calls().len();
        for _ in 0..3 {
            let id = world.machine(json!({"template": "host"})).await;
            world.delete(&format!("/v1/machines/{id}")).await;
        }
        if round != 1 {
            receiver.until(before + 1).await;
        }
        world.kill();
        world.serve().await;
    }
    // What the log says, all of it, is what came: at least once, and in this order.
    let log = world
        .until_at("/v1/lifecycle/events?order=asc&limit=200", |page| {
            let events = page["events"].as_array().unwrap();
            // Also of those whose end the server before could not say any more.
            let ended =
                |event: &&Value| event["operation"] == "destroy" && event["status"] == "succeeded";
            events.iter().filter(ended).count() >= 12
        })
        .await;
    let deliveries = format!("/v1/lifecycle/webhooks/{webhook}/deliveries?limit=200");
    let is_done = |all: &Value| {
        let all = all.as_array().unwrap();
        all.iter().all(|d| d["delivery_status"] == "succeeded")
    };
    let all = world.until_at(&deliveries, is_done).await;
    // The attempt that was cut off first is listed, and another one follows.
    let oldest = all.as_array().unwrap().last().unwrap();
    let path = format!(
        "/v1/lifecycle/webhooks/{webhook}/deliveries/{}",
        oldest["id"].as_str().unwrap()
    );
    let (_, detail) = world.get(&path).await;
    let attempts = detail["attempts"].as_array().unwrap();
    assert_eq!(attempts[0]["error_code"], "interrupted", "{detail}");
    assert_eq!(attempts.last().unwrap()["response_status"], 204, "{detail}");
    assert_eq!(oldest["attempt_count"], attempts.len(), "{detail}");
    let wanted: Vec<&str> = log["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["operation"] == "create" || event["operation"] == "destroy")
        .map(|event| event["id"].as_str().unwrap())
        .collect();
    let calls = receiver.calls();
    assert!(calls.iter().all(|call| call.is_signed_with(SECRET)));
    let came = first_arrivals(&calls);
    assert_eq!(
        came[..wanted.len().min(came.len())],
        wanted[..],
        "of {}",
        came.len()
    );
    assert!(!world.serve_log().contains(SECRET));
}

/// Receivers over TLS: one that the authorities of the server's surroundings vouch for, one that they do not, and one
/// that is somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn receivers_prove_who_they_are() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &str| {
        let done = std::process::Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(place.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{arguments}: {}", said(&done));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    for authority in ["known", "unknown"] {
        openssl(&format!(
            "req -x509 {key} -subj /CN={authority} -keyout {authority}.key -out {authority}.crt"
        ));
    }
    let certified = [
        ("fine", "known", "IP:127.0.0.1"),
        ("stranger", "unknown", "IP:127.0.0.1"),
        ("other", "known", "DNS:elsewhere.test"),
    ];
    for (name, authority, alternative) in certified {
        openssl(&format!(
            "req -x509 {key} -subj /CN={name} -CA {authority}.crt -CAkey {authority}.key \
             -addext subjectAltName={alternative} -addext basicConstraints=critical,CA:FALSE \
             -keyout {name}.key -out {name}.crt"
        ));
    }
    std::fs::write(
        at("settings.toml"),
        "[limits]\nwebhook_private_receivers = true\nwebhook_retry_pause_ms = 50\n",
    )
    .unwrap();
    let world = World::in_surroundings_with(
        vec![("SSL_CERT_FILE", at("known.crt"))],
        &["--config", &at("settings.toml")],
    )
    .await;
    let mut hooks = Vec::new();
    for (name, ..) in certified {
        let mut receiver = std::process::Command::new("python3")
            .arg(repository().join("tests/python/tls_receiver.py"))
            .args([at(&format!("{name}.crt")), at(&format!("{name}.key"))])
            .args([SECRET])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(receiver.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap();
        let body = json!({"url": format!("https://127.0.0.1:{port}/hook"), "operations": ["create"],
            "signing_secret": SECRET});
        let (status, made) = world.post("/v1/lifecycle/webhooks", body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        hooks.push((made["id"].as_str().unwrap().to_owned(), receiver, lines));
    }
    let machine = world.machine(json!({"template": "host"})).await;
    let path = |hook: &str| format!("/v1/lifecycle/webhooks/{hook}/deliveries");
    let delivered = |all: &Value| {
        let all = all.as_array().unwrap();
        all.len() == 2 && all.iter().all(|d| d["delivery_status"] == "succeeded")
    };
    world.until_at(&path(&hooks[0].0), delivered).await;
    for (hook, ..) in &hooks[1..] {
        let all = world
            .until_at(&path(hook), |all| {
                let all = all.as_array().unwrap();
                all.last().is_some_and(|d| d["last_error"].is_string())
            })
            .await;
        let delivery = all.as_array().unwrap().last().unwrap()["id"]
            .as_str()
            .unwrap();
        let (_, detail) = world.get(&format!("{}/{delivery}", path(hook))).await;
        let attempt = &detail["attempts"][0];
        assert_eq!(attempt["error_code"], "connection_failed", "{detail}");
        let why = attempt["error_message"].as_str().unwrap();
        assert!(why.contains("certificate"), "{detail}");
        assert_ne!(detail["delivery"]["delivery_status"], "succeeded");
    }
    world.delete(&format!("/v1/machines/{machine}")).await;
    // A receiver ends with its input and has said what it was sent: whether it was signed, and about which machine.
    let came = hooks.into_iter().map(|(_, mut receiver, lines)| {
        drop(receiver.stdin.take());
        let told: Vec<String> = lines.map(Result::unwrap).collect();
        receiver.wait().unwrap();
        told
    });
    let came: Vec<Vec<String>> = tokio::task::block_in_place(|| came.collect());
    assert_eq!(came[0], vec![format!("signed {machine}"); 2]);
    assert!(came[1].is_empty() && came[2].is_empty(), "{came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_survives_kill_9() {
    let (mut world, _settings) = world().await;
    let first = world.machine(json!({"template": "host"})).await;
    let mut stream = world
        .program()
        .args(["lifecycle", "stream", "--operation", "create"])
        .args(["--max-events", "6"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(stream.stdout.take().unwrap()).lines();
    let mut machines = vec![first];
    let mut told = Vec::new();
    for round in 0..3 {
        if round > 0 {
            world.kill();
            world.serve().await;
            machines.push(world.machine(json!({"template": "host"})).await);
        }
        let read = tokio::task::spawn_blocking(move || {
            let two: Vec<String> = lines.by_ref().take(2).map(Result::unwrap).collect();
            (lines, two)
        });
        let (rest, two) = tokio::time::timeout(LIMIT, read).await.unwrap().unwrap();
        lines = rest;
        told.extend(two.iter().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            (text("machine_id"), text("status"))
        }));
    }
    let done = tokio::task::spawn_blocking(move || stream.wait().unwrap());
    assert!(done.await.unwrap().success());
    let wanted: Vec<(String, String)> = machines
        .iter()
        .flat_map(|id| ["requested", "succeeded"].map(|status| (id.clone(), status.to_owned())))
        .collect();
    assert_eq!(told, wanted);
    for id in machines {
        world.delete(&format!("/v1/machines/{id}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_command_lines() {
    let (world, _settings) = world().await;
    let receiver = Receiver::start().await;
    let id = world.machine(json!({"template": "host"})).await;
    for is_ours in [true, false] {
        let run = |arguments: &[&str]| {
            let mut command = match is_ours {
                true => world.program(),
                false => published(&world, &python()),
            };
            let done = command.args(arguments).output().unwrap();
            let out = String::from_utf8_lossy(&done.stdout).into_owned();
            (done.status.code().unwrap(), out, said(&done))
        };
        let json = |arguments: &[&str]| -> Value {
            let (code, out, all) = run(arguments);
            assert_eq!(code, 0, "{arguments:?}: {all}");
            serde_json::from_str(&out).unwrap()
        };
        let of = if is_ours {
            "--machine-id"
        } else {
            "--sandbox-id"
        };
        let page = json(&[
            "lifecycle",
            "events",
            of,
            &id,
            "--order",
            "asc",
            "--operation",
            "create",
            "--limit",
            "1",
        ]);
        assert_eq!(page["events"][0]["sandbox_id"], id);
        assert_eq!(page["has_more"], true);
        let (code, lines, _) = run(&["lifecycle", "stream", of, &id, "--max-events", "2"]);
        assert_eq!((code, lines.lines().count()), (0, 2), "{lines}");
        let made = json(&[
            "lifecycle",
            "webhooks",
            "create",
            "--url",
            &receiver.url(),
            "--operation",
            "create",
            "--operation",
            "destroy",
            "--signing-secret",
            SECRET,
            "--disabled",
        ]);
        assert_eq!(
            (&made["enabled"], &made["operations"]),
            (&json!(false), &json!(["create", "destroy"]))
        );
        let hook = made["id"].as_str().unwrap();
        let changed = json(&[
            "lifecycle",
            "webhooks",
            "update",
            hook,
            "--enabled",
            "--operation",
            "create",
        ]);
        assert_eq!(
            (&changed["enabled"], &changed["operations"]),
            (&json!(true), &json!(["create"]))
        );
        assert_eq!(json(&["lifecycle", "webhooks", "list"])[0]["id"], hook);
        assert_eq!(json(&["lifecycle", "webhooks", "get", hook])["id"], hook);
        let other = world.machine(json!({"template": "host"})).await;
        world.delete(&format!("/v1/machines/{other}")).await;
        world
            .until_at(
                &format!("/v1/lifecycle/webhooks/{hook}/deliveries"),
                |all| {
                    let all = all.as_array().unwrap();
                    all.len() == 2 && all.iter().all(|d| d["delivery_status"] == "succeeded")
                },
            )
            .await;
        let sent = json(&["lifecycle", "webhooks", "deliveries", hook, "--limit", "1"]);
        let delivery = sent[0]["id"].as_str().unwrap();
        let detail = json(&["lifecycle", "webhooks", "delivery", hook, delivery]);
        assert_eq!(detail["attempts"][0]["response_status"], 204);
        let (code, text, _) = run(&["lifecycle", "webhooks", "delete", hook]);
        assert_eq!(
            (code, text.trim()),
            (0, format!("Deleted lifecycle webhook {hook}").as_str())
        );
        assert_eq!(run(&["lifecycle", "webhooks", "get", hook]).0, 3);
    }
    world.delete(&format!("/v1/machines/{id}")).await;
}

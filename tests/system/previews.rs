//! Ports of real machines, seen from outside: with the published SDKs and command line, with ours, with plain clients and
//! with a browser.

use std::{
    collections::BTreeMap,
    process::{Command, Output, Stdio},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    python::{next_python, published, python, script},
    world::{World, answer, repository},
};

fn program(name: &str) -> std::path::PathBuf {
    repository().join("tests/python").join(name)
}

fn fine(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A machine with a file of this name, and a program that goes on in it.
async fn machine(world: &World, files: &[&str], line: &str) -> String {
    let id = world
        .machine(json!({"template": "host", "timeout_ms": 600_000}))
        .await;
    for name in files {
        let path = format!("/v1/machines/{id}/file?path=/srv/{name}");
        let body = std::fs::read(program(name)).unwrap();
        let put = answer(world.request(Method::PUT, &path).body(body)).await;
        assert_eq!(put.0, StatusCode::NO_CONTENT, "{}", put.1);
    }
    start(world, &id, line).await;
    id
}

async fn start(world: &World, id: &str, line: &str) {
    let line = format!("cd /srv && echo one > version && {line}");
    let body = json!({"command": line, "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert!(started["pid"].is_number(), "{started}");
}

async fn until_ready(world: &World, id: &str, port: u16) {
    let path = format!("/v1/machines/{id}/ports/{port}/readiness");
    let (_, ready) = world.post(&path, json!({"interval_ms": 50})).await;
    assert_eq!(ready["ready"], true, "{ready}");
}

async fn signed(world: &World, id: &str, port: u16) -> (String, String) {
    let path = format!("/v1/machines/{id}/ports/{port}/signed-preview-url");
    let (status, made) = world.post(&path, json!({})).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&made["url"]), text(&made["grant"]["id"]))
}

async fn open(url: &str) -> (u16, Value) {
    // A client of its own: no connection from before.
    let (status, body) = answer(reqwest::Client::new().get(url)).await;
    (status.as_u16(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_published_sdk() {
    let world = World::start().await;
    script(&world, &python(), "previews.py", &[&program("web.py")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_newer_sdk() {
    let world = World::start().await;
    let web = program("web.py");
    script(&world, &next_python(), "previews_next.py", &[&web]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_command_lines() {
    let world = World::start().await;
    let web = "PORT=8080 exec /usr/bin/python3 web.py";
    let id = machine(&world, &["web.py"], web).await;
    let curl = |url: &str, header: Option<&str>| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", url]);
        if let Some(header) = header {
            curl.args(["-H", header]);
        }
        curl.output().unwrap()
    };
    for (name, theirs) in [("machine", false), ("sandbox", true)] {
        let run = |arguments: &[&str]| {
            let mut command = match theirs {
                true => published(&world, &python()),
                false => world.program(),
            };
            command.arg(name).args(arguments).output().unwrap()
        };
        let json = |arguments: &[&str]| -> Value {
            serde_json::from_str(&fine(run(&[arguments, &["--json"]].concat()))).unwrap()
        };
        let wait = ["--wait", "--readiness-kind", "http", "--interval-ms", "50"];
        let create = [
            &["preview-url", "create", &id, "8080", "--expires", "10m"],
            wait.as_slice(),
        ]
        .concat();
        let made = json(&create);
        assert_eq!(made["readiness"]["ready"], true, "{made}");
        assert_eq!(made["selected_url"], made["url"]);
        let url = made["url"].as_str().unwrap();
        assert!(fine(curl(url, None)).contains("\"version\": \"one\""));
        let got = json(&["preview-url", "get", &id, "8080", "--websocket"]);
        assert_eq!(got["selected_url"], got["websocket_url"]);
        // People do not get to see the token unless they say so.
        let token = |text: &str| text.contains("edge_token=pvg_");
        assert!(!token(&fine(run(&create))));
        assert!(token(&fine(run(&[create.as_slice(), &["--raw"]].concat()))));

        let grant = made["grant"]["id"].as_str().unwrap();
        let list = fine(run(&["preview-url", "list", &id, "--port", "8080"]));
        let line = list.lines().find(|line| line.contains(grant)).unwrap();
        for part in [
            "port=8080",
            "status=active",
            "auth=direct/query",
            "uses=1",
            "http=1",
            "ws=0",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let revoked = json(&["preview-url", "revoke", &id, grant]);
        assert_eq!(revoked["grant"]["status"], "revoked", "{revoked}");
        assert!(!curl(url, None).status.success());

        let target = json(&[
            "preview-proxy-target",
            "create",
            &id,
            "8080",
            "--transport",
            "http",
            "--transport",
            "websocket",
        ]);
        let header = format!(
            "{}: {}",
            target["token_header_name"].as_str().unwrap(),
            target["http_token"].as_str().unwrap()
        );
        let upstream = target["http_url"].as_str().unwrap();
        assert!(fine(curl(upstream, Some(&header))).contains("one"));
        assert!(!curl(upstream, None).status.success());

        let host = fine(run(&["host", &id, "8080"]));
        assert!(fine(curl(host.trim(), None)).contains("one"));
        let url = fine(run(&["url", &id, "8080", "--wait", "--interval-ms", "50"]));
        assert_eq!(url.trim(), format!("http://{}", host.trim()));
        let socket = json(&["url", &id, "8080", "--websocket"]);
        assert_eq!(socket["websocket_url"], format!("ws://{}", host.trim()));
        // One that does not answer: said, with exit code 1.
        let silent = run(&["url", &id, "8099", "--wait", "--timeout-secs", "1"]);
        assert_eq!(silent.status.code(), Some(1), "{silent:?}");
        assert_eq!(run(&["host", &id, "22"]).status.code(), Some(2));
        assert_eq!(
            run(&["preview-url", "revoke", &id, "pvg_none"])
                .status
                .code(),
            Some(3)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_finds_its_way_with_one_token() {
    let world = World::start().await;
    let page = "exec /usr/bin/python3 page.py 8080";
    let id = machine(&world, &["page.py"], &format!("{page} > heard 2>&1")).await;
    until_ready(&world, &id, 8080).await;
    let (url, grant) = signed(&world, &id, 8080).await;
    let browse = |url: &str| {
        let profile = tempfile::tempdir_in(world.home()).unwrap();
        let mut browser = Command::new("chromium");
        browser
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", world.home())
            .args(["--dump-dom", url])
            .stderr(Stdio::null());
        fine(browser.output().unwrap())
    };
    // The script, what it fetches and its WebSocket come with the cookie, which the page itself cannot read.
    let shown = browse(&url);
    let told = "data 200 fetched cookie [] socket welcome";
    assert!(shown.contains(told), "{shown}");
    let heard = world.out(&id, "cat /srv/heard").await;
    for path in ["/app.js", "/data", "/socket", "/held"] {
        assert!(heard.contains(path), "{path}: {heard}");
    }
    for secret in ["edge_token", "nullspace_preview"] {
        assert!(!heard.contains(secret), "{heard}");
    }
    let (_, list) = world.get(&format!("/v1/machines/{id}/preview-urls")).await;
    let told = &list["items"][0];
    assert_eq!(told["websocket_connection_count"], 1, "{told}");
    assert!(told["http_request_count"].as_u64().unwrap() >= 4, "{told}");
    // Without a token there is nothing to see, and with one that was revoked neither.
    let bare = url.split('?').next().unwrap();
    assert!(browse(bare).contains("edge_token_missing"));
    world
        .delete(&format!("/v1/machines/{id}/preview-urls/{grant}"))
        .await;
    assert!(browse(&url).contains("preview_grant_revoked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_outlive_the_server() {
    let mut world = World::start().await;
    let web = "PORT=8080 exec /usr/bin/python3 web.py";
    let id = machine(&world, &["web.py"], web).await;
    start(
        &world,
        &id,
        "exec /usr/bin/python3 -m http.server 8081 --bind 127.0.0.1",
    )
    .await;
    for port in [8080, 8081] {
        until_ready(&world, &id, port).await;
    }
    let (url, grant) = signed(&world, &id, 8080).await;
    let (inner, _) = signed(&world, &id, 8081).await;
    let (gone, revoked) = signed(&world, &id, 8080).await;
    world
        .delete(&format!("/v1/machines/{id}/preview-urls/{revoked}"))
        .await;
    let (_, host) = world
        .post(&format!("/v1/machines/{id}/host"), json!({"port": 8081}))
        .await;
    let host = host["url"].as_str().unwrap().to_owned();
    let inner = inner.replace("/?", "/version?");
    for kill in [true, false, true] {
        assert_eq!(open(&url).await.1["version"], "one");
        if kill {
            // What passed is on disk by then.
            let counted = |list: &Value| {
                let items = list["items"].as_array().unwrap();
                items
                    .iter()
                    .any(|item| item["id"] == grant.as_str() && item["use_count"] != 0)
            };
            world
                .until_at(&format!("/v1/machines/{id}/preview-urls"), counted)
                .await;
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            world.kill();
        } else {
            world.terminate();
        }
        world.serve().await;
        assert_eq!(open(&url).await.1["version"], "one");
        assert_eq!(open(&inner).await, (200, json!("one\n")));
        assert_eq!(open(&format!("{host}/version")).await.0, 200);
        assert_eq!(open(&gone).await.1["code"], "preview_grant_revoked");
    }
    let (_, list) = world.get(&format!("/v1/machines/{id}/preview-urls")).await;
    let uses: BTreeMap<&str, u64> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["id"].as_str().unwrap(),
                item["use_count"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(uses[grant.as_str()], 6, "{list}");
    // Nobody finds the token in what the server says or keeps.
    let token = url.split_once("edge_token=").unwrap().1;
    assert!(!world.serve_log().contains(token));
    for file in ["nullspace.db", "nullspace.db-wal"] {
        let kept = std::fs::read(world.data().join(file)).unwrap_or_default();
        let signature = token.rsplit('.').next().unwrap().as_bytes();
        assert!(
            !kept.windows(signature.len()).any(|part| part == signature),
            "{file}"
        );
    }
    world.delete(&format!("/v1/machines/{id}")).await;
    assert!(reqwest::get(&url).await.is_err());
}

/// Takes connections and says nothing; takes no connection, its queue being full; reads and closes.
const HANGS: &str = r#"
import socket, threading, time
silent, full, rude = socket.socket(), socket.socket(), socket.socket()
for each, port in ((silent, 8081), (full, 8082), (rude, 8083)):
    each.bind(("0.0.0.0", port))
silent.listen(64)
rude.listen(64)
full.listen(0)
fillers = []
for _ in range(4):
    filler = socket.socket()
    filler.setblocking(False)
    filler.connect_ex(("127.0.0.1", 8082))
    fillers.append(filler)
def reads():
    while True:
        connection, _ = rude.accept()
        connection.recv(1)
        connection.close()
threading.Thread(target=reads, daemon=True).start()
print("hangs", flush=True)
time.sleep(3600)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_hang_are_told_of() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(settings.path(), "[limits]\npreview_answer_secs = 2\n").unwrap();
    let world = World::with(&["--config", settings.path().to_str().unwrap()]).await;
    let id = machine(&world, &[], "exec sleep 600").await;
    let path = format!("/v1/machines/{id}/file?path=/srv/hangs.py");
    answer(world.request(Method::PUT, &path).body(HANGS)).await;
    start(&world, &id, "exec /usr/bin/python3 hangs.py").await;
    until_ready(&world, &id, 8083).await;
    for (port, status, code) in [
        (8081, 504, "service_timeout"),
        (8082, 504, "service_timeout"),
        (8083, 502, "service_unreachable"),
        (8084, 502, "service_unreachable"),
    ] {
        let (url, grant) = signed(&world, &id, port).await;
        let (got, body) = open(&url).await;
        assert_eq!(
            (got, &body["code"]),
            (status, &json!(code)),
            "{port} {body}"
        );
        let (_, list) = world
            .get(&format!("/v1/machines/{id}/preview-urls?port={port}"))
            .await;
        assert_eq!(list["items"][0]["id"], grant.as_str());
        assert_eq!(list["items"][0]["last_error_code"], code, "{list}");
    }
    let path = format!("/v1/machines/{id}/ports/8081/readiness");
    let (_, ready) = world
        .post(&path, json!({"kind": "http", "timeout_secs": 2}))
        .await;
    assert_eq!(ready["ready"], false, "{ready}");
    assert_eq!(ready["code"], "preview_service_not_ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_network_and_names_instead_of_ports() {
    let world = World::with(&["--preview-domain", "previews.test"]).await;
    let (_, made) = world
        .post(
            "/v1/machines",
            json!({"template": "host", "internet_access": false}),
        )
        .await;
    let id = made["id"].as_str().unwrap();
    start(&world, id, "exec /usr/bin/python3 -m http.server 8080").await;
    until_ready(&world, id, 8080).await;
    let (url, _) = signed(&world, id, 8080).await;
    let place = reqwest::Url::parse(&url).unwrap();
    let name = place.host_str().unwrap().to_owned();
    assert_eq!(name, format!("8080-{}.previews.test", id.replace('_', "-")));
    let address: std::net::SocketAddr = world.base_url()[7..].parse().unwrap();
    assert_eq!(place.port(), Some(address.port()));
    let client = reqwest::Client::builder()
        .resolve(&name, address)
        .build()
        .unwrap();
    let version = url.replace("/?", "/version?");
    let (status, body) = answer(client.get(&version)).await;
    assert_eq!((status, body), (StatusCode::OK, json!("one\n")));
    // The API does not answer under the name.
    let health = format!("http://{name}:{}/healthz", address.port());
    let (status, body) = answer(client.get(health)).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::UNAUTHORIZED, &json!("edge_token_missing"))
    );
    world.delete(&format!("/v1/machines/{id}")).await;
    let (status, _) = answer(client.get(&version)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

//! Previews over real HTTP, on the fake engine: its machines' ports are the host's own, and the program that answers on
//! them is part of the test. Real machines, clients and browsers are in the whole-system tests.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State, WebSocketUpgrade, ws::Message as AppMessage},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use common::{World, answer};
use futures_util::{SinkExt, StreamExt};
use nullspace_server::Config;
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error as SocketError, Message, client::IntoClientRequest},
};

/// A program that tells what it was asked.
struct App {
    port: u16,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Paths with their queries, and headers as text.
    requests: Mutex<Vec<String>>,
    count: AtomicUsize,
}

impl App {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Seen>::default();
        let app = Router::new()
            .route("/echo", post(|body: Bytes| async { body }))
            .route("/socket", get(socket))
            .route("/stream", get(stream))
            .route("/hang", any(std::future::pending::<()>))
            .route("/bad", get(|| async { StatusCode::SERVICE_UNAVAILABLE }))
            .route("/cookie", get(|| async { [("set-cookie", "mine=1")] }))
            .fallback(page)
            .with_state(seen.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { port, seen }
    }

    /// Everything that it has heard.
    fn heard(&self) -> String {
        self.seen.requests.lock().unwrap().join("\n")
    }
}

async fn page(State(seen): State<Arc<Seen>>, request: Request) -> Response {
    seen.count.fetch_add(1, Ordering::SeqCst);
    let headers: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    let text = format!("{}\n{}", request.uri(), headers.join("\n"));
    seen.requests.lock().unwrap().push(text.clone());
    text.into_response()
}

async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            if matches!(message, AppMessage::Text(_) | AppMessage::Binary(_))
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    })
}

/// A first line, and then nothing for ever.
async fn stream() -> Response {
    let first = futures_util::stream::iter([Ok::<_, std::io::Error>("data: first\n\n")]);
    let lines = first.chain(futures_util::stream::pending());
    Response::new(Body::from_stream(lines))
}

/// A preview that was asked for.
struct Preview {
    grant: String,
    url: String,
    websocket_url: String,
}

impl Preview {
    fn of(body: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            grant: text(&body["grant"]["id"]),
            url: text(&body["url"]),
            websocket_url: text(&body["websocket_url"]),
        }
    }

    /// Another path with the same token.
    fn at(&self, path: &str) -> String {
        self.url.replacen("/?", &format!("{path}?"), 1)
    }

    fn socket(&self) -> String {
        self.websocket_url.replacen("/?", "/socket?", 1)
    }

    fn base(&self) -> &str {
        self.url.split("/?").next().unwrap()
    }

    fn token(&self) -> &str {
        self.url.split_once("edge_token=").unwrap().1
    }
}

struct Previews {
    world: World,
    machine: String,
}

impl std::ops::Deref for Previews {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Previews {
    async fn new() -> Self {
        Self::on(World::new().await, json!({})).await
    }

    async fn on(world: World, body: Value) -> Self {
        let (status, made) = world.post("/v1/machines", body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        let machine = made["id"].as_str().unwrap().to_owned();
        Self { world, machine }
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/machines/{}/{rest}", self.machine)
    }

    async fn signed(&self, port: u16) -> Preview {
        let path = self.path(&format!("ports/{port}/signed-preview-url"));
        let (status, body) = self.post(&path, json!({})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        Preview::of(&body)
    }

    async fn open(&self, url: &str) -> (StatusCode, Value) {
        answer(self.client.get(url)).await
    }

    /// The code of a refusal.
    async fn refused(&self, url: &str) -> (u16, String) {
        let (status, body) = self.open(url).await;
        let code = body["code"].as_str();
        (status.as_u16(), code.unwrap_or_default().to_owned())
    }

    /// The grants as they are told, by id.
    async fn grant(&self, id: &str) -> Value {
        let (_, body) = self.get(&self.path("preview-urls")).await;
        let items = body["items"].as_array().unwrap();
        items.iter().find(|item| item["id"] == id).unwrap().clone()
    }

    async fn revoke(&self, id: &str) {
        let (status, body) = self.delete(&self.path(&format!("preview-urls/{id}"))).await;
        assert_eq!((status, &body["success"]), (StatusCode::OK, &json!(true)));
        assert_eq!(body["grant"]["status"], "revoked", "{body}");
    }

    /// A token that this server's key has signed.
    fn forge(&self, said: &str) -> String {
        use ring::hmac::{HMAC_SHA256, Key, sign};
        let key = std::fs::read(self.data.path().join("keys/seal.key")).unwrap();
        let key = sign(&Key::new(HMAC_SHA256, &key), b"traffic tokens");
        let key = Key::new(HMAC_SHA256, key.as_ref());
        let signature = sign(&key, format!("preview {said}").as_bytes());
        format!("{said}.{}", hex::encode(signature))
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_url_opens_and_nothing_of_it_reaches_the_program() {
    let (world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    let address = preview.at("/page") + "&x=%20y&z";
    let request = world
        .client
        .get(&address)
        .header("referer", &address)
        .header("cookie", "own=1");
    let got = request.send().await.unwrap();
    assert_eq!(got.status(), StatusCode::OK);
    let cookie = got.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
    assert!(got.text().await.unwrap().starts_with("/page?x=%20y&z\n"));

    // The cookie alone is enough, for requests and for WebSockets, and the program does not see it.
    let session = cookie.split(';').next().unwrap();
    let with_session = |path: &str| {
        let url = format!("{}{path}", preview.base());
        world
            .client
            .get(url)
            .header("cookie", format!("{session}; own=2"))
    };
    let (status, _) = answer(with_session("/script.js")).await;
    assert_eq!(status, StatusCode::OK);
    let mut upgrade = format!("{}/socket", preview.base())
        .replacen("http", "ws", 1)
        .into_client_request()
        .unwrap();
    upgrade
        .headers_mut()
        .insert("cookie", session.parse().unwrap());
    let host = preview.base().to_owned();
    upgrade
        .headers_mut()
        .insert("origin", host.parse().unwrap());
    let (mut socket, _) = connect_async(upgrade.clone()).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("hello")
    );
    // Pages of others are not let in by it.
    upgrade
        .headers_mut()
        .insert("origin", "http://127.0.0.1:1".parse().unwrap());
    assert!(matches!(
        connect_async(upgrade).await,
        Err(SocketError::Http(answer)) if answer.status() == StatusCode::UNAUTHORIZED
    ));
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "same-site"),
    ] {
        let (status, body) = answer(with_session("/").header(name, value)).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::UNAUTHORIZED, &json!("edge_token_missing"))
        );
    }
    let heard = app.heard();
    for secret in ["edge_token", "nullspace_preview", preview.token(), session] {
        assert!(!heard.contains(secret), "{secret}: {heard}");
    }
    assert!(
        heard.contains("cookie: own=1") && heard.contains("cookie: own=2"),
        "{heard}"
    );
    assert!(heard.contains("x-forwarded-for: 127.0.0.1"), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_good_for_what_they_were_made_for_alone() {
    let (world, app) = (Previews::new().await, App::start().await);
    let other = App::start().await;
    let preview = world.signed(app.port).await;
    let base = preview.base();
    let with = |token: &str| format!("{base}/?edge_token={token}");
    let foreign = world.signed(other.port).await;
    let (machine, port) = (&world.machine, app.port);
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_micros();
    let (past, future) = (now - 1, now + 60_000_000);
    let grant = &preview.grant;
    let said = |grant: &str, machine: &str, kind: &str, end: u128| {
        world.forge(&format!("{grant}.{machine}.{port}.{kind}.{end}"))
    };
    let websocket = preview.websocket_url.split_once("edge_token=").unwrap().1;
    for (token, refused) in [
        ("", (401, "edge_token_invalid")),
        ("x", (401, "edge_token_invalid")),
        (&preview.token()[1..], (401, "edge_token_invalid")),
        (
            &format!("{}0", preview.token()),
            (401, "edge_token_invalid"),
        ),
        (
            &said(grant, machine, "http", past),
            (401, "edge_token_expired"),
        ),
        (
            &said("pvg_none", machine, "http", future),
            (401, "preview_grant_invalid"),
        ),
        (
            &said(grant, "mch_other", "http", future),
            (403, "edge_token_scope_mismatch"),
        ),
        (
            &said(grant, machine, "proxy-http", future),
            (403, "edge_token_scope_mismatch"),
        ),
        (
            &said(grant, machine, "session", future),
            (403, "edge_token_scope_mismatch"),
        ),
        (websocket, (403, "edge_token_scope_mismatch")),
        (foreign.token(), (403, "edge_token_scope_mismatch")),
    ] {
        let got = world.refused(&with(token)).await;
        assert_eq!((got.0, got.1.as_str()), refused, "{token}");
    }
    let twice = format!("{}&edge_token={}", preview.url, preview.token());
    assert_eq!(
        world.refused(&twice).await,
        (401, "edge_token_invalid".into())
    );
    let missing = world.refused(&format!("{base}/")).await;
    assert_eq!(missing, (401, "edge_token_missing".into()));
    // A token for requests opens no WebSocket.
    let refused = connect_async(preview.at("/socket").replacen("http", "ws", 1)).await;
    assert!(matches!(
        refused,
        Err(SocketError::Http(answer)) if answer.status() == StatusCode::FORBIDDEN
    ));
    assert_eq!(app.seen.count.load(Ordering::SeqCst), 0);
    assert_eq!(world.grant(grant).await["use_count"], 0);
    let told = world.grant(grant).await;
    assert_eq!(
        told["last_error_code"], "edge_token_scope_mismatch",
        "{told}"
    );
    // And one that this server did make.
    assert_eq!(
        world
            .open(&with(&said(grant, machine, "http", future)))
            .await
            .0,
        StatusCode::OK
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_wires_have_their_words() {
    let (world, app) = (Previews::new().await, App::start().await);
    let grant: BTreeSet<&str> = [
        "id",
        "port",
        "auth_mode",
        "bootstrap_transport",
        "status",
        "token_kinds",
        "principal_kind",
        "principal_id",
        "issued_at",
        "expires_at",
        "revoked_at",
        "first_used_at",
        "last_used_at",
        "use_count",
        "http_request_count",
        "websocket_connection_count",
        "bytes_in_count",
        "bytes_out_count",
        "last_error_code",
        "last_error_at",
        "disabled_at",
        "created_at",
        "updated_at",
    ]
    .into();
    for (prefix, word) in [("sandboxes", "sandbox_id"), ("machines", "machine_id")] {
        let base = format!("/v1/{prefix}/{}", world.machine);
        let port = format!("{base}/ports/{}", app.port);
        let spelled: BTreeSet<&str> = grant.iter().copied().chain([word]).collect();
        let mut grants = Vec::new();
        for (method, path) in [
            (Method::GET, "preview-url"),
            (Method::POST, "signed-preview-url"),
            (Method::POST, "preview-proxy-target"),
        ] {
            // With and without a body.
            let (status, body) = answer(world.request(method, &format!("{port}/{path}"))).await;
            assert_eq!(status, StatusCode::OK, "{body}");
            assert_eq!(keys(&body["grant"]), spelled, "{path}");
            assert_eq!(body["grant"]["principal_kind"], "user");
            let target = path == "preview-proxy-target";
            assert_eq!(body.get(word).is_some(), target, "{body}");
            grants.push(body["grant"]["id"].clone());
        }
        let (_, list) = world
            .get(&format!("{base}/preview-urls?port={}", app.port))
            .await;
        let listed: Vec<&Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| &g["id"])
            .collect();
        // Newest first.
        assert_eq!(listed[..3], [&grants[2], &grants[1], &grants[0]]);
        assert_eq!(keys(&list["items"][0]), spelled);
        let (_, none) = world.get(&format!("{base}/preview-urls?port=1")).await;
        assert_eq!(none, json!({"items": []}));
        let id = grants[0].as_str().unwrap();
        for _ in 0..2 {
            let (status, body) = world.delete(&format!("{base}/preview-urls/{id}")).await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(keys(&body), ["grant", "success"].into());
            assert_eq!(keys(&body["grant"]), spelled);
        }
        let ready = json!({"kind": "tcp", "timeout_secs": 1});
        let (_, ready) = world.post(&format!("{port}/readiness"), ready).await;
        assert_eq!(
            (&ready["ready"], &ready[word]),
            (&json!(true), &json!(world.machine))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_ends_everywhere_at_once() {
    let (world, app) = (Previews::new().await, App::start().await);
    let (preview, stays) = (world.signed(app.port).await, world.signed(app.port).await);
    let got = world.client.get(&preview.url).send().await.unwrap();
    let cookie = got.headers()["set-cookie"].to_str().unwrap();
    let session = cookie.split(';').next().unwrap().to_owned();
    let (mut socket, _) = connect_async(preview.socket()).await.unwrap();
    let (mut other, _) = connect_async(stays.socket()).await.unwrap();
    let mut stream = world
        .client
        .get(preview.at("/stream"))
        .send()
        .await
        .unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    world.revoke(&preview.grant).await;
    assert_eq!(
        world.refused(&preview.url).await,
        (401, "preview_grant_revoked".into())
    );
    let with_cookie = world.client.get(preview.base()).header("cookie", session);
    let (status, body) = answer(with_cookie).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::UNAUTHORIZED, &json!("preview_grant_revoked"))
    );
    assert!(
        !matches!(socket.next().await, Some(Ok(_))),
        "it is still open"
    );
    assert!(stream.chunk().await.is_err(), "it is still open");
    assert!(connect_async(preview.socket()).await.is_err());
    // Another's goes on.
    other.send(Message::text("still")).await.unwrap();
    assert_eq!(other.next().await.unwrap().unwrap(), Message::text("still"));
    let told = world.grant(&preview.grant).await;
    assert_eq!(
        (&told["status"], &told["last_error_code"]),
        (&json!("revoked"), &json!("preview_grant_revoked"))
    );
    assert!(told["revoked_at"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_counted_and_survives_a_restart() {
    let (mut world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    let body = vec![7; 1 << 20];
    for _ in 0..2 {
        let got = world.client.post(preview.at("/echo")).body(body.clone());
        let got = got.send().await.unwrap().bytes().await.unwrap();
        assert_eq!(got.len(), body.len());
    }
    let (mut socket, _) = connect_async(preview.socket()).await.unwrap();
    socket.send(Message::text("x".repeat(100))).await.unwrap();
    socket.next().await.unwrap().unwrap();
    let told = world.grant(&preview.grant).await;
    let number = |name: &str| told[name].as_u64().unwrap();
    assert_eq!(
        (
            number("http_request_count"),
            number("websocket_connection_count")
        ),
        (2, 1)
    );
    assert_eq!(number("use_count"), 3);
    for (name, least) in [
        ("bytes_in_count", (2 << 20) + 100),
        ("bytes_out_count", (2 << 20) + 100),
    ] {
        assert!((least..least + 100).contains(&number(name)), "{told}");
    }
    assert!(told["first_used_at"].as_str().unwrap() <= told["last_used_at"].as_str().unwrap());
    assert!(told["last_error_code"].is_null());
    drop(socket);

    world.world.restart().await;
    let again = world.grant(&preview.grant).await;
    for name in [
        "use_count",
        "bytes_in_count",
        "bytes_out_count",
        "first_used_at",
        "expires_at",
    ] {
        assert_eq!(again[name], told[name], "{name}");
    }
    // The same URL, and the counts go on.
    assert_eq!(world.open(&preview.url).await.0, StatusCode::OK);
    assert_eq!(world.grant(&preview.grant).await["use_count"], 4);
    world.revoke(&preview.grant).await;
    world.world.restart().await;
    assert_eq!(
        world.refused(&preview.url).await,
        (401, "preview_grant_revoked".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_on_disk_soon_after() {
    let (world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    assert_eq!(world.open(&preview.url).await.0, StatusCode::OK);
    let store = &world.server.as_ref().unwrap().app().store;
    for _ in 0..500 {
        let (machine, grant) = (world.machine.clone(), preview.grant.clone());
        let row = store
            .read(move |db| nullspace_store::preview::get(db, &machine, &grant))
            .await
            .unwrap();
        if row.unwrap().used.http_count == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody has recorded it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_is_open_and_stays_so_over_a_restart() {
    let (mut world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    let got = world.client.get(&preview.url).send().await.unwrap();
    let cookie = got.headers()["set-cookie"].to_str().unwrap();
    let session = cookie.split(';').next().unwrap().to_owned();
    let request = json!({"port": app.port});
    let (status, host) = world.post(&world.path("host"), request).await;
    assert_eq!(status, StatusCode::OK, "{host}");
    let url = host["url"].as_str().unwrap().to_owned();
    assert_eq!(url, format!("http://{}", host["host"].as_str().unwrap()));
    assert_eq!(url, preview.base());
    assert_eq!(host["websocket_url"], url.replacen("http", "ws", 1));
    world.revoke(&preview.grant).await;
    for restart in [false, true] {
        if restart {
            world.world.restart().await;
        }
        assert_eq!(world.open(&url).await.0, StatusCode::OK);
        let (mut socket, _) = connect_async(url.replacen("http", "ws", 1) + "/socket")
            .await
            .unwrap();
        socket.send(Message::text("open")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("open"));
        // What is given must be good all the same, but what a browser has kept is nobody's word.
        assert_eq!(
            world.refused(&preview.url).await,
            (401, "preview_grant_revoked".into())
        );
        let forged = format!("{url}/?edge_token=forged");
        assert_eq!(
            world.refused(&forged).await,
            (401, "edge_token_invalid".into())
        );
        let kept = world.client.get(&url).header("cookie", &session);
        assert_eq!(answer(kept).await.0, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_machines_want_their_own_token_besides() {
    let app = App::start().await;
    let world = World::new().await;
    let body = json!({"network": {"allow_public_traffic": false}});
    let request = world
        .request(Method::POST, "/v1/machines")
        .header("idempotency-key", "private")
        .json(&body);
    let (_, made) = answer(request.try_clone().unwrap()).await;
    let token = made["traffic_access_token"].as_str().unwrap().to_owned();
    let id = made["id"].as_str().unwrap().to_owned();
    let (_, replayed) = answer(request).await;
    assert_eq!(replayed["traffic_access_token"], token.as_str());
    let (_, told) = world.get(&format!("/v1/machines/{id}")).await;
    assert!(told.get("traffic_access_token").is_none(), "{told}");
    let (_, public) = world.post("/v1/machines", json!({})).await;
    assert!(public.get("traffic_access_token").is_none(), "{public}");

    let mut world = Previews { world, machine: id };
    let preview = world.signed(app.port).await;
    let (_, host) = world
        .post(&world.path("host"), json!({"port": app.port}))
        .await;
    let published = host["url"].as_str().unwrap().to_owned();
    for restart in [false, true] {
        if restart {
            world.world.restart().await;
        }
        for url in [&preview.url, &published] {
            let ask = |value: Option<&str>| {
                let request = world.client.get(url);
                match value {
                    Some(value) => request.header("x-nullspace-traffic-access-token", value),
                    None => request,
                }
            };
            for wrong in [None, Some(""), Some(&token[1..]), Some(preview.token())] {
                let (status, body) = answer(ask(wrong)).await;
                assert_eq!(
                    (status, &body["code"]),
                    (StatusCode::UNAUTHORIZED, &json!("unauthorized"))
                );
            }
            assert_eq!(answer(ask(Some(&token))).await.0, StatusCode::OK);
        }
    }
    // It lets nobody in by itself where nothing was published.
    let other = App::start().await;
    let closed = world.signed(other.port).await;
    let request = world.client.get(closed.base());
    let (status, body) = answer(request.header("x-nullspace-traffic-access-token", &token)).await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::UNAUTHORIZED, &json!("edge_token_missing"))
    );
    assert!(!app.heard().contains(&token), "{}", app.heard());

    let target = world.path(&format!("ports/{}/preview-proxy-target", app.port));
    let (_, target) = world.post(&target, json!({})).await;
    assert_eq!(target["traffic_access_required"], true);
    assert_eq!(
        target["traffic_access_header_name"],
        "x-nullspace-traffic-access-token"
    );
    assert!(!target.to_string().contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_send_their_token_in_a_header() {
    let (world, app) = (Previews::new().await, App::start().await);
    let path = world.path(&format!("ports/{}/preview-proxy-target", app.port));
    let (_, target) = world.post(&path, json!({"expires_in_seconds": 600})).await;
    assert_eq!(
        target["token_header_name"],
        "x-nullspace-preview-proxy-token"
    );
    assert_eq!(target["token_transport"], "header");
    assert_eq!(target["grant"]["auth_mode"], "proxy");
    assert_eq!(target["grant"]["bootstrap_transport"], "header");
    assert_eq!(target["traffic_access_required"], false);
    let url = target["http_url"].as_str().unwrap();
    let token = target["http_token"].as_str().unwrap();
    assert!(url.ends_with("/?__ns_preview_transport=header"), "{url}");
    let ask = |token: &str| {
        let request = world.client.get(url);
        answer(request.header("x-nullspace-preview-proxy-token", token))
    };
    assert_eq!(ask(token).await.0, StatusCode::OK);
    assert!(app.heard().starts_with("/\n"), "{}", app.heard());
    assert!(!app.heard().contains(token), "{}", app.heard());
    assert_eq!(
        world.refused(url).await,
        (401, "preview_proxy_token_missing".into())
    );
    let websocket = target["websocket_token"].as_str().unwrap();
    for (token, refused) in [
        ("x", (401, "preview_proxy_token_invalid")),
        (websocket, (403, "preview_proxy_token_scope_mismatch")),
    ] {
        let (status, body) = ask(token).await;
        assert_eq!((status.as_u16(), body["code"].as_str().unwrap()), refused);
    }
    let mut upgrade = target["websocket_url"]
        .as_str()
        .unwrap()
        .replacen("/?", "/socket?", 1)
        .into_client_request()
        .unwrap();
    let headers = upgrade.headers_mut();
    headers.insert(
        "x-nullspace-preview-proxy-token",
        websocket.parse().unwrap(),
    );
    let (mut socket, _) = connect_async(upgrade).await.unwrap();
    socket.send(Message::text("through")).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::text("through")
    );
    world.revoke(target["grant"]["id"].as_str().unwrap()).await;
    let (status, body) = ask(token).await;
    assert_eq!(
        (status, &body["code"]),
        (
            StatusCode::UNAUTHORIZED,
            &json!("preview_proxy_token_revoked")
        )
    );
    // One kind alone.
    let (_, target) = world
        .post(
            &path,
            json!({"transports": ["websocket"], "include_traffic_token_hint": false}),
        )
        .await;
    assert!(
        target["http_token"].is_null() && target["http_url"].is_null(),
        "{target}"
    );
    assert!(target["websocket_token"].is_string());
    assert_eq!(target["grant"]["token_kinds"], json!(["websocket_port"]));
    assert!(target["traffic_access_required"].is_null(), "{target}");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_do_not_answer_are_told_of() {
    let config = Config {
        preview_answer_secs: 1,
        ..Config::default()
    };
    let world = Previews::on(World::with(config).await, json!({})).await;
    let app = App::start().await;
    let preview = world.signed(app.port).await;
    let (status, body) = world.open(&preview.at("/hang")).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (504, &json!("service_timeout"))
    );
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .contains(&app.port.to_string()),
        "{body}"
    );
    assert_eq!(
        world.grant(&preview.grant).await["last_error_code"],
        "service_timeout"
    );
    // A stream may be silent for as long as it likes.
    let mut stream = world
        .client
        .get(preview.at("/stream"))
        .send()
        .await
        .unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let silent = tokio::time::timeout(Duration::from_millis(1500), stream.chunk()).await;
    assert!(silent.is_err(), "it was ended");
    // Nobody listens.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().port();
    drop(listener);
    let nobody = world.signed(free).await;
    let (status, body) = world.open(&nobody.url).await;
    assert_eq!(
        (status.as_u16(), &body["code"]),
        (502, &json!("service_unreachable"))
    );
    // A client that is refused while it sends gets to read why.
    let large = vec![b'x'; 8 << 20];
    for url in [format!("{}/echo", preview.base()), nobody.url.clone()] {
        let got = world
            .client
            .post(url)
            .body(large.clone())
            .send()
            .await
            .unwrap();
        assert!(matches!(got.status().as_u16(), 401 | 502));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_and_says_what_is_wrong() {
    let (world, app) = (Previews::new().await, App::start().await);
    let ask = async |port: u16, body: Value| {
        let path = world.path(&format!("ports/{port}/readiness"));
        let (status, body) = world.post(&path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    };
    for (body, ready) in [
        (json!({}), true),
        (json!({"kind": "http"}), true),
        (json!({"kind": "http", "path": "/nothing-here"}), true),
        (
            json!({"kind": "http", "path": "/bad", "timeout_secs": 0}),
            false,
        ),
        (
            json!({"kind": "http", "path": "/hang", "timeout_secs": 1}),
            false,
        ),
    ] {
        let got = ask(app.port, body.clone()).await;
        assert_eq!(
            (&got["ready"], &got["service_ready"]),
            (&json!(ready), &json!(ready)),
            "{body} {got}"
        );
        assert_eq!(got["route_ready"], true);
        assert!(got["attempts"].as_u64().unwrap() >= 1);
        assert_eq!(got["code"].is_null(), ready, "{got}");
        if !ready {
            assert_eq!(got["code"], "preview_service_not_ready");
            assert!(
                got["error"].is_string() && got["suggested_action"].is_string(),
                "{got}"
            );
        }
    }
    // One that comes up while it is waited for.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let waiting = ask(
        address.port(),
        json!({"interval_ms": 10, "timeout_secs": 20}),
    );
    let coming = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tokio::net::TcpListener::bind(address).await.unwrap()
    };
    let (got, _listener) = tokio::join!(waiting, coming);
    assert_eq!(got["ready"], true, "{got}");
    assert!(got["attempts"].as_u64().unwrap() > 1, "{got}");
    // And a machine that ends meanwhile.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().port();
    drop(listener);
    let machine = format!("/v1/machines/{}", world.machine);
    let (got, _) = tokio::join!(ask(free, json!({"timeout_secs": 28})), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.delete(&machine).await
    });
    assert_eq!(
        (&got["ready"], &got["route_ready"]),
        (&json!(false), &json!(false)),
        "{got}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_with_the_machine() {
    let (mut world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    world
        .post(&world.path("host"), json!({"port": app.port}))
        .await;
    let (mut socket, _) = connect_async(preview.socket()).await.unwrap();
    let (mut open, _) =
        connect_async(format!("{}/socket", preview.base()).replacen("http", "ws", 1))
            .await
            .unwrap();
    world
        .delete(&format!("/v1/machines/{}", world.machine))
        .await;
    assert!(
        !matches!(socket.next().await, Some(Ok(_))),
        "it is still open"
    );
    assert!(
        !matches!(open.next().await, Some(Ok(_))),
        "it is still open"
    );
    // A client of its own: no connection from before.
    let gone = async |url: &str| {
        for _ in 0..500 {
            if reqwest::Client::new().get(url).send().await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    };
    assert!(gone(&preview.url).await, "its door is open");
    let told = world.grant(&preview.grant).await;
    assert_eq!(told["status"], "disabled", "{told}");
    assert!(told["disabled_at"].is_string());
    let port = format!("ports/{}/", app.port);
    for (rest, body) in [
        (port.clone() + "signed-preview-url", json!({})),
        (port.clone() + "preview-proxy-target", json!({})),
        (port + "readiness", json!({})),
        ("host".into(), json!({"port": app.port})),
    ] {
        let (status, body) = world.post(&world.path(&rest), body).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::CONFLICT, &json!("machine_not_ready"))
        );
    }
    world.world.restart().await;
    assert!(gone(&preview.url).await, "its door is open again");
    let store = &world.server.as_ref().unwrap().app().store;
    for _ in 0..500 {
        if store
            .read(nullspace_store::preview::ports)
            .await
            .unwrap()
            .is_empty()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its ports are still on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_whose_port_is_taken_opens_when_it_is_free() {
    let (mut world, app) = (Previews::new().await, App::start().await);
    let preview = world.signed(app.port).await;
    let door: u16 = preview.base().rsplit(':').next().unwrap().parse().unwrap();
    world.world.stop().await;
    let taken = loop {
        // The old door closes behind the server's back.
        match std::net::TcpListener::bind(("127.0.0.1", door)) {
            Ok(taken) => break taken,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    world.world.start().await;
    drop(taken);
    for _ in 0..500 {
        if reqwest::get(&preview.url)
            .await
            .is_ok_and(|got| got.status() == StatusCode::OK)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the url does not work again");
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_can_be_told_another_host() {
    let mask = json!({"network": {"mask_request_host": "app-${PORT}.example:1"}});
    let mut world = Previews::on(World::new().await, mask).await;
    let app = App::start().await;
    let preview = world.signed(app.port).await;
    for restart in [false, true] {
        if restart {
            world.world.restart().await;
        }
        assert_eq!(world.open(&preview.url).await.0, StatusCode::OK);
        let heard = app.seen.requests.lock().unwrap().pop().unwrap();
        let host = format!("host: app-{}.example:1", app.port);
        assert!(heard.contains(&host), "{heard}");
        assert!(heard.contains("x-forwarded-host: 127.0.0.1:"), "{heard}");
    }
    for mask in ["", "a b", "a/b", "a\r\nb", "user@host"] {
        let body = json!({"network": {"mask_request_host": mask}});
        let (status, body) = world.post("/v1/machines", body).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{mask:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_can_have_names() {
    let world = World::with_domain(Config::default(), "https://previews.example").await;
    let api = world.server.as_ref().unwrap().address();
    let mut world = Previews::on(world, json!({})).await;
    let app = App::start().await;
    let preview = world.signed(app.port).await;
    let name = format!(
        "{}-{}.previews.example",
        app.port,
        world.machine.replace('_', "-")
    );
    assert!(
        preview
            .url
            .starts_with(&format!("https://{name}/?edge_token=")),
        "{}",
        preview.url
    );
    assert!(
        preview
            .websocket_url
            .starts_with(&format!("wss://{name}/?"))
    );
    let ask = async |host: &str, path: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("host", host.parse().unwrap());
        let request = world
            .client
            .get(format!("http://{api}{path}"))
            .headers(headers);
        let got = request.send().await.unwrap();
        let cookie = got.headers().get("set-cookie").cloned();
        let status = got.status();
        (status, got.text().await.unwrap(), cookie)
    };
    let query = format!("/?edge_token={}", preview.token());
    let (status, text, cookie) = ask(&name, &query).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    assert!(text.contains(&format!("host: {name}")), "{text}");
    let cookie = cookie.unwrap();
    assert!(cookie.to_str().unwrap().contains("; Secure"), "{cookie:?}");
    assert_eq!(ask(&name.to_uppercase(), &query).await.0, StatusCode::OK);
    assert_eq!(ask(&format!("{name}:443"), &query).await.0, StatusCode::OK);
    // No door was opened for it.
    let row = world
        .server
        .as_ref()
        .unwrap()
        .app()
        .store
        .read(nullspace_store::preview::ports)
        .await
        .unwrap();
    assert_eq!(row[0].gateway_port, None);
    for (host, path, status) in [
        // The API does not answer under the domain, whatever is asked.
        (name.as_str(), "/healthz", 401),
        (name.as_str(), "/v1/machines", 401),
        ("api.previews.example", "/healthz", 404),
        ("1-mch-none.previews.example", "/", 404),
        ("x@previews.example", "/healthz", 400),
        ("previews.example", "/healthz", 200),
        ("localhost", "/healthz", 200),
    ] {
        assert_eq!(ask(host, path).await.0.as_u16(), status, "{host}{path}");
    }
    // Another machine's name is another's door.
    let other = world.machine().await;
    let other = format!("{}-{}.previews.example", app.port, other.replace('_', "-"));
    assert_eq!(ask(&other, &query).await.0, StatusCode::NOT_FOUND);
    world.world.restart().await;
    let api = world.server.as_ref().unwrap().address();
    let request = world
        .client
        .get(format!("http://{api}{query}"))
        .header("host", &name);
    assert_eq!(answer(request).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_so_many_ports_and_previews() {
    let world = Previews::new().await;
    for port in 1..=64 {
        if port == 22 {
            continue;
        }
        // The range of a test has 50 ports.
        let path = world.path(&format!("ports/{port}/signed-preview-url"));
        let (status, body) = world.post(&path, json!({})).await;
        if status != StatusCode::OK {
            assert_eq!(
                (status, &body["code"]),
                (StatusCode::TOO_MANY_REQUESTS, &json!("capacity_exceeded"))
            );
            assert!(port > 40, "{port}: {body}");
            return;
        }
    }
    panic!("there is no end of ports");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input() {
    let world = Previews::new().await;
    for (path, body) in [
        ("host", json!({})),
        ("host", json!({"port": 0})),
        ("host", json!({"port": 22})),
        ("host", json!({"port": 5900})),
        ("host", json!({"port": 70_000})),
        ("host", json!({"port": "80"})),
        ("host", json!({"port": 80, "more": 1})),
        ("ports/22/signed-preview-url", json!({})),
        ("ports/5999/signed-preview-url", json!({})),
        ("ports/x/signed-preview-url", json!({})),
        ("ports/+80/signed-preview-url", json!({})),
        ("ports/65536/signed-preview-url", json!({})),
        (
            "ports/80/signed-preview-url",
            json!({"expires_in_seconds": 0}),
        ),
        (
            "ports/80/signed-preview-url",
            json!({"expires_in_seconds": -1}),
        ),
        ("ports/80/signed-preview-url", json!({"expires": 1})),
        ("ports/22/preview-proxy-target", json!({})),
        ("ports/80/preview-proxy-target", json!({"transports": []})),
        (
            "ports/80/preview-proxy-target",
            json!({"transports": ["udp"]}),
        ),
        (
            "ports/80/preview-proxy-target",
            json!({"token_transport": "query"}),
        ),
        ("ports/22/readiness", json!({})),
        ("ports/80/readiness", json!({"kind": "udp"})),
        (
            "ports/80/readiness",
            json!({"kind": "http", "path": "no-slash"}),
        ),
        (
            "ports/80/readiness",
            json!({"kind": "http", "path": "/a b"}),
        ),
        ("ports/80/readiness", json!({"timeout_secs": -1})),
    ] {
        let (status, answer) = world.post(&world.path(path), body.clone()).await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_request")),
            "{path} {body}"
        );
    }
    let (status, answer) = world.get(&world.path("preview-urls?port=x")).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request"))
    );
    let (status, answer) = world.delete(&world.path("preview-urls/pvg_none")).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::NOT_FOUND, &json!("preview_grant_not_found"))
    );
    // Nothing was made by any of it, and another machine's grants are none of this one's.
    let (_, list) = world.get(&world.path("preview-urls")).await;
    assert_eq!(list, json!({"items": []}));
    let app = App::start().await;
    let preview = world.signed(app.port).await;
    let other = world.machine().await;
    let (status, _) = world
        .delete(&format!(
            "/v1/machines/{other}/preview-urls/{}",
            preview.grant
        ))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(world.open(&preview.url).await.0, StatusCode::OK);
    for (prefix, code) in [
        ("sandboxes", "sandbox_not_found"),
        ("machines", "machine_not_found"),
    ] {
        let (status, answer) = world
            .get(&format!("/v1/{prefix}/mch_none/ports/80/preview-url"))
            .await;
        assert_eq!(
            (status, &answer["code"]),
            (StatusCode::NOT_FOUND, &json!(code))
        );
    }
    // Times are brought into their range.
    for (asked, seconds) in [(1, 60), (120, 120), (1_i64 << 40, 24 * 3600)] {
        let path = world.path(&format!("ports/{}/signed-preview-url", app.port));
        let (_, made) = world
            .post(&path, json!({"expires_in_seconds": asked}))
            .await;
        let at =
            |name: &str| nullspace_api::time::parse(made["grant"][name].as_str().unwrap()).unwrap();
        assert_eq!(
            at("expires_at") - at("issued_at"),
            seconds * 1_000_000,
            "{asked}"
        );
        assert_eq!(made["access_token_expires_at"], made["grant"]["expires_at"]);
    }
}

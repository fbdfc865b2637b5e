//! Events over a WebSocket.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{KEY, World, socket::Client};
use futures_util::{SinkExt, StreamExt};
use nullspace_store::{
    StoreError,
    event::{self, Audience, NewEvent},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{
    self, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode,
};

const FLEET: &str = "/v1/lifecycle/ws";

async fn try_open(world: &World, path: &str) -> Result<Client, tungstenite::Error> {
    let mut request = world
        .url(path)
        .replacen("http", "ws", 1)
        .into_client_request()
        .unwrap();
    let key = format!("Bearer {KEY}");
    request
        .headers_mut()
        .insert("authorization", key.parse().unwrap());
    let (socket, _) = tokio_tungstenite::connect_async(request).await?;
    Ok(Client(socket))
}

/// Subscribed to this.
async fn open(world: &World, path: &str, mut filters: Value) -> Client {
    let mut client = try_open(world, path).await.unwrap();
    filters["type"] = json!("subscribe");
    client.say(filters).await;
    let first = client.hear().await;
    assert_eq!(first["type"], "subscribed", "{first}");
    client
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

fn numbered(number: i64) -> NewEvent {
    NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        occurred_at: nullspace_api::time::now(),
        operation: if number % 2 == 0 { "create" } else { "destroy" },
        status: "succeeded",
        machine_id: Some(format!("mch_{}", number % 3)),
        actor_kind: "system",
        reason: Some(number.to_string()),
        metadata: Some(json!({"n": number % 5, "deep": {"x": number % 2, "y": 1}}).to_string()),
        ..NewEvent::default()
    }
}

fn number(message: &Value) -> i64 {
    assert_eq!(message["type"], "event", "{message}");
    message["event"]["reason"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

async fn hear(client: &mut Client, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(number(&client.hear().await));
    }
    numbers
}

/// Nothing but what is appended now comes next.
async fn next_is(world: &World, client: &mut Client, number: i64) {
    append(world, vec![numbered(number)]).await;
    assert_eq!(hear(client, 1).await, [number]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_where_it_is_told_to() {
    let world = World::new().await;
    append(&world, (0..250).map(numbered).collect()).await;
    // The newest hundred unless said otherwise, oldest first; then what comes.
    let mut client = open(&world, FLEET, json!({})).await;
    assert_eq!(hear(&mut client, 100).await, (150..250).collect::<Vec<_>>());
    next_is(&world, &mut client, 250).await;
    let mut client = open(
        &world,
        FLEET,
        json!({"replay_limit": 3, "live_only": false}),
    )
    .await;
    assert_eq!(hear(&mut client, 3).await, [248, 249, 250]);
    let mut client = open(&world, FLEET, json!({"replay_limit": 0})).await;
    next_is(&world, &mut client, 251).await;
    let mut client = open(&world, FLEET, json!({"live_only": true, "replay_limit": 5})).await;
    next_is(&world, &mut client, 252).await;
    // More than there is.
    let mut client = open(&world, FLEET, json!({"replay_limit": 10_000})).await;
    assert_eq!(hear(&mut client, 253).await, (0..253).collect::<Vec<_>>());

    let (_, page) = world
        .get("/v1/lifecycle/events?order=asc&offset=9&limit=1")
        .await;
    let ninth = page["events"][0]["id"].as_str().unwrap();
    // After an event: everything, whatever the limit, because anything else would be a hole.
    let mut client = open(
        &world,
        FLEET,
        json!({"after_event_id": ninth, "replay_limit": 2}),
    )
    .await;
    assert_eq!(hear(&mut client, 243).await, (10..253).collect::<Vec<_>>());
    next_is(&world, &mut client, 253).await;
    let mut client = open(&world, FLEET, json!({"after_event_id": "019-unknown"})).await;
    assert_eq!(hear(&mut client, 254).await, (0..254).collect::<Vec<_>>());
    let mut client = open(
        &world,
        FLEET,
        json!({"after_event_id": ninth, "live_only": true}),
    )
    .await;
    next_is(&world, &mut client, 254).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_all_heeded_and_replaced() {
    let world = World::new().await;
    append(&world, (0..60).map(numbered).collect()).await;
    let of = |holds: fn(i64) -> bool| (0..60).filter(|n| holds(*n)).collect::<Vec<_>>();
    for (filters, wanted) in [
        (json!({"operation": "create"}), of(|n| n % 2 == 0)),
        (json!({"sandbox_id": "mch_1"}), of(|n| n % 3 == 1)),
        (
            json!({"machine_id": "mch_1", "operation": "destroy", "status": "succeeded"}),
            of(|n| n % 3 == 1 && n % 2 == 1),
        ),
        (json!({"metadata": {"n": 2}}), of(|n| n % 5 == 2)),
        (
            json!({"metadata": {"n": 2, "deep": {"x": 1}}, "audience": "customer"}),
            of(|n| n % 5 == 2 && n % 2 == 1),
        ),
    ] {
        let mut client = open(&world, FLEET, filters.clone()).await;
        assert_eq!(hear(&mut client, wanted.len()).await, wanted, "{filters}");
    }
    // The same filter, the newest two of it.
    let mut client = open(
        &world,
        FLEET,
        json!({"machine_id": "mch_1", "replay_limit": 2}),
    )
    .await;
    assert_eq!(hear(&mut client, 2).await, [55, 58]);
    // Others come, of which none is for this stream, and then one that is.
    append(&world, vec![numbered(60), numbered(62), numbered(64)]).await;
    assert_eq!(hear(&mut client, 1).await, [64]);
    client
        .say(json!({"type": "subscribe", "operation": "destroy", "live_only": true}))
        .await;
    let again = client.hear().await;
    assert_eq!(again["type"], "subscribed");
    assert_eq!(again["subscription"]["operation"], "destroy");
    assert!(
        !again["subscription"]
            .as_object()
            .unwrap()
            .values()
            .any(Value::is_null)
    );
    append(&world, vec![numbered(70), numbered(71), numbered(75)]).await;
    assert_eq!(hear(&mut client, 2).await, [71, 75]);

    let hidden = NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        audience: Audience::Internal,
        operation: "egress_denied",
        ..numbered(80)
    };
    append(&world, vec![hidden, numbered(81)]).await;
    assert_eq!(hear(&mut client, 1).await, [81]);
    let mut inside = open(&world, FLEET, json!({"audience": "internal"})).await;
    assert_eq!(hear(&mut inside, 1).await, [80]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_machine_has_a_stream_of_its_own() {
    let mut world = World::new().await;
    let (id, other) = (world.machine().await, world.machine().await);
    for noun in ["machines", "sandboxes"] {
        let mut client = open(&world, &format!("/v1/{noun}/{id}/lifecycle/ws"), json!({})).await;
        for status in ["requested", "succeeded"] {
            let message = client.hear().await;
            assert_eq!(message["event"]["sandbox_id"], id);
            assert_eq!(message["event"]["status"], status);
        }
    }
    let path = format!("/v1/machines/{id}/lifecycle/ws");
    let mut client = try_open(&world, &path).await.unwrap();
    client
        .say(json!({"type": "subscribe", "machine_id": other}))
        .await;
    let refused = client.hear().await;
    assert_eq!(refused["type"], "error", "{refused}");
    // It is refused, and the connection is as good as before.
    client
        .say(json!({"type": "subscribe", "machine_id": id, "live_only": true}))
        .await;
    assert_eq!(client.hear().await["type"], "subscribed");
    world.delete(&format!("/v1/machines/{other}")).await;
    world.delete(&format!("/v1/machines/{id}")).await;
    let message = client.hear().await;
    assert_eq!(message["event"]["machine_id"], id);
    assert_eq!(message["event"]["operation"], "destroy");
    let Err(tungstenite::Error::Http(answer)) =
        try_open(&world, "/v1/sandboxes/mch_none/lifecycle/ws").await
    else {
        panic!("a stream of nothing was opened");
    };
    assert_eq!(answer.status(), 404);
    world.stop().await;
    // Told, so that it comes back at once.
    loop {
        match client.0.next().await {
            Some(Ok(Message::Close(frame))) => {
                assert_eq!(frame.unwrap().code, CloseCode::Away);
                break;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_means_nothing_is_refused_without_harm() {
    let world = World::new().await;
    let mut client = try_open(&world, FLEET).await.unwrap();
    for wrong in [
        json!("subscribe"),
        json!({"type": "unsubscribe"}),
        json!({"kind": "subscribe"}),
        json!({"type": "subscribe", "operation": "explode"}),
        json!({"type": "subscribe", "status": "done"}),
        json!({"type": "subscribe", "audience": "everybody"}),
        json!({"type": "subscribe", "metadata": [1]}),
        json!({"type": "subscribe", "replay_limit": -1}),
        json!({"type": "subscribe", "replay_limit": 10_001}),
        json!({"type": "subscribe", "live_only": "yes"}),
        json!({"type": "subscribe", "machine_id": "a", "sandbox_id": "b"}),
    ] {
        client.say(wrong.clone()).await;
        let answer = client.hear().await;
        assert_eq!(answer["type"], "error", "{wrong}");
        assert!(answer["message"].is_string() && answer["code"] == "invalid_request");
    }
    client.0.send(Message::text("{not json")).await.unwrap();
    assert_eq!(client.hear().await["type"], "error");
    client
        .0
        .send(Message::binary(vec![0xff, 0xfe]))
        .await
        .unwrap();
    assert_eq!(client.hear().await["type"], "error");
    client.say(json!({"type": "subscribe"})).await;
    assert_eq!(client.hear().await["type"], "subscribed");
    // An error does not end what goes on.
    client
        .say(json!({"type": "subscribe", "status": "done"}))
        .await;
    assert_eq!(client.hear().await["type"], "error");
    next_is(&world, &mut client, 1).await;
    // A frame over the limit does.
    let long = json!({"type": "subscribe", "metadata": {"x": "y".repeat(70_000)}});
    let _ = client.0.send(Message::text(long.to_string())).await;
    let end = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(Ok(frame)) = client.0.next().await {
            if frame.is_close() {
                break;
            }
        }
    });
    end.await.unwrap();
    let plain = world.get(FLEET).await;
    assert_eq!(
        (plain.0.as_u16(), &plain.1["code"]),
        (400, &json!("invalid_request"))
    );
}

/// Follows as the published client does: after the last event it had, whenever the connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_across_restarts_without_hole_or_double() {
    let mut world = World::new().await;
    let mut heard = Vec::new();
    let mut last: Option<String> = None;
    let mut appended = 0;
    for round in 0..4 {
        if round > 0 {
            world.restart().await;
        }
        // Some come while nobody listens.
        append(&world, (appended..appended + 150).map(numbered).collect()).await;
        appended += 150;
        let mut filters = json!({"live_only": false, "replay_limit": 100});
        match &last {
            Some(id) => filters["after_event_id"] = json!(id),
            None => filters["replay_limit"] = json!(10_000),
        }
        let mut client = open(&world, FLEET, filters).await;
        append(&world, (appended..appended + 150).map(numbered).collect()).await;
        appended += 150;
        // It breaks in the middle.
        let until = if round == 3 { appended } else { appended - 40 };
        while (heard.len() as i64) < until {
            let message = client.hear().await;
            last = Some(message["event"]["id"].as_str().unwrap().to_owned());
            heard.push(number(&message));
        }
    }
    assert_eq!(heard, (0..appended).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing_and_costs_nothing() {
    let world = World::new().await;
    let mut slow = open(&world, FLEET, json!({"live_only": true})).await;
    let mut quick = open(&world, FLEET, json!({"live_only": true})).await;
    let large = |number: i64| NewEvent {
        tenant_id: nullspace_store::tenant::DEFAULT.into(),
        error_message: Some("x".repeat(8 << 10)),
        ..numbered(number)
    };
    let before = resident();
    // Far more than sockets hold, and nobody reads it on one side.
    for chunk in 0..40 {
        let range = chunk * 200..(chunk + 1) * 200;
        append(&world, range.clone().map(large).collect()).await;
        assert_eq!(hear(&mut quick, 200).await, range.collect::<Vec<_>>());
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 << 20, "{} MiB more", grown >> 20);
    assert_eq!(hear(&mut slow, 8000).await, (0..8000).collect::<Vec<_>>());
    next_is(&world, &mut slow, 9000).await;
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// The other end of this connection is there, but nobody is at home: nothing answers the pings.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_ends() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    let address = world.server.as_ref().unwrap().address();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let upgrade = format!(
        "GET {FLEET} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let text = br#"{"type":"subscribe"}"#;
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text);
    stream.write_all(&frame).await.unwrap();
    // It is pinged a few times, and then let go: an end of the stream, or a reset.
    let mut all = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(120), async {
        while stream.read_buf(&mut all).await.is_ok_and(|read| read > 0) {}
    });
    ended.await.unwrap();
    let has = |part: &[u8]| all.windows(part.len()).any(|found| found == part);
    assert!(has(b"subscribed") && has(&[0x89, 0]) && has(b"nothing is heard"));
}

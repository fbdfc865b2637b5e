//! A real door, a real client on one side and a real server on the other, each on its own socket.

#![allow(clippy::unwrap_used)]

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use nullspace_gateway::{Access, Dial, Door, Route, TOKEN_HEADER, Upstream};
use nullspace_protocol::BoxedIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Dials a listener of the test and counts how often.
struct Local {
    port: u16,
    dialled: Arc<AtomicUsize>,
}

#[async_trait]
impl Dial for Local {
    async fn dial(&self) -> io::Result<BoxedIo> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(
            TcpStream::connect(("127.0.0.1", self.port)).await?,
        ))
    }
}

struct World {
    door: Door,
    route: Arc<Route>,
    dialled: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let route = Arc::new(Route::default());
        let door = Door::open(
            "127.0.0.1".parse().unwrap(),
            None,
            20_000..=29_999,
            (std::process::id() % 10_000) as u16,
            route.clone(),
            &TaskTracker::new(),
            &CancellationToken::new(),
        )
        .await
        .unwrap();
        Self {
            door,
            route,
            dialled: Arc::default(),
        }
    }

    fn upstream(&self, port: u16) -> Arc<Upstream> {
        Upstream::new(Local {
            port,
            dialled: self.dialled.clone(),
        })
    }

    async fn client(&self) -> Peer {
        let stream = TcpStream::connect(("127.0.0.1", self.door.port())).await;
        Peer(stream.unwrap(), Vec::new())
    }
}

/// A listener that stands for the application.
async fn application() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// One end of a connection, read as text.
struct Peer(TcpStream, Vec<u8>);

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        Self(listener.accept().await.unwrap().0, Vec::new())
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Everything up to and with `end`.
    async fn until(&mut self, end: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.1).into_owned();
            if let Some(at) = text.find(end) {
                let rest = self.1.split_off(at + end.len());
                let text = std::mem::replace(&mut self.1, rest);
                return String::from_utf8(text).unwrap();
            }
            let read = self.0.read_buf(&mut self.1).await.unwrap();
            assert!(read > 0, "closed after {text:?}, waited for {end:?}");
        }
    }

    async fn closed(&mut self) -> bool {
        self.0.read_buf(&mut self.1).await.unwrap_or(0) == 0
    }
}

#[tokio::test]
async fn a_request_and_its_answer_pass_and_connections_are_used_again() {
    let world = World::new().await;
    let (listener, port) = application().await;
    world.route.lead_to(Some(world.upstream(port)));
    let mut client = world.client().await;
    let served = tokio::spawn(async move {
        let mut machine = Peer::accept(&listener).await;
        let mut heads = Vec::new();
        for _ in 0..3 {
            heads.push(machine.until("\r\n\r\n").await);
            machine
                .say("HTTP/1.1 201 Made\r\ncontent-length: 2\r\nkeep-alive: timeout=9\r\nx-a: b\r\n\r\nok")
                .await;
        }
        heads
    });
    for _ in 0..3 {
        client
            .say("GET /a?b=%20c HTTP/1.1\r\nhost: there\r\nconnection: x-hop\r\nx-hop: 1\r\nx-kept: 2\r\n\r\n")
            .await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 201"), "{head}");
        assert!(
            head.contains("x-a: b") && !head.contains("keep-alive"),
            "{head}"
        );
        assert_eq!(client.until("ok").await, "ok");
    }
    for head in served.await.unwrap() {
        assert!(head.starts_with("GET /a?b=%20c HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("host: there") && head.contains("x-kept: 2"),
            "{head}"
        );
        assert!(head.contains("x-forwarded-for: 127.0.0.1"), "{head}");
        assert!(!head.contains("x-hop"), "{head}");
    }
    assert_eq!(world.dialled.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn bodies_are_not_held_back_either_way() {
    let world = World::new().await;
    let (listener, port) = application().await;
    world.route.lead_to(Some(world.upstream(port)));
    let mut client = world.client().await;
    client
        .say("POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    let mut machine = Peer::accept(&listener).await;
    // The first part arrives before the second was sent.
    machine.until("one").await;
    client.say("3\r\ntwo\r\n").await;
    machine.until("two").await;
    // And an answer may begin before the question has ended.
    machine
        .say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n")
        .await;
    client.until("data: 1\n\n").await;
    client.say("0\r\n\r\n").await;
    machine.until("0\r\n\r\n").await;
    machine.say("data: 2\n\n").await;
    client.until("data: 2\n\n").await;
    drop(machine);
    client.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_by_the_application() {
    let world = World::new().await;
    let (listener, port) = application().await;
    let upstream = world.upstream(port);
    world.route.lead_to(Some(upstream.clone()));
    let mut client = world.client().await;
    client.say("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut machine = Peer::accept(&listener).await;
    machine.until("\r\n\r\n").await;
    machine
        .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    client.until("a\r\n").await;
    drop(client);
    assert!(machine.closed().await);
    upstream.drained().await;
}

#[tokio::test]
async fn an_upgraded_connection_is_a_pipe() {
    let world = World::new().await;
    let (listener, port) = application().await;
    let upstream = world.upstream(port);
    world.route.lead_to(Some(upstream.clone()));
    let mut client = world.client().await;
    client
        .say("GET /ws HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n")
        .await;
    let mut machine = Peer::accept(&listener).await;
    let head = machine.until("\r\n\r\n").await.to_lowercase();
    assert!(
        head.contains("upgrade: websocket") && head.contains("sec-websocket-key: k"),
        "{head}"
    );
    machine
        .say("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: y\r\n\r\nhello")
        .await;
    let head = client.until("\r\n\r\n").await.to_lowercase();
    assert!(
        head.contains("101") && head.contains("sec-websocket-accept: y"),
        "{head}"
    );
    client.until("hello").await;
    client.say("to the machine").await;
    machine.until("to the machine").await;
    machine.say("to the client").await;
    client.until("to the client").await;
    drop(machine);
    assert!(client.closed().await);
    drop(client);
    upstream.drained().await;
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_nobody_an_answer() {
    let world = World::new().await;
    let (listener, port) = application().await;
    world.route.lead_to(Some(world.upstream(port)));
    let mut client = world.client().await;
    for _ in 0..3 {
        client.say("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut machine = Peer::accept(&listener).await;
        machine.until("\r\n\r\n").await;
        machine
            .say("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n.")
            .await;
        client.until("\r\n\r\n.").await;
        // Closed without a word, as applications do with connections that are idle.
        drop(machine);
    }
    assert_eq!(world.dialled.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn what_is_under_way_ends_where_it_began() {
    let world = World::new().await;
    let ((old, old_port), (new, new_port)) = (application().await, application().await);
    let before = world.upstream(old_port);
    world.route.lead_to(Some(before.clone()));
    let mut first = world.client().await;
    first.say("GET /1 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut machine = Peer::accept(&old).await;
    machine.until("\r\n\r\n").await;

    let replaced = world.route.lead_to(Some(world.upstream(new_port)));
    assert!(replaced.is_some_and(|replaced| Arc::ptr_eq(&replaced, &before)));
    let mut second = world.client().await;
    second.say("GET /2 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut other = Peer::accept(&new).await;
    other.until("GET /2").await;

    let drained = before.drained();
    tokio::pin!(drained);
    let is_drained = futures_util::FutureExt::now_or_never(drained.as_mut());
    assert!(is_drained.is_none(), "a request is under way");
    machine
        .say("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nold")
        .await;
    first.until("old").await;
    drained.await;
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let world = World::new().await;
    let ask = async |head: &str| {
        let mut client = world.client().await;
        client
            .say(&format!("GET / HTTP/1.1\r\nhost: x\r\n{head}\r\n"))
            .await;
        client.until("}").await
    };
    let answer = ask("").await;
    assert!(
        answer.contains("503") && answer.contains("service_not_ready"),
        "{answer}"
    );
    assert!(answer.contains("retry-after: 1"), "{answer}");

    let (listener, port) = application().await;
    drop(listener);
    world.route.lead_to(Some(world.upstream(port)));
    let answer = ask("").await;
    assert!(
        answer.contains("502") && answer.contains("service_unreachable"),
        "{answer}"
    );

    world.route.allow(Access::Token("let-me-in".into()));
    for head in ["", &format!("{TOKEN_HEADER}: let-me-ib\r\n")] {
        let answer = ask(head).await;
        assert!(
            answer.contains("401") && !answer.contains("let-me-in"),
            "{answer}"
        );
    }
    let answer = ask(&format!("{TOKEN_HEADER}: let-me-in\r\n")).await;
    assert!(answer.contains("502"), "{answer}");
}

#[tokio::test]
async fn a_closed_door_gives_its_port_back() {
    let world = World::new().await;
    let port = world.door.port();
    let World { door, route, .. } = world;
    drop(door);
    let opened = async {
        loop {
            let again = Door::open(
                "127.0.0.1".parse().unwrap(),
                Some(port),
                port..=port,
                0,
                route.clone(),
                &TaskTracker::new(),
                &CancellationToken::new(),
            )
            .await;
            if let Ok(door) = again {
                return door;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(opened.await.port(), port);
}

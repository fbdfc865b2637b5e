//! A real door, a real client on one side and a real server on the other, each on its own socket.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../../tests/ports.rs"]
mod ports;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderValue, StatusCode};
use nullspace_gateway::{
    Access, Account, Dial, Door, Guard, Pass, Refusal, Route, TOKEN_HEADER, Upstream, Visitor,
};
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
    _ports: ports::Ports,
    door: Door,
    route: Arc<Route>,
    dialled: Arc<AtomicUsize>,
}

impl World {
    async fn new() -> Self {
        let ports = ports::Ports::take();
        let route = Arc::new(Route::new("the service"));
        let door = Door::open(
            "127.0.0.1".parse().unwrap(),
            None,
            ports.first..=ports.last,
            0,
            route.clone(),
            &TaskTracker::new(),
            &CancellationToken::new(),
        )
        .await
        .unwrap();
        Self {
            _ports: ports,
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

/// Lets in who says so, and counts.
#[derive(Default)]
struct Counting {
    came_in: AtomicUsize,
    went_out: AtomicUsize,
    failed: AtomicUsize,
}

impl Account for Counting {
    fn came_in(&self, bytes: u64) {
        self.came_in.fetch_add(bytes as usize, Ordering::SeqCst);
    }

    fn went_out(&self, bytes: u64) {
        self.went_out.fetch_add(bytes as usize, Ordering::SeqCst);
    }

    fn failed(&self, _code: &'static str) {
        self.failed.fetch_add(1, Ordering::SeqCst);
    }
}

struct Porter {
    counting: Arc<Counting>,
    cut: CancellationToken,
}

impl Guard for Porter {
    fn admit(&self, visitor: Visitor<'_>) -> Result<Pass, Refusal> {
        if visitor.headers.remove("x-let-me-in").is_none() {
            return Err(Refusal {
                status: StatusCode::FORBIDDEN,
                code: "not_you",
                message: "not you",
            });
        }
        Ok(Pass {
            account: Some(self.counting.clone()),
            cut: self.cut.clone(),
            set_cookie: Some(HeaderValue::from_static("seen=1")),
            host: Some(HeaderValue::from_static("inside:80")),
            patience: Duration::from_secs(1),
        })
    }
}

fn guarded(world: &World) -> (Arc<Counting>, CancellationToken) {
    let (counting, cut) = (Arc::<Counting>::default(), CancellationToken::new());
    world.route.allow(Access::Guarded(Arc::new(Porter {
        counting: counting.clone(),
        cut: cut.clone(),
    })));
    (counting, cut)
}

#[tokio::test]
async fn a_guard_decides_and_what_passes_is_counted() {
    let world = World::new().await;
    let (listener, port) = application().await;
    world.route.lead_to(Some(world.upstream(port)));
    let (counting, _) = guarded(&world);
    let mut client = world.client().await;
    // Refused without being connected, and the rest of the request does not spoil the next one.
    client
        .say("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    let answer = client.until("}").await;
    assert!(
        answer.contains("403") && answer.contains("not_you") && answer.contains("no-store"),
        "{answer}"
    );
    assert_eq!(world.dialled.load(Ordering::Relaxed), 0);
    client
        .say("POST / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\ncontent-length: 4\r\n\r\nbody")
        .await;
    let mut machine = Peer::accept(&listener).await;
    let head = machine.until("\r\n\r\nbody").await.to_lowercase();
    assert!(
        head.contains("host: inside:80") && !head.contains("x-let-me-in"),
        "{head}"
    );
    assert!(head.contains("x-forwarded-host: x"), "{head}");
    machine
        .say("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nanswer")
        .await;
    let head = client.until("answer").await;
    assert!(head.contains("set-cookie: seen=1"), "{head}");
    let counts = (&counting.came_in, &counting.went_out, &counting.failed);
    let counts = (
        counts.0.load(Ordering::SeqCst),
        counts.1.load(Ordering::SeqCst),
        counts.2.load(Ordering::SeqCst),
    );
    assert_eq!(counts, (4, 6, 0));
}

#[tokio::test]
async fn a_guard_ends_what_is_under_way() {
    let world = World::new().await;
    let (listener, port) = application().await;
    let upstream = world.upstream(port);
    world.route.lead_to(Some(upstream.clone()));
    let (counting, cut) = guarded(&world);
    let mut stream = world.client().await;
    stream
        .say("GET / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\n\r\n")
        .await;
    let mut machine = Peer::accept(&listener).await;
    machine.until("\r\n\r\n").await;
    machine
        .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    stream.until("a\r\n").await;
    let mut socket = world.client().await;
    socket
        .say("GET / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await;
    let mut other = Peer::accept(&listener).await;
    other.until("\r\n\r\n").await;
    other
        .say(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await;
    socket.until("\r\n\r\n").await;
    socket.say("12345").await;
    other.until("12345").await;
    other.say("123").await;
    socket.until("123").await;
    assert_eq!(counting.came_in.load(Ordering::SeqCst), 5);
    assert_eq!(counting.went_out.load(Ordering::SeqCst), 4);

    cut.cancel();
    assert!(stream.closed().await && machine.closed().await);
    assert!(socket.closed().await && other.closed().await);
    upstream.drained().await;
    // Nothing begins any more.
    let mut late = world.client().await;
    late.say("GET / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\n\r\n")
        .await;
    assert!(late.until("}").await.contains("401"));
}

#[tokio::test]
async fn an_application_that_hangs_is_told_of_and_one_that_is_sent_slowly_is_not() {
    let world = World::new().await;
    let (listener, port) = application().await;
    world.route.lead_to(Some(world.upstream(port)));
    let (counting, _) = guarded(&world);
    let mut client = world.client().await;
    client
        .say("GET / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\n\r\n")
        .await;
    let mut machine = Peer::accept(&listener).await;
    machine.until("\r\n\r\n").await;
    let answer = client.until("}").await;
    assert!(
        answer.contains("504") && answer.contains("service_timeout"),
        "{answer}"
    );
    assert!(machine.closed().await);
    assert_eq!(counting.failed.load(Ordering::SeqCst), 1);

    // Longer than the patience in all, but never for so long without a byte.
    client
        .say("POST / HTTP/1.1\r\nhost: x\r\nx-let-me-in: 1\r\ncontent-length: 8\r\n\r\n")
        .await;
    let mut machine = Peer::accept(&listener).await;
    machine.until("\r\n\r\n").await;
    for byte in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        client.say(byte).await;
        machine.until(byte).await;
    }
    machine
        .say("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n.")
        .await;
    assert!(client.until("\r\n\r\n.").await.contains("200"));
}

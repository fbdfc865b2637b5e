//! The resolver over real sockets, with name servers of our own behind it.

#![allow(clippy::unwrap_used)]

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use nullspace_resolver::{Config, Limits, Listen, Policy, Resolver};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};

/// Long enough for a busy machine; nothing waits this long when things work.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a stub answers: the question in, any number of messages out; the flag says whether it is TCP.
type Answerer = Arc<dyn Fn(&Message, bool) -> Vec<Message> + Send + Sync>;

/// A name server that does what a test tells it.
struct Stub {
    address: SocketAddr,
    asked: watch::Sender<usize>,
    _tasks: JoinSet<()>,
}

impl Stub {
    async fn start(
        answer: impl Fn(&Message, bool) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), answer).await
    }

    async fn start_at(
        address: SocketAddr,
        answer: impl Fn(&Message, bool) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind(address).await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let answer: Answerer = Arc::new(answer);
        let asked = watch::Sender::new(0);
        let mut tasks = JoinSet::new();
        let (by_udp, count) = (Arc::clone(&answer), asked.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                count.send_modify(|n| *n += 1);
                for reply in by_udp(&question, false) {
                    udp.send_to(&reply.to_vec().unwrap(), peer).await.unwrap();
                }
            }
        });
        let count = asked.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let question = read_tcp(&mut stream).await.unwrap();
                count.send_modify(|n| *n += 1);
                for reply in answer(&question, true) {
                    write_tcp(&mut stream, &reply).await;
                }
            }
        });
        Self {
            address,
            asked,
            _tasks: tasks,
        }
    }

    fn asked(&self) -> usize {
        *self.asked.borrow()
    }
}

/// A resolver under test. Ends with the value.
struct World {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
    hosts: std::path::PathBuf,
    resolv_conf: std::path::PathBuf,
}

impl World {
    fn new(servers: &[&Stub], change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(vec![Listen::Address(SocketAddrV4::new(
            Ipv4Addr::LOCALHOST,
            0,
        ))]);
        config.hosts = dir.path().join("hosts");
        config.resolv_conf = dir.path().join("resolv.conf");
        config.nameservers = servers.iter().map(|s| s.address).collect();
        let (hosts, resolv_conf) = (config.hosts.clone(), config.resolv_conf.clone());
        change(&mut config);
        let resolver = Resolver::bind(config).unwrap();
        let address = resolver.addresses()[0];
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(resolver.serve(async move { drop(stopped.await) }));
        Self {
            address,
            stop,
            task,
            _dir: dir,
            hosts,
            resolv_conf,
        }
    }

    async fn udp(&self, question: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket
            .send_to(&question.to_vec().unwrap(), self.address)
            .await
            .unwrap();
        receive(&socket).await
    }

    async fn tcp(&self, question: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        write_tcp(&mut stream, question).await;
        patient(read_tcp(&mut stream)).await.unwrap()
    }

    async fn addresses(&self, name: &str) -> Vec<String> {
        texts(&self.udp(&question(name, RecordType::A)).await)
    }
}

async fn patient<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .expect("nothing happened for a long time")
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 4096];
    let length = patient(socket.recv(&mut buffer)).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn read_tcp(stream: &mut TcpStream) -> Option<Message> {
    let mut bytes = vec![0; stream.read_u16().await.ok()?.into()];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(Message::from_vec(&bytes).unwrap())
}

async fn write_tcp(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream
        .write_all(&[&length, bytes.as_slice()].concat())
        .await
        .unwrap();
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new();
    message
        .set_id(rand::random())
        .set_recursion_desired(true)
        .add_query(Query::query(name(text), kind));
    message
}

fn texts(message: &Message) -> Vec<String> {
    message
        .answers()
        .iter()
        .map(|r| r.data().to_string())
        .collect()
}

fn reply_to(question: &Message) -> Message {
    let mut reply = Message::new();
    reply
        .set_id(question.id())
        .set_message_type(MessageType::Response)
        .set_op_code(OpCode::Query)
        .add_queries(question.queries().iter().cloned());
    reply
}

fn with_addresses(question: &Message, ttl: u32, addresses: &[&str]) -> Message {
    let mut reply = reply_to(question);
    for address in addresses {
        let data = RData::A(rdata::A(address.parse().unwrap()));
        reply.add_answer(Record::from_rdata(
            question.queries()[0].name().clone(),
            ttl,
            data,
        ));
    }
    reply
}

fn with_code(question: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(question);
    reply.set_response_code(code);
    reply
}

#[tokio::test]
async fn forwards_and_remembers() {
    let stub = Stub::start(|q, _| vec![with_addresses(q, 3600, &["192.0.2.1"])]).await;
    let world = World::new(&[&stub], |_| {});
    let asked = question("A.Example.com.", RecordType::A);
    let reply = world.udp(&asked).await;
    assert_eq!(texts(&reply), ["192.0.2.1"]);
    assert_eq!(
        (reply.id(), reply.recursion_available()),
        (asked.id(), true)
    );
    assert!(reply.queries()[0].name().eq_case(&name("A.Example.com.")));
    assert!(reply.answers()[0].ttl() <= 300);
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.1"]);
    assert_eq!(texts(&world.tcp(&asked).await), ["192.0.2.1"]);
    assert_eq!(stub.asked(), 1);
    world.addresses("b.example.com.").await;
    assert_eq!(stub.asked(), 2);
}

#[tokio::test]
async fn what_may_not_be_remembered_is_asked_again() {
    let stub = Stub::start(|q, _| vec![with_addresses(q, 0, &["192.0.2.1"])]).await;
    let world = World::new(&[&stub], |_| {});
    for n in 1..4 {
        world.addresses("a.example.com.").await;
        assert_eq!(stub.asked(), n);
    }
}

#[tokio::test]
async fn answers_itself_what_is_local() {
    let stub = Stub::start(|_, _| panic!("asked")).await;
    let world = World::new(&[&stub], |_| {});
    std::fs::write(
        &world.hosts,
        "127.0.0.1 thishost\n10.0.0.5 git.corp.example\n",
    )
    .unwrap();
    assert_eq!(world.addresses("localhost.").await, ["127.0.0.1"]);
    assert_eq!(world.addresses("app.localhost.").await, ["127.0.0.1"]);
    assert_eq!(world.addresses("git.corp.example.").await, ["10.0.0.5"]);
    let reply = world.udp(&question("thishost.", RecordType::A)).await;
    assert_eq!(
        (reply.response_code(), reply.answers().len()),
        (ResponseCode::NXDomain, 0)
    );
    let reply = world
        .udp(&question("a.example.com.", RecordType::AAAA))
        .await;
    assert_eq!(
        (reply.response_code(), reply.answers().len()),
        (ResponseCode::NoError, 0)
    );
    let reply = world
        .udp(&question("1.0.0.10.in-addr.arpa.", RecordType::PTR))
        .await;
    assert_eq!(reply.response_code(), ResponseCode::NXDomain);
    std::fs::write(&world.hosts, "10.0.0.66 git.corp.example\n").unwrap();
    assert_eq!(world.addresses("git.corp.example.").await, ["10.0.0.66"]);
}

#[tokio::test]
async fn names_that_lead_to_the_host_lead_nowhere() {
    let stub = Stub::start(|q, _| {
        vec![match q.queries()[0].name().to_ascii().as_str() {
            "mixed.example.com." => {
                with_addresses(q, 60, &["127.0.0.1", "169.254.169.254", "192.0.2.9"])
            }
            _ => with_addresses(q, 60, &["127.0.0.53"]),
        }]
    })
    .await;
    let world = World::new(&[&stub], |_| {});
    assert_eq!(world.addresses("mixed.example.com.").await, ["192.0.2.9"]);
    // Once from the server, once remembered or not: never shown.
    for _ in 0..2 {
        let reply = world
            .udp(&question("evil.example.com.", RecordType::A))
            .await;
        assert_eq!(
            (reply.response_code(), reply.answers().len()),
            (ResponseCode::NoError, 0)
        );
    }
}

#[tokio::test]
async fn a_cut_reply_is_fetched_over_tcp() {
    let stub = Stub::start(|q, tcp| {
        let mut reply = with_addresses(
            q,
            60,
            if tcp {
                &["192.0.2.1", "192.0.2.2"]
            } else {
                &[]
            },
        );
        reply.set_truncated(!tcp);
        vec![reply]
    })
    .await;
    let world = World::new(&[&stub], |_| {});
    assert_eq!(
        world.addresses("a.example.com.").await,
        ["192.0.2.1", "192.0.2.2"]
    );
    assert_eq!(stub.asked(), 2);
}

#[tokio::test]
async fn a_reply_too_long_for_udp_comes_over_tcp() {
    let many: Vec<String> = (0..100).map(|i| format!("192.0.2.{i}")).collect();
    let stub = Stub::start(move |q, _| {
        vec![with_addresses(
            q,
            60,
            &many.iter().map(String::as_str).collect::<Vec<_>>(),
        )]
    })
    .await;
    let world = World::new(&[&stub], |_| {});
    let mut asked = question("a.example.com.", RecordType::A);
    let reply = world.udp(&asked).await;
    assert!(reply.truncated() && reply.answers().is_empty());
    assert_eq!(world.tcp(&asked).await.answers().len(), 100);
    // A machine may not ask for more over UDP than fits through in one piece.
    let mut edns = Edns::new();
    edns.set_max_payload(65000);
    asked.set_edns(edns);
    assert!(world.udp(&asked).await.truncated());
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let silent = Stub::start(|_, _| vec![]).await;
    let broken = Stub::start(|q, _| vec![with_code(q, ResponseCode::ServFail)]).await;
    let good = Stub::start(|q, _| vec![with_addresses(q, 60, &["192.0.2.1"])]).await;
    let world = World::new(&[&silent, &broken, &good], |c| {
        c.limits.upstream_try = Duration::from_millis(300);
    });
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.1"]);
    assert_eq!((silent.asked(), broken.asked(), good.asked()), (1, 1, 1));
    // The one that answered is asked first from now on.
    assert_eq!(world.addresses("b.example.com.").await, ["192.0.2.1"]);
    assert_eq!((silent.asked(), broken.asked(), good.asked()), (1, 1, 2));
}

#[tokio::test]
async fn nobody_answers() {
    // A port that was just free refuses at once.
    let gone = Stub::start(|_, _| vec![]).await;
    let address = gone.address;
    drop(gone);
    let world = World::new(&[], |c| c.nameservers = vec![address]);
    let reply = world.udp(&question("a.example.com.", RecordType::A)).await;
    assert_eq!(reply.response_code(), ResponseCode::ServFail);
    let world = World::new(&[], |_| {});
    let reply = world.udp(&question("a.example.com.", RecordType::A)).await;
    assert_eq!(reply.response_code(), ResponseCode::ServFail);
}

#[tokio::test]
async fn forged_replies_are_passed_over() {
    let stub = Stub::start(|q, _| {
        let mut wrong_id = with_addresses(q, 60, &["192.0.2.66"]);
        wrong_id.set_id(q.id().wrapping_add(1));
        let mut wrong_name = with_addresses(q, 60, &["192.0.2.66"]);
        wrong_name.queries_mut()[0].set_name(name("other.example.com."));
        let mut question = with_addresses(q, 60, &["192.0.2.66"]);
        question.set_message_type(MessageType::Query);
        vec![
            wrong_id,
            wrong_name,
            question,
            with_addresses(q, 60, &["192.0.2.1"]),
        ]
    })
    .await;
    let world = World::new(&[&stub], |_| {});
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.1"]);
}

#[tokio::test]
async fn names_can_be_denied_for_one_machine() {
    struct Deny;
    impl Policy for Deny {
        fn allow(&self, source: Ipv4Addr, name: &str) -> bool {
            assert_eq!(source, Ipv4Addr::LOCALHOST);
            !name.ends_with("denied.example")
        }
    }
    let stub = Stub::start(|q, _| vec![with_addresses(q, 60, &["192.0.2.1"])]).await;
    let world = World::new(&[&stub], |c| c.policy = Arc::new(Deny));
    let reply = world
        .udp(&question("WWW.Denied.EXAMPLE.", RecordType::A))
        .await;
    assert_eq!(
        (reply.response_code(), stub.asked()),
        (ResponseCode::NXDomain, 0)
    );
    assert_eq!(world.addresses("www.example.").await, ["192.0.2.1"]);
}

#[tokio::test]
async fn hostile_bytes_do_not_stop_it() {
    let stub = Stub::start(|q, _| vec![with_addresses(q, 60, &["192.0.2.1"])]).await;
    let world = World::new(&[&stub], |_| {});
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.address).await.unwrap();
    // Too short, a reply, too long: no answer. Damaged: an error with the same number.
    let good = question("a.example.com.", RecordType::A).to_vec().unwrap();
    let mut reply = good.clone();
    reply[2] |= 0x80;
    for bytes in [&[][..], &[1, 2, 3], &reply, &[0; 4097]] {
        socket.send(bytes).await.unwrap();
    }
    let mut damaged = good.clone();
    damaged[12] = 0xc0;
    damaged[13] = 0x0c;
    socket.send(&damaged).await.unwrap();
    let answer = receive(&socket).await;
    assert_eq!(answer.response_code(), ResponseCode::FormErr);
    assert_eq!(answer.id().to_be_bytes(), [good[0], good[1]]);

    // Over TCP the connection ends instead.
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3]).await.unwrap();
    assert!(patient(read_tcp(&mut stream)).await.is_none());
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.1"]);
}

#[tokio::test]
async fn a_tcp_connection_that_brings_nothing_is_closed() {
    let world = World::new(&[], |c| {
        c.limits.connection_idle = Duration::from_millis(100)
    });
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(&[0]).await.unwrap();
    assert!(patient(read_tcp(&mut stream)).await.is_none());
}

#[tokio::test]
async fn several_questions_on_one_connection() {
    let world = World::new(&[], |_| {});
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        write_tcp(&mut stream, &question("localhost.", RecordType::A)).await;
        assert_eq!(
            texts(&patient(read_tcp(&mut stream)).await.unwrap()),
            ["127.0.0.1"]
        );
    }
}

#[tokio::test]
async fn one_machine_gets_its_share_and_no_more() {
    let stub = Stub::start(|_, _| vec![]).await;
    let world = World::new(&[&stub], |c| {
        c.limits = Limits {
            queries_per_source: 3,
            upstream_try: PATIENCE,
            ..Limits::default()
        };
    });
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(world.address).await.unwrap();
    for i in 0..3 {
        socket
            .send(
                &question(&format!("{i}.example.com."), RecordType::A)
                    .to_vec()
                    .unwrap(),
            )
            .await
            .unwrap();
    }
    let mut asked = stub.asked.subscribe();
    patient(asked.wait_for(|n| *n == 3)).await.unwrap();
    // Dropped, though it needs no name server; another machine's is answered.
    socket
        .send(&question("localhost.", RecordType::A).to_vec().unwrap())
        .await
        .unwrap();
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other.connect(world.address).await.unwrap();
    other
        .send(&question("localhost.", RecordType::A).to_vec().unwrap())
        .await
        .unwrap();
    assert_eq!(texts(&receive(&other).await), ["127.0.0.1"]);
    assert!(socket.try_recv(&mut [0; 512]).is_err());
}

#[tokio::test]
async fn connections_are_shared_out_too() {
    let world = World::new(&[], |c| c.limits.connections_per_source = 1);
    let mut first = TcpStream::connect(world.address).await.unwrap();
    write_tcp(&mut first, &question("localhost.", RecordType::A)).await;
    assert!(patient(read_tcp(&mut first)).await.is_some());
    let mut second = TcpStream::connect(world.address).await.unwrap();
    assert!(patient(read_tcp(&mut second)).await.is_none());
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let stub = Stub::start(|_, _| vec![]).await;
    let world = World::new(&[&stub], |_| {});
    let address = world.address;
    world.stop.send(()).unwrap();
    patient(world.task).await.unwrap();
    // Everything under way is gone: the address is free again.
    let free = UdpSocket::bind(address).await;
    assert!(free.is_ok());
}

#[tokio::test]
async fn sockets_can_be_handed_over() {
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpListener::bind(udp.local_addr().unwrap()).unwrap();
    let world = World::new(&[], |c| c.listen = vec![Listen::Sockets { udp, tcp }]);
    assert_eq!(world.addresses("localhost.").await, ["127.0.0.1"]);
}

#[tokio::test]
async fn changed_name_servers_are_used() {
    // Name servers in the file have port 53, which needs root, on addresses that nobody else uses.
    let (one, two) = (
        "127.53.17.1:53".parse().unwrap(),
        "127.53.17.2:53".parse().unwrap(),
    );
    if UdpSocket::bind(SocketAddr::clone(&one)).await.is_err() {
        println!("skipped: port 53 cannot be bound (needs root)");
        return;
    }
    let one = Stub::start_at(one, |q, _| vec![with_addresses(q, 0, &["192.0.2.1"])]).await;
    let two = Stub::start_at(two, |q, _| vec![with_addresses(q, 0, &["192.0.2.2"])]).await;
    let world = World::new(&[], |_| {});
    std::fs::write(&world.resolv_conf, "nameserver 127.53.17.1\n").unwrap();
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.1"]);
    std::fs::write(&world.resolv_conf, "nameserver 127.53.17.2\n").unwrap();
    assert_eq!(world.addresses("a.example.com.").await, ["192.0.2.2"]);
    assert_eq!((one.asked(), two.asked()), (1, 1));
}

//! Rough weather: clients that vanish, files that change under whoever reads or writes them, names and numbers that nobody
//! expects, clocks that jump.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    host::run,
    world::{KEY, World, answer},
};

/// How long anything may take: far more than it ever does.
const LIMIT: Duration = Duration::from_secs(150);

async fn machine(world: &World) -> String {
    world
        .machine(json!({"template": "host", "timeout_ms": 900_000}))
        .await
}

/// Waits until a command in a machine succeeds.
async fn until(world: &World, id: &str, line: &str) {
    let deadline = Instant::now() + LIMIT;
    while world.shell(id, line).await["exit_code"] != 0 {
        assert!(Instant::now() < deadline, "never: {line}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts a command that goes on by itself.
async fn background(world: &World, id: &str, line: &str) {
    let request = json!({"command": line, "shell": true, "background": true});
    let path = format!("/v1/machines/{id}/exec");
    assert_eq!(world.post(&path, request).await.0, StatusCode::OK);
}

/// A part of an upload, and what it is announced by.
const PART: usize = 1 << 20;

fn part_digest() -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(vec![b'y'; PART]))
}

/// A request whose body breaks off after `sent` bytes, without a goodbye.
fn half_a_request(world: &World, path: &str, length: usize, sent: usize) {
    let address = world.base_url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {KEY}\r\ncontent-length: {length}\r\nx-nullspace-part-sha256: {}\r\n\r\n",
        part_digest()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'n'; sent]).unwrap();
    // With what was not read, the connection is reset.
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_while_it_sends() {
    let world = World::start().await;
    let id = machine(&world).await;
    world.out(&id, "mkdir /srv/d; printf old > /srv/d/f").await;
    let base = format!("/v1/machines/{id}");
    for round in 0..10 {
        half_a_request(
            &world,
            &format!("{base}/file?path=/srv/d/f"),
            20 << 20,
            round << 18,
        );
        half_a_request(
            &world,
            &format!("{base}/file?path=/srv/d/new"),
            20 << 20,
            1 << 20,
        );
    }
    // The old one is there, whole, and nothing else: neither half a file nor what it was written to meanwhile.
    until(&world, &id, "[ \"$(ls -A /srv/d)\" = f ]").await;
    assert_eq!(world.out(&id, "cat /srv/d/f").await, "old");

    let request = json!({"kind": "file", "source_kind": "restartable_file", "target_path": "/srv/d/up", "content_length": 1 << 20});
    let (status, begun) = world.post(&format!("{base}/uploads"), request).await;
    assert_eq!(status, StatusCode::CREATED, "{begun}");
    let upload = format!(
        "{base}/uploads/{}",
        begun["session"]["upload_id"].as_str().unwrap()
    );
    half_a_request(&world, &format!("{upload}/parts/0"), 1 << 20, 1 << 19);
    let part = || {
        world
            .request(Method::PUT, &format!("{upload}/parts/0"))
            .header("x-nullspace-part-sha256", part_digest())
            .body(vec![b'y'; PART])
    };
    let (status, body) = answer(part()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let complete = world
        .request(Method::POST, &format!("{upload}/complete"))
        .json(&json!({}));
    let (status, body) = answer(complete).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(
        world
            .out(&id, "tr -d y < /srv/d/up | wc -c; wc -c < /srv/d/up")
            .await,
        "0\n1048576"
    );
    assert_eq!(world.out(&id, "ls -A /srv/d").await, "f\nup");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_read() {
    let world = World::start().await;
    let id = machine(&world).await;
    world.out(&id, "mkdir /srv/d; head -c 4000000 /dev/zero > /srv/d/grows; cp /srv/d/grows /srv/d/shrinks").await;
    background(
        &world,
        &id,
        "while :; do head -c 20000 /dev/zero >> /srv/d/grows; sleep 0.002; done",
    )
    .await;
    background(
        &world,
        &id,
        "while :; do truncate -s 0 /srv/d/shrinks; head -c 4000000 /dev/zero > /srv/d/shrinks; done",
    )
    .await;
    let path = |name: &str| format!("/v1/machines/{id}/file?path=/srv/d/{name}");
    for round in 0..30 {
        // As long as it was when it was opened, to the byte.
        let response = world
            .request(Method::GET, &path("grows"))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let length = response.content_length().unwrap();
        let body = response.bytes().await.unwrap();
        assert_eq!(body.len() as u64, length, "round {round}");
        let part = world
            .request(Method::GET, &path("grows"))
            .header("range", "bytes=1000-1999");
        let part = part.send().await.unwrap();
        assert_eq!(
            (part.status(), part.bytes().await.unwrap().len()),
            (StatusCode::PARTIAL_CONTENT, 1000)
        );
        // One that is not as long any more as was said ends early, which a client sees.
        // It may have ended before it began.
        let response = world.request(Method::GET, &path("shrinks")).send().await;
        if let Ok(response) = response {
            assert_eq!(response.status(), StatusCode::OK);
            let length = response.content_length().unwrap();
            if let Ok(body) = response.bytes().await {
                assert_eq!(body.len() as u64, length, "round {round}");
            }
        }
        if round % 10 == 0 {
            // An archive that comes to its end is one.
            let whole = world
                .request(Method::GET, &format!("{}&archive_format=tar", path("")))
                .send()
                .await
                .unwrap();
            assert_eq!(whole.status(), StatusCode::OK);
            if let Ok(bytes) = whole.bytes().await {
                let mut archive = tar::Archive::new(&bytes[..]);
                for entry in archive.entries().unwrap() {
                    std::io::copy(&mut entry.unwrap(), &mut std::io::sink()).unwrap();
                }
            }
        }
    }
    assert_eq!(world.out(&id, "echo well").await, "well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_appears_under_a_write() {
    let world = World::start().await;
    let id = machine(&world).await;
    world
        .out(
            &id,
            "echo 'ann:x:1000:1000::/home/ann:/bin/sh' >> /etc/passwd; echo 'ann:x:1000:' >> /etc/group; \
             mkdir -p /home/ann /root/secret; chmod 700 /root; chown 1000:1000 /home/ann",
        )
        .await;
    // As fast as it can: a directory, and a link to one that its owner may not write to.
    background(
        &world,
        &id,
        "cd /home/ann; exec setpriv --reuid 1000 --regid 1000 --clear-groups python3 -c '\nimport os\nwhile True:\n  os.makedirs(\"a\", exist_ok=True)\n  os.path.islink(\"d\") and os.unlink(\"d\")\n  os.path.exists(\"d\") or os.rename(\"a\", \"d\")\n  os.rename(\"d\", \"b\")\n  os.symlink(\"/root/secret\", \"d\")\n  os.system(\"rm -rf b\")\n'",
    )
    .await;
    until(&world, &id, "[ -L /home/ann/d ]").await;
    let mut written = 0;
    for round in 0..300 {
        let path = format!("/v1/machines/{id}/file?path=/home/ann/d/f{round}&user=ann");
        let (status, body) = answer(world.request(Method::PUT, &path).body("x")).await;
        assert!(
            status.is_success() || status.is_client_error(),
            "{status} {body}"
        );
        written += usize::from(status.is_success());
        let request = json!({"path": format!("/home/ann/d/m{round}"), "user": "ann"});
        let (status, body) = world
            .post(&format!("/v1/machines/{id}/files/mkdir"), request)
            .await;
        assert!(
            status.is_success() || status.is_client_error(),
            "{status} {body}"
        );
    }
    println!("{written} of 300 writes met a directory");
    assert_eq!(world.out(&id, "ls -A /root/secret").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_files() {
    let world = World::start().await;
    let id = machine(&world).await;
    let make = "mkdir /srv/many; python3 -c 'import os\nfor n in range(100000): os.mknod(f\"/srv/many/f{n:06}\")'";
    world.out(&id, make).await;
    let (status, listed) = world
        .get(&format!("/v1/machines/{id}/files?path=/srv/many"))
        .await;
    assert_eq!(status, StatusCode::OK);
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 100_000);
    assert_eq!(
        (&listed[0]["name"], &listed[99_999]["name"]),
        (&json!("f000000"), &json!("f099999"))
    );
    let request = json!({"path": "/srv/many", "pattern": "*99999"});
    let (_, found) = world
        .post(&format!("/v1/machines/{id}/files/search"), request)
        .await;
    assert!(found.to_string().contains("f099999"), "{found}");
    // Twice as many are one too many for an answer, which is said.
    let more = "python3 -c 'import os\nfor n in range(100001): os.mknod(f\"/srv/many/g{n:06}\")'";
    world.out(&id, more).await;
    let (status, refused) = world
        .get(&format!("/v1/machines/{id}/files?path=/srv/many"))
        .await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request")),
        "{refused}"
    );
    let (status, body) = world
        .post(
            &format!("/v1/machines/{id}/files/remove"),
            json!({"path": "/srv/many"}),
        )
        .await;
    assert!(status.is_success(), "{status} {body}");
    assert_eq!(world.out(&id, "ls /srv").await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text() {
    let world = World::start().await;
    let id = machine(&world).await;
    world.out(&id, "mkdir /srv/d; cd /srv/d; touch $(printf 'bad\\377') good; mkdir $(printf 'dir\\376'); touch $(printf 'dir\\376/in')").await;
    let (status, listed) = world
        .get(&format!("/v1/machines/{id}/files?path=/srv/d&depth=2"))
        .await;
    assert_eq!(status, StatusCode::OK);
    let names: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["bad\u{fffd}", "dir\u{fffd}", "in", "good"]);
    // What cannot be named cannot be meant.
    let (status, body) = world
        .get(&format!("/v1/machines/{id}/file?path=/srv/d/bad%FF"))
        .await;
    assert!(status.is_client_error(), "{status} {body}");
    let (status, body) = world
        .get(&format!("/v1/machines/{id}/file?path=/srv/d/bad%EF%BF%BD"))
        .await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::NOT_FOUND, &json!("not_found"))
    );
    // But its directory can be taken and removed with it, bytes and all.
    let archive = world.request(
        Method::GET,
        &format!("/v1/machines/{id}/file?path=/srv/d&archive_format=tar"),
    );
    let bytes = archive.send().await.unwrap().bytes().await.unwrap();
    let names: Vec<Vec<u8>> = tar::Archive::new(&bytes[..])
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path_bytes().into_owned())
        .collect();
    assert!(
        names.iter().any(|name| name.ends_with(b"bad\xff")),
        "{names:?}"
    );
    let mut watch = watching(&world, &id, "/srv/d");
    world
        .out(&id, "touch $(printf '/srv/d/new\\377'); touch /srv/d/last")
        .await;
    let told = told(&mut watch, "last");
    assert!(
        told.iter().any(|event| event.contains("new\u{fffd}")),
        "{told:?}"
    );
    let (status, _) = world
        .post(
            &format!("/v1/machines/{id}/files/remove"),
            json!({"path": "/srv/d"}),
        )
        .await;
    assert!(status.is_success());

    // Output, streamed and not: text is made of it, and the streamed one has the bytes too.
    let ran = world.shell(&id, "printf '\\377a\\300\\257'").await;
    assert_eq!(ran["stdout"], "\u{fffd}a\u{fffd}\u{fffd}");
    let streamed = world.nullspace(&[
        "machine",
        "process",
        "stream",
        &id,
        "--shell",
        "printf '\\377a\\300\\257'",
    ]);
    assert_eq!(streamed.stdout, b"\xffa\xc0\xaf");
    let json = world.nullspace(&[
        "machine",
        "process",
        "stream",
        &id,
        "--shell",
        "printf '\\377'",
        "--json",
    ]);
    assert_eq!(
        serde_json::from_slice::<Value>(&json.stdout).unwrap()["stdout"],
        "\u{fffd}"
    );
}

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `machine file watch`, once it watches.
fn watching(world: &World, id: &str, path: &str) -> Running {
    let mut watch = Running(
        world
            .program()
            .args(["machine", "file", "watch", id, path, "--recursive"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut said = [0; 8];
    watch
        .0
        .stderr
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    watch
}

/// Its lines up to one that has this word, or to its end.
fn told(watch: &mut Running, last: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in BufReader::new(watch.0.stdout.as_mut().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().contains(last) {
            break;
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_removed_while_it_is_watched() {
    let world = World::start().await;
    let id = machine(&world).await;
    for _ in 0..5 {
        world.out(&id, "mkdir -p /srv/t; cd /srv/t; for a in $(seq 20); do mkdir -p $a/b/c; touch $a/b/c/f; done").await;
        let mut watch = watching(&world, &id, "/srv/t");
        world.out(&id, "rm -rf /srv/t").await;
        let told = told(&mut watch, "nothing has this word");
        assert!(told.last().unwrap().contains("\"/srv/t\""), "{told:?}");
        // It ends with the tree, and says so.
        assert_eq!(watch.0.wait().unwrap().code(), Some(3));
    }
    assert_eq!(world.out(&id, "echo well").await, "well");
}

/// The kernel counts what watches of all machines for the host's root: one must not take those of the others.
#[tokio::test(flavor = "multi_thread")]
async fn one_machine_does_not_take_the_watches_of_all() {
    let world = World::start().await;
    let id = machine(&world).await;
    let greedy = "exec python3 -c 'import ctypes, time\nl = ctypes.CDLL(None); n = 0\nwhile n < 2000 and l.inotify_init1(0) >= 0: n += 1\nopen(\"/srv/n\", \"w\").write(str(n))\ntime.sleep(86391)'";
    background(&world, &id, greedy).await;
    until(&world, &id, "[ -s /srv/n ]").await;
    assert!(world.out(&id, "cat /srv/n").await.parse::<u32>().unwrap() > 128);
    let other = machine(&world).await;
    world.out(&other, "mkdir /srv/d").await;
    let mut watch = watching(&world, &other, "/srv/d");
    world.out(&other, "touch /srv/d/last").await;
    assert_eq!(told(&mut watch, "last").len(), 1);
}

/// The packets between two ports of this host are lost while it lives.
struct Lost(String);

impl Lost {
    fn new(ports: &[(u16, u16)]) -> Self {
        let table = format!("nullspace_test_{}_{}", std::process::id(), ports[0].0);
        let mut rules =
            format!("table inet {table} {{ chain in {{ type filter hook input priority 0;");
        for (a, b) in ports {
            rules +=
                &format!(" tcp sport {a} tcp dport {b} drop; tcp sport {b} tcp dport {a} drop;");
        }
        rules += " }\n}\n";
        let mut nft = Command::new("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        nft.stdin
            .take()
            .unwrap()
            .write_all(rules.as_bytes())
            .unwrap();
        assert!(nft.wait().unwrap().success(), "{rules}");
        Self(table)
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", &self.0])
            .status();
    }
}

/// The connections that a process has: its own port of each, and the other one.
fn connections(pid: u32) -> Vec<(u16, u16)> {
    let pid = format!("pid={pid},");
    let port = |address: &str| address.rsplit_once(':').unwrap().1.parse().unwrap();
    run("ss", &["-Htnp", "state", "established"])
        .lines()
        .filter(|line| line.contains(&pid))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (port(words[2]), port(words[3]))
        })
        .collect()
}

/// The host of a client loses its network: nothing is said any more, not even goodbye. Of one that is idle and of one that
/// is being sent something.
#[tokio::test(flavor = "multi_thread")]
async fn clients_whose_network_is_gone() {
    let world = World::start().await;
    let id = machine(&world).await;
    let access = world.nullspace(&["ssh", &id, "--json"]);
    let access: Value = serde_json::from_slice(&access.stdout).unwrap();
    let ssh = u16::try_from(access["port"].as_u64().unwrap()).unwrap();
    let start = |arguments: &[&str]| {
        let mut program = world.program();
        program
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Running(program.spawn().unwrap())
    };
    let clients = [
        start(&["machine", "process", "stream", &id, "--", "sleep", "86397"]),
        start(&["ssh", &id, "--", "exec sleep 86395"]),
        start(&["ssh", &id, "--", "while :; do echo 86394; done"]),
        // Output waits for it, so that it owes no pong.
        start(&[
            "machine",
            "process",
            "stream",
            &id,
            "--",
            "sh",
            "-c",
            "while :; do echo 86393; done",
        ]),
    ];
    for line in [
        "pgrep -f 'sleep 8639[7]'",
        "pgrep -f 'sleep 8639[5]'",
        "pgrep -f 'echo 8639[4]'",
        "pgrep -f 'echo 8639[3]'",
    ] {
        until(&world, &id, line).await;
    }
    let deadline = Instant::now() + LIMIT;
    let serve = world.serve_pid();
    let mut pairs = connections(clients[0].0.id());
    pairs.extend(connections(clients[3].0.id()));
    pairs.extend(
        connections(serve)
            .into_iter()
            .filter(|(own, _)| *own == ssh),
    );
    assert_eq!(pairs.len(), 4, "{pairs:?}");
    let gone: Vec<u16> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let lost = Lost::new(&pairs);
    // Who had logged in is hung up.
    until(
        &world,
        &id,
        "! pgrep -f 'sleep 8639[5]' && ! pgrep -f 'echo 8639[4]'",
    )
    .await;
    let is_left = || {
        let left = connections(serve);
        left.into_iter()
            .any(|(own, peer)| gone.contains(&own) && gone.contains(&peer))
    };
    while is_left() {
        assert!(Instant::now() < deadline, "{:?}", connections(serve));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(lost);
    // What was started over a WebSocket outlives it.
    assert_eq!(world.out(&id, "pgrep -c -f 'echo 8639[3]'").await, "1");
    assert_eq!(world.out(&id, "pgrep -c -f 'sleep 8639[7]'").await, "1");
}

/// Something between a client and the server that answers for both, and can stop to pass anything on.
struct Between {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

impl Between {
    fn new(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between = Self {
            address: listener.local_addr().unwrap(),
            cuts: Arc::default(),
        };
        let (server, cuts) = (server.to_owned(), between.cuts.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&server) else {
                    continue;
                };
                let own = cuts.load(Ordering::SeqCst);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let cuts = cuts.clone();
                    std::thread::spawn(move || {
                        pass(from, to, || cuts.load(Ordering::SeqCst) > own)
                    });
                }
            }
        });
        between
    }

    /// What is open stays open, and nothing comes through it any more.
    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_cut: impl Fn() -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !is_cut() && to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Not even that it ended.
    if is_cut() {
        std::mem::forget(to);
    } else {
        let _ = to.shutdown(std::net::Shutdown::Write);
    }
}

/// The same seen from the client: our command line notices that nothing comes any more, and goes on over another
/// connection with what happened meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_that_hears_nothing() {
    let world = World::start().await;
    let between = Between::new(world.base_url().trim_start_matches("http://"));
    let mut program = world.program();
    program
        .args([
            "lifecycle",
            "stream",
            "--operation",
            "create",
            "--max-events",
            "4",
        ])
        .env("NULLSPACE_API_URL", format!("http://{}", between.address));
    let mut stream = Running(program.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(stream.0.stdout.take().unwrap()).lines();
    let first = machine(&world).await;
    let read = |lines: &mut std::io::Lines<_>| -> Vec<String> {
        let two = lines.by_ref().take(2).map(Result::unwrap);
        two.map(|line| {
            let event: Value = serde_json::from_str(&line).unwrap();
            event["machine_id"].as_str().unwrap().to_owned()
        })
        .collect()
    };
    let told = tokio::task::block_in_place(|| read(&mut lines));
    assert_eq!(told, [first.as_str(); 2]);
    between.cut();
    let second = machine(&world).await;
    let read = tokio::task::spawn_blocking(move || read(&mut lines));
    let told = tokio::time::timeout(LIMIT, read).await.unwrap().unwrap();
    assert_eq!(told, [second.as_str(); 2]);
    assert!(stream.0.wait().unwrap().success());
}

/// A client that is stopped, not gone: its system answers for it, and it goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_stopped_for_a_while() {
    let world = World::start().await;
    let id = machine(&world).await;
    let access = world.nullspace(&["ssh", &id, "--json"]);
    let access: Value = serde_json::from_slice(&access.stdout).unwrap();
    let word = |key: &str| access[key].as_str().unwrap().to_owned();
    let mut command = world.isolated("ssh");
    command.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "StrictHostKeyChecking=yes",
    ]);
    for (name, key) in [
        ("IdentityFile", "identity_file"),
        ("CertificateFile", "certificate_file"),
        ("UserKnownHostsFile", "known_hosts_file"),
    ] {
        command.arg("-o").arg(format!("{name}={}", word(key)));
    }
    const SIZE: usize = 100_000_000;
    let to = format!("{}@{}", word("user"), word("host"));
    command
        .arg("-p")
        .arg(access["port"].to_string())
        .arg(to)
        .arg(format!("head -c {SIZE} /dev/zero; echo end"));
    let mut ssh = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut out = ssh.0.stdout.take().unwrap();
    let mut first = vec![0; 1 << 20];
    out.read_exact(&mut first).unwrap();
    let pid = ssh.0.id().to_string();
    run("kill", &["-STOP", &pid]);
    // Longer than one whose system is gone is waited for. Nothing can be awaited: that nothing happens is the point.
    tokio::time::sleep(Duration::from_secs(100)).await;
    run("kill", &["-CONT", &pid]);
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).map(|_| rest)
    });
    let rest = rest.await.unwrap().unwrap();
    assert_eq!(first.len() + rest.len(), SIZE + 4);
    assert!(ssh.0.wait().unwrap().success());
}

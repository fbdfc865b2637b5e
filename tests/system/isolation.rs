//! What a machine can and cannot reach, asked for as a caller asks for machines. The engine's own tests try every
//! system call; these see to it that what the server makes of a request is as tight.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use reqwest::StatusCode;
use serde_json::json;

use crate::{
    host::run,
    world::{World, repository},
};

impl World {
    /// Runs `tests/python/probe.py` in a machine.
    async fn probe(&self, id: &str, arguments: &[String]) -> BTreeMap<String, String> {
        let path = "/tmp/probe.py";
        let script = std::fs::read_to_string(repository().join("tests/python/probe.py")).unwrap();
        let (status, body) = self
            .post(
                &format!("/v1/machines/{id}/files/write"),
                json!({"path": path, "content": script}),
            )
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let arguments: Vec<&str> = std::iter::once(path)
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let (_, done) = self
            .post(
                &format!("/v1/machines/{id}/exec"),
                json!({"command": "python3", "args": arguments}),
            )
            .await;
        assert_eq!(done["exit_code"], 0, "{done}");
        serde_json::from_str(done["stdout"].as_str().unwrap()).unwrap()
    }

    /// How connecting to each place from inside a machine goes: `open`, or the name of an error.
    async fn connects(&self, id: &str, places: &[(String, u16)]) -> Vec<String> {
        let arguments: Vec<String> = std::iter::once("tcp".to_owned())
            .chain(
                places
                    .iter()
                    .flat_map(|(address, port)| [address.clone(), port.to_string()]),
            )
            .collect();
        let results = self.probe(id, &arguments).await;
        places
            .iter()
            .map(|(address, port)| results[&format!("{address} {port}")].clone())
            .collect()
    }

    /// Starts a web server in a machine: where it is.
    async fn listens(&self, id: &str) -> (String, u16) {
        let body = json!({"command": "python3", "args": ["-m", "http.server", "8000"], "background": true});
        let (status, started) = self.post(&format!("/v1/machines/{id}/exec"), body).await;
        assert_eq!(status, StatusCode::OK, "{started}");
        let address = self.out(id, "hostname -I").await;
        let place = (address.split_whitespace().next().unwrap().to_owned(), 8000);
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.connects(id, std::slice::from_ref(&place)).await != ["open"] {
            assert!(Instant::now() < deadline, "{id} does not listen");
        }
        place
    }
}

/// Every address of the host, as a machine would write it.
fn host_addresses() -> BTreeSet<String> {
    run("ip", &["-o", "address", "show"])
        .lines()
        .filter_map(|line| {
            let address = line.split_whitespace().nth(3)?.split('/').next()?;
            // A link-local one is reached over the machine's own link.
            Some(match address.starts_with("fe80:") {
                true => format!("{address}%eth0"),
                false => address.to_owned(),
            })
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_leads_out_and_nowhere_else() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;

    // Out: names are resolved, connections and whole requests work.
    let name = "pypi.org";
    assert!(
        world
            .out(&id, &format!("getent hosts {name}"))
            .await
            .contains(name)
    );
    let fetch = format!("curl -sS -o /dev/null -w '%{{http_code}}' https://{name}/simple/pip/");
    assert_eq!(world.out(&id, &fetch).await, "200");
    let outside: SocketAddr = (name, 443)
        .to_socket_addrs()
        .unwrap()
        .find(SocketAddr::is_ipv4)
        .unwrap();
    let outside = (outside.ip().to_string(), 443);

    // In: listeners on every address of the host, as an API that is open to the network has. Nobody accepts, so
    // they are asked no more often than they let wait.
    let here = TcpListener::bind("0.0.0.0:0").unwrap();
    let here_six = TcpListener::bind("[::]:0").ok();
    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let api: SocketAddr = world.base_url()["http://".len()..].parse().unwrap();
    let gateway = world.host.gateway();
    let neighbour = world.machine(json!({"template": "base"})).await;
    let neighbour_place = world.listens(&neighbour).await;
    // Machines and gateway of another server on the same host.
    let others = World::start().await;
    let stranger = others.machine(json!({"template": "base"})).await;
    let stranger_place = others.listens(&stranger).await;

    let mut closed = vec![
        ("127.0.0.1".to_owned(), api.port()),
        ("127.0.0.1".to_owned(), port(&loopback)),
        ("0.0.0.0".to_owned(), port(&here)),
        ("169.254.169.254".to_owned(), 80),
        ("169.254.169.254".to_owned(), port(&here)),
        (gateway.clone(), 22),
        (gateway, api.port()),
        (others.host.gateway(), 53),
        neighbour_place,
        stranger_place,
    ];
    for address in host_addresses() {
        let listener = if address.contains(':') {
            &here_six
        } else {
            &None
        };
        let port = port(listener.as_ref().unwrap_or(&here));
        // The host itself gets there: what is refused below is refused to the machine.
        if !address.contains('%') {
            let place = (address.as_str(), port).to_socket_addrs().unwrap().next();
            let open = TcpStream::connect_timeout(&place.unwrap(), Duration::from_secs(10));
            // One of another server's may be gone by now.
            if open.is_err() && !host_addresses().contains(&address) {
                continue;
            }
            open.unwrap_or_else(|error| panic!("{address} {port} from the host: {error}"));
        }
        closed.push((address.clone(), port));
        closed.push((address, api.port()));
    }
    let mut places = closed.clone();
    places.push(outside.clone());
    let mut results = world.connects(&id, &places).await;
    assert_eq!(results.pop().unwrap(), "open", "{outside:?}");
    for (place, result) in closed.iter().zip(&results) {
        assert_ne!(result, "open", "{place:?}");
    }

    // Datagrams: what the host sends itself arrives, what the machine sends does not.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let arguments: Vec<String> = std::iter::once("udp".to_owned())
        .chain(
            host_addresses()
                .into_iter()
                .filter(|address| !address.contains(':') && !address.starts_with("127."))
                .flat_map(|address| [address, port.to_string()]),
        )
        .collect();
    assert!(arguments.len() > 1);
    world.probe(&id, &arguments).await;
    socket
        .send_to(b"from the host", ("127.0.0.1", port))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"from the host");

    // A machine without the internet reaches nothing at all, its name server neither.
    let alone = world
        .machine(json!({"template": "base", "internet_access": false}))
        .await;
    let results = world
        .connects(
            &alone,
            &places
                .iter()
                .cloned()
                .chain([(world.host.gateway(), 53)])
                .collect::<Vec<_>>(),
        )
        .await;
    assert!(results.iter().all(|result| result != "open"), "{results:?}");
    let done = world.shell(&alone, &format!("getent hosts {name}")).await;
    assert_ne!(done["exit_code"], 0, "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_machine_is_nobody_outside() {
    let world = World::native().await;
    let id = world.machine(json!({"template": "base"})).await;
    assert_eq!(world.out(&id, "id -u").await, "0");
    assert_eq!(world.out(&id, "hostname").await, id.replace('_', "-"));
    for (what, result) in world.probe(&id, &["calls".into()]).await {
        match what.as_str() {
            "getppid" | "make a fifo" | "read a file" | "write a file" => {
                assert_eq!(result, "ok", "{what}");
            }
            // Refused, or masked with something that has nothing in it, or not there.
            _ => assert!(
                [
                    "EPERM",
                    "EACCES",
                    "EROFS",
                    "ENOENT",
                    "EAFNOSUPPORT",
                    "empty"
                ]
                .contains(&result.as_str()),
                "{what}: {result}"
            ),
        }
    }
    let status = world.out(&id, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
    };
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1", "2"));
    let held = u64::from_str_radix(field("CapBnd:"), 16).unwrap();
    // NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, SYS_TIME, SYSLOG.
    for capability in [12, 13, 16, 17, 19, 21, 22, 25, 34] {
        assert_eq!(
            held >> capability & 1,
            0,
            "capability {capability}: {held:x}"
        );
    }
    // Its processes belong to another user of the host, one per machine.
    let other = world.machine(json!({"template": "base"})).await;
    let map = async |id: &str| -> u32 {
        let map = world.out(id, "awk '{print $2}' /proc/self/uid_map").await;
        map.parse().unwrap_or_else(|_| panic!("one range: {map}"))
    };
    let (a, b) = (map(&id).await, map(&other).await);
    assert!(a.abs_diff(b) >= 65_536 && a.min(b) >= 65_536, "{a} {b}");
}

/// Asserts that no output of these lines, run in a machine, names the server's directory.
async fn no_path_of_the_host(lines: &[&str]) {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;
    let dir = world.home().parent().unwrap().to_owned();
    let done = world.shell(&id, &format!("ls {}", dir.display())).await;
    assert_ne!(done["exit_code"], 0, "{done}");
    let body = json!({"command": "sleep", "args": ["3600"], "background": true});
    world.post(&format!("/v1/machines/{id}/exec"), body).await;
    let mut named = Vec::new();
    for line in lines {
        let seen = world.out(&id, line).await;
        if seen.contains(dir.to_str().unwrap()) {
            named.push(format!("{line}: {seen}"));
        }
    }
    assert!(named.is_empty(), "{}", named.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_in_a_machine_has_anything_of_the_host() {
    no_path_of_the_host(&[
        "env",
        "cat /proc/[0-9]*/environ 2>/dev/null; true",
        "for fd in /proc/[0-9]*/fd/*; do readlink $fd; done; true",
        "for p in /proc/[0-9]*; do readlink $p/exe $p/cwd $p/root; done; true",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_cannot_tell_where_the_host_keeps_it() {
    no_path_of_the_host(&[
        "cat /proc/self/mountinfo",
        "cat /proc/net/unix",
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
    ])
    .await;
}

/// A control group's file.
fn read(group: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(group.join(name)).ok()
}

/// The number in it.
fn number(group: &Path, name: &str) -> u64 {
    let text = read(group, name).unwrap_or_else(|| panic!("{name} in {}", group.display()));
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{name}: {text}"))
}

/// How many processors' time a group may use, in either version of the control groups.
fn processors(group: &Path) -> f64 {
    let (quota, period) = match read(group, "cpu.max") {
        Some(text) => {
            let (quota, period) = text.trim().split_once(' ').unwrap();
            (
                quota.parse::<f64>().unwrap(),
                period.parse::<f64>().unwrap(),
            )
        }
        None => (
            number(group, "cpu.cfs_quota_us") as f64,
            number(group, "cpu.cfs_period_us") as f64,
        ),
    };
    quota / period
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_processors_are_limited() {
    let world = World::start().await;
    let id = world
        .machine(json!({"template": "base", "memory_mb": 256, "vcpus": 1}))
        .await;
    let neighbour = world.machine(json!({"template": "host", "vcpus": 2})).await;
    // More memory than there is: the command dies, nothing else does.
    let done = world
        .shell(&id, "python3 -c 'x = bytearray(1 << 30); print(len(x))'")
        .await;
    assert_eq!(done["exit_code"], 137, "{done}");
    assert_eq!(world.out(&id, "echo alive").await, "alive");
    // Nor by files that are memory.
    let done = world
        .shell(&id, "head -c 1G /dev/zero > /dev/shm/hog")
        .await;
    assert_ne!(done["exit_code"], 0, "{done}");
    assert_eq!(world.out(&neighbour, "echo alive").await, "alive");
    assert_eq!(world.out(&id, "rm /dev/shm/hog; echo alive").await, "alive");

    // Processors: what the kernel was told. Whether three loops are held back depends on what else the host does.
    for (id, vcpus) in [(&id, 1.0), (&neighbour, 2.0)] {
        assert_eq!(processors(&world.host.group("cpu", id)), vcpus);
    }
    let body = json!({"command": "for i in 1 2 3; do while :; do :; done & done; wait", "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert_eq!(world.out(&id, "echo alive").await, "alive");
    assert_eq!(world.out(&neighbour, "echo alive").await, "alive");
    let kill = format!("/v1/machines/{id}/processes/{}/kill", started["pid"]);
    assert!(world.post(&kill, json!({})).await.0.is_success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_stays_where_it_is() {
    let world = World::native().await;
    let id = world
        .machine(json!({"template": "base", "memory_mb": 4096}))
        .await;
    let neighbour = world.machine(json!({"template": "host"})).await;
    let group = world.host.group("pids", &id);
    let most = number(&group, "pids.max");
    assert!(most <= 10_000, "{most}");
    let bomb = "while (1) { my $p = fork; if (!defined $p) { select(undef, undef, undef, 0.01) } elsif (!$p) { sleep 3600; exit } }";
    let body = json!({"command": "perl", "args": ["-e", bomb], "background": true});
    let (status, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    assert_eq!(status, StatusCode::OK, "{started}");
    let deadline = Instant::now() + Duration::from_secs(120);
    while number(&group, "pids.current") < most && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(number(&group, "pids.current"), most, "it is full");
    assert_eq!(world.out(&neighbour, "echo alive").await, "alive");
    // No room for another process: said as such, and the machine is still there to be cleaned up.
    let (status, refused) = world
        .post(
            &format!("/v1/machines/{id}/exec"),
            json!({"command": "true"}),
        )
        .await;
    assert_eq!(
        (status, &refused["code"]),
        (StatusCode::BAD_GATEWAY, &json!("exec_failed")),
        "{refused}"
    );
    let (_, machine) = world.get(&format!("/v1/machines/{id}")).await;
    assert_eq!(machine["status"], "running");
    let kill = format!("/v1/machines/{id}/processes/{}/kill", started["pid"]);
    let (status, body) = world.post(&kill, json!({})).await;
    assert!(status.is_success(), "{body}");
    world.until_answers(&id).await;
}

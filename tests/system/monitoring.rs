//! What real machines use: the numbers move to what was done in them. And the monitor, with all clients.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddrV4},
    process::Stdio,
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{
    python::{next_python, published, python, script},
    world::World,
};

const MIB: u64 = 1 << 20;
/// On the server's own connections into machines: nobody else's get through.
const MARK: u32 = 0x6e73;

/// Starts a shell command that goes on; answers with its process.
async fn start(world: &World, id: &str, line: &str) -> u64 {
    let body = json!({"command": line, "shell": true, "background": true});
    let (_, started) = world.post(&format!("/v1/machines/{id}/exec"), body).await;
    started["pid"]
        .as_u64()
        .unwrap_or_else(|| panic!("{started}"))
}

async fn end(world: &World, id: &str, pid: u64) {
    let path = format!("/v1/machines/{id}/processes/{pid}/kill");
    world.post(&path, json!({})).await;
}

/// Waits until what a machine uses is like this.
async fn until(world: &World, id: &str, what: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/machines/{id}/metrics");
    let samples = world.until_at(&path, |samples| what(&samples[0])).await;
    samples[0].clone()
}

fn number(sample: &Value, name: &str) -> u64 {
    sample[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name}: {sample}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_move_to_what_is_done() {
    let world = World::start().await;
    let body = json!({"template": "host", "memory_mb": 512, "vcpus": 2});
    let id = world.machine(body).await;
    let idle = until(&world, &id, |sample| sample.is_object()).await;
    assert_eq!(number(&idle, "cpu_count"), 2);
    assert_eq!(number(&idle, "mem_total_bytes"), 512 * MIB);
    assert!(number(&idle, "mem_used_bytes") < 100 * MIB, "{idle}");
    assert!(number(&idle, "disk_used_bytes") < 4 * MIB, "{idle}");
    assert!(idle["cpu_percent"].as_f64().unwrap() < 50.0, "{idle}");

    let busy = start(&world, &id, "while :; do :; done").await;
    until(&world, &id, |s| {
        s["cpu_percent"].as_f64().is_some_and(|p| p > 25.0)
    })
    .await;
    end(&world, &id, busy).await;
    until(&world, &id, |s| {
        s["cpu_percent"].as_f64().is_some_and(|p| p < 10.0)
    })
    .await;

    let holding = start(
        &world,
        &id,
        "exec perl -e '$x = \"a\" x 200_000_000; sleep 600'",
    )
    .await;
    until(&world, &id, |s| number(s, "mem_used_bytes") > 200_000_000).await;
    end(&world, &id, holding).await;
    until(&world, &id, |s| number(s, "mem_used_bytes") < 100 * MIB).await;

    // What is written is on the disk, and no memory that is used.
    let writing = "head -c 134217728 /dev/urandom > /workspace/large";
    world.out(&id, writing).await;
    let written = until(&world, &id, |s| {
        number(s, "disk_used_bytes") >= number(&idle, "disk_used_bytes") + 128 * MIB
    })
    .await;
    assert!(number(&written, "mem_used_bytes") < 100 * MIB, "{written}");
    assert!(number(&written, "disk_used_bytes") < 140 * MIB, "{written}");
    world.out(&id, "rm /workspace/large").await;
    until(&world, &id, |s| number(s, "disk_used_bytes") < 4 * MIB).await;

    // Five to it, three from it.
    let server = "import socket
s = socket.create_server(('0.0.0.0', 7000))
print('up', flush=True)
c, _ = s.accept()
while c.recv(65536): pass
c.sendall(b'x' * 3_000_000)
c.close()";
    let line = format!("exec python3 -c \"{server}\"");
    let pid = start(&world, &id, &line).await;
    let logs = format!("/v1/machines/{id}/processes/{pid}/logs");
    world.until_at(&logs, |logs| logs["stdout"] == "up\n").await;
    let address = world.out(&id, "hostname -I").await;
    let address = SocketAddrV4::new(address.trim().parse().unwrap(), 7000);
    let got = tokio::task::spawn_blocking(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_mark(MARK).unwrap();
        socket.connect(&address.into()).unwrap();
        let mut stream: std::net::TcpStream = socket.into();
        stream.write_all(&vec![1; 5_000_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got.len()
    });
    assert_eq!(got.await.unwrap(), 3_000_000);
    let moved = until(&world, &id, |s| number(s, "network_tx_bytes") >= 3_000_000).await;
    let (rx, tx) = (
        number(&moved, "network_rx_bytes"),
        number(&moved, "network_tx_bytes"),
    );
    assert!((5_000_000..6_000_000).contains(&rx), "{moved}");
    assert!((3_000_000..4_000_000).contains(&tx), "{moved}");

    // A machine that is cut off has nothing to count, but what the server says to a guest that it reaches over the network.
    let is_native = !std::env::var("NULLSPACE_ISOLATION").is_ok_and(|name| name == "gvisor");
    let most = if is_native { 0 } else { 64 << 10 };
    let cut = json!({"template": "host", "memory_mb": 128, "internet_access": false});
    let cut = world.machine(cut).await;
    let sample = until(&world, &cut, |sample| sample.is_object()).await;
    assert!(number(&sample, "network_rx_bytes") <= most, "{sample}");
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_of_an_earlier_server_are_measured() {
    let mut world = World::start().await;
    let id = world
        .machine(json!({"template": "host", "memory_mb": 128}))
        .await;
    until(&world, &id, |sample| sample.is_object()).await;
    world.kill();
    world.serve().await;
    let busy = start(&world, &id, "while :; do :; done").await;
    until(&world, &id, |s| {
        s["cpu_percent"].as_f64().is_some_and(|p| p > 25.0)
    })
    .await;
    end(&world, &id, busy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_published_sdk_monitors() {
    let world = World::start().await;
    script(&world, &python(), "monitor.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_sdk_monitors() {
    let world = World::start().await;
    script(&world, &next_python(), "monitor_next.py", &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_lines_monitor() {
    let world = World::start().await;
    let id = world
        .machine(json!({"template": "host", "memory_mb": 128}))
        .await;
    start(&world, &id, "sleep 600").await;
    for program in [published(&world, &python()), world.program()] {
        let name = format!("{program:?}");
        let run = |arguments: &[&str]| {
            let mut command = world.isolated(program.get_program());
            let done = command.args(arguments).output().unwrap();
            let text = String::from_utf8(done.stdout).unwrap();
            assert!(done.status.success(), "{name} {arguments:?}: {text}");
            text
        };
        let line = run(&["sandbox", "metrics", &id]);
        assert!(
            line.contains("CPU: ") && line.contains("/128"),
            "{name}: {line}"
        );
        let samples: Value =
            serde_json::from_str(&run(&["sandbox", "metrics", &id, "--json"])).unwrap();
        assert_eq!(
            samples[0]["mem_total_bytes"],
            128 * MIB,
            "{name}: {samples}"
        );
        let stream = [
            "monitor",
            "stream",
            "--interval-ms",
            "300",
            "--include-processes",
        ];
        let some = [&stream[..], &["--max-events", "4"]].concat();
        let lines: Vec<Value> = run(&some)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(lines.len() >= 4, "{name}: {lines:?}");
        assert!(
            lines
                .iter()
                .any(|line| line["metrics"]["cpu_percent"].is_number())
        );
        assert!(
            lines
                .iter()
                .any(|line| line["processes"][0]["command"] == "sleep 600")
        );
        let timed = [&stream[..], &["--timeout", "1"]].concat();
        assert!(run(&timed).contains(&id), "{name}");
    }

    // Ours as it happens, up to the end of the server.
    let mut world = world;
    let mut streaming = world
        .program()
        .args(["monitor", "stream", "--interval-ms", "3600000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(streaming.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let snapshot = next();
    assert_eq!(snapshot["type"], "monitor_snapshot");
    assert_eq!(snapshot["machines"][0]["id"], id.as_str());
    assert!(snapshot.get("sandboxes").is_none());
    world.delete(&format!("/v1/machines/{id}")).await;
    let removed = loop {
        let message = next();
        if message["type"] == "monitor_update" {
            break message;
        }
    };
    assert_eq!(
        (&removed["machine_id"], &removed["removed"]),
        (&json!(id), &json!(true))
    );
    world.terminate();
    let ended = streaming.wait().unwrap();
    assert_eq!(ended.code(), Some(1), "it says that the server is gone");
    world.serve().await;
}

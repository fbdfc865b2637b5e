//! What a machine can and cannot reach.

use std::net::{Ipv4Addr, TcpListener};

use serde_json::json;

use crate::{host::run, world::World};

/// The host's addresses but loopback.
fn host_addresses() -> Vec<Ipv4Addr> {
    run("ip", &["-4", "-o", "addr", "show", "scope", "global"])
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .nth(3)?
                .split('/')
                .next()?
                .parse()
                .ok()
        })
        .collect()
}

/// A shell line that says `open` if a TCP connection can be made.
fn connects(address: &str, port: u16) -> String {
    format!(
        "python3 -c 'import socket; s = socket.socket(); s.settimeout(2); s.connect((\"{address}\", {port})); print(\"open\")' \
         2>/dev/null || echo closed"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_leads_out_and_nowhere_else() {
    let world = World::start().await;
    let id = world.machine(json!({"template": "base"})).await;
    assert_eq!(
        world
            .out(
                &id,
                "curl -sS -o /dev/null -w '%{http_code}' https://pypi.org/simple/pip/"
            )
            .await,
        "200"
    );
    assert!(
        world
            .out(&id, "getent hosts pypi.org")
            .await
            .contains("pypi.org")
    );

    let port: u16 = world
        .base_url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let open = everywhere.local_addr().unwrap().port();
    let mut places: Vec<(String, u16)> = vec![
        ("127.0.0.1".into(), port),
        ("127.0.0.1".into(), open),
        ("169.254.169.254".into(), 80),
    ];
    let gateway = world
        .out(
            &id,
            "ip route show default 2>/dev/null | awk '{print $3}' || true",
        )
        .await;
    let addresses = host_addresses()
        .into_iter()
        .map(|a| a.to_string())
        .chain(Some(gateway).filter(|g| !g.is_empty()));
    for address in addresses {
        places.extend([(address.clone(), port), (address, open)]);
    }
    for (address, port) in places {
        assert_eq!(
            world.out(&id, &connects(&address, port)).await,
            "closed",
            "{address}:{port}"
        );
    }

    // Two machines do not see each other.
    let other = world.machine(json!({"template": "base"})).await;
    let address = world.out(&other, "hostname -I").await;
    let address = address.split_whitespace().next().unwrap().to_owned();
    let listen = "python3 -m http.server 8000 >/dev/null 2>&1 & for i in $(seq 100); do \
                  curl -s -o /dev/null http://127.0.0.1:8000 && break; sleep 0.05; done; curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000";
    assert_eq!(world.out(&other, listen).await, "200");
    assert_eq!(world.out(&id, &connects(&address, 8000)).await, "closed");

    let alone = world
        .machine(json!({"template": "base", "internet_access": false}))
        .await;
    let done = world
        .shell(&alone, "curl -sS --max-time 5 https://pypi.org >/dev/null")
        .await;
    assert_ne!(done["exit_code"], 0);
    assert_eq!(world.out(&alone, &connects("1.1.1.1", 53)).await, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_machine_is_nobody_outside() {
    let world = World::start().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "host secret").unwrap();
    let id = world.machine(json!({"template": "base"})).await;
    assert_eq!(world.out(&id, "id -u").await, "0");
    assert_eq!(world.out(&id, "hostname").await, id.replace('_', "-"));
    // What must fail, and is refused rather than missing.
    for line in [
        format!("cat {}", secret.path().display()),
        "ls /proc/1/root/work".into(),
        "mount -t tmpfs none /mnt".into(),
        "mount -o remount,rw /proc/sys".into(),
        "echo 1 > /proc/sys/kernel/panic".into(),
        "echo h > /proc/sysrq-trigger".into(),
        "cat /proc/kcore".into(),
        "cat /proc/keys | grep -q .".into(),
        "cat /dev/mem".into(),
        "cat /dev/kmsg".into(),
        "mknod /tmp/disk b 8 0".into(),
        "unshare --user true".into(),
        "nsenter --target 1 --mount true".into(),
        "chroot /proc/1/root true".into(),
        "date -s 2000-01-01".into(),
        "hostname other".into(),
        "dmesg".into(),
        "python3 -c 'import ctypes; c = ctypes.CDLL(None, use_errno=True); exit(0 if c.ptrace(16, 1, 0, 0) == 0 else 1)'".into(),
        "ls /sys/fs/cgroup/*/tasks".into(),
        "touch /sys/kernel/x".into(),
    ] {
        let done = world.shell(&id, &line).await;
        assert_ne!(done["exit_code"], 0, "{line}: {done}");
    }
    assert_eq!(
        world
            .out(&id, "ps ax -o pid= | head -n 1 | tr -d ' '")
            .await,
        "1"
    );
    let host = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(
        world.out(&id, "readlink /proc/self/ns/user").await,
        host.to_str().unwrap()
    );
    // Its processes belong to another user of the host, one per machine.
    let other = world.machine(json!({"template": "base"})).await;
    let map = async |id: &str| {
        world
            .out(id, "awk '{print $2}' /proc/self/uid_map | head -n 1")
            .await
    };
    let (a, b) = (map(&id).await, map(&other).await);
    assert!(a != b && a != "0" && b != "0", "{a} {b}");
    assert_eq!(world.out(&id, "echo fine").await, "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_the_machine_survives() {
    let world = World::start().await;
    let id = world
        .machine(json!({"template": "base", "memory_mb": 256, "vcpus": 1}))
        .await;
    let neighbour = world.machine(json!({"template": "host"})).await;
    // More memory than there is: the command dies, nothing else does.
    let done = world
        .shell(&id, "python3 -c 'x = bytearray(1 << 30); print(len(x))'")
        .await;
    assert_eq!(done["exit_code"], 137, "{done}");
    assert_eq!(world.out(&id, "echo alive").await, "alive");
    // More processes than allowed: refused inside, the host does not notice.
    let bomb = "i=0; while [ $i -lt 6000 ]; do sleep 30 & i=$((i+1)); done 2>/dev/null; echo done";
    let (status, _) = world
        .post(
            &format!("/v1/machines/{id}/exec"),
            json!({"command": bomb, "shell": true, "timeout_secs": 5}),
        )
        .await;
    assert!(status.as_u16() < 600);
    assert_eq!(world.out(&neighbour, "echo alive").await, "alive");
    world.until_answers(&id).await;
}

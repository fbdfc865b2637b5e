//! What a machine must not be able to do or to reach, tried from inside with the raw system calls.

mod common;

use nullspace_engine::{Engine, conformance};
use nullspace_protocol::GuestClient;

use common::{
    World,
    probes::{machine, output, world_with_perl},
};

/// What the call gave: "ok", or the number of the error. Arguments are perl expressions.
async fn call(guest: &GuestClient, number: i64, arguments: &str) -> String {
    let script = format!(
        // Literals may not be passed: the kernel could write to them.
        "perl -e 'my @a = ({arguments}); my $r = syscall({number}, @a); print $r == -1 ? $!+0 : \"ok\"'"
    );
    output(guest, &script).await
}

/// While a command starts, its process shares process 1's memory: a handler that ran there would be let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starting_command_runs_no_handler_of_process_1() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    let guest = machine(&engine, &world, "one").await;
    let handled = output(&guest, "grep SigCgt /proc/1/status").await;
    let mask = u64::from_str_radix(handled.trim_start_matches("SigCgt:").trim(), 16);
    let reset = nullspace_sys::spawn::HANDLED;
    let reset = reset
        .iter()
        .fold(0, |mask, signal| mask | 1 << (signal - 1));
    assert_eq!(mask, Ok(reset), "{handled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_1_cannot_be_ended_from_inside() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    let guest = machine(&engine, &world, "one").await;
    let script = "kill -9 1; sleep 0.2; test -d /proc/1 && echo lives";
    assert_eq!(output(&guest, script).await, "lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_calls_that_lead_out_are_refused() {
    let Some(world) = world_with_perl() else {
        return;
    };
    let engine = world.engine().await;
    let guest = machine(&engine, &world, "one").await;
    assert_eq!(
        call(&guest, libc::SYS_getpid, "").await,
        "ok",
        "the probe works"
    );
    let (eperm, enosys) = (libc::EPERM.to_string(), libc::ENOSYS.to_string());
    // Each with arguments that the kernel would take from somebody who may.
    let new_user = libc::CLONE_NEWUSER;
    let new_ns = libc::CLONE_NEWNS;
    for (name, number, arguments) in [
        ("unshare user", libc::SYS_unshare, format!("{new_user}")),
        ("unshare mount", libc::SYS_unshare, format!("{new_ns}")),
        (
            "clone user",
            libc::SYS_clone,
            format!("{}, 0, 0, 0, 0", new_user | libc::SIGCHLD),
        ),
        ("setns", libc::SYS_setns, "0, 0".into()),
        ("keyctl", libc::SYS_keyctl, "0, -3, 1, 0, 0".into()),
        (
            "add_key",
            libc::SYS_add_key,
            r#""user", "a", "b", 1, -3"#.into(),
        ),
        ("bpf", libc::SYS_bpf, r#"0, "\0" x 128, 128"#.into()),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            r#""\1\0\0\0\160\0\0\0" . "\0" x 112, 0, -1, -1, 0"#.into(),
        ),
        // For user mode alone: what an ordinary user may on any host.
        ("userfaultfd", libc::SYS_userfaultfd, "1".into()),
        (
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            r#"4, "\0" x 120"#.into(),
        ),
        (
            "mount",
            libc::SYS_mount,
            r#""none", "/mnt", "tmpfs", 0, 0"#.into(),
        ),
        ("umount", libc::SYS_umount2, r#""/proc", 2"#.into()),
        ("fsopen", libc::SYS_fsopen, r#""tmpfs", 0"#.into()),
        ("open_tree", libc::SYS_open_tree, r#"-100, "/", 1"#.into()),
        (
            "move_mount",
            libc::SYS_move_mount,
            r#"-100, "/proc", -100, "/mnt", 0"#.into(),
        ),
        (
            "mount_setattr",
            libc::SYS_mount_setattr,
            r#"-100, "/", 0, "\0" x 32, 32"#.into(),
        ),
        ("pivot_root", libc::SYS_pivot_root, r#""/", "/mnt""#.into()),
        ("kexec_load", libc::SYS_kexec_load, "0, 0, 0, 0".into()),
        (
            "init_module",
            libc::SYS_init_module,
            r#""\0" x 64, 64, """#.into(),
        ),
        ("finit_module", libc::SYS_finit_module, r#"0, "", 0"#.into()),
        (
            "delete_module",
            libc::SYS_delete_module,
            r#""loop", 2048"#.into(),
        ),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            r#"0, "\10\0\0\0\1\0\0\0" . "\2\0\0\0\0\0\0\0", 0"#.into(),
        ),
        (
            "name_to_handle_at",
            libc::SYS_name_to_handle_at,
            r#"-100, "/", "\200\0\0\0" . "\0" x 140, "\0" x 8, 0"#.into(),
        ),
        ("ptrace the guest", libc::SYS_ptrace, "16, 1, 0, 0".into()),
        (
            "read the guest's memory",
            libc::SYS_process_vm_readv,
            r#"1, pack("PQ", "\0" x 64, 16), 1, pack("QQ", 0x400000, 16), 1, 0"#.into(),
        ),
        (
            "clock_settime",
            libc::SYS_clock_settime,
            r#"0, "\0" x 16"#.into(),
        ),
        ("syslog", libc::SYS_syslog, r#"3, "\0" x 64, 64"#.into()),
        (
            "reboot",
            libc::SYS_reboot,
            "0xfee1dead, 672274793, 0, 0".into(),
        ),
        ("swapoff", libc::SYS_swapoff, r#""/dev/sda""#.into()),
        ("sethostname", libc::SYS_sethostname, r#""mine", 4"#.into()),
        (
            "chroot escape by mknod",
            libc::SYS_mknodat,
            r#"-100, "/tmp/d", 0060600, 0x800"#.into(),
        ),
    ] {
        assert_eq!(call(&guest, number, &arguments).await, eperm, "{name}");
    }
    for (name, number, arguments) in [
        // The C library falls back to clone, whose flags can be seen.
        ("clone3", libc::SYS_clone3, r#""\0" x 88, 88"#),
        ("a call that is newer than the filter", 480, "0"),
    ] {
        assert_eq!(call(&guest, number, arguments).await, enosys, "{name}");
    }
    for (name, family) in [
        ("packet", libc::AF_PACKET),
        ("vsock", libc::AF_VSOCK),
        ("alg", libc::AF_ALG),
    ] {
        let refused = call(&guest, libc::SYS_socket, &format!("{family}, 3, 0")).await;
        assert_eq!(refused, libc::EAFNOSUPPORT.to_string(), "{name} sockets");
    }
    let raw = call(&guest, libc::SYS_socket, "2, 3, 1").await;
    assert_eq!(raw, eperm, "raw sockets");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_and_views_are_the_machines_own() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    let guest = machine(&engine, &world, "one").await;

    let status = output(&guest, "cat /proc/self/status").await;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name} in {status}")).trim()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        let held = u64::from_str_radix(field(set), 16).expect("a number");
        // No SYS_ADMIN, NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_MODULE, MKNOD, DAC_READ_SEARCH and so on.
        assert_eq!(held & !0xa004_05fb, 0, "{set} {held:x}");
    }
    assert_eq!(field("CapAmb:"), "0000000000000000");

    // Root here is nobody in particular on the host.
    let map = output(&guest, "cat /proc/self/uid_map").await;
    let map: Vec<u32> = map
        .split_whitespace()
        .map(|n| n.parse().expect("a number"))
        .collect();
    assert!(
        map[0] == 0 && map[1] >= 1 << 20 && map[2] == 65_536,
        "{map:?}"
    );
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let own = output(&guest, &format!("readlink /proc/self/ns/{kind}")).await;
        let hosts = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert_ne!(own, hosts.display().to_string(), "{kind}");
    }

    // Masked with nothing in it, or unreadable.
    for path in [
        "/sys/firmware",
        "/sys/kernel",
        "/sys/fs",
        "/proc/acpi",
        "/proc/scsi",
    ] {
        let seen = output(&guest, &format!("ls -A {path} 2>/dev/null || true")).await;
        assert_eq!(seen, "", "{path}");
    }
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/key-users",
        "/proc/timer_list",
        "/proc/kallsyms",
        "/proc/config.gz",
        "/proc/1/environ",
        "/proc/1/maps",
        "/proc/1/mem",
    ] {
        let seen = output(&guest, &format!("head -c 16 {path} 2>/dev/null || true")).await;
        assert_eq!(seen, "", "{path}");
    }
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/class/net/eth0/mtu",
    ] {
        let script = format!("(echo 1 > {path}) 2>/dev/null && echo written || echo refused");
        assert_eq!(output(&guest, &script).await, "refused", "{path}");
    }
    // Its own priority in a shortage of memory may get worse, not better.
    let script = "(echo -999 > /proc/self/oom_score_adj) 2>/dev/null && echo set || echo refused";
    assert_eq!(output(&guest, script).await, "refused");

    let devices = output(&guest, "ls -A /dev").await;
    assert_eq!(
        devices.split_whitespace().collect::<Vec<_>>(),
        [
            "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"
        ]
    );
    for (kind, number) in [("b", "8 0"), ("c", "1 1"), ("c", "10 200")] {
        let script = format!("mknod /tmp/device {kind} {number} 2>/dev/null || echo refused");
        assert_eq!(output(&guest, &script).await, "refused", "{kind} {number}");
    }
    // Nothing of the host's paths is seen.
    let mounts = output(&guest, "cat /proc/self/mountinfo").await;
    let outside: Vec<&str> = mounts
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at.contains("scratch"))
        })
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_internet_can_be_reached() {
    let Some(world) = world_with_perl() else {
        return;
    };
    let engine = world.engine().await;
    common::probes::only_the_internet(&engine, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_knows_its_own_name() {
    let Some(world) = World::new() else {
        return;
    };
    let engine = world.engine().await;
    // Without the internet, and so without a name server.
    let spec = nullspace_engine::MachineSpec {
        egress: nullspace_engine::egress::Rules::deny_all(),
        engine: None,
        ..conformance::spec("one", std::slice::from_ref(&world.layer))
    };
    engine.create(&spec).await.expect("create");
    let io = engine.dial("one").await.expect("dial");
    let guest = GuestClient::connect(io).await.expect("the guest answers");
    // Attempts to send are counted as well.
    let sent = "grep -E '^(Ip|Udp):' /proc/net/snmp";
    let before = output(&guest, sent).await;
    let hosts = output(&guest, "cat /etc/hosts").await;
    assert!(hosts.contains("127.0.1.1\tconform"), "{hosts}");
    assert!(hosts.contains("127.0.0.1\tlocalhost"), "{hosts}");
    assert_eq!(output(&guest, "hostname").await, "conform");
    let details = output(&guest, "ls -ld /etc /etc/hosts").await;
    assert!(
        details.starts_with("drwxr-xr-x") && details.contains("-rw-r--r--"),
        "{details}"
    );
    assert!(output(&guest, "ls /etc").await.contains("passwd"));
    if world.layer.join("usr/bin/getent").exists() && has_files_look_up(&world) {
        let found = output(&guest, "getent ahostsv4 conform; getent hosts conform").await;
        assert!(found.contains("127.0.1.1"), "{found}");
        assert_eq!(output(&guest, "hostname -f").await, "conform");
        assert_eq!(output(&guest, sent).await, before, "nobody was asked");
        // Which is seen when it happens.
        output(&guest, "getent ahostsv4 elsewhere.example || true").await;
        assert_ne!(output(&guest, sent).await, before);
    }
}

/// Older C libraries look names up through a library that the test layer does not have.
fn has_files_look_up(world: &World) -> bool {
    let libc =
        std::fs::read(world.layer.join("usr/lib/x86_64-linux-gnu/libc.so.6")).unwrap_or_default();
    libc.windows(21).any(|w| w == b"_nss_files_gethostbyn")
}

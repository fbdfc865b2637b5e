//! What a machine must not be able to reach, and what is left when something is killed.

mod common;

use std::{sync::Arc, time::Duration};

use nullspace_engine::{Engine, EngineError, Purpose, conformance, several::Several};
use nullspace_protocol::{ExecRequest, GuestClient, Terminal, TerminalSize};

use common::probes::{machine, output};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_internet_can_be_reached() {
    let Some((world, release)) = common::world() else {
        return;
    };
    if !world.layer.join("usr/bin/perl").exists() {
        println!("skipped: the probes need perl on the host");
        return;
    }
    let engine = world.engine(&release).await;
    common::probes::only_the_internet(&engine, &world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_host_is_seen() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    let guest = machine(&engine, &world, "one").await;
    let place = world.path().display().to_string();
    for file in ["/proc/mounts", "/proc/1/cmdline", "/proc/self/mountinfo"] {
        let text = output(&guest, &format!("cat {file} | tr '\\0' ' '")).await;
        assert!(!text.contains(&place), "{file}: {text}");
    }
    // Every machine's guest is one file on the host.
    for script in [
        "echo x > /dev/nullspace/guest",
        "echo x >> /dev/nullspace/guest",
        ": > /dev/nullspace/libc.so.6",
        "rm /dev/nullspace/guest",
        "mv /dev/nullspace/guest /dev/nullspace/other",
        "mknod /dev/nullspace/new p",
        "mount -o remount,rw /dev/nullspace && : > /dev/nullspace/guest",
        "cd /dev/nullspace && perl -e 'truncate(\"guest\", 0) or exit 1'",
    ] {
        let (code, ..) = conformance::sh(&guest, script).await;
        assert_ne!(
            code, 0,
            "{script}: the guest's own files are not the machine's"
        );
    }
    machine(&engine, &world, "two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_launcher_takes_its_machines_and_nothing_is_left() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    let _guest = machine(&engine, &world, "one").await;
    let gateway = world.gateway().expect("a gateway");
    let mut exits = engine.exits();
    world.kill_launcher();
    let exit = exits.recv().await.expect("its end is told");
    assert_eq!(exit.id, "one");
    let engine = world.engine(&release).await;
    assert!(engine.list().await.expect("list").is_empty());
    machine(&engine, &world, "two").await;
    drop(engine);
    nullspace_engine_native::shutdown(world.path()).expect("shutdown");
    common::eventually("nothing is left", || world.remains(&gateway).is_empty());
}

/// As after a process that died between keeping all of a machine and ending it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_kept_does_not_go_on() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    machine(&engine, &world, "one").await;
    machine(&engine, &world, "two").await;
    let directory = world.path().join("machines/one");
    std::fs::write(directory.join("kept"), "").expect("a mark");
    drop(engine);
    let engine = world.engine(&release).await;
    let live = engine.list().await.expect("list");
    let ids: Vec<_> = live.iter().map(|machine| machine.id.as_str()).collect();
    assert_eq!(ids, ["two"]);
    common::eventually("nothing is left of it", || !directory.exists());
}

/// As after a process that died while the launcher made a machine, which then failed: nobody knows it as alive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_left_that_never_lived_is_thrown_away() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    let left = world.path().join("machines/never");
    std::fs::create_dir_all(left.join("fs/upper")).expect("directories");
    let door = Several::new(vec![Arc::new(engine)]).expect("a door");
    door.destroy("never").await.expect("destroy");
    common::eventually("nothing is left of it", || !left.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_leaves_the_machine_running() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    machine(&engine, &world, "one").await;
    let small = Small::mount(&world.path().join("small"));
    for purpose in [Purpose::Snapshot, Purpose::Hibernate] {
        let target = small.0.join("checkpoint");
        let failed = engine.checkpoint("one", &target, purpose).await;
        assert!(
            matches!(failed, Err(EngineError::Step { .. })),
            "{failed:?}"
        );
        assert!(!target.exists());
        let guest = GuestClient::connect(engine.dial("one").await.expect("dial")).await;
        let guest = guest.expect("the guest answers");
        assert_eq!(output(&guest, "echo well").await, "well");
    }
}

/// Also when the last step fails, with everything else on the disk already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_written_leaves_the_machine_running() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    machine(&engine, &world, "one").await;
    for purpose in [Purpose::Snapshot, Purpose::Hibernate] {
        let target = world.path().join("checkpoint");
        let in_the_way = target.join("checkpoint.json.new");
        let placed = std::thread::spawn(move || while std::fs::create_dir(&in_the_way).is_err() {});
        let failed = engine.checkpoint("one", &target, purpose).await;
        placed.join().expect("it is in the way");
        assert!(
            matches!(failed, Err(EngineError::Step { .. })),
            "{failed:?}"
        );
        assert!(!target.exists());
        let io = engine.dial("one").await.expect("dial");
        let guest = tokio::time::timeout(Duration::from_secs(30), GuestClient::connect(io)).await;
        let guest = guest.expect("it goes on").expect("the guest answers");
        assert_eq!(output(&guest, "echo well").await, "well");
    }
}

/// A file system that is soon full.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &std::path::Path) -> Self {
        std::fs::create_dir(at).expect("a directory");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", at, "tmpfs", flags, Some(c"size=256k")).expect("mount");
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_and_ports_are_there_again() {
    let Some((world, release)) = common::world() else {
        return;
    };
    let engine = world.engine(&release).await;
    let guest = machine(&engine, &world, "one").await;
    let shell = ExecRequest {
        argv: vec!["/bin/sh".into()],
        terminal: Some(Terminal {
            session: "s".into(),
            size: TerminalSize { cols: 80, rows: 24 },
        }),
        stdin: true,
        ..ExecRequest::default()
    };
    let pid = guest.spawn(&shell).await.expect("a shell");
    let typed = "word=kept\n".into();
    guest.stdin(pid, typed, false).await.expect("typing");
    // A call that waits may be interrupted when its machine is kept, as by a signal.
    let has_perl = world.layer.join("usr/bin/perl").exists();
    if has_perl {
        let serve = r#"perl -e 'socket(S, 2, 1, 0); bind(S, pack("S n C4 x8", 2, 8080, 0, 0, 0, 0)) or die $!;
            listen(S, 5); print "up\n"; close(STDOUT); while (1) { accept(C, S) or next; syswrite(C, "hello\n"); close(C) }' &
            sleep 0.5"#;
        output(&guest, serve).await;
    }
    let target = world.path().join("kept");
    let kept = engine.checkpoint("one", &target, Purpose::Hibernate).await;
    kept.expect("checkpoint");
    let spec = conformance::spec("two", std::slice::from_ref(&world.layer));
    engine.restore(&spec, &target).await.expect("restore");
    let io = engine.dial("two").await.expect("dial");
    let guest = nullspace_protocol::GuestClient::connect(io);
    let guest = guest.await.expect("the guest answers");
    let typed = "echo $word > /workspace/said\n".into();
    guest
        .stdin(pid, typed, false)
        .await
        .expect("typing goes on");
    let wait = "while [ ! -s /workspace/said ]; do sleep 0.05; done; cat /workspace/said";
    assert_eq!(output(&guest, wait).await, "kept");
    if has_perl {
        use tokio::io::AsyncReadExt;
        let port = engine.connect("two", 8080).await.expect("connect");
        let mut text = String::new();
        port.expect("it listens at its new address")
            .read_to_string(&mut text)
            .await
            .expect("read");
        assert_eq!(text, "hello\n");
    }
}

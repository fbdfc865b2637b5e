//! What every engine must do, checked on a real one: `run` is called from each engine's own tests.
//!
//! A check panics with what was wrong. What needs a kernel boundary (limits, reachability of the host) is
//! checked only on engines that say that they have one.

mod disk;
mod memory;
mod pause;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use nullspace_protocol::{
    ErrorKind, ExecRequest, GuestClient, OutputQuery, PathRequest, ReadQuery, RenameRequest,
    Retain, WriteQuery, frame::Frame,
};

use crate::{Bind, Engine, EngineError, MachineSpec, egress::Rules};

/// How long a check waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A machine of this id over the layers, with modest limits.
#[must_use]
pub fn spec(id: &str, lower: &[PathBuf]) -> MachineSpec {
    MachineSpec {
        id: id.to_owned(),
        hostname: "conform".into(),
        lower: lower.to_vec(),
        binds: Vec::new(),
        env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
        cwd: "/workspace".into(),
        cpu_millis: 1000,
        memory_bytes: 256 << 20,
        pids_max: 256,
        disk_bytes: None,
        egress: Rules::default(),
        engine: None,
    }
}

/// Runs all checks. `lower` must be able to run `/bin/sh` on an isolated engine.
///
/// # Panics
/// When the engine breaks its contract.
pub async fn run(engine: &dyn Engine, lower: &[PathBuf]) {
    engine.health().await.expect("a fresh engine is healthy");
    refuses_bad_specs(engine, lower).await;
    one_machine(engine, lower).await;
    many_at_once(engine, lower).await;
    keeps_what_was_written(engine, lower).await;
    changes_rules(engine, lower).await;
    shows_directories(engine, lower).await;
    if engine.capabilities().pause {
        pause::pauses(engine, lower).await;
    }
    if engine.capabilities().disk_limits {
        disk::ends(engine, lower).await;
    } else {
        println!(
            "skipped: {} does not hold machines to what they may write here",
            engine.name()
        );
    }
    memory::run(engine, lower).await;
}

/// Directories of the host in two machines: at their making and later, with links in the way on both sides.
async fn shows_directories(engine: &dyn Engine, lower: &[PathBuf]) {
    let host = tempfile::tempdir().expect("a directory");
    let source = host.path().join("source");
    std::fs::create_dir_all(source.join("inner/deep")).expect("a directory");
    std::fs::create_dir(host.path().join("secret")).expect("a directory");
    std::os::unix::fs::symlink("../secret", source.join("out")).expect("a link");
    let bind = |target: &str| Bind {
        source: source.clone(),
        beneath: None,
        target: target.into(),
        read_only: false,
    };
    let first = MachineSpec {
        binds: vec![bind("/shared/one")],
        ..spec("c-binds-1", lower)
    };
    engine.create(&first).await.expect("create with a bind");
    let second = spec("c-binds-2", lower);
    engine.create(&second).await.expect("create");
    let (one, two) = (
        connect(engine, "c-binds-1").await,
        connect(engine, "c-binds-2").await,
    );
    if let Err(EngineError::Unsupported { .. }) =
        engine.attach("c-binds-2", &bind("/deep/late")).await
    {
        println!("{} attaches nothing to a machine that runs", engine.name());
        for id in ["c-binds-1", "c-binds-2"] {
            engine.destroy(id).await.expect("destroy");
        }
        return;
    }
    engine
        .attach("c-binds-2", &bind("/deep/late"))
        .await
        .expect("the same again is fine");
    assert_eq!(
        engine.attached("c-binds-1").await.expect("attached"),
        [bind("/shared/one")]
    );
    // What one writes the other sees, with the same owners.
    let isolated = engine.capabilities().isolated;
    let place = |guest: &str| match isolated {
        true => guest.to_owned(),
        // Commands of the fake run on the host, in the machine's folder.
        false => format!(".{guest}"),
    };
    let (shared, late) = (place("/shared/one"), place("/deep/late"));
    let top = if isolated { "/" } else { ".." };
    let at = |script: &str| format!("cd {top}; {script}");
    // Without a boundary they are whoever runs this.
    let owner = if isolated {
        "stat -c %u:%g"
    } else {
        "echo 0:0 #"
    };
    let done = sh(
        &one,
        &at(&format!("echo one > {shared}/a && {owner} {shared}/a")),
    )
    .await;
    assert_eq!((done.0, done.1.as_str()), (0, "0:0\n"), "{done:?}");
    let done = sh(&two, &at(&format!("cat {late}/a && {owner} {late}/a"))).await;
    assert_eq!((done.0, done.1.as_str()), (0, "one\n0:0\n"), "{done:?}");
    // Nothing else can be put there, and nothing that leads out is shown.
    let inner = |beneath: &str| Bind {
        beneath: Some(beneath.into()),
        ..bind("/deep/late")
    };
    for wrong in [
        inner("inner"),
        Bind {
            target: "/other".into(),
            ..inner("../secret")
        },
        Bind {
            target: "/other".into(),
            ..inner("nothing")
        },
    ] {
        let refused = engine.attach("c-binds-2", &wrong).await;
        assert!(
            matches!(refused, Err(EngineError::InvalidSpec(_))),
            "{wrong:?}: {refused:?}"
        );
    }
    let nobody = engine.attach("c-nobody", &bind("/deep/late")).await;
    assert!(
        matches!(nobody, Err(EngineError::NotFound(_))),
        "{nobody:?}"
    );
    if isolated {
        let refused = engine
            .attach(
                "c-binds-2",
                &Bind {
                    target: "/other".into(),
                    ..inner("out")
                },
            )
            .await;
        assert!(
            matches!(refused, Err(EngineError::InvalidSpec(_))),
            "{refused:?}"
        );
        // A link of the machine's own is not followed either.
        let done = sh(&two, "ln -s /etc /link").await;
        assert_eq!(done.0, 0, "{done:?}");
        for target in ["/link", "/link/inner"] {
            let refused = engine.attach("c-binds-2", &bind(target)).await;
            assert!(
                matches!(refused, Err(EngineError::InvalidSpec(_))),
                "{target}: {refused:?}"
            );
        }
        // Read-only by the kernel; a part of it; set-user-id bits without effect.
        let read_only = Bind {
            read_only: true,
            target: "/look".into(),
            ..inner("inner")
        };
        engine
            .attach("c-binds-2", &read_only)
            .await
            .expect("attach a part");
        let done = sh(&two, "ls /look; touch /look/x; mount -o remount,rw /look").await;
        assert_ne!(done.0, 0, "{done:?}");
        assert_eq!(done.1, "deep\n", "{done:?}");
        assert!(!source.join("inner/x").exists());
        // Its directory goes by another name now, and it is detached all the same; what is open stays open.
        let done = sh(
            &two,
            "mv /deep /moved && cd /moved/late && (exec 3>>open && mkdir /go && while [ ! -e /go/on ]; do sleep 0.01; done; \
             echo written >&3) >/dev/null 2>&1 & while [ ! -e /go ]; do sleep 0.01; done",
        )
        .await;
        assert_eq!(done.0, 0, "{done:?}");
    }
    engine
        .detach("c-binds-2", "/deep/late".as_ref())
        .await
        .expect("detach");
    engine
        .detach("c-binds-2", "/deep/late".as_ref())
        .await
        .expect("again is fine");
    let late = if isolated { "/moved/late" } else { &late };
    let done = sh(&two, &at(&format!("ls {late}"))).await;
    assert_eq!((done.0, done.1.as_str()), (0, ""), "{done:?}");
    if isolated {
        sh(&two, "touch /go/on").await;
        let start = std::time::Instant::now();
        while std::fs::read(source.join("open")).is_ok_and(|text| text != b"written\n") {
            assert!(
                start.elapsed() < PATIENCE,
                "what was open can be written to"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    engine
        .detach("c-binds-1", "/shared/one".as_ref())
        .await
        .expect("detach what the machine was made with");
    assert_eq!(engine.attached("c-binds-1").await.expect("attached"), []);
    let done = sh(&one, &at(&format!("ls {shared}"))).await;
    assert_eq!((done.0, done.1.as_str()), (0, ""), "{done:?}");
    for id in ["c-binds-1", "c-binds-2"] {
        engine.destroy(id).await.expect("destroy");
    }
    // Machines go, what they wrote stays.
    assert_eq!(std::fs::read(source.join("a")).expect("the file"), b"one\n");
}

/// Runs a shell script to its end: (exit code, stdout, stderr).
///
/// # Panics
/// When the guest refuses or the connection breaks.
pub async fn sh(guest: &GuestClient, script: &str) -> (i32, String, String) {
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    exec(
        guest,
        ExecRequest {
            argv,
            ..ExecRequest::default()
        },
    )
    .await
}

async fn exec(guest: &GuestClient, request: ExecRequest) -> (i32, String, String) {
    let work = async {
        let mut stream = guest.exec(&request).await.expect("exec is accepted");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match stream
                .next()
                .await
                .expect("output arrives")
                .expect("an exit frame comes last")
            {
                Frame::Started(pid) => assert!(pid > 0),
                Frame::Stdout(_, data) => out.extend_from_slice(&data),
                Frame::Stderr(_, data) => err.extend_from_slice(&data),
                Frame::Exit { code, .. } => {
                    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                    return (code, text(out), text(err));
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("the command ends")
}

async fn connect(engine: &dyn Engine, id: &str) -> GuestClient {
    let io = engine.dial(id).await.expect("a live machine is dialled");
    GuestClient::connect(io)
        .await
        .expect("its guest shakes hands")
}

/// Rules of every kind on a machine that lives, and on ones that do not. What they do to traffic is checked where
/// there is a network.
async fn changes_rules(engine: &dyn Engine, lower: &[PathBuf]) {
    let text = r#"{"mode": "custom", "allow_cidrs": ["198.18.0.0/15"], "deny_cidrs": ["198.18.7.0/24"],
        "allow_domains": ["*.example.com"], "deny_domains": ["evil.example.com"],
        "rate_limit": {"kbit_per_sec": 8000, "burst": 64}}"#;
    let custom: Rules = serde_json::from_str(text).expect("rules");
    let unknown = engine.set_egress("c-nobody", &custom).await;
    assert!(matches!(unknown, Err(EngineError::NotFound(_))));
    for (n, first) in [Rules::default(), custom.clone(), Rules::deny_all()]
        .into_iter()
        .enumerate()
    {
        let id = format!("c-rules-{n}");
        let spec = MachineSpec {
            egress: first.clone(),
            ..spec(&id, lower)
        };
        engine.create(&spec).await.expect("create with rules");
        let guest = connect(engine, &id).await;
        for rules in [
            &first,
            &Rules::deny_all(),
            &custom,
            &custom,
            &Rules::default(),
        ] {
            engine.set_egress(&id, rules).await.expect("change rules");
            assert_eq!(
                sh(&guest, "echo here").await.1,
                "here\n",
                "rules are no matter of the guest's"
            );
        }
        engine.destroy(&id).await.expect("destroy");
        let gone = engine.set_egress(&id, &custom).await;
        assert!(matches!(gone, Err(EngineError::NotFound(_))));
    }
}

async fn refuses_bad_specs(engine: &dyn Engine, lower: &[PathBuf]) {
    let bad = [
        MachineSpec {
            id: "../x".into(),
            ..spec("x", lower)
        },
        MachineSpec {
            lower: Vec::new(),
            ..spec("c-nolayer", lower)
        },
        MachineSpec {
            lower: vec!["/nonexistent-layer".into()],
            ..spec("c-missing", lower)
        },
        MachineSpec {
            cwd: "relative".into(),
            ..spec("c-cwd", lower)
        },
        MachineSpec {
            memory_bytes: 1,
            ..spec("c-memory", lower)
        },
        MachineSpec {
            env: BTreeMap::from([("A=B".into(), "c".into())]),
            ..spec("c-env", lower)
        },
    ];
    for spec in bad {
        let refused = engine.create(&spec).await;
        assert!(
            matches!(
                refused,
                Err(EngineError::InvalidSpec(_) | EngineError::Step { .. })
            ),
            "{spec:?} gave {refused:?}"
        );
        assert!(matches!(
            engine.dial(&spec.id).await,
            Err(EngineError::NotFound(_))
        ));
    }
    assert!(
        engine.list().await.expect("list").is_empty(),
        "refused machines leave nothing"
    );
}

async fn one_machine(engine: &dyn Engine, lower: &[PathBuf]) {
    let wanted = spec("c-one", lower);
    engine.create(&wanted).await.expect("create");
    assert!(
        matches!(engine.create(&wanted).await, Err(EngineError::Exists(_))),
        "an id is used once"
    );
    let live = engine.list().await.expect("list");
    assert_eq!(
        live.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(),
        ["c-one"]
    );
    let guest = connect(engine, "c-one").await;
    commands(&guest).await;
    background(&guest).await;
    files(&guest).await;
    ports(engine, &guest).await;
    usage(engine, &guest, &wanted).await;
    if engine.capabilities().isolated {
        isolation(&guest).await;
    }
    engine.destroy("c-one").await.expect("destroy");
    engine
        .destroy("c-one")
        .await
        .expect("destroying again is harmless");
    engine
        .destroy("never-was")
        .await
        .expect("and so is an unknown id");
    assert!(engine.list().await.expect("list").is_empty());
    assert!(matches!(
        engine.dial("c-one").await,
        Err(EngineError::NotFound(_))
    ));
    assert!(matches!(
        engine.usage("c-one").await,
        Err(EngineError::NotFound(_))
    ));
    assert!(guest.processes().await.is_err(), "the guest is gone");
}

async fn commands(guest: &GuestClient) {
    assert_eq!(
        sh(guest, "echo $GREETING; echo oops >&2; exit 7").await,
        (7, "hello\n".into(), "oops\n".into())
    );
    assert_eq!(sh(guest, "kill -TERM $$").await.0, 128 + 15);
    assert_eq!(sh(guest, "cat").await.0, 0, "standard input is empty");
    let request = ExecRequest {
        argv: vec![
            "/bin/sh".into(),
            "-c".into(),
            "pwd; echo $GREETING $1".into(),
            "sh".into(),
            "a b".into(),
        ],
        cwd: Some("/tmp".into()),
        env: BTreeMap::from([("GREETING".into(), "bye".into())]),
        ..ExecRequest::default()
    };
    let (code, out, _) = exec(guest, request).await;
    assert_eq!((code, out.lines().nth(1)), (0, Some("bye a b")));
    assert!(
        out.lines().next().is_some_and(|l| l.ends_with("/tmp")),
        "{out}"
    );
    for (argv, cwd, kind) in [
        (vec!["no-such-program"], None, ErrorKind::NotFound),
        (vec!["/no/such/program"], None, ErrorKind::NotFound),
        (vec!["/bin/sh"], Some("/no/such/dir"), ErrorKind::Invalid),
        (vec![], None, ErrorKind::Invalid),
    ] {
        let request = ExecRequest {
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            cwd: cwd.map(str::to_owned),
            ..ExecRequest::default()
        };
        let error = guest.exec(&request).await.expect_err("refused");
        assert_eq!(error.kind(), Some(kind), "{argv:?}: {error}");
    }
    // A large output arrives whole, and a left-behind child does not hold the answer up.
    let (code, out, _) = sh(
        guest,
        "head -c 3000000 /dev/zero | tr '\\0' x; sleep 1000 & exit 0",
    )
    .await;
    assert_eq!((code, out.len()), (0, 3_000_000));
    // The time limit ends the whole tree.
    let request = ExecRequest {
        argv: ["/bin/sh", "-c", "sleep 1001 & sleep 1001"]
            .map(str::to_owned)
            .to_vec(),
        timeout_ms: Some(100),
        ..ExecRequest::default()
    };
    let mut stream = guest.exec(&request).await.expect("exec");
    loop {
        match tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("it ends")
            .expect("frames")
        {
            Some(Frame::Exit {
                timed_out, code, ..
            }) => {
                assert!(timed_out && code == 137, "{timed_out} {code}");
                break;
            }
            Some(_) => {}
            None => panic!("no exit frame"),
        }
    }
}

async fn background(guest: &GuestClient) {
    let request = ExecRequest {
        argv: ["/bin/sh", "-c", "read line; echo got $line; exit 4"]
            .map(str::to_owned)
            .to_vec(),
        stdin: true,
        ..ExecRequest::default()
    };
    let pid = guest.spawn(&request).await.expect("spawn");
    assert!(guest.process(pid).await.expect("known").running);
    guest
        .stdin(pid, "there\n".into(), false)
        .await
        .expect("stdin");
    let (text, code) = follow(guest, pid, 0).await;
    assert_eq!((text.as_str(), code), ("got there\n", 4));
    assert_eq!(
        follow(guest, pid, 4).await.0,
        "there\n",
        "output is kept and read from any byte"
    );
    let info = guest.process(pid).await.expect("ended ones are remembered");
    assert_eq!((info.running, info.exit_code), (false, Some(4)));

    let request = ExecRequest {
        argv: ["/bin/sh", "-c", "echo one; echo two; sleep 1002"]
            .map(str::to_owned)
            .to_vec(),
        retain: Retain::UntilAcknowledged,
        ..ExecRequest::default()
    };
    let pid = guest.spawn(&request).await.expect("spawn");
    let mut stream = guest
        .output(
            pid,
            OutputQuery {
                from: 0,
                follow: true,
            },
        )
        .await
        .expect("output");
    let mut seen = 0;
    while seen < 8 {
        match tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("output")
            .expect("frames")
        {
            Some(Frame::Stdout(_, data)) => seen += data.len(),
            other => panic!("{other:?}"),
        }
    }
    guest.acknowledge(pid, 8).await.expect("acknowledge");
    guest.signal(pid, 9).await.expect("kill");
    assert_eq!(follow(guest, pid, 8).await, (String::new(), 137));
    guest
        .signal(pid, 9)
        .await
        .expect("killing an ended process is fine");
    assert_eq!(
        guest.signal(999_999, 9).await.expect_err("unknown").kind(),
        Some(ErrorKind::NotFound)
    );
}

async fn follow(guest: &GuestClient, pid: u32, from: u64) -> (String, i32) {
    let work = async {
        let mut stream = guest
            .output(pid, OutputQuery { from, follow: true })
            .await
            .expect("output");
        let mut text = Vec::new();
        loop {
            match stream
                .next()
                .await
                .expect("frames")
                .expect("an exit frame comes last")
            {
                Frame::Stdout(_, data) | Frame::Stderr(_, data) => text.extend_from_slice(&data),
                Frame::Exit { code, .. } => {
                    return (String::from_utf8_lossy(&text).into_owned(), code);
                }
                Frame::Started(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("the process ends")
}

async fn files(guest: &GuestClient) {
    use futures::collect;
    let path = |path: &str| PathRequest {
        path: path.into(),
        ..PathRequest::default()
    };
    let write = |path: &str| WriteQuery {
        path: path.into(),
        ..WriteQuery::default()
    };
    let read = |path: &str| ReadQuery {
        path: path.into(),
        ..ReadQuery::default()
    };
    let data = futures::chunks(&[b"hel", b"lo"]);
    let info = guest
        .write(&write("/workspace/a/b/é.txt"), data)
        .await
        .expect("write");
    assert_eq!(
        (info.path.as_str(), info.size, info.mode),
        ("/workspace/a/b/é.txt", 5, 0o644)
    );
    let (info, bytes) = guest
        .read(&read("a/b/é.txt"))
        .await
        .expect("a relative path starts at the cwd");
    assert_eq!(
        (info.name.as_str(), collect(bytes).await),
        ("é.txt", b"hello".to_vec())
    );
    let ranged = ReadQuery {
        offset: 1,
        length: Some(3),
        ..read("/workspace/a/b/é.txt")
    };
    assert_eq!(
        collect(guest.read(&ranged).await.expect("range").1).await,
        b"ell".to_vec()
    );
    // A broken upload leaves the old file and nothing beside it.
    let broken = guest
        .write(&write("/workspace/a/b/é.txt"), futures::broken())
        .await;
    assert!(broken.is_err());
    let all = PathRequest {
        depth: 3,
        ..path("/workspace/a")
    };
    // The guest hears of the break after we do.
    let start = std::time::Instant::now();
    let listed = loop {
        let listed = guest.list(&all).await.expect("list");
        if listed.len() == 2 || start.elapsed() > PATIENCE {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let shown: Vec<_> = listed.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(shown, ["/workspace/a/b", "/workspace/a/b/é.txt"]);
    assert_eq!(listed[1].size, 5);
    guest.mkdir(&path("/workspace/d/e")).await.expect("mkdir");
    guest
        .mkdir(&path("/workspace/d/e"))
        .await
        .expect("again is fine");
    let rename = RenameRequest {
        old_path: "/workspace/a/b".into(),
        new_path: "/workspace/d/f".into(),
        user: None,
    };
    assert_eq!(
        guest.rename(&rename).await.expect("rename").path,
        "/workspace/d/f"
    );
    let tar = collect(guest.tar(&read("/workspace/d")).await.expect("tar")).await;
    assert_eq!(&tar[..2], b"e\0", "entries are relative and sorted");
    guest
        .remove(&path("/workspace/d"))
        .await
        .expect("remove is recursive");
    for error in [
        guest.stat(&path("/workspace/d")).await.err(),
        guest.remove(&path("/workspace/d")).await.err(),
        guest.read(&read("/workspace/nope")).await.err(),
    ] {
        assert_eq!(error.expect("gone").kind(), Some(ErrorKind::NotFound));
    }
    assert_eq!(
        guest.read(&read("/tmp")).await.err().and_then(|e| e.kind()),
        Some(ErrorKind::Invalid)
    );
    let someone = PathRequest {
        user: Some("no-such-user".into()),
        ..path("/tmp")
    };
    assert_eq!(
        guest.stat(&someone).await.expect_err("unknown").kind(),
        Some(ErrorKind::Invalid)
    );
}

async fn ports(engine: &dyn Engine, guest: &GuestClient) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    assert!(guest.tunnel(1).await.is_err(), "nothing listens there");
    if engine.capabilities().isolated {
        return; // A server program is needed inside; the whole-system tests have one.
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind");
    let port = listener.local_addr().expect("address").port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.expect("read");
        stream.write_all(&word).await.expect("write");
    });
    let mut tunnel = guest.tunnel(port).await.expect("tunnel");
    tunnel.write_all(b"ping").await.expect("write");
    let mut back = Vec::new();
    tokio::time::timeout(PATIENCE, tunnel.read_to_end(&mut back))
        .await
        .expect("echo")
        .expect("read");
    assert_eq!(back, b"ping");
    server.await.expect("server");
}

/// What a machine uses is what it did.
async fn usage(engine: &dyn Engine, guest: &GuestClient, spec: &MachineSpec) {
    let usage = || async {
        engine
            .usage(&spec.id)
            .await
            .expect("a live machine is measured")
    };
    let before = usage().await;
    assert_eq!(before.memory_limit_bytes, spec.memory_bytes);
    assert!(before.memory_bytes <= spec.memory_bytes, "{before:?}");
    assert!(
        before.disk_used_bytes < before.disk_total_bytes,
        "{before:?}"
    );
    let script = "head -c 8388608 /dev/urandom > ./eight";
    assert_eq!(sh(guest, script).await.0, 0);
    let written = tokio::time::timeout(PATIENCE, async {
        while usage().await.disk_used_bytes < before.disk_used_bytes + (8 << 20) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    written.await.expect("what is written is counted soon");
    if engine.capabilities().isolated {
        let burn = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done";
        assert_eq!(sh(guest, burn).await.0, 0);
        let after = usage().await;
        assert!(after.at > before.at);
        // A million turns of a shell's loop take a tenth of a second and more.
        let spent = after.cpu_micros - before.cpu_micros;
        assert!(spent > 30_000, "{spent} µs");
        assert!(after.memory_bytes > 0, "{after:?}");
    }
    assert_eq!(sh(guest, "rm ./eight").await.0, 0);
}

async fn isolation(guest: &GuestClient) {
    let (_, out, _) = sh(
        guest,
        "hostname; id -u; echo $$ > /dev/null; ls /proc | grep -c '^[0-9]'",
    )
    .await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..2], ["conform", "0"]);
    assert!(
        lines[2].parse::<u32>().is_ok_and(|n| n < 20),
        "only its own processes: {out}"
    );
    for (what, script) in [
        ("mount", "mount -t tmpfs none /mnt"),
        ("write to sysctl", "echo 1 > /proc/sys/kernel/panic"),
        ("write to sysrq", "echo h > /proc/sysrq-trigger"),
        ("write to /sys", "echo x > /sys/kernel/uevent_helper"),
        ("make a device", "mknod /tmp/sda b 8 0"),
        ("see the guest's memory", "head -c 1 /proc/1/mem"),
        (
            "see the guest's environment",
            // Where a machine's first process has a home, that is no secret.
            "tr '\\0' '\\n' < /proc/1/environ | grep -v '^HOME='",
        ),
        (
            "write in a read-only mask",
            "ls /proc/kcore && head -c 1 /proc/kcore | grep .",
        ),
    ] {
        let (code, out, err) = sh(guest, script).await;
        assert_ne!(code, 0, "a machine can {what}: {out} {err}");
    }
    let (code, out, _) = sh(guest, "touch /etc/written /workspace/w && echo fine").await;
    assert_eq!(
        (code, out.as_str()),
        (0, "fine\n"),
        "its own files are its own"
    );
}

/// What was written in one machine is there in others that get it as a layer.
async fn keeps_what_was_written(engine: &dyn Engine, lower: &[PathBuf]) {
    let spec_of = |id: &str, layers: &[PathBuf]| spec(id, layers);
    engine
        .create(&spec_of("mch_keep1", lower))
        .await
        .expect("create");
    let guest = connect(engine, "mch_keep1").await;
    let script = "echo made > /workspace/kept";
    assert_eq!(sh(&guest, &in_workspace(engine, script)).await.0, 0);
    let home = tempfile::tempdir_in(lower[0].parent().expect("a parent")).expect("a directory");
    let layer = home.path().join("layer");
    engine.keep("mch_keep1", &layer).await.expect("keep");
    assert!(
        engine.dial("mch_keep1").await.is_err(),
        "a kept machine has ended"
    );
    let layers: Vec<PathBuf> = [layer].into_iter().chain(lower.iter().cloned()).collect();
    for id in ["mch_keep2", "mch_keep3"] {
        engine.create(&spec_of(id, &layers)).await.expect("create");
        let guest = connect(engine, id).await;
        let script = "read word < /workspace/kept && echo $word && echo more > /workspace/kept";
        let (code, out, error) = sh(&guest, &in_workspace(engine, script)).await;
        assert_eq!((code, out.as_str()), (0, "made\n"), "{error}");
        engine.destroy(id).await.expect("destroy");
    }
}

/// Commands of an engine without isolation run on the host: there `/workspace` is where they start.
fn in_workspace(engine: &dyn Engine, script: &str) -> String {
    match engine.capabilities().isolated {
        true => script.to_owned(),
        false => script.replace("/workspace/", "./"),
    }
}

async fn many_at_once(engine: &dyn Engine, lower: &[PathBuf]) {
    let ids: Vec<String> = (0..20).map(|n| format!("c-many-{n}")).collect();
    futures::all(ids.iter().map(|id| async move {
        engine.create(&spec(id, lower)).await.expect("create");
        let guest = connect(engine, id).await;
        assert_eq!(
            sh(&guest, &format!("echo {id} > me; cat me")).await.1,
            format!("{id}\n")
        );
    }))
    .await;
    assert_eq!(engine.list().await.expect("list").len(), 20);
    futures::all(
        ids.iter()
            .map(|id| async move { engine.destroy(id).await.expect("destroy") }),
    )
    .await;
    assert!(engine.list().await.expect("list").is_empty());
}

/// The few stream helpers that the checks need.
mod futures {
    use std::{future::Future, io, pin::Pin, task::Poll};

    use futures_util::{Stream, StreamExt, stream};
    use nullspace_protocol::ByteStream;

    type Chunk = io::Result<bytes::Bytes>;

    pub(super) async fn collect(mut stream: ByteStream) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk.expect("bytes arrive"));
        }
        all
    }

    pub(super) fn chunks(parts: &[&'static [u8]]) -> impl Stream<Item = Chunk> + Send + 'static {
        stream::iter(
            parts
                .iter()
                .map(|p| Ok(bytes::Bytes::from_static(p)))
                .collect::<Vec<_>>(),
        )
    }

    pub(super) fn broken() -> impl Stream<Item = Chunk> + Send + 'static {
        stream::iter([
            Ok(bytes::Bytes::from_static(b"half")),
            Err(io::Error::other("cut")),
        ])
    }

    pub(super) async fn all<F: Future<Output = ()>>(work: impl Iterator<Item = F>) {
        let mut work: Vec<Pin<Box<F>>> = work.map(Box::pin).collect();
        std::future::poll_fn(|cx| {
            work.retain_mut(|f| f.as_mut().poll(cx).is_pending());
            if work.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

//! Machines of gVisor, next to bare `runsc` with the same root file system and the same process.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hyper::Method;
use serde_json::json;

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

/// Samples of machines that are made.
const ROUNDS: usize = 20;
/// Samples of machines that are kept.
const KEPT: usize = 5;
/// Machines that are made of one checkpoint.
const CHILDREN: usize = 8;
/// Files that a machine wrote before a snapshot, and bytes of each.
const FILES: usize = 20_000;
const FILE: usize = 53_687;
/// How long the engine has to make a spare machine again.
const SPARE: Duration = Duration::from_millis(1500);

/// Bytes that the kernels of machines write at once, about.
const PIECE: usize = 16 << 20;

/// Has the host's memory at hand for what is about to be written: files are written, as large and a half, and removed.
///
/// A host that is a virtual machine gives memory back that is free for some seconds, and pays for it again when it is
/// touched: up to 4 ms for each MB. Whoever has just removed as much as he writes, as a peer does whose last image is
/// deleted, pays nothing. So nobody does here.
fn warm(directory: &Path, megabytes: usize) -> Result<()> {
    let path = directory.join("warm");
    let mut file = std::fs::File::create(&path)?;
    let piece = vec![1; PIECE];
    for _ in 0..=(megabytes << 20) * 3 / 2 / PIECE {
        file.write_all(&piece)?;
    }
    Ok(std::fs::remove_file(path)?)
}

/// Holds that many random bytes, which no engine can leave out, and then sleeps.
fn holder(megabytes: usize) -> String {
    format!(
        "import os, time; held = os.urandom({megabytes} << 20); open(\"/dev/shm/ready\", \"w\").close(); time.sleep(100000)"
    )
}

pub(crate) async fn run(server: &Server, rootfs: &Path, table: &mut Table) -> Result<()> {
    let runsc = Runsc::new(rootfs)?;
    let cold = with(server, "0").await?;
    let made = made(&cold, &runsc, table).await;
    let kept = match made {
        Ok(()) => kept(&cold, &runsc, table).await,
        failed => failed,
    };
    let kept = match kept {
        Ok(()) => layered(&cold, table).await,
        failed => failed,
    };
    stop(cold).await;
    kept?;
    let ready = with(server, "2").await?;
    let spared = spared(&ready, &runsc, table).await;
    stop(ready).await;
    spared
}

async fn with(server: &Server, spare: &'static str) -> Result<Server> {
    let settings = [
        ("NULLSPACE_ISOLATION", "gvisor"),
        ("NULLSPACE_SPARE_GVISOR", spare),
    ];
    Server::with(server.program.clone(), &settings).await
}

async fn stop(mut server: Server) {
    server.stop().await;
}

/// From nothing, and commands in what lives.
async fn made(server: &Server, runsc: &Runsc, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let bare = runsc.run_true()?;
        let (took, id) = first_command(&mut client).await?;
        client.delete(&id).await?;
        if round > 0 {
            ours.push(took);
            theirs.push(bare);
        }
    }
    let theirs = Samples::new(theirs);
    table.row("runsc run true", &theirs, &[]);
    table.row(
        "gVisor: create → result of true, none spare",
        &Samples::new(ours),
        &[("runsc run", Some(theirs.p50()), Some(1.3))],
    );

    let (_, id) = first_command(&mut client).await?;
    let live = runsc.hold(0)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        let begun = Instant::now();
        client.exec(&id, "true").await?;
        ours.push(begun.elapsed());
        theirs.push(live.exec_true()?);
    }
    drop(live);
    client.delete(&id).await?;
    let theirs = Samples::new(theirs);
    table.row(
        "gVisor: true in a live machine",
        &Samples::new(ours),
        &[("runsc exec", Some(theirs.p50()), Some(0.3))],
    );
    Ok(())
}

async fn spared(server: &Server, runsc: &Runsc, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    // The engine makes them once the first of their kind was asked for.
    let (_, first) = first_command(&mut client).await?;
    client.delete(&first).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(runsc.run_true()?);
        tokio::time::sleep(SPARE).await;
        let (took, id) = first_command(&mut client).await?;
        ours.push(took);
        client.delete(&id).await?;
    }
    let theirs = Samples::new(theirs);
    table.row(
        "gVisor: create → result of true, with a spare machine",
        &Samples::new(ours),
        &[("runsc run", Some(theirs.p50()), Some(0.15))],
    );
    Ok(())
}

/// Kept on the disk, gone on, forked.
async fn kept(server: &Server, runsc: &Runsc, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    for megabytes in [64, 512] {
        let mut ours = Kept::default();
        let mut theirs = Kept::default();
        for _ in 0..KEPT {
            runsc.kept(megabytes, &mut theirs)?;
            keep(&mut client, server.data_dir.path(), megabytes, &mut ours).await?;
        }
        let (save, load) = (Samples::new(theirs.save), Samples::new(theirs.load));
        let (leave, copy) = (Samples::new(theirs.leave), Samples::new(theirs.copy));
        let named = |name: &str| format!("gVisor, {megabytes} MB held: {name}");
        table.row(
            &named("hibernated"),
            &Samples::new(ours.save),
            &[
                ("runsc checkpoint", Some(save.p50()), Some(1.5)),
                // Ours is acknowledged once it is on the disk.
                (
                    "runsc checkpoint, synced",
                    Some(Samples::new(theirs.synced).p50()),
                    None,
                ),
            ],
        );
        let mut row = |name: &str, samples, to, ms, goal| {
            let peer = [(to, Some(ms), goal)];
            table.row(&named(name), &Samples::new(samples), &peer);
        };
        row(
            "resumed → result of true",
            ours.load,
            "runsc restore",
            load.p50(),
            Some(1.5),
        );
        row(
            "the parent stands still",
            ours.still,
            "runsc checkpoint --leave-running",
            leave.p50(),
            Some(1.2),
        );
        row(
            "forked → result of true",
            ours.copy.clone(),
            "checkpoint + restore",
            leave.p50() + copy.p50(),
            Some(1.3),
        );
        let one = Samples::new(ours.child).p50();
        row(
            "8 machines of one snapshot",
            ours.children,
            "one",
            one,
            Some(4.0),
        );
    }
    Ok(())
}

/// A machine that wrote much.
async fn layered(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let id = client.create().await?;
    let path = format!("/v1/machines/{id}");
    let write = |place: &str| {
        format!(
            "import os\npiece = os.urandom(1 << 20)\nfor n in range({FILES}):\n    d = f'{place}/{{n // 100}}'\n    os.makedirs(d, exist_ok=True)\n    open(f'{{d}}/{{n}}', 'wb').write(piece[n:n + {FILE}])"
        )
    };
    let body = json!({"command": "python3", "args": ["-c", write("/srv")], "timeout_secs": 600});
    let done = client
        .call(Method::POST, &format!("{path}/exec"), Some(body))
        .await?;
    ensure!(done["exit_code"] == 0, "{done}");
    let data = server.data_dir.path();
    // What a machine writes is in a file system of its own: the same files again, where the host has them.
    let (layer, copy) = (data.join("bench-layer"), data.join("bench-copy"));
    let written = Command::new("python3")
        .args(["-c", &write(&layer.display().to_string())])
        .status()?;
    ensure!(written.success(), "python3: {written}");
    let (mut ours, mut theirs, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..KEPT {
        // What was written before is on the disk: neither waits for it.
        rustix::fs::syncfs(std::fs::File::open(data)?)?;
        let begun = Instant::now();
        let copied = Command::new("cp")
            .arg("-a")
            .args([&layer, &copy])
            .status()?;
        ensure!(copied.success(), "cp: {copied}");
        theirs.push(begun.elapsed());
        rustix::fs::syncfs(std::fs::File::open(data)?)?;
        synced.push(begun.elapsed());
        std::fs::remove_dir_all(&copy)?;
        let begun = Instant::now();
        let snapshot = client
            .call(Method::POST, &format!("{path}/snapshots"), None)
            .await?;
        ours.push(begun.elapsed());
        let snapshot = snapshot["id"].as_str().context("no id")?;
        client
            .call(Method::DELETE, &format!("/v1/snapshots/{snapshot}"), None)
            .await?;
        // It is removed beside everything else.
        while std::fs::read_dir(data.join("snapshots"))?.next().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    client.delete(&id).await?;
    table.row(
        "gVisor: snapshot, 1 GB in 20,000 files written",
        &Samples::new(ours),
        &[
            ("cp -a", Some(Samples::new(theirs).p50()), Some(1.2)),
            ("cp -a, synced", Some(Samples::new(synced).p50()), None),
        ],
    );
    Ok(())
}

#[derive(Default)]
struct Kept {
    save: Vec<Duration>,
    /// The peer's alone: until what it saved is on the disk.
    synced: Vec<Duration>,
    load: Vec<Duration>,
    leave: Vec<Duration>,
    still: Vec<Duration>,
    copy: Vec<Duration>,
    child: Vec<Duration>,
    children: Vec<Duration>,
}

async fn keep(
    client: &mut Client,
    data_dir: &Path,
    megabytes: usize,
    into: &mut Kept,
) -> Result<()> {
    let id = holding(client, megabytes).await?;
    let path = format!("/v1/machines/{id}");
    warm(data_dir, megabytes)?;
    let begun = Instant::now();
    client
        .call(Method::POST, &format!("{path}/hibernate"), None)
        .await?;
    into.save.push(begun.elapsed());
    warm(data_dir, megabytes)?;
    let begun = Instant::now();
    client
        .call(Method::POST, &format!("{path}/resume"), None)
        .await?;
    client.exec(&id, "true").await?;
    into.load.push(begun.elapsed());

    let watch = "import time\nopen(\"/tmp/begun\", \"w\").close()\nlast, gap = time.time(), 0\nend = last + 8\nwhile last < end:\n    time.sleep(0.001)\n    now = time.time()\n    gap, last = max(gap, now - last), now\nprint(gap)";
    let shell = json!({"command": format!("nohup python3 -c '{watch}' > /tmp/gap 2>&1 & while [ ! -e /tmp/begun ]; do sleep 0.05; done"), "shell": true});
    client
        .call(Method::POST, &format!("{path}/exec"), Some(shell))
        .await?;
    // Written, and read into memory.
    warm(data_dir, megabytes * 2)?;
    let begun = Instant::now();
    let child = client
        .call(Method::POST, &format!("{path}/fork"), None)
        .await?;
    let child = child["id"].as_str().context("no id")?.to_owned();
    client.exec(&child, "true").await?;
    into.copy.push(begun.elapsed());
    client.delete(&child).await?;
    let read = json!({"command": "while [ ! -s /tmp/gap ]; do sleep 0.1; done; cat /tmp/gap", "shell": true});
    let said = client
        .call(Method::POST, &format!("{path}/exec"), Some(read))
        .await?;
    let gap: f64 = said["stdout"].as_str().unwrap_or_default().trim().parse()?;
    into.still.push(Duration::from_secs_f64(gap));

    let snapshot = client
        .call(Method::POST, &format!("{path}/snapshots"), None)
        .await?;
    let snapshot = snapshot["id"].as_str().context("no id")?.to_owned();
    client.delete(&id).await?;
    for (count, into) in [(1, &mut into.child), (CHILDREN, &mut into.children)] {
        warm(data_dir, megabytes * count)?;
        let begun = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(client.another().await?);
        }
        let all = clients.iter_mut().map(|one| async {
            let body = json!({"snapshot_id": snapshot, "timeout_ms": 3_600_000});
            let made = one.call(Method::POST, "/v1/machines", Some(body)).await?;
            let id = made["id"].as_str().context("no id")?.to_owned();
            one.exec(&id, "true").await?;
            anyhow::Ok(id)
        });
        let ids = try_join_all(all).await?;
        into.push(begun.elapsed());
        for id in ids {
            client.delete(&id).await?;
        }
    }
    client
        .call(Method::DELETE, &format!("/v1/snapshots/{snapshot}"), None)
        .await
        .map(drop)
}

/// A machine with a process that holds so much.
async fn holding(client: &mut Client, megabytes: usize) -> Result<String> {
    let body = json!({"template": "base", "vcpus": 2, "memory_mb": 2048, "timeout_ms": 3_600_000});
    let made = client
        .call(Method::POST, "/v1/machines", Some(body))
        .await?;
    let id = made["id"].as_str().context("no id")?.to_owned();
    let script = format!(
        "nohup python3 -c '{}' > /dev/null 2>&1 & while [ ! -e /dev/shm/ready ]; do sleep 0.05; done",
        holder(megabytes)
    );
    let body = json!({"command": script, "shell": true, "timeout_secs": 60});
    let done = client
        .call(Method::POST, &format!("/v1/machines/{id}/exec"), Some(body))
        .await?;
    ensure!(done["exit_code"] == 0, "{done}");
    Ok(id)
}

async fn first_command(client: &mut Client) -> Result<(Duration, String)> {
    let begun = Instant::now();
    let id = client.create().await?;
    client.exec(&id, "true").await?;
    Ok((begun.elapsed(), id))
}

/// Bare `runsc` with a bundle.
struct Runsc {
    home: tempfile::TempDir,
    rootfs: std::path::PathBuf,
}

impl Runsc {
    fn new(rootfs: &Path) -> Result<Self> {
        Ok(Self {
            home: tempfile::tempdir()?,
            rootfs: rootfs.to_owned(),
        })
    }

    fn bundle(&self, name: &str, args: &[&str]) -> Result<std::path::PathBuf> {
        let bundle = self.home.path().join(name);
        std::fs::create_dir_all(&bundle)?;
        let namespaces = ["pid", "ipc", "uts", "mount", "network"];
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "root": {"path": self.rootfs},
            "hostname": "bench",
            "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/dev/shm", "type": "tmpfs"}],
            "linux": {"namespaces": namespaces.map(|kind| json!({"type": kind}))},
        });
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
        Ok(bundle)
    }

    fn call(&self, arguments: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        let status = Command::new("runsc")
            .arg(format!("--root={}", self.home.path().join("run").display()))
            // Its own network does not work on newer kernels, and is not what is compared.
            .args([
                "--platform=systrap",
                "--ignore-cgroups",
                "--network=none",
                "--overlay2=root:memory",
            ])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("runsc")?;
        ensure!(status.success(), "runsc {arguments:?}: {status}");
        Ok(begun.elapsed())
    }

    fn run_true(&self) -> Result<Duration> {
        let bundle = self.bundle("true", &["true"])?;
        self.call(&[
            "run",
            "--bundle",
            &bundle.display().to_string(),
            "bench-true",
        ])
    }

    /// A container whose process holds so much.
    fn hold(&self, megabytes: usize) -> Result<Holding<'_>> {
        let bundle = self.bundle("hold", &["python3", "-c", &holder(megabytes)])?;
        let bundle = bundle.display().to_string();
        self.call(&["run", "--detach", "--bundle", &bundle, "bench-hold"])?;
        let held = Holding(self, "bench-hold");
        while self
            .call(&["exec", "bench-hold", "test", "-e", "/dev/shm/ready"])
            .is_err()
        {}
        Ok(held)
    }

    fn kept(&self, megabytes: usize, into: &mut Kept) -> Result<()> {
        let image = self.home.path().join("image");
        let path = format!("--image-path={}", image.display());
        let fresh = || {
            let _ = std::fs::remove_dir_all(&image);
            std::fs::create_dir(&image)
        };
        let save = ["checkpoint", "--compression=none", &path, "bench-hold"];
        let leave = [
            "checkpoint",
            "--compression=none",
            "--leave-running",
            &path,
            "bench-hold",
        ];
        let bundle = self.home.path().join("hold").display().to_string();
        let load = [
            "restore",
            "--detach",
            &path,
            "--bundle",
            &bundle,
            "bench-hold",
        ];
        // In the order of ours: what was kept once is kept again in less time.
        let held = self.hold(megabytes)?;
        fresh()?;
        let home = self.home.path();
        warm(home, megabytes)?;
        let took = self.call(&save)?;
        into.save.push(took);
        let begun = Instant::now();
        for file in std::fs::read_dir(&image)? {
            std::fs::File::open(file?.path())?.sync_all()?;
        }
        into.synced.push(took + begun.elapsed());
        drop(held);
        warm(home, megabytes)?;
        into.load.push(self.call(&load)?);
        let held = Holding(self, "bench-hold");
        fresh()?;
        warm(home, megabytes)?;
        into.leave.push(self.call(&leave)?);
        drop(held);
        warm(home, megabytes)?;
        into.copy.push(self.call(&load)?);
        drop(Holding(self, "bench-hold"));
        Ok(())
    }
}

/// Ends with its value.
struct Holding<'a>(&'a Runsc, &'static str);

impl Holding<'_> {
    fn exec_true(&self) -> Result<Duration> {
        self.0.call(&["exec", self.1, "true"])
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let _ = self.0.call(&["delete", "--force", self.1]);
    }
}

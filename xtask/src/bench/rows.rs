//! The rows of the table, each next to its peers.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::json;

use super::{
    Args, Group,
    agent::{Cli, Deployment},
    api::{Client, Server},
    artifact, crowd, density, follow, gateway, memory,
    peers::{self, Bundle, Live, Peer},
    pool, service, sleep, ssh, stream,
    table::{Samples, Table},
    template, tree, upload, volume, watch, webhook,
};

const GIB: usize = 1 << 30;
/// Samples of a large file, besides one that is thrown away.
const FILE_ROUNDS: usize = 7;
/// Samples that are thrown away: they fill caches.
const WARM_UP: usize = 5;

pub(crate) async fn all(args: &Args, server: &mut Server, table: &mut Table) -> Result<()> {
    let rootfs = base_layer(server.data_dir.path())?;
    let bundle = Bundle::new(&rootfs)?;
    let n = args.samples;
    let mut client = server.client().await?;
    let compared = [Group::Create, Group::Burst, Group::Run];
    let (mut create_p50, mut crun) = (f64::NAN, None);
    if compared.iter().any(|group| args.wants(*group)) {
        (create_p50, crun) = create_and_delete(&mut client, &bundle, n, table).await?;
    }
    if args.wants(Group::Exec) {
        exec(&mut client, &bundle, n, table).await?;
    }
    if args.wants(Group::Burst) {
        burst(server, table, crun).await?;
    }
    if args.wants(Group::File) {
        files(&mut client, &bundle, server.pid(), table).await?;
    }
    if args.wants(Group::Run) {
        agent_run(server, table, create_p50, n.min(100)).await?;
    }
    if args.wants(Group::Deploy) {
        deploy(server, table)?;
    }
    if args.wants(Group::Gateway) {
        gateway::run(server, n, table).await.context("gateway")?;
    }
    if args.wants(Group::Service) {
        service::run(server, table).await.context("service")?;
    }
    if args.wants(Group::Artifact) {
        artifact::run(server, n, table).await.context("artifact")?;
    }
    if args.wants(Group::Template) {
        template::run(server, n, table).await.context("template")?;
    }
    if args.wants(Group::Follow) {
        follow::run(server, table).await.context("follow")?;
    }
    if args.wants(Group::Stream) {
        stream::run(server, &bundle, n, table)
            .await
            .context("stream")?;
    }
    if args.wants(Group::Webhook) {
        webhook::run(server, n, table).await.context("webhook")?;
    }
    if args.wants(Group::Ssh) {
        ssh::run(server, n, table).await.context("ssh")?;
    }
    if args.wants(Group::Upload) {
        upload::run(server, table).await.context("upload")?;
    }
    if args.wants(Group::Tree) {
        tree::run(server, table).await.context("tree")?;
    }
    if args.wants(Group::Watch) {
        watch::run(server, table).await.context("watch")?;
    }
    if args.wants(Group::Sleep) {
        sleep::run(server, table).await.context("sleep")?;
    }
    if args.wants(Group::Memory) {
        memory::run(server, &rootfs, table)
            .await
            .context("memory")?;
    }
    if args.wants(Group::Volume) {
        volume::run(server, table).await.context("volume")?;
    }
    if args.wants(Group::Pool) {
        pool::run(server, n, table).await.context("pool")?;
    }
    if args.wants(Group::Crowd) {
        crowd::run(server, table).await.context("crowd")?;
    }
    if args.wants(Group::Restart) {
        let mut times = Vec::new();
        for _ in 0..10 {
            server.kill();
            times.push(server.spawn().await?);
        }
        table.row(
            "serve → healthz 200",
            &Samples::new(times),
            &[("500 ms", Some(500.0), Some(1.0))],
        );
    }
    if args.machines > 0 && args.wants(Group::Density) {
        density::run(args.machines, server, table).await?;
    }
    Ok(())
}

/// The tree that `base` machines start from.
fn base_layer(data_dir: &Path) -> Result<PathBuf> {
    let cache = Path::new("/var/cache/nullspace");
    let record = [data_dir, cache]
        .iter()
        .flat_map(|place| std::fs::read_dir(place.join("templates")))
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("base"))
        .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .context("no record of the base template")?;
    let record = std::fs::read_to_string(record.path())?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let digest = record["digest"].as_str().context("no digest")?;
    [
        data_dir.join("layers").join(digest),
        cache.join("layers").join(digest),
    ]
    .into_iter()
    .find(|path| path.is_dir())
    .context("the base layer is not on disk")
}

/// A peer's row, or why there is none; its median.
fn peer(table: &mut Table, peer: Peer<'_>) -> Option<f64> {
    let name = peer.name.clone();
    match peer.samples() {
        Ok(samples) => {
            table.row(&format!("peer: {name}"), &samples, &[]);
            Some(samples.p50())
        }
        Err(error) => {
            table.note(format!("peer {name} left out: {error:#}"));
            None
        }
    }
}

/// Returns the median from the request for a machine to the result of its first command, and crun's.
async fn create_and_delete(
    client: &mut Client,
    bundle: &Bundle,
    samples: usize,
    table: &mut Table,
) -> Result<(f64, Option<f64>)> {
    let (mut first, mut create, mut delete) = (Vec::new(), Vec::new(), Vec::new());
    let (mut crun, mut runc) = (bundle.oci_run("crun"), bundle.oci_run("runc"));
    let (mut bwrap, mut podman) = (bundle.bwrap(), bundle.podman());
    for n in 0..samples + WARM_UP {
        let keep = n >= WARM_UP;
        // The slowest first: what it leaves running behind its back should be over.
        if n % 16 == 0 {
            podman.sample(keep);
        }
        if n % 4 == 0 {
            runc.sample(keep);
        }
        crun.sample(keep);
        bwrap.sample(keep);
        let start = Instant::now();
        let id = client.create().await?;
        let created = start.elapsed();
        client.exec(&id, "true").await?;
        let done = start.elapsed();
        let start = Instant::now();
        client.delete(&id).await?;
        if keep {
            create.push(created);
            first.push(done);
            delete.push(start.elapsed());
        }
    }
    let (first, create) = (Samples::new(first), Samples::new(create));
    let crun = peer(table, crun);
    let against = [
        ("crun run", crun, Some(0.6)),
        ("runc run", peer(table, runc), Some(0.2)),
        ("podman run", peer(table, podman), Some(0.05)),
        ("bwrap", peer(table, bwrap), None),
    ];
    table.row("create → result of true", &first, &against);
    table.row("create alone", &create, &[]);
    let against = [("create", Some(create.p50()), Some(0.5))];
    table.row("delete", &Samples::new(delete), &against);
    Ok((first.p50(), crun))
}

async fn exec(client: &mut Client, bundle: &Bundle, n: usize, table: &mut Table) -> Result<()> {
    let id = client.create().await?;
    let mut times = Vec::new();
    let live = bundle.live("crun");
    let live_runc = bundle.live("runc");
    let mut crun = live.as_ref().ok().map(Live::exec);
    let mut runc = live_runc.as_ref().ok().map(Live::exec);
    for n in 0..n + WARM_UP {
        let keep = n >= WARM_UP;
        if let Some(crun) = &mut crun {
            crun.sample(keep);
        }
        if let (Some(runc), 0) = (&mut runc, n % 4) {
            runc.sample(keep);
        }
        let start = Instant::now();
        client.exec(&id, "true").await?;
        if keep {
            times.push(start.elapsed());
        }
    }
    client.delete(&id).await?;
    let against = [
        (
            "crun exec",
            crun.and_then(|crun| peer(table, crun)),
            Some(0.35),
        ),
        (
            "runc exec",
            runc.and_then(|runc| peer(table, runc)),
            Some(0.07),
        ),
    ];
    table.row("true in a live machine", &Samples::new(times), &against);
    for (name, live) in [("crun", &live), ("runc", &live_runc)] {
        if let Err(error) = live {
            table.note(format!("peer {name} exec left out: {error:#}"));
        }
    }
    Ok(())
}

/// 100 machines asked for at once, each runs `true`.
async fn burst(server: &Server, table: &mut Table, crun: Option<f64>) -> Result<()> {
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(server.client().await?);
    }
    let start = Instant::now();
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let id = client.create().await?;
                client.exec(&id, "true").await?;
                anyhow::Ok((client, id))
            })
        })
        .collect();
    let mut made = Vec::new();
    for task in tasks {
        made.push(task.await??);
    }
    let wall = start.elapsed();
    for (mut client, id) in made {
        client.delete(&id).await?;
    }
    let goal = crun.map(|ms| ms * 100.0);
    table.row(
        "100 machines at once, wall",
        &Samples::new(vec![wall]),
        &[("100 × crun run", goal, Some(0.4))],
    );
    Ok(())
}

async fn files(client: &mut Client, bundle: &Bundle, serve: u32, table: &mut Table) -> Result<()> {
    let live = bundle.live("crun")?;
    let id = {
        let body =
            json!({ "template": "base", "vcpus": 2, "memory_mb": 4096, "timeout_ms": 3_600_000 });
        let info = client
            .call(Method::POST, "/v1/sandboxes", Some(body))
            .await?;
        info["id"].as_str().context("no id")?.to_owned()
    };
    let exec = format!("/v1/sandboxes/{id}/exec");
    let (mut write, mut read, mut peer_write, mut peer_read) = (vec![], vec![], vec![], vec![]);
    // Into the machine's memory-backed folder on both sides: disks differ more than programs do. Each sample
    // writes a new file, so that taking the old one apart is no part of it; the first round fills caches.
    for round in 0..=FILE_ROUNDS {
        let body = json!({ "command": "rm", "args": ["-f", "/dev/shm/bench"] });
        client.call(Method::POST, &exec, Some(body)).await?;
        let start = Instant::now();
        client.write_file(&id, "/dev/shm/bench", GIB).await?;
        write.push(start.elapsed());
        let start = Instant::now();
        ensure!(
            client.read_file(&id, "/dev/shm/bench").await? == GIB,
            "the file came back whole"
        );
        read.push(start.elapsed());
        live.remove()?;
        peer_write.push(live.cat(GIB, false)?);
        peer_read.push(live.cat(GIB, true)?);
        if round == 0 {
            for samples in [&mut write, &mut read, &mut peer_write, &mut peer_read] {
                samples.clear();
            }
        }
    }
    let look = json!({ "command": "cat", "args": ["/proc/1/status"] });
    let guest = client.call(Method::POST, &exec, Some(look)).await?;
    client.delete(&id).await?;
    let serve = std::fs::read_to_string(format!("/proc/{serve}/status"))?;
    let peaks = [
        peak(&serve),
        peak(guest["stdout"].as_str().unwrap_or_default()),
    ];
    for (name, ours, theirs) in [("write", write, peer_write), ("read", read, peer_read)] {
        let theirs = Samples::new(theirs);
        let goal = [("crun exec cat", Some(theirs.p50()), Some(2.0))];
        table.row(&format!("1 GiB file, {name}"), &Samples::new(ours), &goal);
    }
    let [serve, guest] = peaks;
    table.note(format!(
        "peak memory after it: serve {serve}, guest {guest}"
    ));
    Ok(())
}

/// The most memory that a process had, from its `/proc/…/status`.
fn peak(status: &str) -> &str {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .map_or("unknown", str::trim)
}

/// From the request for a run to the first line of its output at a follower.
async fn agent_run(
    server: &Server,
    table: &mut Table,
    create_p50: f64,
    samples: usize,
) -> Result<()> {
    let config = "name = \"bench-job\"\nmode = \"job\"\nentrypoint = \"echo first line\"\n";
    let job = Deployment::new(server, config, &[])?;
    let mut client = server.client().await?;
    let mut times = Vec::new();
    for _ in 0..samples {
        times.push(job.first_line(&mut client).await?);
    }
    let goal = [("create → true", Some(create_p50), Some(4.0))];
    table.row(
        "agent run → first line at a follower",
        &Samples::new(times),
        &goal,
    );
    Ok(())
}

/// 10,000 files, 100 MB.
fn deploy(server: &Server, table: &mut Table) -> Result<()> {
    let project = tempfile::tempdir()?;
    let config = "name = \"bench-tree\"\nmode = \"job\"\nentrypoint = \"true\"\n";
    std::fs::write(project.path().join("nullspace.agent.toml"), config)?;
    let cli = Cli::of(server);
    let mut ours = Vec::new();
    for round in 0..5u8 {
        for directory in 0..100 {
            let directory = project.path().join(format!("d{directory}"));
            std::fs::create_dir_all(&directory)?;
            for file in 0..100 {
                std::fs::write(
                    directory.join(format!("f{file}")),
                    vec![round.wrapping_add(file); 10_000],
                )?;
            }
        }
        let start = Instant::now();
        cli.deploy(project.path())?;
        ours.push(start.elapsed());
    }
    let mut theirs = peers::tar_and_hash(project.path());
    (0..5).for_each(|_| theirs.sample(true));
    let theirs = theirs.samples()?;
    let goal = [("tar c | sha256sum", Some(theirs.p50()), Some(3.0))];
    table.row(
        "agent deploy, 10,000 files, 100 MB",
        &Samples::new(ours),
        &goal,
    );
    Ok(())
}

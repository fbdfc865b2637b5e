//! Writing to a volume from a machine, next to the same write to the host's disk; and what a mount costs.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};

use super::{
    api::{Client, Server},
    table::{Samples, Table},
};

const ROUNDS: usize = 9;
const MOUNTS: usize = 100;
/// 256 MB in pieces of 1 MiB to a new file, to the disk; and 2,000 small files. Prints how many of either a second. The large file
/// is written twice and the second counts, so that all find as much memory at hand: see docs/benchmarks.md.
const WRITE: &str = r#"
import os, sys, time
at = sys.argv[1]
piece = os.urandom(1 << 20)
for _ in range(2):
    begun = time.monotonic()
    file = os.open(at + "/large", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _ in range(256):
        os.write(file, piece)
    os.fsync(file)
    os.close(file)
    large = time.monotonic() - begun
    os.unlink(at + "/large")
os.mkdir(at + "/small")
begun = time.monotonic()
for n in range(2000):
    file = os.open(at + f"/small/{n}", os.O_WRONLY | os.O_CREAT)
    os.write(file, b"x" * 1000)
    os.close(file)
small = time.monotonic() - begun
for n in range(2000):
    os.unlink(at + f"/small/{n}")
os.rmdir(at + "/small")
print(256 * 1.048576 / large, 2000 / small)
"#;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let made = client
        .call(Method::POST, "/v1/volumes", Some(json!({"name": "bench"})))
        .await?;
    let volume = made["id"].as_str().context("no id")?.to_owned();
    let machine = client.create().await?;
    let mounts = format!("/v1/machines/{machine}/volumes");
    let mount = json!({"ref": volume, "mount_path": "/v", "read_only": false});
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..MOUNTS {
        let begun = Instant::now();
        let mounted = client
            .call(Method::POST, &mounts, Some(mount.clone()))
            .await?;
        attach.push(begun.elapsed());
        let id = mounted["id"].as_str().context("no id")?;
        let begun = Instant::now();
        client
            .call(Method::DELETE, &format!("{mounts}/{id}"), None)
            .await?;
        detach.push(begun.elapsed());
    }
    table.row(
        "mount a volume in a live machine",
        &Samples::new(attach),
        &[],
    );
    table.row("take it out", &Samples::new(detach), &[]);
    client.call(Method::POST, &mounts, Some(mount)).await?;
    // A file system of its own.
    let limited = json!({"name": "bench-limited", "max_size_bytes": 4_u64 << 30});
    let limited = client
        .call(Method::POST, "/v1/volumes", Some(limited))
        .await?;
    ensure!(limited["quota_enforcement"] == "file_system", "{limited}");
    let limited = limited["id"].as_str().context("no id")?.to_owned();
    let mount = json!({"ref": limited, "mount_path": "/limited", "read_only": false});
    client.call(Method::POST, &mounts, Some(mount)).await?;
    // Where volumes are: the same disk.
    let beside = server.data_dir.path().join("bench-volume");
    std::fs::create_dir(&beside)?;
    let (mut inside, mut bounded, mut outside) = <(Rates, Rates, Rates)>::default();
    for round in 0..=ROUNDS {
        let (here, within, there) = (
            in_machine(&mut client, &machine, "/v").await?,
            in_machine(&mut client, &machine, "/limited").await?,
            Command::new("python3")
                .args(["-c", WRITE])
                .arg(&beside)
                .output()?,
        );
        ensure!(there.status.success(), "{there:?}");
        // The first fills caches.
        if round > 0 {
            inside.add(&here)?;
            bounded.add(&within)?;
            outside.add(&String::from_utf8_lossy(&there.stdout))?;
        }
    }
    let host = table.rate("256 MB to the host's disk, MB/s", outside.large, None);
    let goal = Some(("the host's disk", host, 0.8));
    table.rate(
        "256 MB to a volume from a machine, MB/s",
        inside.large,
        goal,
    );
    table.rate("256 MB to one with a limit, MB/s", bounded.large, goal);
    let host = table.rate(
        "small files on the host's disk, files/s",
        outside.small,
        None,
    );
    let goal = Some(("the host's disk", host, 0.8));
    table.rate(
        "small files in a volume from a machine, files/s",
        inside.small,
        goal,
    );
    table.rate(
        "small files in one with a limit, files/s",
        bounded.small,
        goal,
    );
    std::fs::remove_dir(&beside)?;
    client.delete(&machine).await?;
    for volume in [volume, limited] {
        client
            .call(Method::DELETE, &format!("/v1/volumes/{volume}"), None)
            .await?;
    }
    Ok(())
}

#[derive(Default)]
struct Rates {
    large: Vec<f64>,
    small: Vec<f64>,
}

impl Rates {
    fn add(&mut self, line: &str) -> Result<()> {
        let (large, small) = line.trim().split_once(' ').context("no rates")?;
        self.large.push(large.parse()?);
        self.small.push(small.parse()?);
        Ok(())
    }
}

async fn in_machine(client: &mut Client, machine: &str, at: &str) -> Result<String> {
    let body = json!({"command": "python3", "args": ["-c", WRITE, at], "timeout_secs": 120});
    let path = format!("/v1/machines/{machine}/exec");
    let done = client.call(Method::POST, &path, Some(body)).await?;
    ensure!(done["exit_code"] == 0, "{done}");
    match &done["stdout"] {
        Value::String(text) => Ok(text.clone()),
        other => anyhow::bail!("no output: {other}"),
    }
}

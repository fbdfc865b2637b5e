//! A large file in parts: how long it takes beside the same file in one request, and what a cut costs.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    api::{KEY, Server},
    table::{Samples, Table},
};

const MIB: usize = 1 << 20;
const SIZE: usize = 1024 * MIB;
const ROUNDS: usize = 3;
/// Parts that are there when the connections are cut.
const CUT_AFTER: usize = 40;

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let body =
        json!({ "template": "base", "vcpus": 2, "memory_mb": 4096, "timeout_ms": 3_600_000 });
    let info = (client.call(hyper::Method::POST, "/v1/machines", Some(body))).await?;
    let machine = info["id"].as_str().context("no id")?.to_owned();
    // In memory on both sides.
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let source = folder.path().join("source");
    let block: Vec<u8> = (0..MIB).map(|n| ((n * 31) >> 3) as u8).collect();
    let mut file = fs::File::create(&source)?;
    for n in 0..SIZE / MIB {
        file.write_all(&n.to_le_bytes())?;
        file.write_all(&block[8..])?;
    }
    drop(file);
    let upload = |address: &str, mode: &str| {
        let status = Command::new(&server.program)
            .args(["machine", "upload", &machine])
            .arg(&source)
            .args(["/dev/shm/target", "--resumable", mode, "--json"])
            .env("NULLSPACE_API_URL", format!("http://{address}"))
            .env("NULLSPACE_API_KEY", KEY)
            .output()?;
        let said = String::from_utf8_lossy(&status.stderr);
        ensure!(status.status.success(), "upload: {said}");
        anyhow::Ok(())
    };
    let remove = json!({ "command": "rm", "args": ["-f", "/dev/shm/target"] });
    let exec = format!("/v1/machines/{machine}/exec");
    let (mut parts, mut plain) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for (mode, samples) in [("always", &mut parts), ("never", &mut plain)] {
            (client.call(hyper::Method::POST, &exec, Some(remove.clone()))).await?;
            let start = Instant::now();
            upload(&server.address, mode)?;
            if round > 0 {
                samples.push(start.elapsed());
            }
        }
    }
    let plain = Samples::new(plain);
    table.row("1 GiB file, machine upload in one request", &plain, &[]);
    let goal = [(
        "the same in one request",
        Some(plain.p50()),
        Some(1.0 / 0.6),
    )];
    let parts = Samples::new(parts);
    table.row("1 GiB file, machine upload in parts", &parts, &goal);

    (client.call(hyper::Method::POST, &exec, Some(remove))).await?;
    let relay = Relay::start(server.address.parse()?)?;
    upload(&relay.address.to_string(), "always")?;
    relay.tell(table);
    same(&mut client, &exec, &source).await?;
    client.delete(&machine).await
}

/// Compares what has arrived.
async fn same(client: &mut super::api::Client, exec: &str, source: &Path) -> Result<()> {
    let here = Command::new("sha256sum").arg(source).output()?.stdout;
    let body = json!({ "command": "sha256sum", "args": ["/dev/shm/target"] });
    let there = client.call(hyper::Method::POST, exec, Some(body)).await?;
    let there = there["stdout"].as_str().unwrap_or_default();
    ensure!(
        here.get(..64) == there.as_bytes().get(..64),
        "what arrived is not what was sent"
    );
    Ok(())
}

/// Passes connections on to the server, looks at which parts go by, and cuts all of them once.
struct Relay {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    is_cut: bool,
    /// How often each part was answered with 200.
    acknowledged: BTreeMap<u32, usize>,
    /// Requests for parts that had been answered so.
    sent_again: usize,
    open: Vec<TcpStream>,
}

impl Relay {
    fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = seen.clone();
        // Ends with the program.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(server) else {
                    continue;
                };
                let _ = pass(client, upstream, &shared);
            }
        });
        Ok(Self { address, seen })
    }

    fn tell(&self, table: &mut Table) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (twice, parts) = (seen.sent_again, seen.acknowledged.len());
        table.check(
            twice == 0 && seen.is_cut,
            format!(
                "upload cut once after {CUT_AFTER} of {parts} parts: {twice} acknowledged parts were sent again (goal 0),"
            ),
        );
    }
}

fn pass(client: TcpStream, upstream: TcpStream, seen: &Arc<Mutex<Seen>>) -> Result<()> {
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let part = Arc::new(Mutex::new(None));
    {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.open
            .extend([client.try_clone()?, upstream.try_clone()?]);
    }
    let (from, to) = (client.try_clone()?, upstream.try_clone()?);
    let (asked, shared) = (part.clone(), seen.clone());
    thread::spawn(move || {
        copy(from, to, |bytes| {
            let Some(number) = part_of(bytes) else { return };
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
            let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.acknowledged.contains_key(&number) {
                seen.sent_again += 1;
            }
        });
    });
    let shared = seen.clone();
    thread::spawn(move || {
        copy(upstream, client, |bytes| {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            if !bytes.starts_with(b"HTTP/1.1 200") {
                return;
            }
            let Some(number) = part.take() else { return };
            let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.acknowledged.entry(number).or_default() += 1;
            if seen.acknowledged.len() == CUT_AFTER && !seen.is_cut {
                seen.is_cut = true;
                // A moment later: the answer is to arrive.
                let open = std::mem::take(&mut seen.open);
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(20));
                    for stream in open {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
    });
    Ok(())
}

/// A request's head comes in a piece of its own, or at the beginning of one.
fn part_of(bytes: &[u8]) -> Option<u32> {
    let line = bytes.get(..bytes.len().min(256))?;
    let line = std::str::from_utf8(line.split(|b| *b == b'\r').next()?).ok()?;
    let path = line.strip_prefix("PUT ")?.strip_suffix(" HTTP/1.1")?;
    path.rsplit_once("/parts/")?.1.parse().ok()
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut look: impl FnMut(&[u8])) {
    let mut piece = vec![0; 256 << 10];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        look(&piece[..n]);
        if to.write_all(&piece[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

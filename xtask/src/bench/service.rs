//! A service that moves to a new version while it is asked 200 times a second.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    agent::{Cli, Deployment},
    api::Server,
    table::{Samples, Table},
};

const PER_SECOND: u64 = 200;
/// Moves that are measured.
const MOVES: usize = 3;
/// How long requests go on before a move and after the first answer of the new version.
const CALM: Duration = Duration::from_secs(2);
/// A request that takes longer has failed; a move, too, in ten times as long.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(server: &Server, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let web = Deployment::web(server, "bench-restart")?;
    let service = web.serve(&mut client).await?;
    let load = Arc::new(Load {
        address: service.address,
        kept: Mutex::default(),
        tally: Mutex::default(),
    });
    let (mut moves, mut times, mut failures, mut all) = (vec![], vec![], vec![], 0);
    for version in 2..2 + MOVES {
        let asking = tokio::spawn(load.clone().ask());
        tokio::time::sleep(CALM).await;
        std::fs::write(web.project.path().join("version"), version.to_string())?;
        let (cli, project) = (Cli::of(server), web.project.path().to_owned());
        let start = Instant::now();
        // Not on the thread that asks.
        tokio::task::spawn_blocking(move || cli.deploy(&project)).await??;
        let restart = format!("{}/restart", service.path);
        client.call(Method::POST, &restart, Some(json!({}))).await?;
        let wanted = format!("version {version}\n");
        while load.tally().newest != wanted {
            ensure!(start.elapsed() < PATIENCE * 10, "no answer of {wanted}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        moves.push(start.elapsed());
        tokio::time::sleep(CALM).await;
        load.tally().over = true;
        asking.await?;
        let tally = std::mem::take(&mut *load.tally());
        all += tally.times.len() + tally.failures.len();
        times.extend(tally.times);
        failures.extend(tally.failures);
    }
    let what = format!("a request, {PER_SECOND}/s over {MOVES} restarts");
    table.row(&what, &Samples::new(times), &[]);
    let what = "deploy and restart → the new version answers";
    table.row(what, &Samples::new(moves), &[]);
    let first = failures.first().map_or(String::new(), |f| format!(": {f}"));
    table.check(
        failures.is_empty(),
        format!(
            "{} of {all} requests failed{first} (goal 0)",
            failures.len()
        ),
    );
    web.delete(&mut client).await
}

/// Asks as often as it should, however long the answers take.
struct Load {
    address: SocketAddr,
    /// Connections that are used again.
    kept: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// From the moment for which a request was planned; without those that take long by themselves.
    times: Vec<Duration>,
    failures: Vec<String>,
    /// The last answer but those to requests that take long.
    newest: String,
    over: bool,
}

impl Load {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(self: Arc<Self>) {
        let mut requests = JoinSet::new();
        let mut moments = tokio::time::interval(Duration::from_millis(1000 / PER_SECOND));
        for n in 0u64.. {
            let planned = moments.tick().await;
            if self.tally().over {
                break;
            }
            let load = self.clone();
            requests.spawn(async move {
                let slow = n % 20 == 0;
                let asked = tokio::time::timeout(PATIENCE, load.once(n, slow)).await;
                let took = planned.elapsed();
                let mut tally = load.tally();
                match asked {
                    Ok(Ok(_)) if slow => {}
                    Ok(Ok(text)) => {
                        tally.times.push(took);
                        tally.newest = text;
                    }
                    Ok(Err(error)) => tally.failures.push(format!("{error:#}")),
                    Err(_) => tally.failures.push("no answer".into()),
                }
            });
        }
        while requests.join_next().await.is_some() {}
    }

    /// One request: every other with a body that cannot be sent twice, half of them on a new connection, and the slow
    /// ones take half a second.
    async fn once(&self, n: u64, slow: bool) -> Result<String> {
        let mut sender = match self.kept(n % 4 < 2) {
            Some(sender) => sender,
            None => {
                let stream = tokio::net::TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let io = TokioIo::new(stream);
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await?;
        let (method, body) = match n % 2 {
            0 => (Method::GET, Bytes::new()),
            _ => (Method::POST, Bytes::from_static(b"a body")),
        };
        let request = Request::builder()
            .method(method)
            .uri(if slow { "/stream" } else { "/" })
            .header("host", self.address.to_string())
            .body(Full::new(body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8(bytes.into()).context("an answer that is no text")?;
        ensure!(status == StatusCode::OK, "{status} {text}");
        ensure!(text.contains("version "), "half an answer: {text}");
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sender);
        Ok(text)
    }

    /// A connection that was used before, if one is wanted and there.
    fn kept(&self, wanted: bool) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|sender| !sender.is_closed());
        // Not more than are ever needed.
        kept.truncate(16);
        if wanted { kept.pop() } else { None }
    }
}

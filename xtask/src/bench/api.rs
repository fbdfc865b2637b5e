//! The server under test and a small client of its public API.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, client::conn::http1::SendRequest,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) const KEY: &str = "ns_live_bench";

/// A `nullspace serve` of the release build with a data directory of its own.
pub(crate) struct Server {
    pub(crate) program: PathBuf,
    pub(crate) data_dir: tempfile::TempDir,
    pub(crate) address: String,
    child: Option<Child>,
    settings: Vec<(&'static str, &'static str)>,
}

impl Server {
    pub(crate) async fn start(program: PathBuf) -> Result<Self> {
        Self::with(program, &[]).await
    }

    /// One with settings in its environment.
    pub(crate) async fn with(
        program: PathBuf,
        settings: &[(&'static str, &'static str)],
    ) -> Result<Self> {
        let data_dir = tempfile::Builder::new()
            .prefix("nullspace-bench-")
            .tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = Self {
            program,
            data_dir,
            address: format!("127.0.0.1:{port}"),
            child: None,
            settings: settings.to_vec(),
        };
        server.spawn().await?;
        Ok(server)
    }

    /// Starts the process and waits until it says that a machine can be made; returns how long that took.
    pub(crate) async fn spawn(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let log = std::fs::File::create(self.data_dir.path().join("serve.log"))?;
        self.child = Some(
            Command::new(&self.program)
                .arg("serve")
                .args(["--listen", &self.address, "--data-dir"])
                .arg(self.data_dir.path())
                .env("NULLSPACE_BOOTSTRAP_API_KEY", KEY)
                .env("NULLSPACE_WEBHOOK_PRIVATE_RECEIVERS", "true")
                .env("NULLSPACE_ISOLATION", "native")
                .envs(self.settings.iter().copied())
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("nullspace serve")?,
        );
        // The template may have to be made once on this host: that is minutes.
        loop {
            if let Ok(mut client) = Client::connect(&self.address).await
                && client.call(Method::GET, "/healthz", None).await.is_ok()
            {
                return Ok(start.elapsed());
            }
            if let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().transpose()) {
                bail!("serve ended with {}: {}", status?, self.log());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(900),
                "serve did not get ready: {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn log(&self) -> String {
        let text =
            std::fs::read_to_string(self.data_dir.path().join("serve.log")).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Ends the process; machines stay.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) async fn stop(&mut self) {
        let _ = Command::new(&self.program)
            .args(["machine", "kill", "--all"])
            .env("NULLSPACE_API_URL", format!("http://{}", self.address))
            .env("NULLSPACE_API_KEY", KEY)
            .stdout(Stdio::null())
            .status();
        self.kill();
        // The launcher goes by itself once it has no machine and no caller.
        let socket = self.data_dir.path().join("run/launcher.sock");
        let start = Instant::now();
        while socket.exists() && start.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.address).await
    }
}

/// One kept-alive connection, as an SDK has.
pub(crate) struct Client {
    sender: SendRequest<Body>,
    address: String,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            address: address.to_owned(),
        })
    }

    /// Another connection to the same server.
    pub(crate) async fn another(&self) -> Result<Self> {
        Self::connect(&self.address).await
    }

    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value> {
        let bytes = body
            .map(|b| serde_json::to_vec(&b))
            .transpose()?
            .unwrap_or_default();
        let body = Full::new(Bytes::from(bytes))
            .map_err(|never| match never {})
            .boxed();
        let response = self.send(method, path, "application/json", body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status} {}", String::from_utf8_lossy(&bytes));
        }
        Ok(if bytes.is_empty() || status == StatusCode::NO_CONTENT {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)?
        })
    }

    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Body,
    ) -> Result<Response<Incoming>> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("authorization", format!("Bearer {KEY}"))
            .header("content-type", kind)
            .header(
                "idempotency-key",
                format!("bench-{}-{n}", std::process::id()),
            )
            .body(body)?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }

    pub(crate) async fn create(&mut self) -> Result<String> {
        let body =
            json!({ "template": "base", "vcpus": 2, "memory_mb": 512, "timeout_ms": 3_600_000 });
        let info = self.call(Method::POST, "/v1/sandboxes", Some(body)).await?;
        Ok(info["id"].as_str().context("no id")?.to_owned())
    }

    pub(crate) async fn exec(&mut self, id: &str, command: &str) -> Result<()> {
        let body = json!({ "command": command, "timeout_secs": 30, "background": false });
        let result = self
            .call(
                Method::POST,
                &format!("/v1/sandboxes/{id}/exec"),
                Some(body),
            )
            .await?;
        ensure!(result["exit_code"] == 0, "{command} answered {result}");
        Ok(())
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<()> {
        self.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), None)
            .await
            .map(drop)
    }

    /// Sends `bytes` zero bytes as a file.
    pub(crate) async fn write_file(&mut self, id: &str, path: &str, bytes: usize) -> Result<()> {
        let chunk = Bytes::from(vec![0u8; 256 << 10]);
        let chunks =
            (0..bytes / chunk.len()).map(move |_| Ok(hyper::body::Frame::data(chunk.clone())));
        let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(chunks)));
        let path = format!("/v1/sandboxes/{id}/file?path={path}");
        let response = self
            .send(Method::PUT, &path, "application/octet-stream", body)
            .await?;
        ensure!(
            response.status().is_success(),
            "write answered {}",
            response.status()
        );
        response.into_body().collect().await?;
        Ok(())
    }

    /// Reads a file and returns how many bytes came.
    pub(crate) async fn read_file(&mut self, id: &str, path: &str) -> Result<usize> {
        let empty = Full::new(Bytes::new())
            .map_err(|never| match never {})
            .boxed();
        let path = format!("/v1/sandboxes/{id}/file?path={path}");
        let response = self
            .send(Method::GET, &path, "application/json", empty)
            .await?;
        ensure!(
            response.status().is_success(),
            "read answered {}",
            response.status()
        );
        let mut body = response.into_body();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            total += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(total)
    }
}

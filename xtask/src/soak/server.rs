//! The server under test: started, killed, started again over the same data.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http::Method;
use serde_json::json;

use super::{
    api::{Api, KEY, Stop, wrong},
    host::Host,
};

/// How long a start may take; the first may have to make `base`.
const PATIENCE: Duration = Duration::from_secs(900);

pub(crate) struct Server {
    program: PathBuf,
    isolation: String,
    /// Taken away when it is to be kept.
    dir: Option<tempfile::TempDir>,
    pub(crate) data: PathBuf,
    pub(crate) address: String,
    pub(crate) host: Host,
    child: Option<Child>,
    began: Instant,
    starts: u32,
    /// How long the last one took.
    took: Duration,
}

impl Server {
    pub(crate) async fn start(program: PathBuf, isolation: &str, dir: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("nullspace-soak-")
            .tempdir_in(dir)?;
        let data = dir.path().canonicalize()?.join("data");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = Self {
            program,
            isolation: isolation.to_owned(),
            host: Host::new(&data),
            dir: Some(dir),
            data,
            address: format!("127.0.0.1:{port}"),
            child: None,
            began: Instant::now(),
            starts: 0,
            took: Duration::from_secs(1),
        };
        server.spawn()?;
        match server.until_ready().await {
            Ok(()) => Ok(server),
            Err(stop) => {
                server.keep();
                anyhow::bail!("{stop:?}")
            }
        }
    }

    fn place(&self) -> &Path {
        // `data` is in it.
        self.data.parent().unwrap_or(&self.data)
    }

    fn log(&self) -> PathBuf {
        self.place().join(format!("serve-{}.log", self.starts))
    }

    fn spawn(&mut self) -> Result<()> {
        self.starts += 1;
        let log = File::create(self.log())?;
        self.began = Instant::now();
        let child = Command::new(&self.program)
            .args(["serve", "--listen", &self.address, "--ssh-addr", "off"])
            .args(["--isolation", &self.isolation, "--data-dir"])
            .arg(&self.data)
            .env("NULLSPACE_BOOTSTRAP_API_KEY", KEY)
            .env("NULLSPACE_SPARE_MACHINES", "1")
            .env("NULLSPACE_SPARE_GVISOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("nullspace serve")?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts it, without waiting for it.
    pub(crate) fn begin(&mut self) -> Result<(), Stop> {
        self.spawn().or_else(|error| wrong(format!("{error:#}")))
    }

    pub(crate) async fn until_ready(&mut self) -> Result<(), Stop> {
        let api = Api::new(self.address.clone());
        loop {
            if matches!(api.get("/healthz").await, Ok(answer) if answer.status == 200) {
                self.took = self.began.elapsed();
                self.host.look();
                return Ok(());
            }
            let ended = self.child.as_mut().map(Child::try_wait);
            if !matches!(ended, Some(Ok(None))) || self.began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                return wrong(format!("serve does not start: {ended:?}: {log}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How long it takes to start.
    pub(crate) fn start_time(&self) -> Duration {
        self.took
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.host.look();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The same for the launcher. Its machines end with it, or are ended by the next one if they stand still.
    pub(crate) fn kill_launcher(&mut self) {
        self.host.look();
        // There is none for a moment when the one before was killed while it started.
        let launcher = self.host.launcher();
        if let Some(pid) = launcher.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Waits until it has another launcher.
    pub(crate) async fn until_makes(&mut self, api: &Api) -> Result<(), Stop> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let body = json!({"template": "base", "memory_mb": 128, "timeout_ms": 600_000});
            if let Some(made) = api.try_to(Method::POST, "/v1/machines", body).await
                && made.status == 201
            {
                self.host.look();
                let path = format!("/v1/machines/{}", made.text("id")?);
                api.ask(Method::DELETE, &path, None, None)
                    .await?
                    .expect(&[200])?;
                return Ok(());
            }
            if Instant::now() > deadline {
                return wrong("no machine can be made a minute after the launcher was killed");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether its machines' memory can be kept on the disk.
    pub(crate) async fn keeps_memory(&self, api: &Api) -> Result<bool> {
        let tried = async {
            let body = json!({"template": "base", "timeout_ms": 600_000});
            let made = api
                .ask(Method::POST, "/v1/machines", None, Some(body))
                .await?;
            let path = format!("/v1/machines/{}", made.text("id")?);
            let forked = api
                .ask(Method::POST, &format!("{path}/fork"), None, None)
                .await?;
            if forked.status == 201 {
                let other = format!("/v1/machines/{}", forked.text("id")?);
                api.ask(Method::DELETE, &other, None, None).await?;
            }
            api.ask(Method::DELETE, &path, None, None).await?;
            Ok::<_, Stop>(forked.status == 201)
        };
        tried.await.map_err(|stop| anyhow::anyhow!("{stop:?}"))
    }

    /// Ends it as one is told to, and everything of it.
    pub(crate) fn stop(&mut self) -> Result<(), Stop> {
        self.host.look();
        if let Some(child) = &mut self.child {
            let pid = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            match child.wait() {
                Ok(status) if status.success() => {}
                other => return wrong(format!("serve, told to end: {other:?}")),
            }
        }
        self.child = None;
        nullspace_engine_native::shutdown(&self.data)
            .or_else(|error| wrong(format!("ending the launcher: {error}")))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = self.host.leftovers();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return wrong(format!("left on the host: {left:#?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends everything but the files; where they are.
    pub(crate) fn keep(&mut self) -> PathBuf {
        self.kill();
        if let Err(error) = nullspace_engine_native::shutdown(&self.data) {
            println!("ending the launcher: {error}");
        }
        let place = self.place().to_owned();
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
        place
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = nullspace_engine_native::shutdown(&self.data);
    }
}

//! The server under test: started, killed, started again over the same data.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    Args,
    api::{Api, KEY, Stop, wrong},
    clock::Clock,
    disk::Disk,
    host::Host,
};

/// How long a start may take; the first may have to make `base`.
const PATIENCE: Duration = Duration::from_secs(900);

pub(crate) struct Server {
    program: PathBuf,
    isolation: String,
    /// What the data directory is on, if it is its own. It is in the directory below, and so has to go before it.
    pub(crate) disk: Option<Disk>,
    /// What the server is shown, if it is not the host's.
    pub(crate) clock: Option<Clock>,
    /// Taken away when it is to be kept.
    dir: Option<tempfile::TempDir>,
    /// Where that is.
    place: PathBuf,
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
    pub(crate) async fn start(program: PathBuf, args: &Args) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("nullspace-soak-")
            .tempdir_in(&args.dir)?;
        let place = dir.path().canonicalize()?;
        let clock = match args.clock {
            true => Clock::make(&place)?,
            false => None,
        };
        let disk = args.disk.map(|mb| Disk::make(&place, mb)).transpose()?;
        let data = disk.as_ref().map_or(&*place, Disk::root).join("data");
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut server = Self {
            program,
            isolation: args.isolation.clone(),
            host: Host::new(&data),
            disk,
            clock,
            dir: Some(dir),
            place,
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

    fn log(&self) -> PathBuf {
        self.place.join(format!("serve-{}.log", self.starts))
    }

    fn spawn(&mut self) -> Result<()> {
        self.starts += 1;
        let log = File::create(self.log())?;
        self.began = Instant::now();
        let mut command = Command::new(&self.program);
        if let Some(clock) = &self.clock {
            command.envs(clock.variables());
        }
        let child = command
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
        if let Some(pid) = launcher.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    /// The same for every process of one machine, if it can be told which these are.
    pub(crate) fn kill_machine(&self, id: &str) -> bool {
        let name = id.replacen('_', "-", 1);
        // By the name of its control groups, of which there is one in each hierarchy.
        let mut found: BTreeMap<OsString, BTreeSet<i32>> = BTreeMap::new();
        for group in self.groups() {
            let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            let members: Vec<i32> = members.lines().filter_map(|pid| pid.parse().ok()).collect();
            let is_its = members.iter().any(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/root/etc/hosts"))
                    .is_ok_and(|hosts| hosts.split_whitespace().any(|word| word == name))
            });
            if is_its && let Some(group) = group.file_name() {
                found.entry(group.to_owned()).or_default().extend(members);
            }
        }
        // One that goes on from this one's state has its name where the host looks.
        if found.len() != 1 {
            return false;
        }
        for pid in found.into_values().flatten().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        true
    }

    /// The control groups of machines, in every hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        let name = format!("nullspace-{}", self.host.instance());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let bases = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (at, kind) = (words.nth(1)?, words.next()?);
            let base = kind
                .starts_with("cgroup")
                .then(|| Path::new(at).join(&name))?;
            std::fs::read_dir(base).ok()
        });
        bases
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    }

    /// Waits until it can make machines again: with another launcher, or on a disk that has room again. What was prepared
    /// for one before is used up by that.
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
                return wrong("no machine can be made for a minute");
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
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
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
        if let Some(dir) = self.dir.take() {
            let _ = dir.keep();
        }
        if let Some(disk) = &self.disk {
            // It is unmounted when this ends.
            let image = disk.image().display();
            println!("the data directory is in {image}: mount -o loop");
        }
        self.place.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = nullspace_engine_native::shutdown(&self.data);
    }
}

//! A server of its own for a test: real machines, a temporary data directory and home, a free port.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nullspace");
pub const KEY: &str = "ns_live_system_test_0123456789abcdef";
/// How long something may take that depends on the network and the disk: the first server makes `base`.
const PATIENCE: Duration = Duration::from_secs(900);

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub struct World {
    dir: tempfile::TempDir,
    serve: Option<Child>,
    address: String,
    client: reqwest::Client,
    extra: Vec<String>,
    starts: u32,
    key: Option<&'static str>,
}

impl World {
    /// A server that can make machines.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// The same with further arguments for `serve`.
    pub async fn with(arguments: &[&str]) -> Self {
        Self::on(&std::env::temp_dir(), arguments).await
    }

    /// The same with all its files below this directory.
    pub async fn on(place: &Path, arguments: &[&str]) -> Self {
        let mut world = Self::new(place, arguments);
        world.serve().await;
        world
    }

    /// A server that was given no key.
    pub async fn without_key() -> Self {
        let mut world = Self::new(&std::env::temp_dir(), &[]);
        world.key = None;
        world.serve().await;
        world
    }

    fn new(place: &Path, arguments: &[&str]) -> Self {
        let world = Self {
            dir: tempfile::Builder::new()
                .prefix("nullspace-test-")
                .tempdir_in(place)
                .unwrap(),
            serve: None,
            address: "127.0.0.1:0".into(),
            client: reqwest::Client::new(),
            extra: arguments.iter().map(|a| (*a).to_owned()).collect(),
            starts: 0,
            key: Some(KEY),
        };
        std::fs::create_dir(world.home()).unwrap();
        world
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts the server, on the same port as before if there was one.
    pub async fn serve(&mut self) {
        self.starts += 1;
        let log = self.log(self.starts);
        let out = File::create(&log).unwrap();
        let child = self
            .program()
            .args(["serve", "--listen", &self.address, "--data-dir"])
            .arg(self.data())
            .args(&self.extra)
            .envs(self.key.map(|key| ("NULLSPACE_BOOTSTRAP_API_KEY", key)))
            .env_remove("NULLSPACE_API_KEY")
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        self.serve = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(address) = listening(&log) {
                self.address = address;
                let health = self
                    .client
                    .get(format!("{}/healthz", self.base_url()))
                    .send()
                    .await;
                if health.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    return;
                }
            }
            let ended = self.serve.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none(),
                "serve ended: {}",
                std::fs::read_to_string(&log).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "serve was not ready in time: {}",
            std::fs::read_to_string(&log).unwrap()
        );
    }

    /// The server's process.
    pub fn serve_pid(&self) -> u32 {
        self.serve.as_ref().unwrap().id()
    }

    /// What the server has said since it was last started.
    pub fn serve_log(&self) -> String {
        std::fs::read_to_string(self.log(self.starts)).unwrap()
    }

    fn log(&self, start: u32) -> PathBuf {
        self.dir.path().join(format!("serve-{start}.log"))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.serve.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// `SIGTERM`; answers with how it ended.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.serve.take().unwrap();
        run("kill", &["-TERM", &child.id().to_string()]);
        child.wait().unwrap()
    }

    /// Our program, with nothing of the user's around it.
    pub fn program(&self) -> Command {
        self.isolated(PROGRAM)
    }

    /// A program that talks to this server.
    pub fn isolated(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.home())
            .env("XDG_CONFIG_HOME", self.home().join(".config"))
            .env("NULLSPACE_API_URL", self.base_url())
            .env("NULLSPACE_API_KEY", KEY)
            .env_remove("NULLSPACE_BASE_URL")
            .current_dir(self.home())
            .stdin(Stdio::null());
        command
    }

    /// Runs our command line.
    pub fn nullspace(&self, arguments: &[&str]) -> Output {
        self.program().args(arguments).output().unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base_url()))
            .bearer_auth(KEY)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::DELETE, path)).await
    }

    /// A running machine's id.
    pub async fn machine(&self, body: Value) -> String {
        let (status, body) = self.post("/v1/machines", body).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// What a shell command in a machine gives.
    pub async fn shell(&self, id: &str, line: &str) -> Value {
        let request = json!({"command": line, "shell": true, "timeout_secs": 60});
        let (status, body) = self.post(&format!("/v1/machines/{id}/exec"), request).await;
        assert_eq!(status, StatusCode::OK, "{line}: {body}");
        body
    }

    /// The same for one that must succeed: its output.
    pub async fn out(&self, id: &str, line: &str) -> String {
        let done = self.shell(id, line).await;
        assert_eq!(done["exit_code"], 0, "{line}: {done}");
        done["stdout"].as_str().unwrap().trim_end().to_owned()
    }

    /// Waits until a machine runs commands again.
    pub async fn until_answers(&self, id: &str) {
        let request = json!({"command": "echo well", "shell": true});
        for _ in 0..1000 {
            let (_, done) = self
                .post(&format!("/v1/machines/{id}/exec"), request.clone())
                .await;
            if done["stdout"] == "well\n" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{id} does not answer");
    }

    /// Waits until a machine's record satisfies the condition.
    pub async fn until(&self, id: &str, what: impl Fn(&Value) -> bool) -> Value {
        self.until_at(&format!("/v1/machines/{id}"), what).await
    }

    /// Waits until what is at a path satisfies the condition.
    pub async fn until_at(&self, path: &str, what: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1500 {
            last = self.get(path).await.1;
            if what(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} stays {last}");
    }

    /// The launcher's process.
    pub fn launcher(&self) -> Option<i32> {
        let data = self.data().canonicalize().unwrap();
        processes()
            .into_iter()
            .find(|(_, line)| line.contains("launcher") && line.contains(data.to_str().unwrap()))
            .map(|(pid, _)| pid)
    }

    /// What of this server's machines is left on the host.
    pub fn leftovers(&self) -> Vec<String> {
        let data = self.data().canonicalize().unwrap();
        let data = data.to_str().unwrap();
        let instance = hex::encode(&Sha256::digest(data.as_bytes())[..3]);
        let mut left = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(
            mounts
                .lines()
                .filter(|l| l.contains(data))
                .map(|l| format!("mount {l}")),
        );
        left.extend(
            processes()
                .into_iter()
                .filter(|(_, line)| line.contains(data))
                .map(|(pid, line)| format!("process {pid} {line}")),
        );
        for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for path in [controller.path(), PathBuf::from("/sys/fs/cgroup")] {
                let group = path.join(format!("nullspace-{instance}"));
                if group.exists() {
                    left.push(format!("cgroup {}", group.display()));
                }
            }
        }
        let tables = run("nft", &["list", "tables"]);
        left.extend(
            tables
                .lines()
                .filter(|l| l.contains(&instance))
                .map(|l| format!("nft {l}")),
        );
        let links = std::fs::read_dir("/sys/class/net").unwrap().flatten();
        left.extend(
            links
                .map(|l| l.file_name().into_string().unwrap())
                .filter(|name| name.contains(&instance))
                .map(|name| format!("interface {name}")),
        );
        left
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 1..=self.starts {
                let log = self.log(number);
                eprintln!(
                    "--- {}\n{}",
                    log.display(),
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
        }
        self.kill();
        let ended = nullspace_engine_native::shutdown(&self.data());
        let mut left = self.leftovers();
        // The kernel takes apart what belonged to a network namespace after its last process is gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            left = self.leftovers();
        }
        if !std::thread::panicking() {
            ended.unwrap();
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// The address in a server's log, once it is there.
fn listening(log: &Path) -> Option<String> {
    BufReader::new(File::open(log).ok()?)
        .lines()
        .map_while(Result::ok)
        .find_map(|line| {
            let (_, rest) = line.split_once("listens on http://")?;
            Some(rest.split_whitespace().next()?.to_owned())
        })
}

/// Every process of the host: id and command line.
pub fn processes() -> Vec<(i32, String)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}

/// Runs a program that must succeed: its output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(
        done.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).into_owned()
}

pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, body)
}

//! A server of its own for a test: real machines, a temporary data directory and home, a free port.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::{
    host::{Host, run},
    ports::Ports,
};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nullspace");
pub const KEY: &str = "ns_live_system_test_0123456789abcdef";
/// How long something may take that depends on the network and the disk: the first server makes `base`.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long anything else may take: far more than it ever does on a busy host.
const LIMIT: Duration = Duration::from_secs(120);

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

pub struct World {
    dir: tempfile::TempDir,
    pub host: Host,
    serve: Option<Child>,
    address: String,
    client: reqwest::Client,
    extra: Vec<String>,
    /// What the server has for `/etc/resolv.conf`, if not the host's.
    resolv_conf: Option<PathBuf>,
    starts: u32,
    key: Option<&'static str>,
    _ports: Ports,
    /// Variables that the server has besides.
    surroundings: Vec<(&'static str, String)>,
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

    /// A server whose machines are native, whatever the tests are run with: for what only they do, or what is looked at
    /// from the host.
    pub async fn native() -> Self {
        Self::with(&["--isolation", "native"]).await
    }

    /// The same with all its files below this directory.
    pub async fn on(place: &Path, arguments: &[&str]) -> Self {
        let mut world = Self::new(place, arguments);
        world.serve().await;
        world
    }

    /// A server whose host has other name servers; the file that says so is made in the directory given.
    pub async fn behind(resolv_conf: impl FnOnce(&Path) -> PathBuf) -> Self {
        let mut world = Self::new(&std::env::temp_dir(), &[]);
        world.resolv_conf = Some(resolv_conf(world.dir.path()));
        world.serve().await;
        world
    }

    /// The same with these variables besides.
    pub async fn behind_in_surroundings(
        resolv_conf: impl FnOnce(&Path) -> PathBuf,
        variables: Vec<(&'static str, String)>,
    ) -> Self {
        let mut world = Self::new(&std::env::temp_dir(), &[]);
        world.resolv_conf = Some(resolv_conf(world.dir.path()));
        world.surroundings = variables;
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

    /// A server with these variables besides.
    pub async fn in_surroundings(variables: Vec<(&'static str, String)>) -> Self {
        Self::in_surroundings_with(variables, &[]).await
    }

    /// The same with further arguments for `serve`.
    pub async fn in_surroundings_with(
        variables: Vec<(&'static str, String)>,
        arguments: &[&str],
    ) -> Self {
        let mut world = Self::new(&std::env::temp_dir(), arguments);
        world.surroundings = variables;
        world.serve().await;
        world
    }

    fn new(place: &Path, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("nullspace-test-")
            .tempdir_in(place)
            .unwrap();
        let ports = Ports::take();
        let mut extra: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let given = match extra.iter().position(|argument| argument == "--config") {
            Some(at) => {
                let file = extra.drain(at..at + 2).nth(1).unwrap();
                std::fs::read_to_string(file).unwrap()
            }
            None => String::new(),
        };
        let settings = dir.path().join("settings.toml");
        std::fs::write(&settings, with_ports(&given, &ports)).unwrap();
        extra.extend(["--config".into(), settings.to_str().unwrap().to_owned()]);
        let world = Self {
            host: Host::new(&dir.path().join("data")),
            dir,
            serve: None,
            address: "127.0.0.1:0".into(),
            client: reqwest::Client::new(),
            extra,
            resolv_conf: None,
            starts: 0,
            key: Some(KEY),
            _ports: ports,
            surroundings: Vec::new(),
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
        let mut program = match &self.resolv_conf {
            None => self.program(),
            Some(file) => {
                // The program takes the place of both helpers, so its process is the child.
                let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
                let mut program = self.isolated("unshare");
                program.args(["--mount", "sh", "-c", script]);
                program.arg(file).arg(PROGRAM);
                program
            }
        };
        let child = program
            .args(["serve", "--listen", &self.address, "--data-dir"])
            .arg(self.data())
            .args(["--ssh-addr", "127.0.0.1:0"])
            .args(&self.extra)
            .envs(self.key.map(|key| ("NULLSPACE_BOOTSTRAP_API_KEY", key)))
            .env_remove("NULLSPACE_API_KEY")
            .envs(self.surroundings.iter().cloned())
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
                    self.host.look();
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
        self.host.look();
        if let Some(mut child) = self.serve.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Gives the next server another value of an argument.
    pub fn set_argument(&mut self, name: &str, value: &str) {
        match self.extra.iter().position(|argument| argument == name) {
            Some(at) => self.extra[at + 1] = value.to_owned(),
            None => self.extra.extend([name.to_owned(), value.to_owned()]),
        }
    }

    /// `SIGTERM`; answers with how it ended.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.host.look();
        run("kill", &["-TERM", &self.serve_pid().to_string()]);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(ended) = self.serve.as_mut().unwrap().try_wait().unwrap() {
                self.serve = None;
                return ended;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("serve did not end when told to");
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
            // What is not about an engine is tested with one; another can be chosen for all of it.
            .env(
                "NULLSPACE_ISOLATION",
                std::env::var("NULLSPACE_ISOLATION").unwrap_or_else(|_| "native".into()),
            )
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

    /// The connection of a request whose answer nobody has read yet: dropping it is what a caller that goes away does. (A
    /// client may keep the connection of an answer that it does not wait for any longer.)
    pub fn posted(&self, path: &str, body: &Value) -> std::net::TcpStream {
        use std::io::Write as _;
        let body = body.to_string();
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        stream
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
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let path = format!("/v1/machines/{id}/exec");
            if self.post(&path, request.clone()).await.1["stdout"] == "well\n" {
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
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            last = self.get(path).await.1;
            if what(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{path} stays {last}");
    }

    /// The ids of the machines that are alive on record.
    pub async fn listed(&self) -> BTreeSet<String> {
        let (_, page) = self.get("/v1/machines?limit=200").await;
        let items = page["items"].as_array().unwrap();
        assert_ne!(page["has_next"], true, "more than a page");
        items
            .iter()
            .map(|item| item["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until there is no machine any more, on record, in the kernel and in the data directory.
    pub async fn until_empty(&self) {
        self.until_at("/v1/machines?limit=1", |page| {
            page["items"].as_array().is_some_and(Vec::is_empty)
        })
        .await;
        assert!(self.settled().await.is_empty());
    }

    /// Waits until the record, the kernel and the data directory speak of the same machines, and nothing else is
    /// left of any other. Answers with their ids.
    pub async fn settled(&self) -> BTreeSet<String> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let listed = self.listed().await;
            let alive = self.host.machines();
            let kept: BTreeSet<String> = std::fs::read_dir(self.data().join("machines"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            let uneven = self.host.uneven();
            if listed == alive && listed == kept && uneven.is_none() {
                return listed;
            }
            assert!(
                Instant::now() < deadline,
                "on record {listed:#?}, alive {alive:#?}, on disk {kept:#?}, {uneven:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
        let mut left = self.host.leftovers();
        // The kernel takes apart what belonged to a network namespace after its last process is gone.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            left = self.host.leftovers();
        }
        if std::thread::panicking() {
            // A second panic would end the whole test program, and what other tests have on the host would stay.
            eprintln!("ended: {ended:?}, left behind: {left:#?}");
        } else {
            ended.unwrap();
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
    }
}

/// Settings in which doors have these ports.
fn with_ports(settings: &str, ports: &Ports) -> String {
    let limits = format!(
        "[limits]\ngateway_first_port = {}\ngateway_last_port = {}\n",
        ports.first, ports.last
    );
    match settings.contains("[limits]\n") {
        true => settings.replacen("[limits]\n", &limits, 1),
        false => format!("{settings}{limits}"),
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

pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, body)
}

/// The first file of this name below a directory.
pub fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .find_map(|entry| {
            let path = entry.path();
            if entry.file_name() == name {
                Some(path)
            } else {
                find(&path, name)
            }
        })
}

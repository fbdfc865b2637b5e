//! Where an attack takes place: a server of its own, in a directory of its own, and machines in it. Nothing that people have is near.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nullspace_api::id;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{inside::PORT, names::Names};
use crate::error::CliError;

/// How long the server may take to start.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end.
const END: Duration = Duration::from_secs(20);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(120);
/// The domain of its previews.
const DOMAIN: &str = "preview.attack.test";
/// Where the volume with this program is in machines, and what it is called there.
pub(super) const AT: &str = "/probe";
const PROGRAM: &str = "nullspace";
/// Bytes of that volume: this program is large where it was built with what helps to debug it.
const VOLUME: u64 = 2 << 30;
/// MiB that a machine may write.
pub(super) const DISK_MB: u64 = 256;

/// A server under attack.
pub(super) struct Place {
    directory: tempfile::TempDir,
    server: Child,
    base: String,
    key: String,
    http: reqwest::Client,
    volume: String,
    _names: Names,
}

fn failed(what: &str, error: impl std::fmt::Display) -> CliError {
    CliError::new("local_error", format!("{what}: {error}"))
}

impl Place {
    /// Starts one whose machines are of a kind.
    pub(super) async fn start(isolation: &str) -> Result<Self, CliError> {
        let directory = tempfile::Builder::new()
            .prefix("nullspace-attack-")
            .tempdir()
            .map_err(|error| failed("make a directory", error))?;
        let names = Names::start().map_err(|error| failed("start a name server", error))?;
        let resolv_conf = names.resolv_conf(directory.path());
        let resolv_conf = resolv_conf.map_err(|error| failed("write resolv.conf", error))?;
        let key = id::new("ns_live_");
        let log = directory.path().join("serve.log");
        let out = File::create(&log).map_err(|error| failed("make a log", error))?;
        let err = out
            .try_clone()
            .map_err(|error| failed("make a log", error))?;
        let program =
            std::env::current_exe().map_err(|error| failed("find this program", error))?;
        // Where it asks for names is its own matter: no other process of this host sees that mount.
        let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script])
            .arg(resolv_conf)
            .arg(program)
            .args(["serve", "--listen", "127.0.0.1:0", "--ssh-addr", "off"])
            .args(["--preview-domain", &format!("http://{DOMAIN}")])
            .args(["--isolation", isolation, "--data-dir"])
            .arg(directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"NULLSPACE_") {
                command.env_remove(name);
            }
        }
        let server = command
            .env("NULLSPACE_BOOTSTRAP_API_KEY", &key)
            .env("NULLSPACE_MAKE_BASE", "false")
            .env("HOME", directory.path())
            .spawn()
            .map_err(|error| failed("start a server", error))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(REQUEST)
            .build()
            .map_err(|error| failed("make a client", error))?;
        let mut place = Self {
            directory,
            server,
            base: String::new(),
            key,
            http,
            volume: String::new(),
            _names: names,
        };
        place.base = place.wait_until_it_listens(&log).await?;
        place.volume = place.carry_in().await?;
        Ok(place)
    }

    async fn wait_until_it_listens(&mut self, log: &Path) -> Result<String, CliError> {
        let begun = Instant::now();
        while begun.elapsed() < START {
            let lines = File::open(log).map(BufReader::new).into_iter();
            let lines = lines.flat_map(BufRead::lines).map_while(Result::ok);
            for line in lines {
                if let Some((_, rest)) = line.split_once("listens on http://") {
                    let address = rest.split_whitespace().next().unwrap_or_default();
                    return Ok(format!("http://{address}"));
                }
            }
            if let Ok(Some(status)) = self.server.try_wait() {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last = said.lines().last().unwrap_or("it said nothing");
                return Err(failed(&format!("the server ended with {status}"), last));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(failed("start a server", "it does not listen"))
    }

    /// Makes a volume with this program in it.
    async fn carry_in(&self) -> Result<String, CliError> {
        let made = self
            .post(
                "/v1/volumes",
                json!({"name": "probe", "max_size_bytes": VOLUME}),
            )
            .await?;
        let id = text(&made, "id")?;
        let program =
            std::env::current_exe().map_err(|error| failed("find this program", error))?;
        let file = tokio::fs::File::open(program)
            .await
            .map_err(|error| failed("read this program", error))?;
        let path = format!("/v1/volumes/{id}/file?path=/{PROGRAM}");
        let request = self.http.put(format!("{}{path}", self.base));
        let sent = request.bearer_auth(&self.key).body(file).send().await;
        let sent = sent.and_then(reqwest::Response::error_for_status);
        sent.map_err(|error| failed("carry this program in", error))?;
        Ok(id)
    }

    pub(super) fn volume(&self) -> &str {
        &self.volume
    }

    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Makes a machine with the program in it. `with` says more about it.
    pub(super) async fn machine(&self, with: Value) -> Result<String, CliError> {
        let mut body = json!({
            "template": "host", "memory_mb": 512, "disk_mb": DISK_MB, "timeout_ms": 1_800_000,
            "volumes": [{"ref": "probe", "mount_path": AT, "read_only": false}],
        });
        if let (Some(body), Value::Object(with)) = (body.as_object_mut(), with) {
            body.extend(with);
        }
        let made = self.post("/v1/machines", body).await?;
        let id = text(&made, "id")?;
        // The mode of files that are carried in is the server's to choose.
        self.shell(&id, &format!("chmod 755 {AT}/{PROGRAM}"), 30)
            .await?;
        Ok(id)
    }

    /// Runs the program in a machine.
    pub(super) async fn run(&self, id: &str, kind: &str, what: &str) -> Result<Value, CliError> {
        let body = json!({"command": format!("{AT}/{PROGRAM}"), "args": [super::PROBE, kind, what], "timeout_secs": 110});
        self.post(&format!("/v1/machines/{id}/exec"), body).await
    }

    /// Starts a web server in a machine that tells a secret.
    pub(super) async fn tell(&self, id: &str, secret: &str) -> Result<(), CliError> {
        let body = json!({
            "command": format!("{AT}/{PROGRAM}"), "args": [super::PROBE, "serve", secret], "background": true,
        });
        self.post(&format!("/v1/machines/{id}/exec"), body).await?;
        let path = format!("/v1/machines/{id}/ports/{PORT}/readiness");
        let body = json!({"kind": "http", "timeout_secs": 30});
        self.post(&path, body).await.map(drop)
    }

    /// Runs a line in a machine's shell, for so many seconds.
    pub(super) async fn shell(&self, id: &str, line: &str, secs: u64) -> Result<Value, CliError> {
        let body = json!({"command": line, "shell": true, "timeout_secs": secs});
        self.post(&format!("/v1/machines/{id}/exec"), body).await
    }

    pub(super) async fn delete(&self, path: &str) {
        let request = self.http.delete(format!("{}{path}", self.base));
        let _ = request.bearer_auth(&self.key).send().await;
    }

    /// A request that succeeds.
    pub(super) async fn post(&self, path: &str, body: Value) -> Result<Value, CliError> {
        match self.try_post(path, body).await? {
            (200..=299, answer) => Ok(answer),
            (status, answer) => Err(failed(&format!("{path} was answered {status}"), answer)),
        }
    }

    /// A request, and what it is answered.
    pub(super) async fn try_post(&self, path: &str, body: Value) -> Result<(u16, Value), CliError> {
        let request = self.http.post(format!("{}{path}", self.base));
        self.answer(
            request
                .header("content-type", "application/json")
                .body(body.to_string()),
        )
        .await
    }

    /// Any request, with another key than the operator's if one is given.
    pub(super) async fn ask(
        &self,
        key: Option<&str>,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<(u16, Value), CliError> {
        let request = self.http.request(method, format!("{}{path}", self.base));
        let request = request
            .header("content-type", "application/json")
            .body(body.to_string());
        self.answer_to(request, key.unwrap_or(&self.key)).await
    }

    /// Puts bytes somewhere. `digest` is that of a bundle, where they are one.
    pub(super) async fn put(
        &self,
        path: &str,
        body: Vec<u8>,
        digest: Option<&str>,
    ) -> Result<(u16, Value), CliError> {
        let mut request = self.http.put(format!("{}{path}", self.base));
        if let Some(digest) = digest {
            request = request.header("x-nullspace-bundle-digest", digest);
        }
        self.answer(request.body(body)).await
    }

    /// Bytes that are no JSON are answered as text.
    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<(u16, Value), CliError> {
        self.answer_to(request, &self.key).await
    }

    async fn answer_to(
        &self,
        request: reqwest::RequestBuilder,
        key: &str,
    ) -> Result<(u16, Value), CliError> {
        let sent = request.bearer_auth(key).send().await;
        let response = sent.map_err(|error| failed("the server does not answer", error))?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await;
        let bytes = bytes.map_err(|error| failed("the server does not answer", error))?;
        let as_text = |_| Value::String(String::from_utf8_lossy(&bytes).into_owned());
        Ok((
            status,
            serde_json::from_slice(&bytes).unwrap_or_else(as_text),
        ))
    }

    fn end(&mut self) {
        if let Some(pid) = Pid::from_raw(self.server.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.server.try_wait(), Ok(None)) {
            if begun.elapsed() > END {
                let _ = self.server.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = nullspace_engine_native::shutdown(&self.data_dir());
    }
}

/// Whatever came of the attack.
impl Drop for Place {
    fn drop(&mut self) {
        self.end();
    }
}

/// A member of an answer that is text.
pub(super) fn text(answer: &Value, member: &str) -> Result<String, CliError> {
    match answer[member].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(failed("an answer lacks a member", member)),
    }
}

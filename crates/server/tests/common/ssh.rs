//! Somebody with a key, and OpenSSH's programs.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use reqwest::StatusCode;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::World;

/// How long anything may take: far more than it ever does.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Somebody with a key.
pub struct Person {
    pub dir: tempfile::TempDir,
}

impl Person {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let person = Self { dir };
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        let made = keygen.arg(person.key()).output().await.unwrap();
        assert!(made.status.success(), "{made:?}");
        person
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub fn public_key(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("key.pub")).unwrap()
    }

    /// Asks for access to a machine and keeps what is answered.
    pub async fn ask(&self, world: &World, machine: &str, mut body: Value) -> Access<'_> {
        body["public_key"] = self.public_key().into();
        let path = format!("/v1/sandboxes/{machine}/ssh-access");
        let (status, answer) = world.post(&path, body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let access = Access {
            person: self,
            port: answer["port"].as_u64().unwrap().to_string(),
            user: text("user"),
            file: self.dir.path().join(text("access_id")),
        };
        std::fs::write(access.certificate(), text("certificate") + "\n").unwrap();
        let host = format!("[{}]:{} {}\n", text("host"), access.port, text("host_key"));
        std::fs::write(access.known_hosts(), host).unwrap();
        access
    }
}

/// What somebody has to log in to a machine.
pub struct Access<'a> {
    pub person: &'a Person,
    pub port: String,
    pub user: String,
    pub file: PathBuf,
}

impl Access<'_> {
    pub fn certificate(&self) -> PathBuf {
        self.file.with_extension("cert")
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.file.with_extension("hosts")
    }

    pub fn options(&self) -> Vec<String> {
        let option = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        [
            option("CertificateFile", self.certificate().display().to_string()),
            option(
                "UserKnownHostsFile",
                self.known_hosts().display().to_string(),
            ),
            option("StrictHostKeyChecking", "yes".into()),
            option("IdentitiesOnly", "yes".into()),
            option("BatchMode", "yes".into()),
            option("LogLevel", "ERROR".into()),
            option("Port", self.port.clone()),
        ]
        .concat()
    }

    /// One of OpenSSH's programs.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command
            .args(["-F", "none", "-i"])
            .arg(self.person.key())
            .args(self.options())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub fn destination(&self) -> String {
        format!("{}@127.0.0.1", self.user)
    }

    pub fn ssh(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("ssh");
        command.arg(self.destination()).args(arguments);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        ended(self.ssh(arguments)).await
    }
}

pub async fn ended(mut command: Command) -> Output {
    tokio::time::timeout(LIMIT, command.output())
        .await
        .unwrap()
        .unwrap()
}

/// The same with something to read.
pub async fn fed(mut command: Command, input: Vec<u8>) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = tokio::spawn(async move {
        // A program may end without reading everything.
        let _ = stdin.write_all(&input).await;
    });
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    feeding.abort();
    output
}

pub fn bytes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.unwrap();
}

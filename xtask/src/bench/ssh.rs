//! Logging in over SSH, beside OpenSSH's own server in the same machine: keys on their way to a terminal and back, and files.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    api::{KEY, Server},
    nginx,
    socket::Socket,
    stream::{self, Terminal},
    table::{Samples, Table},
};

/// OpenSSH's server, for one key, on a port of the machine's.
const SSHD: &str = "set -e; export DEBIAN_FRONTEND=noninteractive; \
    command -v sshd > /dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends openssh-server; } > /dev/null; \
    mkdir -p /run/sshd /root/.ssh; ssh-keygen -A > /dev/null; \
    /usr/sbin/sshd -p 2222 -o UsePAM=no -o UseDNS=no -o PermitRootLogin=yes -o StrictModes=no; \
    hostname -I | cut -d' ' -f1";
const SIZE: u64 = 256 << 20;
const ROUNDS: usize = 3;

pub(crate) async fn run(server: &Server, n: usize, table: &mut Table) -> Result<()> {
    let mut client = server.client().await?;
    let body =
        json!({ "template": "base", "vcpus": 2, "memory_mb": 2048, "timeout_ms": 3_600_000 });
    let info = (client.call(hyper::Method::POST, "/v1/machines", Some(body))).await?;
    let machine = info["id"].as_str().context("no id")?.to_owned();
    let home = tempfile::tempdir_in("/dev/shm")?;
    let ours = Reach::ours(server, &machine, home.path())?;
    let theirs = match Reach::theirs(server, &machine, &ours) {
        Ok(theirs) => theirs,
        Err(error) => {
            table.note(format!("peer sshd left out: {error:#}"));
            return client.delete(&machine).await;
        }
    };
    keys(&ours, &theirs, n, table)?;
    files(&ours, &theirs, home.path(), table)?;
    client.delete(&machine).await
}

fn keys(ours: &Reach, theirs: &Reach, n: usize, table: &mut Table) -> Result<()> {
    let command = "echo welcome; exec cat";
    let mut ours = Terminal::greeted(ours.ssh().args(["-tt", "there", command]), "welcome")?;
    let mut theirs = Terminal::greeted(theirs.ssh().args(["-tt", "there", command]), "welcome")?;
    let (ours, theirs) = stream::by_turns(n, |key| ours.key(key), |key| theirs.key(key))?;
    let theirs = Samples::new(theirs);
    table.row("peer: keystroke echo, sshd", &theirs, &[]);
    let goal = [("sshd in the machine", Some(theirs.p50()), Some(1.5))];
    table.row("keystroke echo, SSH", &Samples::new(ours), &goal);
    Ok(())
}

fn files(ours: &Reach, theirs: &Reach, folder: &Path, table: &mut Table) -> Result<()> {
    let source = folder.join("source");
    fs::write(
        &source,
        (0..SIZE).map(|n| ((n * 31) >> 7) as u8).collect::<Vec<_>>(),
    )?;
    let came = folder.join("came");
    let directions = [
        ("put", format!("put {} /dev/shm/file", source.display())),
        ("get", format!("get /dev/shm/file {}", came.display())),
    ];
    for (name, command) in directions {
        let (mut our, mut their) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            for (way, samples) in [(ours, &mut our), (theirs, &mut their)] {
                let _ = fs::remove_file(&came);
                if name == "put" {
                    way.run("rm -f /dev/shm/file")?;
                }
                let took = way.sftp(folder, &command)?;
                if round > 0 {
                    samples.push(took);
                }
            }
        }
        let theirs = Samples::new(their);
        table.row(&format!("peer: sftp {name}, 256 MiB"), &theirs, &[]);
        let goal = [("sshd in the machine", Some(theirs.p50()), Some(1.0 / 0.6))];
        table.row(&format!("sftp {name}, 256 MiB"), &Samples::new(our), &goal);
    }
    ensure!(
        fs::read(&came)? == fs::read(&source)?,
        "the file came back changed"
    );
    Ok(())
}

/// How OpenSSH's programs reach the machine.
struct Reach {
    options: Vec<String>,
    key: PathBuf,
    /// What lets them through.
    _way: Option<nginx::Way>,
}

impl Reach {
    fn ours(server: &Server, machine: &str, home: &Path) -> Result<Self> {
        let said = Command::new(&server.program)
            .args(["ssh", machine, "--json", "--ttl", "1h"])
            .env("HOME", home)
            .env("NULLSPACE_API_URL", format!("http://{}", server.address))
            .env("NULLSPACE_API_KEY", KEY)
            .output()?;
        ensure!(
            said.status.success(),
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
        let said: Value = serde_json::from_slice(&said.stdout)?;
        let word = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
        let key = PathBuf::from(word("identity_file"));
        let options = vec![
            format!("CertificateFile={}", word("certificate_file")),
            format!("UserKnownHostsFile={}", word("known_hosts_file")),
            format!("Hostname={}", word("host")),
            format!("Port={}", said["port"]),
        ];
        Ok(Self {
            options,
            key,
            _way: None,
        })
    }

    /// Over the machine's own address.
    fn theirs(server: &Server, machine: &str, ours: &Self) -> Result<Self> {
        let public = fs::read_to_string(ours.key.with_extension("pub"))?;
        let script = format!(
            "mkdir -p /root/.ssh; echo '{}' > /root/.ssh/authorized_keys; {SSHD}",
            public.trim()
        );
        let mut socket = Socket::open(&server.address, machine)?;
        socket.send(&json!({"type": "exec_start", "id": "s", "command": script, "args": [], "shell": true, "timeout_secs": 300}))?;
        let (mut address, mut errors) = (String::new(), String::new());
        loop {
            let message = socket.next()?;
            let data = message["data"].as_str().unwrap_or_default();
            match message["type"].as_str().unwrap_or_default() {
                "exec_stdout" => address.push_str(data),
                "exec_stderr" => errors.push_str(data),
                "exec_exit" => {
                    ensure!(message["exit_code"] == 0, "{errors}");
                    break;
                }
                _ => {}
            }
        }
        let options = vec![
            "StrictHostKeyChecking=no".into(),
            "UserKnownHostsFile=/dev/null".into(),
            format!("Hostname={}", address.trim()),
            "Port=2222".into(),
        ];
        let way = Self {
            options,
            key: ours.key.clone(),
            _way: Some(nginx::Way::open(SocketAddr::new(
                address.trim().parse()?,
                2222,
            ))?),
        };
        // The rule takes a moment.
        let begun = Instant::now();
        while let Err(error) = way.run("true") {
            ensure!(begun.elapsed() < Duration::from_secs(10), "{error:#}");
        }
        Ok(way)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]);
        command.args([
            "-o",
            "LogLevel=ERROR",
            "-o",
            "User=root",
            "-o",
            "ConnectTimeout=2",
        ]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.arg("-i").arg(&self.key);
        command
    }

    fn ssh(&self) -> Command {
        self.program("ssh")
    }

    fn run(&self, script: &str) -> Result<()> {
        let output = self.ssh().args(["there", script]).output()?;
        ensure!(
            output.status.success(),
            "{script}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn sftp(&self, folder: &Path, line: &str) -> Result<Duration> {
        let batch = folder.join("batch");
        fs::write(&batch, format!("{line}\n"))?;
        let start = Instant::now();
        let output = self
            .program("sftp")
            .arg("-b")
            .arg(&batch)
            .arg("there")
            .output()?;
        let took = start.elapsed();
        ensure!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(took)
    }
}

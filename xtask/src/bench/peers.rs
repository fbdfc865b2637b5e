//! The host's container tools, as bare processes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{stream::Terminal, table::Samples};

/// Where [`Live::cat`] puts its file.
const CAT_FILE: &str = "/dev/shm/bench";

/// Goes on in a mount namespace without the unified cgroup hierarchy, where that is mounted beside the others
/// and has controllers: `crun` refuses such hosts. Both sides are measured there.
pub(crate) fn hide_mixed_cgroups() -> Result<()> {
    const HIERARCHY: &str = "/sys/fs/cgroup/unified";
    const HIDDEN: &str = "NULLSPACE_BENCH_CGROUPS_HIDDEN";
    let controllers = std::fs::read_to_string(format!("{HIERARCHY}/cgroup.controllers"));
    if controllers.unwrap_or_default().trim().is_empty() || std::env::var_os(HIDDEN).is_some() {
        return Ok(());
    }
    use std::os::unix::process::CommandExt;
    let error = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c"])
        .arg(format!(r#"umount {HIERARCHY} && exec "$0" "$@""#))
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(HIDDEN, "1")
        .exec();
    Err(error).context("unshare")
}

/// A root file system and an OCI bundle over it.
pub(crate) struct Bundle {
    directory: tempfile::TempDir,
    rootfs: PathBuf,
}

impl Bundle {
    pub(crate) fn new(rootfs: &Path) -> Result<Self> {
        let bundle = Self {
            directory: tempfile::tempdir()?,
            rootfs: rootfs.to_owned(),
        };
        bundle.write("config.json", &["true"])?;
        Ok(bundle)
    }

    fn write(&self, name: &str, args: &[&str]) -> Result<()> {
        let spec = Command::new("crun")
            .arg("spec")
            .current_dir(self.directory.path())
            .output();
        let path = self.directory.path().join("config.json");
        if !path.exists() {
            spec.context("crun spec")?;
        }
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(args);
        // As large as a machine's, for the rows about files.
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            if mount["destination"] == "/dev/shm" {
                mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=2g"]);
            }
        }
        config["root"] = json!({ "path": self.rootfs, "readonly": true });
        std::fs::write(
            self.directory.path().join(name),
            serde_json::to_vec(&config)?,
        )?;
        Ok(())
    }

    /// `crun run` or `runc run` of `true`.
    pub(crate) fn oci_run(&self, program: &'static str) -> Peer<'_> {
        let mut n = 0;
        Peer::new(format!("{program} run true"), move || {
            n += 1;
            let mut command = Command::new(program);
            command
                .args(["run", "--bundle"])
                .arg(self.directory.path())
                .arg(format!("bench-{}-{n}", std::process::id()));
            command
        })
    }

    pub(crate) fn bwrap(&self) -> Peer<'_> {
        Peer::new("bwrap true".into(), || {
            let mut command = Command::new("bwrap");
            command
                .args(["--unshare-all", "--die-with-parent", "--ro-bind"])
                .arg(&self.rootfs)
                .arg("/");
            command.args(["--proc", "/proc", "--dev", "/dev", "true"]);
            command
        })
    }

    pub(crate) fn podman(&self) -> Peer<'_> {
        Peer::new("podman run --rm true".into(), || {
            let mut command = Command::new("podman");
            command.args([
                "run",
                "--rm",
                "--network=none",
                "--cgroups=disabled",
                // Its defaults ask for more than a host without CAP_SYS_RESOURCE may give.
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
                "--rootfs",
            ]);
            command
                .arg(format!("{}:O", self.rootfs.display()))
                .arg("true");
            command
        })
    }

    /// A container that sleeps, to run commands in.
    pub(crate) fn live(&self, program: &'static str) -> Result<Live> {
        self.write("config.json", &["sleep", "100000"])?;
        let id = format!("bench-live-{program}-{}", std::process::id());
        let status = Command::new(program)
            .args(["run", "--detach", "--bundle"])
            .arg(self.directory.path())
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "{program} run --detach: {status}");
        self.write("config.json", &["true"])?;
        Ok(Live { program, id })
    }
}

/// Ends with its value.
pub(crate) struct Live {
    program: &'static str,
    id: String,
}

impl Live {
    pub(crate) fn exec(&self) -> Peer<'_> {
        Peer::new(format!("{} exec true", self.program), || {
            let mut command = Command::new(self.program);
            command.arg("exec").arg(&self.id).arg("true");
            command
        })
    }

    /// Runs a script in the container; its output goes through a pipe.
    pub(crate) fn sh(&self, script: &str) -> Result<Duration> {
        let outside = format!(
            "{} exec {} sh -c '{script}' | cat > /dev/null",
            self.program, self.id
        );
        let start = Instant::now();
        let status = Command::new("sh").arg("-c").arg(&outside).status()?;
        ensure!(status.success(), "{outside}: {status}");
        Ok(start.elapsed())
    }

    /// `cat` in a terminal of the container.
    pub(crate) fn terminal(&self) -> Result<Terminal> {
        let mut command = Command::new(self.program);
        command.args(["exec", "--tty", &self.id, "cat"]);
        Terminal::start(&mut command)
    }

    /// Removes what [`Self::cat`] wrote.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut command = Command::new(self.program);
        let status = command
            .args(["exec", &self.id, "rm", "-f", CAT_FILE])
            .status()?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }

    /// Pipes so many zero bytes into `cat` in the container, and out of it again.
    pub(crate) fn cat(&self, bytes: usize, reading: bool) -> Result<Duration> {
        let size = bytes >> 20;
        let inside = format!("{} exec {}", self.program, self.id);
        let script = if reading {
            // Through a pipe: `cat` on its own would not move a byte to `/dev/null`.
            format!("{inside} cat {CAT_FILE} | cat > /dev/null")
        } else {
            format!("head -c {size}M /dev/zero | {inside} sh -c 'cat > {CAT_FILE}'")
        };
        let start = Instant::now();
        let status = Command::new("sh").arg("-c").arg(&script).status()?;
        ensure!(status.success(), "{script}: {status}");
        Ok(start.elapsed())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = Command::new(self.program)
            .args(["delete", "--force", &self.id])
            .status();
    }
}

/// Another program that does the same, measured one sample at a time: between ours, so that what else the
/// host does falls on both.
pub(crate) struct Peer<'a> {
    pub(crate) name: String,
    command: Box<dyn FnMut() -> Command + 'a>,
    times: Vec<Duration>,
    failure: Option<anyhow::Error>,
}

impl<'a> Peer<'a> {
    fn new(name: String, command: impl FnMut() -> Command + 'a) -> Self {
        Self {
            name,
            command: Box::new(command),
            times: Vec::new(),
            failure: None,
        }
    }

    /// Takes a sample, unless the peer failed before. `keep` is false for those that fill caches.
    pub(crate) fn sample(&mut self, keep: bool) {
        if self.failure.is_some() {
            return;
        }
        match run(&mut (self.command)()) {
            Ok(took) if keep => self.times.push(took),
            Ok(_) => {}
            Err(error) => self.failure = Some(error),
        }
    }

    pub(crate) fn samples(self) -> Result<Samples> {
        match self.failure {
            None => Ok(Samples::new(self.times)),
            Some(error) => Err(error),
        }
    }
}

fn run(command: &mut Command) -> Result<Duration> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output()?;
    let took = start.elapsed();
    ensure!(
        output.status.success(),
        "{:?} {}: {}",
        command.get_program(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(took)
}

/// The same tree through `tar c | sha256sum`.
pub(crate) fn tar_and_hash(tree: &Path) -> Peer<'_> {
    Peer::new("tar c | sha256sum".into(), move || {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("tar c . | sha256sum")
            .current_dir(tree);
        command
    })
}

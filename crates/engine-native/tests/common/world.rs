//! A data directory with a launcher of its own, for tests as root.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of this"
)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nullspace_engine_native::Config;
use sha2::{Digest, Sha256};

/// Leaves nothing behind, also when a check fails.
pub struct World {
    directory: tempfile::TempDir,
    pub layer: PathBuf,
}

impl World {
    /// `None`, and a line that says so, without root.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: making machines needs root");
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let layer = directory.path().join("layer");
        std::fs::create_dir(&layer).expect("a layer");
        make_layer(&layer);
        Some(Self { directory, layer })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What an engine of this directory is started with.
    pub fn config(&self, launcher: &str) -> Config {
        Config {
            data_dir: self.path().to_owned(),
            launcher: vec![launcher.to_owned()],
            resolver: Vec::new(),
            ca_bundle: Some(PathBuf::from("/etc/ssl/certs/ca-certificates.crt"))
                .filter(|p| p.exists()),
            spare: 2,
            gvisor: None,
        }
    }

    /// The launcher of this directory, if one lives.
    pub fn launcher(&self) -> Option<rustix::process::Pid> {
        let entries = std::fs::read_dir("/proc").expect("/proc");
        entries.flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            // Machines are forked from it and show its command line.
            let is_it = name.starts_with("nullspace launc")
                && line.trim_end_matches('\0').ends_with(&self.instance());
            is_it.then(|| rustix::process::Pid::from_raw(pid)).flatten()
        })
    }

    /// Kills the launcher and waits until it and its machines are gone.
    pub fn kill_launcher(&self) {
        let pid = self.launcher().expect("a launcher lives");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        eventually("the launcher and its machines are gone", || {
            self.launcher().is_none() && self.processes().is_empty()
        });
    }

    fn groups(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
        mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (at, kind) = (fields.next()?, fields.next()?);
                kind.starts_with("cgroup").then_some(at)
            })
            .map(|at| Path::new(at).join(format!("nullspace-{}", self.instance())))
            .filter(|group| group.exists())
            .collect()
    }

    /// Those of machines, spare ones among them.
    pub fn processes(&self) -> BTreeSet<String> {
        let groups = self.groups().into_iter();
        groups
            .flat_map(|group| std::fs::read_dir(group).into_iter().flatten().flatten())
            .filter_map(|m| std::fs::read_to_string(m.path().join("cgroup.procs")).ok())
            .flat_map(|m| m.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    /// The network namespace of some machine. It and its link stay while this is open.
    pub fn a_network(&self) -> std::fs::File {
        let processes = self.processes();
        let pid = processes.first().expect("a machine lives");
        std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("its network")
    }

    /// What tells this directory's things on the host from others'.
    fn instance(&self) -> String {
        let path = std::fs::canonicalize(self.path()).expect("a path");
        hex::encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..3])
    }

    /// The address that machines see the host at, while there is a launcher or its remains.
    pub fn gateway(&self) -> Option<String> {
        std::fs::read_to_string(self.path().join("run/gateway")).ok()
    }

    /// Everything of this directory's launcher and machines that is on the host.
    pub fn remains(&self, gateway: &str) -> Vec<String> {
        let instance = self.instance();
        let mut found: Vec<String> = self
            .groups()
            .iter()
            .map(|group| group.display().to_string())
            .collect();
        let output = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            String::from_utf8_lossy(&output.expect(program).stdout).into_owned()
        };
        let mut look = |what: &str, text: String, wanted: &str| {
            let lines = text.lines().filter(|line| line.contains(wanted));
            found.extend(lines.map(|line| format!("{what}: {line}")));
        };
        look(
            "packet filter",
            output("nft", &["list", "tables"]),
            &instance,
        );
        look(
            "address",
            std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default(),
            &format!("-- {gateway}"),
        );
        look(
            "interface",
            std::fs::read_to_string("/proc/net/dev").unwrap_or_default(),
            &format!("nv{instance}"),
        );
        let path = self.path().display().to_string();
        look(
            "mount",
            std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            &path,
        );
        for entry in std::fs::read_dir(self.path().join("machines"))
            .into_iter()
            .flatten()
            .flatten()
        {
            found.push(entry.path().display().to_string());
        }
        found.extend(self.launcher().map(|pid| format!("launcher {pid:?}")));
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = nullspace_engine_native::shutdown(self.path());
    }
}

/// Waits for what must come.
pub fn eventually(what: &str, check: impl Fn() -> bool) {
    let start = Instant::now();
    while !check() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A small root file system: the host's shell tools, copied with the libraries they need.
fn make_layer(at: &Path) {
    let script = r#"
        set -e
        mkdir -p etc tmp root workspace proc sys dev mnt usr/bin usr/lib usr/lib64 usr/sbin
        ln -s usr/bin bin; ln -s usr/lib lib; ln -s usr/lib64 lib64; ln -s usr/sbin sbin
        chmod 1777 tmp
        echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd; echo 'root:x:0:' > etc/group
        echo 'hosts: files dns' > etc/nsswitch.conf
        for tool in sh cat head ln mv stat tr sleep hostname id ls grep date mount mknod touch test mkdir rm echo kill perl getent readlink; do
            path=$(command -v $tool) || continue
            case $path in /*) ;; *) path=/bin/$tool ;; esac
            [ -e $path ] || continue
            cp -L $path usr/bin/$tool
            ldd $path 2>/dev/null | grep -o '/[^ ]*' | while read library; do
                mkdir -p .$(dirname $library); cp -nL $library .$library
            done
        done
    "#;
    let made = Command::new("/bin/sh")
        .arg("-c")
        .arg(script)
        .current_dir(at)
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "the test layer is made"
    );
}

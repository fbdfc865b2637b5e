//! What one data directory's launcher and machines are on the host: read from the kernel, not from the server.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest, Sha256};

/// The host's view of one data directory.
pub struct Host {
    data: PathBuf,
    instance: String,
    /// Gateway addresses its launchers have had. The note of one goes when it ends, and the address must too.
    gateways: BTreeSet<String>,
}

impl Host {
    /// `data` need not be there yet; the directory it is in must be.
    pub fn new(data: &Path) -> Self {
        let parent = data.parent().unwrap().canonicalize().unwrap();
        let data = parent.join(data.file_name().unwrap());
        let instance = hex::encode(&Sha256::digest(data.to_str().unwrap())[..3]);
        Self {
            data,
            instance,
            gateways: BTreeSet::new(),
        }
    }

    /// What tells this data directory's things on the host from others'.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Ends the process that answers the machines' name queries.
    pub fn kill_resolver(&self) {
        let wanted = format!(" resolver {}:53", self.gateway());
        let (pid, _) = processes()
            .into_iter()
            .find(|(_, line)| line.trim_end().ends_with(&wanted))
            .unwrap();
        run("kill", &["-9", &pid.to_string()]);
    }

    /// Notes what can no longer be found out once the launcher is gone.
    pub fn look(&mut self) {
        self.gateways
            .extend(fs::read_to_string(self.data.join("run/gateway")));
    }

    /// The address that machines have as their router and name server.
    pub fn gateway(&self) -> String {
        fs::read_to_string(self.data.join("run/gateway")).unwrap()
    }

    /// The launcher's process. Its helpers, spare machines and guests have its command line too: it is the one
    /// that none of them is the parent of.
    pub fn launcher(&self) -> Option<i32> {
        let name = format!(" launcher {}", self.instance);
        let family: Vec<i32> = processes()
            .into_iter()
            .filter(|(_, line)| line.trim_end().ends_with(&name))
            .map(|(pid, _)| pid)
            .collect();
        family
            .iter()
            .copied()
            .find(|pid| parent(*pid).is_some_and(|parent| !family.contains(&parent)))
    }

    /// A server, its launcher and all that they started, machines' processes among them.
    pub fn started_by(&self, serve: u32) -> BTreeSet<i32> {
        let mut found: BTreeSet<i32> = self.launcher().into_iter().collect();
        found.extend(i32::try_from(serve).ok());
        let parents: Vec<(i32, i32)> = processes()
            .into_iter()
            .filter_map(|(pid, _)| Some((pid, parent(pid)?)))
            .collect();
        loop {
            let before = found.len();
            let children = parents.iter().filter(|(_, parent)| found.contains(parent));
            found.extend(children.map(|(pid, _)| *pid).collect::<Vec<_>>());
            if found.len() == before {
                return found;
            }
        }
    }

    /// The machines that have a living process, by id.
    pub fn machines(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for group in self.groups() {
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in members.lines() {
                // A spare one has no root of its own yet, and so the host's names.
                let hosts =
                    fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap_or_default();
                found.extend(
                    hosts
                        .split_whitespace()
                        .filter(|name| name.starts_with("mch-"))
                        .map(|name| name.replacen('-', "_", 1)),
                );
            }
        }
        found
    }

    /// How many machines have a living process, whatever they are called: one that goes on from the state of another still
    /// has that one's files where the host looks.
    #[allow(dead_code, reason = "the soak in `xtask` asks it")]
    pub fn machine_count(&self) -> usize {
        let alive = self.groups().into_iter().filter(|group| {
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            members.lines().any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/root/etc/hosts"))
                    .is_ok_and(|hosts| hosts.contains("mch-"))
            })
        });
        let names: BTreeSet<_> = alive
            .filter_map(|group| Some(group.file_name()?.to_owned()))
            .collect();
        names.len()
    }

    /// The control group of a machine with this controller.
    pub fn group(&self, controller: &str, id: &str) -> PathBuf {
        self.groups()
            .into_iter()
            .filter(|group| {
                // One hierarchy per controller, or one for all.
                let path = group.to_str().unwrap();
                path.contains(&format!("/{controller}/"))
                    || group.join("cgroup.controllers").exists()
            })
            .find(|group| {
                let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                members.lines().next().is_some_and(|pid| {
                    fs::read_to_string(format!("/proc/{pid}/root/etc/hosts"))
                        .is_ok_and(|hosts| hosts.contains(&id.replace('_', "-")))
                })
            })
            .unwrap_or_else(|| panic!("no {controller} group of {id}"))
    }

    /// What would have to be as many as there are machines, spare ones among them, and is not.
    pub fn uneven(&self) -> Option<String> {
        let groups: BTreeSet<_> = self
            .groups()
            .iter()
            .map(|group| group.file_name().unwrap().to_owned())
            .collect();
        let links = self.links();
        (groups.len() != links.len()).then(|| format!("groups {groups:?}, links {links:?}"))
    }

    fn bases(&self) -> Vec<PathBuf> {
        fs::read_to_string("/proc/mounts")
            .unwrap()
            .lines()
            .filter_map(|line| {
                let mut words = line.split(' ');
                let (at, kind) = (words.nth(1)?, words.next()?);
                kind.starts_with("cgroup")
                    .then(|| Path::new(at).join(format!("nullspace-{}", self.instance)))
            })
            .filter(|base| base.exists())
            .collect()
    }

    /// The control groups of machines, in every hierarchy.
    fn groups(&self) -> Vec<PathBuf> {
        self.bases()
            .iter()
            .filter_map(|base| fs::read_dir(base).ok())
            .flat_map(|entries| entries.flatten())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    }

    fn links(&self) -> Vec<String> {
        fs::read_dir("/sys/class/net")
            .unwrap()
            .flatten()
            .map(|link| link.file_name().into_string().unwrap())
            .filter(|name| name.contains(&self.instance))
            .collect()
    }

    /// Everything of this data directory that is on the host now.
    pub fn leftovers(&self) -> Vec<String> {
        let data = self.data.to_str().unwrap();
        let mut left = Vec::new();
        let mut add =
            |kind: &str, what: &dyn std::fmt::Display| left.push(format!("{kind} {what}"));
        for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            // The file system that the whole data directory may be on is the test's own.
            if line
                .split(' ')
                .nth(1)
                .is_some_and(|at| at.starts_with(data))
            {
                add("mount", &line);
            }
        }
        for device in fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            if backing.is_ok_and(|path| path.starts_with(data)) {
                add("device", &device.path().display());
            }
        }
        let group = format!("/nullspace-{}/", self.instance);
        for (pid, line) in processes() {
            // Programs in a machine do not name the directory, but cannot leave its groups.
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            if line.contains(data) || groups.contains(&group) {
                add("process", &format!("{pid} {line}"));
            }
        }
        for base in self.bases() {
            add("cgroup", &base.display());
        }
        for line in run("nft", &["list", "tables"]).lines() {
            if line.contains(&self.instance) {
                add("nft", &line);
            }
        }
        for link in self.links() {
            add("interface", &link);
        }
        let addresses = run("ip", &["-4", "-o", "address", "show"]);
        for line in addresses.lines() {
            let address = line.split_whitespace().nth(3).unwrap_or_default();
            let address = address.split('/').next().unwrap_or_default();
            if self.gateways.contains(address) {
                add("address", &line);
            }
        }
        left
    }
}

/// Every process of the host: id and command line.
pub fn processes() -> Vec<(i32, String)> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
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

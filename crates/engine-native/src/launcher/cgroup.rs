//! Limits: a cgroup per machine, on cgroup v2, v1, or a mix of both.
//!
//! Each controller that is needed lives in exactly one hierarchy of a host. The hierarchies are looked up
//! once; a machine then has one group in each of them, `nullspace-<instance>/<name>`.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{freezer, wire::Counter};

/// The controllers that a machine's limits need.
const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
/// Counts processor time on v1, where it may be apart from `cpu`. A host without it has machines that are not measured.
const ACCOUNTING: &str = "cpuacct";
/// Stops processes where they stand. Every group of v2 can; on a host without it machines cannot be paused.
const FREEZER: &str = "freezer";
/// Length of the period in which CPU time is shared out, in microseconds.
const PERIOD_US: u64 = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// `…/nullspace-<instance>`.
    base: PathBuf,
    controllers: Vec<&'static str>,
}

/// Where this launcher makes its groups.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

/// One machine's groups.
#[derive(Debug)]
pub(super) struct Group {
    /// In the order of the hierarchies.
    paths: Vec<PathBuf>,
    hierarchies: Vec<Hierarchy>,
}

/// Finds for each needed controller the mount point that has it. `mounts` is `/proc/mounts`;
/// `v2_controllers` reads `cgroup.controllers` of a v2 mount.
fn locate(
    mounts: &str,
    v2_controllers: impl Fn(&Path) -> String,
) -> io::Result<Vec<(Version, PathBuf, Vec<&'static str>)>> {
    let mut found: BTreeMap<PathBuf, (Version, Vec<&'static str>)> = BTreeMap::new();
    let place = |needed: &str| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (path, kind, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
            let path = PathBuf::from(path);
            match kind {
                "cgroup" if options.split(',').any(|o| o == needed) => Some((path, Version::V1)),
                "cgroup2"
                    if v2_controllers(&path)
                        .split_whitespace()
                        .any(|c| c == needed) =>
                {
                    Some((path, Version::V2))
                }
                _ => None,
            }
        })
    };
    for needed in NEEDED {
        let (path, version) = place(needed).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("no mounted cgroup hierarchy has the {needed} controller"),
            )
        })?;
        found
            .entry(path)
            .or_insert((version, Vec::new()))
            .1
            .push(needed);
        if needed == "cpu"
            && version == Version::V1
            && let Some((path, Version::V1)) = place(ACCOUNTING)
        {
            let (_, controllers) = found.entry(path).or_insert((version, Vec::new()));
            controllers.push(ACCOUNTING);
        }
    }
    if found.values().all(|(version, _)| *version == Version::V1)
        && let Some((path, version)) = place(FREEZER)
    {
        let (_, controllers) = found.entry(path).or_insert((version, Vec::new()));
        controllers.push(FREEZER);
    }
    Ok(found
        .into_iter()
        .map(|(path, (version, controllers))| (version, path, controllers))
        .collect())
}

impl Cgroups {
    /// Looks the hierarchies up, removes what a launcher of the same instance left behind, and makes the
    /// base groups.
    pub(super) fn open(instance: &str) -> io::Result<Self> {
        Self::open_in(&fs::read_to_string("/proc/mounts")?, instance)
    }

    fn open_in(mounts: &str, instance: &str) -> io::Result<Self> {
        let mut hierarchies = Vec::new();
        let found = locate(mounts, v2_controllers)?;
        let_end(&found, instance);
        for (version, root, controllers) in found {
            let base = base(&root, instance);
            if version == Version::V2 {
                enable(&root, &controllers)?;
            }
            remove_tree(&base);
            fs::create_dir_all(&base)?;
            if version == Version::V2 {
                enable(&base, &controllers)?;
            }
            hierarchies.push(Hierarchy {
                version,
                base,
                controllers,
            });
        }
        Ok(Self { hierarchies })
    }

    /// Removes what a killed launcher of the instance left.
    pub(super) fn clear(instance: &str) -> io::Result<()> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let found = locate(&mounts, v2_controllers)?;
        let_end(&found, instance);
        for (_, root, _) in found {
            remove_tree(&base(&root, instance));
        }
        Ok(())
    }

    /// A machine's groups, not made yet.
    pub(super) fn group(&self, name: &str) -> Group {
        Group {
            paths: self.hierarchies.iter().map(|h| h.base.join(name)).collect(),
            hierarchies: self.hierarchies.clone(),
        }
    }

    /// Removes the base groups; they must be empty.
    pub(super) fn close(&self) {
        for hierarchy in &self.hierarchies {
            remove_tree(&hierarchy.base);
        }
    }
}

fn base(root: &Path, instance: &str) -> PathBuf {
    root.join(format!("nullspace-{instance}"))
}

fn v2_controllers(root: &Path) -> String {
    fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
}

fn enable(group: &Path, controllers: &[&str]) -> io::Result<()> {
    let file = group.join("cgroup.subtree_control");
    let have = fs::read_to_string(&file).unwrap_or_default();
    let missing: Vec<String> = controllers
        .iter()
        .filter(|c| !have.split_whitespace().any(|h| h == **c))
        .map(|c| format!("+{c}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" ");
    // `EBUSY`: where the launcher itself is in a container, that container's top group has processes in it.
    fs::write(&file, &missing)
        .map_err(|e| io::Error::new(e.kind(), format!("{missing} in {}: {e}", file.display())))
}

fn lift_cpu_limit(group: &Counter) {
    let (file, none) = match group {
        Counter::V1(path) => (path.join("cpu.cfs_quota_us"), "-1"),
        Counter::V2(path) => (path.join("cpu.max"), "max"),
    };
    // It may be gone, or the host may not have limits.
    if let Ok(mut file) = fs::OpenOptions::new().write(true).truncate(true).open(file) {
        let _ = std::io::Write::write_all(&mut file, none.as_bytes());
    }
}

/// Lets go what stands still, on v1, and what waits for a processor: it does not end before, however it is killed, and its groups could
/// not be removed. The launcher's death has killed it already.
fn let_end(hierarchies: &[(Version, PathBuf, Vec<&'static str>)], instance: &str) {
    for (version, root, controllers) in hierarchies {
        let machines = fs::read_dir(base(root, instance));
        for group in machines.into_iter().flatten().flatten() {
            let group = match version {
                Version::V1 => Counter::V1(group.path()),
                Version::V2 => Counter::V2(group.path()),
            };
            if *version == Version::V1 && controllers.contains(&FREEZER) {
                let _ = freezer::write(&group, false);
            }
            if controllers.contains(&"cpu") {
                lift_cpu_limit(&group);
            }
        }
    }
}

/// Removes a group and those below it, killing what is in them.
fn remove_tree(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
    {
        remove_tree(&entry.path());
    }
    for _ in 0..50 {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in members
            .lines()
            .filter_map(|l| l.parse().ok())
            .filter_map(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        match fs::remove_dir(group) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            // Killed processes take a moment to leave.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

impl Group {
    /// Makes the groups, without limits, and moves the calling process into them; it has one thread.
    ///
    /// Moving a whole process makes the kernel wait for a grace period, for tens of milliseconds: the
    /// launcher must not be the one who waits. A thread that moves itself does not wait at all, but only v1
    /// lets threads go where they like.
    pub(super) fn enter(&self) -> io::Result<()> {
        for (hierarchy, path) in self.hierarchies.iter().zip(&self.paths) {
            fs::create_dir(path)?;
            let members = match hierarchy.version {
                Version::V1 => "tasks",
                Version::V2 => "cgroup.procs",
            };
            fs::write(path.join(members), "0")?;
        }
        Ok(())
    }

    /// Where the groups are, in the order in which they are removed.
    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Sets the limits.
    pub(super) fn limit(
        &self,
        memory_bytes: u64,
        cpu_millis: u32,
        pids_max: u32,
    ) -> io::Result<()> {
        let quota = u64::from(cpu_millis) * PERIOD_US / 1000;
        for (hierarchy, path) in self.hierarchies.iter().zip(&self.paths) {
            for controller in &hierarchy.controllers {
                match (*controller, hierarchy.version) {
                    ("memory", Version::V1) => {
                        fs::write(path.join("memory.limit_in_bytes"), memory_bytes.to_string())?;
                    }
                    ("memory", Version::V2) => {
                        fs::write(path.join("memory.max"), memory_bytes.to_string())?;
                        // Absent where the kernel has no swap accounting.
                        let _ = fs::write(path.join("memory.swap.max"), "0");
                    }
                    ("cpu", Version::V1) => {
                        fs::write(path.join("cpu.cfs_quota_us"), quota.to_string())?;
                    }
                    ("cpu", Version::V2) => {
                        fs::write(path.join("cpu.max"), format!("{quota} {PERIOD_US}"))?;
                    }
                    ("pids", _) => fs::write(path.join("pids.max"), pids_max.to_string())?,
                    // It only counts.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Takes the limit of processors away, of a machine that is ending. A group that is full of processes was seen to be given no processor
    /// at all any more at its limit (Linux 6.18), those that were killed included.
    pub(super) fn lift_cpu_limit(&self) {
        if let Some(group) = self.counter("cpu") {
            lift_cpu_limit(&group);
        }
    }

    /// The group with this controller.
    pub(super) fn counter(&self, controller: &str) -> Option<Counter> {
        let (hierarchy, path) = self
            .hierarchies
            .iter()
            .zip(&self.paths)
            .find(|(hierarchy, _)| hierarchy.controllers.contains(&controller))?;
        Some(match hierarchy.version {
            Version::V1 => Counter::V1(path.clone()),
            Version::V2 => Counter::V2(path.clone()),
        })
    }

    /// The group that counts processor time.
    pub(super) fn cpu_counter(&self) -> Option<Counter> {
        match self.counter("cpu") {
            Some(Counter::V1(_)) | None => self.counter(ACCOUNTING),
            counter => counter,
        }
    }

    /// The group that stops processes where they stand.
    pub(super) fn freezer(&self) -> Option<Counter> {
        let mut groups = self.hierarchies.iter().zip(&self.paths);
        let v2 = groups.find(|(hierarchy, _)| hierarchy.version == Version::V2);
        match v2 {
            Some((_, path)) => Some(Counter::V2(path.clone())),
            None => self.counter(FREEZER),
        }
    }

    /// Whether the kernel killed a process of the machine for memory.
    pub(super) fn out_of_memory(&self) -> bool {
        self.hierarchies
            .iter()
            .zip(&self.paths)
            .any(|(hierarchy, path)| {
                let file = match hierarchy.version {
                    Version::V1 => "memory.oom_control",
                    Version::V2 => "memory.events",
                };
                fs::read_to_string(path.join(file)).is_ok_and(|text| {
                    text.lines().any(|line| {
                        line.strip_prefix("oom_kill ")
                            .is_some_and(|n| n.trim() != "0")
                    })
                })
            })
    }
}

/// Removes groups; `false` while a process is still in one of them.
pub(super) fn remove(paths: &[PathBuf]) -> bool {
    paths.iter().all(|path| match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn places(mounts: &str, v2: &'static str) -> Vec<(Version, String, Vec<&'static str>)> {
        locate(mounts, |_| v2.to_owned())
            .unwrap()
            .into_iter()
            .map(|(v, p, c)| (v, p.display().to_string(), c))
            .collect()
    }

    #[test]
    fn every_layout_is_understood() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(
            places(v2, "cpuset cpu io memory pids"),
            [(
                Version::V2,
                "/sys/fs/cgroup".into(),
                vec!["memory", "cpu", "pids"]
            )]
        );
        let v1 = "cgroup /cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup /cg/memory cgroup rw,memory 0 0\n\
                  cgroup /cg/pids cgroup rw,pids 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\n";
        assert_eq!(
            places(v1, ""),
            [
                (
                    Version::V1,
                    "/cg/cpu,cpuacct".into(),
                    vec!["cpu", "cpuacct"]
                ),
                (Version::V1, "/cg/memory".into(), vec!["memory"]),
                (Version::V1, "/cg/pids".into(), vec!["pids"]),
            ]
        );
        let mixed = "cgroup /cg/cpu cgroup rw,cpu 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\n";
        assert_eq!(
            places(mixed, "memory pids"),
            [
                (Version::V1, "/cg/cpu".into(), vec!["cpu"]),
                (Version::V2, "/cg/unified".into(), vec!["memory", "pids"]),
            ]
        );
        // Processor time is counted apart from where it is limited.
        let apart = format!("cgroup /cg/cpuacct cgroup rw,cpuacct 0 0\n{mixed}");
        assert_eq!(
            places(&apart, "memory pids")[..2],
            [
                (Version::V1, "/cg/cpu".into(), vec!["cpu"]),
                (Version::V1, "/cg/cpuacct".into(), vec!["cpuacct"]),
            ]
        );
        assert!(locate("proc /proc proc rw 0 0\n", |_| String::new()).is_err());
    }

    #[test]
    fn what_counts_is_found() {
        let host = tempfile::tempdir().unwrap();
        let mut mounts = String::new();
        for controller in ["cpu", "cpuacct", "memory", "pids"] {
            let at = host.path().join(controller);
            fs::create_dir(&at).unwrap();
            mounts += &format!("cgroup {} cgroup rw,{controller} 0 0\n", at.display());
        }
        let group = Cgroups::open_in(&mounts, "abc").unwrap().group("m1");
        group.enter().unwrap();
        group.limit(1 << 30, 500, 64).unwrap();
        let at = |controller: &str| host.path().join(controller).join("nullspace-abc/m1");
        assert_eq!(group.cpu_counter(), Some(Counter::V1(at("cpuacct"))));
        assert_eq!(group.counter("memory"), Some(Counter::V1(at("memory"))));
        assert_eq!(group.freezer(), None, "a host without the controller");
        assert!(!at("cpuacct").join("pids.max").exists());
        let freezer = host.path().join("freezer");
        fs::create_dir(&freezer).unwrap();
        mounts += &format!("cgroup {} cgroup rw,freezer 0 0\n", freezer.display());
        let group = Cgroups::open_in(&mounts, "abd").unwrap().group("m1");
        let freezer = freezer.join("nullspace-abd/m1");
        assert_eq!(group.freezer(), Some(Counter::V1(freezer)));
    }

    /// The files of a group, as the kernel would show what was written last.
    fn file(path: &Path, name: &str) -> String {
        fs::read_to_string(path.join(name)).unwrap_or_else(|e| format!("{name}: {e}"))
    }

    #[test]
    fn a_v2_host_gets_one_group_with_all_limits() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path();
        fs::write(root.join("cgroup.controllers"), "cpuset cpu io memory pids").unwrap();
        fs::write(root.join("cgroup.subtree_control"), "cpu").unwrap();
        // What a launcher that was killed left.
        fs::create_dir_all(root.join("nullspace-abc/m1")).unwrap();
        let mounts = format!("cgroup2 {} cgroup2 rw 0 0\n", root.display());
        let groups = Cgroups::open_in(&mounts, "abc").unwrap();
        let base = root.join("nullspace-abc");
        assert_eq!(file(root, "cgroup.subtree_control"), "+memory +pids");
        assert_eq!(file(&base, "cgroup.subtree_control"), "+memory +cpu +pids");
        assert!(!base.join("m1").exists(), "the old group is gone");

        let group = groups.group("m2");
        let at = base.join("m2");
        group.enter().unwrap();
        group.limit(1 << 30, 1500, 64).unwrap();
        for (name, value) in [
            ("cgroup.procs", "0"),
            ("memory.max", "1073741824"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "64"),
        ] {
            assert_eq!(file(&at, name), value, "{name}");
        }
        group.lift_cpu_limit();
        assert_eq!(file(&at, "cpu.max"), "max");
        assert_eq!(group.cpu_counter(), Some(Counter::V2(at.clone())));
        assert_eq!(group.counter("memory"), Some(Counter::V2(at.clone())));
        assert_eq!(group.freezer(), Some(Counter::V2(at.clone())));
        assert!(!group.out_of_memory());
        fs::write(at.join("memory.events"), "low 0\noom 1\noom_kill 0\n").unwrap();
        assert!(!group.out_of_memory(), "nothing was killed");
        fs::write(at.join("memory.events"), "low 0\noom 1\noom_kill 2\n").unwrap();
        assert!(group.out_of_memory());

        assert!(!remove(group.paths()), "as long as something is in it");
        for entry in fs::read_dir(&at).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
        assert!(remove(group.paths()) && !at.exists());
        assert!(remove(group.paths()), "twice is fine");
    }

    #[test]
    fn a_mixed_host_gets_each_limit_where_its_controller_is() {
        let host = tempfile::tempdir().unwrap();
        let (v1, v2) = (host.path().join("cpu"), host.path().join("unified"));
        fs::create_dir(&v1).unwrap();
        fs::create_dir(&v2).unwrap();
        fs::write(v2.join("cgroup.controllers"), "memory pids").unwrap();
        let mounts = format!(
            "cgroup {} cgroup rw,cpu 0 0\ncgroup2 {} cgroup2 rw 0 0\n",
            v1.display(),
            v2.display()
        );
        let groups = Cgroups::open_in(&mounts, "abc").unwrap();
        let group = groups.group("m1");
        group.enter().unwrap();
        group.limit(1 << 30, 500, 64).unwrap();
        let (v1, v2) = (v1.join("nullspace-abc/m1"), v2.join("nullspace-abc/m1"));
        assert_eq!(file(&v1, "cpu.cfs_quota_us"), "50000");
        group.lift_cpu_limit();
        assert_eq!(file(&v1, "cpu.cfs_quota_us"), "-1");
        assert_eq!(file(&v1, "tasks"), "0");
        assert!(!v1.join("pids.max").exists());
        assert_eq!(file(&v2, "memory.max"), "1073741824");
        assert_eq!(file(&v2, "pids.max"), "64");
        assert_eq!(file(&v2, "cgroup.procs"), "0");
        assert!(!v2.join("cpu.max").exists());
        // Only the v2 part hands controllers down.
        let enabled = host.path().join("cpu/nullspace-abc/cgroup.subtree_control");
        assert!(!enabled.exists());
    }
}

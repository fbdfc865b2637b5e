//! What is tried, and what each engine says of it.

use std::{net::SocketAddr, path::Path};

use nullspace_sys::attempt;
use serde::Serialize;

use super::inside::Try;

/// What a probe is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Group {
    /// System calls.
    Calls,
    /// Files and devices in the machine that are the kernel's or the host's.
    Files,
    /// What can be reached.
    Network,
    /// Names of hosts.
    Names,
    /// What is asked of the server, by those who have a machine, or a token.
    Doors,
    /// Taking more than one's share.
    Floods,
}

impl Group {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Calls => "system calls",
            Self::Files => "files",
            Self::Network => "network",
            Self::Names => "names",
            Self::Doors => "the server's doors",
            Self::Floods => "floods",
        }
    }
}

/// One of those that are tried in a machine.
pub(super) struct Probe {
    pub(super) group: Group,
    pub(super) name: String,
    /// What it would give.
    pub(super) what: String,
    pub(super) r#try: Try,
    /// Whether a machine's own kernel may let it through, where it has one: it changes nothing outside.
    pub(super) is_the_machines: bool,
}

/// What the host has that machines must not get at.
pub(super) struct Targets<'a> {
    /// A file of the host, and what is in it.
    pub(super) marker: &'a Path,
    pub(super) secret: &'a str,
    pub(super) data_dir: &'a Path,
    /// Disks of the host, by name.
    pub(super) disks: &'a [String],
    /// Where the host takes connections, by what the address is.
    pub(super) hosts: &'a [(&'static str, SocketAddr)],
    /// Where the other machine does.
    pub(super) neighbour: &'a [(&'static str, SocketAddr)],
}

/// What a kernel of the machine's own may let through, because it is about nothing else than the machine. The guest has an empty
/// environment there.
const OWN: [&str; 20] = [
    "guest_environment",
    "oom_score",
    "mount",
    "remount",
    "unmount",
    "pivot_root",
    "unshare_user",
    "unshare_mount",
    "unshare_net",
    "clone3_user",
    "setns",
    "chroot",
    "io_uring",
    "priority",
    "realtime",
    "file_limit",
    "mknod_memory",
    "mknod_disk",
    "syslog",
    "process_vm_readv",
];

/// All that are tried by root in a machine that may reach the internet.
pub(super) fn in_a_machine(targets: &Targets<'_>) -> Vec<Probe> {
    let mut all: Vec<Probe> = attempt::ALL
        .iter()
        .map(|call| Probe {
            group: Group::Calls,
            name: call.name.to_owned(),
            what: call.what.to_owned(),
            r#try: Try::Call(call.name.to_owned()),
            is_the_machines: OWN.contains(&call.name),
        })
        .collect();
    let mut add = |group, name: &str, what: &str, r#try| {
        all.push(Probe {
            group,
            name: name.to_owned(),
            what: what.to_owned(),
            r#try,
            is_the_machines: OWN.contains(&name),
        });
    };
    files(targets, &mut |name, what, r#try| {
        add(Group::Files, name, what, r#try);
    });
    for (name, address) in targets.hosts {
        let what = "a service of the host";
        add(Group::Network, name, what, Try::Connect(*address));
    }
    for (name, address) in targets.neighbour {
        let what = "a service of another machine";
        add(Group::Network, name, what, Try::Connect(*address));
    }
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    let what = "the cloud's metadata, and its credentials";
    add(Group::Network, "metadata", what, Try::Connect(metadata));
    let metadata = "[fd00:ec2::254]:80".parse();
    if let Ok(metadata) = metadata {
        add(Group::Network, "metadata_v6", what, Try::Connect(metadata));
    }
    for (name, host) in NEAR {
        let what = "this host, by a name that is anybody's";
        add(Group::Names, name, what, Try::Resolve(host.to_owned()));
    }
    all
}

/// Names that the attack's own name server says lead near. See [`super::names`].
pub(super) const NEAR: [(&str, &str); 4] = [
    ("rebind_loopback", "loopback.attack.test"),
    ("rebind_metadata", "metadata.attack.test"),
    ("rebind_unspecified", "unspecified.attack.test"),
    ("rebind_mapped", "mapped.attack.test"),
];
/// The one name that a machine may resolve that may resolve one.
pub(super) const ALLOWED: &str = "allowed.attack.test";

/// Names in a machine that may resolve [`ALLOWED`] alone. The server of names answers all of them.
pub(super) fn with_one_name() -> Vec<Probe> {
    let probe = |name: &str, host: String| Probe {
        group: Group::Names,
        name: name.to_owned(),
        what: "a name that is not allowed, by another spelling".to_owned(),
        r#try: Try::ResolveAtAll(host),
        is_the_machines: false,
    };
    vec![
        probe("other_name", "other.attack.test".into()),
        probe("name_as_prefix", format!("{ALLOWED}.evil.test")),
        probe("name_as_suffix", format!("evil-{ALLOWED}")),
        probe("name_below", format!("evil.{ALLOWED}")),
        probe("name_with_dots", format!("other.attack.test.{ALLOWED}.")),
    ]
}

fn files(targets: &Targets<'_>, add: &mut dyn FnMut(&str, &str, Try)) {
    let text = |word: &str| word.to_owned();
    for (name, path, what) in [
        ("kcore", "/proc/kcore", "the kernel's memory"),
        ("keys", "/proc/keys", "keys of the host"),
        ("timer_list", "/proc/timer_list", "timers of the host"),
        ("kmsg", "/dev/kmsg", "the host's kernel log"),
        ("dev_mem", "/dev/mem", "the host's memory"),
        ("dev_kvm", "/dev/kvm", "virtual machines of its own"),
        ("dev_fuse", "/dev/fuse", "file systems of its own"),
        ("guest_memory", "/proc/1/mem", "the guest's memory"),
        (
            "guest_environment",
            "/proc/1/environ",
            "the guest's environment",
        ),
    ] {
        add(name, what, Try::Read(path.into()));
    }
    for disk in targets.disks {
        let what = "the host's disk";
        add(
            &format!("dev_{disk}"),
            what,
            Try::Read(format!("/dev/{disk}").into()),
        );
    }
    add(
        "kallsyms",
        "where the kernel is in memory",
        Try::ReadAddresses("/proc/kallsyms".into()),
    );
    add(
        "guest_root",
        "the guest's root",
        Try::List("/proc/1/root".into()),
    );
    add(
        "firmware",
        "tables of the host's firmware",
        Try::List("/sys/firmware/acpi".into()),
    );
    for (name, path, word, what) in [
        (
            "core_pattern",
            "/proc/sys/kernel/core_pattern",
            "core",
            "a program that the host runs",
        ),
        (
            "sysrq",
            "/proc/sysrq-trigger",
            "h",
            "keys of the host's console",
        ),
        (
            "uevent_helper",
            "/sys/kernel/uevent_helper",
            "",
            "a program that the host runs",
        ),
        (
            "modprobe",
            "/proc/sys/kernel/modprobe",
            "/bin/true",
            "a program that the host runs",
        ),
        (
            "panic",
            "/proc/sys/kernel/panic",
            "0",
            "settings of the host's kernel",
        ),
        (
            "drop_caches",
            "/proc/sys/vm/drop_caches",
            "1",
            "the host's page cache",
        ),
        (
            "release_agent",
            "/sys/fs/cgroup/release_agent",
            "/bin/true",
            "a program that the host runs",
        ),
        (
            "release_agent_v1",
            "/sys/fs/cgroup/memory/release_agent",
            "/bin/true",
            "a program that the host runs",
        ),
        (
            "oom_score",
            "/proc/self/oom_score_adj",
            "-1000",
            "to outlive the host's programs",
        ),
    ] {
        let text = text(word);
        add(
            name,
            what,
            Try::Write {
                path: path.into(),
                text,
            },
        );
    }
    let find = |path: std::path::PathBuf| Try::Find {
        path,
        text: targets.secret.to_owned(),
    };
    let below = targets.marker.strip_prefix("/").unwrap_or(targets.marker);
    let what = "a file of the host";
    add("host_file", what, find(targets.marker.to_owned()));
    add(
        "host_file_by_root",
        what,
        find(Path::new("/proc/1/root").join(below)),
    );
    add(
        "host_file_by_cwd",
        what,
        find(Path::new("/proc/1/cwd").join(below)),
    );
    add(
        "host_file_by_dots",
        what,
        find(Path::new("/../../../../../..").join(below)),
    );
    let through = Try::FindThroughLink {
        path: targets.marker.to_owned(),
        text: targets.secret.to_owned(),
    };
    add("host_file_by_link", what, through);
    for (name, path) in [
        ("host_path_in_mounts", "/proc/self/mountinfo"),
        ("host_path_in_groups", "/proc/1/cgroup"),
        ("host_path_in_commands", "/proc/1/cmdline"),
    ] {
        let text = targets.data_dir.display().to_string();
        add(
            name,
            "where the host keeps things",
            Try::Find {
                path: path.into(),
                text,
            },
        );
    }
}

//! Whether this host can run machines: what the kernel offers and what is installed.

use std::path::Path;

use nullspace_sys::image;
use serde_json::json;

use super::Probe;

/// Free space below which the data directory is soon full: `base` is about 1 GB, and machines write too.
const SPACE_WARN: u64 = 5 << 30;
/// Free space below which `base` cannot be made.
const SPACE_FAIL: u64 = 2 << 30;
/// Kernel whose overlay and id-mapped mounts the native engine builds on.
const KERNEL: (u32, u32) = (5, 12);

/// Watches of files that are enough for many machines: as the launcher raises them.
const INSTANCES: u64 = 1 << 16;
const WATCHES: u64 = 1 << 20;

/// All checks of the host.
pub(super) fn probes() -> Vec<Probe> {
    vec![
        root(),
        kernel(),
        user_namespaces(),
        overlay(),
        cgroups(),
        seccomp(),
        forwarding_tools(),
        mmdebstrap(),
        watches(),
        disk_limits(),
        gvisor(),
        space(),
    ]
}

/// Not needed: machines are native without it. A server with `isolation = auto` tests it with a machine at start.
fn gvisor() -> Probe {
    match nullspace_engine_gvisor::Release::find() {
        Ok(release) => Probe::new(
            "host_gvisor",
            "pass",
            format!(
                "runsc {}: machines can have a kernel of their own{}",
                release.version,
                if release.is_restless() {
                    "; with this release an idle one takes some 5 % of a processor, since July 2026 none does"
                } else {
                    ""
                }
            ),
        )
        .details(json!({"version": release.version, "path": release.path})),
        Err(reason) => Probe::new(
            "host_gvisor",
            "warn",
            format!("{reason}: machines cannot have a kernel of their own, be forked or keep memory"),
        )
        .fix("On Debian 12, add the suite bookworm-backports beside bookworm and run `apt-get install -t bookworm-backports runsc`."),
    }
}

/// Not needed: without, limits of volumes are counted, and machines have none. Tried for real, because no list of what a host has says that it works.
fn disk_limits() -> Probe {
    const NAME: &str = "host_disk_limits";
    if !rustix::process::geteuid().is_root() {
        return Probe::new(NAME, "warn", "not looked at: only root can");
    }
    let tried = tempfile::tempdir().and_then(|home| {
        let volume = home.path().join("volume");
        std::fs::create_dir(&volume)?;
        image::make(&volume, 1, None)
    });
    match tried {
        Ok(()) => Probe::new(
            NAME,
            "pass",
            "what machines write and volumes with limits are file systems of their own size",
        ),
        Err(error) => Probe::new(
            NAME,
            "warn",
            format!("no file system can be made in a file ({error}): a machine can fill this host's disk, and limits of volumes are counted, so that it can write past them"),
        )
        .fix("apt-get install e2fsprogs; in a container, give it /dev/loop-control and the loop devices."),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn root() -> Probe {
    if rustix::process::geteuid().is_root() {
        Probe::new("host_privileges", "pass", "running as root")
    } else {
        Probe::new(
            "host_privileges",
            "warn",
            "not running as root, as `nullspace serve` has to",
        )
        .fix("Run the server with sudo, or as a system service; clients need no privileges.")
    }
}

fn kernel() -> Probe {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let details = json!({"release": release});
    match version(&release) {
        Some(version) if version >= KERNEL => {
            Probe::new("host_kernel", "pass", format!("Linux {release}")).details(details)
        }
        _ => Probe::new(
            "host_kernel",
            "fail",
            format!("Linux {release} is older than {}.{}", KERNEL.0, KERNEL.1),
        )
        .fix("Use a newer kernel: Debian 12, Ubuntu 22.04 or later.")
        .details(details),
    }
}

/// Major and minor of a release like `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn user_namespaces() -> Probe {
    let most = read("/proc/sys/user/max_user_namespaces");
    if !Path::new("/proc/self/ns/user").exists() {
        return Probe::new(
            "host_user_namespaces",
            "fail",
            "the kernel has no user namespaces",
        )
        .fix("Use a kernel with CONFIG_USER_NS.");
    }
    match most.trim().parse::<u64>() {
        Ok(0) => Probe::new(
            "host_user_namespaces",
            "fail",
            "user namespaces are turned off",
        )
        .fix("sysctl -w user.max_user_namespaces=65536"),
        _ => Probe::new(
            "host_user_namespaces",
            "pass",
            "user namespaces are available",
        ),
    }
}

fn overlay() -> Probe {
    let there = read("/proc/filesystems")
        .split_whitespace()
        .any(|word| word == "overlay");
    if there {
        return Probe::new("host_overlayfs", "pass", "overlayfs is available");
    }
    let uname = rustix::system::uname();
    let modules = format!(
        "/lib/modules/{}/kernel/fs/overlayfs",
        uname.release().to_string_lossy()
    );
    if Path::new(&modules).exists() {
        return Probe::new(
            "host_overlayfs",
            "pass",
            "overlayfs is a module, loaded when it is needed",
        );
    }
    Probe::new("host_overlayfs", "fail", "the kernel has no overlayfs")
        .fix("modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS.")
}

fn cgroups() -> Probe {
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    let mounts = read("/proc/self/mounts");
    let v1: Vec<&str> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            (fields.next()? == "cgroup")
                .then(|| fields.next())
                .flatten()
        })
        .flat_map(|options| options.split(','))
        .filter(|option| matches!(*option, "memory" | "cpu" | "pids"))
        .collect();
    let has = |name: &str| unified.split_whitespace().any(|c| c == name) || v1.contains(&name);
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    let layout = match (unified.trim().is_empty(), v1.is_empty()) {
        (false, true) => "v2",
        (true, false) => "v1",
        (false, false) => "mixed",
        (true, true) => "none",
    };
    let details = json!({"layout": layout, "missing": missing});
    if missing.is_empty() {
        return Probe::new(
            "host_cgroups",
            "pass",
            format!("cgroups {layout} with memory, cpu and pids"),
        )
        .details(details);
    }
    let status = if layout == "none" { "fail" } else { "warn" };
    Probe::new("host_cgroups", status, format!("cgroups {layout} without {}", missing.join(", ")))
        .fix("Limits of machines need these controllers: mount cgroup2 at /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1.")
        .details(details)
}

fn seccomp() -> Probe {
    let there = read("/proc/self/status")
        .lines()
        .any(|line| line.starts_with("Seccomp:"))
        && read("/proc/sys/kernel/seccomp/actions_avail").contains("errno");
    if there {
        Probe::new("host_seccomp", "pass", "seccomp filters are available")
    } else {
        Probe::new("host_seccomp", "fail", "the kernel has no seccomp filters")
            .fix("Use a kernel with CONFIG_SECCOMP_FILTER.")
    }
}

/// The path of a program that root would find.
fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path);
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(std::path::PathBuf::from);
    own.chain(system)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

fn forwarding_tools() -> Probe {
    match program("nft") {
        Some(path) => Probe::new(
            "host_nftables",
            "pass",
            format!("nft is at {}", path.display()),
        ),
        None => Probe::new(
            "host_nftables",
            "fail",
            "nft is not installed; machines need it for their network",
        )
        .fix("apt-get install nftables"),
    }
}

fn mmdebstrap() -> Probe {
    match program("mmdebstrap") {
        Some(path) => Probe::new(
            "host_mmdebstrap",
            "pass",
            format!("mmdebstrap is at {}", path.display()),
        ),
        None => Probe::new(
            "host_mmdebstrap",
            "warn",
            "mmdebstrap is not installed; the template `base` cannot be made, `host` can",
        )
        .fix("apt-get install mmdebstrap"),
    }
}

/// The server raises them where it may.
fn watches() -> Probe {
    let name = "host_file_watches";
    let most = |what: &str| -> u64 {
        let text = read(&format!("/proc/sys/fs/inotify/{what}"));
        text.trim().parse().unwrap_or(0)
    };
    let (instances, watches) = (most("max_user_instances"), most("max_user_watches"));
    let details = json!({"max_user_instances": instances, "max_user_watches": watches});
    let told =
        format!("all machines together may watch {watches} directories, {instances} at once");
    if instances >= INSTANCES && watches >= WATCHES {
        return Probe::new(name, "pass", told).details(details);
    }
    Probe::new(name, "warn", told)
        .fix(format!(
            "`nullspace serve` raises these where it may. By hand: sysctl -w fs.inotify.max_user_instances={INSTANCES} \
             fs.inotify.max_user_watches={WATCHES}"
        ))
        .details(details)
}

fn space() -> Probe {
    let place = ["/var/lib/nullspace", "/var/lib", "/"]
        .into_iter()
        .find(|place| Path::new(place).exists())
        .unwrap_or("/");
    let Ok(stat) = rustix::fs::statvfs(place) else {
        return Probe::new(
            "host_disk_space",
            "warn",
            format!("cannot tell the free space of {place}"),
        );
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let told = format!("{:.1} GB free at {place}", free as f64 / 1e9);
    let details = json!({"path": place, "free_bytes": free});
    let fix = "Free some space, or give another place with `nullspace serve --data-dir`.";
    match free {
        free if free < SPACE_FAIL => Probe::new("host_disk_space", "fail", told)
            .fix(fix)
            .details(details),
        free if free < SPACE_WARN => Probe::new("host_disk_space", "warn", told)
            .fix(fix)
            .details(details),
        _ => Probe::new("host_disk_space", "pass", told).details(details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15-generic"), Some((5, 15)));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn every_check_that_does_not_pass_says_what_to_do() {
        for probe in probes() {
            assert!(
                probe.status == "pass" || probe.fix.is_some() || probe.name == "host_disk_space",
                "{probe:?}"
            );
        }
    }
}

//! The process around a machine of gVisor.
//!
//! ```text
//!  fork ─▶ own cgroups ─▶ own namespaces ─▶ network ─▶ overlay ─▶ [kernel and guest] ─▶ parked
//!                                                                                        │ order
//!  watches ◀─ ready ◀─ guest knows its machine ◀─ [another overlay, kernel and guest] ◀──┘
//! ```
//! A machine of gVisor is a few host processes: the kernel that `runsc` starts, its file server, and what runs the
//! machine's code. The keeper is process 1 of the host's pid namespace that they all live in, so they end with it at
//! once, and it ends with the launcher: nothing is left that somebody would have to find. It has nothing to do with the
//! machine's own process 1, which is the guest inside.
//!
//! What does not depend on the machine is done ahead: where the layers are known already the kernel and the guest run,
//! and the guest waits for its setup. An order for other layers, with binds, or from a checkpoint starts them anew.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nullspace_engine::{Bind, MachineSpec};
use nullspace_protocol::alone::{
    READY as GUEST_READY, REFUSED as GUEST_REFUSED, SECRET_BYTES, SHOWN as SHOWN_INSIDE, Setup,
    Show,
};
use nullspace_sys::{
    image::Passing,
    mount::Attributes,
    namespace::{self, Namespaces, Resource},
    netlink::Netlink,
};
use rustix::{
    fs::Mode,
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags},
    process::{WaitOptions, WaitStatus},
};

use super::{
    binds,
    inside::{
        Common, FAILED, Named, Order, PARKED, Preparation, READY, Step, attach, clone_path, new_fs,
        new_overlay, receive, which_directory,
    },
    network,
    pack::{self, Pack},
    slot::{self, Ahead},
    system_layer, writable,
};
use crate::{
    layer::UPPER,
    wire::{GvisorConfig, Origin},
};

/// What `runsc` calls the machine; each has its own directory of state.
pub const NAME: &str = "m";
/// Where in a machine's directory `runsc` keeps its state, and its control socket is.
pub const STATE: &str = "run";
/// In a machine's directory: what connections to its guest begin with.
pub const SECRET: &str = "secret";
/// In the directory of a machine that goes on from a checkpoint: what connections to its guest begin with until it has been
/// told which machine it is. Nobody but the one who tells it uses this, so one that was not told does not answer.
pub const KEPT_SECRET: &str = "secret.kept";
/// In a machine's directory: which guest runs in it.
pub const GUEST: &str = "guest";
/// In a checkpoint: the writable layer.
pub const LAYER: &str = "layer";
/// In the scratch directory: what the machine is shown, by [`binds::name`]. Mounts that come and go there are seen by its
/// file server.
pub(super) const SHOWN: &str = "shown";
/// Rights of the machine's root, as a native machine's.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_AUDIT_WRITE",
    "CAP_SETFCAP",
];
/// The guest's own beyond these, which its children do not get: it names the machine and mounts in it.
const GUEST_ALONE: &str = "CAP_SYS_ADMIN";
/// Descriptors of one process in a machine.
const OPEN_FILES: u64 = 65_536;
/// The most of `runsc`'s log that is looked at for a reason, in bytes.
const LOG: usize = 64 << 10;
/// The most of a guest's or a kernel's reason that is read, in bytes.
const REASON: u64 = 4 << 10;

/// What the launcher's gVisor machines have in common.
pub(super) struct Gvisor {
    pub(super) config: GvisorConfig,
    pub(super) pack: Pack,
}

/// The keeper's whole life.
pub(super) fn main(mut control: UnixStream, preparation: &Preparation<'_>, gvisor: &Gvisor) -> ! {
    let code = match live(&mut control, preparation, gvisor) {
        Ok(()) => 0,
        Err((step, error)) => {
            let mut message = vec![FAILED];
            message.extend_from_slice(format!("{step}\n{error}").as_bytes());
            let _ = control.write_all(&message);
            70
        }
    };
    namespace::exit_now(code)
}

fn live(control: &mut UnixStream, preparation: &Preparation<'_>, gvisor: &Gvisor) -> Step<()> {
    namespace::close_all_from(3, &[control.as_fd()]).named("close descriptors")?;
    namespace::set_name("nullspace keep");
    namespace::die_with_parent().named("follow the launcher's death")?;
    preparation.group.enter().named("enter the cgroups")?;
    let host = Netlink::open().named("open the host's network")?;
    namespace::unshare(Namespaces::MACHINE).named("make namespaces")?;
    namespace::limit(Resource::CoreSize, 0).named("limit core dumps")?;
    prepare_mounts(&preparation.common.scratch)?;
    // Before there is a link: `runsc` takes over what the link has.
    network::configure(Path::new("/proc")).named("configure the network")?;
    hide_the_networks_settings()?;
    preparation
        .link
        .make(&host)
        .named("make the network link")?;
    drop(host);
    let stage = Stage {
        scratch: &preparation.common.scratch,
        common: preparation.common,
        gvisor,
    };
    stage.mount_state(preparation.directory)?;
    let mut ahead = None;
    if !preparation.ahead.lower.is_empty() {
        // Layers may be gone by now: whoever asks for them will be told.
        ahead = stage
            .start(preparation.directory, preparation.ahead, &[], None)
            .ok();
    }
    control.write_all(&[PARKED]).named("report")?;

    let order: Order = receive(control).named("read the order")?;
    let Order {
        spec,
        directory,
        from,
    } = order;
    let wanted = Ahead::of(&spec);
    let usable = ahead.filter(|kernel| {
        from.is_none() && spec.binds.is_empty() && kernel.is_of(&wanted) && kernel.is_alive()
    });
    let mut kernel = match usable {
        Some(kernel) => kernel,
        None => {
            stage.start_over(&directory)?;
            // The kernel that is gone had taken the address for itself.
            preparation
                .link
                .set_up()
                .named("set the network link up again")?;
            stage.start(&directory, &wanted, &spec.binds, from.as_ref())?
        }
    };
    let pack = from.as_ref().map_or(&gvisor.pack, |from| &from.guest);
    fs::write(directory.join(GUEST), &pack.name).named("note the guest")?;
    match &from {
        Some(from) => {
            // It knows that it goes on from there, and is told by the engine which machine it is now.
            fs::copy(from.directory.join(SECRET), directory.join(KEPT_SECRET))
                .named("copy the secret")?;
        }
        None => kernel.introduce(&spec, &directory)?,
    }
    let mut trees = std::mem::take(&mut kernel.shown);
    trees.extend(kernel.disk.take().into_iter().flat_map(Passing::into_parts));
    binds::send(control, READY, &trees).named("report")?;
    drop(trees);
    let status = kernel.watch();
    if status.is_none_or(|status| status.exit_status() != Some(0)) {
        let said = last_words(&stage.panic_log());
        eprintln!("the kernel of machine {} ended: {status:?} {said}", spec.id);
    }
    Ok(())
}

/// This process's own view of the host: `/proc` of its own processes, and a file system in memory over the scratch
/// directory for everything that is mounted for the machine.
fn prepare_mounts(scratch: &Path) -> Step<()> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .named("detach from the host's mounts")?;
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(&new_fs("proc", &[], quiet)?, Path::new("/proc")).named("mount /proc")?;
    let memory = new_fs(
        "tmpfs",
        &[("size", "1m"), ("mode", "0711")],
        MountAttrFlags::empty(),
    )?;
    attach(&memory, scratch).named("mount the scratch file system")?;
    for name in ["l0", "w", "root", "bundle", "pack", SHOWN, STATE] {
        fs::create_dir(scratch.join(name)).named("make a mount point")?;
    }
    let shown = scratch.join(SHOWN);
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attach(
        &new_fs("tmpfs", &[("size", "64k"), ("mode", "0755")], quiet)?,
        &shown,
    )
    .named("mount the directory of what is shown")?;
    rustix::mount::mount_change(&shown, MountPropagationFlags::SHARED)
        .named("share the mounts of what is shown")
}

/// `runsc` refuses to take a network over when it sees settings that only the host's own used to have; newer kernels
/// show them in each.
fn hide_the_networks_settings() -> Step<()> {
    let empty = new_fs(
        "tmpfs",
        &[("size", "4k"), ("mode", "0555")],
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    attach(&empty, Path::new("/proc/sys/net/core")).named("hide the network's settings")
}

struct Stage<'a> {
    scratch: &'a Path,
    common: &'a Common,
    gvisor: &'a Gvisor,
}

impl Stage<'_> {
    /// Shows `runsc` where to keep its state, under a name that is short enough for a socket.
    fn mount_state(&self, directory: &Path) -> Step<()> {
        let state = directory.join(STATE);
        fs::create_dir(&state).named("make the directory of the kernel's state")?;
        clone_path(&state, Attributes::default())
            .and_then(|tree| attach(&tree, &self.scratch.join(STATE)))
            .named("mount the directory of the kernel's state")
    }

    /// Puts a root together and starts a kernel over it, with the guest.
    fn start(
        &self,
        directory: &Path,
        wanted: &Ahead,
        binds: &[Bind],
        from: Option<&Origin>,
    ) -> Step<Kernel> {
        let lower = wanted.lower.iter();
        let lower: Vec<_> = lower.map(|l| (l.clone(), which_directory(l))).collect();
        let disk = self.mount_root(directory, wanted, from)?;
        let pack = from.map_or(&self.gvisor.pack, |from| &from.guest);
        self.mount_pack(pack)?;
        self.write_bundle(pack)?;
        let mut shown = Vec::with_capacity(binds.len());
        for bind in binds {
            let (tree, is_dir) = binds::tree(bind, None)
                .map_err(|e| binds::failed(format!("bind for {}", bind.target.display()), e))?;
            binds::put(&tree, is_dir, self.scratch, &bind.target)
                .map_err(|e| (format!("bind for {}", bind.target.display()), e))?;
            shown.push(tree);
        }
        let (pid, setup, ready) = self.run(from)?;
        Ok(Kernel {
            pid,
            setup,
            ready,
            lower,
            limit: wanted.disk_bytes,
            disk,
            shown,
        })
    }

    /// Answers as [`writable::mount`].
    fn mount_root(
        &self,
        directory: &Path,
        wanted: &Ahead,
        from: Option<&Origin>,
    ) -> Step<Option<Passing>> {
        rustix::process::chdir(self.scratch).named("enter the scratch file system")?;
        let at = Path::new("w");
        let disk = writable::mount(directory, wanted.disk_bytes, self.common, at)?;
        match from {
            None => writable::fill(at, 0)
                .and_then(|()| make_tmp(&at.join(UPPER)))
                .named("make the writable layer")?,
            // By reference where the file system can do that.
            Some(from) => crate::layer::copy(&from.directory.join(LAYER), &at.join(UPPER))
                .named("copy the writable layer")?,
        }
        let mut layers = Vec::new();
        for (n, layer) in [&self.common.system_layer]
            .into_iter()
            .chain(&wanted.lower)
            .enumerate()
        {
            let at = format!("l{n}");
            if n > 0 {
                fs::create_dir(&at).named("make a mount point")?;
            }
            let read_only = Attributes {
                read_only: true,
                no_dev: true,
                ..Attributes::default()
            };
            clone_path(layer, read_only)
                .and_then(|tree| attach(&tree, Path::new(&at)))
                .map_err(|e| (format!("mount layer {}", layer.display()), e))?;
            layers.push(at);
        }
        let overlay = new_overlay(&layers.join(":"), at)?;
        attach(&overlay, Path::new("root")).named("mount the root")?;
        Ok(disk)
    }

    /// Shows the guest, read-only by the host: kernels of machines have been seen to truncate a file of a mount that
    /// they were told is read-only, and this one is every machine's.
    fn mount_pack(&self, pack: &Pack) -> Step<()> {
        let read_only = Attributes {
            read_only: true,
            no_dev: true,
            ..Attributes::default()
        };
        clone_path(&pack.directory, read_only)
            .and_then(|tree| attach(&tree, &self.scratch.join("pack")))
            .named("mount the guest")
    }

    fn write_bundle(&self, pack: &Pack) -> Step<()> {
        let arguments = self.gvisor.config.guest.iter().cloned();
        let command: Vec<String> = pack.command().into_iter().chain(arguments).collect();
        let text = bundle(self.scratch, &command);
        fs::write(self.scratch.join("bundle/config.json"), text).named("write the bundle")
    }

    /// Where a kernel that gives up says why.
    fn panic_log(&self) -> PathBuf {
        self.scratch.join("bundle/panic")
    }

    /// Starts the kernel. Answers with its process, as this process's pid namespace counts, and the pipes to and from the guest.
    fn run(&self, from: Option<&Origin>) -> Step<(i32, PipeWriter, PipeReader)> {
        let (setup_reader, setup) = io::pipe().named("make a pipe")?;
        let (ready, ready_writer) = io::pipe().named("make a pipe")?;
        let log = self.scratch.join("bundle/log");
        let _ = fs::remove_file(&log);
        let _ = fs::remove_file(self.panic_log());
        let mut command = Command::new(&self.gvisor.config.runsc);
        command
            .arg(format!("--root={}", self.scratch.join(STATE).display()))
            .arg(format!("--log={}", log.display()))
            .arg(format!("--panic-log={}", self.panic_log().display()))
            .args([
                "--platform=systrap",
                "--network=sandbox",
                // The writable layer is ours, on the disk.
                "--overlay2=none",
                // It is in the machine's groups already.
                "--ignore-cgroups",
                // Nobody else changes its files.
                "--file-access=exclusive",
                // Connections do not keep a machine from being kept: they end.
                "--net-disconnect-ok=true",
            ]);
        match from {
            None => command.arg("run"),
            Some(from) => command
                .arg("restore")
                .arg(format!("--image-path={}", from.image.display())),
        };
        command
            .arg("--detach")
            .arg(format!(
                "--bundle={}",
                self.scratch.join("bundle").display()
            ))
            .arg(NAME)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::from(setup_reader))
            .stdout(Stdio::from(ready_writer))
            .stderr(Stdio::null());
        let status = command.status().map_err(|e| {
            let step = format!("run {}", self.gvisor.config.runsc.display());
            (step, e)
        })?;
        // Holds the other ends of the pipes.
        drop(command);
        if !status.success() {
            let reason = reason(&log).unwrap_or_else(|| format!("it ended with {status}"));
            return Err((
                "start the machine's kernel".into(),
                io::Error::other(reason),
            ));
        }
        let pid = kernel_process(&self.scratch.join(STATE)).named("find the machine's kernel")?;
        Ok((pid, setup, ready))
    }

    /// Takes apart what was made ahead, to the state in which [`Stage::start`] can be called.
    fn start_over(&self, directory: &Path) -> Step<()> {
        end_children();
        let at = |name: &str| self.scratch.join(name);
        for mounted in ["root", "w", "l0", "pack"] {
            let _ = rustix::mount::unmount(at(mounted), UnmountFlags::DETACH);
        }
        for n in 1.. {
            let layer = at(&format!("l{n}"));
            if !layer.exists() {
                break;
            }
            let _ = rustix::mount::unmount(&layer, UnmountFlags::DETACH);
            fs::remove_dir(&layer).named("remove a mount point")?;
        }
        let state = fs::read_dir(directory.join(STATE)).into_iter().flatten();
        for entry in state.flatten() {
            let _ = fs::remove_file(entry.path());
        }
        writable::put_aside(directory)
    }
}

/// A directory's device and inode.
type Which = Option<(u64, u64)>;

/// A kernel that runs, with a guest in it.
struct Kernel {
    /// As this process's pid namespace counts.
    pid: i32,
    setup: PipeWriter,
    ready: PipeReader,
    lower: Vec<(PathBuf, Which)>,
    limit: Option<u64>,
    /// The file system that its writable layer has for itself.
    disk: Option<Passing>,
    /// The mounts of what it is shown.
    shown: Vec<OwnedFd>,
}

impl Kernel {
    fn is_of(&self, wanted: &Ahead) -> bool {
        let lower = &wanted.lower;
        self.limit == wanted.disk_bytes
            && self.lower.len() == lower.len()
            && self.lower.iter().zip(lower).all(|((path, which), wanted)| {
                path == wanted && which.is_some() && *which == which_directory(wanted)
            })
    }

    fn is_alive(&self) -> bool {
        use rustix::process::{Pid, waitpid};
        let pid = Pid::from_raw(self.pid);
        matches!(waitpid(pid, WaitOptions::NOHANG), Ok(None))
    }

    /// Tells the guest which machine it is, and waits until it answers.
    fn introduce(&mut self, spec: &MachineSpec, directory: &Path) -> Step<()> {
        let mut secret = [0; SECRET_BYTES];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut secret))
            .named("draw a secret")?;
        write_secret(&directory.join(SECRET), &secret).named("write the secret")?;
        let hosts = system_layer::hosts(Some(&spec.hostname));
        let setup = Setup {
            secret,
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            files: [("/etc/hosts".to_owned(), hosts)].into(),
            memory_bytes: spec.memory_bytes,
            pids_max: slot::pids_max(spec),
            shown: spec.binds.iter().map(show).collect(),
        };
        self.setup
            .write_all(&crate::wire::encode(&setup))
            .named("tell the guest")?;
        let mut said = [0];
        self.ready
            .read_exact(&mut said)
            .named("wait for the guest")?;
        match said[0] {
            GUEST_READY => Ok(()),
            GUEST_REFUSED => {
                let mut text = String::new();
                (&self.ready)
                    .take(REASON)
                    .read_to_string(&mut text)
                    .named("wait for the guest")?;
                let step = format!("{}{text}", binds::ASKED_FOR);
                Err((step, io::ErrorKind::InvalidInput.into()))
            }
            other => Err((
                "wait for the guest".into(),
                io::Error::other(format!("it said {other}")),
            )),
        }
    }

    /// Waits for the end of the kernel, which is the end of the machine. Says how it came, if that is known.
    fn watch(self) -> Option<WaitStatus> {
        use rustix::process::wait;
        let Self { pid, .. } = self;
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((ended, status))) if ended.as_raw_nonzero().get() == pid => {
                    return Some(status);
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

/// The beginning of what a kernel said when it gave up, for a log: what runs in the machine may have a say in it.
fn last_words(panic_log: &Path) -> String {
    let mut said = Vec::new();
    let read = File::open(panic_log).and_then(|file| file.take(REASON).read_to_end(&mut said));
    match read {
        Ok(0) | Err(_) => "and gave no reason".into(),
        Ok(_) => format!("{:?}", String::from_utf8_lossy(&said)),
    }
}

/// What the guest is told of a bind.
fn show(bind: &Bind) -> Show {
    Show {
        name: binds::name(&bind.target),
        target: bind.target.display().to_string(),
    }
}

/// Ends everything beneath this process.
fn end_children() {
    use rustix::process::{Signal, kill_process, wait};
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids.filter(|pid: &i32| *pid != 1) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    while wait(WaitOptions::empty()).is_ok_and(|ended| ended.is_some()) {}
}

fn write_secret(path: &Path, secret: &[u8]) -> io::Result<()> {
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?
        .write_all(secret)
}

/// `/tmp` of the machine is on its disk; `runsc` would cover an empty one by memory.
fn make_tmp(upper: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let tmp = upper.join("tmp");
    fs::create_dir_all(tmp.join(".nullspace"))?;
    fs::set_permissions(tmp, fs::Permissions::from_mode(0o1777))
}

/// The host process that is the machine's kernel.
fn kernel_process(state: &Path) -> io::Result<i32> {
    let file = state.join(format!("{NAME}_sandbox:{NAME}.state"));
    let state: serde_json::Value = serde_json::from_slice(&fs::read(file)?)?;
    let pid = state["sandbox"]["pid"].as_i64();
    pid.and_then(|pid| i32::try_from(pid).ok())
        .filter(|pid| *pid > 1)
        .ok_or_else(|| io::Error::other("runsc does not say which process it is"))
}

/// What `runsc` last complained about.
fn reason(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG)..]).into_owned();
    let lines = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let complaints = lines
        .map_while(Result::ok)
        .filter_map(|line| line["msg"].as_str().map(str::to_owned));
    complaints.last()
}

/// What `runsc` is told about the machine, as the OCI runtime specification has it. Nothing secret is in it.
fn bundle(scratch: &Path, command: &[String]) -> Vec<u8> {
    use serde_json::json;
    let guest: Vec<&str> = CAPABILITIES.into_iter().chain([GUEST_ALONE]).collect();
    let mounts = [
        json!({"destination": "/proc", "type": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs"}),
        json!({"destination": "/sys", "type": "sysfs", "options": ["ro"]}),
        json!({"destination": "/dev/pts", "type": "devpts"}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "options": ["mode=1777"]}),
        json!({"destination": pack::TARGET, "type": "bind", "source": scratch.join("pack"), "options": ["bind", "ro"]}),
        json!({"destination": SHOWN_INSIDE, "type": "bind", "source": scratch.join(SHOWN), "options": ["rbind", "rslave", "rw"]}),
    ];
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    // Its own network is the one that this process is in.
    let network = json!({"type": "network", "path": "/proc/self/ns/net"});
    let namespaces: Vec<_> = namespaces.into_iter().chain([network]).collect();
    let bundle = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": [],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": guest, "permitted": guest,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES}],
        },
        "root": {"path": scratch.join("root")},
        "hostname": "machine",
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    });
    // Plain data: this cannot fail.
    serde_json::to_vec(&bundle).unwrap_or_default()
}

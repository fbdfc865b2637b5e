//! From a fresh child of the launcher to a machine's process 1.
//!
//! ```text
//!  fork ─▶ own cgroups ─▶ own namespaces ─▶ network ─▶ /dev, /proc, /sys ─▶ overlay ─▶ parked
//!                                                                                        │ order
//!  guest ◀─ locked down ◀─ own identity ◀─ own root ◀─ [overlay of other layers] ◀───────┘
//! ```
//! The overlay is made ahead of the layers that were asked for last; an order for others makes it anew.
//!
//! Everything up to "own identity" runs as the host's root in namespaces that belong to the host, so that
//! the machine's own root never has any right over its mounts, its network or its host name. Each step has
//! a name for its error. The child does all of it itself and waits for nobody but the launcher's order: where
//! the kernel makes it wait (for a grace period, for locks of other machines), the launcher goes on.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nullspace_engine::MachineSpec;
use nullspace_sys::{
    image::Passing,
    mount::{Attributes, clone_tree},
    namespace::{self, Namespaces, Resource},
    netlink::Netlink,
    seccomp::Filter,
};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
        move_mount,
    },
};
use serde::{Deserialize, Serialize};

use super::{
    binds,
    cgroup::Group,
    network::{self, Link},
    slot::Ahead,
    system_layer, writable,
};
use crate::{
    layer::{UPPER, WORK},
    wire::Origin,
};

/// Ids of one machine.
pub(crate) const RANGE: u32 = 65_536;
/// Rights that the machine's root keeps inside its own user namespace: what installing packages and
/// running servers as other users needs.
const CAPABILITIES: &[u32] = &[
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    18, // SYS_CHROOT
    29, // AUDIT_WRITE
    31, // SETFCAP
];
/// Descriptors of one process in a machine.
const OPEN_FILES: u64 = 65_536;

/// What a child prepares before it is known which machine it will be.
pub(super) struct Preparation<'a> {
    pub(super) group: &'a Group,
    pub(super) link: &'a Link,
    /// The user namespace it will enter; a machine with a kernel of its own needs none.
    pub(super) users: Option<&'a OwnedFd>,
    /// Host id of the machine's root.
    pub(super) first_id: u32,
    /// Empty; becomes `machines/<id>`.
    pub(super) directory: &'a Path,
    /// What the machine will probably have.
    pub(super) ahead: &'a Ahead,
    pub(super) common: &'a Common,
}

/// The same for all machines of a launcher.
pub(super) struct Common {
    /// The layer with this launcher's own files (names, certificates), put over the spec's.
    pub(super) system_layer: PathBuf,
    /// An empty directory of the host, covered in each machine's own view while its root is put together.
    pub(super) scratch: PathBuf,
    /// Where empty file systems are kept that are copied for machines; `None` on a host that has no such.
    pub(super) empty_images: Option<PathBuf>,
    pub(super) filter: Filter,
}

/// One machine to build, sent to a parked child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) spec: MachineSpec,
    /// `machines/<id>`: what was prepared is here now.
    pub(super) directory: PathBuf,
    /// The checkpoint that it goes on from.
    pub(super) from: Option<Origin>,
}

/// What a child tells the launcher: one byte each, `Failed` with text up to the end of the stream.
pub(super) const PARKED: u8 = b'p';
pub(super) const READY: u8 = b'r';
pub(super) const FAILED: u8 = b'!';

pub(super) type Step<T> = Result<T, (String, io::Error)>;

pub(super) trait Named<T> {
    fn named(self, step: &str) -> Step<T>;
}

impl<T, E: Into<io::Error>> Named<T> for Result<T, E> {
    fn named(self, step: &str) -> Step<T> {
        self.map_err(|e| (step.to_owned(), e.into()))
    }
}

/// The child's whole life.
pub(super) fn main(mut control: UnixStream, preparation: &Preparation<'_>) -> ! {
    let code = match live(&mut control, preparation) {
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

fn live(control: &mut UnixStream, preparation: &Preparation<'_>) -> Step<()> {
    let Preparation {
        group,
        link,
        users,
        first_id,
        directory,
        ahead,
        common,
    } = *preparation;
    let users = users
        .ok_or_else(|| io::Error::other("there is none"))
        .named("find the user namespace")?;
    namespace::close_all_from(3, &[control.as_fd(), users.as_fd()]).named("close descriptors")?;
    namespace::set_name("nullspace guest");
    namespace::die_with_parent().named("follow the launcher's death")?;
    group.enter().named("enter the cgroups")?;
    let host = Netlink::open().named("open the host's network")?;
    namespace::unshare(Namespaces::MACHINE).named("make namespaces")?;
    let stage = prepare_mounts(common, users.as_fd(), first_id)?;
    link.make(&host).named("make the network link")?;
    drop(host);
    // By its name alone: a machine can list the sockets of its network.
    let listener = rustix::process::chdir(directory)
        .map_err(io::Error::from)
        .and_then(|()| UnixListener::bind("guest.sock"))
        .named("make the guest's socket")?;
    let mut root = None;
    if !ahead.lower.is_empty() {
        // Layers may be gone by now: whoever asks for them will be told.
        root = make_root(&stage, directory, ahead, common, users.as_fd()).ok();
    }
    control.write_all(&[PARKED]).named("report")?;

    let order: Order = receive(control).named("read the order")?;
    let wanted = Ahead::of(&order.spec);
    let mut root = root.filter(|root| root.is_of(&wanted)).map_or_else(
        || {
            start_over(common, &order.directory)?;
            make_root(&stage, &order.directory, &wanted, common, users.as_fd())
        },
        Ok,
    )?;
    let mut trees = enter_root(&order.spec, &root.inside, users.as_fd())?;
    trees.extend(root.disk.take().into_iter().flat_map(Passing::into_parts));
    drop((root, stage));
    let config = nullspace_guest::Config {
        env: order.spec.env,
        cwd: order.spec.cwd,
        root: PathBuf::from("/"),
        init: true,
    };
    enter(users, &common.filter)?;
    binds::send(control, READY, &trees).named("report")?;
    drop(trees);
    // The launcher has all it wanted; what follows is the guest's.
    namespace::close_all_from(3, &[listener.as_fd()]).named("close descriptors")?;
    nullspace_guest::run_as_init(listener.into(), config).named("run the guest")
}

/// Reads one length-prefixed JSON message from the launcher.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(control: &mut UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    control.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > crate::wire::MAX_MESSAGE {
        return Err(io::Error::other("the order is too long"));
    }
    let mut message = vec![0; length];
    control.read_exact(&mut message)?;
    Ok(serde_json::from_slice(&message)?)
}

/// A file system in memory of this process's own view, over the scratch directory: the mount points of the
/// layers, and `/dev`, `/proc` and `/sys` as the machine will have them. It goes away with the old root.
fn prepare_mounts(common: &Common, users: BorrowedFd<'_>, first_id: u32) -> Step<Root> {
    // Whoever started the server may have had another one; the modes of files made here are seen inside.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Nothing that is mounted from here on is seen by the host.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .named("detach from the host's mounts")?;
    let scratch = &common.scratch;
    attach(
        &new_fs(
            "tmpfs",
            &[("size", "1m"), ("mode", "0700")],
            MountAttrFlags::empty(),
        )?,
        scratch,
    )
    .named("mount the scratch file system")?;
    for name in ["l0", "w", "root"] {
        fs::create_dir(scratch.join(name)).named("make a mount point")?;
    }
    mount_layer(&common.system_layer, &scratch.join("l0"), users)?;
    let stage = Root::open(scratch, first_id).named("open the scratch file system")?;
    make_dev(&stage)?;
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    stage
        .mount(&new_fs("proc", &[], quiet)?, "/proc", true)
        .named("mount /proc")?;
    // The host's own `/proc` would do, but there the settings of all networks are in one list, and the
    // thousandth machine waits for the kernel to pass by the others.
    network::configure(&scratch.join("proc")).named("configure the network")?;
    let sys = new_fs("sysfs", &[], quiet | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    stage.mount(&sys, "/sys", true).named("mount /sys")?;
    mask(&stage)?;
    Ok(stage)
}

fn mount_layer(layer: &Path, at: &Path, users: BorrowedFd<'_>) -> Step<()> {
    let attributes = Attributes {
        read_only: true,
        no_dev: true,
        id_map: Some(users),
        ..Attributes::default()
    };
    clone_path(layer, attributes)
        .and_then(|tree| attach(&tree, at))
        .map_err(|e| (format!("mount layer {}", layer.display()), e))
}

/// A root that is put together but for what the order says.
struct MachineRoot {
    inside: Root,
    /// Its layers, and which directories they were when it was made.
    lower: Vec<(PathBuf, Option<(u64, u64)>)>,
    limit: Option<u64>,
    /// The file system that its writable layer has for itself.
    disk: Option<Passing>,
}

impl MachineRoot {
    /// Whether it is what is wanted now.
    fn is_of(&self, wanted: &Ahead) -> bool {
        let lower = &wanted.lower;
        self.limit == wanted.disk_bytes
            && self.lower.len() == lower.len()
            && self.lower.iter().zip(lower).all(|((path, which), wanted)| {
                path == wanted && which.is_some() && *which == which_directory(wanted)
            })
    }
}

/// A directory's device and inode.
pub(super) fn which_directory(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Puts a root together in the scratch file system, with the writable layer in `directory`.
fn make_root(
    stage: &Root,
    directory: &Path,
    wanted: &Ahead,
    common: &Common,
    users: BorrowedFd<'_>,
) -> Step<MachineRoot> {
    // Everything is named from here: a machine can read what its overlay was told.
    rustix::process::chdir(&common.scratch).named("enter the scratch file system")?;
    let mut layers = vec!["l0".to_owned()];
    let mut seen = Vec::new();
    for (n, layer) in wanted.lower.iter().enumerate() {
        let at = format!("l{}", n + 1);
        fs::create_dir(&at).named("make a mount point")?;
        seen.push((layer.clone(), which_directory(layer)));
        mount_layer(layer, Path::new(&at), users)?;
        layers.push(at);
    }
    let at = Path::new("w");
    let disk = writable::mount(directory, wanted.disk_bytes, common, at)?;
    writable::fill(at, stage.first_id).named("make the writable layer")?;
    let root = Path::new("root");
    let overlay = new_overlay(&layers.join(":"), at)?;
    attach(&overlay, root).named("mount the root")?;
    let inside = Root::open(root, stage.first_id).named("open the root")?;
    for path in ["/dev", "/proc", "/sys"] {
        let move_it = || {
            let tree = stage.look_up(path, OFlags::PATH)?;
            inside.mount(&tree, path, true)
        };
        move_it().map_err(|e| (format!("move {path} into the root"), e))?;
    }
    Ok(MachineRoot {
        inside,
        lower: seen,
        limit: wanted.disk_bytes,
        disk,
    })
}

/// Takes apart what there is of a root, to the state in which [`make_root`] can be called.
fn start_over(common: &Common, directory: &Path) -> Step<()> {
    let scratch = &common.scratch;
    let root = scratch.join("root");
    for name in ["dev", "proc", "sys"] {
        let (from, to) = (root.join(name), scratch.join(name));
        // Nothing is there, or only an empty directory of a layer, if the root was not made so far.
        let _ = rustix::mount::mount_move(&from, &to);
    }
    let _ = rustix::mount::unmount(&root, UnmountFlags::DETACH);
    let _ = rustix::mount::unmount(scratch.join("w"), UnmountFlags::DETACH);
    for n in 1.. {
        let at = scratch.join(format!("l{n}"));
        if !at.exists() {
            break;
        }
        let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH);
        fs::remove_dir(&at).named("remove a mount point")?;
    }
    writable::put_aside(directory)
}

/// Adds what the order asks for and moves into the root. Answers with the mounts of the binds.
fn enter_root(spec: &MachineSpec, inside: &Root, users: BorrowedFd<'_>) -> Step<Vec<OwnedFd>> {
    rustix::system::sethostname(spec.hostname.as_bytes()).named("set the host name")?;
    if spec.egress.is_closed() {
        network::cut().named("cut the network")?;
    }
    inside
        .look_up("/etc/hosts", OFlags::WRONLY | OFlags::TRUNC)
        .map_err(io::Error::from)
        .and_then(|fd| {
            File::from(fd).write_all(system_layer::hosts(Some(&spec.hostname)).as_bytes())
        })
        .named("write /etc/hosts")?;
    let mut binds = Vec::with_capacity(spec.binds.len());
    for bind in &spec.binds {
        let (tree, is_dir) = binds::tree(bind, Some(users))
            .map_err(|e| binds::failed(format!("bind for {}", bind.target.display()), e))?;
        let target = bind.target.display().to_string();
        inside
            .mount(&tree, &target, is_dir)
            .map_err(|e| binds::failed(format!("bind onto {target}"), e))?;
        binds.push(tree);
    }
    mount_shared_memory(inside, spec.memory_bytes)?;
    inside
        .make_dir(&spec.cwd)
        .map_err(|e| binds::failed("make the working directory".to_owned(), e))?;

    rustix::process::fchdir(&inside.fd).named("enter the root")?;
    rustix::process::pivot_root(".", ".").named("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).named("leave the old root")?;
    rustix::process::chdir("/").named("enter the root")?;
    Ok(binds)
}

/// The root: layers, topmost first, under one writable layer.
///
/// A machine does not outlive a crash of the host, so nothing of it has to be on the disk at any moment: the
/// overlay is volatile where the kernel has that. Otherwise the end of each machine would wait for the disk,
/// and each `fsync` in a machine for all that others write.
pub(super) fn new_overlay(lower: &str, writable: &Path) -> Step<OwnedFd> {
    let work = |volatile: bool| -> rustix::io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |name: &str, value: &Path| fsconfig_set_string(context.as_fd(), name, value);
        set("lowerdir", Path::new(lower))?;
        set("upperdir", &writable.join(UPPER))?;
        set("workdir", &writable.join(WORK))?;
        // Renaming a directory of a layer works as on any file system.
        set("redirect_dir", Path::new("on"))?;
        if volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        )
    };
    match work(true) {
        Err(rustix::io::Errno::INVAL) => work(false),
        result => result,
    }
    .named("make the overlay")
}

/// The machine's own identity and the end of all other rights.
fn enter(users: &OwnedFd, filter: &Filter) -> Step<()> {
    namespace::limit(Resource::OpenFiles, OPEN_FILES).named("limit open files")?;
    namespace::limit(Resource::CoreSize, 0).named("limit core dumps")?;
    namespace::limit(Resource::LockedMemory, 8 << 20).named("limit locked memory")?;
    // Written with the host's rights, this is also the least that anything in the machine can set for itself: when
    // the host runs out of memory a machine must not outlive the host's own programs. The guest starts its programs
    // with more, so they go before it does.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    namespace::enter_user(users.as_fd()).named("enter the user namespace")?;
    let keep = CAPABILITIES.iter().fold(0, |bits, n| bits | (1 << n));
    namespace::drop_capabilities(keep).named("drop capabilities")?;
    namespace::lock_down().named("lock down")?;
    filter.install().named("install the system call filter")
}

/// A new file system instance, mounted nowhere yet.
pub(super) fn new_fs(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Step<OwnedFd> {
    let work = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (name, value) in options {
            fsconfig_set_string(context.as_fd(), *name, *value)?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    work().named(&format!("make a {kind} file system"))
}

pub(super) fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        "",
        CWD,
        at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

pub(super) fn clone_path(path: &Path, attributes: Attributes<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(OsStr::as_bytes(path.as_os_str()))?;
    clone_tree(CWD, &path, attributes)
}

/// The machine's root, while it is put together and later. Its contents are not trusted: every path is resolved
/// beneath it and through no link.
pub(super) struct Root {
    fd: File,
    first_id: u32,
}

impl Root {
    pub(super) fn open(path: &Path, first_id: u32) -> io::Result<Self> {
        Ok(Self {
            fd: File::open(path)?,
            first_id,
        })
    }

    fn look_up(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = match path.trim_start_matches('/') {
            "" => ".",
            path => path,
        };
        let resolve =
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(
            &self.fd,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }

    /// Makes a directory and its parents, owned by the machine's root.
    fn make_dir(&self, path: &str) -> io::Result<OwnedFd> {
        let mut at = self.look_up("/", OFlags::PATH)?;
        let mut shown = String::new();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            shown = format!("{shown}/{part}");
            match self.look_up(&shown, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(next) => at = next,
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755))?;
                    let next = self.look_up(&shown, OFlags::PATH | OFlags::DIRECTORY)?;
                    self.own(&next)?;
                    at = next;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(at)
    }

    fn own(&self, fd: &OwnedFd) -> rustix::io::Result<()> {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(self.first_id),
            rustix::fs::Gid::from_raw(self.first_id),
        );
        rustix::fs::chownat(
            fd,
            "",
            Some(uid),
            Some(gid),
            rustix::fs::AtFlags::EMPTY_PATH,
        )
    }

    /// Mounts a tree at a path, which is made if it is missing.
    pub(super) fn mount(&self, tree: &OwnedFd, path: &str, is_dir: bool) -> io::Result<()> {
        let at = if is_dir {
            self.make_dir(path)?
        } else {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = self.make_dir(parent)?;
            match rustix::fs::openat(
                &parent,
                name,
                OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o644),
            ) {
                Ok(_) | Err(rustix::io::Errno::EXIST) => self.look_up(path, OFlags::PATH)?,
                Err(error) => return Err(error.into()),
            }
        };
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(tree, "", &at, "", flags)?)
    }
}

/// A small `/dev` of the machine's own; `/dev/shm` is mounted over once its size is known.
fn make_dev(root: &Root) -> Step<()> {
    use rustix::fs::{FileType, makedev, mknodat, symlinkat};
    let id = root.first_id.to_string();
    let (no_suid, no_exec) = (
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        MountAttrFlags::MOUNT_ATTR_NOEXEC,
    );
    let small = [
        ("mode", "0755"),
        ("uid", id.as_str()),
        ("gid", id.as_str()),
        ("size", "64k"),
    ];
    let dev = new_fs("tmpfs", &small, no_suid | no_exec)?;
    root.mount(&dev, "/dev", true).named("mount /dev")?;
    let at = root.look_up("/dev", OFlags::PATH).named("open /dev")?;
    // The umask must not take bits from the modes below.
    let umask = rustix::process::umask(Mode::empty());
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(
            &at,
            name,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        )
        .map_err(|e| (format!("make /dev/{name}"), e.into()))?;
    }
    rustix::process::umask(umask);
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        symlinkat(target, &at, name).map_err(|e| (format!("make /dev/{name}"), e.into()))?;
    }
    let tty_group = (root.first_id + 5).to_string();
    let terminals = new_fs(
        "devpts",
        &[("ptmxmode", "0666"), ("mode", "0620"), ("gid", &tty_group)],
        no_suid | no_exec,
    )?;
    root.mount(&terminals, "/dev/pts", true)
        .named("mount /dev/pts")?;
    root.make_dir("/dev/shm").named("make /dev/shm").map(drop)
}

fn mount_shared_memory(root: &Root, memory_bytes: u64) -> Step<()> {
    let (id, half) = (root.first_id.to_string(), (memory_bytes / 2).to_string());
    let options = [
        ("mode", "1777"),
        ("uid", id.as_str()),
        ("gid", id.as_str()),
        ("size", half.as_str()),
    ];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    let shared = new_fs("tmpfs", &options, attributes)?;
    root.mount(&shared, "/dev/shm", true)
        .named("mount /dev/shm")
}

/// Hides what tells about the host, and makes kernel settings unwritable. The machine's root has no
/// rights over these files anyway; this holds should that ever fail.
fn mask(root: &Root) -> Step<()> {
    let empty = new_fs(
        "tmpfs",
        &[("size", "4k"), ("mode", "0555")],
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let mut empty = Some(empty);
    for path in [
        "/sys/firmware",
        "/sys/kernel",
        "/sys/fs",
        "/sys/devices/virtual/powercap",
        "/proc/acpi",
        "/proc/scsi",
    ] {
        let Ok(at) = root.look_up(path, OFlags::PATH | OFlags::DIRECTORY) else {
            continue;
        };
        let tree = match empty.take() {
            Some(tree) => tree,
            None => {
                let source = root.look_up("/sys/firmware", OFlags::PATH);
                let source = source
                    .or_else(|_| root.look_up("/sys/kernel", OFlags::PATH))
                    .named("open a mask")?;
                clone_tree(
                    source.as_fd(),
                    c"",
                    Attributes {
                        read_only: true,
                        ..Attributes::default()
                    },
                )
                .named("clone a mask")?
            }
        };
        over(&tree, &at).map_err(|e| (format!("mask {path}"), e))?;
    }
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/key-users",
        "/proc/timer_list",
        "/proc/latency_stats",
        "/proc/kallsyms",
        "/proc/config.gz",
    ] {
        let Ok(at) = root.look_up(path, OFlags::PATH) else {
            continue;
        };
        let null = root
            .look_up("/dev/null", OFlags::PATH)
            .named("open /dev/null")?;
        let tree = clone_tree(
            null.as_fd(),
            c"",
            Attributes {
                read_only: true,
                ..Attributes::default()
            },
        )
        .named("clone a mask")?;
        over(&tree, &at).map_err(|e| (format!("mask {path}"), e))?;
    }
    for path in [
        "/proc/sys",
        "/proc/irq",
        "/proc/bus",
        "/proc/fs",
        "/proc/sysrq-trigger",
    ] {
        let Ok(at) = root.look_up(path, OFlags::PATH) else {
            continue;
        };
        let attributes = Attributes {
            read_only: true,
            no_suid: true,
            no_dev: true,
            no_exec: true,
            id_map: None,
        };
        let tree =
            clone_tree(at.as_fd(), c"", attributes).map_err(|e| (format!("clone {path}"), e))?;
        over(&tree, &at).map_err(|e| (format!("protect {path}"), e))?;
    }
    Ok(())
}

fn over(tree: &OwnedFd, at: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", at, "", flags)?)
}

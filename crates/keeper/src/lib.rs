//! The keeper: a guest for a directory instead of a machine, so that files of volumes can be worked on without one.
//!
//! ```text
//!  serve ──start──▶ keeper: own namespaces ─▶ the directory is its root ─▶ own identity ─▶ guest protocol on stdin
//!    └── the stream ends (serve let go of it, or died) ──▶ the keeper ends
//! ```
//! What is in a volume is hostile: machines write it. Whatever a path or a link in it says, the process that opens it has no
//! other file system than the volume, no network, and an identity outside the volume that owns nothing on the host. So the
//! code that does this inside machines (`nullspace-guest`) does it here as it is, and nothing else in `serve` ever opens a
//! path of a volume. Used by `nullspace-server`, which starts keepers, and by the programs that are one.

#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nullspace_sys::{
    image,
    mount::{Attributes, clone_tree, set_attributes},
    namespace::{self, Namespaces, Resource},
    stream::LocalStream,
};
use rustix::{
    fs::{Mode, OFlags},
    mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, move_mount},
};

/// First host id of a keeper's own: the range before those of machines.
const FIRST_ID: u32 = 0x0fff_0000;
/// How many; those of files in a volume, as machines have them.
const IDS: u32 = 65_536;
/// What it keeps of root's rights, over the volume's files alone.
const CAPABILITIES: [u32; 4] = [
    0, // CHOWN
    1, // DAC_OVERRIDE
    3, // FOWNER
    4, // FSETID
];
/// How long what was under way has to end after the stream has.
const LEAVING: std::time::Duration = std::time::Duration::from_secs(10);
/// Descriptors.
const OPEN_FILES: u64 = 4096;

/// Starts a keeper. `program` and its first arguments run [`main`]; it ends when the stream is closed.
///
/// # Errors
/// When it cannot be started. What fails later closes the stream; the reason is on the caller's standard error.
pub fn start(program: &[String], directory: &Path) -> io::Result<(UnixStream, Child)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (name, arguments) = program
        .split_first()
        .ok_or_else(|| io::Error::other("no program is named"))?;
    let child = Command::new(name)
        .args(arguments)
        .arg(directory)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .env_clear()
        // A Ctrl-C at the server's terminal is not for it: requests under way may finish.
        .process_group(0)
        .spawn()?;
    Ok((ours, child))
}

/// Is a keeper of this directory until the stream on standard input ends.
///
/// # Errors
/// When a step on the way in fails.
pub fn main(directory: &Path) -> io::Result<()> {
    let named = |step: &'static str| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{step}: {error}"))
    };
    // Its own, so that nothing of the server's can be reached through it.
    let stream = io::stdin().as_fd().try_clone_to_owned()?;
    namespace::close_all_from(3, &[stream.as_fd()]).map_err(named("close descriptors"))?;
    namespace::set_name("nullspace keep");
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let users = namespace::user_namespace(FIRST_ID, IDS).map_err(named("make a user namespace"))?;
    namespace::unshare(Namespaces::MACHINE).map_err(named("make namespaces"))?;
    enter_root(directory, &users).map_err(named("enter the directory"))?;
    namespace::limit(Resource::OpenFiles, OPEN_FILES).map_err(named("limit open files"))?;
    namespace::limit(Resource::CoreSize, 0).map_err(named("limit core dumps"))?;
    namespace::enter_user(users.as_fd()).map_err(named("enter the user namespace"))?;
    drop(users);
    let keep = CAPABILITIES.iter().fold(0, |bits, n| bits | (1 << n));
    namespace::drop_capabilities(keep).map_err(named("drop capabilities"))?;
    namespace::harden().map_err(named("lock down"))?;
    serve(stream)
}

/// Makes the directory the root, with owners as machines see them, and lets go of everything else.
fn enter_root(directory: &Path, users: &OwnedFd) -> io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::open(directory, flags, Mode::empty())?;
    let attributes = Attributes {
        no_suid: true,
        no_dev: true,
        no_exec: true,
        id_map: Some(users.as_fd()),
        ..Attributes::default()
    };
    let tree = match image::mount(directory)? {
        None => clone_tree(source.as_fd(), c"", attributes)?,
        Some(mounted) => {
            set_attributes(&mounted, attributes)?;
            mounted
        }
    };
    // Over the directory itself: anywhere would do, and this one is there.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &source, "", flags)?;
    rustix::process::fchdir(&tree)?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn serve(stream: OwnedFd) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_stack_size(512 << 10)
        .build()?;
    let served = runtime.block_on(async move {
        let guest = nullspace_guest::Guest::new(nullspace_guest::Config {
            env: BTreeMap::new(),
            cwd: "/".to_owned(),
            root: PathBuf::from("/"),
            init: false,
        })?;
        let stream = LocalStream::new(UnixStream::from(stream))?;
        guest.serve(stream).await;
        Ok(())
    });
    // Whoever wanted what is still being done is gone; but what is half written is removed by the thread that writes it,
    // once the task that it hears from is dropped. Dropping the runtime does both in this order and waits for the threads,
    // which shutting it down with a timeout does not: so there is an end to the waiting here.
    std::thread::Builder::new().spawn(|| {
        std::thread::sleep(LEAVING);
        std::process::exit(0)
    })?;
    drop(runtime);
    served
}

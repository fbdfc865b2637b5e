//! Forking, and entering namespaces for good.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use crate::check;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The caller; the child has this process id.
    Parent(i32),
    /// The new process.
    Child,
}

/// Namespaces to make anew, as the kernel's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces(i32);

impl Namespaces {
    /// Mount, network, UTS, IPC and cgroup (its root is where the process is now): what a process may leave
    /// without a fork.
    pub const MACHINE: Self = Self(
        libc::CLONE_NEWNS
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWCGROUP,
    );
    /// Mount alone.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS);
    /// Interfaces, addresses, routes, the packet filter.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET);
    /// User: the caller becomes nobody in it until the maps are written.
    pub const USER: Self = Self(libc::CLONE_NEWUSER);
}

/// Leaves the namespaces of these kinds for new ones.
///
/// # Errors
/// unshare(2)'s.
pub fn unshare(kinds: Namespaces) -> io::Result<()> {
    // SAFETY: plain flags; none of them splits the file table or the address space of a thread.
    check(unsafe { libc::unshare(kinds.0) }).map(drop)
}

/// Forks a child that is process 1 of a new pid namespace. `own` is this process's own pid namespace
/// (`/proc/self/ns/pid`), to which later forks go back.
///
/// # Errors
/// unshare(2)'s, fork(2)'s and setns(2)'s; `EINVAL` when the caller has more than one thread.
pub fn fork_init(own: BorrowedFd<'_>) -> io::Result<Fork> {
    // SAFETY: plain flags; only affects where children go.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) })?;
    let forked = fork();
    if forked.as_ref().is_ok_and(|f| *f == Fork::Child) {
        return forked;
    }
    // SAFETY: a live descriptor and plain flags.
    check(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWPID) })?;
    forked
}

/// Forks. The caller must have one thread only: locks that another thread holds would stay locked in the
/// child for ever, so this is checked.
///
/// # Errors
/// fork(2)'s; `EINVAL` when the caller has more than one thread.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: there is one thread, so the child's copy of every lock and allocator is consistent.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Ends this process at once, running no exit handlers: they belong to the parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

/// Enters a user namespace as its root and gives up every identity outside it.
///
/// # Errors
/// setns(2)'s and the setters'.
pub fn enter_user(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a live descriptor and plain numbers. The raw syscalls change this thread alone, and it is
    // the only one.
    unsafe {
        check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER))?;
        check(libc::syscall(
            libc::SYS_setgroups,
            0,
            std::ptr::null::<libc::gid_t>(),
        ))?;
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
    }
    Ok(())
}

/// Makes a user namespace whose ids 0 to `count` - 1 are those from `first` on outside it. It is held by the descriptor
/// alone. The caller must have one thread, as for [`fork`].
///
/// # Errors
/// fork(2)'s, and those of writing the maps, for which the caller must have the rights over these ids.
pub fn user_namespace(first: u32, count: u32) -> io::Result<OwnedFd> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    match fork()? {
        Fork::Child => {
            // Lives until the parent closes its end.
            let made = unshare(Namespaces::USER).is_ok();
            drop(ours);
            let _ = theirs.write_all(&[u8::from(made)]);
            let _ = theirs.read(&mut [0]);
            exit_now(0)
        }
        Fork::Parent(pid) => {
            drop(theirs);
            let mut work = || {
                let mut made = [0];
                ours.read_exact(&mut made)?;
                if made != [1] {
                    return Err(io::Error::other(
                        "user namespaces cannot be made on this host",
                    ));
                }
                let map = format!("0 {first} {count}\n");
                std::fs::write(format!("/proc/{pid}/uid_map"), &map)?;
                std::fs::write(format!("/proc/{pid}/gid_map"), &map)?;
                open(pid, "user").map(OwnedFd::from)
            };
            let namespace = work();
            drop(ours);
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            }
            namespace
        }
    }
}

/// Opens a namespace of a process, by the name it has in `/proc/PID/ns`.
///
/// # Errors
/// open(2)'s.
pub fn open(pid: i32, kind: &str) -> io::Result<File> {
    File::open(format!("/proc/{pid}/ns/{kind}"))
}

/// Gives up every capability but those in `keep` (bits as in capabilities(7)), for this process and all
/// it will ever start.
///
/// # Errors
/// prctl(2)'s and capset(2)'s.
pub fn drop_capabilities(keep: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // Numbers past the last that the kernel knows give EINVAL: that ends the loop.
    for capability in 0..64u64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    // SAFETY: plain numbers.
    check(unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    })?;
    let half = |shift: u32| {
        let bits = (keep >> shift) as u32;
        Data {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the header takes two data elements; both live on this frame.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Which process state a machine's process 1 has: not readable or traceable from inside, killed with its
/// parent, without new privileges.
///
/// # Errors
/// prctl(2)'s.
pub fn lock_down() -> io::Result<()> {
    die_with_parent()?;
    harden()
}

/// Makes this process not readable or traceable by others of its user, and without new privileges.
///
/// # Errors
/// prctl(2)'s.
pub fn harden() -> io::Result<()> {
    // SAFETY: plain numbers.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
    }
    Ok(())
}

/// Dies with the parent process.
///
/// # Errors
/// prctl(2)'s.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// Points standard input, output and error at `/dev/null`, so that whoever was at the other end is let go.
///
/// # Errors
/// open(2)'s and dup2(2)'s.
pub fn let_go_of_standard_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: a live descriptor onto ones that no object of this process owns.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// The name that lists of processes show for this one; at most 15 bytes count.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: a NUL-terminated string; the kernel copies 16 bytes at most up to the NUL.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    }
}

/// Sets both limits of a resource, or the nearest that the hard limit allows.
///
/// # Errors
/// setrlimit(2)'s.
pub fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let resource = match resource {
        Resource::OpenFiles => libc::RLIMIT_NOFILE,
        Resource::CoreSize => libc::RLIMIT_CORE,
        Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
    };
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls are given a live struct of plain numbers.
    unsafe {
        check(libc::getrlimit(resource, &raw mut now))?;
        let value = value.min(now.rlim_max);
        let limits = libc::rlimit {
            rlim_cur: value,
            rlim_max: value,
        };
        check(libc::setrlimit(resource, &raw const limits)).map(drop)
    }
}

/// What [`limit`] limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Descriptors of one process.
    OpenFiles,
    /// Bytes of a core dump.
    CoreSize,
    /// Bytes of memory that may not be swapped.
    LockedMemory,
}

/// Closes every descriptor from `first` on except those in `keep` (any order).
///
/// # Errors
/// close_range(2)'s.
pub fn close_all_from(first: u32, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut from = first;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > from {
            let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
            // SAFETY: the caller is a fresh child: no object that owns one of these descriptors is used
            // again before the process ends.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) })?;
        }
        from = from.max(fd.saturating_add(1));
    }
    Ok(())
}

//! Starting a command, quickly.
//!
//! The child shares the caller's memory until it execs, so its cost does not grow with the caller. The C
//! library's `posix_spawn` does the same, but where clone3(2) is not to be had it asks and sets what becomes of
//! each of 64 signals, which takes a fifth of the time that a command needs to start.

use std::{
    ffi::{CStr, CString},
    io, iter,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
    sync::OnceLock,
};

/// What to start.
#[derive(Debug)]
pub struct Command<'a> {
    /// Path of the program; not searched for.
    pub program: &'a CStr,
    /// Arguments, the first is the name the program sees.
    pub argv: &'a [CString],
    /// `NAME=value` strings: the whole environment.
    pub env: &'a [CString],
    /// Working directory.
    pub cwd: &'a CStr,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whom to become first; the caller's own user when absent.
    pub identity: Option<Identity<'a>>,
    /// Standard input is a terminal that belongs to no session: it becomes the controlling one of the command's.
    pub terminal: bool,
}

/// A user of the system.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups.
    pub groups: &'a [u32],
}

/// Starts the command in a session of its own with default signal handling, and returns its process id.
/// The caller must wait for it. Every descriptor of the caller that is not close-on-exec is inherited.
///
/// # Errors
/// What exec(2), chdir(2) or clone(2) said; the child is gone then.
pub fn spawn(command: &Command<'_>) -> io::Result<i32> {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let null = iter::once(ptr::null());
        strings.iter().map(|s| s.as_ptr()).chain(null).collect()
    };
    let (argv, env) = (pointers(command.argv), pointers(command.env));
    let mut start = Start {
        program: command.program.as_ptr(),
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: command.cwd.as_ptr(),
        stdio: command.stdio.map(|fd| fd.as_raw_fd()),
        identity: command.identity,
        terminal: command.terminal,
        ignored: ignored_signals(),
        error: 0,
    };
    let mut stack: Vec<MaybeUninit<u128>> = Vec::with_capacity(STACK / size_of::<u128>());
    // SAFETY: the stack grows downwards from one past the end of the allocation, aligned to 16 bytes as the
    // ABI asks for. Signals are blocked in this thread from before the child exists until
    // it has gone its own way, so that no handler runs on that stack in shared memory. With CLONE_VFORK the
    // call returns after that, so that `stack`, `start` and what it points to outlive the child's use.
    let pid = unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let pid = libc::clone(
            become_command,
            stack.as_mut_ptr().add(stack.capacity()).cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut start).cast(),
        );
        let failure = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
        if pid < 0 {
            return Err(failure);
        }
        pid
    };
    // SAFETY: the child wrote to it through the pointer that it was given; read as what may have changed.
    let error = unsafe { ptr::read_volatile(&raw const start.error) };
    if error == 0 {
        return Ok(pid);
    }
    // SAFETY: a child of this process and no place for its status.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    Err(io::Error::from_raw_os_error(error))
}

/// Room for a few calls into the C library and the kernel.
const STACK: usize = 32 << 10;

/// What the child is told, and what it says when it fails.
struct Start<'a> {
    program: *const libc::c_char,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: *const libc::c_char,
    stdio: [i32; 3],
    identity: Option<Identity<'a>>,
    terminal: bool,
    ignored: &'static [libc::c_int],
    error: libc::c_int,
}

/// The child, in its parent's memory while the parent waits: it calls nothing that allocates, locks or
/// panics. Ends by becoming the command, or with `error` set.
extern "C" fn become_command(start: *mut libc::c_void) -> libc::c_int {
    let start = start.cast::<Start<'_>>();
    // SAFETY: the parent's `Start`, which nobody else looks at meanwhile, with live NUL-terminated strings and
    // lists. The signal structures are plain data for which zeroes are valid: default handling, no mask.
    unsafe {
        libc::setsid();
        let failed = !become_user((*start).identity)
            || libc::chdir((*start).cwd) < 0
            // Targets 0..=2 are below every source: the caller's own standard streams are open.
            || libc::dup2((*start).stdio[0], 0) < 0
            || libc::dup2((*start).stdio[1], 1) < 0
            || libc::dup2((*start).stdio[2], 2) < 0
            || ((*start).terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0);
        if !failed {
            let default: libc::sigaction = std::mem::zeroed();
            for signal in HANDLED.iter().chain((*start).ignored) {
                libc::sigaction(*signal, &raw const default, ptr::null_mut());
            }
            let none: libc::sigset_t = std::mem::zeroed();
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            libc::execve((*start).program, (*start).argv, (*start).env);
        }
        ptr::write_volatile(&raw mut (*start).error, *libc::__errno_location());
        libc::_exit(127)
    }
}

/// Changes the calling task alone, while it shares its parent's memory: the C library's own setters would do it to every
/// thread that they know of.
///
/// # Safety
/// The list of groups must be live.
unsafe fn become_user(identity: Option<Identity<'_>>) -> bool {
    let Some(Identity { uid, gid, groups }) = identity else {
        return true;
    };
    // SAFETY: plain numbers, and a list of the length given.
    unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
            && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
    }
}

/// Signals that a process which starts commands has handlers for: the language's own for stack overflows, and
/// the guest's reaper. exec(2) resets handlers, but before it no handler may run in shared memory; any other
/// that is added belongs here (a test of the guest compares).
pub const HANDLED: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGCHLD];

/// The signals that this process ignores: exec(2) resets handlers by itself, but a program would go on
/// ignoring these. Asked for once, because it takes a system call for every signal there is; a process that
/// forks can have its children know already by calling this. Signals that are ignored later are missed.
pub fn ignored_signals() -> &'static [libc::c_int] {
    static IGNORED: OnceLock<Vec<libc::c_int>> = OnceLock::new();
    IGNORED.get_or_init(|| {
        (1..=libc::SIGRTMAX())
            .filter(|signal| {
                // SAFETY: sigaction is plain data, for which zeroes are valid; with a null new action the
                // call only writes the old one, and refuses numbers that are no signals.
                unsafe {
                    let mut old: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(*signal, ptr::null(), &raw mut old) == 0
                        && old.sa_sigaction == libc::SIG_IGN
                }
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::fd::AsFd};

    use super::*;

    fn start(program: &CStr, argv: &[&str], cwd: &CStr, out: &File) -> io::Result<i32> {
        let null = File::open("/dev/null")?;
        let argv: Vec<CString> = argv.iter().flat_map(|a| CString::new(*a)).collect();
        spawn(&Command {
            program,
            argv: &argv,
            env: &[c"GREETING=hello".to_owned()],
            cwd,
            stdio: [null.as_fd(), out.as_fd(), out.as_fd()],
            identity: None,
            terminal: false,
        })
    }

    fn wait(pid: i32) -> i32 {
        let mut status = 0;
        // SAFETY: a live place for the status.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(waited, pid, "{}", io::Error::last_os_error());
        libc::WEXITSTATUS(status)
    }

    #[test]
    fn a_command_has_what_it_was_given_and_nothing_of_the_callers() {
        let (mut read, write) = io::pipe().expect("a pipe");
        assert!(
            ignored_signals().contains(&libc::SIGPIPE),
            "as every Rust program"
        );
        let script = "echo $GREETING $1; pwd; ps -o sid= -p $$; grep -E 'Sig(Blk|Ign)' /proc/self/status; exit 7";
        let out = File::from(std::os::fd::OwnedFd::from(write));
        let pid = start(
            c"/bin/sh",
            &["sh", "-c", script, "sh", "you"],
            c"/usr",
            &out,
        )
        .expect("spawn");
        drop(out);
        let mut text = String::new();
        read.read_to_string(&mut text).expect("output");
        assert_eq!(wait(pid), 7);
        let words: Vec<&str> = text.split_whitespace().collect();
        let session = pid.to_string();
        assert_eq!(words[..4], ["hello", "you", "/usr", &session]);
        let mask = |at: usize| u64::from_str_radix(words[at], 16).expect("a mask");
        assert_eq!(words[4], "SigBlk:");
        assert_eq!(mask(5), 0);
        assert_eq!(words[6], "SigIgn:");
        // The two that C libraries keep for themselves may have come from whoever started this.
        assert_eq!(mask(7) & !(0b11 << 31), 0);
    }

    #[test]
    fn a_command_can_be_another_user_and_the_caller_stays_who_it_is() {
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            println!("skipped: only root can become somebody else");
            return;
        }
        let (mut read, write) = io::pipe().expect("a pipe");
        let null = File::open("/dev/null").expect("null");
        let argv = ["sh", "-c", "id -u; id -g; id -G"].map(|a| CString::new(a).expect("text"));
        let pid = spawn(&Command {
            program: c"/bin/sh",
            argv: &argv,
            env: &[c"PATH=/usr/bin:/bin".to_owned()],
            cwd: c"/",
            stdio: [null.as_fd(), write.as_fd(), write.as_fd()],
            identity: Some(Identity {
                uid: 65_531,
                gid: 65_532,
                groups: &[65_532, 65_533],
            }),
            terminal: false,
        })
        .expect("spawn");
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).expect("output");
        assert_eq!(wait(pid), 0);
        assert_eq!(text, "65531\n65532\n65532 65533\n");
        // SAFETY: as above.
        assert_eq!(unsafe { libc::geteuid() }, 0);
    }

    #[test]
    fn what_cannot_start_says_why_and_leaves_no_child() {
        let null = File::options().write(true).open("/dev/null").expect("null");
        for (program, cwd, error) in [
            (c"/nowhere/program", c"/", libc::ENOENT),
            (c"/etc/passwd", c"/", libc::EACCES),
            (c"/bin/true", c"/nowhere", libc::ENOENT),
        ] {
            let refused = start(program, &["x"], cwd, &null).expect_err("no such thing");
            assert_eq!(refused.raw_os_error(), Some(error), "{program:?}");
        }
        let children = std::fs::read_to_string("/proc/thread-self/children").expect("children");
        assert_eq!(children, "");
    }
}

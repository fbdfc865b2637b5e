//! Starting a command, quickly.
//!
//! `posix_spawn` shares the caller's memory with the child until it execs, so its cost does not grow
//! with the caller, and the C library does the part between fork and exec that must not allocate.

use std::{
    ffi::{CStr, CString},
    io,
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
}

/// Starts the command in a session of its own with default signal handling, and returns its process id.
/// The caller must wait for it. Every descriptor of the caller that is not close-on-exec is inherited.
///
/// # Errors
/// What exec(2), chdir(2) or clone(2) said; the child is gone then.
pub fn spawn(command: &Command<'_>) -> io::Result<i32> {
    let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr().cast_mut())
            .chain([ptr::null_mut()])
            .collect()
    };
    let (argv, env) = (pointers(command.argv), pointers(command.env));
    let mut actions = Actions::new()?;
    actions.chdir(command.cwd)?;
    // Targets 0..=2 are below every source: the caller's own standard streams are open.
    for (target, source) in command.stdio.iter().enumerate() {
        actions.dup2(source.as_raw_fd(), target as i32)?;
    }
    let attributes = Attributes::new()?;
    let mut pid = 0;
    // SAFETY: all pointers are to live, initialised objects owned by this frame; argv and env end with a
    // null pointer and hold NUL-terminated strings that outlive the call. posix_spawn does not write
    // through argv or env although their types say so.
    let code = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            command.program.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            env.as_ptr(),
        )
    };
    check(code)?;
    Ok(pid)
}

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

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = std::mem::MaybeUninit::uninit();
        // SAFETY: init writes a whole value when it returns 0, and only then is it assumed to be there.
        unsafe {
            check(libc::posix_spawn_file_actions_init(raw.as_mut_ptr()))?;
            Ok(Self(raw.assume_init()))
        }
    }

    fn chdir(&mut self, path: &CStr) -> io::Result<()> {
        // SAFETY: self.0 is initialised; the C library copies the path.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, path.as_ptr()) })
    }

    fn dup2(&mut self, from: i32, to: i32) -> io::Result<()> {
        // SAFETY: self.0 is initialised; the numbers are only used in the child.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = std::mem::MaybeUninit::uninit();
        // SAFETY: as in Actions::new; the signal set is initialised by sigemptyset before it is read, and is
        // copied by the setters.
        unsafe {
            check(libc::posix_spawnattr_init(raw.as_mut_ptr()))?;
            let mut this = Self(raw.assume_init());
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            check(libc::posix_spawnattr_setsigmask(
                &raw mut this.0,
                &raw const set,
            ))?;
            for signal in ignored_signals() {
                libc::sigaddset(&raw mut set, *signal);
            }
            check(libc::posix_spawnattr_setsigdefault(
                &raw mut this.0,
                &raw const set,
            ))?;
            let flags = libc::POSIX_SPAWN_SETSIGMASK
                | libc::POSIX_SPAWN_SETSIGDEF
                | libc::POSIX_SPAWN_SETSID as libc::c_int;
            check(libc::posix_spawnattr_setflags(
                &raw mut this.0,
                flags as libc::c_short,
            ))?;
            Ok(this)
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code))
    }
}

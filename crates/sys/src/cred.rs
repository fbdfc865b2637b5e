//! Acting as another user for the length of one closure.

use std::{io, thread};

/// Runs `work` on a thread of its own whose user, groups and file capabilities are those given, and
/// returns what it returned. The other threads of the process keep theirs.
///
/// # Errors
/// `EPERM` when the process may not become that user; a thread that cannot be started.
pub fn as_user<T: Send + 'static>(
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let handle = thread::Builder::new()
        .name("as-user".into())
        .spawn(move || {
            become_user(uid, gid, &groups)?;
            Ok(work())
        })?;
    handle
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the operation panicked")))
}

/// Changes this thread alone: the C library's own setters would change every thread.
fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: raw syscalls with plain numbers; the group list is a live slice of the length given. The
    // thread ends after the one closure, so nothing else ever runs with the changed identity.
    unsafe {
        result(libc::syscall(
            libc::SYS_setgroups,
            groups.len(),
            groups.as_ptr(),
        ))?;
        result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

fn result(code: libc::c_long) -> io::Result<()> {
    if code == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

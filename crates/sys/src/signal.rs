//! Signals to a whole pid namespace.

use std::io;

/// Sends a signal to every process of this pid namespace but process 1, all at once. The caller must be that process.
///
/// # Errors
/// `EPERM` when it is not: on a host it would reach everything; kill(2)'s otherwise, `ESRCH` when there is no other.
pub fn everyone_else(signal: i32) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // SAFETY: plain numbers.
    match unsafe { libc::kill(-1, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_process_1_reaches_everyone() {
        let refused = super::everyone_else(0).map_err(|error| error.raw_os_error());
        assert_eq!(refused, Err(Some(libc::EPERM)));
    }
}

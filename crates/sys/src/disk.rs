//! When what was written reaches the disk.

use std::{fs::File, io, os::fd::AsRawFd};

/// Has the disk begin with so many bytes of a file, and does not wait for it: who syncs the file later then waits for less.
///
/// # Errors
/// What the kernel says, also of earlier writes that failed.
pub fn start_writing(file: &File, from: u64, bytes: u64) -> io::Result<()> {
    let number = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let (from, bytes) = (number(from)?, number(bytes)?);
    let descriptor = file.as_raw_fd();
    // SAFETY: plain numbers; the descriptor is open as long as `file` is borrowed.
    let code =
        unsafe { libc::sync_file_range(descriptor, from, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    super::check(code).map(drop)
}

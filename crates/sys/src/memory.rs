//! How the C library's allocator treats the kernel.

/// Keeps up to `bytes` of freed memory for later use, and takes no smaller allocation from the kernel
/// alone. By itself the allocator gives every freed buffer of 128 KiB back, and a stream of them spends more
/// time on page faults than on copying. Copies of the process inherit this.
///
/// Only the GNU C library can be told; others keep their ways.
pub fn keep_freed(bytes: u32) {
    #[cfg(target_env = "gnu")]
    {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        for setting in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
            // SAFETY: plain numbers; it takes the allocator's own lock. What it refuses stays as it was.
            unsafe { libc::mallopt(setting, bytes) };
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

//! Limits of the host that all machines share.

use std::fs;

/// What the kernel counts for whoever made a user namespace, which for all machines is the host's root: with its usual 128
/// instances one machine could keep every other, and the host's own programs, from watching files. Raised, what a machine
/// takes is bounded by its own memory, to which the kernel charges it, and its open files.
const WATCHES: [(&str, u64); 2] = [
    ("/proc/sys/fs/inotify/max_user_instances", 1 << 16),
    ("/proc/sys/fs/inotify/max_user_watches", 1 << 20),
];

/// Raises what is lower. A host that does not let us keeps its own, and `nullspace doctor` says so.
pub(super) fn raise() {
    for (path, wanted) in WATCHES {
        let text = fs::read_to_string(path).unwrap_or_default();
        if text.trim().parse().is_ok_and(|now: u64| now < wanted) {
            let _ = fs::write(path, wanted.to_string());
        }
    }
}

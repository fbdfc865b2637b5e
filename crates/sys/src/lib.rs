//! The Linux calls that have no safe form elsewhere.
//!
//! Everything unsafe in Nullspace is in this crate, each block with the invariant it relies on; every
//! other crate forbids unsafe code. What `rustix` offers safely is used from there and is not wrapped
//! here again. Callers: `nullspace-guest` (starting commands, acting as a user) and
//! `nullspace-engine-native` (namespaces, mounts, seccomp, the streams between host and guest), `nullspace-engine-gvisor`
//! (checkpoints on the disk), `nullspace-server` (whether a client's system still answers).

#![cfg(target_os = "linux")]

pub mod attempt;
pub mod cred;
pub mod disk;
pub mod image;
mod loop_device;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netfilter;
pub mod netlink;
pub mod seccomp;
pub mod signal;
pub mod spawn;
pub mod stream;
pub mod tcp;
pub mod tree;

use std::io;

/// Turns the C library's -1 into the error it left behind.
fn check(code: impl Into<i64>) -> io::Result<i64> {
    match code.into() {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

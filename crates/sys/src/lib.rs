//! The Linux calls that have no safe form elsewhere.
//!
//! Everything unsafe in Nullspace is in this crate, each block with the invariant it relies on; every
//! other crate forbids unsafe code. What `rustix` offers safely is used from there and is not wrapped
//! here again. Callers: `nullspace-guest` (starting commands, acting as a user) and
//! `nullspace-engine-native` (namespaces, mounts, seccomp).

#![cfg(target_os = "linux")]

pub mod clone;
pub mod cred;
pub mod fd;
pub mod mount;
pub mod net;
pub mod seccomp;
pub mod spawn;

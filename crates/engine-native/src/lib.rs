//! The native engine: machines made of namespaces, an overlay and cgroups.
//!
//! Two processes. [`NativeEngine`] lives in `serve` and does nothing privileged: it asks the launcher over a
//! unix socket and dials guests. [`launcher_main`] is the launcher, a process of its own that builds
//! machines and is their parent; it is started by the first engine that finds none and outlives it.
//!
//! What a machine is made of, what it may do and what it cannot reach is written where it is done:
//! `launcher/inside.rs` (namespaces, root, identity), `launcher/filter.rs` (system calls),
//! `launcher/network.rs` (packets), `launcher/cgroup.rs` (limits).

#![cfg(target_os = "linux")]

mod disk;
mod engine;
mod freezer;
mod launcher;
mod layer;
mod usage;
mod wire;

pub use engine::{Config, NativeEngine, shutdown};
pub use launcher::main as launcher_main;

/// Where a machine finds the host's certificate authorities, when the configuration gives a bundle.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

//! The native engine: machines made of namespaces, an overlay and cgroups.
//!
//! Two processes. [`NativeEngine`] lives in `serve` and does nothing privileged: it asks the launcher over a
//! unix socket (through [`Host`]) and dials guests. [`launcher_main`] is the launcher, a process of its own that builds
//! machines and is their parent; it is started by the first engine that finds none and outlives it.
//!
//! What a machine is made of, what it may do and what it cannot reach is written where it is done:
//! `launcher/inside.rs` (namespaces, root, identity), `launcher/filter.rs` (system calls),
//! `launcher/network.rs` (packets), `launcher/cgroup.rs` (limits).
//!
//! The launcher also makes the machines of the gVisor engine (`launcher/keeper.rs`), which need the same network, limits
//! and care; docs/design/state.md has the reasons.

#![cfg(target_os = "linux")]

mod disk;
mod engine;
mod freezer;
mod host;
mod launcher;
pub mod layer;
mod share;
mod tied;
mod usage;
mod wire;

pub use engine::NativeEngine;
pub use host::{Config, Host, is_id, shutdown};
pub use launcher::{
    main as launcher_main,
    pack::{Pack, find as find_pack},
};
pub use wire::{GvisorConfig, Kind, Origin};

/// Where things are in the directory of a gVisor machine, and in a checkpoint of one.
pub mod place {
    pub use crate::launcher::{GUEST, KEPT_SECRET, LAYER, NAME, SECRET, STATE};
}

/// By which name a gVisor machine finds what is shown at a target.
#[must_use]
pub fn shown_name(target: &std::path::Path) -> String {
    launcher::shown_name(target)
}

/// What the kernel of a gVisor machine may take beyond what the machine does, in bytes.
pub const KERNEL_MEMORY: u64 = launcher::KERNEL_MEMORY;

/// Where a machine finds the host's certificate authorities, when the configuration gives a bundle.
pub const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

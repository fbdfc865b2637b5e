//! The whole system: the real program with real machines, driven over HTTP, by the published SDK and command line, and
//! by ours. `./test` installs what these tests need from Debian.
//!
//! Each test has a server of its own, in a data directory of its own, and leaves nothing behind: see [`world`].

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod attack;
mod bad_input;
mod cli;
mod clock;
mod code;
mod concurrency;
mod crash;
mod disk;
mod egress;
mod frameworks;
mod git;
mod gvisor;
mod gvisor_volumes;
mod harness;
mod host;
mod images;
mod installs;
mod internet;
mod isolation;
mod lifecycle;
mod monitoring;
mod pools;
#[path = "../ports.rs"]
mod ports;
mod previews;
mod published;
mod python;
#[path = "../../crates/server/tests/common/receiver.rs"]
#[allow(dead_code)]
mod receiver;
mod rough;
mod schema;
mod services;
mod ssh;
mod state;
mod telemetry;
mod templates;
mod tenants;
mod volumes;
mod wire;
mod world;

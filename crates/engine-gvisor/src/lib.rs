//! The gVisor engine: machines with a kernel of their own, in a process of this host.
//!
//! The launcher of `nullspace-engine-native` makes them (`launcher/keeper.rs` there), in the same network and with the
//! same limits as native ones. What is here is in `serve`: it reaches each machine's guest over the machine's network, and
//! speaks to its kernel over a control socket ([`control`]) to keep memory ([`checkpoint`]).

#![cfg(target_os = "linux")]

mod checkpoint;
mod control;
mod endings;
mod engine;
mod gate;
mod proofs;
mod release;

pub use engine::GvisorEngine;
pub use release::{RUNSC, Release};

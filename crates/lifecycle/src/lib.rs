//! State machines, pure: (state, request or fact) → (state, actions, events). No I/O, no clock.
//!
//! One file per noun, each with its picture at the top. The owner task in `nullspace-server` calls them,
//! records the result in one transaction, and only then does what the actions say.

pub mod machine;
pub mod run;
pub mod service;

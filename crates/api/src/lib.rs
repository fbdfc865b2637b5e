//! The public wire: request and response types, ids, error codes. No I/O.
//!
//! Used by `nullspace-server` (which serves them), `nullspace-client` and the CLI (which speak them) and,
//! through `utoipa`, by the OpenAPI document. One file per noun. Two generations of published clients
//! speak this wire with different nouns (`sandbox`, `machine`); the types here say `machine`, and
//! [`Noun`] says how an answer spells it.

pub mod agent;
pub mod audit;
pub mod code;
pub mod egress;
pub mod error;
pub mod event;
pub mod exec;
pub mod file;
pub mod git;
pub mod id;
pub mod key;
pub mod machine;
pub mod metrics;
pub mod monitor;
mod noun;
pub mod page;
pub mod pool;
pub mod preview;
pub mod process;
pub mod pty;
pub mod search;
pub mod snapshot;
pub mod socket;
pub mod ssh;
pub mod template;
pub mod template_build;
pub mod tenant;
pub mod time;
pub mod upload;
pub mod volume;
pub mod webhook;

pub use error::ErrorBody;
pub use noun::Noun;

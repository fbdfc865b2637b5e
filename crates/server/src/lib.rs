//! `nullspace serve` as a library: the HTTP API over the record, the lifecycle and an engine.
//!
//! ```text
//!  http/  check, convert, spell     one file per noun
//!  ssh/   the same for people who log in
//!  app/   authorise, decide, record, act
//! ```
//! The CLI's composition root chooses the engine and calls [`serve`]; tests do the same with the fake
//! engine. Nothing in here names a concrete engine.

pub mod app;
mod config;
pub mod error;
pub mod http;
mod lost;
mod serve;
mod ssh;
mod trace;

pub use app::template::Source as TemplateSource;
pub use config::Config;
pub use nullspace_gateway::PreviewDomain;
pub use serve::{KeySink, ServeError, ServeOptions, Server, SshListen, SshOptions, serve};

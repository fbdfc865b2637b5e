//! A local agent project: its config, what it is recognised as, and the bundle it is deployed as.
//!
//! The CLI uses [`load()`], [`detect()`], [`Bundle`] and [`Bundle::write_archive`]; the server uses
//! [`AgentConfig::from_wire`], [`Manifest::validate`], [`verify_archive`] and [`extract_archive`], and trusts nothing of
//! what it gets. Formats, digests and rules are those of the published client 0.1.9: `tests/golden.rs` holds the
//! shared vector, `tests/published_cli.rs` compares with that client itself where it is installed.

pub mod archive;
pub mod bundle;
pub mod config;
pub mod detect;
pub mod load;
pub mod manifest;
mod node;
mod pattern;
mod text;
pub mod verify;

pub use bundle::{BuildError, Bundle};
pub use config::{AgentConfig, CONFIG_FILENAME, ConfigError, Mode};
pub use detect::{Detection, detect};
pub use load::{LoadError, load};
pub use manifest::{Entry, Kind, Manifest, ManifestError};
pub use pattern::PatternError;
pub use verify::{BundleError, Stats, extract_archive, verify_archive};

//! A typed client of the Nullspace HTTP API, and where its address and key come from.
//!
//! Used by the CLI and by tests. [`config`] finds the address and the key as the published clients do; [`Client`]
//! speaks: one file per noun ([`machines`], [`monitor`], [`processes`], [`pty`], [`files`], [`git`], [`uploads`], [`events`],
//! [`webhooks`], [`agents`], [`keys`], [`tenants`], [`audit`]) over one transport ([`transport`]) that
//! knows the time limits, the retries and the error bodies of the wire. Bodies of any size stream in both directions.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use nullspace_client::{Client, config::{Arguments, Surroundings}};
//! let config = Surroundings::of_process().resolve(&Arguments::default());
//! let client = Client::new(&config)?;
//! for machine in client.list_machines(&Default::default()).await? {
//!     println!("{}", machine.id);
//! }
//! # Ok(()) }
//! ```

pub mod agents;
pub mod audit;
pub mod code;
pub mod config;
mod egress;
pub mod env_vars;
mod error;
pub mod events;
pub mod files;
pub mod git;
pub mod keys;
pub mod machines;
pub mod monitor;
pub mod pools;
mod previews;
pub mod processes;
pub mod pty;
pub mod snapshots;
pub mod socket;
mod ssh;
pub mod templates;
pub mod tenants;
pub mod transport;
pub mod uploads;
pub mod volumes;
pub mod webhooks;

pub use error::{ApiError, Error};
pub use transport::Client;

pub use nullspace_api as api;

//! The door for traffic into machines.
//!
//! ```text
//!  client ──▶ Door (a port of its own) ──▶ Route (who answers now) ──▶ Upstream (kept connections) ──Dial──▶ machine
//! ```
//! It knows nothing of services and machines: whoever opens a door says where it leads ([`Route::lead_to`]) and how a
//! connection is made ([`Dial`]). Used by `nullspace-server`, whose API is served by the same [`accept`].

mod door;
mod eager;
mod headers;
mod listen;
mod proxy;
mod upstream;

pub use door::{Access, Door, Route};
pub use listen::accept;
pub use upstream::{Dial, Upstream};

/// The header that carries a door's token, where it has one.
pub const TOKEN_HEADER: &str = "x-nullspace-traffic-access-token";

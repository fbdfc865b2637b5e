//! The door for traffic into machines.
//!
//! ```text
//!  client ──▶ Door (a port of its own) ──▶ Route (who answers now) ──▶ Upstream (kept connections) ──Dial──▶ machine
//! ```
//! It knows nothing of services and machines: whoever opens a door says where it leads ([`Route::lead_to`]), how a
//! connection is made ([`Dial`]), and who may come in ([`Access`]). A route needs no door of its own: [`pass`] takes it
//! for requests that came in elsewhere. Used by `nullspace-server`, whose API is served by the same [`accept`].

mod body;
mod domain;
mod door;
mod eager;
mod guard;
mod headers;
mod listen;
mod proxy;
mod refusal;
mod traffic;
mod upstream;

pub use body::Body;
pub use domain::{Addressee, NOBODY, PreviewDomain};
pub use door::{Access, Door, Route};
pub use eager::Eager;
pub use guard::{Account, Guard, Pass, Refusal, SESSION_COOKIE_PREFIX, Visitor};
pub use listen::accept;
pub use proxy::{pass, same};
pub use refusal::refuse;
pub use traffic::traffic;
pub use upstream::{Dial, Upstream};

/// The header that carries a door's token, where it has one.
pub const TOKEN_HEADER: &str = "x-nullspace-traffic-access-token";
/// The header that carries a token of a proxy in front of a door.
pub const PROXY_TOKEN_HEADER: &str = "x-nullspace-preview-proxy-token";

//! Doors with a guard of their own: whoever opens one decides about each request, and learns what passes through.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio_util::sync::CancellationToken;

/// Cookies whose names begin like this are a guard's. A browser sends them to every port of a host, so no
/// application gets to see any of them, nor may set one.
pub const SESSION_COOKIE_PREFIX: &str = "nullspace_preview_";

/// Decides about each request of a route. It is asked in the middle of a request: it must not wait for anything.
pub trait Guard: Send + Sync + 'static {
    /// Whether a request may pass. What is none of the application's business is taken out of it.
    ///
    /// # Errors
    /// What the caller is answered.
    fn admit(&self, visitor: Visitor<'_>) -> Result<Pass, Refusal>;
}

/// Learns what passes, for one of those who may come in.
pub trait Account: Send + Sync + 'static {
    /// So many bytes of a body, or of a tunnel, came from the client.
    fn came_in(&self, bytes: u64);
    /// So many went to the client.
    fn went_out(&self, bytes: u64);
    /// The application did not answer; `code` is what the client was told.
    fn failed(&self, code: &'static str);
}

/// A request at the door.
#[derive(Debug)]
pub struct Visitor<'a> {
    /// Its method.
    pub method: &'a Method,
    /// What it asks for.
    pub uri: &'a mut Uri,
    /// Its headers, all of them.
    pub headers: &'a mut HeaderMap,
    /// Whether it wants to become a WebSocket.
    pub websocket: bool,
}

/// Lets a request pass.
pub struct Pass {
    /// Who is told what passes.
    pub account: Option<Arc<dyn Account>>,
    /// Ends what is still under way when it is cancelled.
    pub cut: CancellationToken,
    /// A cookie for the client.
    pub set_cookie: Option<HeaderValue>,
    /// The host that the application is told, if not the client's own.
    pub host: Option<HeaderValue>,
    /// How long the application may take to answer, counted from the last byte of the request that moved.
    pub patience: Duration,
}

impl std::fmt::Debug for Pass {
    /// Without the cookie.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Turns a request away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// For programs.
    pub code: &'static str,
    /// For people; never a secret.
    pub message: &'static str,
}

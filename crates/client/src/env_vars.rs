//! The environment variables that the client reads.

/// Address of the server: `http://host:port`, with a path prefix if there is one.
pub const NULLSPACE_API_URL: &str = "NULLSPACE_API_URL";
/// The same, read when [`NULLSPACE_API_URL`] is not set.
pub const NULLSPACE_BASE_URL: &str = "NULLSPACE_BASE_URL";
/// The API key.
pub const NULLSPACE_API_KEY: &str = "NULLSPACE_API_KEY";
/// Seconds that one request may stay silent, as a decimal number; 30 when unset.
pub const NULLSPACE_REQUEST_TIMEOUT_SECONDS: &str = "NULLSPACE_REQUEST_TIMEOUT_SECONDS";
/// The same, read when [`NULLSPACE_REQUEST_TIMEOUT_SECONDS`] is not set.
pub const NULLSPACE_REQUEST_TIMEOUT: &str = "NULLSPACE_REQUEST_TIMEOUT";
/// Where configuration files are; `~/.config` when unset.
pub const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// The user's home directory.
pub const HOME: &str = "HOME";

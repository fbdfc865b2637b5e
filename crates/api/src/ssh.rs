//! Logging in to a machine over SSH.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/machines/{id}/ssh-access`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SshAccessRequest {
    /// The key to certify: one line of OpenSSH, ed25519 or ECDSA.
    pub public_key: String,
    /// The user of the machine to log in as; `root` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How long the certificate is good for, in minutes: 10 when absent, at most 24 hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_minutes: Option<u64>,
    /// The same in seconds; not both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshAccess {
    /// Where the SSH server is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The name to log in with.
    pub user: String,
    /// The id of this access.
    pub access_id: String,
    /// An OpenSSH user certificate for the key, one line. Good for this machine and this user alone.
    pub certificate: String,
    /// When the certificate is over. A session that is open then goes on.
    pub expires_at: String,
    /// The server's public key, for `known_hosts`.
    pub host_key: String,
    /// A command line that does it, for a key that `ssh` finds by itself.
    pub command: String,
}

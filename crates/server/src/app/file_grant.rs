//! Signed URLs of files: a token that says what may be done with one path of one machine or volume, and until when.
//!
//! `base64url(JSON of the grant) . HMAC-SHA256 in hex`. Nothing is recorded: a token is valid by its signature, which a key
//! of the data directory makes, and ends by its time alone.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use nullspace_api::{error::code, time, upload::ArchiveFormat};
use serde::{Deserialize, Serialize};

use super::seal::Seal;
use crate::error::{Error, Kind, Result};

/// How long a token is valid, in microseconds: an hour.
const LIFETIME: i64 = 3600 * 1_000_000;
/// The longest token: a path in JSON in base64.
const MAX_TOKEN: usize = 16 << 10;

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Read the file, or the directory as an archive.
    Download,
    /// Write the file.
    Upload,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileGrant {
    /// The machine, or the volume.
    #[serde(rename = "m")]
    pub machine: String,
    /// The path.
    #[serde(rename = "p")]
    pub path: String,
    /// The user of the machine that it is done as.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What may be done.
    #[serde(rename = "a")]
    pub action: Action,
    /// A directory, as an archive.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveFormat>,
    /// When it ends, in microseconds since 1970.
    #[serde(rename = "x", default)]
    expires_at: i64,
}

impl FileGrant {
    /// For a path of a machine.
    #[must_use]
    pub fn new(machine: &str, path: String, user: Option<String>, action: Action) -> Self {
        Self {
            machine: machine.to_owned(),
            path,
            user,
            action,
            archive: None,
            expires_at: time::now() + LIFETIME,
        }
    }

    /// The token for a URL.
    #[must_use]
    pub(crate) fn token(&self, seal: &Seal) -> String {
        let said = BASE64.encode(serde_json::to_vec(self).unwrap_or_default());
        let signature = seal.token(&signed(&said));
        format!("{said}.{signature}")
    }

    /// What a token stands for, if it is for this.
    ///
    /// # Errors
    /// `invalid_request` for what is no token, `unauthorized` for one that this server did not make, `token_expired`,
    /// `permission_denied` for one for something else.
    pub(crate) fn check(seal: &Seal, token: &str, machine: &str, action: Action) -> Result<Self> {
        let malformed = || Error::invalid("grant: is not a token");
        if token.len() > MAX_TOKEN {
            return Err(malformed());
        }
        let (said, signature) = token.split_once('.').ok_or_else(malformed)?;
        if !seal.is_token(&signed(said), signature) {
            return Err(Error::new(
                Kind::Unauthorized,
                code::UNAUTHORIZED,
                "this link was not made by this server",
            ));
        }
        let grant: Self = BASE64
            .decode(said)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(malformed)?;
        if grant.expires_at <= time::now() {
            return Err(Error::new(
                Kind::Gone,
                code::TOKEN_EXPIRED,
                "this link is over its time",
            )
            .with_action("ask for a new one"));
        }
        if grant.machine != machine || grant.action != action {
            return Err(Error::new(
                Kind::Forbidden,
                code::PERMISSION_DENIED,
                "this link is for something else",
            ));
        }
        Ok(grant)
    }
}

/// What is signed: tokens for other things have other words before them.
fn signed(said: &str) -> String {
    format!("file {said}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_with_its_hour() {
        let directory = tempfile::tempdir().unwrap();
        let seal = Seal::open(directory.path()).unwrap();
        let mut grant = FileGrant::new("sbx_1", "/a".into(), None, Action::Download);
        let check = |grant: &FileGrant| {
            FileGrant::check(&seal, &grant.token(&seal), "sbx_1", Action::Download)
        };
        assert_eq!(check(&grant).unwrap(), grant);
        grant.expires_at = time::now();
        let error = check(&grant).unwrap_err();
        assert_eq!((error.kind, error.code), (Kind::Gone, code::TOKEN_EXPIRED));
    }
}

//! What a registry is shown to let us in.

use std::fmt;

use base64::Engine as _;
use reqwest::header::HeaderValue;

/// Credentials for a registry. They go to that registry, and to the token service that it names, over TLS; nowhere
/// else, and in no log, error or debug print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials(Option<(String, String)>);

impl Credentials {
    /// None: for images that everybody may pull.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(None)
    }

    /// A name and a password or access token.
    #[must_use]
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self(Some((username.into(), password.into())))
    }

    /// The key of a Google Cloud service account, as the JSON file it comes in: Artifact Registry takes it as a
    /// password.
    #[must_use]
    pub fn gcp_service_account(key: impl Into<String>) -> Self {
        Self::basic("_json_key", key)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.0.is_none()
    }

    /// As the value of an `Authorization` header.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let (name, password) = self.0.as_ref()?;
        let text = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        secret_header("Basic", &text)
    }
}

/// A header value that prints as `Sensitive`.
pub(crate) fn secret_header(scheme: &str, text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {text}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            None => "Credentials(anonymous)",
            Some(_) => "Credentials(hidden)",
        })
    }
}

//! What a command tells when it fails: a message, a hint to act on, and the code that decides the exit code.

use nullspace_client::Error as ClientError;
use serde::Serialize;
use serde_json::Value;

use crate::exit;

/// A failed command.
#[derive(Debug)]
pub struct CliError {
    /// The code of the API, or `invalid_request` for the command line itself.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Names the request in the server's log.
    pub request_id: Option<String>,
    /// Whether trying again may help.
    pub retryable: Option<bool>,
    /// What the server suggests.
    pub suggested_action: Option<String>,
    /// From the server.
    pub error_detail: Option<Value>,
    /// From the server.
    pub details: Option<Value>,
}

/// What a command gives: the exit code of the program.
pub type Outcome = Result<u8, CliError>;

impl CliError {
    /// An error of this code.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        let code = code.into();
        Self {
            hint: hint_for(&code).map(str::to_owned),
            code,
            message: message.into(),
            request_id: None,
            retryable: None,
            suggested_action: None,
            error_detail: None,
            details: None,
        }
    }

    /// The command line, or what it names, makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new("invalid_request", message)
    }

    /// A file or a terminal would not do.
    pub fn local(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        Self {
            hint: None,
            ..Self::new("local_error", format!("{what}: {error}"))
        }
    }

    /// With another hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    #[must_use]
    pub fn exit(&self) -> u8 {
        exit::of_code(&self.code)
    }

    /// The envelope that `--json` prints.
    #[must_use]
    pub fn envelope(&self) -> impl Serialize + '_ {
        Envelope { error: self.into() }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: EnvelopeError<'a>,
}

#[derive(Serialize)]
struct EnvelopeError<'a> {
    code: &'a str,
    message: &'a str,
    hint: Option<&'a str>,
    doc_url: Option<&'a str>,
    request_id: Option<&'a str>,
    retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_detail: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Value>,
}

impl<'a> From<&'a CliError> for EnvelopeError<'a> {
    fn from(error: &'a CliError) -> Self {
        Self {
            code: &error.code,
            message: &error.message,
            hint: error.hint.as_deref(),
            doc_url: None,
            request_id: error.request_id.as_deref(),
            retryable: error.retryable,
            error_detail: error.error_detail.as_ref(),
            suggested_action: error.suggested_action.as_deref(),
            details: error.details.as_ref(),
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let mut told = Self::new(error.code(), error.to_string());
        match error {
            ClientError::Api(api) => {
                told.request_id = api.request_id;
                told.retryable = api.retryable;
                told.suggested_action = api.suggested_action;
                told.error_detail = api.error_detail;
                told.details = api.details;
            }
            ClientError::Address { .. } => {
                told.hint = Some(
                    "Set NULLSPACE_API_URL or --api-url to an address like http://localhost:3000."
                        .to_owned(),
                );
            }
            ClientError::Decode { .. } => {
                told.hint = Some(
                    "Is that a Nullspace server? Check the address with `nullspace doctor`."
                        .to_owned(),
                );
            }
            ClientError::Local(_) => told.hint = None,
            _ => {}
        }
        told
    }
}

/// What to do about an error of this code.
fn hint_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "invalid_request" | "invalid_fields" => {
            "See the command's --help for its arguments and flags."
        }
        "missing_api_key" => "Export NULLSPACE_API_KEY or run `nullspace auth login`.",
        "unauthorized" | "unauthenticated" => {
            "The server does not know this key. `nullspace doctor` shows where it comes from; `nullspace auth login` saves another."
        }
        "transport_error" => {
            "Is the server running? Start one with `nullspace serve`; `nullspace doctor` shows which address is used."
        }
        "machine_not_found" | "sandbox_not_found" => "List machines with `nullspace machine list`.",
        "machine_not_ready" | "sandbox_not_ready" => "See its state with `nullspace machine get`.",
        "agent_deployment_not_found" => "List deployments with `nullspace agent list`.",
        "agent_version_not_found" => "List versions with `nullspace agent versions`.",
        "agent_service_not_found" => "See the latest one with `nullspace agent status`.",
        "agent_run_not_found" => "See the latest run with `nullspace agent status`.",
        "key_not_found" => "List keys with `nullspace key list`.",
        "tenant_not_found" => "List tenants with `nullspace tenant list`.",
        "template_not_found" => "Templates that every server has: `base` and `host`.",
        "template_not_ready" => {
            "The server is still making it; try again in a minute, or use `--template host`."
        }
        "exec_timeout" => {
            "Allow more time with `--timeout SECONDS`, or start it with `--background`."
        }
        "capacity_exceeded" => {
            "End machines that are not needed: `nullspace machine list`, `nullspace machine kill`."
        }
        "quota_exceeded" => "See what there is and what there may be with `nullspace tenant show`.",
        "rate_limit_exceeded" => "Wait a little and try again.",
        "not_implemented" => "This server does not offer it yet.",
        "internal_error" | "database_error" => "The server's log has more, under the request id.",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_has_the_keys_of_the_wire() {
        let error = CliError {
            request_id: Some("r".to_owned()),
            ..CliError::usage("no")
        };
        let envelope = serde_json::to_value(error.envelope()).expect("json");
        assert_eq!(envelope["error"]["code"], "invalid_request");
        assert_eq!(envelope["error"]["request_id"], "r");
        let keys: Vec<_> = envelope["error"]
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        assert_eq!(
            keys,
            [
                "code",
                "doc_url",
                "hint",
                "message",
                "request_id",
                "retryable"
            ]
        );
        assert_eq!(error.exit(), 2);
    }
}

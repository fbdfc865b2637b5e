//! Why a call did not give what was asked for.

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server's address makes no sense.
    #[error("not a server address: {url:?}: {reason}")]
    Address {
        /// As it was given.
        url: String,
        /// Why not.
        reason: String,
    },
    /// There is no API key, so nothing was sent.
    #[error("no API key is configured")]
    MissingApiKey,
    /// No answer came: no connection, a broken one, or silence for too long.
    #[error("{method} {path} failed: {reason}")]
    Transport {
        /// HTTP method.
        method: http::Method,
        /// Path on the server.
        path: String,
        /// What the network said.
        reason: String,
        /// Whether the request cannot have reached the server.
        unsent: bool,
    },
    /// The server refused.
    #[error("{0}")]
    Api(Box<ApiError>),
    /// The answer is not what the API promises.
    #[error("{method} {path}: unexpected answer: {reason}")]
    Decode {
        /// HTTP method.
        method: http::Method,
        /// Path on the server.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was to be sent could not be read, or what was received could not be stored.
    #[error("{0}")]
    Local(String),
}

/// A refusal, as the server worded it.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// What programs decide by, in lower case; `unknown` when the answer had none.
    pub code: String,
    /// For people.
    pub message: String,
    /// Names the request in the server's log.
    pub request_id: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: Option<bool>,
    /// What the caller can do about it.
    pub suggested_action: Option<String>,
    /// More facts about an upload or a template build.
    pub error_detail: Option<serde_json::Value>,
    /// More facts.
    pub details: Option<serde_json::Value>,
}

impl Error {
    /// The code that programs decide by: the server's, or one that names the client's own trouble.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Address { .. } | Self::Local(_) => "invalid_request",
            Self::MissingApiKey => "missing_api_key",
            Self::Transport { .. } => "transport_error",
            Self::Api(error) => &error.code,
            Self::Decode { .. } => "invalid_response",
        }
    }

    /// Whether the server says that something of this name does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        let code = self.code();
        code == "not_found" || code.ends_with("_not_found")
    }
}

impl ApiError {
    /// Reads the body of a refusal: the flat form, the nested one (`{"error": {"message": …}}`), or plain text.
    /// `header_request_id` counts when the body names no request.
    #[must_use]
    pub fn from_body(status: u16, body: &[u8], header_request_id: Option<&str>) -> Self {
        use serde_json::Value;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let plain = || Self {
            status,
            code: "unknown".to_owned(),
            message: match String::from_utf8_lossy(body).trim() {
                "" => format!("the server answered with status {status}"),
                text => text.chars().take(2000).collect(),
            },
            request_id: header_request_id.map(str::to_owned),
            retryable: None,
            suggested_action: None,
            error_detail: None,
            details: None,
        };
        let Ok(Value::Object(outer)) = serde_json::from_slice::<Value>(body) else {
            return plain();
        };
        let inner = outer.get("error").and_then(Value::as_object);
        let field = |name: &str| {
            inner
                .and_then(|inner| inner.get(name))
                .or_else(|| outer.get(name))
        };
        let message = match inner {
            Some(inner) => text(inner.get("message")),
            None => text(outer.get("error")),
        };
        Self {
            code: text(field("code"))
                .filter(|code| !code.is_empty())
                .map_or_else(|| plain().code, |c| c.to_lowercase()),
            message: message
                .or_else(|| text(outer.get("message")))
                .unwrap_or_else(|| plain().message),
            request_id: text(field("request_id")).or_else(|| plain().request_id),
            retryable: field("retryable").and_then(Value::as_bool),
            suggested_action: text(field("suggested_action")),
            error_detail: field("error_detail")
                .filter(|detail| detail.is_object())
                .cloned(),
            details: field("details")
                .filter(|details| !details.is_null())
                .cloned(),
            ..plain()
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_refusal_are_read() {
        let flat = ApiError::from_body(
            404,
            br#"{"error": "no", "code": "X_NOT_FOUND", "request_id": "r", "retryable": false}"#,
            Some("h"),
        );
        assert_eq!(
            (flat.code.as_str(), flat.message.as_str()),
            ("x_not_found", "no")
        );
        assert_eq!(
            (flat.request_id.as_deref(), flat.retryable),
            (Some("r"), Some(false))
        );
        assert!(Error::from(flat).is_not_found());
        let nested = ApiError::from_body(
            400,
            br#"{"error": {"message": "no", "suggested_action": "do"}, "code": "outer", "details": {"a": 1}}"#,
            Some("h"),
        );
        assert_eq!(
            (nested.code.as_str(), nested.message.as_str()),
            ("outer", "no")
        );
        assert_eq!(nested.suggested_action.as_deref(), Some("do"));
        assert_eq!(nested.request_id.as_deref(), Some("h"));
        assert_eq!(nested.details, Some(serde_json::json!({"a": 1})));
    }

    #[test]
    fn any_other_body_is_the_message() {
        for (body, message) in [
            (&b"gateway down\n"[..], "gateway down"),
            (b"", "the server answered with status 502"),
            (b"[1]", "[1]"),
        ] {
            let error = ApiError::from_body(502, body, None);
            assert_eq!(
                (error.code.as_str(), error.message.as_str()),
                ("unknown", message)
            );
        }
    }
}

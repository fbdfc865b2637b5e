//! The one error type of the application. It knows nothing of HTTP: `http::error` turns it into a
//! status, a body and a request id, in one place.

use nullspace_api::error::code;
use nullspace_engine::EngineError;
use nullspace_protocol::{ErrorKind, GuestError};
use nullspace_store::StoreError;

/// What sort of failure it is; decides the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong.
    Invalid,
    /// No valid key.
    Unauthorized,
    /// Known, but not allowed.
    Forbidden,
    /// No such thing.
    NotFound,
    /// The route has no such method.
    MethodNotAllowed,
    /// Not in this state.
    Conflict,
    /// It was there, and is over.
    Gone,
    /// The byte range asked for is not in the file.
    Range,
    /// The body is too large.
    TooLarge,
    /// The client took too long to send.
    SlowClient,
    /// A limit of this installation.
    Limit,
    /// Not part of this server.
    NotImplemented,
    /// The machine failed to do it.
    Machine,
    /// A time limit in the machine.
    Deadline,
    /// The disk is full.
    Storage,
    /// Not now.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl Kind {
    /// Whether it is this server's or its host's doing, and not the caller's.
    pub(crate) fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Limit
                | Self::Machine
                | Self::Deadline
                | Self::Storage
                | Self::Unavailable
                | Self::Internal
        )
    }
}

/// A failure: a message for the caller, context for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Sort.
    pub kind: Kind,
    /// For programs; see [`nullspace_api::error::code`].
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// What the caller can do.
    pub suggested_action: Option<Box<str>>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
    /// For the log only.
    pub context: Option<Box<str>>,
    /// More facts for programs, by code.
    pub details: Option<serde_json::Value>,
}

/// Result of application functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Any failure.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            suggested_action: None,
            retry_after: None,
            context: None,
            details: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, code::INVALID_REQUEST, message)
    }

    /// No such thing; `code` is `<noun>_not_found`.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, code, message)
    }

    /// Not in this state; `code` is `conflict` or `*_conflict`, or another that clients know.
    pub fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, message)
    }

    /// Not part of this server yet. `what` is a noun phrase.
    pub fn not_implemented(what: impl std::fmt::Display) -> Self {
        Self::new(
            Kind::NotImplemented,
            code::NOT_IMPLEMENTED,
            format!("this server cannot do this yet: {what}"),
        )
    }

    /// A fault of ours; the caller sees only that.
    pub fn internal(context: impl Into<String>) -> Self {
        Self::new(
            Kind::Internal,
            code::INTERNAL_ERROR,
            "an internal error happened; the server's log has it under the request id",
        )
        .with_context(context)
    }

    /// No machine of that id.
    pub fn no_machine(id: &str) -> Self {
        Self::not_found(code::MACHINE_NOT_FOUND, format!("no machine {id}"))
    }

    /// The machine cannot be used now.
    pub fn not_ready(id: &str, state: &str) -> Self {
        Self::conflict(
            code::MACHINE_NOT_READY,
            format!("machine {id} is {state}, not running"),
        )
    }

    /// Says it in other words to the caller.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Says before it what it is about.
    #[must_use]
    pub(crate) fn with_message_prefix(mut self, prefix: &str) -> Self {
        self.message.insert_str(0, prefix);
        self
    }

    /// Adds what the caller can do.
    #[must_use]
    pub fn with_action(mut self, action: impl Into<String>) -> Self {
        self.suggested_action = Some(action.into().into());
        self
    }

    /// Adds when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds facts for programs.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds what the log should say.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into().into());
        self
    }
}

/// An error and all its sources, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::new(
            Kind::Unavailable,
            code::DATABASE_ERROR,
            "the record could not be read or written; nothing was changed",
        )
        .with_context(chain(&error))
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::InvalidSpec(_) => Self::invalid(text),
            EngineError::NotFound(_) => Self::new(
                Kind::Machine,
                code::EXEC_FAILED,
                "the machine does not answer",
            )
            .with_context(text),
            EngineError::Capacity(what) => Self::new(
                Kind::Limit,
                code::CAPACITY_EXCEEDED,
                format!("no room for another machine: {what}"),
            )
            .with_action("delete machines that are no longer needed")
            .with_retry_after(1),
            EngineError::Unsupported { .. } => {
                Self::new(Kind::NotImplemented, code::NOT_IMPLEMENTED, text)
            }
            EngineError::Unavailable(_) => Self::new(
                Kind::Unavailable,
                code::NO_ELIGIBLE_RUNTIME_HOST,
                "the engine cannot be reached",
            )
            .with_context(text)
            .with_retry_after(1),
            EngineError::NoSpace(_) => Self::new(Kind::Storage, code::INSUFFICIENT_STORAGE, text)
                .with_action("free disk space on the server's host"),
            EngineError::Checkpoint(_) => Self::conflict(code::INCOMPATIBLE_SNAPSHOT, text)
                .with_action(
                    "make a new machine; this state cannot be used on this server any more",
                ),
            EngineError::Busy(_) => Self::conflict(code::CONFLICT, text).with_action(
                "close it in the machine, or end the process that has it open, and try again",
            ),
            EngineError::Lacks(_) => Self::conflict(code::INCOMPATIBLE_SNAPSHOT, text).with_action(
                "put back into its volumes what was there, with the same rights to write",
            ),
            EngineError::Exists(_) | EngineError::Step { .. } => Self::new(
                Kind::Internal,
                code::INTERNAL_ERROR,
                "the engine could not do it; the server's log has the reason under the request id",
            )
            .with_context(text),
        }
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Refused(body) => {
                let (kind, code) = match body.kind {
                    ErrorKind::Invalid => (Kind::Invalid, code::INVALID_REQUEST),
                    ErrorKind::NotFound => (Kind::NotFound, code::NOT_FOUND),
                    ErrorKind::Permission => (Kind::Forbidden, code::PERMISSION_DENIED),
                    ErrorKind::Exists => (Kind::Conflict, code::CONFLICT),
                    ErrorKind::NoSpace => (Kind::Storage, code::INSUFFICIENT_STORAGE),
                    ErrorKind::Io => (Kind::Internal, code::FILE_ERROR),
                    ErrorKind::Exhausted => (Kind::Machine, code::EXEC_FAILED),
                };
                Self::new(kind, code, body.message)
            }
            GuestError::Lost { .. } | GuestError::Protocol(_) => Self::new(
                Kind::Machine,
                code::EXEC_FAILED,
                "the machine does not answer",
            )
            .with_context(error.to_string()),
        }
    }
}

//! The audit log: who asked for what, and what came of it.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
pub struct ListAuditQuery {
    /// At most this many, 1 to 200; 50 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where the page before ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only what this key asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Only what is about this: any part of the path, such as an id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Only of this tenant, by id. A key that is no operator's is refused any but its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When it was answered, RFC 3339.
    pub at: String,
    /// Whose key asked; absent when there was no valid one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The key that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// `POST`, `DELETE`, …; `SSH` for a login.
    pub method: String,
    /// What it was about, without the query.
    pub path: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// The code of an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Who asked from where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// The id that the answer had.
    pub request_id: String,
    /// How long it took until the answer began.
    pub duration_ms: u64,
}

/// A page of the audit log, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The entries. A page may have fewer than were asked for, even none, and not be the last one.
    pub items: Vec<AuditEntry>,
    /// For the next page; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

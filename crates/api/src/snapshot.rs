//! Machines' states that are kept.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// One of them. Published clients refuse any other field, and each of them knows one word for a machine alone: it is
/// the one that the caller's key used last, or that was used when the snapshot was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// Whose state it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The same, for who says `sandbox`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Bytes on disk; of memory, when that stays on the host.
    pub size_bytes: u64,
    /// RFC 3339.
    pub created_at: String,
    /// `memory` (`on_disk`, or `on_host` where the engine only stops a machine where it stands) and `lasts`
    /// (`until_deleted`, `until_host_restart`).
    pub metadata: Map<String, Value>,
}

/// Query of `GET /v1/snapshots`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListSnapshotsQuery {
    /// Only those of this machine.
    pub machine_id: Option<String>,
    /// The same, in the older spelling.
    pub sandbox_id: Option<String>,
    /// JSON object; only those whose metadata has all of it.
    pub metadata: Option<String>,
}

impl ListSnapshotsQuery {
    /// The machine, however it was spelled.
    #[must_use]
    pub fn machine_id(&self) -> Option<&str> {
        self.machine_id
            .as_deref()
            .or(self.sandbox_id.as_deref())
            .filter(|id| !id.is_empty())
    }
}

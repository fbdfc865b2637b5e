//! Lifecycle events.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// One event. Both spellings of a machine's id are there: the routes are shared by both wires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventInfo {
    /// UUID, in order of time.
    pub id: String,
    /// RFC 3339.
    pub occurred_at: String,
    /// `customer`.
    pub audience: String,
    /// `create`, `destroy`, `timeout_updated`, `timeout_expired`, `reconcile`, …
    pub operation: String,
    /// `requested`, `succeeded` or `failed`.
    pub status: String,
    /// `user`, `system` or `reconcile`.
    pub actor_kind: String,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The machine, in the older spelling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Why, as one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// With `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// More facts.
    pub metadata: Map<String, Value>,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    /// In the order asked for.
    pub events: Vec<EventInfo>,
    /// As asked.
    pub offset: u64,
    /// As asked.
    pub limit: u32,
    /// Whether there are more after these.
    pub has_more: bool,
}

/// Query of the event lists.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListEventsQuery {
    /// Events to skip.
    pub offset: Option<u64>,
    /// 1 to 200.
    pub limit: Option<u32>,
    /// `asc` or `desc` (default).
    pub order: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
    /// Only this status.
    pub status: Option<String>,
    /// RFC 3339, inclusive.
    pub from: Option<String>,
    /// RFC 3339, exclusive.
    pub to: Option<String>,
    /// `customer`.
    pub audience: Option<String>,
    /// Only this machine.
    pub machine_id: Option<String>,
    /// Only this machine, in the older spelling.
    pub sandbox_id: Option<String>,
}

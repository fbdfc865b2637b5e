//! Lifecycle events.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

/// What can happen to a machine, for customers. Published clients know exactly these.
pub const OPERATIONS: [&str; 9] = [
    "create",
    "destroy",
    "timeout_updated",
    "timeout_expired",
    "hibernate",
    "snapshot_created",
    "resume_from_snapshot",
    "fork",
    "reconcile",
];
/// How far it is.
pub const STATUSES: [&str; 3] = ["requested", "succeeded", "failed"];
/// Whom events are for: whoever has machines, and whoever asks what was decided about their traffic.
pub const AUDIENCES: [&str; 2] = ["customer", "internal"];

/// One event. Both spellings of a machine's id are there: the routes are shared by both wires.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventInfo {
    /// UUID, in order of time.
    pub id: String,
    /// RFC 3339.
    pub occurred_at: String,
    /// `customer`, or `internal` when that was asked for.
    pub audience: String,
    /// One of [`OPERATIONS`]; any word when `internal`.
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
    /// The snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// The machine that something was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_machine_id: Option<String>,
    /// The same, in the older spelling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_sandbox_id: Option<String>,
    /// The machine that was made from something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_machine_id: Option<String>,
    /// The same, in the older spelling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_sandbox_id: Option<String>,
    /// Why, as one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// With `failed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The machine's own metadata, if that is not over 4 KiB.
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
    /// `customer` (default) or `internal`.
    pub audience: Option<String>,
    /// Only about this machine: itself, or as what something was made from or into.
    pub machine_id: Option<String>,
    /// The same, in the older spelling.
    pub sandbox_id: Option<String>,
    /// Only about this snapshot.
    pub snapshot_id: Option<String>,
    /// Only what was made from this machine.
    pub source_machine_id: Option<String>,
    /// The same, in the older spelling.
    pub source_sandbox_id: Option<String>,
    /// Only what was made into this machine.
    pub target_machine_id: Option<String>,
    /// The same, in the older spelling.
    pub target_sandbox_id: Option<String>,
}

/// What a client of an event stream says: which events it wants. All filters must let an event through. A later message
/// takes the place of the one before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Only about this machine: itself, or as what something was made from or into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The same, in the older spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Only about this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Only this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Only this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `customer` (default) or `internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// Only what happens from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_only: Option<bool>,
    /// Everything after this event. One that is not known any more stands for the beginning of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_event_id: Option<String>,
    /// Without `after_event_id`: how many of the newest events come first, 100 when absent, at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_limit: Option<u32>,
    /// Only with all of this in the metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// A frame from a client of an event stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamRequest {
    /// Begins the stream.
    Subscribe(Box<Subscribe>),
}

/// A frame to a client of an event stream. There is no other kind: clients end at one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum StreamMessage {
    /// The first answer; events follow.
    Subscribed {
        /// What was understood.
        subscription: Box<Subscribe>,
        /// The one word that clients know here; it means nothing. Any client may go on with `after_event_id`.
        reconnect_mode: String,
    },
    /// An event.
    Event {
        /// It.
        event: Box<EventInfo>,
    },
    /// What was said means nothing; whatever went on before goes on.
    Error {
        /// For people.
        message: String,
        /// For programs.
        code: String,
    },
}

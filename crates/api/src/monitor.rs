//! The messages of `GET /v1/monitor/ws`, which tells of all machines: one JSON object in each frame.
//!
//! ```text
//!  client                          server
//!  monitor_subscribe   ────────▶  monitor_snapshot, then as things happen monitor_update,
//!                                 and at each interval monitor_metrics, monitor_processes
//!  monitor_unsubscribe ────────▶  nothing more of it
//! ```
//! `id` is the client's own word for a subscription; a connection may have several. One path serves both generations of
//! clients, so what names machines is there in both spellings.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{machine::MachineInfo, metrics::MachineMetrics, process::ProcessInfo};

/// From a client. Fields that are not known are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Tell of all machines from now on. A subscription of the same `id` ends.
    MonitorSubscribe {
        /// The client's word for it; at most 256 bytes.
        id: String,
        /// Milliseconds between two measurements: 5000 when absent, 250 at least, an hour at most.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interval_ms: Option<u64>,
        /// Whether processes are told of too; not when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        include_processes: Option<bool>,
    },
    /// End a subscription.
    MonitorUnsubscribe {
        /// Which.
        id: String,
    },
}

/// To a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// The machines that live. Comes first; and again when changes came faster than they were read. Those that make it
    /// too large follow as updates.
    MonitorSnapshot {
        /// The subscription.
        id: Cow<'a, str>,
        /// The machines.
        machines: Cow<'a, [MachineInfo]>,
        /// The same.
        #[serde(default)]
        sandboxes: Cow<'a, [MachineInfo]>,
    },
    /// A machine is new or has changed.
    MonitorUpdate {
        /// The subscription.
        id: Cow<'a, str>,
        /// Which.
        machine_id: Cow<'a, str>,
        /// The same.
        #[serde(default)]
        sandbox_id: Cow<'a, str>,
        /// As it is now.
        machine: Option<Box<MachineInfo>>,
        /// The same.
        #[serde(default)]
        sandbox: Option<Box<MachineInfo>>,
        /// Whether it has ended: nothing more comes of it.
        removed: bool,
    },
    /// What a running machine uses.
    MonitorMetrics {
        /// The subscription.
        id: Cow<'a, str>,
        /// Which.
        machine_id: Cow<'a, str>,
        /// The same.
        #[serde(default)]
        sandbox_id: Cow<'a, str>,
        /// What.
        metrics: MachineMetrics,
    },
    /// What runs in a running machine, of what was started through the API.
    MonitorProcesses {
        /// The subscription.
        id: Cow<'a, str>,
        /// Which.
        machine_id: Cow<'a, str>,
        /// The same.
        #[serde(default)]
        sandbox_id: Cow<'a, str>,
        /// Oldest first, recently ended ones too; of a long command its first 512 characters.
        processes: Vec<ProcessInfo>,
    },
    /// A message could not be taken.
    MonitorError {
        /// Its subscription; empty if it could not be read.
        id: Cow<'a, str>,
        /// For people.
        message: Cow<'a, str>,
    },
}

impl ClientMessage {
    /// The client's word for the subscription.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::MonitorSubscribe { id, .. } | Self::MonitorUnsubscribe { id } => id,
        }
    }
}

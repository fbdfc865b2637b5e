//! Machines: creating, reading, listing, their time limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::egress::EgressPolicy;

/// Where a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineStatus {
    /// Recorded, not ready yet.
    Creating,
    /// Ready for commands.
    Running,
    /// Stopped with its memory kept.
    Paused,
    /// Ended on request or by its time limit.
    Destroyed,
    /// Failed to start, or ended by itself.
    Error,
}

impl MachineStatus {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }

    /// Reads the word on the wire.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [
            Self::Creating,
            Self::Running,
            Self::Paused,
            Self::Destroyed,
            Self::Error,
        ]
        .into_iter()
        .find(|status| status.as_str() == word)
    }
}

/// What happens when a machine's time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutAction {
    /// End it.
    #[default]
    Destroy,
    /// Stop it and keep its memory. `pause` in a request means the same.
    #[serde(alias = "pause")]
    Hibernate,
}

/// `POST /v1/machines`. Every field may be absent or null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateMachineRequest {
    /// What to start from; `base` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Start from a snapshot instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Whole CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory limit in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// The most that may be written in the machine, outside its volumes, in MiB; the server's default if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
    /// What keeps it apart from the host. When absent: what its template says, else what the server takes for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Time limit in milliseconds, counted from when the machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What happens at the time limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutAction>,
    /// The same, in another spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<LifecyclePolicy>,
    /// Wake a hibernated machine when it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<bool>,
    /// Environment of every command in the machine. Never stored, never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// The caller's own words about the machine; stored as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
    /// Traffic rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPolicy>,
    /// Whether the machine may reach the internet; true when absent. False is `deny_all`, whatever `network` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// Default working directory of commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Desktop settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desktop: Option<Map<String, Value>>,
    /// Volumes to mount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<VolumeMount>>,
    /// Whether a machine made beforehand may be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool: Option<WarmPoolRequest>,
    /// End the machine after this long without use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inactivity_timeout_ms: Option<u64>,
    /// Forget a hibernated machine after this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_delete_after_ms: Option<u64>,
    /// Keep nothing of the machine once it ended; that is what `destroy` does anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
}

/// `lifecycle` of a create request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LifecyclePolicy {
    /// `destroy` or `pause`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<TimeoutAction>,
}

/// `network` of a create request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// Whether previews work without the machine's own token; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Host that programs are told by previews, instead of the client's; `${PORT}` is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Rules for traffic out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressPolicy>,
    /// An older spelling: networks that may be reached although `deny_out` has them; alone, only these may. Not
    /// together with `egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// The same for networks that may not be reached; `0.0.0.0/0` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
}

/// One volume of a create request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Name or id.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Absolute path in the machine.
    pub mount_path: String,
    /// Refuse writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Only this folder of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subpath: Option<String>,
}

/// `warm_pool` of a create request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmPoolRequest {
    /// Which pool. Template and size are the pool's then, where the request does not say them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// As the pool says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<WarmPoolMode>,
    /// How long to wait for a ready instance, at most 30,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// How much a warm instance is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmPoolMode {
    /// Take one if there is one.
    #[default]
    Prefer,
    /// Fail without one.
    Require,
    /// Never take one.
    Bypass,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MachineInfo {
    /// Its id.
    pub id: String,
    /// Where it stands.
    pub status: MachineStatus,
    /// What it started from.
    pub template: String,
    /// What keeps it apart from the host: `native`, `gvisor` or `microvm`. Absent for machines of before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<String>,
    /// Its size.
    pub config: MachineConfig,
    /// The caller's own words about it.
    pub metadata: Map<String, Value>,
    /// RFC 3339.
    pub created_at: String,
    /// When it first ran; absent before, for the same reason as `timeout_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Time limit; null when it has none.
    pub timeout_ms: Option<u64>,
    /// When the time limit is reached; absent when no time runs. Never null: the published client 1.0.3 ends at that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_at: Option<String>,
    /// The same as `timeout_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Milliseconds left.
    pub remaining_ms: Option<u64>,
    /// What happens then.
    pub timeout_action: TimeoutAction,
    /// Whether use wakes it.
    pub auto_resume: bool,
    /// Whether it may reach the internet, or some of it.
    pub internet_access: bool,
    /// The rules for traffic out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressPolicy>,
    /// Default working directory of commands.
    pub cwd: Option<String>,
    /// Why `status` is `error`, as one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// What a paused machine goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// What requests to its previews need in the header `x-nullspace-traffic-access-token`, if it takes no public
    /// traffic; only in the answer to create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    /// Where the machine came from; only in the answer to create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_pool_checkout: Option<WarmPoolCheckout>,
}

/// The names of [`MachineInfo`]'s fields, for `fields=`.
pub const MACHINE_FIELDS: &[&str] = &[
    "id",
    "status",
    "template",
    "config",
    "metadata",
    "created_at",
    "started_at",
    "ended_at",
    "timeout_ms",
    "timeout_at",
    "expires_at",
    "remaining_ms",
    "timeout_action",
    "auto_resume",
    "internet_access",
    "egress",
    "cwd",
    "failure_reason",
    "snapshot_id",
    "isolation",
    "warm_pool_checkout",
];

/// What keeps a machine apart from its host, the weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Namespaces of the host's kernel.
    Native,
    /// A kernel of its own, in user space.
    Gvisor,
    /// A virtual machine.
    Microvm,
    /// The strongest of these that works on the server.
    Strongest,
}

impl Isolation {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Gvisor => "gvisor",
            Self::Microvm => "microvm",
            Self::Strongest => "strongest",
        }
    }

    /// What a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Native, Self::Gvisor, Self::Microvm, Self::Strongest]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// A machine's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineConfig {
    /// Whole CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mb: u64,
    /// MiB, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
}

/// How a created machine was come by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WarmPoolCheckout {
    /// `ready_instance`, `cold_create` or `bypassed`.
    pub source: String,
    /// Whether a ready instance was taken.
    pub hit: bool,
    /// The pool that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The mode that was asked.
    pub mode: WarmPoolMode,
    /// How long it was to wait for a ready instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Why none was taken, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Query of `GET /v1/machines`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListMachinesQuery {
    /// Comma list of states; creating, running and paused when absent.
    pub state: Option<String>,
    /// Only machines of this template.
    pub template: Option<String>,
    /// JSON object; only machines whose metadata has all of it.
    pub metadata: Option<String>,
    /// Items of a page, 1 to 200.
    pub limit: Option<u32>,
    /// From the page before.
    pub next_token: Option<String>,
    /// Comma list of the fields wanted.
    pub fields: Option<String>,
}

/// Query of `GET /v1/machines/{id}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetMachineQuery {
    /// Comma list of the fields wanted.
    pub fields: Option<String>,
}

/// Answer to `DELETE /v1/machines/{id}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeleteMachineResponse {
    /// The machine.
    pub id: String,
    /// `destroyed`.
    pub status: MachineStatus,
}

/// `POST /v1/machines/{id}/timeout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTimeoutRequest {
    /// The new limit, counted from now.
    pub timeout_ms: u64,
    /// Unchanged when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_action: Option<TimeoutAction>,
}

/// Answer to [`SetTimeoutRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SetTimeoutResponse {
    /// The limit now; null when there is none.
    pub timeout_ms: Option<u64>,
    /// What happens then.
    pub timeout_action: TimeoutAction,
    /// When.
    pub timeout_at: Option<String>,
    /// Milliseconds left.
    pub remaining_ms: Option<u64>,
}

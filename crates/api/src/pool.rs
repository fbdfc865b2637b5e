//! Warm pools: machines of one template that are made beforehand, and handed out.
//!
//! ```text
//!  enabled ◀──▶ disabled ◀── draining ◀── enabled           warming ──▶ ready ──▶ claimed: a machine like any other
//!      └───────────┴────────────┴──▶ deleted                    └─────────┴──▶ released
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::machine::WarmPoolMode;

/// The longest a request for a machine may wait for one of a pool, in milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;

/// The size of a pool's machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolResources {
    /// Whole CPUs.
    pub vcpus: u32,
    /// Memory limit in MiB.
    pub memory_mb: u64,
    /// The most that may be written in each, in MiB; the server's default if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
}

/// What becomes of a pool when its template is built again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionPolicy {
    /// It keeps to the build that its reference meant when it was set.
    #[default]
    PinnedBuild,
    /// It follows a tag.
    TrackTag,
}

/// `POST /v1/template-warm-pools`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePoolRequest {
    /// What machines start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<String>,
    /// The same, in another spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// For people: 1 to 128 characters.
    pub name: String,
    /// Machines that are kept ready.
    pub min_ready: u32,
    /// The most that are ready or on their way; not under `min_ready`.
    pub max_ready: u32,
    /// Their size.
    pub resources: PoolResources,
    /// How long a machine beyond `min_ready` may wait, in seconds; 600 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// How old a machine may become before another takes its place, in seconds; 900 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_after_seconds: Option<u64>,
    /// The mode of requests that name none; `prefer` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_policy: Option<WarmPoolMode>,
    /// `pinned_build` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_policy: Option<VersionPolicy>,
    /// The tag to follow, with `track_tag`; that of the reference when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_tag: Option<String>,
    /// Where the machines are to be; this server is one place, and refuses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_pool_id: Option<String>,
    /// The same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell_id: Option<String>,
    /// The caller's own words, to find pools by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Value>>,
    /// The caller's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `PATCH /v1/template-warm-pools/{id}`: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdatePoolRequest {
    /// What machines start from; also looks again at what it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_ref: Option<String>,
    /// The same, in another spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Machines that are kept ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready: Option<u32>,
    /// The most that are ready or on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ready: Option<u32>,
    /// Their size, as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<PoolResources>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// In seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_after_seconds: Option<u64>,
    /// The mode of requests that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkout_policy: Option<WarmPoolMode>,
    /// What becomes of the pool when its template is built again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_policy: Option<VersionPolicy>,
    /// The tag to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_tag: Option<String>,
    /// The caller's own words, as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, Value>>,
    /// The caller's own words, as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// What a pool was told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Machines are made and handed out.
    Enabled,
    /// None are.
    Disabled,
    /// None are; those that wait are being ended.
    Draining,
    /// The same, for good.
    Deleted,
}

impl PoolState {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Draining => "draining",
            Self::Deleted => "deleted",
        }
    }

    /// Reads the word on the wire.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Enabled, Self::Disabled, Self::Draining, Self::Deleted]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// How a pool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolHealth {
    /// As many wait as should.
    Ready,
    /// Some are on their way.
    Warming,
    /// Something is in the way; `degraded_reason` says what.
    Degraded,
    /// It is being emptied.
    Draining,
    /// It is disabled or deleted.
    Unavailable,
}

impl PoolHealth {
    /// Reads the word on the wire.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        serde_json::from_value(Value::String(word.to_owned())).ok()
    }
}

/// Why a pool has fewer machines than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DegradedReason {
    /// The engine can make no machine now.
    NoEligibleHosts,
    /// The template is being made.
    ArtifactNotReady,
    /// Machines were made, and did not get ready.
    ArtifactPrewarmFailed,
    /// As many machines live as this server allows.
    QuotaExceeded,
    /// The template, or that build of it, is not there.
    TemplateBuildUnavailable,
    /// The pool is disabled.
    ControllerDisabled,
    /// The pool is being emptied.
    DrainActive,
}

/// How many machines of a pool there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolCounts {
    /// How many should be ready.
    pub target: u32,
    /// Ready to be handed out.
    pub ready: u32,
    /// On their way.
    pub warming: u32,
    /// Handed out, and alive.
    pub claimed: u32,
    /// Being ended.
    pub draining: u32,
    /// That did not get ready, in a row.
    pub failed: u32,
    /// Ready, and older than they should be: others are to take their place.
    pub expired: u32,
    /// That should be there, and of which none is on its way because something is in the way.
    pub unavailable: u32,
}

/// What a pool makes machines of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutIdentity {
    /// The reference.
    pub template: Option<String>,
    /// The build.
    pub resolved_template_build_id: Option<String>,
    /// The digest of its layers.
    pub runtime_artifact_id: Option<String>,
    /// Template and size, in one word.
    pub warm_profile_key: Option<String>,
    /// The same: requests for such machines are served.
    pub create_fingerprint: Option<String>,
}

/// Machines, by what they are at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutCounts {
    /// Ready.
    pub ready: u32,
    /// On their way.
    pub warming: u32,
    /// Handed out.
    pub claimed: u32,
    /// That did not get ready, in a row.
    pub failed: u32,
    /// Being ended.
    pub draining: u32,
    /// Ended since the server started.
    pub released: u32,
    /// Anything else.
    pub other: u32,
}

/// How far a change of the template has come. Exactly these fields: published clients take no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStatus {
    /// As the pool has it.
    pub version_policy: VersionPolicy,
    /// As the pool has it.
    pub track_tag: Option<String>,
    /// As the pool has it.
    pub rollout_generation: u64,
    /// What machines are made of now.
    pub current_identity: RolloutIdentity,
    /// Those that are made of it.
    pub current_counts: RolloutCounts,
    /// All of them.
    pub observed_pool_counts: RolloutCounts,
    /// Those of before that are ready or on their way.
    pub old_ready_or_warming: u32,
    /// Those of before that were let go when the pool was looked at last.
    pub old_ready_or_warming_released_this_tick: u32,
    /// RFC 3339.
    pub updated_at: String,
}

/// One pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// Its id.
    pub id: String,
    /// For people.
    pub name: String,
    /// What was asked for.
    pub template_ref: String,
    /// What it was told to be.
    pub state: PoolState,
    /// Machines that are kept ready.
    pub min_ready: u32,
    /// The most that are ready or on their way.
    pub max_ready: u32,
    /// Their size.
    pub resources: PoolResources,
    /// How many there are.
    pub status: PoolCounts,
    /// Why there are fewer than there should be; absent when there are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded_reason: Option<DegradedReason>,
    /// The mode of requests that name none.
    pub checkout_policy: WarmPoolMode,
    /// What becomes of the pool when its template is built again.
    pub version_policy: VersionPolicy,
    /// The tag that it follows.
    pub track_tag: Option<String>,
    /// What machines are made of. Empty until that was found out.
    pub resolved_template: String,
    /// Its build, if it was built here.
    pub resolved_template_build_id: Option<String>,
    /// The digest of its layers.
    pub runtime_artifact_id: Option<String>,
    /// How often that changed, counted from 1.
    pub rollout_generation: u64,
    /// What it was before.
    pub previous_resolved_template: Option<String>,
    /// Its build.
    pub previous_resolved_template_build_id: Option<String>,
    /// Its digest.
    pub previous_runtime_artifact_id: Option<String>,
    /// How far the change has come.
    pub rollout_status: RolloutStatus,
    /// In seconds.
    pub idle_timeout_seconds: u64,
    /// In seconds.
    pub stale_after_seconds: u64,
    /// The caller's own words.
    pub labels: Map<String, Value>,
    /// The caller's own words.
    pub metadata: Map<String, Value>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// When it was enabled last.
    pub enabled_at: Option<String>,
    /// When it was disabled last.
    pub disabled_at: Option<String>,
    /// When it was told to drain last.
    pub drain_requested_at: Option<String>,
    /// When it was looked at last by this server.
    pub last_reconciled_at: Option<String>,
    /// When it was deleted.
    pub deleted_at: Option<String>,
}

/// Answer to `GET /v1/template-warm-pools`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// The pools, newest first.
    pub items: Vec<PoolInfo>,
}

/// Query of `GET /v1/template-warm-pools`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListPoolsQuery {
    /// Only pools of this reference.
    pub template: Option<String>,
    /// `enabled`, `disabled`, `draining` or `deleted`; all but deleted ones when absent.
    pub state: Option<String>,
    /// `key=value`, several times if need be: only pools with all of them.
    #[serde(default)]
    pub label: Vec<String>,
    /// `ready`, `warming`, `degraded`, `draining` or `unavailable`.
    pub status: Option<String>,
    /// At most this many, 1 to 200.
    pub limit: Option<u32>,
}

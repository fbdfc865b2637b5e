//! Agent Deployments: deployments, versions, runs, services, log events, outputs.
//!
//! Published clients read these objects leniently (extra keys are fine), except [`CacheSummary`] and
//! [`BuildSummary`], where an unknown key is an error. They index required keys directly, so nothing required
//! is ever left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use utoipa::{IntoParams, ToSchema};

/// The most events of a page of a log.
pub const MAX_LOG_LIMIT: u32 = 1000;
/// Events of a page of a log when `limit` is absent.
pub const DEFAULT_LOG_LIMIT: u32 = 100;
/// The longest a request for a log waits for an event, in milliseconds.
pub const MAX_WAIT_MS: u64 = 25_000;

/// `POST /v1/agent-deployments`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateDeploymentRequest {
    /// Unique among those that are not deleted; does not start with `adpl_`.
    pub name: String,
    /// `job` or `service`.
    pub mode: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The caller's own words about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `PATCH /v1/agent-deployments/{id}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateDeploymentRequest {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `active` or `paused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The version that runs when none is named; it must be ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_version_id: Option<String>,
    /// Replaces all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// Query of the list of deployments.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListDeploymentsQuery {
    /// `job` or `service`.
    pub mode: Option<String>,
    /// `active`, `paused` or `deleted`; deleted ones are left out unless asked for.
    pub status: Option<String>,
    /// 1 to 200.
    pub limit: Option<u32>,
    /// From the page before.
    pub cursor: Option<String>,
}

/// Query of the lists of versions, runs and services.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only in this status.
    pub status: Option<String>,
    /// Only of this version (runs and services).
    pub version_id: Option<String>,
    /// 1 to 200.
    pub limit: Option<u32>,
    /// From the page before.
    pub cursor: Option<String>,
}

/// A stable name over immutable versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Deployment {
    /// `adpl_…`
    pub id: String,
    /// Unique among those that are not deleted.
    pub name: String,
    /// `job` or `service`.
    pub mode: String,
    /// `active`, `paused` or `deleted`.
    pub status: String,
    /// For people.
    pub description: Option<String>,
    /// The version that runs when none is named.
    pub active_version_id: Option<String>,
    /// The caller's own words about it.
    pub metadata: Map<String, Value>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// RFC 3339.
    pub deleted_at: Option<String>,
}

/// `POST /v1/agent-deployments/{id}/versions`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVersionRequest {
    /// 64 hex digits.
    pub bundle_digest: String,
    /// Every path of the project, also those left out, and the digest over what travels.
    #[schema(value_type = Object)]
    pub bundle_manifest: Box<RawValue>,
    /// The project's config without `bundle`.
    #[schema(value_type = Object)]
    pub config: Value,
    /// `auto` (default), `no_cache` or `rebuild`.
    #[serde(default)]
    pub cache_policy: Option<String>,
}

/// A bundle and a config, both by digest.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Version {
    /// `adver_…`
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// 1, 2, 3, …
    pub version_number: u64,
    /// 64 hex digits.
    pub bundle_digest: String,
    /// What was bundled. In lists without its `entries`.
    #[schema(value_type = Object)]
    pub bundle_manifest: Box<RawValue>,
    /// The config without `bundle`.
    #[schema(value_type = Object)]
    pub config: Value,
    /// What its machines start from.
    pub template: String,
    /// Where the bundle is.
    pub workdir: String,
    /// What is run.
    pub entrypoint_command: String,
    /// What is run before.
    pub install_command: Option<String>,
    /// Names of environment variables: `required`, `optional`.
    #[schema(value_type = Object)]
    pub env_spec: Value,
    /// Size of its machines.
    #[schema(value_type = Object)]
    pub resource_config: Value,
    /// What is kept after a failure.
    #[schema(value_type = Object)]
    pub debug_config: Value,
    /// Where a service listens.
    pub service_port: Option<u16>,
    /// How a service shows that it is ready.
    #[schema(value_type = Option<Object>)]
    pub readiness_config: Option<Value>,
    /// `created`, `building`, `ready`, `failed` or `superseded`.
    pub status: String,
    /// `auto`, `no_cache` or `rebuild`.
    pub cache_policy: String,
    /// What became of the install cache.
    pub cache_summary: Option<CacheSummary>,
    /// The build of its artifact; null while this server keeps none.
    pub build_summary: Option<BuildSummary>,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub ready_at: Option<String>,
}

/// What became of a version's install cache. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CacheSummary {
    /// Whether it may be used.
    pub enabled: bool,
    /// `auto`, `no_cache` or `rebuild`.
    pub policy: String,
    /// `disabled`, `bypassed`, `cache_miss`, `cache_hit`, `building`, `ready` or `failed`.
    pub status: String,
    /// Whether an artifact saves the install.
    pub artifact_ready: bool,
    /// Why it is so.
    pub reason: Option<String>,
    /// The build that makes the artifact.
    pub build_id: Option<String>,
    /// What the artifact is found by.
    pub cache_key_digest: Option<String>,
    /// The artifact.
    pub artifact_id: Option<String>,
    /// RFC 3339.
    pub updated_at: Option<String>,
}

/// The build of an artifact. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildSummary {
    /// `adbld_…`
    pub build_id: String,
    /// `queued`, `building`, `ready`, `failed` or `expired`.
    pub status: String,
    /// Whether its artifact can be used.
    pub artifact_ready: bool,
    /// The artifact.
    pub artifact_id: Option<String>,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub completed_at: Option<String>,
}

/// `POST /v1/agent-deployments/{id}/runs`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRunRequest {
    /// What the run is given.
    #[serde(default)]
    pub input: Option<Map<String, Value>>,
    /// The active version when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Environment of the run. Never stored, never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Keep the machine when the run fails; over what the config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_on_failure: Option<bool>,
    /// For how long, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u64>,
}

impl std::fmt::Debug for CreateRunRequest {
    /// Without the values of the environment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateRunRequest")
            .field("version_id", &self.version_id)
            .field(
                "envs",
                &self.envs.as_ref().map(|e| e.keys().collect::<Vec<_>>()),
            )
            .finish_non_exhaustive()
    }
}

/// One finite execution of a job deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// `adrun_…`
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// The version that runs.
    pub version_id: String,
    /// `job`.
    pub mode: String,
    /// `queued`, `starting`, `installing`, `running`, `succeeded`, `failed`, `cancelled` or `timed_out`.
    pub status: String,
    /// What it was given.
    pub input: Map<String, Value>,
    /// Its machine.
    pub sandbox_id: Option<String>,
    /// Its machine, in the newer spelling.
    pub machine_id: Option<String>,
    /// The process of the entry point in the machine.
    pub process_id: Option<u32>,
    /// The exit code of the entry point, or of the install command when that failed.
    pub exit_code: Option<i32>,
    /// Why it did not succeed.
    pub failure_reason: Option<String>,
    /// What it left behind; null until it ended.
    pub output_manifest: Option<OutputManifest>,
    /// Until when the machine of a failed run is kept. RFC 3339.
    pub retained_until: Option<String>,
    /// What happened when, in order.
    #[serde(default)]
    pub timeline: Vec<TimelineStep>,
    /// When the entry point was started. RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub completed_at: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What it was created with.
    pub idempotency_key: Option<String>,
}

/// A step of a run's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimelineStep {
    /// `queued`, `machine_ready`, `bundle_unpacked`, `install_started`, `installed`, `entrypoint`, `first_output` or `end`.
    pub step: String,
    /// RFC 3339.
    pub at: String,
    /// Milliseconds since the step before; 0 for the first.
    pub duration_ms: u64,
    /// Milliseconds since the run was queued.
    pub elapsed_ms: u64,
}

/// `POST …/runs/{rid}/cancel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// Shown in the run's `failure_reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Query of a log.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// Events to skip; only without `cursor` and `tail`.
    pub offset: Option<u64>,
    /// 1 to 1000; 100 when absent.
    pub limit: Option<u32>,
    /// From the page before: events after it.
    pub cursor: Option<String>,
    /// The newest events instead; over `cursor`.
    pub tail: Option<u32>,
    /// How long to wait for an event (up to 25,000) when there is none yet and the run has not ended.
    pub wait_ms: Option<u64>,
}

/// One event of a log: a line of output, or something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogEvent {
    /// Unique.
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// The version that ran.
    pub version_id: String,
    /// The run, if it was one.
    pub run_id: Option<String>,
    /// The service instance, if it was one.
    pub service_instance_id: Option<String>,
    /// The machine, once there was one.
    pub sandbox_id: Option<String>,
    /// The process in the machine, for output.
    pub process_id: Option<u32>,
    /// `lifecycle`, `system`, `stdout`, `stderr` or `readiness`.
    pub source: String,
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// `stdout`, `stderr`, or what happened: `run_started`, …
    pub event_type: String,
    /// The line, without its end.
    pub message: String,
    /// `source`, `phase` of output, `failure_phase` of bad news.
    pub metadata: Map<String, Value>,
    /// RFC 3339.
    pub created_at: String,
}

/// A page of a log, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    /// The events.
    pub events: Vec<LogEvent>,
    /// Events before the first of this page.
    pub offset: u64,
    /// The most events that were asked for.
    pub limit: u32,
    /// Whether more events are there already.
    pub has_more: bool,
    /// The place after the last event; on an empty page the cursor that was given.
    pub next_cursor: Option<String>,
}

/// What a run left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Outputs {
    /// The run.
    pub run_id: String,
    /// Null until the run ended.
    pub output_manifest: Option<OutputManifest>,
    /// One for each declared path; empty until the run ended.
    pub outputs: Vec<Output>,
}

/// The record of what a run left behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OutputManifest {
    /// Where the outputs were made.
    pub sandbox_id: Option<String>,
    /// The same, in the newer spelling.
    pub machine_id: Option<String>,
    /// RFC 3339.
    pub captured_at: String,
    /// One for each declared path.
    pub outputs: Vec<Output>,
}

/// One declared path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Output {
    /// As the config says it.
    pub configured_path: String,
    /// Absolute path in the machine.
    pub path: String,
    /// Last segment of the path.
    pub name: String,
    /// `available`, `missing` or `error`.
    pub status: String,
    /// `file` or `directory`.
    pub kind: Option<String>,
    /// Bytes of the file, or of all files of the directory.
    pub size_bytes: Option<u64>,
    /// Files of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_count: Option<u64>,
    /// Links, devices and the like that were left out of the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_count: Option<u64>,
    /// Why there is nothing, with status `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where it can be read, with status `available`.
    pub access: Option<OutputAccess>,
}

/// Where an output can be read: `GET /v1/sandboxes/{sandbox_id}/file?path=`, also after the machine is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputAccess {
    /// The machine.
    pub sandbox_id: String,
    /// The machine, in the newer spelling.
    pub machine_id: String,
    /// Absolute path in it.
    pub path: String,
}

/// Query of the download of an output.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DownloadQuery {
    /// A declared path, an absolute path, a name, or a path below a directory.
    pub path: String,
}

/// `POST /v1/agent-deployments/{id}/services`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateServiceRequest {
    /// The active version when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Environment of the service. Never stored, never shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
}

impl std::fmt::Debug for CreateServiceRequest {
    /// Without the values of the environment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateServiceRequest")
            .field("version_id", &self.version_id)
            .finish_non_exhaustive()
    }
}

/// One execution of a service deployment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// `adsvc_…`
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// The version that runs.
    pub version_id: String,
    /// `starting`, `ready`, `unhealthy`, `stopping`, `stopped` or `failed`.
    pub status: String,
    /// Where it listens in its machine.
    pub port: u16,
    /// Its machine.
    pub sandbox_id: Option<String>,
    /// Its machine, in the newer spelling.
    pub machine_id: Option<String>,
    /// The process of the entry point in the machine.
    pub process_id: Option<u32>,
    /// Where it can be opened, while it is ready and its config allows that.
    pub public_url: Option<String>,
    /// What readiness checks said: `ready`, `type`, `port`, `path`, `checked_at`, `error`.
    pub readiness_status: Map<String, Value>,
    /// Why it failed, or why the last restart did.
    pub failure_reason: Option<String>,
    /// How often its entry point was started again after it had ended by itself.
    pub restart_count: u32,
    /// Until when the machine of a stopped or failed service is kept. RFC 3339.
    pub retained_until: Option<String>,
    /// When it first was ready. RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub stopped_at: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// What it was created with.
    pub idempotency_key: Option<String>,
}

/// `POST …/services/{sid}/stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopServiceRequest {
    /// Shown in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Keep the machine for a look inside.
    #[serde(
        default,
        alias = "retain_machine",
        skip_serializing_if = "Option::is_none"
    )]
    pub retain_sandbox: Option<bool>,
}

/// `POST …/services/{sid}/restart`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartServiceRequest {
    /// Shown in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Environment from now on; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
}

impl std::fmt::Debug for RestartServiceRequest {
    /// Without the values of the environment.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestartServiceRequest")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// Where a service can be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceUrl {
    /// The service.
    pub service_id: String,
    /// See [`Service::status`].
    pub status: String,
    /// Null unless the service takes traffic and its config has `permissions.public_url`.
    pub public_url: Option<String>,
    /// Where it listens in its machine.
    pub port: u16,
    /// The header that must carry the token, with `permissions.allow_public_traffic = false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_header: Option<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
}

/// `POST /v1/agent-gc`: remove what nothing points at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// What garbage collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// Whether everything is still there.
    pub dry_run: bool,
    /// One for each thing.
    pub items: Vec<GcItem>,
    /// Bytes of all of them.
    pub freed_bytes: u64,
}

/// A thing that nothing points at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GcItem {
    /// `bundle`, `artifact` or `output`.
    pub kind: String,
    /// What it is called on disk.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Why it is not needed.
    pub reason: String,
}

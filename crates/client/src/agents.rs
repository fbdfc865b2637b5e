//! Agent Deployments: deployments, versions, runs, logs, outputs; services as far as they can be looked at.
//!
//! Answers are read leniently: a field that a newer server adds is no error, one that an older server leaves out is
//! absent. Statuses are words, see [`is_terminal`].

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::Stream;
use http::Method;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::transport::{Call, Client, Retry, UPLOAD_TIMEOUT, body_from, segment};

/// Prefix of a deployment's id; a reference without it is a name.
pub const DEPLOYMENT_PREFIX: &str = nullspace_api::id::DEPLOYMENT;

const DEPLOYMENTS: &str = "/v1/agent-deployments";
/// Items asked for in one page when all are wanted.
const PAGE: u32 = 200;

/// A deployment: a stable name over immutable versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// `adpl_…`
    pub id: String,
    /// Unique among those that are not deleted.
    pub name: String,
    /// `job` or `service`.
    pub mode: String,
    /// `active`, `paused` or `deleted`.
    pub status: String,
    /// The caller's own words about it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
    /// The version that runs when none is named.
    #[serde(default)]
    pub active_version_id: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub updated_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub deleted_at: Option<String>,
}

/// A version: bundle and config, both by digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// `adver_…`
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// 1, 2, 3, …
    pub version_number: u64,
    /// 64 hex digits.
    pub bundle_digest: String,
    /// What was bundled.
    #[serde(default, deserialize_with = "null_as_default")]
    pub bundle_manifest: Map<String, Value>,
    /// The config without `bundle`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: Map<String, Value>,
    /// What its machines start from.
    pub template: String,
    /// Where the bundle is unpacked.
    pub workdir: String,
    /// What is run.
    pub entrypoint_command: String,
    /// Names of environment variables.
    #[serde(default, deserialize_with = "null_as_default")]
    pub env_spec: EnvSpec,
    /// Size of its machines.
    #[serde(default, deserialize_with = "null_as_default")]
    pub resource_config: Map<String, Value>,
    /// What is kept after a failure.
    #[serde(default, deserialize_with = "null_as_default")]
    pub debug_config: Map<String, Value>,
    /// `created`, `building`, `ready`, `failed` or `superseded`.
    pub status: String,
    /// `auto`, `no_cache` or `rebuild`.
    #[serde(default = "auto")]
    pub cache_policy: String,
    /// What became of the install cache.
    #[serde(default)]
    pub cache_summary: Option<CacheSummary>,
    /// The build of its artifact.
    #[serde(default)]
    pub build_summary: Option<BuildSummary>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// What is run before the entrypoint.
    #[serde(default)]
    pub install_command: Option<String>,
    /// Where a service listens.
    #[serde(default)]
    pub service_port: Option<u16>,
    /// How a service shows that it is ready.
    #[serde(default)]
    pub readiness_config: Option<Map<String, Value>>,
    /// Why it failed.
    #[serde(default)]
    pub failure_reason: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub ready_at: Option<String>,
}

fn auto() -> String {
    "auto".to_owned()
}

/// Names of environment variables that a version wants. Values are given with each run and never stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvSpec {
    /// A run without one of these is refused.
    #[serde(default, deserialize_with = "null_as_default")]
    pub required: Vec<String>,
    /// Passed on if the caller has them.
    #[serde(default, deserialize_with = "null_as_default")]
    pub optional: Vec<String>,
}

/// What became of a version's install cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    #[serde(default)]
    pub reason: Option<String>,
    /// The build that makes the artifact.
    #[serde(default)]
    pub build_id: Option<String>,
    /// What the artifact is found by.
    #[serde(default)]
    pub cache_key_digest: Option<String>,
    /// The artifact.
    #[serde(default)]
    pub artifact_id: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub updated_at: Option<String>,
}

/// The build of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BuildSummary {
    /// `adbld_…`
    pub build_id: String,
    /// `queued`, `building`, `ready`, `failed` or `expired`.
    pub status: String,
    /// Whether its artifact can be used.
    pub artifact_ready: bool,
    /// The artifact.
    #[serde(default)]
    pub artifact_id: Option<String>,
    /// Its size.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Why it failed.
    #[serde(default)]
    pub failure_reason: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub completed_at: Option<String>,
}

/// One execution of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, deserialize_with = "null_as_default")]
    pub input: Map<String, Value>,
    /// Its machine.
    #[serde(default)]
    pub sandbox_id: Option<String>,
    /// The entrypoint's process in the machine.
    #[serde(default)]
    pub process_id: Option<u32>,
    /// The entrypoint's exit code.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Why it did not succeed.
    #[serde(default)]
    pub failure_reason: Option<String>,
    /// What it left behind.
    #[serde(default)]
    pub output_manifest: Option<Map<String, Value>>,
    /// RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub completed_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub updated_at: Option<String>,
    /// What it was created with.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// One execution of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What readiness checks said.
    #[serde(default, deserialize_with = "null_as_default")]
    pub readiness_status: Map<String, Value>,
    /// Its machine.
    #[serde(default)]
    pub sandbox_id: Option<String>,
    /// The entrypoint's process in the machine.
    #[serde(default)]
    pub process_id: Option<u32>,
    /// Where it is reached.
    #[serde(default)]
    pub public_url: Option<String>,
    /// Why it is not ready.
    #[serde(default)]
    pub failure_reason: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub started_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub stopped_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// RFC 3339.
    #[serde(default)]
    pub updated_at: Option<String>,
    /// What it was created with.
    #[serde(default)]
    pub idempotency_key: Option<String>,
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceUrl {
    /// The instance.
    pub service_id: String,
    /// Its status.
    pub status: String,
    /// Null while there is none.
    #[serde(default)]
    pub public_url: Option<String>,
    /// Where it listens in its machine.
    #[serde(default)]
    pub port: Option<u16>,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEvent {
    /// Unique.
    pub id: String,
    /// Its deployment.
    pub deployment_id: String,
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// `stdout`, `stderr`, or what happened.
    pub event_type: String,
    /// The line.
    pub message: String,
    /// More facts.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// RFC 3339.
    #[serde(default)]
    pub created_at: Option<String>,
    /// The version that ran.
    #[serde(default)]
    pub version_id: Option<String>,
    /// The run, if it was one.
    #[serde(default)]
    pub run_id: Option<String>,
    /// The service instance, if it was one.
    #[serde(default)]
    pub service_instance_id: Option<String>,
    /// The machine.
    #[serde(default)]
    pub sandbox_id: Option<String>,
    /// The process in the machine.
    #[serde(default)]
    pub process_id: Option<u32>,
    /// `lifecycle`, `system`, `stdout`, `stderr` or `readiness`.
    #[serde(default)]
    pub source: Option<String>,
}

/// A page of a log, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Logs {
    /// The lines.
    #[serde(default, deserialize_with = "null_as_default")]
    pub events: Vec<LogEvent>,
    /// Lines before the first.
    pub offset: u64,
    /// The most lines that were asked for.
    pub limit: u64,
    /// Whether more lines are there already.
    pub has_more: bool,
    /// Where the next page begins.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// What a run left behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outputs {
    /// The run.
    pub run_id: String,
    /// The whole record.
    #[serde(default)]
    pub output_manifest: Option<Map<String, Value>>,
    /// One object for each declared path; see [`Output`].
    #[serde(default, deserialize_with = "null_as_default")]
    pub outputs: Vec<Map<String, Value>>,
}

/// The parts of an output that clients use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Output {
    /// As the config says it.
    #[serde(default)]
    pub configured_path: Option<String>,
    /// Absolute path in the machine.
    #[serde(default)]
    pub path: Option<String>,
    /// Last segment of the path.
    #[serde(default)]
    pub name: Option<String>,
    /// `available`, `missing` or `error`.
    #[serde(default)]
    pub status: Option<String>,
    /// `file` or `directory`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Size.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Where it can be read.
    #[serde(default)]
    pub access: Option<OutputAccess>,
}

/// Where an output can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct OutputAccess {
    /// The machine, which may be gone; its outputs still answer.
    #[serde(default)]
    pub sandbox_id: Option<String>,
    /// Absolute path in it.
    #[serde(default)]
    pub path: Option<String>,
}

impl Outputs {
    /// The outputs as far as clients use them; one that is spelled otherwise shows as empty.
    #[must_use]
    pub fn parsed(&self) -> Vec<Output> {
        self.outputs
            .iter()
            .map(|output| serde_json::from_value(Value::Object(output.clone())).unwrap_or_default())
            .collect()
    }

    /// The machine and path where an output can be read.
    #[must_use]
    pub fn place<'a>(&'a self, output: &'a Output) -> Option<(&'a str, &'a str)> {
        let access = output.access.as_ref();
        let machine = access
            .and_then(|access| access.sandbox_id.as_deref())
            .or_else(|| self.output_manifest.as_ref()?.get("sandbox_id")?.as_str())?;
        let path = access
            .and_then(|access| access.path.as_deref())
            .or(output.path.as_deref())?;
        Some((machine, path))
    }
}

/// A page of a list, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub struct Page<T> {
    /// What there is.
    #[serde(default, deserialize_with = "null_as_default")]
    pub items: Vec<T>,
    /// Where the next page begins; absent at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// `POST /v1/agent-deployments`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CreateDeployment {
    /// Unique among those that are not deleted.
    pub name: String,
    /// `job` or `service`.
    pub mode: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The caller's own words about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Map<String, Value>>,
}

/// `POST /v1/agent-deployments/{id}/versions`.
#[derive(Clone, Debug, Serialize)]
pub struct CreateVersion<'a, M: Serialize> {
    /// 64 hex digits.
    pub bundle_digest: &'a str,
    /// What is bundled, with what was left out.
    pub bundle_manifest: &'a M,
    /// The config without `bundle`.
    pub config: &'a Value,
    /// `auto`, `no_cache` or `rebuild`.
    pub cache_policy: &'a str,
}

/// `POST /v1/agent-deployments/{id}/runs`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CreateRun {
    /// What the run is given.
    pub input: Map<String, Value>,
    /// The active version when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Environment of the run. Never stored, never shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// Keep the machine of a failed run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_on_failure: Option<bool>,
    /// How long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u64>,
}

/// Which deployments, runs or services a list holds.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only this mode; deployments only.
    pub mode: Option<String>,
    /// Only this status.
    pub status: Option<String>,
    /// Only of this version; runs and services only.
    pub version_id: Option<String>,
    /// Items of a page.
    pub limit: Option<u32>,
    /// From the page before.
    pub cursor: Option<String>,
}

/// Which part of a log.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Lines to skip; read only without `cursor` and `tail`.
    pub offset: u64,
    /// The most lines of a page.
    pub limit: u64,
    /// From the page before.
    pub cursor: Option<String>,
    /// The newest lines instead.
    pub tail: Option<u64>,
    /// How long the server may hold back an empty page for a line to come. Servers that do not know it answer at once.
    pub wait_ms: Option<u64>,
}

/// What runs: a job run or a service instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A run, by id.
    Run(String),
    /// A service instance, by id.
    Service(String),
}

/// Whether nothing more happens to a run or a service in this status.
#[must_use]
pub fn is_terminal(status: &str) -> bool {
    matches!(
        status,
        "succeeded" | "failed" | "cancelled" | "timed_out" | "stopped"
    )
}

impl Client {
    /// Makes a deployment.
    ///
    /// # Errors
    /// See [`Error`]; a code that ends in `_conflict` when the name is taken.
    pub async fn create_deployment(&self, request: &CreateDeployment) -> Result<Deployment, Error> {
        self.fetch(Call::post(DEPLOYMENTS).idempotent(None).json(request)?)
            .await
    }

    /// A page of deployments.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_deployments(&self, query: &ListQuery) -> Result<Page<Deployment>, Error> {
        self.fetch(list_call(DEPLOYMENTS.to_owned(), query).query("mode", query.mode.as_ref()))
            .await
    }

    /// The deployment of this name, if there is one; looks through all pages.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_deployment(&self, name: &str) -> Result<Option<Deployment>, Error> {
        let mut query = ListQuery {
            limit: Some(PAGE),
            ..ListQuery::default()
        };
        loop {
            let page = self.list_deployments(&query).await?;
            if let Some(found) = page
                .items
                .into_iter()
                .find(|deployment| deployment.name == name)
            {
                return Ok(Some(found));
            }
            match page.next_cursor.filter(|cursor| !cursor.is_empty()) {
                // A cursor that does not move on would have us ask forever.
                Some(cursor) if query.cursor.as_ref() != Some(&cursor) => {
                    query.cursor = Some(cursor)
                }
                _ => return Ok(None),
            }
        }
    }

    /// One deployment by id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_deployment(&self, id: &str) -> Result<Deployment, Error> {
        self.fetch(Call::get(deployment_path(id))).await
    }

    /// Deletes a deployment: its runs end, its name is free.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_deployment(&self, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, deployment_path(id)).retry(Retry::Never))
            .await
    }

    /// Makes a version, whose bundle is then uploaded.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_version<M: Serialize>(
        &self,
        deployment: &str,
        request: &CreateVersion<'_, M>,
    ) -> Result<Version, Error> {
        // The manifest of a large project takes a while to travel and to check.
        let call = Call::post(deployment_path(deployment) + "/versions")
            .idempotent(None)
            .json(request)?;
        self.fetch(call.limit(self.timeout.max(UPLOAD_TIMEOUT)))
            .await
    }

    /// One version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_version(&self, deployment: &str, id: &str) -> Result<Version, Error> {
        self.fetch(Call::get(format!(
            "{}/versions/{}",
            deployment_path(deployment),
            segment(id)
        )))
        .await
    }

    /// Uploads a version's bundle: `archive` makes its stream, anew for each attempt; `length` is its exact length.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_bundle<S, E>(
        &self,
        version: &Version,
        digest: &str,
        length: u64,
        archive: impl Fn() -> S + Send + Sync,
    ) -> Result<Version, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let path = format!(
            "{}/versions/{}/bundle",
            deployment_path(&version.deployment_id),
            segment(&version.id)
        );
        let call = Call::new(Method::PUT, path)
            .idempotent(None)
            .header("content-type", "application/x-tar")
            .header("content-length", length.to_string())
            .header("x-nullspace-bundle-digest", digest)
            .limit(UPLOAD_TIMEOUT)
            .retry(Retry::Upload)
            .stream(|pulse| body_from(archive(), pulse));
        self.fetch(call).await
    }

    /// Starts a run. With the same `idempotency_key` it is started once, however often this is called.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_run(
        &self,
        deployment: &str,
        request: &CreateRun,
        idempotency_key: Option<&str>,
    ) -> Result<Run, Error> {
        let call = Call::post(deployment_path(deployment) + "/runs")
            .idempotent(idempotency_key)
            .json(request)?;
        self.fetch(call).await
    }

    /// A page of runs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_runs(&self, deployment: &str, query: &ListQuery) -> Result<Page<Run>, Error> {
        self.fetch(list_call(deployment_path(deployment) + "/runs", query))
            .await
    }

    /// One run.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_run(&self, deployment: &str, id: &str) -> Result<Run, Error> {
        self.fetch(Call::get(format!(
            "{}/runs/{}",
            deployment_path(deployment),
            segment(id)
        )))
        .await
    }

    /// Ends a run; one that has ended stays as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_run(
        &self,
        deployment: &str,
        id: &str,
        reason: Option<&str>,
    ) -> Result<Run, Error> {
        let body: BTreeMap<_, _> = reason
            .map(|reason| ("reason", reason))
            .into_iter()
            .collect();
        let path = format!(
            "{}/runs/{}/cancel",
            deployment_path(deployment),
            segment(id)
        );
        self.fetch(Call::post(path).json(&body)?).await
    }

    /// What a run left behind.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_outputs(&self, deployment: &str, run: &str) -> Result<Outputs, Error> {
        self.fetch(Call::get(format!(
            "{}/runs/{}/outputs",
            deployment_path(deployment),
            segment(run)
        )))
        .await
    }

    /// A page of services.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_services(
        &self,
        deployment: &str,
        query: &ListQuery,
    ) -> Result<Page<Service>, Error> {
        self.fetch(list_call(deployment_path(deployment) + "/services", query))
            .await
    }

    /// One service instance.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_service(&self, deployment: &str, id: &str) -> Result<Service, Error> {
        self.fetch(Call::get(format!(
            "{}/services/{}",
            deployment_path(deployment),
            segment(id)
        )))
        .await
    }

    /// Where a service instance is reached.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_service_url(&self, deployment: &str, id: &str) -> Result<ServiceUrl, Error> {
        self.fetch(Call::get(format!(
            "{}/services/{}/url",
            deployment_path(deployment),
            segment(id)
        )))
        .await
    }

    /// A page of the log of a run or a service.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_logs(
        &self,
        deployment: &str,
        target: &Target,
        query: &LogQuery,
    ) -> Result<Logs, Error> {
        let (kind, id) = match target {
            Target::Run(id) => ("runs", id),
            Target::Service(id) => ("services", id),
        };
        let moving = query.cursor.is_some() || query.tail.is_some();
        let mut call = Call::get(format!(
            "{}/{kind}/{}/logs",
            deployment_path(deployment),
            segment(id)
        ))
        .query("offset", (!moving).then_some(query.offset))
        .query("limit", Some(query.limit))
        .query("cursor", query.cursor.as_ref())
        .query("tail", query.tail)
        .query("wait_ms", query.wait_ms);
        if let Some(wait) = query.wait_ms {
            call = call.limit(
                self.timeout
                    .max(std::time::Duration::from_millis(wait) + super::config::DEFAULT_TIMEOUT),
            );
        }
        self.fetch(call).await
    }
}

fn deployment_path(id: &str) -> String {
    format!("{DEPLOYMENTS}/{}", segment(id))
}

fn list_call(path: String, query: &ListQuery) -> Call<'static> {
    Call::get(path)
        .query("status", query.status.as_ref())
        .query("version_id", query.version_id.as_ref())
        .query("limit", query.limit)
        .query("cursor", query.cursor.as_ref())
}

/// Null reads as the type's default.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

//! Agent Deployments: deployments, versions, runs, services, logs, outputs.
//!
//! Most types are those of the wire ([`nullspace_api::agent`]). Those here are what the wire's are not made for: reading
//! a version without holding its manifest as text, and writing one from the bundle itself. Statuses are words, see
//! [`is_terminal`].

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::Method;
use nullspace_api::agent::{
    BuildSummary, CacheSummary, CancelRequest, CreateDeploymentRequest, CreateRunRequest,
    Deployment, GcReport, GcRequest, ListDeploymentsQuery, ListQuery, Logs, LogsQuery, Output,
    Outputs, Run, UpdateDeploymentRequest,
};
use nullspace_api::page::CursorPage;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::config::DEFAULT_TIMEOUT;
use crate::error::Error;
use crate::transport::{Call, Client, Retry, UPLOAD_TIMEOUT, body_from, segment};

mod services;

pub use services::{Service, ServiceUrl};

/// Prefix of a deployment's id; a reference without it is a name.
pub const DEPLOYMENT_PREFIX: &str = nullspace_api::id::DEPLOYMENT;

const DEPLOYMENTS: &str = "/v1/agent-deployments";
/// Items asked for in one page when all are wanted.
const PAGE: u32 = 200;

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

/// What runs: a job run or a service instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A run, by id.
    Run(String),
    /// A service instance, by id.
    Service(String),
}

/// The machine and path where an output of a run can be read.
#[must_use]
pub fn output_place<'a>(outputs: &'a Outputs, output: &'a Output) -> Option<(&'a str, &'a str)> {
    match &output.access {
        Some(access) => Some((&access.sandbox_id, &access.path)),
        None => {
            let manifest = outputs.output_manifest.as_ref()?;
            Some((manifest.sandbox_id.as_deref()?, &output.path))
        }
    }
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
    pub async fn create_deployment(
        &self,
        request: &CreateDeploymentRequest,
    ) -> Result<Deployment, Error> {
        self.fetch(Call::post(DEPLOYMENTS).idempotent(None).json(request)?)
            .await
    }

    /// A page of deployments.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_deployments(
        &self,
        query: &ListDeploymentsQuery,
    ) -> Result<CursorPage<Deployment>, Error> {
        let call = Call::get(DEPLOYMENTS)
            .query("mode", query.mode.as_ref())
            .query("status", query.status.as_ref())
            .query("limit", query.limit)
            .query("cursor", query.cursor.as_ref());
        self.fetch(call).await
    }

    /// The deployment of this name, if there is one; looks through all pages.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn find_deployment(&self, name: &str) -> Result<Option<Deployment>, Error> {
        let mut query = ListDeploymentsQuery {
            limit: Some(PAGE),
            ..ListDeploymentsQuery::default()
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
            match next_cursor(page.next_cursor, query.cursor.as_ref()) {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(None),
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

    /// Changes a deployment: what the request does not name stays as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_deployment(
        &self,
        id: &str,
        request: &UpdateDeploymentRequest,
    ) -> Result<Deployment, Error> {
        self.fetch(Call::new(Method::PATCH, deployment_path(id)).json(request)?)
            .await
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

    /// A page of versions.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_versions(
        &self,
        deployment: &str,
        query: &ListQuery,
    ) -> Result<CursorPage<Version>, Error> {
        self.fetch(list_call(deployment_path(deployment) + "/versions", query))
            .await
    }

    /// All versions, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn all_versions(&self, deployment: &str) -> Result<Vec<Version>, Error> {
        let mut query = ListQuery {
            limit: Some(PAGE),
            ..ListQuery::default()
        };
        let mut versions = Vec::new();
        loop {
            let page = self.list_versions(deployment, &query).await?;
            versions.extend(page.items);
            match next_cursor(page.next_cursor, query.cursor.as_ref()) {
                Some(cursor) => query.cursor = Some(cursor),
                None => return Ok(versions),
            }
        }
    }

    /// One version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_version(&self, deployment: &str, id: &str) -> Result<Version, Error> {
        self.fetch(Call::get(version_path(deployment, id))).await
    }

    /// Deletes a version that nothing runs and that is not the active one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_version(&self, deployment: &str, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, version_path(deployment, id)).retry(Retry::Never))
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
        let path = version_path(&version.deployment_id, &version.id) + "/bundle";
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
        request: &CreateRunRequest,
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
    pub async fn list_runs(
        &self,
        deployment: &str,
        query: &ListQuery,
    ) -> Result<CursorPage<Run>, Error> {
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

    /// One run of whatever deployment. Servers of other makes do not offer it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_run_by_id(&self, id: &str) -> Result<Run, Error> {
        self.fetch(Call::get(format!("/v1/agent-runs/{}", segment(id))))
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
        let body = CancelRequest {
            reason: reason.map(str::to_owned),
        };
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

    /// A page of the log of a run or a service.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_logs(
        &self,
        deployment: &str,
        target: &Target,
        query: &LogsQuery,
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
        .query("offset", query.offset.filter(|_| !moving))
        .query("limit", query.limit)
        .query("cursor", query.cursor.as_ref())
        .query("tail", query.tail)
        .query("wait_ms", query.wait_ms);
        if let Some(wait) = query.wait_ms {
            call = call.limit(
                self.timeout
                    .max(Duration::from_millis(wait) + DEFAULT_TIMEOUT),
            );
        }
        self.fetch(call).await
    }

    /// Removes bundles, artifacts and outputs that nothing points at; with `dry_run` only says which.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn collect_garbage(&self, dry_run: bool) -> Result<GcReport, Error> {
        // A large store takes a while to look through.
        let call = Call::post("/v1/agent-gc")
            .json(&GcRequest { dry_run })?
            .limit(self.timeout.max(UPLOAD_TIMEOUT));
        self.fetch(call).await
    }
}

fn deployment_path(id: &str) -> String {
    format!("{DEPLOYMENTS}/{}", segment(id))
}

fn version_path(deployment: &str, id: &str) -> String {
    format!("{}/versions/{}", deployment_path(deployment), segment(id))
}

/// The cursor of the next page, if there is one. A cursor that does not move on would have us ask forever.
pub(crate) fn next_cursor(next: Option<String>, asked: Option<&String>) -> Option<String> {
    next.filter(|next| !next.is_empty() && asked != Some(next))
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

//! Services: what they look like, and the calls that start, stop and restart them.

use nullspace_api::agent::{
    CreateServiceRequest, ListQuery, RestartServiceRequest, StopServiceRequest,
};
use nullspace_api::page::CursorPage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{deployment_path, list_call, null_as_default};
use crate::error::Error;
use crate::transport::{Call, Client, segment};

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
    /// Its machine, in the newer spelling.
    #[serde(default)]
    pub machine_id: Option<String>,
    /// The entrypoint's process in the machine.
    #[serde(default)]
    pub process_id: Option<u32>,
    /// Where it is reached.
    #[serde(default)]
    pub public_url: Option<String>,
    /// Why it is not ready.
    #[serde(default)]
    pub failure_reason: Option<String>,
    /// How often its entry point was started again after it had ended by itself.
    #[serde(default)]
    pub restart_count: Option<u32>,
    /// Until when the machine of a stopped or failed service is kept. RFC 3339.
    #[serde(default)]
    pub retained_until: Option<String>,
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
    /// The header that must carry the token, where traffic is not for everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_header: Option<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
}

impl Client {
    /// Starts a service. With the same `idempotency_key` it is started once, however often this is called.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_service(
        &self,
        deployment: &str,
        request: &CreateServiceRequest,
        idempotency_key: Option<&str>,
    ) -> Result<Service, Error> {
        let call = Call::post(deployment_path(deployment) + "/services")
            .idempotent(idempotency_key)
            .json(request)?;
        self.fetch(call).await
    }

    /// A page of services.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_services(
        &self,
        deployment: &str,
        query: &ListQuery,
    ) -> Result<CursorPage<Service>, Error> {
        self.fetch(list_call(deployment_path(deployment) + "/services", query))
            .await
    }

    /// One service instance.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_service(&self, deployment: &str, id: &str) -> Result<Service, Error> {
        self.fetch(Call::get(service_path(deployment, id))).await
    }

    /// Stops a service; one that has stopped stays as it is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_service(
        &self,
        deployment: &str,
        id: &str,
        request: &StopServiceRequest,
    ) -> Result<Service, Error> {
        let call = Call::post(service_path(deployment, id) + "/stop").json(request)?;
        self.fetch(call).await
    }

    /// Restarts a service with the active version.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn restart_service(
        &self,
        deployment: &str,
        id: &str,
        request: &RestartServiceRequest,
    ) -> Result<Service, Error> {
        let call = Call::post(service_path(deployment, id) + "/restart").json(request)?;
        self.fetch(call).await
    }

    /// Where a service instance is reached.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_service_url(&self, deployment: &str, id: &str) -> Result<ServiceUrl, Error> {
        self.fetch(Call::get(service_path(deployment, id) + "/url"))
            .await
    }
}

fn service_path(deployment: &str, id: &str) -> String {
    format!("{}/services/{}", deployment_path(deployment), segment(id))
}

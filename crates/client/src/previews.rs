//! Ports of machines, seen from outside.

use std::time::Duration;

use http::Method;
use nullspace_api::preview::{
    Grants, Host, HostRequest, PreviewUrl, ProxyTarget, ProxyTargetRequest, Readiness,
    ReadinessRequest, RevokedGrant, SignedPreviewRequest,
};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, segment};

/// A server waits for a port for 28 s at most.
const READINESS: Duration = Duration::from_secs(60);

fn port_path(machine: &str, port: u16) -> String {
    format!("{}/ports/{port}", machine_path(machine))
}

impl Client {
    /// Publishes a port: who reaches it needs no token from now on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn machine_host(&self, machine: &str, port: u16) -> Result<Host, Error> {
        let call = Call::post(machine_path(machine) + "/host").json(&HostRequest { port })?;
        self.fetch(call).await
    }

    /// A URL of a port that has its token in it, for as long as the server lets previews work.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preview_url(&self, machine: &str, port: u16) -> Result<PreviewUrl, Error> {
        self.fetch(Call::get(port_path(machine, port) + "/preview-url"))
            .await
    }

    /// The same for a while of the caller's choice.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn signed_preview_url(
        &self,
        machine: &str,
        port: u16,
        request: &SignedPreviewRequest,
    ) -> Result<PreviewUrl, Error> {
        let path = port_path(machine, port) + "/signed-preview-url";
        self.fetch(Call::post(path).json(request)?).await
    }

    /// Where a proxy of the caller's own reaches a port, and with which tokens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preview_proxy_target(
        &self,
        machine: &str,
        port: u16,
        request: &ProxyTargetRequest,
    ) -> Result<ProxyTarget, Error> {
        let path = port_path(machine, port) + "/preview-proxy-target";
        self.fetch(Call::post(path).json(request)?).await
    }

    /// Waits until a port answers, for a while.
    ///
    /// # Errors
    /// See [`Error`]; a port that does not answer is none.
    pub async fn preview_readiness(
        &self,
        machine: &str,
        port: u16,
        request: &ReadinessRequest,
    ) -> Result<Readiness, Error> {
        let path = port_path(machine, port) + "/readiness";
        let call = Call::post(path)
            .json(request)?
            .limit(self.timeout.max(READINESS));
        self.fetch(call).await
    }

    /// The grants of a machine, or of one port of it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_preview_urls(
        &self,
        machine: &str,
        port: Option<u16>,
    ) -> Result<Grants, Error> {
        let call = Call::get(machine_path(machine) + "/preview-urls");
        self.fetch(call.query("port", port)).await
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke_preview_url(
        &self,
        machine: &str,
        grant: &str,
    ) -> Result<RevokedGrant, Error> {
        let path = format!("{}/preview-urls/{}", machine_path(machine), segment(grant));
        self.fetch(Call::new(Method::DELETE, path)).await
    }
}

//! API keys of the caller's tenant, and of others for an operator.

use http::Method;
use nullspace_api::key::{CreateKeyRequest, CreatedKey, DefaultKey, KeyInfo};

use crate::error::Error;
use crate::tenants::tenant_path;
use crate::transport::{Call, Client, segment};

const PATH: &str = "/v1/keys";

fn path(id: &str) -> String {
    format!("{PATH}/{}", segment(id))
}

fn tenant_keys_path(tenant: &str) -> String {
    format!("{}/keys", tenant_path(tenant))
}

impl Client {
    /// Makes a key of the caller's tenant.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_key(&self, request: &CreateKeyRequest) -> Result<CreatedKey, Error> {
        self.fetch(Call::post(PATH).json(request)?).await
    }

    /// The key of the name `default`, made if there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn default_key(&self) -> Result<DefaultKey, Error> {
        self.fetch(Call::post(format!("{PATH}/default"))).await
    }

    /// The keys of the caller's tenant, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_keys(&self) -> Result<Vec<KeyInfo>, Error> {
        self.fetch(Call::get(PATH)).await
    }

    /// Takes a key back.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revoke_key(&self, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, path(id))).await
    }

    /// Makes a key that replaces another.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rotate_key(&self, id: &str) -> Result<CreatedKey, Error> {
        self.fetch(Call::post(format!("{}/rotate", path(id)))).await
    }

    /// Makes a key of a tenant, by its id or name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_tenant_key(
        &self,
        tenant: &str,
        request: &CreateKeyRequest,
    ) -> Result<CreatedKey, Error> {
        self.fetch(Call::post(tenant_keys_path(tenant)).json(request)?)
            .await
    }

    /// The keys of a tenant, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_tenant_keys(&self, tenant: &str) -> Result<Vec<KeyInfo>, Error> {
        self.fetch(Call::get(tenant_keys_path(tenant))).await
    }
}

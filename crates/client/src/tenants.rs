//! Tenants: the caller's own, and all of them for an operator. Their keys are with the others.

use http::Method;
use nullspace_api::tenant::{CreateTenantRequest, TenantInfo, TenantList, UpdateTenantRequest};

use crate::error::Error;
use crate::transport::{Call, Client, segment};

const PATH: &str = "/v1/tenants";

pub(crate) fn tenant_path(reference: &str) -> String {
    format!("{PATH}/{}", segment(reference))
}

impl Client {
    /// The tenant of the key that asks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn own_tenant(&self) -> Result<TenantInfo, Error> {
        self.fetch(Call::get("/v1/tenant")).await
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_tenant(&self, request: &CreateTenantRequest) -> Result<TenantInfo, Error> {
        self.fetch(Call::post(PATH).json(request)?).await
    }

    /// Every tenant, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_tenants(&self) -> Result<TenantList, Error> {
        self.fetch(Call::get(PATH)).await
    }

    /// One tenant, by id or name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_tenant(&self, reference: &str) -> Result<TenantInfo, Error> {
        self.fetch(Call::get(tenant_path(reference))).await
    }

    /// Changes a tenant, by id or name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_tenant(
        &self,
        reference: &str,
        request: &UpdateTenantRequest,
    ) -> Result<TenantInfo, Error> {
        self.fetch(Call::new(Method::PATCH, tenant_path(reference)).json(request)?)
            .await
    }

    /// Removes a tenant that has nothing any more, by id or name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_tenant(&self, reference: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, tenant_path(reference)))
            .await
    }
}

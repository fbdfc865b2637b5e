//! Warm pools.

use http::Method;
use nullspace_api::pool::{
    CreatePoolRequest, ListPoolsQuery, PoolCounts, PoolInfo, PoolList, UpdatePoolRequest,
};

use crate::error::Error;
use crate::transport::{Call, Client, segment};

const PATH: &str = "/v1/template-warm-pools";

fn path(id: &str) -> String {
    format!("{PATH}/{}", segment(id))
}

/// What a pool can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolAction {
    /// Make and hand out machines.
    Enable,
    /// Hand out none, and end those that wait.
    Disable,
    /// Get empty, and be disabled then.
    Drain,
    /// Look now, and do what is to be done.
    Reconcile,
}

impl PoolAction {
    fn word(self) -> &'static str {
        match self {
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Drain => "drain",
            Self::Reconcile => "reconcile",
        }
    }
}

impl Client {
    /// Makes a warm pool.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_warm_pool(&self, request: &CreatePoolRequest) -> Result<PoolInfo, Error> {
        self.fetch(Call::post(PATH).json(request)?).await
    }

    /// Warm pools, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_warm_pools(&self, query: &ListPoolsQuery) -> Result<Vec<PoolInfo>, Error> {
        let mut call = Call::get(PATH)
            .query("template", query.template.as_deref())
            .query("state", query.state.as_deref())
            .query("status", query.status.as_deref())
            .query("limit", query.limit);
        for label in &query.label {
            call = call.query("label", Some(label));
        }
        Ok(self.fetch::<PoolList>(call).await?.items)
    }

    /// One warm pool.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_warm_pool(&self, id: &str) -> Result<PoolInfo, Error> {
        self.fetch(Call::get(path(id))).await
    }

    /// How many machines a warm pool has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn warm_pool_counts(&self, id: &str) -> Result<PoolCounts, Error> {
        self.fetch(Call::get(format!("{}/status", path(id)))).await
    }

    /// Changes a warm pool.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_warm_pool(
        &self,
        id: &str,
        request: &UpdatePoolRequest,
    ) -> Result<PoolInfo, Error> {
        self.fetch(Call::new(Method::PATCH, path(id)).json(request)?)
            .await
    }

    /// Tells a warm pool to do something.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tell_warm_pool(&self, id: &str, action: PoolAction) -> Result<PoolInfo, Error> {
        self.fetch(Call::post(format!("{}/{}", path(id), action.word())))
            .await
    }

    /// Deletes a warm pool.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_warm_pool(&self, id: &str) -> Result<PoolInfo, Error> {
        self.fetch(Call::new(Method::DELETE, path(id))).await
    }
}

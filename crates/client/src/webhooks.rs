//! Webhooks: who is told of events over HTTP.

use http::Method;
use nullspace_api::webhook::{
    CreateWebhookRequest, DeliveryDetail, DeliveryInfo, UpdateWebhookRequest, WebhookInfo,
};

use crate::error::Error;
use crate::transport::{Call, Client, segment};

const PATH: &str = "/v1/lifecycle/webhooks";

fn path(id: &str) -> String {
    format!("{PATH}/{}", segment(id))
}

impl Client {
    /// Makes a webhook.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_webhook(
        &self,
        request: &CreateWebhookRequest,
    ) -> Result<WebhookInfo, Error> {
        self.fetch(Call::post(PATH).json(request)?).await
    }

    /// Every webhook, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_webhooks(&self) -> Result<Vec<WebhookInfo>, Error> {
        self.fetch(Call::get(PATH)).await
    }

    /// One webhook.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_webhook(&self, id: &str) -> Result<WebhookInfo, Error> {
        self.fetch(Call::get(path(id))).await
    }

    /// Changes a webhook.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_webhook(
        &self,
        id: &str,
        request: &UpdateWebhookRequest,
    ) -> Result<WebhookInfo, Error> {
        self.fetch(Call::new(Method::PATCH, path(id)).json(request)?)
            .await
    }

    /// Removes a webhook with what waits for it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_webhook(&self, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, path(id))).await
    }

    /// Deliveries of a webhook, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_webhook_deliveries(
        &self,
        id: &str,
        offset: u64,
        limit: u32,
    ) -> Result<Vec<DeliveryInfo>, Error> {
        let call = Call::get(format!("{}/deliveries", path(id)))
            .query("offset", Some(offset))
            .query("limit", Some(limit));
        self.fetch(call).await
    }

    /// One delivery with its event and attempts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_webhook_delivery(
        &self,
        id: &str,
        delivery: &str,
    ) -> Result<DeliveryDetail, Error> {
        let path = format!("{}/deliveries/{}", path(id), segment(delivery));
        self.fetch(Call::get(path)).await
    }
}

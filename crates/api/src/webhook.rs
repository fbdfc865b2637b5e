//! Webhooks: who is told of events over HTTP.

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::event::EventInfo;

/// A secret that is taken and never shown: not in a debug print, not in an error about a request.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(value_type = String)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer) {
            Ok(serde_json::Value::String(text)) => Ok(Self(text)),
            // Whatever was sent may have been meant as the secret: it is not quoted.
            _ => Err(de::Error::custom("must be a string")),
        }
    }
}

/// Makes a webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateWebhookRequest {
    /// `https://…` or `http://…`, at most 2,048 bytes, without a user, a password or a fragment. Private addresses need the
    /// server's setting `webhook_private_receivers`.
    pub url: String,
    /// Which operations; at least one.
    pub operations: Vec<String>,
    /// Signs what is sent: 1 to 1,024 bytes.
    pub signing_secret: Secret,
    /// Whether it works at once; it does when absent.
    #[serde(default)]
    pub enabled: Option<bool>,
}

/// Changes a webhook: what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UpdateWebhookRequest {
    /// As in [`CreateWebhookRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// As in [`CreateWebhookRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<String>>,
    /// A new secret, from the next attempt on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_secret: Option<Secret>,
    /// While it is off nothing is queued, and what was queued waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// A webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebhookInfo {
    /// UUID.
    pub id: String,
    /// Where to.
    pub url: String,
    /// Which operations.
    pub operations: Vec<String>,
    /// Whether it works.
    pub enabled: bool,
    /// Always true; the secret itself is never shown.
    pub has_signing_secret: bool,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// When an attempt last ended, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivery_at: Option<String>,
    /// What became of that delivery: `queued` (it is attempted again), `succeeded` or `dead_letter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivery_status: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The delivery of one event to one webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryInfo {
    /// UUID.
    pub id: String,
    /// UUID.
    pub webhook_id: String,
    /// UUID.
    pub event_id: String,
    /// The event's.
    pub operation: String,
    /// The event's.
    pub status: String,
    /// `queued`, `in_progress`, `succeeded` or `dead_letter`.
    pub delivery_status: String,
    /// Attempts that ended.
    pub attempt_count: u32,
    /// When the event was recorded, RFC 3339.
    pub created_at: String,
    /// When it is attempted again, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<String>,
    /// When the last attempt began, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<String>,
    /// HTTP status of the last answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_response_status: Option<u16>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One attempt of a delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptInfo {
    /// UUID.
    pub id: String,
    /// UUID.
    pub delivery_id: String,
    /// Counted from 1.
    pub attempt_number: u32,
    /// When it began, RFC 3339.
    pub attempted_at: String,
    /// Milliseconds.
    pub duration_ms: u64,
    /// HTTP status of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<u16>,
    /// `http_status`, `timeout`, `connection_failed`, `receiver_refused`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// A delivery, what was delivered, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryDetail {
    /// The delivery.
    pub delivery: DeliveryInfo,
    /// What is sent.
    pub event: EventInfo,
    /// The last 50 attempts, oldest first.
    pub attempts: Vec<AttemptInfo>,
}

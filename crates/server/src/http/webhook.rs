//! `/v1/lifecycle/webhooks`: who is told of events over HTTP.

use axum::{Extension, extract::State};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    webhook::{
        CreateWebhookRequest, DeliveryDetail, DeliveryInfo, UpdateWebhookRequest, WebhookInfo,
    },
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, Query};
use crate::{
    app::{AppState, Caller, webhook},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_webhook, list_webhooks))
        .routes(routes!(get_webhook, update_webhook, delete_webhook))
        .routes(routes!(list_webhook_deliveries))
        .routes(routes!(get_webhook_delivery))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeliveriesQuery {
    /// Deliveries to skip.
    offset: Option<u64>,
    /// 1 to 200.
    limit: Option<u32>,
}

/// Make a webhook.
///
/// Each event of its operations is POSTed as JSON to its URL, in the order of the log, with `X-Nullspace-Signature:
/// sha256=<HMAC-SHA256 of the body with the signing secret, in hex>`, `X-Nullspace-Event-Id`, `X-Nullspace-Delivery-Id` and
/// `X-Nullspace-Timestamp`. Anything but a 2xx within 10 s is tried again, for three days; an event may come more than once.
#[utoipa::path(post, path = "/v1/lifecycle/webhooks", tag = "lifecycle", request_body = CreateWebhookRequest,
    responses((status = 201, body = WebhookInfo), (status = 400, body = ErrorBody), (status = 429, body = ErrorBody)))]
async fn create_webhook(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<CreateWebhookRequest>,
) -> Result<(StatusCode, Json<WebhookInfo>)> {
    let made = webhook::create(&app, &caller, request).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List webhooks, oldest first.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks", tag = "lifecycle",
    responses((status = 200, body = Vec<WebhookInfo>)))]
async fn list_webhooks(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<WebhookInfo>>> {
    webhook::list(&app, &caller).await.map(Json)
}

/// Show a webhook.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{id}", tag = "lifecycle", params(("id" = String, Path)),
    responses((status = 200, body = WebhookInfo), (status = 404, body = ErrorBody)))]
async fn get_webhook(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<WebhookInfo>> {
    webhook::get(&app, &id).await.map(Json)
}

/// Change a webhook.
#[utoipa::path(patch, path = "/v1/lifecycle/webhooks/{id}", tag = "lifecycle", params(("id" = String, Path)),
    request_body = UpdateWebhookRequest,
    responses((status = 200, body = WebhookInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn update_webhook(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<UpdateWebhookRequest>,
) -> Result<Json<WebhookInfo>> {
    webhook::update(&app, &id, request).await.map(Json)
}

/// Delete a webhook with what waits for it.
#[utoipa::path(delete, path = "/v1/lifecycle/webhooks/{id}", tag = "lifecycle", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
async fn delete_webhook(State(app): State<AppState>, Path(id): Path<String>) -> Result<StatusCode> {
    webhook::delete(&app, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the deliveries of a webhook, newest first.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{id}/deliveries", tag = "lifecycle",
    params(("id" = String, Path), DeliveriesQuery),
    responses((status = 200, body = Vec<DeliveryInfo>), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_webhook_deliveries(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<DeliveriesQuery>,
) -> Result<Json<Vec<DeliveryInfo>>> {
    webhook::deliveries(&app, &id, query.offset, query.limit)
        .await
        .map(Json)
}

/// Show a delivery with its event and its attempts.
#[utoipa::path(get, path = "/v1/lifecycle/webhooks/{id}/deliveries/{delivery_id}", tag = "lifecycle",
    params(("id" = String, Path), ("delivery_id" = String, Path)),
    responses((status = 200, body = DeliveryDetail), (status = 404, body = ErrorBody)))]
async fn get_webhook_delivery(
    State(app): State<AppState>,
    Path((id, delivery)): Path<(String, String)>,
) -> Result<Json<DeliveryDetail>> {
    webhook::delivery(&app, &id, &delivery).await.map(Json)
}

//! Webhooks: who is told of events over HTTP.
//!
//! ```text
//!  event ─same transaction─▶ a delivery for each webhook that wants it ──▶ its worker ──▶ receiver
//! ```
//! Every webhook that is enabled has a worker ([`worker`]); which receivers are talked to is decided in [`address`]. The
//! signing secret is sealed for its webhook and opened by the worker alone.

mod address;
mod attempt;
mod worker;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nullspace_api::{
    error::code,
    event::OPERATIONS,
    page, time,
    webhook::{
        AttemptInfo, CreateWebhookRequest, DeliveryDetail, DeliveryInfo, Secret,
        UpdateWebhookRequest, WebhookInfo,
    },
};
use nullspace_store::{
    event::EventRow,
    webhook::{self as rows, AttemptRow, Bounds, DeliveryRow, WebhookRow},
};
use tokio::sync::Mutex as AsyncMutex;

use super::{App, AppState, Caller, event};
use crate::error::{Error, Kind, Result};

/// Webhooks of one tenant.
const MAX_WEBHOOKS: usize = 100;
/// The longest signing secret, in bytes.
const MAX_SECRET: usize = 1024;
/// What waits for one webhook at most.
const MAX_QUEUED: u32 = 100_000;
/// How long deliveries that are over can be read, in microseconds.
const DELIVERIES_KEPT: i64 = 7 * 86_400 * 1_000_000;
/// The most events that are kept.
const MAX_EVENTS: u32 = 1_000_000;
/// How long a name may take to resolve while a webhook is made; it is checked at each delivery in any case.
const LOOKUP: Duration = Duration::from_secs(2);

/// The webhooks that are delivered to.
#[derive(Debug, Default)]
pub struct Webhooks {
    workers: Mutex<HashMap<String, worker::Worker>>,
    client: Mutex<Option<reqwest::Client>>,
    /// One change at a time.
    changing: AsyncMutex<()>,
}

/// Starts delivering to every webhook that is enabled.
///
/// # Errors
/// When the record cannot be read.
pub async fn start(app: &AppState) -> Result<()> {
    for webhook in app.store.read(rows::all).await? {
        if webhook.enabled {
            run(app, &webhook.id)?;
        }
    }
    Ok(())
}

/// Has a worker for a webhook; the one that is there reads it again.
fn run(app: &AppState, id: &str) -> Result<()> {
    let client = client(app)?;
    let mut workers = workers(app);
    match workers.get(id) {
        Some(worker) => worker.changed.notify_one(),
        None => {
            let worker = worker::spawn(app, client, id.to_owned());
            workers.insert(id.to_owned(), worker);
        }
    }
    Ok(())
}

fn halt(app: &App, id: &str) {
    if let Some(worker) = workers(app).remove(id) {
        worker.ended.cancel();
    }
}

fn workers(app: &App) -> std::sync::MutexGuard<'_, HashMap<String, worker::Worker>> {
    app.webhooks
        .workers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Made when the first webhook needs it: reading the certificate authorities of the host takes a while.
fn client(app: &App) -> Result<reqwest::Client> {
    let mut slot = app
        .webhooks
        .client
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = &*slot {
        return Ok(client.clone());
    }
    let limit = Duration::from_millis(app.config.webhook_timeout_ms);
    let client = attempt::client(app.config.webhook_private_receivers, limit)
        .map_err(|error| Error::internal(format!("no http client for webhooks: {error}")))?;
    *slot = Some(client.clone());
    Ok(client)
}

fn owner(id: &str) -> String {
    format!("webhook {id}")
}

/// The signing secret of a webhook.
fn open(app: &App, webhook: &WebhookRow) -> Option<Vec<u8>> {
    app.seal.open_sealed(&owner(&webhook.id), &webhook.secret)
}

fn seal(app: &App, id: &str, secret: &Secret) -> Result<Vec<u8>> {
    if secret.0.is_empty() || secret.0.len() > MAX_SECRET {
        return Err(Error::invalid(format!(
            "signing_secret: must be 1 to {MAX_SECRET} bytes"
        )));
    }
    app.seal
        .seal(&owner(id), secret.0.as_bytes())
        .map_err(|error| Error::internal(format!("sealing a signing secret: {error}")))
}

async fn check_url(app: &App, text: &str) -> Result<String> {
    let url = address::parse(text).map_err(|what| Error::invalid(format!("url: {what}")))?;
    let private = app.config.webhook_private_receivers;
    let refused = |error: address::Refused| {
        Error::invalid(format!("url: {error}")).with_action(format!(
            "use an address that the server may reach, or start it with `{}`",
            address::SETTING
        ))
    };
    address::check_literal(&url, private).map_err(refused)?;
    let host = url.host_str().unwrap_or_default();
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
        // One that does not resolve now may do so later.
        if let Ok(Ok(found)) = tokio::time::timeout(LOOKUP, address::lookup(host)).await {
            address::allowed(host, found, private).map_err(refused)?;
        }
    }
    Ok(text.to_owned())
}

fn check_operations(operations: &[String]) -> Result<String> {
    if operations.is_empty() {
        return Err(Error::invalid(format!(
            "operations: at least one of {} is needed",
            OPERATIONS.join(", ")
        )));
    }
    for operation in operations {
        event::one_of("operations", Some(operation), &OPERATIONS)?;
    }
    // Once each, in the order of the log's own list.
    let wanted: Vec<&str> = OPERATIONS
        .into_iter()
        .filter(|known| operations.iter().any(|said| said == known))
        .collect();
    Ok(serde_json::Value::from(wanted).to_string())
}

/// Makes a webhook.
///
/// # Errors
/// `invalid_request`, `capacity_exceeded`.
pub async fn create(
    app: &AppState,
    caller: &Caller,
    request: CreateWebhookRequest,
) -> Result<WebhookInfo> {
    let now = time::now();
    let id = uuid::Uuid::now_v7().to_string();
    let row = WebhookRow {
        tenant_id: caller.tenant_id(),
        operations: check_operations(&request.operations)?,
        secret: seal(app, &id, &request.signing_secret)?,
        url: check_url(app, &request.url).await?,
        enabled: request.enabled.unwrap_or(true),
        id,
        created_at: now,
        updated_at: now,
        last_delivery_at: None,
        last_delivery_status: None,
        last_error: None,
    };
    let _one = app.webhooks.changing.lock().await;
    let recording = row.clone();
    app.store
        .write(move |tx| {
            if rows::list(tx, &recording.tenant_id)?.len() >= MAX_WEBHOOKS {
                return Err(Error::new(
                    Kind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("there are {MAX_WEBHOOKS} webhooks, the most a tenant has"),
                )
                .with_action("delete one that is no longer needed"));
            }
            Ok(rows::insert(tx, &recording)?)
        })
        .await?;
    if row.enabled {
        run(app, &row.id)?;
    }
    Ok(info(row))
}

/// Changes a webhook. What is under way goes on with what it began with.
///
/// # Errors
/// `invalid_request`, `webhook_not_found`.
pub async fn update(
    app: &AppState,
    id: &str,
    request: UpdateWebhookRequest,
) -> Result<WebhookInfo> {
    let operations = match &request.operations {
        Some(operations) => Some(check_operations(operations)?),
        None => None,
    };
    let url = match &request.url {
        Some(url) => Some(check_url(app, url).await?),
        None => None,
    };
    let _one = app.webhooks.changing.lock().await;
    let mut row = find(app, id).await?;
    if let Some(secret) = &request.signing_secret {
        row.secret = seal(app, id, secret)?;
    }
    row.operations = operations.unwrap_or(row.operations);
    row.url = url.unwrap_or(row.url);
    row.enabled = request.enabled.unwrap_or(row.enabled);
    row.updated_at = time::now();
    let recording = row.clone();
    app.store
        .write(move |tx| rows::update(tx, &recording))
        .await?;
    if row.enabled {
        run(app, id)?;
    } else {
        halt(app, id);
    }
    Ok(info(row))
}

/// Removes a webhook with all that was queued for it; an attempt that is under way is broken off.
///
/// # Errors
/// `webhook_not_found`.
pub async fn delete(app: &App, id: &str) -> Result<()> {
    let _one = app.webhooks.changing.lock().await;
    let wanted = id.to_owned();
    let deleted = app.store.write(move |tx| rows::delete(tx, &wanted)).await?;
    halt(app, id);
    deleted.then_some(()).ok_or_else(|| no_webhook(id))
}

/// One webhook.
///
/// # Errors
/// `webhook_not_found`.
pub async fn get(app: &App, id: &str) -> Result<WebhookInfo> {
    find(app, id).await.map(info)
}

/// The caller's webhooks, oldest first.
///
/// # Errors
/// When the record cannot be read.
pub async fn list(app: &App, caller: &Caller) -> Result<Vec<WebhookInfo>> {
    let tenant_id = caller.tenant_id();
    let rows = app.store.read(move |db| rows::list(db, &tenant_id)).await?;
    Ok(rows.into_iter().map(info).collect())
}

async fn find(app: &App, id: &str) -> Result<WebhookRow> {
    let wanted = id.to_owned();
    app.store
        .read(move |db| rows::get(db, &wanted))
        .await?
        .ok_or_else(|| no_webhook(id))
}

/// No webhook of that id.
pub(crate) fn no_webhook(id: &str) -> Error {
    Error::not_found(code::WEBHOOK_NOT_FOUND, format!("no webhook {id}"))
}

/// Deliveries of a webhook, newest first.
///
/// # Errors
/// `invalid_request`, `webhook_not_found`.
pub async fn deliveries(
    app: &App,
    id: &str,
    offset: Option<u64>,
    limit: Option<u32>,
) -> Result<Vec<DeliveryInfo>> {
    let limit = limit.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    find(app, id).await?;
    let (wanted, offset) = (id.to_owned(), offset.unwrap_or(0));
    let rows = app
        .store
        .read(move |db| rows::deliveries(db, &wanted, offset, limit))
        .await?;
    Ok(rows
        .into_iter()
        .map(|(delivery, event)| delivery_info(app, delivery, &event))
        .collect())
}

/// One delivery with its event and attempts.
///
/// # Errors
/// `webhook_not_found`, `webhook_delivery_not_found`.
pub async fn delivery(app: &App, id: &str, delivery: &str) -> Result<DeliveryDetail> {
    find(app, id).await?;
    let (webhook, wanted) = (id.to_owned(), delivery.to_owned());
    let found = app
        .store
        .read(move |db| rows::delivery(db, &webhook, &wanted))
        .await?;
    let Some((row, event, attempts)) = found else {
        return Err(Error::not_found(
            code::WEBHOOK_DELIVERY_NOT_FOUND,
            format!("webhook {id} has no delivery {delivery}"),
        ));
    };
    // Of the one that is under way the record holds what is to be read of it if this server ends now.
    let under_way = is_under_way(app, &row).then_some(row.attempt_count);
    let attempts = attempts
        .into_iter()
        .filter(|attempt| under_way.is_none_or(|last| attempt.number < last))
        .map(|attempt| attempt_info(&row.id, attempt))
        .collect();
    Ok(DeliveryDetail {
        delivery: delivery_info(app, row, &event),
        event: event::info(event),
        attempts,
    })
}

/// Forgets old events and deliveries, and gives up what waits for too long. Called now and then.
///
/// # Errors
/// When the record cannot be written.
pub(crate) async fn forget_old(app: &App) -> Result<()> {
    let now = time::now();
    let before = |secs: u64| now - i64::try_from(secs).unwrap_or(0).saturating_mul(1_000_000);
    let bounds = Bounds {
        give_up_before: before(app.config.webhook_give_up_secs),
        max_queued: MAX_QUEUED,
        deliveries_before: now - DELIVERIES_KEPT,
        events_before: before(app.config.event_retention_secs),
        max_events: MAX_EVENTS,
    };
    while app.store.write(move |tx| rows::sweep(tx, &bounds)).await? {}
    Ok(())
}

fn info(row: WebhookRow) -> WebhookInfo {
    WebhookInfo {
        id: row.id,
        url: row.url,
        operations: serde_json::from_str(&row.operations).unwrap_or_default(),
        enabled: row.enabled,
        has_signing_secret: true,
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        last_delivery_at: row.last_delivery_at.map(time::rfc3339),
        last_delivery_status: row.last_delivery_status,
        last_error: row.last_error,
    }
}

/// Whether the last attempt of a delivery is not over, or not on record.
fn is_under_way(app: &App, row: &DeliveryRow) -> bool {
    row.state == "queued"
        && workers(app).get(&row.webhook_id).is_some_and(|worker| {
            let under_way = worker.under_way.lock();
            under_way
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&row.seq)
        })
}

fn delivery_info(app: &App, row: DeliveryRow, event: &EventRow) -> DeliveryInfo {
    let is_under_way = is_under_way(app, &row);
    DeliveryInfo {
        id: row.id,
        webhook_id: row.webhook_id,
        event_id: event.id.clone(),
        operation: event.operation.clone(),
        status: event.status.clone(),
        delivery_status: if is_under_way {
            "in_progress".into()
        } else {
            row.state
        },
        attempt_count: row.attempt_count,
        created_at: time::rfc3339(row.created_at),
        next_attempt_at: row.next_attempt_at.map(time::rfc3339),
        last_attempt_at: row.last_attempt_at.map(time::rfc3339),
        last_response_status: row.last_response_status,
        last_error: row.last_error,
    }
}

fn attempt_info(delivery: &str, row: AttemptRow) -> AttemptInfo {
    AttemptInfo {
        id: row.id,
        delivery_id: delivery.to_owned(),
        attempt_number: row.number,
        attempted_at: time::rfc3339(row.attempted_at),
        duration_ms: row.duration_ms,
        response_status: row.response_status,
        error_code: row.error_code,
        error_message: row.error_message,
    }
}

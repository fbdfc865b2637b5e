//! One attempt to deliver an event: a signed POST, bounded in time and in what is taken of the answer.

use std::{
    error::Error as _,
    time::{Duration, Instant},
};

use nullspace_api::time;
use reqwest::{Client, Url, header::CONTENT_TYPE, redirect};
use ring::hmac;

use super::address::{self, Refused};

/// What is read of an answer, so that its connection can be used again. Nothing of it is kept.
const MAX_ANSWER: usize = 16 << 10;
/// How long a connection that is not used stays.
const IDLE: Duration = Duration::from_secs(30);

/// A client for receivers.
///
/// # Errors
/// When it cannot be made.
pub(super) fn client(private: bool, limit: Duration) -> reqwest::Result<Client> {
    Client::builder()
        .dns_resolver(address::resolver(private))
        .redirect(redirect::Policy::none())
        // A proxy would dial what we have not checked.
        .no_proxy()
        .timeout(limit)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(2)
        .user_agent(concat!("nullspace/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// What is sent.
pub(super) struct Letter<'a> {
    pub(super) url: &'a Url,
    pub(super) key: &'a hmac::Key,
    pub(super) event_id: &'a str,
    pub(super) delivery_id: &'a str,
    pub(super) body: Vec<u8>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// When it began.
    pub(super) at: i64,
    pub(super) duration_ms: u64,
    /// Of the answer, if there was one.
    pub(super) status: Option<u16>,
    /// Why it failed: a word, and the same for people.
    pub(super) failure: Option<(&'static str, String)>,
}

impl Outcome {
    /// Whether the receiver is there but wants nothing of this event. A gateway that stands before one that is down, or
    /// one that asks for patience, says nothing about the event.
    pub(super) fn is_refusal(&self) -> bool {
        self.failure.is_some()
            && self
                .status
                .is_some_and(|status| !matches!(status, 408 | 425 | 429 | 502 | 503 | 504))
    }
}

/// Sends it.
pub(super) async fn send(client: &Client, letter: Letter<'_>, private: bool) -> Outcome {
    let at = time::now();
    let begun = Instant::now();
    let result = post(client, letter, private, at).await;
    let (status, failure) = match result {
        Ok(status) if (200..300).contains(&status) => (Some(status), None),
        Ok(status) => {
            let hint = match status {
                300..400 => "; redirects are not followed",
                _ => "",
            };
            let text = format!("the receiver answered {status}{hint}");
            (Some(status), Some(("http_status", text)))
        }
        Err(failure) => (None, Some(failure)),
    };
    Outcome {
        at,
        duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        status,
        failure,
    }
}

async fn post(
    client: &Client,
    letter: Letter<'_>,
    private: bool,
    at: i64,
) -> Result<u16, (&'static str, String)> {
    address::check_literal(letter.url, private).map_err(refused)?;
    let signature = hex::encode(hmac::sign(letter.key, &letter.body));
    let mut answer = client
        .post(letter.url.clone())
        .header(CONTENT_TYPE, "application/json")
        .header("x-nullspace-signature", format!("sha256={signature}"))
        .header("x-nullspace-event-id", letter.event_id)
        .header("x-nullspace-delivery-id", letter.delivery_id)
        .header("x-nullspace-timestamp", (at / 1_000_000).to_string())
        .body(letter.body)
        .send()
        .await
        .map_err(explain)?;
    let status = answer.status().as_u16();
    let mut taken = 0;
    while taken < MAX_ANSWER
        && let Ok(Some(chunk)) = answer.chunk().await
    {
        taken += chunk.len();
    }
    Ok(status)
}

fn refused(refused: Refused) -> (&'static str, String) {
    ("receiver_refused", refused.to_string())
}

/// In words, without the URL: it may hold a secret.
fn explain(error: reqwest::Error) -> (&'static str, String) {
    let error = error.without_url();
    let mut source = error.source();
    let mut last = None;
    while let Some(cause) = source {
        if let Some(no) = cause.downcast_ref::<Refused>() {
            return refused(no.clone());
        }
        last = Some(cause.to_string());
        source = cause.source();
    }
    if error.is_timeout() {
        return ("timeout", "the receiver took too long".to_owned());
    }
    let mut why = last.unwrap_or_else(|| error.to_string());
    let end = why.char_indices().nth(300).map_or(why.len(), |(at, _)| at);
    why.truncate(end);
    if error.is_connect() {
        ("connection_failed", format!("no connection: {why}"))
    } else {
        ("request_failed", format!("the connection broke: {why}"))
    }
}

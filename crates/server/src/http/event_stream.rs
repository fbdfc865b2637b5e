//! `GET /v1/lifecycle/ws` and `GET …/{id}/lifecycle/ws`: events as they happen. The messages are in
//! `nullspace_api::event`.

use std::time::Duration;

use axum::{Extension, extract::State, response::Response};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use nullspace_api::{
    ErrorBody,
    event::{StreamMessage, StreamRequest},
};
use tokio::time::Instant;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::Path,
    socket::{Incoming, Outgoing, PING, PING_FRAME, SILENCE, Upgrade},
};
use crate::{
    app::{
        AppState, Caller,
        event::{self, Scope},
        event_stream::Subscription,
        socket::TextFrame,
    },
    error::{Error, Result},
};

/// The largest frame of a client, in bytes: a filter.
const MAX_MESSAGE: usize = 64 << 10;
/// How long a client may take to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(30);
/// How long a frame waits for a client that does not read. It can come back and go on after the last event that it had.
const STUCK: Duration = Duration::from_secs(300);

pub(super) fn machine_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(machine_socket))
}

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(socket))
}

/// Open a WebSocket for the events of one machine.
///
/// As `/v1/lifecycle/ws`, narrowed to the machine.
#[utoipa::path(get, path = "/{id}/lifecycle/ws", tag = "lifecycle", operation_id = "machine_lifecycle_ws",
    params(("id" = String, Path)),
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = ErrorBody, description = "`invalid_request`: not a WebSocket upgrade"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
    ))]
async fn machine_socket(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    upgrade: Upgrade,
) -> Result<Response> {
    open(app, caller, Scope::Machine(id), upgrade).await
}

/// Open a WebSocket for the events of all machines.
///
/// The client sends `{"type":"subscribe"}` with filters, of which all must let an event through: `machine_id` (or `sandbox_id`),
/// `snapshot_id`, `operation`, `status`, `audience`, `metadata`. `after_event_id` begins after an event, `live_only` with the
/// next one, otherwise the newest `replay_limit` come first. The server answers `subscribed` and then `event` for each, oldest
/// first, or `error`. Another `subscribe` takes the place of the one before.
#[utoipa::path(get, path = "/v1/lifecycle/ws", tag = "lifecycle", operation_id = "lifecycle_ws",
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = ErrorBody, description = "`invalid_request`: not a WebSocket upgrade"),
    ))]
async fn socket(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    upgrade: Upgrade,
) -> Result<Response> {
    open(app, caller, Scope::Fleet, upgrade).await
}

async fn open(app: AppState, caller: Caller, scope: Scope, upgrade: Upgrade) -> Result<Response> {
    event::check_scope(&app, &caller, &scope).await?;
    Ok(upgrade.accept(move |frames, outgoing| serve(app, caller, scope, frames, outgoing)))
}

/// Tells events until one side has enough.
async fn serve(
    app: AppState,
    caller: Caller,
    scope: Scope,
    mut frames: WebSocketStream<Incoming>,
    outgoing: Outgoing,
) {
    let mut client = Client {
        outgoing,
        heard: Instant::now(),
    };
    let over = tokio::select! {
        over = follow(&app, &caller, &scope, &mut client, &mut frames) => over.err(),
        () = app.stopping.cancelled() => Some(CloseFrame {
            code: CloseCode::Away,
            reason: "the server stops".into(),
        }),
    };
    let close = async {
        if over.is_some() {
            let _ = frames.send(Message::Close(over)).await;
        }
        let _ = SinkExt::close(&mut frames).await;
        let last = client.outgoing.replies();
        let _ = client.outgoing.send(last).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
}

/// The way to a client.
struct Client {
    outgoing: Outgoing,
    /// When something last came from it, or a frame that had waited for it was taken.
    heard: Instant,
}

impl Client {
    /// # Errors
    /// When the client is gone or takes nothing: there is nothing to tell it.
    async fn send(&mut self, frame: Bytes) -> Result<(), CloseFrame> {
        let begun = Instant::now();
        let sent = tokio::time::timeout(STUCK, self.outgoing.send(frame)).await;
        if begun.elapsed() > PING {
            // While it did not read it could not answer pings either.
            self.heard = Instant::now();
        }
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(bye(CloseCode::Policy, "nothing is read")),
        }
    }

    async fn say(&mut self, message: &StreamMessage) -> Result<(), CloseFrame> {
        match TextFrame::of(message) {
            Some(frame) => self.send(frame.into()).await,
            None => Ok(()),
        }
    }
}

fn bye(code: CloseCode, reason: &'static str) -> CloseFrame {
    CloseFrame {
        code,
        reason: reason.into(),
    }
}

/// One connection. Ends well when the client closes it.
///
/// # Errors
/// With what the client is told when the server ends it.
async fn follow(
    app: &AppState,
    caller: &Caller,
    scope: &Scope,
    client: &mut Client,
    frames: &mut WebSocketStream<Incoming>,
) -> Result<(), CloseFrame> {
    let opened = Instant::now();
    let mut told = app.store.events();
    let mut subscription: Option<Subscription> = None;
    let mut more = false;
    let mut ping = tokio::time::interval_at(opened + PING, PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = async {
            match &subscription {
                Some(subscription) if more => subscription.next(app).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            frame = frames.next() => {
                let Some(Ok(frame)) = frame else { return Ok(()) };
                client.heard = Instant::now();
                let text = match frame {
                    Message::Text(text) => text.to_string(),
                    Message::Binary(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                    Message::Close(_) => return Ok(()),
                };
                if text.len() > MAX_MESSAGE {
                    return Err(bye(CloseCode::Size, "a filter is smaller"));
                }
                told.mark_unchanged();
                match subscribe(app, caller, scope, &text).await {
                    Ok((begun, answer)) => {
                        (subscription, more) = (Some(begun), true);
                        client.say(&answer).await?;
                    }
                    Err(error) => {
                        let refused = StreamMessage::Error {
                            message: error.message,
                            code: error.code.to_owned(),
                        };
                        // What went on goes on, and what it was told meanwhile is not lost.
                        more = subscription.is_some();
                        client.say(&refused).await?;
                    }
                }
            }
            _ = ping.tick() => {
                if client.heard.elapsed() > SILENCE {
                    return Err(bye(CloseCode::Policy, "nothing is heard"));
                }
                if subscription.is_none() && opened.elapsed() > FIRST_WORD {
                    return Err(bye(CloseCode::Policy, "nothing was subscribed to"));
                }
                client.send(Bytes::from_static(PING_FRAME)).await?;
            }
            () = client.outgoing.told() => {
                let replies = client.outgoing.replies();
                client.send(replies).await?;
            }
            // The store ends with the server.
            changed = told.changed(), if !more => more = changed.is_ok(),
            stretch = next => {
                // A client takes an error for the end, but comes back from a closed connection.
                let stretch = stretch
                    .map_err(|_| bye(CloseCode::Error, "the record cannot be read"))?;
                for row in stretch.events {
                    let event = Box::new(event::info(row));
                    client.say(&StreamMessage::Event { event }).await?;
                }
                if let Some(subscription) = &mut subscription {
                    subscription.taken(stretch.end);
                }
                more = stretch.more;
            }
        }
    }
}

async fn subscribe(
    app: &AppState,
    caller: &Caller,
    scope: &Scope,
    text: &str,
) -> Result<(Subscription, StreamMessage)> {
    let StreamRequest::Subscribe(said) =
        serde_json::from_str(text).map_err(|error| Error::invalid(format!("message: {error}")))?;
    let answer = StreamMessage::Subscribed {
        subscription: said.clone(),
        reconnect_mode: "live_only".into(),
    };
    let subscription = Subscription::begin(app, caller, scope, *said).await?;
    Ok((subscription, answer))
}

//! `GET …/ws`: a machine's WebSocket. The messages are in `nullspace_api::socket`. How a WebSocket is opened and held is
//! the same for all of this server's.

mod wire;

use std::time::Duration;

use axum::{extract::State, response::Response};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, header};
use nullspace_api::ErrorBody;
use tokio::{sync::mpsc, time::Instant};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) use self::wire::{Incoming, Outgoing, Upgrade};
use super::extract::Path;
use crate::{
    app::{
        AppState,
        count::Held,
        machine,
        socket::{Socket, TextFrame},
    },
    error::Result,
};

/// The beginning of a protocol whose rest is an API key.
const KEY_PROTOCOL: &str = "nullspace.bearer.";
/// A ping without content.
pub(super) const PING_FRAME: &[u8] = &[0x89, 0];
/// Frames that wait for a client that reads slowly.
const WAITING: usize = 4;
/// Between two pings.
pub(super) const PING: Duration = Duration::from_secs(15);
/// A client of which nothing came for that long, pongs included, is gone. One that does not read what it is sent
/// cannot answer pings: while a frame waits for it the time does not run.
pub(super) const SILENCE: Duration = Duration::from_secs(45);
/// A client that takes nothing for that long is not only stopped. One whose network is gone is noticed earlier.
const STOPPED: Duration = Duration::from_secs(600);

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(socket))
}

/// Open a WebSocket for commands whose output is streamed, for terminals, and to watch files.
///
/// Each frame holds one JSON object with a `type`. `exec_start`, `exec_connect`, `exec_stdin`, `exec_stdin_close`,
/// `exec_kill`, `pty_start`, `pty_connect`, `pty_input`, `pty_resize`, `pty_kill` and `file_watch` go in; `exec_started`, `exec_stdout`,
/// `exec_stderr`, `exec_gap`, `exec_exit`, `pty_started`, `pty_output`, `pty_exited`, `file_watch_started`, `file_event`
/// and `error` come out. Processes and
/// terminals outlive the connection.
#[utoipa::path(get, path = "/{id}/ws", tag = "commands", operation_id = "machine_ws",
    params(("id" = String, Path)),
    responses(
        (status = 101, description = "WebSocket"),
        (status = 400, body = ErrorBody, description = "`invalid_request`: not a WebSocket upgrade"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
    ))]
async fn socket(
    State(app): State<AppState>,
    Path(id): Path<String>,
    upgrade: Upgrade,
) -> Result<Response> {
    machine::guest(&app, &id).await?;
    Ok(upgrade.accept(move |frames, outgoing| {
        let place = Place::of(&app);
        serve(place, frames, outgoing, move |out| {
            Socket::new(app, id, out)
        })
    }))
}

/// The key among the protocols that a WebSocket's client offers: a browser cannot set other headers.
pub(super) fn offered_key(headers: &HeaderMap) -> Option<&str> {
    let upgrade = headers.get(header::UPGRADE)?.as_bytes();
    if !upgrade.eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix(KEY_PROTOCOL))
}

/// What the frames of a client are for.
pub(super) trait Requests: Send {
    /// Takes a frame. Waits while what it is for has enough to do.
    fn take(&mut self, text: &str) -> impl Future<Output = ()> + Send;
}

impl Requests for Socket {
    async fn take(&mut self, text: &str) {
        Self::take(self, text).await;
    }
}

/// What a connection has of the server.
pub(super) struct Place {
    stopping: CancellationToken,
    _counted: Held,
}

impl Place {
    pub(super) fn of(app: &AppState) -> Self {
        Self {
            stopping: app.stopping.clone(),
            _counted: Held::new(&app.counts.sockets),
        }
    }
}

/// Carries frames both ways until one side has enough. `requests` gets the way out.
pub(super) async fn serve<R: Requests>(
    place: Place,
    mut frames: WebSocketStream<Incoming>,
    mut outgoing: Outgoing,
    requests: impl FnOnce(mpsc::Sender<TextFrame>) -> R,
) {
    let (out, waiting) = mpsc::channel(WAITING);
    let mut requests = requests(out);
    let (alive, heard) = tokio::sync::watch::channel(Instant::now());
    let read = async {
        while let Some(Ok(frame)) = frames.next().await {
            let _ = alive.send(Instant::now());
            match frame {
                Message::Text(text) => requests.take(&text).await,
                Message::Binary(bytes) => requests.take(&String::from_utf8_lossy(&bytes)).await,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Close(_) => break,
            }
        }
    };
    let over = tokio::select! {
        () = read => None,
        () = write(&mut outgoing, waiting, heard) => None,
        () = place.stopping.cancelled() => Some(CloseFrame {
            code: CloseCode::Away,
            reason: "the server stops".into(),
        }),
    };
    let close = async {
        if over.is_some() {
            let _ = frames.send(Message::Close(over)).await;
        }
        let _ = SinkExt::close(&mut frames).await;
        let last = outgoing.replies();
        let _ = outgoing.send(last).await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
}

/// Sends what waits, and pings between.
async fn write(
    outgoing: &mut Outgoing,
    mut waiting: mpsc::Receiver<TextFrame>,
    heard: tokio::sync::watch::Receiver<Instant>,
) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut free_since = Instant::now();
    loop {
        let (frame, is_message) = tokio::select! {
            frame = waiting.recv() => match frame {
                Some(frame) => (frame.into(), true),
                None => return,
            },
            _ = ping.tick() => {
                let last = (*heard.borrow()).max(free_since);
                if last.elapsed() > SILENCE {
                    return;
                }
                (Bytes::from_static(PING_FRAME), false)
            }
            () = outgoing.told() => (outgoing.replies(), false),
        };
        let begun = Instant::now();
        let sent = tokio::time::timeout(STOPPED, outgoing.send(frame)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        // It had to be waited for: the client has begun to read again only now.
        if is_message && begun.elapsed() > PING {
            free_since = Instant::now();
        }
    }
}

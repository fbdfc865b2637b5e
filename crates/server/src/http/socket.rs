//! `GET …/ws`: a machine's WebSocket. The messages are in `nullspace_api::socket`. How a WebSocket is opened and held is
//! the same for all of this server's.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use http::{HeaderMap, header};
use nullspace_api::ErrorBody;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::Path;
use crate::{
    app::{AppState, count::Held, machine, socket::Socket},
    error::{Error, Result},
};

/// The largest frame of a client, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// What is read at once from a client, in bytes: most of its frames are small, and there may be thousands of clients.
const READ_BUFFER: usize = 8 << 10;
/// What this server speaks over a WebSocket, by the name that clients may offer.
const PROTOCOL: &str = "nullspace.v1";
/// The beginning of a protocol whose rest is an API key.
const KEY_PROTOCOL: &str = "nullspace.bearer.";
/// Frames that wait for a client that reads slowly.
const WAITING: usize = 4;
/// Between two pings.
const PING: Duration = Duration::from_secs(15);
/// A client of which nothing came for that long, pongs included, is gone. One that does not read what it is sent
/// cannot answer pings: while a frame waits for it the time does not run.
const SILENCE: Duration = Duration::from_secs(45);

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
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let upgrade = checked(upgrade)?;
    machine::guest(&app, &id).await?;
    Ok(upgrade.on_upgrade(move |socket| {
        let place = Place::of(&app);
        serve(place, socket, move |out| Socket::new(app, id, out))
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

/// A request to open a WebSocket, with our limits. Of the protocols that the client offers only our own is ever
/// answered: another may hold its key.
pub(super) fn checked(
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade> {
    let upgrade = upgrade.map_err(|rejection| {
        Error::invalid(format!(
            "a WebSocket is opened here: {}",
            rejection.body_text()
        ))
    })?;
    Ok(upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .read_buffer_size(READ_BUFFER))
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
    socket: WebSocket,
    requests: impl FnOnce(mpsc::Sender<String>) -> R,
) {
    let (out, waiting) = mpsc::channel(WAITING);
    let mut requests = requests(out);
    let (mut sink, mut frames) = socket.split();
    let (alive, heard) = tokio::sync::watch::channel(Instant::now());
    let read = async {
        while let Some(Ok(frame)) = frames.next().await {
            let _ = alive.send(Instant::now());
            match frame {
                Message::Text(text) => requests.take(&text).await,
                Message::Binary(bytes) => requests.take(&String::from_utf8_lossy(&bytes)).await,
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => break,
            }
        }
    };
    let over = tokio::select! {
        () = read => None,
        () = write(&mut sink, waiting, heard) => None,
        () = place.stopping.cancelled() => Some(CloseFrame {
            code: close_code::AWAY,
            reason: "the server stops".into(),
        }),
    };
    let close = async {
        if over.is_some() {
            let _ = sink.send(Message::Close(over)).await;
        }
        let _ = sink.close().await;
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), close).await;
}

/// Sends what waits, and pings between.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut waiting: mpsc::Receiver<String>,
    heard: tokio::sync::watch::Receiver<Instant>,
) {
    let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut free_since = Instant::now();
    loop {
        let frame = tokio::select! {
            text = waiting.recv() => match text {
                Some(text) => Message::Text(text.into()),
                None => return,
            },
            _ = ping.tick() => {
                let last = (*heard.borrow()).max(free_since);
                if last.elapsed() > SILENCE {
                    return;
                }
                Message::Ping(Default::default())
            }
        };
        let is_ping = matches!(frame, Message::Ping(_));
        let begun = Instant::now();
        if sink.send(frame).await.is_err() {
            return;
        }
        // It had to be waited for: the client has begun to read again only now.
        if !is_ping && begun.elapsed() > PING {
            free_since = Instant::now();
        }
    }
}

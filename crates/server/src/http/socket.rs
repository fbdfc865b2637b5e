//! `GET …/ws`: a machine's WebSocket. The messages are in `nullspace_api::socket`.

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
use nullspace_api::ErrorBody;
use tokio::{sync::mpsc, time::Instant};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::Path;
use crate::{
    app::{AppState, machine, socket::Socket},
    error::{Error, Result},
};

/// The largest frame of a client, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
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
    let upgrade = upgrade.map_err(|rejection| {
        Error::invalid(format!(
            "a WebSocket is opened here: {}",
            rejection.body_text()
        ))
    })?;
    machine::guest(&app, &id).await?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| serve(app, id, socket)))
}

/// Carries frames both ways until one side has enough.
async fn serve(app: AppState, machine: String, socket: WebSocket) {
    let stopping = app.stopping.clone();
    let (out, waiting) = mpsc::channel(WAITING);
    let mut requests = Socket::new(app, machine, out);
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
        () = stopping.cancelled() => Some(CloseFrame {
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

//! WebSockets: a machine's, with the messages of [`nullspace_api::socket`], and what all of them have in common.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{SinkExt as _, StreamExt as _};
use nullspace_api::socket::{ClientMessage, ServerMessage};
use serde::{Serialize, de::DeserializeOwned};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::error::Error;
use crate::transport::{Call, Client, Retry};
use crate::volumes::owner_path;

/// A server of which nothing came for that long is gone, or the network between: it asks every 15 seconds whether this
/// side is there.
const SILENCE: Duration = Duration::from_secs(60);

/// A connection to a machine. Processes and terminals outlive it.
#[derive(Debug)]
pub struct Socket(Frames);

/// An open WebSocket of one JSON message in each frame.
#[derive(Debug)]
pub(crate) struct Frames {
    stream: WebSocketStream<reqwest::Upgraded>,
    path: String,
}

impl Client {
    /// Opens a machine's WebSocket, or a volume's, which only watches files: the id says which.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn socket(&self, owner: &str) -> Result<Socket, Error> {
        let path = format!("{}/ws", owner_path(owner));
        self.frames(path).await.map(Socket)
    }

    /// Opens the WebSocket at a path.
    pub(crate) async fn frames(&self, path: String) -> Result<Frames, Error> {
        let call = Call::get(path.clone())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header(
                "sec-websocket-key",
                BASE64.encode(rand::random::<[u8; 16]>()),
            )
            .retry(Retry::Never);
        let upgraded = self.upgrading()?.send(&call).await?.upgraded().await?;
        let stream = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        Ok(Frames { stream, path })
    }
}

impl Socket {
    /// Sends a message.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection is gone.
    pub async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        self.0.send(message).await
    }

    /// The next message, whatever request it is of; `None` when the server has closed the connection. Messages of kinds
    /// that this client does not know are left out.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks.
    pub async fn next(&mut self) -> Result<Option<ServerMessage<'static>>, Error> {
        self.0.next().await
    }
}

impl Frames {
    pub(crate) async fn send(&mut self, message: &impl Serialize) -> Result<(), Error> {
        let text =
            serde_json::to_string(message).map_err(|error| Error::Local(error.to_string()))?;
        let sent = self.stream.send(Message::text(text)).await;
        sent.map_err(|error| self.lost(&error))
    }

    /// The next message that is a `T`.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            let frame = tokio::time::timeout(SILENCE, self.stream.next())
                .await
                .map_err(|_| self.lost(&"nothing is heard from the server"))?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let text = match frame.map_err(|error| self.lost(&error))? {
                Message::Text(text) => text,
                Message::Close(_) => return Ok(None),
                _ => continue,
            };
            if let Ok(message) = serde_json::from_str(&text) {
                return Ok(Some(message));
            }
        }
    }

    fn lost(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Transport {
            method: http::Method::GET,
            path: self.path.clone(),
            reason: error.to_string(),
            unsent: false,
        }
    }
}

//! The connection below a machine's WebSocket. What comes is read by the library; what goes is whole frames already, and is
//! written from where it lies.
//!
//! ```text
//!  connection ──▶ Incoming ──▶ library ──▶ messages
//!      ▲                          │ pongs, the other half of the end
//!      └──── Outgoing ◀── replies ┘
//! ```

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use bytes::{Buf, Bytes};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use crate::{
    error::{Error, Result},
    lost::Watched,
};

/// The largest message of a client, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// What this server speaks over a WebSocket, by the name that clients may offer.
const PROTOCOL: &str = "nullspace.v1";
/// Read at once. Of thousands of connections each has so much.
const READ: usize = 4 << 10;
/// Replies that wait. A client that asks more often than it reads is told less.
const MAX_REPLIES: usize = 4 << 10;

/// A request that asks for a WebSocket.
pub(in crate::http) struct Upgrade {
    connection: OnUpgrade,
    key: HeaderValue,
    /// Whether our protocol is among those that the client offers. No other is ever answered: it may hold a key.
    is_ours: bool,
}

impl<S: Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let refuse = |what: &str| Error::invalid(format!("a WebSocket is opened here: {what}"));
        for (name, word) in [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
        ] {
            if !names(&parts.headers, &name, word) {
                return Err(refuse(&format!("the header {name}: {word} is missing")));
            }
        }
        let key = parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned();
        let key = key.ok_or_else(|| refuse("the header sec-websocket-key is missing"))?;
        let connection = parts.extensions.remove::<OnUpgrade>();
        let connection = connection.ok_or_else(|| refuse("the connection cannot become one"))?;
        Ok(Self {
            connection,
            key,
            is_ours: names(&parts.headers, &header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL),
        })
    }
}

/// Whether a header's list has a word.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter();
    let mut words = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|one| one.trim().eq_ignore_ascii_case(word))
}

impl Upgrade {
    /// The answer, and what is done with the connection once it is sent.
    pub(in crate::http) fn accept<F>(
        self,
        serve: impl FnOnce(WebSocketStream<Incoming>, Outgoing) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let accepted = derive_accept_key(self.key.as_bytes());
        let connection = self.connection;
        tokio::spawn(async move {
            let Ok(upgraded) = connection.await else {
                return;
            };
            let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else {
                return tracing::error!("a WebSocket on what is no TCP connection");
            };
            let stream = parts.io.into_inner();
            let watched = Watched::new(&stream);
            let (read, write) = stream.into_split();
            let replies = Arc::<Replies>::default();
            let incoming = Incoming {
                stream: read,
                replies: replies.clone(),
            };
            let config = WebSocketConfig::default()
                .read_buffer_size(READ)
                .write_buffer_size(0)
                .max_message_size(Some(MAX_MESSAGE))
                .max_frame_size(Some(MAX_MESSAGE));
            let begun = parts.read_buf.to_vec();
            let messages =
                WebSocketStream::from_partially_read(incoming, begun, Role::Server, Some(config));
            let outgoing = Outgoing {
                stream: write,
                replies,
                now: Bytes::new(),
            };
            let messages = messages.await;
            // Also while a frame waits to be taken, when no pong can be missed.
            tokio::select! {
                () = serve(messages, outgoing) => {}
                () = watched.lost() => tracing::debug!("a WebSocket client's network is gone"),
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if self.is_ours {
            let protocol = HeaderValue::from_static(PROTOCOL);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        if let Ok(accepted) = HeaderValue::from_str(&accepted) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
        }
        response
    }
}

/// What the library itself has to say.
#[derive(Default)]
struct Replies {
    bytes: Mutex<Vec<u8>>,
    told: Notify,
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the library takes for the connection.
pub(in crate::http) struct Incoming {
    stream: OwnedReadHalf,
    replies: Arc<Replies>,
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Incoming {
    /// Whole frames: all that is there is taken, each time.
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut replies = self.replies.lock();
        if replies.len() + bytes.len() <= MAX_REPLIES {
            replies.extend_from_slice(bytes);
        }
        drop(replies);
        self.replies.told.notify_one();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The way to the client. Every step may be left off and gone on with: a frame is never cut by another.
pub(in crate::http) struct Outgoing {
    stream: OwnedWriteHalf,
    replies: Arc<Replies>,
    /// What is left of the frame that is being sent.
    now: Bytes,
}

impl Outgoing {
    /// Sends a frame.
    pub(in crate::http) async fn send(&mut self, frame: Bytes) -> io::Result<()> {
        self.finish().await?;
        self.now = frame;
        self.finish().await
    }

    async fn finish(&mut self) -> io::Result<()> {
        while !self.now.is_empty() {
            let sent = self.stream.write(&self.now).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.now.advance(sent);
        }
        // Its memory is for the next one.
        self.now = Bytes::new();
        Ok(())
    }

    /// Waits until the library has something to say.
    pub(in crate::http) async fn told(&self) {
        self.replies.told.notified().await;
    }

    /// What the library has to say, for [`Self::send`].
    pub(in crate::http) fn replies(&self) -> Bytes {
        std::mem::take(&mut *self.replies.lock()).into()
    }
}

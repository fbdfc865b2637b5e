//! The HTTP/2 connection below a [`super::GuestClient`].
//!
//! It uses the `h2` crate itself: a request is handed to the connection and its answer read from it by the
//! caller's own task. A client library above it would put a task and two hand-overs between them, and
//! those are a good part of what a short command costs.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Method, Request, Response};

use super::GuestError;
use crate::{BoxedIo, CONNECTION_WINDOW, MAX_FRAME, STREAM_WINDOW};

/// A handle on the connection. It is closed when the last handle and the last open stream are gone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    closed: Arc<AtomicBool>,
}

impl Connection {
    pub(super) async fn open(io: BoxedIo) -> Result<Self, GuestError> {
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|e| GuestError::lost("opening the connection", e))?;
        let closed = Arc::new(AtomicBool::new(false));
        let ended = closed.clone();
        // Its error reaches every open request.
        tokio::spawn(async move {
            let _ = connection.await;
            ended.store(true, Ordering::Relaxed);
        });
        Ok(Self { sender, closed })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Sends a request whose body, if any, is at hand.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        step: &'static str,
    ) -> Result<Response<RecvStream>, GuestError> {
        let (response, mut stream) = self.request(method, path, body.is_empty(), step).await?;
        if !body.is_empty() {
            // A stream that takes nothing any more has been answered or is lost: the answer says which.
            let _ = stream.send_data(body, true);
        }
        response.await.map_err(|e| GuestError::lost(step, e))
    }

    /// Sends a request with a body of any length. An answer that comes before the body's end is taken and
    /// the rest of the body not sent.
    pub(super) async fn send_stream<S>(
        &self,
        method: Method,
        path: &str,
        body: S,
        step: &'static str,
    ) -> Result<Response<RecvStream>, GuestError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let (mut response, stream) = self.request(method, path, false, step).await?;
        let early = {
            let mut pump = pin!(pump(stream, body));
            tokio::select! {
                biased;
                early = &mut response => Some(early),
                pumped = &mut pump => {
                    pumped.map_err(|e| GuestError::lost(step, e))?;
                    None
                }
            }
        };
        match early {
            Some(early) => early,
            None => response.await,
        }
        .map_err(|e| GuestError::lost(step, e))
    }

    /// Begins a request whose body goes on after the answer has begun; [`pump`] sends it.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        ends: bool,
        step: &'static str,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), GuestError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://guest{path}"))
            .body(())
            .map_err(|e| GuestError::Protocol(e.to_string()))?;
        let mut sender =
            (self.sender.clone().ready().await).map_err(|e| GuestError::lost(step, e))?;
        sender
            .send_request(request, ends)
            .map_err(|e| GuestError::lost(step, e))
    }
}

/// Sends a body piece by piece, no faster than the guest takes it. A body that breaks off resets the
/// stream, so that the guest does not take what came for the whole, and is the only error: a guest that answers
/// before the body's end resets the stream as well, and only its answer tells that from a lost connection.
pub(super) async fn pump<S>(mut stream: SendStream<Bytes>, body: S) -> io::Result<()>
where
    S: Stream<Item = io::Result<Bytes>> + Send,
{
    let mut body = pin!(body);
    while let Some(piece) = body.next().await {
        let mut piece = piece.inspect_err(|_| stream.send_reset(Reason::CANCEL))?;
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            while stream.capacity() == 0 {
                let Some(Ok(_)) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
                    return Ok(());
                };
            }
            let ready = piece.split_to(stream.capacity().min(piece.len()));
            if stream.send_data(ready, false).is_err() {
                return Ok(());
            }
        }
    }
    let _ = stream.send_data(Bytes::new(), true);
    Ok(())
}

/// The next piece of an answer. What was read makes room for more.
pub(super) async fn next(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    let piece = body.data().await?;
    // Sent behind a whole answer to a request whose body was not wanted (RFC 9113, section 8.1).
    if matches!(&piece, Err(e) if e.is_reset() && e.is_remote() && e.reason() == Some(Reason::NO_ERROR))
    {
        return None;
    }
    Some(piece.and_then(|piece| {
        body.flow_control().release_capacity(piece.len())?;
        Ok(piece)
    }))
}

/// A whole answer of at most `limit` bytes.
pub(super) async fn collect(mut body: RecvStream, limit: usize) -> Result<Bytes, GuestError> {
    let lost = |reason: &dyn std::fmt::Display| GuestError::lost("reading an answer", reason);
    let mut whole = BytesMut::new();
    while let Some(piece) = next(&mut body).await {
        let piece = piece.map_err(|e| lost(&e))?;
        if whole.len() + piece.len() > limit {
            return Err(GuestError::Protocol(format!(
                "an answer of more than {limit} bytes"
            )));
        }
        if whole.is_empty() && body.is_end_stream() {
            return Ok(piece);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that refuses an upload answers and resets the stream, possibly while a piece is on its way.
    #[tokio::test]
    async fn an_answer_before_the_end_of_a_body_is_an_answer() {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let guest = tokio::spawn(async move {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            while let Some(request) = connection.accept().await {
                let (_, mut answer) = request.unwrap();
                let head = Response::builder().status(409).body(()).unwrap();
                let mut stream = answer.send_response(head, false).unwrap();
                stream.send_data(Bytes::from("taken"), true).unwrap();
                // Dropping the request here says that no more of its body is wanted.
            }
        });
        let connection = Connection::open(Box::new(ours)).await.unwrap();
        let (response, mut stream) = connection
            .request(Method::PUT, "/files/raw", false, "writing")
            .await
            .unwrap();
        let reset = poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
        assert_eq!(reset, Reason::NO_ERROR);
        let pieces = ["late", "later"].map(|piece| Ok(Bytes::from(piece)));
        pump(stream, futures_util::stream::iter(pieces))
            .await
            .unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 409);
        assert_eq!(collect(response.into_body(), 100).await.unwrap(), "taken");
        drop(connection);
        guest.await.unwrap();
    }
}

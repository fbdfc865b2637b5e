//! Watching files.

use bytes::{Buf, BytesMut};
use h2::RecvStream;

use super::{GuestClient, GuestError, connection};
use crate::watch::{WatchEvent, WatchRequest};

/// The longest line of a watch: a path in JSON.
const MAX_LINE: usize = 64 << 10;

/// Events of a watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct WatchStream {
    body: RecvStream,
    buffer: BytesMut,
}

impl GuestClient {
    /// Watches a path. The first event is [`crate::WatchKind::Started`].
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Invalid` (over 65,536 directories), `Exhausted` (over 64 watches, or the host has no more).
    pub async fn watch(&self, request: &WatchRequest) -> Result<WatchStream, GuestError> {
        let response = self.post("/files/watch", request, "watching files").await?;
        Ok(WatchStream {
            body: response.into_body(),
            buffer: BytesMut::new(),
        })
    }
}

impl WatchStream {
    /// The next event; `None` after the last.
    ///
    /// # Errors
    /// [`GuestError::Lost`], [`GuestError::Protocol`].
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, GuestError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| GuestError::Protocol(format!("unexpected event: {e}")));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(GuestError::Protocol("an event is too long".into()));
            }
            match connection::next(&mut self.body).await {
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(GuestError::lost("watching files", "cut inside an event")),
                Some(Err(error)) => return Err(GuestError::lost("watching files", error)),
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
            }
        }
    }
}

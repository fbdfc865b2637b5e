//! Byte streams both ways: ports of the machine, and its files over SFTP.

use bytes::{Buf, BytesMut};
use h2::RecvStream;
use http::Method;
use tokio::io::AsyncWriteExt;

use super::{GuestClient, GuestError, accepted, connection, query_string};
use crate::{BoxedIo, types::Connected};

/// The most bytes of a stream that wait between the guest's connection and whoever uses it.
const BUFFER: usize = 64 << 10;
/// The longest line of a listener.
const MAX_LINE: usize = 1 << 10;

/// A port that the machine listens on for the host. It closes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    body: RecvStream,
    buffer: BytesMut,
    port: u16,
}

impl GuestClient {
    /// A TCP connection to a port inside the machine, as its own loopback sees it.
    ///
    /// # Errors
    /// `NotFound` when nothing listens there.
    pub async fn tunnel(&self, port: u16) -> Result<BoxedIo, GuestError> {
        let path = format!("/tunnel?port={port}");
        self.both_ways(&path, "opening a port").await
    }

    /// The machine's files, in the SFTP protocol (version 3), with the rights of one of its users.
    ///
    /// # Errors
    /// `Invalid` (unknown user), `Exhausted` (too many of them).
    pub async fn sftp(&self, user: &str) -> Result<BoxedIo, GuestError> {
        let query = query_string(&serde_json::json!({ "user": user }));
        self.both_ways(&format!("/sftp?{query}"), "opening files")
            .await
    }

    /// Listens on a port of the machine's loopback; 0 takes a free one.
    ///
    /// # Errors
    /// `Exists` when somebody else listens there, `Exhausted` (too many of them).
    pub async fn listen(&self, port: u16) -> Result<Listener, GuestError> {
        let path = format!("/listen?port={port}");
        let step = "listening on a port";
        let response = self
            .send(Method::POST, &path, bytes::Bytes::new(), step)
            .await?;
        let mut listener = Listener {
            body: response.into_body(),
            buffer: BytesMut::new(),
            port: 0,
        };
        listener.port = match listener.next().await? {
            Some(first) => first.port,
            None => return Err(GuestError::Protocol("a listener without a port".into())),
        };
        Ok(listener)
    }

    /// Takes a connection that a [`Listener`] told of.
    ///
    /// # Errors
    /// `NotFound` when it was taken, or waited for too long.
    pub async fn take(&self, connection: u64) -> Result<BoxedIo, GuestError> {
        let path = format!("/accepted?connection={connection}");
        self.both_ways(&path, "taking a connection").await
    }

    /// A request whose body and answer are the two directions of a stream.
    async fn both_ways(&self, path: &str, step: &'static str) -> Result<BoxedIo, GuestError> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        let (upload, mut download) = tokio::io::split(theirs);
        let upload = tokio_util::io::ReaderStream::with_capacity(upload, BUFFER);
        let (response, stream) = (self.connection)
            .request(Method::POST, path, false, step)
            .await?;
        let upload = tokio::spawn(connection::pump(stream, upload));
        let response = match response.await {
            Ok(response) => accepted(path, response).await,
            Err(error) => Err(GuestError::lost(step, error)),
        };
        let mut body = response.inspect_err(|_| upload.abort())?.into_body();
        tokio::spawn(async move {
            while let Some(Ok(data)) = connection::next(&mut body).await {
                if download.write_all(&data).await.is_err() {
                    return;
                }
            }
            let _ = download.shutdown().await;
        });
        Ok(Box::new(ours))
    }
}

impl Listener {
    /// The port that it has.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection; `None` when there will be no more.
    ///
    /// # Errors
    /// [`GuestError::Lost`], [`GuestError::Protocol`].
    pub async fn next(&mut self) -> Result<Option<Connected>, GuestError> {
        let step = "listening on a port";
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| GuestError::Protocol(format!("unexpected connection: {e}")));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(GuestError::Protocol("a connection is told too long".into()));
            }
            match connection::next(&mut self.body).await {
                None => return Ok(None),
                Some(Err(error)) => return Err(GuestError::lost(step, error)),
                Some(Ok(data)) => self.buffer.extend_from_slice(&data),
            }
        }
    }
}

//! The host's end of the protocol.

mod connection;
mod search;
mod tunnel;
mod upload;
mod watch;

pub use tunnel::Listener;
pub use watch::WatchStream;

use std::{pin::Pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use h2::RecvStream;
use http::{Method, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use self::connection::Connection;
use crate::{
    BoxedIo, PROTOCOL_VERSION,
    alone::{Setup, Show},
    frame::{self, Frame, FrameError},
    types::{
        DefaultsRequest, ErrorBody, ErrorKind, ExecRequest, FileInfo, Hello, OutputQuery,
        PathRequest, PermissionsRequest, ProcessInfo, ReadQuery, RenameRequest, SignalRequest,
        Started, TerminalSize, UnpackQuery, Unpacked, WriteQuery,
    },
};

/// The most JSON a guest may answer with: a list of some 100,000 files.
const MAX_JSON: usize = 64 << 20;

/// Why a request to a guest failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GuestError {
    /// The guest refused; the machine is fine.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The connection broke or never stood: the machine may be gone.
    #[error("connection to the guest lost while {step}: {reason}")]
    Lost {
        /// What was being done.
        step: &'static str,
        /// What the transport said.
        reason: String,
    },
    /// The guest said something that the protocol does not allow.
    #[error("guest broke the protocol: {0}")]
    Protocol(String),
}

impl GuestError {
    /// The guest's own word for the refusal, if it was one.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(body) => Some(body.kind),
            _ => None,
        }
    }

    fn lost(step: &'static str, error: impl std::fmt::Display) -> Self {
        Self::Lost {
            step,
            reason: error.to_string(),
        }
    }
}

/// Raw bytes from a guest, in order.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, std::io::Error>> + Send>>;

/// A handle on one machine's guest. Clones share the connection.
#[derive(Clone, Debug)]
pub struct GuestClient {
    connection: Connection,
    hello: Arc<Hello>,
}

impl GuestClient {
    /// Shakes hands over a dialled stream. The connection lives until the last clone and the last open
    /// stream are dropped.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when the stream breaks, [`GuestError::Protocol`] for a guest that is too new.
    pub async fn connect(io: BoxedIo) -> Result<Self, GuestError> {
        let mut client = Self {
            connection: Connection::open(io).await?,
            hello: Arc::new(Hello {
                protocol: 0,
                version: String::new(),
                has_own_defaults: false,
            }),
        };
        let hello: Hello = client.get("/hello", "shaking hands").await?;
        if hello.protocol > PROTOCOL_VERSION {
            return Err(GuestError::Protocol(format!(
                "guest speaks version {}, this program knows up to {PROTOCOL_VERSION}",
                hello.protocol
            )));
        }
        client.hello = Arc::new(hello);
        Ok(client)
    }

    /// What the guest said of itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Whether the connection is known to be closed; requests on it fail.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Tells a machine that goes on from a checkpoint which one it is now.
    ///
    /// # Errors
    /// `Io` when the machine lacks something.
    pub async fn resumed(&self, setup: &Setup) -> Result<(), GuestError> {
        self.post("/resumed", setup, "telling the guest which machine it is")
            .await
            .map(drop)
    }

    /// Puts something of the host where it is wanted; again is fine.
    ///
    /// # Errors
    /// `Invalid` for a target that leads through a link or is no directory.
    pub async fn show(&self, what: &Show) -> Result<(), GuestError> {
        self.post("/show", what, "showing a directory of the host")
            .await
            .map(drop)
    }

    /// Takes it away from wherever it is by now; what is not there is fine.
    ///
    /// # Errors
    /// `Io` when the machine lacks something.
    pub async fn hide(&self, what: &Show) -> Result<(), GuestError> {
        self.post("/hide", what, "taking a directory of the host away")
            .await
            .map(drop)
    }

    /// Looks whether everything that programs have open in what the host shows is at its path still.
    ///
    /// # Errors
    /// `Exists` with what is not, which a kernel could not open again after a checkpoint; `NotFound` by a guest that is older
    /// than this.
    pub async fn check_open(&self) -> Result<(), GuestError> {
        self.post("/check-open", &(), "looking at what is open")
            .await
            .map(drop)
    }

    /// Has everything that the machine wrote to files handed to the host.
    ///
    /// # Errors
    /// `Io` when the machine lacks something.
    pub async fn sync(&self) -> Result<(), GuestError> {
        self.post("/sync", &(), "writing everything out")
            .await
            .map(drop)
    }

    /// Changes what commands have that start from now on, unless they say otherwise.
    ///
    /// # Errors
    /// [`GuestError::Refused`] when the working directory cannot be made, or by a guest that is older than this.
    pub async fn set_defaults(&self, request: &DefaultsRequest) -> Result<(), GuestError> {
        self.post("/defaults", request, "changing the defaults of commands")
            .await
            .map(drop)
    }

    /// Starts a process and streams its output until it ends. Dropping the stream kills the process
    /// tree. Back-pressure reaches the process: it waits when the stream is not read.
    ///
    /// # Errors
    /// [`GuestError::Refused`] with `Invalid` for a bad working directory, `NotFound`/`Permission` for a
    /// program that cannot be run, `Exhausted` when the machine is out of processes or memory.
    pub async fn exec(&self, request: &ExecRequest) -> Result<OutputStream, GuestError> {
        let response = self.post("/exec", request, "starting a command").await?;
        Ok(OutputStream::new(response.into_body()))
    }

    /// Starts a process that goes on by itself.
    ///
    /// # Errors
    /// As [`GuestClient::exec`].
    pub async fn spawn(&self, request: &ExecRequest) -> Result<u32, GuestError> {
        let started: Started =
            json(self.post("/spawn", request, "starting a process").await?).await?;
        Ok(started.pid)
    }

    /// Processes started through the guest, oldest first, recently ended ones too.
    ///
    /// # Errors
    /// [`GuestError::Lost`].
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, GuestError> {
        self.get("/processes", "listing processes").await
    }

    /// One process.
    ///
    /// # Errors
    /// `NotFound` for an id that was never started here or is forgotten.
    pub async fn process(&self, pid: u32) -> Result<ProcessInfo, GuestError> {
        self.get(&format!("/processes/{pid}"), "reading a process")
            .await
    }

    /// Output of a process from a byte offset on; with `follow` until it ends.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when bytes before the offset wanted were already acknowledged away.
    pub async fn output(&self, pid: u32, query: OutputQuery) -> Result<OutputStream, GuestError> {
        let path = format!("/processes/{pid}/output?{}", query_string(&query));
        let response = self
            .send(Method::GET, &path, Bytes::new(), "reading output")
            .await?;
        Ok(OutputStream::new(response.into_body()))
    }

    /// Says that output before `offset` is safe elsewhere ([`crate::Retain::UntilAcknowledged`]).
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn acknowledge(&self, pid: u32, offset: u64) -> Result<(), GuestError> {
        let path = format!("/processes/{pid}/acknowledge?from={offset}");
        self.send(Method::POST, &path, Bytes::new(), "acknowledging output")
            .await
            .map(drop)
    }

    /// Sends a signal to the process and everything it started. 9 ends the whole tree.
    ///
    /// # Errors
    /// `NotFound`; a process that ended already is fine.
    pub async fn signal(&self, pid: u32, signal: i32) -> Result<(), GuestError> {
        let path = format!("/processes/{pid}/signal");
        self.post(&path, &SignalRequest { signal }, "signalling a process")
            .await
            .map(drop)
    }

    /// Writes to a process's standard input; waits until it took the bytes.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it has no open standard input.
    pub async fn stdin(&self, pid: u32, data: Bytes, close: bool) -> Result<(), GuestError> {
        let path = format!("/processes/{pid}/stdin?close={close}");
        self.send(Method::POST, &path, data, "writing standard input")
            .await
            .map(drop)
    }

    /// Writes to a process's standard input whatever comes, when it comes, until the end of `data` or of the process. It
    /// is left open.
    ///
    /// # Errors
    /// As [`GuestClient::stdin`]; an error of `data` is [`GuestError::Lost`].
    pub async fn typing<S>(&self, pid: u32, data: S) -> Result<(), GuestError>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send,
    {
        let path = format!("/processes/{pid}/typing");
        let response = (self.connection)
            .send_stream(Method::POST, &path, data, "writing standard input")
            .await?;
        accepted(&path, response).await.map(drop)
    }

    /// Changes the size of a process's terminal, and tells the process.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when it has no terminal.
    pub async fn resize(&self, pid: u32, size: TerminalSize) -> Result<(), GuestError> {
        let path = format!("/processes/{pid}/resize");
        self.post(&path, &size, "resizing a terminal")
            .await
            .map(drop)
    }

    /// One file system object.
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Invalid` (unknown user).
    pub async fn stat(&self, request: &PathRequest) -> Result<FileInfo, GuestError> {
        json(
            self.post("/files/stat", request, "reading file details")
                .await?,
        )
        .await
    }

    /// What a directory holds, sorted by path; links are listed, not followed.
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Invalid` (not a directory, over 200,000 entries).
    pub async fn list(&self, request: &PathRequest) -> Result<Vec<FileInfo>, GuestError> {
        json(
            self.post("/files/list", request, "listing a directory")
                .await?,
        )
        .await
    }

    /// A file's details and its bytes.
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Invalid` (a directory or device).
    pub async fn read(&self, query: &ReadQuery) -> Result<(FileInfo, ByteStream), GuestError> {
        let path = format!("/files/raw?{}", query_string(query));
        let response = self
            .send(Method::GET, &path, Bytes::new(), "reading a file")
            .await?;
        let info = response
            .headers()
            .get("x-file-info")
            .and_then(|value| serde_json::from_slice(value.as_bytes()).ok())
            .ok_or_else(|| GuestError::Protocol("file answer without its details".into()))?;
        Ok((info, byte_stream(response.into_body())))
    }

    /// A directory tree (or one file) as a POSIX tar: names relative to the path, directories, regular
    /// files and symbolic links only, plain uncompressed.
    ///
    /// # Errors
    /// `NotFound`, `Permission`.
    pub async fn tar(&self, query: &ReadQuery) -> Result<ByteStream, GuestError> {
        let path = format!("/files/tar?{}", query_string(query));
        let response = self
            .send(Method::GET, &path, Bytes::new(), "reading a directory")
            .await?;
        Ok(byte_stream(response.into_body()))
    }

    /// Replaces or makes a file from a stream; it appears whole or not at all.
    ///
    /// # Errors
    /// `Permission`, `Invalid` (a directory is there, unknown user), `NoSpace`; an error of `data` is
    /// [`GuestError::Lost`] and leaves the old file.
    pub async fn write<S>(&self, query: &WriteQuery, data: S) -> Result<FileInfo, GuestError>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        let path = format!("/files/raw?{}", query_string(query));
        let step = "writing a file";
        let response = (self.connection)
            .send_stream(Method::PUT, &path, data, step)
            .await?;
        json(accepted(&path, response).await?).await
    }

    /// Unpacks a tar over what is there.
    ///
    /// # Errors
    /// `Invalid` for an archive that is none or does not fit what is there, or an unknown owner; `NoSpace`; an error of
    /// `data` is [`GuestError::Lost`]. Some of it may be there then.
    pub async fn unpack<S>(&self, query: &UnpackQuery, data: S) -> Result<Unpacked, GuestError>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        let path = format!("/files/unpack?{}", query_string(query));
        let response = (self.connection)
            .send_stream(Method::PUT, &path, data, "unpacking an archive")
            .await?;
        json(accepted(&path, response).await?).await
    }

    /// Makes a directory and its parents; one that exists is fine.
    ///
    /// # Errors
    /// `Permission`, `Exists` (a file is there), `NoSpace`.
    pub async fn mkdir(&self, request: &PathRequest) -> Result<(), GuestError> {
        self.post("/files/mkdir", request, "making a directory")
            .await
            .map(drop)
    }

    /// Removes a file or a whole directory.
    ///
    /// # Errors
    /// `NotFound`, `Permission`.
    pub async fn remove(&self, request: &PathRequest) -> Result<(), GuestError> {
        self.post("/files/remove", request, "removing a file")
            .await
            .map(drop)
    }

    /// rename(2).
    ///
    /// # Errors
    /// `NotFound`, `Permission`, `Exists`, `Invalid`.
    pub async fn rename(&self, request: &RenameRequest) -> Result<FileInfo, GuestError> {
        json(
            self.post("/files/rename", request, "renaming a file")
                .await?,
        )
        .await
    }

    /// chmod(2).
    ///
    /// # Errors
    /// `NotFound`, `Permission`.
    pub async fn permissions(&self, request: &PermissionsRequest) -> Result<(), GuestError> {
        self.post("/files/permissions", request, "changing permissions")
            .await
            .map(drop)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        step: &'static str,
    ) -> Result<T, GuestError> {
        json(self.send(Method::GET, path, Bytes::new(), step).await?).await
    }

    async fn post<T: Serialize>(
        &self,
        path: &str,
        body: &T,
        step: &'static str,
    ) -> Result<Response<RecvStream>, GuestError> {
        let body = serde_json::to_vec(body).map_err(|e| GuestError::Protocol(e.to_string()))?;
        self.send(Method::POST, path, body.into(), step).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        step: &'static str,
    ) -> Result<Response<RecvStream>, GuestError> {
        let response = self.connection.send(method, path, body, step).await?;
        accepted(path, response).await
    }
}

/// The answer, unless it is a refusal.
async fn accepted(
    path: &str,
    response: Response<RecvStream>,
) -> Result<Response<RecvStream>, GuestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = connection::collect(response.into_body(), MAX_JSON).await?;
    Err(match serde_json::from_slice(&body) {
        Ok(error) => GuestError::Refused(error),
        Err(_) if status == StatusCode::NOT_FOUND => {
            GuestError::Protocol(format!("this guest does not know {path}"))
        }
        Err(_) => GuestError::Protocol(format!("status {status} without a reason")),
    })
}

/// Frames of a process's output. See [`GuestClient::exec`] and [`GuestClient::output`].
#[derive(Debug)]
pub struct OutputStream {
    body: RecvStream,
    /// What came last and is not taken yet.
    piece: Bytes,
    /// The beginning of a frame whose end has not come.
    cut: BytesMut,
}

impl OutputStream {
    fn new(body: RecvStream) -> Self {
        Self {
            body,
            piece: Bytes::new(),
            cut: BytesMut::new(),
        }
    }

    /// The next frame; `None` after the last.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when the machine or the connection went away, [`GuestError::Protocol`] for
    /// bytes that are no frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, GuestError> {
        let broken = |error: FrameError| GuestError::Protocol(error.to_string());
        loop {
            match frame::decode(&mut self.piece).map_err(broken)? {
                Some(frame) => return Ok(Some(frame)),
                None => self.cut.extend_from_slice(&std::mem::take(&mut self.piece)),
            }
            match connection::next(&mut self.body).await {
                None if self.cut.is_empty() => return Ok(None),
                None => return Err(GuestError::lost("reading output", "cut inside a frame")),
                Some(Err(error)) => return Err(GuestError::lost("reading output", error)),
                // Most frames come whole, and are taken out of the piece as they are.
                Some(Ok(data)) if self.cut.is_empty() => self.piece = data,
                Some(Ok(data)) => {
                    self.cut.extend_from_slice(&data);
                    if frame::is_whole(&self.cut).map_err(broken)? {
                        self.piece = self.cut.split().freeze();
                    }
                }
            }
        }
    }
}

async fn json<T: DeserializeOwned>(response: Response<RecvStream>) -> Result<T, GuestError> {
    let body = connection::collect(response.into_body(), MAX_JSON).await?;
    serde_json::from_slice(&body)
        .map_err(|e| GuestError::Protocol(format!("unexpected answer: {e}")))
}

fn byte_stream(body: RecvStream) -> ByteStream {
    Box::pin(stream::unfold(body, |mut body| async move {
        let piece = connection::next(&mut body).await?;
        Some((piece.map_err(std::io::Error::other), body))
    }))
}

/// Form-encodes a flat struct: the values are numbers, booleans, strings or absent.
fn query_string<T: Serialize>(query: &T) -> String {
    let mut out = String::new();
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(query) else {
        return out;
    };
    for (name, value) in fields {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(&name);
        out.push('=');
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/') {
                out.push(byte as char);
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// However the bytes of frames are cut on their way, the frames come.
    #[tokio::test]
    async fn frames_come_whole_out_of_any_pieces() {
        let frames: Vec<Frame> = (0..40u64)
            .map(|n| Frame::Stdout(n, vec![n as u8; (n * n) as usize].into()))
            .collect();
        let mut sent = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut sent));
        let sent = sent.freeze();
        for piece in [1, 5, 13, 14, 1000, 10_000, sent.len()] {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let mut rest = sent.clone();
            let guest = tokio::spawn(async move {
                let mut connection = h2::server::handshake(theirs).await.unwrap();
                let (_, mut answer) = connection.accept().await.unwrap().unwrap();
                let mut stream = answer.send_response(Response::new(()), false).unwrap();
                let send = async {
                    while !rest.is_empty() {
                        let piece = rest.split_to(piece.min(rest.len()));
                        stream.send_data(piece, rest.is_empty()).unwrap();
                        tokio::task::yield_now().await;
                    }
                    std::future::pending::<()>().await
                };
                tokio::select! {
                    () = send => {}
                    _ = connection.accept() => {}
                }
            });
            let connection = Connection::open(Box::new(ours)).await.unwrap();
            let response = connection
                .send(Method::GET, "/output", Bytes::new(), "reading")
                .await
                .unwrap();
            let mut output = OutputStream::new(response.into_body());
            for frame in &frames {
                assert_eq!(output.next().await.unwrap().as_ref(), Some(frame));
            }
            assert_eq!(output.next().await.unwrap(), None);
            drop((output, connection));
            guest.await.unwrap();
        }
    }
}

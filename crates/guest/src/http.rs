//! The guest's routes. Each is one line here and one function in the module of its noun.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use nullspace_protocol::{
    DefaultsRequest, ErrorBody, ErrorKind, ExecRequest, Hello, OutputQuery, PROTOCOL_VERSION,
    PathRequest, SignalRequest, Started, TerminalSize, frame::Frame,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Guest, alone,
    error::{Error, Result},
    files,
    output::{FIRST_FOLLOWER, Next},
    process::{self, Process},
    search, sftp, shown, staging, tunnel, unpack, watch,
};

/// The most JSON a request may carry: a command line and its environment.
const MAX_JSON: usize = 8 << 20;
/// Output is sent once that many bytes of it are there, or there is no more for now.
const PIECE: usize = 64 << 10;
/// The most standard input one request may carry.
const MAX_STDIN: usize = 64 << 20;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers one request.
pub(crate) async fn route(guest: &Guest, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
    let query = parts.uri.query().unwrap_or_default();
    answer(guest, &parts.method, &path, query, body)
        .await
        .unwrap_or_else(|Error(body)| {
            let status = match body.kind {
                ErrorKind::Invalid => StatusCode::BAD_REQUEST,
                ErrorKind::NotFound => StatusCode::NOT_FOUND,
                ErrorKind::Permission => StatusCode::FORBIDDEN,
                ErrorKind::Exists => StatusCode::CONFLICT,
                ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
                ErrorKind::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::Io => StatusCode::INTERNAL_SERVER_ERROR,
            };
            respond(status, &body)
        })
}

/// Does what may take a while beside everything else.
async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| failed(&io::Error::other(error)))?
}

fn failed(error: &io::Error) -> Error {
    Error::io("the machine", error)
}

async fn answer(
    guest: &Guest,
    method: &Method,
    path: &[&str],
    query: &str,
    body: Incoming,
) -> Result<Response<Body>> {
    let processes = &guest.inner.processes;
    match (method, path) {
        (&Method::GET, ["hello"]) => ok(&Hello {
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            has_own_defaults: guest.inner.has_own_defaults.load(Ordering::Relaxed),
        }),
        (&Method::POST, ["resumed"]) => {
            let setup: nullspace_protocol::alone::Setup = json(body).await?;
            let guest = guest.clone();
            blocking(move || alone::resumed(&guest, setup).map_err(|e| failed(&e))).await?;
            ok(&())
        }
        (&Method::POST, ["show"]) => {
            let what: nullspace_protocol::alone::Show = json(body).await?;
            blocking(move || shown::show(&what)).await?;
            ok(&())
        }
        (&Method::POST, ["hide"]) => {
            let what: nullspace_protocol::alone::Show = json(body).await?;
            blocking(move || shown::hide(&what)).await?;
            ok(&())
        }
        (&Method::POST, ["check-open"]) => {
            blocking(crate::open::check).await?;
            ok(&())
        }
        (&Method::POST, ["sync"]) => {
            let sync = || {
                rustix::fs::sync();
                Ok(())
            };
            blocking(sync).await?;
            ok(&())
        }
        (&Method::POST, ["defaults"]) => {
            change_defaults(guest, json(body).await?).await?;
            ok(&())
        }
        (&Method::POST, ["exec"]) => {
            let request: ExecRequest = json(body).await?;
            let collect = request.collect;
            let mut frames = Box::pin(attached(process::start(guest, request, true)?, collect));
            // The head of the answer waits as well: one piece is one wake-up of the other end.
            let first = if collect { frames.next().await } else { None };
            Ok(framed(stream::iter(first).chain(frames)))
        }
        (&Method::POST, ["spawn"]) => {
            let request: ExecRequest = json(body).await?;
            ok(&Started {
                pid: process::start(guest, request, false)?.pid,
            })
        }
        (&Method::GET, ["processes"]) => ok(&processes.list()),
        (&Method::GET, ["processes", pid]) => ok(&processes.get(number(pid)?)?.info()),
        (&Method::GET, ["processes", pid, "output"]) => {
            let query: OutputQuery = form(query)?;
            let process = processes.get(number(pid)?)?;
            if let (Next::Gone(base), _) = process.log.next(query.from, query.follow) {
                return Err(Error::invalid(format!(
                    "output before byte {base} was acknowledged and is gone"
                )));
            }
            Ok(framed(output(process, query.from, query.follow)))
        }
        (&Method::POST, ["processes", pid, "acknowledge"]) => {
            let query: OutputQuery = form(query)?;
            processes.get(number(pid)?)?.log.acknowledge(query.from);
            ok(&())
        }
        (&Method::POST, ["processes", pid, "signal"]) => {
            let request: SignalRequest = json(body).await?;
            processes.get(number(pid)?)?.signal(request.signal)?;
            ok(&())
        }
        (&Method::POST, ["processes", pid, "resize"]) => {
            let size: TerminalSize = json(body).await?;
            let process = processes.get(number(pid)?)?;
            let terminal = process.terminal.as_ref();
            terminal
                .ok_or_else(|| Error::invalid(format!("process {pid} has no terminal")))?
                .resize(size)?;
            ok(&())
        }
        (&Method::POST, ["processes", pid, "stdin"]) => {
            let close = form::<StdinQuery>(query)?.close;
            let process = processes.get(number(pid)?)?;
            let data = bounded(body, MAX_STDIN).await?;
            process.write_stdin(&data, close).await?;
            ok(&())
        }
        (&Method::POST, ["processes", pid, "typing"]) => {
            let process = processes.get(number(pid)?)?;
            typing(&process, body).await?;
            ok(&())
        }
        (&Method::POST, ["files", "stat"]) => ok(&files::stat(guest, json(body).await?).await?),
        (&Method::POST, ["files", "list"]) => ok(&files::list(guest, json(body).await?).await?),
        (&Method::POST, ["files", "mkdir"]) => ok(&files::mkdir(guest, json(body).await?).await?),
        (&Method::POST, ["files", "remove"]) => ok(&files::remove(guest, json(body).await?).await?),
        (&Method::POST, ["files", "rename"]) => ok(&files::rename(guest, json(body).await?).await?),
        (&Method::POST, ["files", "permissions"]) => {
            ok(&files::permissions(guest, json(body).await?).await?)
        }
        (&Method::GET, ["files", "raw"]) => {
            let (info, chunks) = files::read(guest, form(query)?).await?;
            let mut response = Response::new(chunked(chunks));
            let header = http::HeaderValue::from_bytes(&ascii_json(&info))
                .map_err(|_| Error::invalid("file details do not fit a header"))?;
            response.headers_mut().insert("x-file-info", header);
            Ok(response)
        }
        (&Method::PUT, ["files", "raw"]) => ok(&files::write(guest, form(query)?, body).await?),
        (&Method::PUT, ["files", "unpack"]) => {
            ok(&unpack::unpack(guest, form(query)?, body).await?)
        }
        (&Method::GET, ["files", "tar"]) => Ok(Response::new(chunked(
            files::tar(guest, form(query)?).await?,
        ))),
        (&Method::POST, ["files", "find"]) => ok(&search::find(guest, json(body).await?).await?),
        (&Method::POST, ["files", "search"]) => {
            ok(&search::search(guest, json(body).await?).await?)
        }
        (&Method::POST, ["files", "replace"]) => {
            ok(&search::replace(guest, json(body).await?).await?)
        }
        (&Method::POST, ["files", "watch"]) => Ok(Response::new(chunked(
            watch::start(guest, json(body).await?).await?,
        ))),
        (&Method::POST, ["uploads", "stage"]) => {
            ok(&staging::stage(guest, json(body).await?).await?)
        }
        (&Method::PUT, ["uploads", "part"]) => ok(&staging::part(guest, form(query)?, body).await?),
        (&Method::POST, ["uploads", "publish"]) => {
            ok(&staging::publish(guest, json(body).await?).await?)
        }
        (&Method::POST, ["uploads", "discard"]) => {
            ok(&staging::discard(guest, json(body).await?).await?)
        }
        (&Method::POST, ["tunnel"]) => {
            let port = form::<TunnelQuery>(query)?.port;
            Ok(Response::new(chunked(tunnel::open(port, body).await?)))
        }
        (&Method::POST, ["listen"]) => {
            let port = form::<TunnelQuery>(query)?.port;
            Ok(Response::new(chunked(
                guest.inner.ports.listen(port).await?,
            )))
        }
        (&Method::POST, ["accepted"]) => {
            let connection = form::<AcceptedQuery>(query)?.connection;
            Ok(Response::new(chunked(
                guest.inner.ports.take(connection, body)?,
            )))
        }
        (&Method::POST, ["sftp"]) => {
            let user = form::<SftpQuery>(query)?.user;
            Ok(Response::new(chunked(sftp::open(guest, &user, body)?)))
        }
        _ => Err(Error::not_found(format!(
            "no route {method} /{}",
            path.join("/")
        ))),
    }
}

/// Writes a body to a process's standard input piece by piece, as they come.
/// Gives commands that start from now on what they have unless they say otherwise.
async fn change_defaults(guest: &Guest, wanted: DefaultsRequest) -> Result<()> {
    if wanted == DefaultsRequest::default() {
        return Ok(());
    }
    let before = guest.defaults();
    let cwd = wanted.cwd.unwrap_or_else(|| before.cwd.clone());
    if cwd != before.cwd {
        let path = PathRequest {
            path: cwd.clone(),
            ..PathRequest::default()
        };
        files::mkdir(guest, path).await?;
    }
    let mut env = before.env.clone();
    env.extend(wanted.env);
    guest.set_defaults(env, cwd);
    guest.inner.has_own_defaults.store(true, Ordering::Relaxed);
    Ok(())
}

async fn typing(process: &Process, mut body: Incoming) -> Result<()> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Error::invalid(format!("request body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            process.write_stdin(&data, false).await?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct StdinQuery {
    #[serde(default)]
    close: bool,
}

#[derive(Deserialize)]
struct TunnelQuery {
    port: u16,
}

#[derive(Deserialize)]
struct AcceptedQuery {
    connection: u64,
}

#[derive(Deserialize)]
struct SftpQuery {
    user: String,
}

/// Encoded frames of a process's output.
type Piece = io::Result<BodyFrame<Bytes>>;

/// Frames of a process's output from `from` on.
fn output(process: Arc<Process>, from: u64, follow: bool) -> impl Stream<Item = Piece> {
    let reader = Reader {
        follower: follow.then(|| process.log.join(from)).flatten(),
        process,
        attached: false,
        done: false,
    };
    reader.frames(from, follow, BytesMut::new(), 1)
}

/// Frames of a process that belongs to one caller: what was sent is forgotten, and a caller that goes away
/// takes the process tree with it, unless the process was started to outlive it. With `collect` nothing comes before a whole piece is there or the process
/// ended.
fn attached(process: Arc<Process>, collect: bool) -> impl Stream<Item = Piece> {
    let mut first = BytesMut::new();
    Frame::Started(process.pid).encode(&mut first);
    let is_live = process.log.is_live();
    let reader = Reader {
        process,
        attached: !is_live,
        follower: is_live.then_some(FIRST_FOLLOWER),
        done: false,
    };
    reader.frames(0, true, first, if collect { PIECE } else { 1 })
}

/// One follower of a process's output.
struct Reader {
    process: Arc<Process>,
    attached: bool,
    /// Its number in a log that waits for followers.
    follower: Option<u64>,
    done: bool,
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.attached && !self.done {
            self.process.leave();
        }
        if let Some(follower) = self.follower {
            self.process.log.leave(follower);
        }
    }
}

impl Reader {
    fn has_all_before(&self, at: u64) {
        if self.attached {
            self.process.log.acknowledge(at);
        }
        if let Some(follower) = self.follower {
            self.process.log.moved(follower, at);
        }
    }

    /// Pieces of at least `least` bytes, but for the last, and not much more than [`PIECE`].
    fn frames(
        self,
        from: u64,
        follow: bool,
        first: BytesMut,
        least: usize,
    ) -> impl Stream<Item = Piece> {
        stream::unfold(
            (self, from, first),
            move |(mut reader, mut at, mut out)| async move {
                if reader.done {
                    return None;
                }
                loop {
                    // Asked before the look, so that nothing pushed in between is slept through.
                    let process = reader.process.clone();
                    let grown = process.log.grown();
                    tokio::pin!(grown);
                    grown.as_mut().enable();
                    // What was read in one piece goes out as it is.
                    let whole = (out.is_empty())
                        .then(|| process.log.next_framed(at, follow))
                        .flatten()
                        .filter(|(frame, _)| frame.len() >= least);
                    if let Some((frame, next)) = whole {
                        at = next;
                        reader.has_all_before(at);
                        return Some((Ok(BodyFrame::data(frame)), (reader, at, out)));
                    }
                    loop {
                        match process.log.next(at, follow) {
                            (Next::Frame(frame), next) => {
                                frame.encode(&mut out);
                                at = next;
                                if matches!(frame, Frame::Exit { .. }) {
                                    reader.done = true;
                                }
                            }
                            (Next::Gone(_), _) => reader.done = true,
                            (Next::Wait, now) => {
                                at = now;
                                reader.done = !follow;
                            }
                        }
                        if reader.done
                            || out.len() >= PIECE
                            || matches!(process.log.next(at, follow).0, Next::Wait)
                        {
                            break;
                        }
                    }
                    reader.has_all_before(at);
                    // HTTP/2 counts pieces without content over the life of a connection, and ends it after a hundred.
                    if reader.done && out.is_empty() {
                        return None;
                    }
                    if out.len() >= least || reader.done {
                        return Some((
                            Ok(BodyFrame::data(out.split().freeze())),
                            (reader, at, out),
                        ));
                    }
                    grown.await;
                }
            },
        )
    }
}

fn framed(frames: impl Stream<Item = Piece> + Send + 'static) -> Response<Body> {
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn chunked(chunks: files::Chunks) -> Body {
    StreamBody::new(ReceiverStream::new(chunks).map(|chunk| chunk.map(BodyFrame::data)))
        .boxed_unsync()
}

fn ok<T: Serialize>(value: &T) -> Result<Response<Body>> {
    Ok(respond(StatusCode::OK, value))
}

fn respond<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(
        Full::new(body.into())
            .map_err(|never: Infallible| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    response
}

/// JSON with everything outside ASCII escaped: a header carries nothing else.
fn ascii_json<T: Serialize>(value: &T) -> Vec<u8> {
    let text = serde_json::to_string(value).unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.into_bytes()
}

async fn bounded(body: Incoming, limit: usize) -> Result<Bytes> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(Error::invalid(format!("request body: {error}"))),
    }
}

async fn json<T: DeserializeOwned>(body: Incoming) -> Result<T> {
    serde_json::from_slice(&bounded(body, MAX_JSON).await?).map_err(|e| {
        Error(ErrorBody {
            kind: ErrorKind::Invalid,
            message: format!("request body: {e}"),
        })
    })
}

fn form<T: DeserializeOwned>(query: &str) -> Result<T> {
    serde_urlencoded::from_str(query).map_err(|e| Error::invalid(format!("query: {e}")))
}

fn number(text: &str) -> Result<u32> {
    text.parse()
        .map_err(|_| Error::invalid(format!("{text:?} is not a process id")))
}

//! The machine's side: connections that are kept and used again, and who still uses them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{Either, Empty};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use nullspace_protocol::BoxedIo;
use tokio::sync::Notify;

use crate::body::Sending;

/// Connections that are kept for one upstream.
const MAX_IDLE: usize = 64;

/// Makes connections to one port of one machine.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// A new connection.
    ///
    /// # Errors
    /// When nothing listens there, or the machine is gone.
    async fn dial(&self) -> io::Result<BoxedIo>;
}

/// What is sent to a machine: the client's own body, or none.
pub(crate) type RequestBody = Either<Sending, Empty<Bytes>>;

/// One backing of whatever a door leads to.
pub struct Upstream {
    dial: Box<dyn Dial>,
    idle: Mutex<Vec<Link>>,
    in_use: AtomicUsize,
    /// Told when nobody uses it any more.
    unused: Notify,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("in_use", &self.in_use)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream without a connection.
    pub fn new(dial: impl Dial) -> Arc<Self> {
        Arc::new(Self {
            dial: Box::new(dial),
            idle: Mutex::default(),
            in_use: AtomicUsize::new(0),
            unused: Notify::new(),
        })
    }

    /// Returns once no request and no tunnel uses it. Call it when nothing leads here any more.
    pub async fn drained(&self) {
        loop {
            let unused = self.unused.notified();
            if self.in_use.load(Ordering::Acquire) == 0 {
                return;
            }
            unused.await;
        }
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Visit {
        self.in_use.fetch_add(1, Ordering::AcqRel);
        Visit(self.clone())
    }

    /// A connection that was used before, still open as far as is known.
    pub(crate) fn kept(&self) -> Option<Link> {
        loop {
            // The one that was used last is the least likely to have been closed.
            let mut link = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()?;
            if link.is_usable() {
                return Some(link);
            }
        }
    }

    /// A new connection, without HTTP on it yet.
    pub(crate) async fn dial(&self) -> io::Result<TokioIo<BoxedIo>> {
        self.dial.dial().await.map(TokioIo::new)
    }

    pub(crate) async fn connect(&self) -> io::Result<Link> {
        let io = self.dial().await?;
        let (sender, connection) = Builder::new()
            .handshake(io)
            .await
            .map_err(io::Error::other)?;
        Ok(Link {
            sender,
            connection: Some(Box::pin(connection)),
        })
    }

    fn give_back(&self, mut link: Link) {
        if !link.is_usable() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(link);
        }
    }
}

/// Somebody uses an upstream.
pub(crate) struct Visit(Arc<Upstream>);

impl Visit {
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.0
    }

    /// Ends the visit and keeps its connection for others.
    pub(crate) fn leave(self, link: Link) {
        self.0.give_back(link);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.0.in_use.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.unused.notify_waiters();
        }
    }
}

/// A connection to a machine with both of its halves: whoever waits for an answer drives it, in the same task. That
/// saves two switches of task for every request.
pub(crate) struct Link {
    pub(crate) sender: SendRequest<RequestBody>,
    pub(crate) connection: Driven,
}

/// The half that reads and writes; `None` once it ended.
type Driven = Option<Pin<Box<Connection<TokioIo<BoxedIo>, RequestBody>>>>;

/// Lets a connection read and write.
pub(crate) fn drive(connection: &mut Driven, context: &mut Context<'_>) {
    if let Some(running) = connection
        && let Poll::Ready(result) = running.as_mut().poll(context)
    {
        *connection = None;
        if let Err(error) = result {
            tracing::debug!(%error, "a connection to a machine ended");
        }
    }
}

impl Link {
    /// Lets the connection read and write.
    pub(crate) fn drive(&mut self, context: &mut Context<'_>) {
        drive(&mut self.connection, context);
    }

    fn is_usable(&mut self) -> bool {
        // Notices that the other side has closed it.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }
}

//! Bodies on their way: the machine's to the client, and the client's to the machine.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    guard::Account,
    upstream::{Link, Visit},
};

/// The body of an answer: the machine's, or our own word.
#[derive(Debug)]
pub struct Body(Kind);

enum Kind {
    Relayed(Relay),
    Text(Full<Bytes>),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Relayed(_) => "Relayed",
            Self::Text(_) => "Text",
        })
    }
}

/// The machine's body, driven by whoever reads it.
struct Relay {
    body: Incoming,
    /// Until the body has ended; a connection that a task of its own drives is not in here.
    lease: Option<(Visit, Option<Link>)>,
    watched: Option<Watched>,
}

/// What a guard wants of a body.
struct Watched {
    account: Option<Arc<dyn Account>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Body {
    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self(Kind::Text(Full::from(text.into())))
    }

    pub(crate) fn relayed(
        body: Incoming,
        visit: Visit,
        link: Option<Link>,
        watched: Option<(Option<Arc<dyn Account>>, CancellationToken)>,
    ) -> Self {
        let watched = watched
            .filter(|_| !body.is_end_stream())
            .map(|(account, cut)| Watched {
                account,
                cut: Box::pin(cut.cancelled_owned()),
            });
        Self(Kind::Relayed(Relay {
            body,
            lease: Some((visit, link)),
            watched,
        }))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Relayed(relay) => relay.poll_frame(context),
            Kind::Text(text) => {
                let frame = ready!(Pin::new(text).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Relayed(relay) => relay.lease.is_none() || relay.body.is_end_stream(),
            Kind::Text(text) => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Relayed(relay) => relay.body.size_hint(),
            Kind::Text(text) => text.size_hint(),
        }
    }
}

impl Relay {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(watched) = &mut self.watched
            && watched.cut.as_mut().poll(context).is_ready()
        {
            // The client sees that this is not the end.
            self.lease = None;
            return Poll::Ready(Some(Err(io::Error::other("who asked may not any more"))));
        }
        let mut frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending()
            && let Some((_, Some(link))) = &mut self.lease
        {
            link.drive(context);
            frame = Pin::new(&mut self.body).poll_frame(context);
        }
        let frame = ready!(frame);
        match &frame {
            None => self.end(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref()
                    && let Some(account) = self.watched.as_ref().and_then(|w| w.account.as_ref())
                {
                    account.went_out(data.len() as u64);
                }
                if self.body.is_end_stream() {
                    self.end();
                }
            }
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn end(&mut self) {
        if let Some((visit, Some(link))) = self.lease.take() {
            visit.leave(link);
        }
    }
}

impl Drop for Relay {
    /// Answers without a body are not read at all.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }
}

/// How much of a request has moved, for whoever waits for its answer.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) account: Option<Arc<dyn Account>>,
    moved: AtomicU64,
}

impl Tally {
    pub(crate) fn new(account: Option<Arc<dyn Account>>) -> Self {
        Self {
            account,
            moved: AtomicU64::new(0),
        }
    }

    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// The client's body, counted if somebody wants to know.
pub(crate) struct Sending {
    pub(crate) body: Incoming,
    pub(crate) tally: Option<Arc<Tally>>,
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(tally) = &self.tally
            && let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.remaining() as u64;
            tally.moved.fetch_add(bytes, Ordering::Relaxed);
            if let Some(account) = &tally.account {
                account.came_in(bytes);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's end of a tunnel, counted.
pub(crate) struct Counted<T> {
    pub(crate) io: T,
    pub(crate) account: Option<Arc<dyn Account>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        if let Some(account) = &self.account {
            account.came_in((buffer.filled().len() - before) as u64);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, data))?;
        if let Some(account) = &self.account {
            account.went_out(written as u64);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

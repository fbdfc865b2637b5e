//! How much of what a client sends may wait here, for all channels of its connection together.
//!
//! The library opens a channel's window again as soon as it has handed over what came, whether that was used or not, and
//! waits in its only loop when it cannot hand it over: then nothing goes out either, and two that wait for each other do so
//! for ever. So what comes is always taken from it at once, and counted here; when too much of it waits, nothing more is
//! read from the network, and the client's own system tells it to wait. While output waits for the client more may come
//! in: the client's word that it has read the output is in there, behind what it sent before.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Bytes that may wait.
const SOFT: usize = 1 << 20;
/// The same while output waits for the client.
const HARD: usize = 32 << 20;
/// How long that may be so: two of these at most.
const STUCK: Duration = Duration::from_secs(30);

/// What waits on one connection.
#[derive(Debug)]
pub(super) struct Meter {
    waiting: AtomicUsize,
    /// Writers that wait for the client.
    stalled: AtomicUsize,
    reader: AtomicWaker,
    /// When something came last; none while nothing is read.
    heard: watch::Sender<Option<Instant>>,
    /// The connection is to end now.
    pub(super) ending: CancellationToken,
}

impl Meter {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            reader: AtomicWaker::new(),
            heard: watch::Sender::new(Some(Instant::now())),
            ending: CancellationToken::new(),
        })
    }

    /// So many bytes came.
    pub(super) fn add(self: &Arc<Self>, bytes: usize) -> Share {
        self.waiting.fetch_add(bytes, Ordering::AcqRel);
        Share {
            meter: self.clone(),
            bytes,
        }
    }

    /// Does what may have to wait for the client.
    pub(super) async fn writing<T>(&self, work: impl Future<Output = T>) -> T {
        struct Stalled<'a>(&'a Meter);
        impl Drop for Stalled<'_> {
            fn drop(&mut self) {
                self.0.stalled.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.stalled.fetch_add(1, Ordering::AcqRel);
        self.reader.wake();
        let _stalled = Stalled(self);
        work.await
    }

    /// Returns when the client has said nothing for this long although it was listened to.
    pub(super) async fn silence(&self, limit: Duration) {
        let mut heard = self.heard.subscribe();
        loop {
            let last = *heard.borrow_and_update();
            let over = async {
                match last {
                    Some(last) => tokio::time::sleep_until(last + limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                changed = heard.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Returns when so much waits that not even the word of a client that waits for us gets through.
    pub(super) async fn stuck(&self) {
        let mut was_full = false;
        loop {
            tokio::time::sleep(STUCK).await;
            let is_full = self.waiting.load(Ordering::Acquire) >= HARD;
            if is_full && was_full {
                return;
            }
            was_full = is_full;
        }
    }

    fn is_closed(&self) -> bool {
        let waiting = self.waiting.load(Ordering::Acquire);
        let limit = match self.stalled.load(Ordering::Acquire) {
            0 => SOFT,
            _ => HARD,
        };
        waiting >= limit
    }
}

/// Bytes that wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    meter: Arc<Meter>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.meter.waiting.fetch_sub(self.bytes, Ordering::AcqRel);
        self.meter.reader.wake();
    }
}

/// A client's connection, read only while little waits.
pub(super) struct Gate {
    stream: TcpStream,
    meter: Arc<Meter>,
    ended: Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
}

impl Gate {
    pub(super) fn new(stream: TcpStream, meter: Arc<Meter>) -> Self {
        Self {
            stream,
            ended: Box::pin(meter.ending.clone().cancelled_owned()),
            meter,
        }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Gate {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        self.meter.reader.register(context.waker());
        if self.meter.is_closed() {
            self.meter
                .heard
                .send_if_modified(|heard| heard.take().is_some());
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let is_silent = read.is_pending();
        self.meter.heard.send_if_modified(|heard| {
            // Looked at anew only when it has been closed or something came.
            let is_news = !is_silent || heard.is_none();
            if is_news {
                *heard = Some(Instant::now());
            }
            is_news
        });
        read
    }
}

impl AsyncWrite for Gate {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! A Unix stream that is woken only for what it waits for.
//!
//! The kernel tells a stream's owner that there is room to write each time the peer takes something out. An
//! ordinary asynchronous stream listens to that always, and so wakes up in the middle of every exchange: on
//! an idle processor that costs both sides more than the exchange. This one listens for room only after a
//! write found none.

use std::{
    io::{self, IoSlice},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::net::{self, AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// An asynchronous Unix stream. Must be made and used within one Tokio runtime.
#[derive(Debug)]
pub struct LocalStream {
    stream: AsyncFd<UnixStream>,
    /// Listens for room to write, while there is none.
    full: Option<AsyncFd<UnixStream>>,
}

impl LocalStream {
    /// Takes over a connected stream.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: watch(stream, Interest::READABLE)?,
            full: None,
        })
    }

    /// Connects to the socket at a path.
    ///
    /// # Errors
    /// connect(2)'s; `WouldBlock` when more connections wait there than the listener allows.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::new(socket.into())
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                ready!(full.poll_write_ready(cx))?.retain_ready();
                self.full = None;
            }
            match write(self.stream.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Room that came meanwhile is told at once: the first look is at the present.
                    let stream = self.stream.get_ref().try_clone()?;
                    self.full = Some(watch(stream, Interest::WRITABLE)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a standard stream owns its descriptor, always tells the same one, and is not taken out again.
    unsafe { Ok(AsyncFd::register_with_interest(stream, interest)?) }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            // SAFETY: nothing is made uninitialised: the slice is only handed to the kernel, which writes
            // to it and never reads.
            let room = unsafe { buffer.unfilled_mut() };
            let wanted = room.len();
            let received = ready.try_io(|stream| {
                // Not interrupted: it never waits.
                let (_, received) = net::recv(stream.as_fd(), &mut *room, RecvFlags::empty())?;
                Ok(received)
            });
            let Ok(received) = received else {
                continue;
            };
            let received = received?;
            if received > 0 && received < wanted {
                // It is empty now: the next look need not be at it.
                ready.clear_ready();
            }
            // SAFETY: the kernel has just written so many bytes at the start of the unfilled part.
            unsafe { buffer.assume_init(received) };
            buffer.advance(received);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_write_with(cx, |stream| io::Write::write(&mut &*stream, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |stream| {
            io::Write::write_vectored(&mut &*stream, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write)?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (LocalStream, LocalStream) {
        let (one, other) = UnixStream::pair().expect("a pair");
        let stream = |s| LocalStream::new(s).expect("a stream");
        (stream(one), stream(other))
    }

    #[tokio::test]
    async fn more_than_fits_goes_through_whole() {
        let (mut one, mut other) = pair();
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            one.write_all(&sent).await.expect("write");
            one.shutdown().await.expect("shutdown");
            // Still readable after the end of what it sends.
            let mut word = [0; 4];
            one.read_exact(&mut word).await.expect("read");
            word
        });
        let mut received = Vec::new();
        other.read_to_end(&mut received).await.expect("read");
        assert!(received == bytes, "{} bytes came", received.len());
        other.write_all(b"done").await.expect("write");
        assert_eq!(&writer.await.expect("the writer"), b"done");
    }

    #[tokio::test]
    async fn a_peer_that_takes_something_out_wakes_nobody() {
        let (mut one, mut other) = pair();
        one.write_all(b"a").await.expect("write");
        other.read_exact(&mut [0]).await.expect("read");
        let mut told = Box::pin(one.stream.ready(Interest::WRITABLE));
        let waker = std::task::Waker::noop();
        let polled = told.as_mut().poll(&mut Context::from_waker(waker));
        assert!(polled.is_pending());
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_and_an_end() {
        let (mut one, other) = pair();
        drop(other);
        assert_eq!(one.read(&mut [0]).await.expect("the end"), 0);
        let error = one.write(b"a").await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}

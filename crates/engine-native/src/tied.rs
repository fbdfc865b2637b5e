//! Connections over a machine's network that end when the machine does.
//!
//! Whoever holds one hears nothing otherwise: with the machine its end of the link is gone, and nobody is left to say
//! that a connection is over.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// See the module's docs.
#[derive(Debug)]
pub(crate) struct Tied {
    stream: TcpStream,
    // Each side waits for itself.
    read_end: Pin<Box<WaitForCancellationFutureOwned>>,
    write_end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Tied {
    /// Ties a connection to what is cancelled when the machine is gone.
    pub(crate) fn new(stream: TcpStream, machine: &CancellationToken) -> Self {
        Self {
            stream,
            read_end: Box::pin(machine.clone().cancelled_owned()),
            write_end: Box::pin(machine.clone().cancelled_owned()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the machine is gone")
}

fn tied<T>(
    end: &mut Pin<Box<WaitForCancellationFutureOwned>>,
    cx: &mut Context<'_>,
    done: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if done.is_pending() {
        ready!(end.as_mut().poll(cx));
        return Poll::Ready(Err(gone()));
    }
    done
}

impl AsyncRead for Tied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_read(cx, buffer);
        tied(&mut self.read_end, cx, done)
    }
}

impl AsyncWrite for Tied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, bytes);
        tied(&mut self.write_end, cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        tied(&mut self.write_end, cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn both_sides_end_with_the_machine_and_what_came_is_read_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        let (near, (mut far, _)) = (near.unwrap(), far.unwrap());
        let machine = CancellationToken::new();
        let (mut reader, mut writer) = tokio::io::split(Tied::new(near, &machine));
        far.write_all(b"word").await.unwrap();
        let mut word = [0; 4];
        reader.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"word");
        // Both wait: the one for what never comes, the other for somebody who never reads.
        let reading = tokio::spawn(async move { reader.read_u8().await });
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = writer.write_all(&[0; 1 << 16]).await {
                    return error;
                }
            }
        });
        machine.cancel();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(
            writing.await.unwrap().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}

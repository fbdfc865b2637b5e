//! Accepting HTTP/1.1 connections until told to stop.

use std::{net::IpAddr, time::Duration};

use bytes::Buf;
use http::{Request, Response};
use hyper::{body::Incoming, service::Service};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::eager::Eager;

/// How long a client may take to send a request's head, or may keep an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Pause after a connection could not be accepted: out of descriptors, most likely, and requests under way free some.
const RETRY: Duration = Duration::from_millis(100);

/// Serves every connection of a listener, with what `service` makes for its client's address, until `stopping` is
/// cancelled. Connections go into `connections`; they finish
/// the request that is under way and end then.
pub async fn accept<F, S, B>(
    listener: TcpListener,
    service: F,
    stopping: CancellationToken,
    connections: TaskTracker,
) where
    F: Fn(IpAddr) -> S,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    accept_as(listener, service, stopping, connections, |stream| stream).await;
}

/// The same with connections that `wrap` makes something else of.
pub(crate) async fn accept_as<F, S, B, W, I>(
    listener: TcpListener,
    service: F,
    stopping: CancellationToken,
    connections: TaskTracker,
    wrap: W,
) where
    F: Fn(IpAddr) -> S,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    W: Fn(TcpStream) -> I,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, client)) => {
                let service = service(client.ip());
                // Small answers must not wait for the acknowledgement of the ones before.
                let _ = stream.set_nodelay(true);
                let served = connection(wrap(stream), service, stopping.clone());
                connections.spawn(Eager::new(served));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn connection<I, S, B>(stream: I, service: S, stopping: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Send,
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

//! Ports: a TCP connection inside the machine, carried by one request and its answer.

use std::io;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nullspace_protocol::ErrorKind;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use crate::error::{Error, Result};

/// Connects to the port on the machine's loopback, over IPv4 and then IPv6; sends the request body there
/// and answers with what comes back.
pub(crate) async fn open(port: u16, body: Incoming) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
    let stream = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(stream) => stream,
        Err(first) => TcpStream::connect(("::1", port)).await.map_err(|_| {
            Error::new(
                ErrorKind::NotFound,
                format!("nothing listens on port {port}: {first}"),
            )
        })?,
    };
    Ok(carry(stream, body))
}

/// Sends a request's body into a connection and answers with what comes back.
pub(crate) fn carry(stream: TcpStream, mut body: Incoming) -> mpsc::Receiver<io::Result<Bytes>> {
    let _ = stream.set_nodelay(true);
    let (mut from_port, mut to_port) = stream.into_split();
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && to_port.write_all(&data).await.is_err()
            {
                return;
            }
        }
        let _ = to_port.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let chunk = match from_port.read(&mut buffer).await {
                Ok(0) => return,
                Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                Err(error) => Err(error),
            };
            let failed = chunk.is_err();
            if sender.send(chunk).await.is_err() || failed {
                return;
            }
        }
    });
    receiver
}

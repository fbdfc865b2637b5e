//! Ports that the machine listens on for the host: whoever connects to one is handed out.
//!
//! The answer to `listen` is a line for each connection; another request takes it and carries it. One that nobody takes is
//! closed after a while.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::Incoming;
use nullspace_protocol::{Connected, ErrorKind};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    error::{Error, Result},
    files::Chunks,
    tunnel,
};

/// Ports at once.
const MAX_LISTENERS: usize = 64;
/// Connections that wait to be taken.
const MAX_WAITING: usize = 64;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// The ports of one guest, and who waits at them.
#[derive(Clone, Default)]
pub(crate) struct Ports(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    listeners: usize,
    last: u64,
    waiting: BTreeMap<u64, TcpStream>,
}

/// A port, until it is dropped.
struct Place(Ports);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().listeners -= 1;
    }
}

impl Ports {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens until nobody asks for the answer any more.
    pub(crate) async fn listen(&self, port: u16) -> Result<Chunks> {
        let place = {
            let mut state = self.lock();
            if state.listeners >= MAX_LISTENERS {
                return Err(Error::new(
                    ErrorKind::Exhausted,
                    format!("{MAX_LISTENERS} ports are listened on already"),
                ));
            }
            state.listeners += 1;
            Place(self.clone())
        };
        let fail = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::new(
                ErrorKind::Exists,
                format!("something listens on port {port} already"),
            ),
            _ => Error::io(&format!("port {port}"), &error),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .map_err(fail)?;
        let port = listener.local_addr().map_err(fail)?.port();
        let (lines, answer) = mpsc::channel(4);
        let first = Connected {
            connection: 0,
            port,
            peer_port: 0,
        };
        tell(&lines, first).await;
        tokio::spawn(async move {
            tokio::select! {
                () = place.0.accept(&listener, port, &lines) => {}
                () = lines.closed() => {}
            }
            drop(place);
        });
        Ok(answer)
    }

    async fn accept(
        &self,
        listener: &TcpListener,
        port: u16,
        lines: &mpsc::Sender<io::Result<Bytes>>,
    ) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Out of descriptors, most likely: the machine did that; wait for it to pass.
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let Some(connection) = self.keep(stream) else {
                continue;
            };
            let told = Connected {
                connection,
                port,
                peer_port: peer.port(),
            };
            tell(lines, told).await;
            let ports = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                ports.lock().waiting.remove(&connection);
            });
        }
    }

    fn keep(&self, stream: TcpStream) -> Option<u64> {
        let mut state = self.lock();
        if state.waiting.len() >= MAX_WAITING {
            return None;
        }
        state.last += 1;
        let connection = state.last;
        state.waiting.insert(connection, stream);
        Some(connection)
    }

    /// Hands out a connection.
    pub(crate) fn take(&self, connection: u64, body: Incoming) -> Result<Chunks> {
        let stream = self.lock().waiting.remove(&connection);
        let stream = stream.ok_or_else(|| Error::not_found("the connection is not waiting"))?;
        Ok(tunnel::carry(stream, body))
    }
}

async fn tell(lines: &mpsc::Sender<io::Result<Bytes>>, connected: Connected) {
    let mut line = serde_json::to_vec(&connected).unwrap_or_default();
    line.push(b'\n');
    let _ = lines.send(Ok(line.into())).await;
}

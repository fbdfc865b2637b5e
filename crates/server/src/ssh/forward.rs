//! Ports: the machine's for the client (`ssh -L`), and the client's for the machine (`ssh -R`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nullspace_api::error::code;
use nullspace_protocol::Listener;
use russh::{
    Channel, ChannelOpenFailure,
    server::{ChannelOpenHandle, Msg},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{handler::Client, stream};
use crate::error::{Error, Kind, Result};

/// Ports that one connection listens on in its machine.
const MAX_LISTENERS: usize = 16;
/// Ports below this are root's.
const FIRST_FREE: u16 = 1024;
/// How long a machine or a client may take for a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Names of the machine itself, as clients write them.
const HERE: [&str; 6] = ["", "localhost", "127.0.0.1", "::1", "*", "0.0.0.0"];

/// Whether a connection to this host goes to the machine itself. Others would need names of the machine looked up for it.
pub(super) fn is_here(host: &str) -> bool {
    HERE.contains(&host.to_ascii_lowercase().as_str())
}

/// Connects a channel to a port of the machine.
pub(super) async fn open(
    client: Arc<Client>,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    port: u16,
    _place: OwnedSemaphorePermit,
) {
    let connecting = async {
        let guest = client.guest().await?;
        Ok::<_, Error>(guest.tunnel(port).await?)
    };
    match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(Ok(io)) => {
            reply.accept().await;
            stream::join(&client, channel, io).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(error = error.message, "a port could not be connected to");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}

/// The ports that a client listens on in its machine. They close with the connection.
#[derive(Default)]
pub(super) struct Listening(BTreeMap<(String, u16), DropGuard>);

impl Listening {
    /// Listens on a port, 0 for a free one: the port.
    ///
    /// # Errors
    /// Why not, for the log: the protocol has no words for it.
    pub(super) async fn start(
        &mut self,
        client: Arc<Client>,
        address: &str,
        port: u32,
        places: Arc<Semaphore>,
    ) -> Result<u16> {
        let port = u16::try_from(port).map_err(|_| Error::invalid("no such port"))?;
        let is_root = client.admission.user == "root";
        if !is_here(address) || (1..FIRST_FREE).contains(&port) && !is_root {
            return Err(Error::new(
                Kind::Forbidden,
                code::PERMISSION_DENIED,
                "this user may not listen there",
            ));
        }
        if self.0.len() >= MAX_LISTENERS {
            return Err(Error::new(
                Kind::Limit,
                code::CAPACITY_EXCEEDED,
                format!("{MAX_LISTENERS} ports are listened on already"),
            ));
        }
        let opening = async {
            let guest = client.guest().await?;
            Ok::<_, Error>(guest.listen(port).await?)
        };
        let listener = tokio::time::timeout(PATIENCE, opening).await;
        let listener = listener.map_err(|_| Error::internal("listening took too long"))??;
        let port = listener.port();
        let closing = CancellationToken::new();
        let accepting = accept(client, address.to_owned(), listener, places);
        tokio::spawn(closing.clone().run_until_cancelled_owned(accepting));
        let key = (address.to_owned(), port);
        self.0.insert(key, closing.drop_guard());
        Ok(port)
    }

    /// Stops listening; whether it did.
    pub(super) fn stop(&mut self, address: &str, port: u32) -> bool {
        let port = u16::try_from(port).unwrap_or_default();
        self.0.remove(&(address.to_owned(), port)).is_some()
    }
}

/// Hands over whoever connects.
async fn accept(
    client: Arc<Client>,
    address: String,
    mut listener: Listener,
    places: Arc<Semaphore>,
) {
    while let Ok(Some(connected)) = listener.next().await {
        // Who finds no place is left to wait in the machine, and is closed there after a while.
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let (client, address) = (client.clone(), address.clone());
        tokio::spawn(async move {
            let _place = place;
            let joining = async {
                let io = client.guest().await?.take(connected.connection).await?;
                let (port, peer) = (u32::from(connected.port), u32::from(connected.peer_port));
                let opened = client
                    .handle
                    .channel_open_forwarded_tcpip(address, port, "127.0.0.1", peer)
                    .await;
                let channel = opened.map_err(|error| Error::invalid(error.to_string()))?;
                Ok::<_, Error>((channel, io))
            };
            match tokio::time::timeout(PATIENCE, joining).await {
                Ok(Ok((channel, io))) => stream::join(&client, channel, io).await,
                Ok(Err(error)) => {
                    tracing::debug!(error = error.message, "a connection was not handed over");
                }
                Err(_) => {}
            }
        });
    }
}

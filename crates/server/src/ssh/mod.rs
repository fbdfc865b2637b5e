//! The SSH edge: people and their tools log in to machines here. Who may, `app::ssh` decides.
//!
//! ```text
//!  client ─TCP─▶ gate ─▶ russh ─▶ handler ─▶ a task for each channel ─▶ guest of the machine
//! ```
//! A machine needs nothing for it: no SSH server, no account, no open port. Sessions, files and ports go through the same
//! guest as everything else, over a connection of their own, so that what a client does not read holds up nobody else.

mod forward;
mod gate;
mod handler;
mod session;
mod stream;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use russh::{
    Disconnect, MethodKind, MethodSet, SshId,
    server::{Config, run_stream},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use self::{
    gate::{Gate, Meter},
    handler::Handler,
};
use crate::{
    app::{AppState, machine, ssh::Admission},
    lost::Watched,
};

/// Connections at once.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take until it is let in.
const LOGIN: Duration = Duration::from_secs(30);
/// A client that says nothing is asked whether it is there this often.
const ASK: Duration = Duration::from_secs(15);
/// One that has not answered for this long is gone. A client may be stopped for a while, and its system still answers.
const SILENCE: Duration = Duration::from_secs(600);
/// How long a client has to hear why a connection ends.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const RETRY: Duration = Duration::from_millis(100);

/// Serves every connection until the server stops.
pub(crate) async fn accept(app: AppState, listener: TcpListener) {
    let Some(config) = config(&app) else { return };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.stopping.cancelled() => break,
        };
        match accepted {
            Ok((stream, client)) => match places.clone().try_acquire_owned() {
                Ok(place) => {
                    connections.spawn(connection(
                        app.clone(),
                        config.clone(),
                        stream,
                        client,
                        place,
                    ));
                }
                Err(_) => {
                    tracing::warn!(%client, "an ssh client was refused: too many connections")
                }
            },
            Err(error) => {
                tracing::warn!(%error, "an ssh connection could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

fn config(app: &AppState) -> Option<Arc<Config>> {
    let ssh = app.ssh.as_ref()?;
    Some(Arc::new(Config {
        server_id: SshId::Standard("SSH-2.0-Nullspace".into()),
        methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
        // There is nothing to guess: a key is certified by us or it is not.
        auth_rejection_time: Duration::ZERO,
        keys: vec![ssh.host.clone()],
        window_size: 1 << 20,
        maximum_packet_size: 32 << 10,
        channel_buffer_size: 256,
        event_buffer_size: 32,
        // Clients offer what their agent holds before what they were told to.
        max_auth_attempts: 20,
        inactivity_timeout: None,
        keepalive_interval: Some(ASK),
        // Counted here, because a client that we do not listen to cannot answer.
        keepalive_max: 0,
        ..Config::default()
    }))
}

/// One connection, from the first byte to the last.
async fn connection(
    app: AppState,
    config: Arc<Config>,
    stream: TcpStream,
    client: SocketAddr,
    _place: OwnedSemaphorePermit,
) {
    let deadline = Instant::now() + LOGIN;
    // Keys that are typed must not wait for the acknowledgement of the ones before.
    let _ = stream.set_nodelay(true);
    let watched = Watched::new(&stream);
    let meter = Meter::new();
    let (let_in, admitted) = oneshot::channel();
    let server = stream.local_addr().unwrap_or(client);
    let handler = Handler::new(app.clone(), meter.clone(), (client, server), let_in);
    let gate = Gate::new(stream, meter.clone());
    let started = tokio::time::timeout_at(deadline, run_stream(config, gate, handler)).await;
    let Ok(Ok(mut session)) = started else { return };
    let handle = session.handle();
    let reason = tokio::select! {
        ended = &mut session => {
            if let Err(error) = ended {
                tracing::debug!(%client, %error, "an ssh connection ended early");
            }
            None
        }
        reason = end(&app, &meter, deadline, admitted) => Some(reason),
        () = watched.lost() => {
            tracing::debug!(%client, "an ssh client's network is gone");
            None
        }
    };
    if let Some(reason) = reason {
        let farewell = async {
            let code = Disconnect::ByApplication;
            let _ = handle
                .disconnect(code, reason.to_owned(), String::new())
                .await;
            let _ = session.await;
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        tracing::debug!(%client, reason, "an ssh connection was ended");
    }
    meter.ending.cancel();
}

/// Returns when the connection is to end, with the reason for the client.
async fn end(
    app: &AppState,
    meter: &Meter,
    deadline: Instant,
    admitted: oneshot::Receiver<Admission>,
) -> &'static str {
    let machine = async {
        let Ok(Ok(admission)) = tokio::time::timeout_at(deadline, admitted).await else {
            return "logging in took too long";
        };
        until_ended(app, &admission.machine).await;
        "the machine does not run any more"
    };
    tokio::select! {
        reason = machine => reason,
        () = meter.silence(SILENCE) => "nothing was heard for too long",
        () = meter.stuck() => "the machine does not take what is sent",
        () = app.stopping.cancelled() => "the server stops",
    }
}

async fn until_ended(app: &AppState, id: &str) {
    if let Some(handle) = app.machines.get(id) {
        let _ = handle.watch().wait_for(|row| !machine::lives(row)).await;
    }
}

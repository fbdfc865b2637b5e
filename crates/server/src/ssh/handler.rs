//! What a client asks for on its connection. Answers at once; the work is done by a task for each channel.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use nullspace_api::{audit::AuditEntry, time};
use nullspace_gateway::Eager;
use nullspace_protocol::GuestClient;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Pty, Sig,
    keys::Certificate,
    server::{self, Auth, ChannelOpenHandle, Msg, Session},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    forward::{self, Listening, is_here},
    gate::Meter,
    session::{self, is_welcome},
};
use crate::{
    app::{
        AppState, machine,
        ssh::{self, Admission},
    },
    error::Result,
};

/// Channels of one connection at once.
const MAX_CHANNELS: usize = 128;
/// Certificates that one connection may try.
const MAX_TRIES: u32 = 6;

/// A client that was let in, as the tasks of its channels see it.
pub(super) struct Client {
    pub(super) app: AppState,
    pub(super) meter: Arc<Meter>,
    pub(super) admission: Admission,
    pub(super) handle: server::Handle,
    /// The client's address and ours.
    pub(super) addresses: (SocketAddr, SocketAddr),
    guest: tokio::sync::Mutex<Option<GuestClient>>,
}

impl Client {
    /// This connection's own connection to the machine.
    pub(super) async fn guest(&self) -> Result<GuestClient> {
        let mut slot = self.guest.lock().await;
        if let Some(guest) = slot.as_ref().filter(|guest| !guest.is_closed()) {
            return Ok(guest.clone());
        }
        let guest = machine::own_guest(&self.app, &self.admission.machine).await?;
        ssh::require_logins(&guest)?;
        *slot = Some(guest.clone());
        Ok(guest)
    }
}

pub(super) struct Handler {
    app: AppState,
    meter: Arc<Meter>,
    addresses: (SocketAddr, SocketAddr),
    tries: u32,
    admission: Option<Admission>,
    let_in: Option<oneshot::Sender<Admission>>,
    client: Option<Arc<Client>>,
    places: Arc<Semaphore>,
    /// Channels that run something.
    started: BTreeSet<ChannelId>,
    listening: Listening,
}

impl Handler {
    pub(super) fn new(
        app: AppState,
        meter: Arc<Meter>,
        addresses: (SocketAddr, SocketAddr),
        let_in: oneshot::Sender<Admission>,
    ) -> Self {
        Self {
            app,
            meter,
            addresses,
            tries: 0,
            admission: None,
            let_in: Some(let_in),
            client: None,
            places: Arc::new(Semaphore::new(MAX_CHANNELS)),
            started: BTreeSet::new(),
            listening: Listening::default(),
        }
    }

    /// The client and a place for another channel.
    fn place(
        &self,
    ) -> std::result::Result<(Arc<Client>, OwnedSemaphorePermit), ChannelOpenFailure> {
        let client = self.client.clone();
        let client = client.ok_or(ChannelOpenFailure::AdministrativelyProhibited)?;
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| ChannelOpenFailure::ResourceShortage)?;
        Ok((client, place))
    }

    /// Answers a request to run something: each channel runs one thing.
    fn start(
        &mut self,
        channel: ChannelId,
        is_known: bool,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match is_known && self.started.insert(channel) {
            true => session.channel_success(channel),
            false => session.channel_failure(channel),
        }
    }
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, russh::Error> {
        self.tries += 1;
        if self.tries > MAX_TRIES {
            return Err(russh::Error::Disconnect);
        }
        match ssh::admit(&self.app, user, certificate).await {
            Ok(admission) => {
                tracing::debug!(client = %self.addresses.0, machine = admission.machine, "somebody logs in");
                self.app.audit.note(AuditEntry {
                    at: time::rfc3339(time::now()),
                    tenant_id: Some(admission.tenant_id.clone()),
                    key_id: admission.key_id.clone(),
                    method: "SSH".to_owned(),
                    path: format!("/v1/machines/{}", admission.machine),
                    status: 200,
                    remote: Some(self.addresses.0.ip().to_string()),
                    request_id: certificate.key_id().to_owned(),
                    ..AuditEntry::default()
                });
                self.admission = Some(admission);
                Ok(Auth::Accept)
            }
            Err(reason) => {
                tracing::debug!(client = %self.addresses.0, reason, "a certificate was refused");
                Ok(Auth::reject())
            }
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let admission = self
            .admission
            .take()
            .ok_or(russh::Error::NotAuthenticated)?;
        if let Some(let_in) = self.let_in.take() {
            let _ = let_in.send(admission.clone());
        }
        self.client = Some(Arc::new(Client {
            app: self.app.clone(),
            meter: self.meter.clone(),
            admission,
            handle: session.handle(),
            addresses: self.addresses,
            guest: tokio::sync::Mutex::default(),
        }));
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        match self.place() {
            Ok((client, place)) => {
                self.started.remove(&channel.id());
                reply.accept().await;
                // It hands what it reads over to itself.
                tokio::spawn(Eager::new(session::run(client, channel, place)));
            }
            Err(failure) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _from: &str,
        _from_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let port = u16::try_from(port).ok().filter(|_| is_here(host));
        match (port, self.place()) {
            (Some(port), Ok((client, place))) => {
                tokio::spawn(forward::open(client, channel, reply, port, place));
            }
            (None, _) => {
                let failure = ChannelOpenFailure::AdministrativelyProhibited;
                reply.reject(failure).await;
            }
            (_, Err(failure)) => reply.reject(failure).await,
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let Some(client) = self.client.clone() else {
            return Ok(false);
        };
        let places = self.places.clone();
        match self.listening.start(client, address, *port, places).await {
            Ok(listening) => {
                *port = u32::from(listening);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!(error = error.message, "a port is not listened on");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listening.stop(address, port))
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.started.remove(&channel);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _cols: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match self.started.contains(&channel) {
            true => session.channel_failure(channel),
            false => session.channel_success(channel),
        }
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match is_welcome(name, value) {
            true => session.channel_success(channel),
            false => session.channel_failure(channel),
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, true, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, true, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, session::is_subsystem(name), session)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _cols: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(channel)
    }

    async fn signal(
        &mut self,
        _channel: ChannelId,
        _signal: Sig,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    /// A machine must not reach the keys of whoever looks at it.
    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<bool, russh::Error> {
        session.channel_failure(channel)?;
        Ok(false)
    }

    /// Nor their screen.
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}

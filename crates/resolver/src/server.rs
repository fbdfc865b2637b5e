//! The sockets: takes queries in, gives replies out.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Config, Ipv4Net, Listen, Policy, ResolverError,
    answer::{filtered, is_own, led_to, local, ttl},
    cache::Cache,
    files::{Hosts, Watched},
    limits::Gate,
    query::{self, Answer, MAX_UDP_QUERY, Query, Refused, Transport},
    upstream::Upstream,
};

/// How long to wait before a socket that failed is used again: long enough not to spin when the process
/// is out of descriptors, short enough to go unnoticed otherwise.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// A resolver that listens and does not answer yet.
pub struct Resolver {
    sockets: Vec<(std::net::UdpSocket, std::net::TcpListener)>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// What all queries use.
struct Shared {
    policy: Arc<dyn Policy>,
    hidden: Vec<Ipv4Net>,
    hosts: Watched<Hosts>,
    upstream: Upstream,
    cache: Mutex<Cache>,
    queries: Gate,
    connections: Gate,
    idle: Duration,
}

impl Resolver {
    /// Binds what is to be bound. Queries that come from now on wait in the sockets until
    /// [`Resolver::serve`].
    ///
    /// # Errors
    /// If an address cannot be listened on.
    pub fn bind(config: Config) -> Result<Self, ResolverError> {
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        for listen in config.listen {
            let (udp, tcp) = match listen {
                Listen::Address(address) => bind(address)?,
                Listen::Sockets { udp, tcp } => (udp, tcp),
            };
            let given = |protocol| move |source| ResolverError::Socket { protocol, source };
            udp.set_nonblocking(true).map_err(given("udp"))?;
            tcp.set_nonblocking(true).map_err(given("tcp"))?;
            addresses.push(udp.local_addr().map_err(given("udp"))?);
            sockets.push((udp, tcp));
        }
        let limits = config.limits;
        let hidden = config.hidden.clone();
        let shared = Shared {
            policy: config.policy,
            hosts: Watched::new(config.hosts, move |text| Hosts::parse(text, &hidden)),
            hidden: config.hidden,
            upstream: Upstream::new(
                config.resolv_conf,
                config.nameservers,
                addresses.clone(),
                limits.upstream_try,
            ),
            cache: Mutex::new(Cache::new(limits.cache_entries)),
            queries: Gate::new(limits.queries, limits.queries_per_source),
            connections: Gate::new(limits.connections, limits.connections_per_source),
            idle: limits.connection_idle,
        };
        Ok(Self {
            sockets,
            addresses,
            shared: Arc::new(shared),
        })
    }

    /// The UDP addresses in the order of [`Config::listen`]; TCP has the same where we bound it.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers until `shutdown` completes; queries under way are then dropped.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        // Dropped with this function, and everything under way with it.
        let mut tasks = JoinSet::new();
        for (udp, tcp) in self.sockets {
            match (UdpSocket::from_std(udp), TcpListener::from_std(tcp)) {
                (Ok(udp), Ok(tcp)) => {
                    tasks.spawn(serve_udp(Arc::new(udp), Arc::clone(&self.shared)));
                    tasks.spawn(serve_tcp(tcp, Arc::clone(&self.shared)));
                }
                (Err(error), _) | (_, Err(error)) => {
                    tracing::error!(%error, "socket not registered, not listened on");
                }
            }
        }
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                Some(ended) = tasks.join_next() => {
                    tracing::error!(error = ?ended.err(), "a listener ended");
                }
            }
        }
    }
}

fn bind(
    address: SocketAddrV4,
) -> Result<(std::net::UdpSocket, std::net::TcpListener), ResolverError> {
    let failed = |protocol| {
        move |source| ResolverError::Bind {
            protocol,
            address,
            source,
        }
    };
    // A free port of UDP may be taken for TCP; then another is tried.
    for last in [false, false, false, true] {
        let udp = std::net::UdpSocket::bind(address).map_err(failed("udp"))?;
        match std::net::TcpListener::bind(udp.local_addr().map_err(failed("udp"))?) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(e) if last || address.port() != 0 => return Err(failed("tcp")(e)),
            Err(_) => {}
        }
    }
    Err(failed("tcp")(io::ErrorKind::AddrInUse.into()))
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    // One byte more than is taken: what fills it was longer.
    let mut buffer = vec![0; MAX_UDP_QUERY + 1];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "udp receive failed");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        let Some(source) = ipv4(peer).filter(|_| length <= MAX_UDP_QUERY) else {
            continue;
        };
        let Some(permit) = shared.queries.enter(source) else {
            continue;
        };
        let (bytes, socket, shared) = (
            buffer[..length].to_vec(),
            Arc::clone(&socket),
            Arc::clone(&shared),
        );
        tasks.spawn(async move {
            let _permit = permit;
            if let Some(reply) = shared.handle(&bytes, source, Transport::Udp).await
                && let Err(error) = socket.send_to(&reply, peer).await
            {
                tracing::debug!(%error, "udp reply not sent");
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "tcp accept failed");
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            }
        };
        // What is not let in is closed at once.
        let Some(source) = ipv4(peer) else { continue };
        let Some(permit) = shared.connections.enter(source) else {
            continue;
        };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let _permit = permit;
            if let Err(error) = serve_connection(stream, source, &shared).await {
                tracing::debug!(%error, "tcp connection ended");
            }
        });
    }
}

/// Answers one query after the other. A machine that wants several at once has UDP for it.
async fn serve_connection(
    mut stream: TcpStream,
    source: Ipv4Addr,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        let query = async {
            let mut bytes = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        };
        let bytes = match timeout(shared.idle, query).await? {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let Some(permit) = shared.queries.enter(source) else {
            return Ok(());
        };
        // Who sends something that gets no reply over UDP loses the connection.
        let Some(reply) = shared.handle(&bytes, source, Transport::Tcp).await else {
            return Ok(());
        };
        drop(permit);
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(
            shared.idle,
            stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat()),
        )
        .await??;
    }
}

fn ipv4(peer: SocketAddr) -> Option<Ipv4Addr> {
    match peer.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    }
}

impl Shared {
    async fn handle(
        &self,
        bytes: &[u8],
        source: Ipv4Addr,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let query = match query::read(bytes) {
            Ok(query) => query,
            Err(Refused::Reply(reply)) => return Some(reply),
            Err(Refused::Drop) => return None,
        };
        let mut answer = match local(&query, &self.hosts.get(), |name| {
            self.policy.allow(source, name)
        }) {
            Some(answer) => answer,
            None => self.forward(&query).await,
        };
        if self.policy.opens(source) {
            answer = self.admitted(&query, source, answer).await;
        }
        query::reply(&query, answer, transport)
    }

    /// The answer without the addresses that this machine cannot reach.
    async fn admitted(&self, query: &Query, source: Ipv4Addr, mut answer: Answer) -> Answer {
        let name = query.text.as_deref().unwrap_or_default();
        if is_own(name) {
            return answer;
        }
        let addresses = match query.kind {
            RecordType::A => led_to(&query.name, &answer.answers),
            _ => Vec::new(),
        };
        let admitted = match addresses.is_empty() {
            true => addresses,
            false => {
                let seconds = ttl(&answer);
                match self.policy.admit(source, name, addresses, seconds).await {
                    Some(admitted) => admitted,
                    None => return Answer::code(ResponseCode::ServFail),
                }
            }
        };
        answer.answers.retain(|record| match record.data() {
            RData::A(a) => admitted.contains(&a.0),
            _ => true,
        });
        answer
    }

    async fn forward(&self, query: &Query) -> Answer {
        let name = query.text.as_deref().unwrap_or_default();
        let remembered = self.cache().get(name, query.kind, Instant::now());
        if let Some(answer) = remembered {
            return answer;
        }
        match self.upstream.ask(&query.name, query.kind).await {
            Ok((message, bytes)) => {
                let answer = filtered(message, &self.hidden);
                self.cache()
                    .put(name, query.kind, &answer, bytes, Instant::now());
                answer
            }
            Err(error) => {
                tracing::debug!(%error, "question not answered");
                Answer::code(ResponseCode::ServFail)
            }
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

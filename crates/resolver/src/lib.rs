//! The name server of machines.
//!
//! Machines reach no other one. It answers from the host's `/etc/hosts` and the host's own name
//! servers, so that company names work as they do on the host, but says nothing about the host itself:
//! names of loopback, link-local and metadata addresses are left out wherever they come from. Every
//! name passes a [`Policy`] with the machine that asked, which is where names are allowed or denied.
//!
//! What arrives from machines is hostile: sizes, concurrency and time are bounded ([`Limits`]), and a
//! message that is not one plain question gets an error of its own size or no reply.
//!
//! `serve` runs [`run`] (or [`Resolver::bind`], to learn the addresses first) beside everything else;
//! it works on a current-thread runtime.

// A test that cannot go on should say where it stopped.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod cache;
mod control;
mod files;
mod limits;
mod query;
mod server;
mod upstream;

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

pub use control::Control;
pub use server::Resolver;

/// Decides which names a machine may ask for.
pub trait Policy: Send + Sync + 'static {
    /// Whether the machine with address `source` may resolve `name`: lower-case, without the final
    /// dot, each label made of `a-z`, `0-9`, `-` and `_`. A denied name does not exist (NXDOMAIN), so
    /// that programs fail at once instead of trying again.
    ///
    /// Called for each question of a name that is not `localhost`; must not block.
    fn allow(&self, source: Ipv4Addr, name: &str) -> bool {
        let _ = (source, name);
        true
    }

    /// Whether the machine may reach only what names lead it to, so that each answer passes [`Policy::admit`].
    fn opens(&self, source: Ipv4Addr) -> bool {
        let _ = source;
        false
    }

    /// Which of these addresses of `name`, an allowed one, the machine may be told. They are within its reach when
    /// this is done, for longer than `seconds`. `None` when that cannot be found out now.
    fn admit<'a>(
        &'a self,
        source: Ipv4Addr,
        name: &'a str,
        addresses: Vec<Ipv4Addr>,
        seconds: u32,
    ) -> Admission<'a> {
        let _ = (source, name, seconds);
        Box::pin(std::future::ready(Some(addresses)))
    }
}

/// See [`Policy::admit`].
pub type Admission<'a> = Pin<Box<dyn Future<Output = Option<Vec<Ipv4Addr>>> + Send + 'a>>;

/// The policy that allows every name.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl Policy for AllowAll {}

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Net {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Net {
    /// The range of addresses that share the first `prefix` bits (at most 32) with `address`.
    #[must_use]
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        Self {
            address,
            prefix: if prefix > 32 { 32 } else { prefix },
        }
    }

    /// Whether the range holds `address`.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        (u32::from(self.address) ^ u32::from(address)) & mask == 0
    }
}

/// Where to listen.
#[derive(Debug)]
pub enum Listen {
    /// Bind UDP and TCP here. Give the address that machines know: the reply to a wildcard address may
    /// leave from another one, and machines then drop it. Port 0 takes a free port, the same for both.
    Address(SocketAddrV4),
    /// Use these, bound already (in another network namespace, or by whoever started this process).
    Sockets {
        /// Receives queries.
        udp: UdpSocket,
        /// Accepts connections.
        tcp: TcpListener,
    },
}

/// Bounds on what machines can make the resolver do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most queries being answered at once; what comes on top is dropped. Each may use one socket.
    pub queries: usize,
    /// Most of them for one source address.
    pub queries_per_source: usize,
    /// Most open TCP connections.
    pub connections: usize,
    /// Most of them for one source address.
    pub connections_per_source: usize,
    /// A TCP connection must bring a whole query, and take a whole reply, within this time.
    pub connection_idle: Duration,
    /// Most answers remembered; one is at most 4 KiB.
    pub cache_entries: usize,
    /// How long a name server may take before the next is tried.
    pub upstream_try: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queries: 1024,
            queries_per_source: 64,
            connections: 256,
            connections_per_source: 16,
            connection_idle: Duration::from_secs(10),
            cache_entries: 4096,
            upstream_try: Duration::from_secs(2),
        }
    }
}

/// What a resolver needs to know.
pub struct Config {
    /// Where machines ask.
    pub listen: Vec<Listen>,
    /// The host's name server configuration, read again when it changes.
    pub resolv_conf: PathBuf,
    /// The host's own names, read again when they change.
    pub hosts: PathBuf,
    /// Name servers to use instead of those in `resolv_conf`, if not empty.
    pub nameservers: Vec<SocketAddr>,
    /// Addresses that no answer may hold.
    pub hidden: Vec<Ipv4Net>,
    /// Which names a machine may ask for.
    pub policy: Arc<dyn Policy>,
    /// Bounds.
    pub limits: Limits,
}

impl Config {
    /// The host's own files, everything allowed, [`hidden_by_default`].
    #[must_use]
    pub fn new(listen: Vec<Listen>) -> Self {
        Self {
            listen,
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            nameservers: Vec::new(),
            hidden: hidden_by_default(),
            policy: Arc::new(AllowAll),
            limits: Limits::default(),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("resolv_conf", &self.resolv_conf)
            .field("hosts", &self.hosts)
            .field("nameservers", &self.nameservers)
            .field("hidden", &self.hidden)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What is never a machine's business, and what an attacker's name would point at to make a program on
/// the wrong side of a firewall talk to it: "this" network, loopback, link-local (with the metadata
/// service of most clouds), multicast, reserved and broadcast addresses.
#[must_use]
pub fn hidden_by_default() -> Vec<Ipv4Net> {
    vec![
        Ipv4Net::new(Ipv4Addr::new(0, 0, 0, 0), 8),
        Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8),
        Ipv4Net::new(Ipv4Addr::new(169, 254, 0, 0), 16),
        Ipv4Net::new(Ipv4Addr::new(224, 0, 0, 0), 3),
    ]
}

/// Why the resolver could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolverError {
    /// An address could not be bound.
    #[error("cannot listen for {protocol} on {address}")]
    Bind {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// The address.
        address: SocketAddrV4,
        /// What the system said.
        source: std::io::Error,
    },
    /// A socket that was handed over cannot be used.
    #[error("cannot use the {protocol} socket that was handed over")]
    Socket {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Answers machines until `shutdown` completes; queries under way are then dropped.
///
/// # Errors
/// If an address cannot be listened on. Once it runs, nothing that a machine or a name server does
/// ends it.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), ResolverError> {
    Resolver::bind(config)?.serve(shutdown).await;
    Ok(())
}

/// Hands bytes to both parsers, as a machine's question and as a name server's answer.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    use hickory_proto::op::Message;

    let answer = Message::from_vec(bytes)
        .ok()
        .map(|message| answer::filtered(message, &hidden_by_default()));
    if let (Ok(query), Some(answer)) = (query::read(bytes), answer) {
        let reply = query::reply(&query, answer, query::Transport::Udp);
        assert!(reply.is_none_or(|reply| reply.len() <= usize::from(u16::MAX)));
    }
}

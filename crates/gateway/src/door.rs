//! A port that leads into a machine.

use std::{
    borrow::Cow,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, PoisonError, RwLock},
};

use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{guard::Guard, listen, proxy, traffic::Counted, upstream::Upstream};

/// Who may come in.
#[derive(Clone, Default)]
pub enum Access {
    /// Everybody who reaches the port.
    #[default]
    Public,
    /// Who sends this token in [`crate::TOKEN_HEADER`].
    Token(Arc<str>),
    /// Whom this lets in.
    Guarded(Arc<dyn Guard>),
}

impl std::fmt::Debug for Access {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Public => "Public",
            Self::Token(_) => "Token",
            Self::Guarded(_) => "Guarded",
        })
    }
}

/// Where a door leads now.
#[derive(Debug)]
pub struct Route {
    what: Cow<'static, str>,
    upstream: RwLock<Option<Arc<Upstream>>>,
    access: RwLock<Access>,
}

impl Route {
    /// A route that leads nowhere yet. `what` it is to lead to, clients read in refusals: "the service".
    #[must_use]
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self {
            what: what.into(),
            upstream: RwLock::default(),
            access: RwLock::default(),
        }
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Lets requests from now on go there; without one they are told to come again. Answers where they went before:
    /// requests under way end there ([`Upstream::drained`]).
    pub fn lead_to(&self, upstream: Option<Arc<Upstream>>) -> Option<Arc<Upstream>> {
        let mut now = self
            .upstream
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut now, upstream)
    }

    /// Says who may come in from now on.
    pub fn allow(&self, access: Access) {
        *self.access.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    pub(crate) fn upstream(&self) -> Option<Arc<Upstream>> {
        self.upstream
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn access(&self) -> Access {
        self.access
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// An open port. It closes when this is dropped; connections end after their request.
#[derive(Debug)]
pub struct Door {
    port: u16,
    closing: CancellationToken,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Door {
    /// Opens a port of `range` on `address`: `wanted` if that is free, else the next free one, counted from `hint`.
    ///
    /// `connections` holds the door's connections; they end when `stopping` is cancelled, too.
    ///
    /// # Errors
    /// When no port of the range is free.
    pub async fn open(
        address: IpAddr,
        wanted: Option<u16>,
        range: RangeInclusive<u16>,
        hint: u16,
        route: Arc<Route>,
        connections: &TaskTracker,
        stopping: &CancellationToken,
    ) -> io::Result<Self> {
        let listener = bind(address, wanted, range, hint).await?;
        let port = listener.local_addr()?.port();
        let closing = stopping.child_token();
        let service = move |client: IpAddr| {
            let route = route.clone();
            service_fn(move |request| {
                let route = route.clone();
                async move {
                    Ok::<_, std::convert::Infallible>(proxy::pass(&route, client, request).await)
                }
            })
        };
        let accepting = listen::accept_as(
            listener,
            service,
            closing.clone(),
            connections.clone(),
            Counted,
        );
        connections.spawn(accepting);
        Ok(Self { port, closing })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn bind(
    address: IpAddr,
    wanted: Option<u16>,
    range: RangeInclusive<u16>,
    hint: u16,
) -> io::Result<TcpListener> {
    if let Some(port) = wanted
        && let Ok(listener) = TcpListener::bind(SocketAddr::new(address, port)).await
    {
        return Ok(listener);
    }
    let count = u32::from(range.end().saturating_sub(*range.start())) + 1;
    for n in 0..count {
        let place = (u32::from(hint) + n) % count;
        let port = range.start() + u16::try_from(place).unwrap_or_default();
        match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrInUse,
        format!(
            "every port from {} to {} is in use",
            range.start(),
            range.end()
        ),
    ))
}

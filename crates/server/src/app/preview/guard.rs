//! Who may come in through the way to a port.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Method, StatusCode};
use nullspace_api::{error::code, time};
use nullspace_gateway::{Account, Guard, Pass, Refusal, TOKEN_HEADER, Visitor, same};
use tokio_util::sync::CancellationToken;

use super::{
    credential::Given,
    grant::LiveGrant,
    token::{Claims, Kind},
};
use crate::app::{machine::Handle, seal::Seal};

/// The guard of one port of one machine.
pub(super) struct PortGuard {
    pub(super) machine: String,
    pub(super) handle: Arc<Handle>,
    pub(super) port: u16,
    pub(super) seal: Arc<Seal>,
    /// The name of its cookie.
    pub(super) cookie: String,
    /// Whether browsers may send it over TLS alone.
    pub(super) secure: bool,
    /// What everybody has to send as well, if the machine takes no public traffic.
    pub(super) traffic_token: Option<String>,
    /// The host that the program is told, if not the client's.
    pub(super) host: Option<HeaderValue>,
    pub(super) patience: Duration,
    /// Whether requests need no token.
    pub(super) is_published: AtomicBool,
    pub(super) grants: RwLock<HashMap<String, Arc<LiveGrant>>>,
    /// The machine has ended.
    pub(super) ended: CancellationToken,
}

/// Which words a refusal has.
#[derive(Clone, Copy)]
enum Bearer {
    Edge,
    Proxy,
}

fn refusal(status: StatusCode, code: &'static str, message: &'static str) -> Refusal {
    Refusal {
        status,
        code,
        message,
    }
}

impl Bearer {
    fn invalid(self) -> Refusal {
        let (code, message) = match self {
            Self::Edge => (
                code::EDGE_TOKEN_INVALID,
                "the token in edge_token was not made by this server; ask for a new url",
            ),
            Self::Proxy => (
                code::PREVIEW_PROXY_TOKEN_INVALID,
                "the proxy's token was not made by this server; ask for a new one",
            ),
        };
        refusal(StatusCode::UNAUTHORIZED, code, message)
    }

    fn expired(self) -> Refusal {
        let (code, message) = match self {
            Self::Edge => (
                code::EDGE_TOKEN_EXPIRED,
                "this preview is over its time; ask for a new url",
            ),
            Self::Proxy => (
                code::PREVIEW_PROXY_TOKEN_EXPIRED,
                "the proxy's token is over its time; ask for a new one",
            ),
        };
        refusal(StatusCode::UNAUTHORIZED, code, message)
    }

    fn mismatch(self) -> Refusal {
        let (code, message) = match self {
            Self::Edge => (
                code::EDGE_TOKEN_SCOPE_MISMATCH,
                "this token is for another machine, port or kind of traffic",
            ),
            Self::Proxy => (
                code::PREVIEW_PROXY_TOKEN_SCOPE_MISMATCH,
                "the proxy's token is for another machine, port or kind of traffic",
            ),
        };
        refusal(StatusCode::FORBIDDEN, code, message)
    }

    fn unknown(self) -> Refusal {
        let message = "this preview is not known any more; ask for a new one";
        let code = match self {
            Self::Edge => code::PREVIEW_GRANT_INVALID,
            Self::Proxy => code::PREVIEW_PROXY_TOKEN_INVALID,
        };
        refusal(StatusCode::UNAUTHORIZED, code, message)
    }

    fn revoked(self) -> Refusal {
        let message = "this preview was revoked";
        let code = match self {
            Self::Edge => code::PREVIEW_GRANT_REVOKED,
            Self::Proxy => code::PREVIEW_PROXY_TOKEN_REVOKED,
        };
        refusal(StatusCode::UNAUTHORIZED, code, message)
    }
}

impl PortGuard {
    pub(super) fn grant(&self, id: &str) -> Option<Arc<LiveGrant>> {
        let grants = self.grants.read().unwrap_or_else(PoisonError::into_inner);
        grants.get(id).cloned()
    }

    pub(super) fn add(&self, grant: Arc<LiveGrant>) {
        let mut grants = self.grants.write().unwrap_or_else(PoisonError::into_inner);
        grants.insert(grant.id.clone(), grant);
    }

    /// The grant that a token stands for now, if it is one of these kinds.
    fn check(
        &self,
        token: &str,
        kinds: &[Kind],
        bearer: Bearer,
        now: i64,
    ) -> Result<Arc<LiveGrant>, Refusal> {
        let claims = Claims::read(&self.seal, token).ok_or_else(|| bearer.invalid())?;
        let grant = self.grant(claims.grant);
        let is_here = claims.machine == self.machine
            && claims.port == self.port
            && kinds.contains(&claims.kind);
        let refused = if claims.expires_at <= now {
            bearer.expired()
        } else if !is_here {
            bearer.mismatch()
        } else {
            match grant {
                None => bearer.unknown(),
                Some(grant) if grant.is_revoked() => {
                    let refused = bearer.revoked();
                    grant.failed(refused.code);
                    return Err(refused);
                }
                Some(grant) => return Ok(grant),
            }
        };
        if let Some(grant) = grant {
            grant.failed(refused.code);
        }
        Err(refused)
    }

    /// Who lets a request in: a grant, or nobody has to.
    fn credential(
        &self,
        given: &Given,
        websocket: bool,
        now: i64,
    ) -> Result<Option<Arc<LiveGrant>>, Refusal> {
        let mut grant = None;
        let (proxy, direct) = match websocket {
            true => (Kind::ProxyWebsocket, Kind::Websocket),
            false => (Kind::ProxyHttp, Kind::Http),
        };
        // One that is given must be good, also where none is needed.
        match given.query.as_slice() {
            [] => {}
            [token] => grant = Some(self.check(token, &[direct], Bearer::Edge, now)?),
            _ => return Err(Bearer::Edge.invalid()),
        }
        match given.proxy.as_slice() {
            [] => {}
            [Some(token)] => grant = Some(self.check(token, &[proxy], Bearer::Proxy, now)?),
            _ => return Err(Bearer::Proxy.invalid()),
        }
        if grant.is_some() {
            return Ok(grant);
        }
        if given.marker {
            return Err(refusal(
                StatusCode::UNAUTHORIZED,
                code::PREVIEW_PROXY_TOKEN_MISSING,
                "this url is for a proxy, which sends its token in x-nullspace-preview-proxy-token",
            ));
        }
        let is_published = self.is_published.load(Ordering::Relaxed);
        match &given.session {
            // What a browser kept from before is no token that somebody gives.
            Some(session) => match self.check(session, &[Kind::Session], Bearer::Edge, now) {
                Ok(grant) => Ok(Some(grant)),
                Err(_) if is_published => Ok(None),
                Err(refused) => Err(refused),
            },
            None if is_published => Ok(None),
            None => Err(refusal(
                StatusCode::UNAUTHORIZED,
                code::EDGE_TOKEN_MISSING,
                "this preview needs a token: open the url that has it in edge_token",
            )),
        }
    }

    /// The cookie that lets a browser in which came with a token.
    fn session(&self, grant: &LiveGrant, now: i64) -> Option<HeaderValue> {
        let token = Claims {
            grant: &grant.id,
            machine: &self.machine,
            port: self.port,
            kind: Kind::Session,
            expires_at: grant.expires_at,
        }
        .token(&self.seal);
        let seconds = (grant.expires_at - now) / 1_000_000;
        let secure = if self.secure { "; Secure" } else { "" };
        let cookie = format!(
            "{}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}",
            self.cookie
        );
        let mut value = HeaderValue::try_from(cookie).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Guard for PortGuard {
    fn admit(&self, visitor: Visitor<'_>) -> Result<Pass, Refusal> {
        let Visitor {
            method,
            uri,
            headers,
            websocket,
        } = visitor;
        let given = Given::take(method, uri, headers, &self.cookie).map_err(|()| {
            refusal(
                StatusCode::BAD_REQUEST,
                code::INVALID_REQUEST,
                "the address of the request cannot be passed on",
            )
        })?;
        let now = time::now();
        let grant = self.credential(&given, websocket, now)?;
        if let Some(token) = &self.traffic_token
            && !headers
                .get(TOKEN_HEADER)
                .is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
        {
            let refused = refusal(
                StatusCode::UNAUTHORIZED,
                code::UNAUTHORIZED,
                "this machine takes no public traffic: send its token in x-nullspace-traffic-access-token",
            );
            if let Some(grant) = grant {
                grant.failed(refused.code);
            }
            return Err(refused);
        }
        if self.handle.sleeps() {
            return Err(refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                code::MACHINE_NOT_READY,
                "the machine is paused: resume it; one made with auto_resume is resumed when it is used",
            ));
        }
        let is_direct = !given.query.is_empty() && given.proxy.is_empty();
        let is_fresh = is_direct && !websocket && *method == Method::GET;
        let set_cookie = grant
            .as_ref()
            .filter(|_| is_fresh)
            .and_then(|grant| self.session(grant, now));
        let cut = match &grant {
            Some(grant) => {
                grant.used(websocket, now);
                grant.cut.clone()
            }
            None => self.ended.clone(),
        };
        Ok(Pass {
            account: grant.map(|grant| grant as Arc<dyn Account>),
            cut,
            set_cookie,
            host: self.host.clone(),
            patience: self.patience,
        })
    }
}

//! Ports of machines, seen from outside.
//!
//! ```text
//!  asked for ──▶ a way in (door or name, route, guard) ──▶ record port and grant ──▶ URL with a token
//!  request ──▶ door, or the API's listener by its name ──▶ guard: token ▸ grant, in memory ──▶ the machine's port
//!                                                             └─▶ counts ──every second──▶ record
//! ```
//! A way stays until its machine ends, and is opened again when the server starts. Called by `http::preview`.

mod credential;
mod grant;
mod guard;
pub(in crate::app) mod readiness;
mod token;
mod way;

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use nullspace_api::{
    error::code,
    id,
    preview::{
        AuthMode, Grant, GrantStatus, Grants, Host, PreviewUrl, ProxyTarget, ProxyTargetRequest,
        RevokedGrant, SignedPreviewRequest, TokenKind, TokenTransport, Transport,
    },
    time,
};
use nullspace_gateway::{PROXY_TOKEN_HEADER, TOKEN_HEADER};
use nullspace_store::{
    machine::MachineRow,
    preview::{self as rows, PreviewGrantRow},
};

pub use readiness::readiness;
use token::{Claims, Kind};
use way::Way;
pub(crate) use way::{Previews, close_all, restore};

use super::{App, AppState, Caller, machine};
use crate::error::{Error, Kind as ErrorKind, Result};

/// The shortest and the longest time of a grant, in seconds.
const TTL: std::ops::RangeInclusive<u64> = 60..=24 * 3600;
/// Grants of one machine that are remembered.
const MAX_GRANTS: u64 = 1000;
/// How long grants are remembered after they are over, in microseconds: a day.
const REMEMBERED: i64 = 24 * 3600 * MICROSECONDS;
const MICROSECONDS: i64 = 1_000_000;
/// How often what passed is recorded: the most that is lost when the server is killed.
const RECORD_EVERY: Duration = Duration::from_secs(1);

/// Puts the port into a host that a machine's previews tell programs.
pub(super) fn masked(mask: &str, port: u16) -> String {
    mask.replace("${PORT}", &port.to_string())
}

/// What requests to a machine's previews need besides, if it takes no public traffic. The same every time.
#[must_use]
pub fn traffic_token(app: &App, row: &MachineRow) -> Option<String> {
    (!row.allow_public_traffic).then(|| app.seal.token(&format!("traffic {}", row.id)))
}

/// A port that may be seen from outside.
///
/// # Errors
/// `invalid_request`.
fn check_port(port: u16) -> Result<()> {
    match port {
        0 => Err(Error::invalid("port: must be 1 to 65535")),
        22 => {
            Err(Error::invalid("port: 22 is not previewed").with_action("log in with ssh-access"))
        }
        5900..=5999 => Err(Error::invalid(
            "port: 5900 to 5999 are those of desktops, which are not previewed",
        )),
        _ => Ok(()),
    }
}

/// How a port is called from outside.
struct Place {
    http: &'static str,
    websocket: &'static str,
    authority: String,
}

impl Place {
    /// `host` is what the caller calls this server.
    fn of(app: &App, way: &Way, host: &str) -> Self {
        if let Some(domain) = &app.previews.domain {
            let api = app.doors.address.port();
            let (http, websocket) = match domain.is_https() {
                true => ("https", "wss"),
                false => ("http", "ws"),
            };
            return Self {
                http,
                websocket,
                authority: domain.authority(&way.guard.machine, way.guard.port, api),
            };
        }
        let port = way.gateway_port().unwrap_or_default();
        Self {
            http: "http",
            websocket: "ws",
            authority: format!("{host}:{port}"),
        }
    }

    fn url(&self, query: &str) -> String {
        format!("{}://{}/{query}", self.http, self.authority)
    }

    fn websocket_url(&self, query: &str) -> String {
        format!("{}://{}/{query}", self.websocket, self.authority)
    }
}

/// Opens a port to everybody who reaches it, or who has the machine's own token if it takes no public traffic. `host` is
/// what the caller calls this server.
///
/// # Errors
/// `invalid_request`, `machine_not_found`, `machine_not_ready`, `capacity_exceeded`.
pub async fn publish(app: &AppState, machine_id: &str, port: u16, host: &str) -> Result<Host> {
    check_port(port)?;
    let way = way::ensure(app, machine_id, port).await?;
    let mut row = way.row();
    row.published = true;
    app.store.write(move |tx| rows::keep_port(tx, &row)).await?;
    way.guard.is_published.store(true, Ordering::Relaxed);
    let place = Place::of(app, &way, host);
    Ok(Host {
        url: Some(format!("{}://{}", place.http, place.authority)),
        websocket_url: Some(format!("{}://{}", place.websocket, place.authority)),
        host: place.authority,
    })
}

/// A URL of a port that has its token in it.
///
/// # Errors
/// `invalid_request`, `machine_not_found`, `machine_not_ready`, `capacity_exceeded`.
pub async fn signed_url(
    app: &AppState,
    caller: &Caller,
    machine_id: &str,
    port: u16,
    request: SignedPreviewRequest,
    host: &str,
) -> Result<PreviewUrl> {
    let row = PreviewGrantRow {
        http: true,
        websocket: true,
        ..asked(app, caller, machine_id, port, request.expires_in_seconds)?
    };
    let way = record(app, &row).await?;
    let place = Place::of(app, &way, host);
    let query = |kind| format!("?{}={}", credential::TOKEN, signed(app, &row, kind));
    Ok(PreviewUrl {
        url: place.url(&query(Kind::Http)),
        websocket_url: place.websocket_url(&query(Kind::Websocket)),
        access_token_expires_at: time::rfc3339(row.expires_at),
        access_token_transport: TokenTransport::Query,
        grant: shown(row, None),
    })
}

/// Where a proxy of the caller's own reaches a port, and with which tokens.
///
/// # Errors
/// `invalid_request`, `machine_not_found`, `machine_not_ready`, `capacity_exceeded`.
pub async fn proxy_target(
    app: &AppState,
    caller: &Caller,
    machine_id: &str,
    port: u16,
    request: ProxyTargetRequest,
    host: &str,
) -> Result<ProxyTarget> {
    let wanted = |transport| match &request.transports {
        None => true,
        Some(transports) => transports.contains(&transport),
    };
    let row = PreviewGrantRow {
        proxy: true,
        http: wanted(Transport::Http),
        websocket: wanted(Transport::Websocket),
        ..asked(app, caller, machine_id, port, request.expires_in_seconds)?
    };
    if !row.http && !row.websocket {
        return Err(Error::invalid("transports: name http, websocket, or both"));
    }
    let way = record(app, &row).await?;
    let place = Place::of(app, &way, host);
    let query = format!("?{}=header", credential::MARKER);
    let is_private = way.guard.traffic_token.is_some();
    let hint = request.include_traffic_token_hint.unwrap_or(true);
    let forwarded = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    Ok(ProxyTarget {
        machine_id: machine_id.to_owned(),
        port,
        token_header_name: PROXY_TOKEN_HEADER.to_owned(),
        expires_at: time::rfc3339(row.expires_at),
        token_transport: TokenTransport::Header,
        http_url: row.http.then(|| place.url(&query)),
        websocket_url: row.websocket.then(|| place.websocket_url(&query)),
        http_token: row.http.then(|| signed(app, &row, Kind::ProxyHttp)),
        websocket_token: row
            .websocket
            .then(|| signed(app, &row, Kind::ProxyWebsocket)),
        required_forwarded_headers: forwarded.map(str::to_owned).to_vec(),
        traffic_access_required: hint.then_some(is_private),
        traffic_access_header_name: (hint && is_private).then(|| TOKEN_HEADER.to_owned()),
        warnings: Vec::new(),
        grant: shown(row, None),
    })
}

/// A grant that is asked for, without what it is for.
fn asked(
    app: &App,
    caller: &Caller,
    machine_id: &str,
    port: u16,
    seconds: Option<u64>,
) -> Result<PreviewGrantRow> {
    check_port(port)?;
    if seconds == Some(0) {
        return Err(Error::invalid("expires_in_seconds: must be above 0"));
    }
    let seconds = seconds.unwrap_or(app.config.preview_ttl_secs);
    let seconds = seconds.clamp(*TTL.start(), *TTL.end());
    let now = time::now();
    Ok(PreviewGrantRow {
        id: id::new(id::PREVIEW),
        machine_id: machine_id.to_owned(),
        port,
        key_id: Some(caller.key_id.to_string()),
        created_at: now,
        updated_at: now,
        expires_at: now + i64::try_from(seconds).unwrap_or(0) * MICROSECONDS,
        ..PreviewGrantRow::default()
    })
}

fn signed(app: &App, row: &PreviewGrantRow, kind: Kind) -> String {
    Claims {
        grant: &row.id,
        machine: &row.machine_id,
        port: row.port,
        kind,
        expires_at: row.expires_at,
    }
    .token(&app.seal)
}

/// Opens the way and records the grant.
async fn record(app: &AppState, row: &PreviewGrantRow) -> Result<Arc<Way>> {
    let way = way::ensure(app, &row.machine_id, row.port).await?;
    let (port, recording) = (way.row(), row.clone());
    app.store
        .write(move |tx| {
            let row = recording;
            let over = (rows::count_of(tx, &row.machine_id)? + 1).saturating_sub(MAX_GRANTS);
            if over > 0 && rows::forget_over(tx, &row.machine_id, row.created_at, over)? == 0 {
                return Err(Error::new(
                    ErrorKind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("the machine has {MAX_GRANTS} previews that are not over"),
                )
                .with_action("use one of them, revoke some, or ask for shorter ones"));
            }
            rows::keep_port(tx, &port)?;
            Ok::<_, Error>(rows::insert(tx, &row)?)
        })
        .await?;
    way.add(app, row);
    Ok(way)
}

/// The grants of a machine, newest first.
///
/// # Errors
/// `machine_not_found`.
pub async fn list(app: &App, machine_id: &str, port: Option<u16>) -> Result<Grants> {
    let machine = machine::get(app, machine_id).await?;
    let id = machine_id.to_owned();
    let found = app.store.read(move |db| rows::list(db, &id, port)).await?;
    let items = found
        .into_iter()
        .map(|row| now(app, row, &machine))
        .collect();
    Ok(Grants { items })
}

/// Takes a grant back: its tokens are refused from now on, and what is under way with them ends. Twice is fine.
///
/// # Errors
/// `machine_not_found`, `preview_grant_not_found`.
pub async fn revoke(app: &App, machine_id: &str, grant_id: &str) -> Result<RevokedGrant> {
    let machine = machine::get(app, machine_id).await?;
    let (id, grant) = (machine_id.to_owned(), grant_id.to_owned());
    let row = app
        .store
        .write(move |tx| {
            rows::revoke(tx, &id, &grant, time::now())?;
            rows::get(tx, &id, &grant)
        })
        .await?
        .ok_or_else(|| {
            Error::not_found(
                code::PREVIEW_GRANT_NOT_FOUND,
                format!("the machine has no preview {grant_id:?}"),
            )
        })?;
    end(app, std::slice::from_ref(&row));
    Ok(RevokedGrant {
        success: true,
        grant: now(app, row, &machine),
    })
}

/// What grants that are revoked on record led to ends.
pub(super) fn end(app: &App, revoked: &[PreviewGrantRow]) {
    for row in revoked {
        if let Some(way) = app.previews.find(&row.machine_id, row.port)
            && let Some(live) = way.guard.grant(&row.id)
        {
            live.revoke();
        }
    }
}

/// A grant with what has passed until now.
fn now(app: &App, mut row: PreviewGrantRow, machine: &MachineRow) -> Grant {
    if let Some(way) = app.previews.find(&row.machine_id, row.port)
        && let Some(live) = way.guard.grant(&row.id)
    {
        row.used = live.so_far();
    }
    shown(row, machine.ended_at)
}

/// A recorded grant as the wire shows it. `ended_at` is when its machine ended.
fn shown(row: PreviewGrantRow, ended_at: Option<i64>) -> Grant {
    let used = row.used;
    // What happened first decides.
    let disabled_at = ended_at
        .filter(|ended| row.revoked_at.is_none_or(|at| at > *ended) && row.expires_at > *ended);
    let status = if disabled_at.is_some() {
        GrantStatus::Disabled
    } else if row.revoked_at.is_some() {
        GrantStatus::Revoked
    } else if row.expires_at <= time::now() {
        GrantStatus::Expired
    } else {
        GrantStatus::Active
    };
    let (auth_mode, bootstrap_transport) = match row.proxy {
        true => (AuthMode::Proxy, TokenTransport::Header),
        false => (AuthMode::Direct, TokenTransport::Query),
    };
    let kinds = [
        row.http.then_some(TokenKind::HttpPort),
        row.websocket.then_some(TokenKind::WebsocketPort),
    ];
    Grant {
        id: row.id,
        machine_id: row.machine_id,
        port: row.port,
        auth_mode,
        bootstrap_transport,
        status,
        token_kinds: kinds.into_iter().flatten().collect(),
        principal_kind: "user".to_owned(),
        principal_id: row.key_id,
        issued_at: time::rfc3339(row.created_at),
        expires_at: time::rfc3339(row.expires_at),
        revoked_at: row.revoked_at.map(time::rfc3339),
        first_used_at: used.first_used_at.map(time::rfc3339),
        last_used_at: used.last_used_at.map(time::rfc3339),
        use_count: used.http_count + used.websocket_count,
        http_request_count: used.http_count,
        websocket_connection_count: used.websocket_count,
        bytes_in_count: used.bytes_in,
        bytes_out_count: used.bytes_out,
        last_error_code: used.last_error_code,
        last_error_at: used.last_error_at.map(time::rfc3339),
        disabled_at: disabled_at.map(time::rfc3339),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
    }
}

/// Records what passed with the grants of these ways since it was recorded last.
async fn record_use(app: &App, ways: &[Arc<Way>]) {
    let mut changed = Vec::new();
    for way in ways {
        let grants = way.guard.grants.read();
        let grants = grants.unwrap_or_else(PoisonError::into_inner);
        for grant in grants.values() {
            if let Some(used) = grant.to_record() {
                changed.push((grant.clone(), used));
            }
        }
    }
    if changed.is_empty() {
        return;
    }
    let uses: Vec<_> = changed
        .iter()
        .map(|(grant, used)| (grant.id.clone(), used.clone()))
        .collect();
    let recorded = app
        .store
        .write(move |tx| {
            let now = time::now();
            uses.iter()
                .try_for_each(|(id, used)| rows::keep_use(tx, id, used, now))
        })
        .await;
    if let Err(error) = recorded {
        tracing::warn!(%error, "what passed through previews could not be recorded; trying again");
        for (grant, _) in changed {
            grant.not_recorded();
        }
    }
}

/// The same for all, if there is anything.
pub(crate) async fn flush(app: &App) {
    if app.previews.any_ahead.swap(false, Ordering::SeqCst) {
        record_use(app, &app.previews.all()).await;
    }
}

/// Keeps the record up to date, and doors open whose port was taken when the server started, until the server stops.
pub(crate) async fn keep_up(app: AppState) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RECORD_EVERY) => {}
            () = app.stopping.cancelled() => return,
        }
        flush(&app).await;
        let _one = app.previews.making.lock().await;
        for way in app.previews.all() {
            way.open_again(&app).await;
        }
    }
}

/// Forgets grants that were over a while ago.
///
/// # Errors
/// When the record cannot be written.
pub(crate) async fn forget_old(app: &App) -> Result<usize> {
    let now = time::now();
    for way in app.previews.all() {
        let mut grants = way
            .guard
            .grants
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // What somebody still uses is still counted.
        grants.retain(|_, grant| grant.expires_at > now || Arc::strong_count(grant) > 1);
    }
    Ok(app
        .store
        .write(move |tx| rows::forget_before(tx, now - REMEMBERED))
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_not_seen() {
        for port in [0, 22, 5900, 5950, 5999] {
            assert!(check_port(port).is_err(), "{port}");
        }
        for port in [1, 21, 23, 5899, 6000, u16::MAX] {
            assert!(check_port(port).is_ok(), "{port}");
        }
    }

    #[test]
    fn what_happened_first_decides_how_a_grant_stands() {
        let now = time::now();
        let (past, future) = (now - 10, now + 1_000_000_000);
        for (revoked, expires, ended, status) in [
            (None, future, None, GrantStatus::Active),
            (None, past, None, GrantStatus::Expired),
            (Some(past), future, None, GrantStatus::Revoked),
            (Some(past), past, None, GrantStatus::Revoked),
            (None, future, Some(past), GrantStatus::Disabled),
            (None, past, Some(now), GrantStatus::Expired),
            (Some(past), future, Some(now), GrantStatus::Revoked),
            (Some(now), future, Some(past), GrantStatus::Disabled),
        ] {
            let row = PreviewGrantRow {
                revoked_at: revoked,
                expires_at: expires,
                ..PreviewGrantRow::default()
            };
            let grant = shown(row, ended);
            assert_eq!(grant.status, status, "{revoked:?} {expires} {ended:?}");
            assert_eq!(grant.disabled_at.is_some(), status == GrantStatus::Disabled);
        }
    }
}

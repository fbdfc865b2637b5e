//! Ways into ports of machines: a door or a name, a route, and a guard. One per machine and port, from the first time
//! that somebody asks for it until the machine ends.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::HeaderValue;
use nullspace_api::error::code;
use nullspace_gateway::{Access, Dial, Door, PreviewDomain, Route, Upstream};
use nullspace_protocol::BoxedIo;
use nullspace_store::preview::{PreviewGrantRow, PreviewPortRow};
use tokio_util::sync::CancellationToken;

use super::{credential::cookie_name, grant::LiveGrant, guard::PortGuard, masked, traffic_token};
use crate::{
    app::{
        AppState,
        machine::{self, Handle, Port},
    },
    error::{Error, Kind, Result},
};

/// Ports of one machine that have a way in.
const MAX_PORTS: usize = 64;
/// How long a connection to a machine's port may take.
const DIAL: Duration = Duration::from_secs(10);

/// Every way in.
pub(crate) struct Previews {
    /// The domain that ports have names under, if there is one.
    pub(crate) domain: Option<PreviewDomain>,
    ways: RwLock<HashMap<String, HashMap<u16, Arc<Way>>>>,
    /// Held while a way is made, so that none is made twice.
    pub(super) making: tokio::sync::Mutex<()>,
    /// Some grant has more to record.
    pub(super) any_ahead: Arc<AtomicBool>,
}

impl std::fmt::Debug for Previews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Previews")
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

impl Previews {
    /// Without a way.
    pub(crate) fn new(domain: Option<PreviewDomain>) -> Self {
        Self {
            domain,
            ways: RwLock::default(),
            making: tokio::sync::Mutex::default(),
            any_ahead: Arc::default(),
        }
    }

    pub(super) fn find(&self, machine: &str, port: u16) -> Option<Arc<Way>> {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        ways.get(machine)?.get(&port).cloned()
    }

    /// Where a name leads.
    pub(crate) fn route(&self, machine: &str, port: u16) -> Option<Arc<Route>> {
        self.find(machine, port).map(|way| way.route.clone())
    }

    pub(super) fn all(&self) -> Vec<Arc<Way>> {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        ways.values()
            .flat_map(|ports| ports.values().cloned())
            .collect()
    }

    fn of(&self, machine: &str) -> usize {
        let ways = self.ways.read().unwrap_or_else(PoisonError::into_inner);
        ways.get(machine).map_or(0, HashMap::len)
    }

    fn add(&self, way: Arc<Way>) {
        let mut ways = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        ways.entry(way.guard.machine.clone())
            .or_default()
            .insert(way.guard.port, way);
    }

    fn remove(&self, machine: &str, port: u16) -> Option<Arc<Way>> {
        let mut ways = self.ways.write().unwrap_or_else(PoisonError::into_inner);
        let ports = ways.get_mut(machine)?;
        let way = ports.remove(&port);
        if ports.is_empty() {
            ways.remove(machine);
        }
        way
    }
}

/// See the module.
pub(super) struct Way {
    pub(super) guard: Arc<PortGuard>,
    pub(super) route: Arc<Route>,
    door: Mutex<DoorState>,
}

/// The door of a way, where it has one.
#[derive(Default)]
struct DoorState {
    open: Option<Door>,
    /// The port that it has, or had and is to have again.
    port: Option<u16>,
}

impl Way {
    fn new(app: &AppState, machine: Arc<Handle>, port: u16) -> Self {
        let row = machine.row();
        let ended = CancellationToken::new();
        let host = row
            .mask_request_host
            .as_deref()
            .and_then(|mask| HeaderValue::try_from(masked(mask, port)).ok());
        let guard = Arc::new(PortGuard {
            machine: row.id.clone(),
            handle: machine.clone(),
            port,
            seal: app.seal.clone(),
            cookie: cookie_name(&row.id, port),
            secure: app
                .previews
                .domain
                .as_ref()
                .is_some_and(PreviewDomain::is_https),
            traffic_token: traffic_token(app, &row),
            host,
            patience: Duration::from_secs(app.config.preview_answer_secs.max(1)),
            is_published: AtomicBool::new(false),
            grants: RwLock::default(),
            ended,
        });
        let route = Route::new(format!("port {port} of the machine"));
        route.allow(Access::Guarded(guard.clone()));
        route.lead_to(Some(Upstream::new(InTime(Port {
            engine: app.engine.clone(),
            machine,
            port,
        }))));
        Self {
            guard,
            route: Arc::new(route),
            door: Mutex::default(),
        }
    }

    fn door(&self) -> MutexGuard<'_, DoorState> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its port on the host, if its door is open.
    pub(super) fn gateway_port(&self) -> Option<u16> {
        self.door().open.as_ref().map(Door::port)
    }

    /// As it is recorded.
    pub(super) fn row(&self) -> PreviewPortRow {
        PreviewPortRow {
            machine_id: self.guard.machine.clone(),
            port: self.guard.port,
            gateway_port: self.door().port,
            published: self.guard.is_published.load(Ordering::Relaxed),
        }
    }

    pub(super) fn add(&self, app: &AppState, row: &PreviewGrantRow) {
        let any_ahead = app.previews.any_ahead.clone();
        let grant = LiveGrant::new(row, &self.guard.ended, any_ahead);
        self.guard.add(Arc::new(grant));
    }

    /// Opens its door again at the port that it had, if it should have one and has none.
    pub(super) async fn open_again(&self, app: &AppState) {
        let port = {
            let door = self.door();
            match (&door.open, door.port) {
                (None, Some(port)) => port,
                _ => return,
            }
        };
        if let Err(error) = self.open(app, Some(port), true).await {
            tracing::warn!(machine = self.guard.machine, port, %error, "the door of a preview could not be opened again");
        }
    }

    /// Opens its door, if it has none: at the port that it had if that is free.
    async fn open(&self, app: &AppState, wanted: Option<u16>, exactly: bool) -> io::Result<()> {
        if app.previews.domain.is_some() || self.gateway_port().is_some() {
            return Ok(());
        }
        let config = &app.config;
        let range = match wanted {
            Some(port) if exactly => port..=port,
            _ => config.gateway_first_port..=config.gateway_last_port,
        };
        // Far from where services count from, and each machine from its own place.
        let hint = self
            .guard
            .machine
            .bytes()
            .fold(self.guard.port, |hint, byte| {
                hint.wrapping_mul(31).wrapping_add(u16::from(byte))
            });
        let doors = &app.doors;
        let door = Door::open(
            doors.address.ip(),
            wanted,
            range,
            hint,
            self.route.clone(),
            &doors.connections,
            &app.stopping,
        )
        .await?;
        let mut state = self.door();
        state.port = Some(door.port());
        state.open = Some(door);
        Ok(())
    }

    fn close(&self) {
        self.route.lead_to(None);
        self.guard.ended.cancel();
        self.door().open = None;
    }
}

/// The way to a port of a machine that runs or sleeps; made if there is none, and its door open.
pub(super) async fn ensure(app: &AppState, machine_id: &str, port: u16) -> Result<Arc<Way>> {
    let Some(handle) = app.machines.get(machine_id) else {
        let row = machine::get(app, machine_id).await?;
        return Err(Error::not_ready(machine_id, &row.state));
    };
    let row = handle.row();
    if !machine::lives(&row) {
        return Err(Error::not_ready(machine_id, &row.state));
    }
    let _one = app.previews.making.lock().await;
    let way = match app.previews.find(machine_id, port) {
        Some(way) => way,
        None if app.previews.of(machine_id) >= MAX_PORTS => {
            return Err(Error::new(
                Kind::Limit,
                code::CAPACITY_EXCEEDED,
                format!("{MAX_PORTS} ports of the machine are previewed, the most there can be"),
            )
            .with_action("use one of them, or another machine"));
        }
        None => {
            let way = Arc::new(Way::new(app, handle.clone(), port));
            keep(app, handle, way.clone());
            way
        }
    };
    let wanted = way.door().port;
    way.open(app, wanted, false).await.map_err(|error| {
        Error::new(
            Kind::Limit,
            code::CAPACITY_EXCEEDED,
            "no port of this host is free for the preview",
        )
        .with_action("delete machines that are no longer needed, or widen gateway_first_port to gateway_last_port")
        .with_context(error.to_string())
    })?;
    Ok(way)
}

/// Makes a way known until its machine ends.
fn keep(app: &AppState, machine: Arc<Handle>, way: Arc<Way>) {
    app.previews.add(way.clone());
    let app = app.clone();
    tokio::spawn(async move {
        let mut record = machine.watch();
        let gone = record.wait_for(|row| !machine::lives(row));
        tokio::select! {
            // Also when its owner is gone.
            _ = gone => {}
            () = app.stopping.cancelled() => return,
        }
        let (machine, port) = (&way.guard.machine, way.guard.port);
        app.previews.remove(machine, port);
        way.close();
        super::record_use(&app, std::slice::from_ref(&way)).await;
        let machine = machine.clone();
        app.store
            .write_later(move |tx| nullspace_store::preview::close_ports(tx, &machine));
    });
}

/// Opens the ways that are on record again, for machines that are still there.
///
/// # Errors
/// When the record cannot be read.
pub(crate) async fn restore(app: &AppState) -> Result<()> {
    use nullspace_store::preview as rows;
    let now = nullspace_api::time::now();
    let (ports, grants) = app
        .store
        .read(move |db| Ok::<_, Error>((rows::ports(db)?, rows::in_time(db, now)?)))
        .await?;
    let _one = app.previews.making.lock().await;
    for row in ports {
        let living = app
            .machines
            .get(&row.machine_id)
            .filter(|handle| machine::lives(&handle.row()));
        let Some(handle) = living else {
            app.store
                .write_later(move |tx| rows::close_ports(tx, &row.machine_id));
            continue;
        };
        let way = Arc::new(Way::new(app, handle.clone(), row.port));
        way.guard
            .is_published
            .store(row.published, Ordering::Relaxed);
        way.door().port = row.gateway_port;
        keep(app, handle, way.clone());
        way.open_again(app).await;
    }
    for row in &grants {
        if let Some(way) = app.previews.find(&row.machine_id, row.port) {
            way.add(app, row);
        }
    }
    Ok(())
}

/// Closes every way, at the end of the server. The record keeps them.
pub(crate) fn close_all(app: &AppState) {
    for way in app.previews.all() {
        app.previews.remove(&way.guard.machine, way.guard.port);
        way.close();
    }
}

/// A port of a machine whose connections come up soon or not at all.
struct InTime(Port);

#[async_trait]
impl Dial for InTime {
    async fn dial(&self) -> io::Result<BoxedIo> {
        // A machine that sleeps takes longer than a connection.
        self.0
            .machine
            .wake()
            .await
            .map_err(|e| io::Error::other(e.message))?;
        match tokio::time::timeout(DIAL, self.0.dial()).await {
            Ok(dialled) => dialled,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

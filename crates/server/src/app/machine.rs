//! Machines: creating, finding, ending them.
//!
//! ```text
//!  create ──▶ record `creating` ──▶ owner task ──▶ engine.create ──▶ record `running` ──▶ caller
//!  destroy, set_time_limit, set_egress ──▶ the owner's queue ──▶ record ──▶ engine ──▶ caller
//!  everyone else reads the owner's watch channel (live machines) or the record (the others)
//! ```
//! Called by `http::machine`, and by the agent side for the machines that back runs.

mod adopt;
pub(super) mod owner;
mod plan;
mod port;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use nullspace_api::{
    error::code,
    id,
    machine::{
        Isolation, ListMachinesQuery, MachineConfig, MachineInfo, MachineStatus, TimeoutAction,
    },
    page, time,
};
use nullspace_engine::{Checkpoint, Engine, MachineSpec, egress::Rules};
use nullspace_lifecycle::machine::{self as lifecycle, State};
use nullspace_protocol::GuestClient;
use nullspace_store::{
    Store, event as event_rows,
    idempotency::{self, Claim, Outcome},
    machine::{self as rows, MachineRow},
    pool as pool_rows, template as templates,
    volume::{self as volume_rows, AttachmentRow},
};
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{Instrument, Span, field::Empty};

use super::{
    App, AppState, Caller, egress, event,
    metrics::Meter,
    tenant::{self, Adding},
    volume::{self, mount::Change},
};
use crate::error::{Error, Result};

pub(super) use adopt::hello;
pub use adopt::{adopt, watch_exits};
pub use plan::{NewMachine, RESERVED, absolute, check_cwd, is_reserved, plan, plan_from_snapshot};
pub(super) use plan::{check_disk, check_envs, check_memory, check_vcpus};
pub(super) use port::Port;

/// How the record calls a machine that runs.
pub(crate) const RUNNING: &str = State::Running.as_str();
/// The same for one that is stopped with its memory kept.
pub(crate) const PAUSED: &str = State::Paused.as_str();
/// Changes that wait for who follows all machines.
const CHANGES: usize = 512;
/// How long a machine that is woken because it is used may take.
const WAKE: Duration = Duration::from_secs(120);
/// How long a guest may take to answer a new connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The live machines: those with an owner task.
#[derive(Debug, Default)]
pub struct Live {
    handles: RwLock<HashMap<String, Arc<Handle>>>,
    /// Places taken, by live machines and by those about to be.
    taken: Arc<Mutex<usize>>,
    /// How many machines callers wait for now.
    wanted: watch::Sender<usize>,
    changes: Changes,
}

/// Machines as they change, told to whoever follows all of them.
#[derive(Debug)]
struct Changes(broadcast::Sender<Arc<MachineRow>>);

impl Default for Changes {
    fn default() -> Self {
        Self(broadcast::Sender::new(CHANGES))
    }
}

/// A place among the machines that may be alive at once; given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Mutex<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

impl Live {
    /// The handle of a live machine.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Handle>> {
        self.handles
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Every live machine.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Handle>> {
        let handles = self.handles.read().unwrap_or_else(PoisonError::into_inner);
        handles.values().cloned().collect()
    }

    /// Every machine that is new, changes or ends, from now on. Who lags must look at [`Live::all`].
    pub(crate) fn changes(&self) -> broadcast::Receiver<Arc<MachineRow>> {
        self.changes.0.subscribe()
    }

    /// Tells of a change that is on record.
    fn changed(&self, row: &Arc<MachineRow>) {
        // Nobody may be following.
        let _ = self.changes.0.send(row.clone());
    }

    fn insert(&self, handle: Arc<Handle>) {
        let row = handle.row();
        self.handles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle.id.clone(), handle);
        self.changed(&row);
    }

    fn remove(&self, id: &str) {
        self.handles
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    /// Takes a place.
    ///
    /// # Errors
    /// `capacity_exceeded`.
    pub(super) fn reserve(&self, limit: usize) -> Result<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        room(*taken, limit)?;
        *taken += 1;
        Ok(Place(self.taken.clone()))
    }

    /// Answers once nobody has waited for a machine for so long.
    pub(super) async fn quiet(&self, moment: Duration) {
        let mut wanted = self.wanted.subscribe();
        // The sender is there for as long as this is.
        while wanted.wait_for(|count| *count == 0).await.is_ok() {
            if tokio::time::timeout(moment, wanted.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }

    /// Whether there is room for another machine now, without taking it.
    ///
    /// # Errors
    /// `capacity_exceeded`.
    pub fn room(&self, limit: usize) -> Result<()> {
        room(
            *self.taken.lock().unwrap_or_else(PoisonError::into_inner),
            limit,
        )
    }
}

fn room(taken: usize, limit: usize) -> Result<()> {
    if taken < limit {
        return Ok(());
    }
    Err(Error::new(
        crate::error::Kind::Limit,
        code::CAPACITY_EXCEEDED,
        format!("{limit} machines are alive, the most this server allows"),
    )
    .with_action("delete machines that are no longer needed, or raise max_machines")
    .with_retry_after(1))
}

/// What others hold of a live machine.
#[derive(Debug)]
pub struct Handle {
    /// Its id.
    pub id: String,
    row: watch::Receiver<Arc<MachineRow>>,
    inbox: mpsc::Sender<owner::Message>,
    guest: tokio::sync::Mutex<Option<GuestClient>>,
    pub(super) meter: Meter,
}

impl Handle {
    /// The machine as it is recorded now.
    #[must_use]
    pub fn row(&self) -> Arc<MachineRow> {
        self.row.borrow().clone()
    }

    /// Whether it is paused, and nothing but being asked to lets it go on.
    #[must_use]
    pub fn sleeps(&self) -> bool {
        let row = self.row.borrow();
        row.state == PAUSED && !row.auto_resume
    }

    /// Follows the record. The last value that is seen is an ended state.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<MachineRow>> {
        self.row.clone()
    }

    /// A connection to the guest, the one that is open if there is one.
    ///
    /// # Errors
    /// When the machine does not run, or its guest does not answer.
    pub async fn guest(&self, engine: &dyn Engine) -> Result<GuestClient> {
        self.wake().await?;
        self.connect(engine).await
    }

    /// Answers when the machine runs. One that is paused and may be woken by use goes on: whoever comes first asks for
    /// it, and all others wait for the same.
    ///
    /// # Errors
    /// When it does not run and does not go on by itself; those of resuming.
    pub async fn wake(&self) -> Result<()> {
        let sleeps = {
            let row = self.row.borrow();
            match State::parse(&row.state) {
                Some(State::Running) => return Ok(()),
                Some(State::Paused) => row.auto_resume,
                _ => false,
            }
        };
        let refusal = || {
            let row = self.row();
            let error = Error::not_ready(&self.id, &row.state);
            if row.state == PAUSED {
                error.with_action(
                    "resume it; a machine made with auto_resume is resumed when it is used",
                )
            } else {
                error
            }
        };
        if !sleeps {
            return Err(refusal());
        }
        let (reply, done) = oneshot::channel();
        let message = owner::Message::Resume {
            key_id: None,
            reply,
        };
        let woken = async {
            self.inbox.send(message).await.map_err(|_| refusal())?;
            done.await.map_err(|_| refusal())?
        };
        match tokio::time::timeout(WAKE, woken).await {
            Ok(woken) => woken.map(drop),
            Err(_) => Err(refusal().with_retry_after(5)),
        }
    }

    /// Like [`Handle::guest`], whatever the record says.
    async fn connect(&self, engine: &dyn Engine) -> Result<GuestClient> {
        let mut slot = self.guest.lock().await;
        if let Some(guest) = slot.as_ref().filter(|guest| !guest.is_closed()) {
            return Ok(guest.clone());
        }
        let connect = async {
            let io = engine.dial(&self.id).await?;
            Ok::<_, Error>(GuestClient::connect(io).await?)
        };
        let connected = tokio::time::timeout(CONNECT, connect).await;
        let guest = connected.map_err(|_| no_answer())??;
        *slot = Some(guest.clone());
        Ok(guest)
    }
}

fn no_answer() -> Error {
    Error::new(
        crate::error::Kind::Machine,
        code::EXEC_FAILED,
        "the machine does not answer",
    )
    .with_context("connecting to the guest took too long")
}

/// A machine that was asked for.
#[derive(Clone, Debug)]
pub enum Created {
    /// It is new and runs.
    New(Arc<MachineRow>),
    /// The same request made it before.
    Replayed(Arc<MachineRow>),
}

enum Recorded {
    New(i64),
    Replay(String),
    Conflict,
}

/// A machine that a pool hands out.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) id: String,
    pub(super) place: Place,
    pub(super) guest: GuestClient,
}

/// Somebody waits for a machine to be made, until this is dropped.
struct Wanting(watch::Sender<usize>);

impl Wanting {
    fn new(live: &Live) -> Self {
        live.wanted.send_modify(|count| *count += 1);
        Self(live.wanted.clone())
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Makes a machine and answers when it runs.
///
/// When the caller goes away the machine is made all the same: with the same idempotency key it is
/// found again.
///
/// # Errors
/// `capacity_exceeded`, `idempotency_conflict`, `transition_in_progress`, and those of the engine.
pub async fn create(app: &AppState, new: NewMachine, claim: Option<Claim>) -> Result<Created> {
    counted(app, make(app, new, claim)).await
}

/// Makes a machine of one that a pool has ready: it gets what is its own, and runs. Otherwise as [`create`].
///
/// # Errors
/// `warm_pool_unavailable` when the pool does not have it any more; those of [`create`].
pub(super) async fn check_out(
    app: &AppState,
    new: NewMachine,
    pooled: Pooled,
    claim: Option<Claim>,
) -> Result<Created> {
    let work = async {
        let _wanting = Wanting::new(&app.machines);
        let user = new.runtime.user.clone();
        let Pooled { id, place, guest } = pooled;
        let (row, spec) = new.into_record(app, id, time::now())?;
        // It is recorded once, as what it is a moment later: that is half of what is waited for. See `adopt_handed_out`.
        let running = owner::stepped(&row, &built()?, time::now());
        let beginning = owner::Beginning::Pooled {
            guest,
            user,
            running: Box::new(running),
        };
        build(app, row, spec, beginning, claim, place).await
    };
    counted(app, work).await
}

/// The step of a machine that was made.
fn built() -> Result<lifecycle::Step> {
    lifecycle::step(State::Creating, lifecycle::Input::Built)
        .map_err(|refused| Error::internal(format!("{refused:?}")))
}

async fn counted(app: &AppState, work: impl Future<Output = Result<Created>>) -> Result<Created> {
    let begun = Instant::now();
    let span = tracing::debug_span!("machine.create", machine = Empty);
    let created = work.instrument(span).await;
    match &created {
        Ok(Created::New(_)) => app.counts.created.observe(begun.elapsed()),
        Err(error) if error.kind.is_ours() => {
            app.counts.create_failures.inc();
        }
        _ => {}
    }
    created
}

async fn make(app: &AppState, new: NewMachine, claim: Option<Claim>) -> Result<Created> {
    let _wanting = Wanting::new(&app.machines);
    let place = app.machines.reserve(app.config.max_machines)?;
    let id = id::new(id::MACHINE);
    let runtime = new.runtime.clone();
    let (row, spec) = new.into_record(app, id, time::now())?;
    build(app, row, spec, owner::Beginning::New(runtime), claim, place).await
}

/// What the engine is told of a machine that a pool makes.
///
/// # Errors
/// `not_implemented` when it asks for an engine that is not here.
pub(super) fn pooled_spec(app: &App, new: NewMachine, id: &str) -> Result<Box<MachineSpec>> {
    let (_, spec) = new.into_record(app, id.to_owned(), time::now())?;
    Ok(spec)
}

/// Makes a machine of a state that was kept; otherwise as [`create`].
pub(super) async fn create_from(
    app: &AppState,
    mut row: MachineRow,
    mut spec: MachineSpec,
    from: PathBuf,
    user: Option<String>,
    claim: Option<Claim>,
) -> Result<Arc<MachineRow>> {
    // Whoever wrote it reads it.
    row.isolation = Checkpoint::read(&from).map(|made| made.engine);
    // Volumes come and go; they have records of their own.
    row.spec = plan::recorded(&spec);
    let volumes = row.volumes.iter();
    spec.binds
        .extend(volumes.map(|volume| volume::mount::bind(app, volume)));
    let place = app.machines.reserve(app.config.max_machines)?;
    let span = tracing::debug_span!("machine.create", machine = Empty);
    let made = build(
        app,
        row,
        Box::new(spec),
        owner::Beginning::Kept { from, user },
        claim,
        place,
    )
    .instrument(span)
    .await?;
    match made {
        Created::New(row) | Created::Replayed(row) => Ok(row),
    }
}

/// The record of a machine that is nothing yet.
pub(super) fn blank(
    id: &str,
    tenant_id: &str,
    timeout_ms: Option<u64>,
    key_id: Option<String>,
) -> MachineRow {
    plan::blank(
        id.to_owned(),
        tenant_id.to_owned(),
        timeout_ms,
        key_id,
        time::now(),
    )
}

async fn build(
    app: &AppState,
    mut row: MachineRow,
    spec: Box<MachineSpec>,
    mut beginning: owner::Beginning,
    claim: Option<Claim>,
    place: Place,
) -> Result<Created> {
    Span::current().record("machine", &*row.id);
    let user = beginning.user().cloned();
    let (recording, is_pooled) = match &beginning {
        owner::Beginning::Pooled { running, .. } => ((**running).clone(), true),
        _ => (row.clone(), false),
    };
    let recorded = app
        .store
        .write(move |tx| {
            if let Some(claim) = &claim {
                let outcome =
                    idempotency::claim(tx, claim, &recording.id, recording.created_at, salted)?;
                match outcome {
                    Outcome::New => {}
                    Outcome::Replay(id) => return Ok(Recorded::Replay(id)),
                    Outcome::Conflict => return Ok(Recorded::Conflict),
                }
            }
            if is_pooled && !pool_rows::claim(tx, &recording.id, recording.created_at)? {
                return Err(taken(&recording.id));
            }
            let seq = rows::insert(tx, &recording)?;
            if let Some(user) = &user {
                templates::set_machine_user(tx, &recording.id, user)?;
            }
            for mount in &recording.volumes {
                if !volume_rows::attach(tx, mount)? {
                    return Err(Error::not_found(
                        code::NOT_FOUND,
                        format!("no volume {}", mount.volume_id),
                    ));
                }
            }
            tenant::within(tx, &recording.tenant_id, Adding::Machine)?;
            let event = event::record(
                &recording,
                &lifecycle::REQUESTED,
                recording.key_id.as_deref(),
                recording.created_at,
            );
            event_rows::append(tx, &event)?;
            Ok(Recorded::New(seq))
        })
        .instrument(tracing::debug_span!("machine.record"))
        .await?;
    match recorded {
        Recorded::New(seq) => {
            row.seq = seq;
            if let owner::Beginning::Pooled { running, .. } = &mut beginning {
                running.seq = seq;
            }
            app.templates.set_user(&row.id, beginning.user().cloned());
        }
        Recorded::Replay(id) => return replay(app, &id).await.map(Created::Replayed),
        Recorded::Conflict => return Err(key_used()),
    }
    let (reply, made) = oneshot::channel();
    let start = owner::Start::Build {
        spec,
        beginning,
        reply,
        span: Span::current(),
    };
    owner::spawn(app, row, Some(place), start);
    made.await
        .map_err(|_| Error::internal("the owner of a new machine is gone"))?
        .map(Created::New)
}

fn taken(id: &str) -> Error {
    Error::new(
        crate::error::Kind::Unavailable,
        code::WARM_POOL_UNAVAILABLE,
        format!("machine {id} is not the pool's any more"),
    )
}

/// The refusal of a key that belongs to another request.
pub(super) fn key_used() -> Error {
    Error::conflict(
        code::IDEMPOTENCY_CONFLICT,
        "this idempotency key was used with another body",
    )
    .with_action("use a new key for a new request")
}

/// The refusal of a request that is being done.
pub(super) fn under_way() -> Error {
    Error::conflict(
        code::TRANSITION_IN_PROGRESS,
        "the first request with this idempotency key is still under way",
    )
    .with_retry_after(1)
}

pub(super) fn salted(salt: &[u8], body: &[u8]) -> Vec<u8> {
    Sha256::new()
        .chain_update(salt)
        .chain_update(body)
        .finalize()
        .to_vec()
}

/// What an earlier request with the same key made.
pub(super) async fn replay(app: &App, id: &str) -> Result<Arc<MachineRow>> {
    match get(app, id).await {
        Ok(row) if row.state != State::Creating.as_str() => Ok(row),
        // A fork has its key before it has a record.
        Ok(_) => Err(under_way()),
        Err(error) if error.code == code::MACHINE_NOT_FOUND => Err(under_way()),
        Err(error) => Err(error),
    }
}

/// One machine, live or ended (as long as ended ones are remembered).
///
/// # Errors
/// `machine_not_found`.
pub async fn get(app: &App, id: &str) -> Result<Arc<MachineRow>> {
    match app.machines.get(id) {
        Some(handle) => Ok(handle.row()),
        None => stored(&app.store, id).await.map(Arc::new),
    }
}

async fn stored(store: &Store, id: &str) -> Result<MachineRow> {
    let wanted = id.to_owned();
    store
        .read(move |db| rows::get(db, &wanted))
        .await?
        .ok_or_else(|| Error::no_machine(id))
}

/// Whether a machine runs, or is paused: what leads to it stays.
pub(crate) fn lives(row: &MachineRow) -> bool {
    row.state == RUNNING || row.state == PAUSED
}

/// A connection to a running machine's guest.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`, `exec_failed`.
pub async fn guest(app: &App, id: &str) -> Result<GuestClient> {
    match app.machines.get(id) {
        Some(handle) => handle.guest(&*app.engine).await,
        None => {
            let row = stored(&app.store, id).await?;
            Err(Error::not_ready(id, &row.state))
        }
    }
}

/// A connection to a running machine's guest for one user alone: what is not read on it holds up nobody else.
///
/// # Errors
/// As [`guest`].
pub(crate) async fn own_guest(app: &App, id: &str) -> Result<GuestClient> {
    // Says what is wrong with the machine, if anything is.
    guest(app, id).await?;
    let connect = async {
        let io = app.engine.dial(id).await?;
        Ok::<_, Error>(GuestClient::connect(io).await?)
    };
    match tokio::time::timeout(CONNECT, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(no_answer()),
    }
}

/// A page of machines, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The machines.
    pub rows: Vec<MachineRow>,
    /// For the next page.
    pub next_token: Option<String>,
}

/// Machines of the caller's by state, template and metadata.
///
/// # Errors
/// `invalid_request` for a query that means nothing.
pub async fn list(app: &App, caller: &Caller, query: &ListMachinesQuery) -> Result<Page> {
    let limit = query.limit.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    let words = |text: &str| -> Vec<String> {
        text.split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mut states = words(query.state.as_deref().unwrap_or_default());
    if let Some(unknown) = states.iter().find(|s| MachineStatus::parse(s).is_none()) {
        return Err(Error::invalid(format!("state: unknown state {unknown:?}")));
    }
    if states.is_empty() {
        states = words("creating,running,paused");
    }
    let metadata = match query.metadata.as_deref() {
        None | Some("") => serde_json::Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => return Err(Error::invalid("metadata: must be a JSON object")),
        },
    };
    let before = match query.next_token.as_deref() {
        None | Some("") => None,
        Some(token) => Some(
            token
                .strip_prefix('m')
                .and_then(|digits| i64::from_str_radix(digits, 16).ok())
                .ok_or_else(|| Error::invalid("next_token: not a token of this server"))?,
        ),
    };
    let filter = rows::Filter {
        tenant_id: caller.tenant_id(),
        states,
        template: query.template.clone().filter(|t| !t.is_empty()),
        metadata,
        before,
        limit: limit + 1,
    };
    let mut rows = app.store.read(move |db| rows::list(db, &filter)).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_token = rows
        .last()
        .filter(|_| more)
        .map(|last| format!("m{:x}", last.seq));
    Ok(Page { rows, next_token })
}

/// Ends a machine. Ended ones stay as they are; ending twice is fine.
///
/// `key_id` is who asked, `None` for the platform itself.
///
/// # Errors
/// `machine_not_found`; when the record cannot be written, nothing happened.
pub async fn destroy(app: &App, id: &str, key_id: Option<&str>) -> Result<Arc<MachineRow>> {
    if let Some(handle) = app.machines.get(id) {
        let (reply, done) = oneshot::channel();
        let message = owner::Message::Destroy {
            key_id: key_id.map(str::to_owned),
            reply,
        };
        // A machine that ends by itself at this moment no longer takes messages.
        if handle.inbox.send(message).await.is_ok()
            && let Ok(result) = done.await
        {
            return result;
        }
    }
    let mut row = stored(&app.store, id).await?;
    let state = State::parse(&row.state).unwrap_or(State::Error);
    if !state.has_ended() {
        return Err(Error::conflict(
            code::TRANSITION_IN_PROGRESS,
            format!("machine {id} is between two states"),
        )
        .with_retry_after(1));
    }
    let Ok(step) = lifecycle::step(state, lifecycle::Input::Destroy) else {
        return Ok(Arc::new(row));
    };
    if step.state != state {
        row.state = step.state.as_str().to_owned();
        owner::record_step(&app.store, &row, &step, key_id, None, owner::Change::None).await?;
        // Nothing of it was left before.
        owner::ended(app, &row);
    }
    Ok(Arc::new(row))
}

/// Asks the owner of a live machine.
pub(super) async fn ask<T>(
    app: &App,
    id: &str,
    message: impl FnOnce(oneshot::Sender<Result<T>>) -> owner::Message,
) -> Result<T> {
    if let Some(handle) = app.machines.get(id) {
        let (reply, done) = oneshot::channel();
        if handle.inbox.send(message(reply)).await.is_ok()
            && let Ok(result) = done.await
        {
            return result;
        }
    }
    let row = stored(&app.store, id).await?;
    Err(Error::not_ready(id, &row.state))
}

/// Ends a machine and makes what was written in it the layer `target`.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`; when the layer could not be kept the machine is gone all the same.
pub(super) async fn keep(app: &App, id: &str, target: PathBuf) -> Result<()> {
    let Some(handle) = app.machines.get(id) else {
        return Err(Error::no_machine(id));
    };
    let (reply, done) = oneshot::channel();
    let message = owner::Message::Keep { target, reply };
    let gone = || Error::not_ready(id, State::Destroyed.as_str());
    handle.inbox.send(message).await.map_err(|_| gone())?;
    done.await.map_err(|_| gone())?.map(drop)
}

/// Sets the time limit, counted from now; `None` takes it away.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`.
pub async fn set_time_limit(
    app: &App,
    id: &str,
    timeout_ms: Option<u64>,
    action: Option<TimeoutAction>,
    key_id: Option<&str>,
) -> Result<Arc<MachineRow>> {
    if let Some(ms) = timeout_ms {
        plan::check_timeout(app, ms)?;
    }
    if let Some(action) = action {
        let row = get(app, id).await?;
        let isolation = row.isolation.as_deref().and_then(Isolation::parse);
        plan::check_action(app, isolation, action)?;
    }
    let key_id = key_id.map(str::to_owned);
    ask(app, id, |reply| owner::Message::SetTimeLimit {
        timeout_ms,
        action,
        key_id,
        reply,
    })
    .await
}

/// Replaces the rules for traffic out of a running machine.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`, and those of the engine: then the machine reaches nothing, and the record
/// has the new rules.
pub(super) async fn set_egress(
    app: &App,
    id: &str,
    rules: Rules,
    key_id: Option<&str>,
) -> Result<Arc<MachineRow>> {
    let key_id = key_id.map(str::to_owned);
    ask(app, id, |reply| owner::Message::SetEgress {
        rules: Box::new(rules),
        key_id,
        reply,
    })
    .await
}

/// Changes what volumes a running machine has.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`, `not_found`, and those of the engine.
pub(crate) async fn change_volume(app: &App, id: &str, change: Change) -> Result<AttachmentRow> {
    if let Some(handle) = app.machines.get(id) {
        let (reply, done) = oneshot::channel();
        let message = owner::Message::Volume { change, reply };
        if handle.inbox.send(message).await.is_ok()
            && let Ok(result) = done.await
        {
            return result;
        }
    }
    let row = stored(&app.store, id).await?;
    Err(Error::not_ready(id, &row.state))
}

/// Removes what is older than its retention from the record. Called now and then.
///
/// # Errors
/// When the record cannot be written.
pub async fn forget_old(app: &App) -> Result<usize> {
    let now = time::now();
    let before = |secs: u64| now - i64::try_from(secs).unwrap_or(0).saturating_mul(1_000_000);
    let (ended, keys) = (
        before(app.config.ended_retention_secs),
        before(app.config.idempotency_retention_secs),
    );
    app.store
        .write(move |tx| {
            idempotency::forget_before(tx, keys)?;
            Ok(rows::forget_ended_before(tx, ended)?)
        })
        .await
}

/// A recorded machine as the wire shows it.
#[must_use]
pub fn info(row: &MachineRow) -> MachineInfo {
    let timeout_at = row.timeout_at.map(time::rfc3339);
    MachineInfo {
        id: row.id.clone(),
        status: MachineStatus::parse(&row.state).unwrap_or(MachineStatus::Error),
        isolation: row.isolation.clone(),
        template: row.template.clone(),
        config: MachineConfig {
            vcpus: row.vcpus,
            memory_mb: row.memory_mb,
            disk_mb: row.disk_mb,
        },
        metadata: metadata(row),
        created_at: time::rfc3339(row.created_at),
        started_at: row.started_at.map(time::rfc3339),
        ended_at: row.ended_at.map(time::rfc3339),
        timeout_ms: row.timeout_ms,
        remaining_ms: remaining_ms(row),
        expires_at: timeout_at.clone(),
        timeout_at,
        timeout_action: timeout_action(row),
        auto_resume: row.auto_resume,
        internet_access: row.internet_access,
        egress: Some(egress::shown(row)),
        cwd: Some(row.cwd.clone()),
        failure_reason: row.failure_reason.clone(),
        snapshot_id: row.snapshot_id.clone(),
        traffic_access_token: None,
        warm_pool_checkout: None,
    }
}

/// The caller's words, and where clients look for its volumes.
fn metadata(row: &MachineRow) -> serde_json::Map<String, serde_json::Value> {
    let mut metadata: serde_json::Map<_, _> =
        serde_json::from_str(&row.metadata).unwrap_or_default();
    if !row.volumes.is_empty() {
        let volumes: Vec<_> = row.volumes.iter().map(volume::attachment).collect();
        let volumes = serde_json::to_value(volumes).unwrap_or_default();
        metadata.insert("volume_attachments".to_owned(), volumes);
    }
    metadata
}

/// What is left of a running machine's time.
#[must_use]
pub fn remaining_ms(row: &MachineRow) -> Option<u64> {
    let at = row
        .timeout_at
        .filter(|_| row.state == State::Running.as_str())?;
    Some(u64::try_from((at - time::now()) / 1000).unwrap_or(0))
}

/// What happens when it is over.
#[must_use]
pub fn timeout_action(row: &MachineRow) -> TimeoutAction {
    if row.timeout_action == "hibernate" {
        TimeoutAction::Hibernate
    } else {
        TimeoutAction::Destroy
    }
}

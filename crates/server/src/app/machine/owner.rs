//! The owner of one live machine: the only task that changes its state.
//!
//! It builds the machine or takes it over, then waits for messages and for the time limit. Every change
//! is decided by `nullspace_lifecycle`, recorded in one transaction, published, and only then done; but a machine
//! is ended while that is being recorded. If the server dies in between, the next one finds a record without a
//! machine or a machine without a future, and makes both agree.

mod clock;
mod state;
mod volumes;

use std::{path::PathBuf, sync::Arc};

use nullspace_api::{error::code, machine::TimeoutAction, time};
use nullspace_engine::{EngineError, MachineSpec, egress::Rules};
use nullspace_lifecycle::machine::{self as lifecycle, Action, Input, Loss, State, Step};
use nullspace_protocol::{DefaultsRequest, ErrorKind, GuestClient};
use nullspace_store::{
    Store, StoreError, event as event_rows, idempotency,
    machine::{self as rows, MachineRow},
    pool as pool_rows,
    snapshot::{self as snapshot_rows, SnapshotRow},
    volume::AttachmentRow,
};
use nullspace_templates::Runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, Span};

use self::clock::Clock;
use super::{Handle, Place};
use crate::{
    app::{App, AppState, egress, event, metrics::Meter, snapshot, template, volume::mount},
    error::{Error, Kind, Result},
};

/// Messages that may wait for an owner.
const INBOX: usize = 4;
/// Pause before something that must happen is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// Before what a guest says of a directory that it could not make.
const CWD: &str = "cwd: ";

type Reply = oneshot::Sender<Result<Arc<MachineRow>>>;

/// What an owner is asked.
#[derive(Debug)]
pub(in crate::app) enum Message {
    /// End the machine; answered when nothing of it runs.
    Destroy {
        /// Who asked.
        key_id: Option<String>,
        /// The way back.
        reply: Reply,
    },
    /// End it, and make what was written in it a layer.
    Keep {
        /// The layer's directory.
        target: PathBuf,
        /// The way back.
        reply: Reply,
    },
    /// Count a new time limit from now.
    SetTimeLimit {
        /// `None` takes it away.
        timeout_ms: Option<u64>,
        /// What happens then; unchanged when `None`.
        action: Option<TimeoutAction>,
        /// Who asked.
        key_id: Option<String>,
        /// The way back.
        reply: Reply,
    },
    /// Replace what it may reach.
    SetEgress {
        /// The rules.
        rules: Box<Rules>,
        /// Who asked.
        key_id: Option<String>,
        /// The way back.
        reply: Reply,
    },
    /// Stop it and keep its memory.
    Hibernate {
        /// Who asked.
        by: snapshot::By,
        /// The way back.
        reply: oneshot::Sender<Result<SnapshotRow>>,
    },
    /// Let it go on, if it is paused.
    Resume {
        /// Who asked; `None` when it is woken because it is used.
        key_id: Option<String>,
        /// The way back.
        reply: Reply,
    },
    /// Keep its state and let it go on.
    Checkpoint {
        /// What is asked for.
        wanted: Box<snapshot::Wanted>,
        /// The way back.
        reply: oneshot::Sender<Result<snapshot::Kept>>,
    },
    /// Change what volumes it has.
    Volume {
        /// How.
        change: mount::Change,
        /// The way back.
        reply: oneshot::Sender<Result<AttachmentRow>>,
    },
    /// The engine says that the machine ended.
    Ended(Loss, String),
}

/// What a machine begins with.
pub(super) enum Beginning {
    /// It is new, and does this before it runs.
    New(Runtime),
    /// It waited in a pool, and gets what is its own before it runs.
    Pooled {
        /// The way to its guest.
        guest: GuestClient,
        /// Who runs commands, unless they say so.
        user: Option<String>,
        /// What is recorded of it already.
        running: Box<MachineRow>,
    },
    /// It goes on from a state.
    Kept {
        /// Where that is.
        from: PathBuf,
        /// Who runs commands, unless they say so.
        user: Option<String>,
    },
}

impl Beginning {
    /// Who runs commands in it, unless they say so.
    pub(super) fn user(&self) -> Option<&String> {
        match self {
            Self::New(runtime) => runtime.user.as_ref(),
            Self::Pooled { user, .. } | Self::Kept { user, .. } => user.as_ref(),
        }
    }
}

/// How an owner begins.
pub(super) enum Start {
    /// The machine is recorded as `creating` and nothing else.
    Build {
        /// For the engine.
        spec: Box<MachineSpec>,
        /// What it begins with.
        beginning: Beginning,
        /// Answered when it runs.
        reply: Reply,
        /// What the making is a part of.
        span: Span,
    },
    /// The machine is recorded as running, and is alive; or as paused.
    Adopt,
}

/// Starts an owner and makes its machine known.
pub(super) fn spawn(app: &AppState, row: MachineRow, place: Option<Place>, start: Start) {
    let (publish, watched) = watch::channel(Arc::new(row.clone()));
    let (inbox, messages) = mpsc::channel(INBOX);
    let handle = Arc::new(Handle {
        id: row.id.clone(),
        row: watched,
        inbox,
        guest: tokio::sync::Mutex::default(),
        meter: Meter::default(),
    });
    app.machines.insert(handle.clone());
    let owner = Owner {
        app: app.clone(),
        row,
        publish,
        messages,
        handle,
        clock: Clock::default(),
        is_ending: false,
        is_gone: false,
        keep: None,
        place,
    };
    tokio::spawn(owner.run(start));
}

/// What a step changes in the record of what is kept of a machine.
#[derive(Clone, Debug, Default)]
pub(super) enum Change {
    /// Nothing.
    #[default]
    None,
    /// It is kept, or being kept, as this.
    Put(Box<SnapshotRow>),
    /// It is kept no more.
    Forget(String),
    /// The step is about this one, which stays as it is.
    About(String),
}

impl Change {
    fn snapshot_id(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Put(row) => Some(&row.id),
            Self::Forget(id) | Self::About(id) => Some(id),
        }
    }
}

/// Keeps a step: the row as it is now, the step's events and what it does to a snapshot, in one transaction.
pub(super) async fn record_step(
    store: &Store,
    row: &MachineRow,
    step: &Step,
    key_id: Option<&str>,
    message: Option<String>,
    change: Change,
) -> Result<()> {
    let now = time::now();
    let events: Vec<_> = step
        .events
        .iter()
        .map(|e| {
            let mut record = event::record(row, e, key_id, now);
            record.snapshot_id = change.snapshot_id().map(str::to_owned);
            if e.status == "failed" {
                record.error_code = e.reason.map(str::to_owned);
                record.error_message = message.clone();
            }
            record
        })
        .collect();
    let row = row.clone();
    // A machine that never ran frees its idempotency key, whatever came in between: asking again makes another one.
    let never_ran = step.state == State::Error && row.started_at.is_none();
    store
        .write(move |tx| {
            rows::update(tx, &row)?;
            for event in &events {
                event_rows::append(tx, event)?;
            }
            if never_ran {
                idempotency::release(tx, &row.id)?;
            }
            match &change {
                Change::Put(snapshot) => snapshot_rows::put(tx, snapshot)?,
                Change::Forget(id) => snapshot_rows::delete(tx, id)?,
                Change::None | Change::About(_) => {}
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}

/// The row after a step.
pub(super) fn stepped(row: &MachineRow, step: &Step, now: i64) -> MachineRow {
    let mut row = row.clone();
    row.state = step.state.as_str().to_owned();
    if let Some(loss) = step.loss {
        row.failure_reason = Some(loss.as_str().to_owned());
    }
    if step.state.has_ended() {
        row.ended_at.get_or_insert(now);
    }
    if step.actions.contains(&Action::StartClock) {
        row.started_at = Some(now);
        row.timeout_at = row.timeout_ms.map(|ms| after(now, ms));
    }
    if step.actions.contains(&Action::RestartClock) {
        row.timeout_at = row.timeout_ms.map(|ms| after(now, ms));
    }
    if step.actions.contains(&Action::StopClock) {
        row.timeout_at = None;
    }
    if step.state != State::Paused {
        row.snapshot_id = None;
    }
    mount::follow(&mut row);
    row
}

fn after(now: i64, ms: u64) -> i64 {
    now.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000))
}

struct Owner {
    app: AppState,
    row: MachineRow,
    publish: watch::Sender<Arc<MachineRow>>,
    messages: mpsc::Receiver<Message>,
    handle: Arc<Handle>,
    clock: Clock,
    /// The engine was told to end it.
    is_ending: bool,
    /// The engine has ended it. Said in the log once the one who asked has the answer.
    is_gone: bool,
    /// Where what was written in it is kept, and why that failed.
    keep: Option<(PathBuf, Option<EngineError>)>,
    /// Given back while nothing of it is alive.
    place: Option<Place>,
}

impl Owner {
    async fn run(mut self, start: Start) {
        match start {
            Start::Build {
                spec,
                beginning,
                reply,
                span,
            } => {
                self.build(*spec, beginning, reply).instrument(span).await;
            }
            Start::Adopt if self.state() == State::Running => {
                self.clock = Clock::set(&self.row);
                self.replay_egress().await;
                self.replay_volumes().await;
            }
            Start::Adopt => {}
        }
        while !self.state().has_ended() {
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(message) => self.handle_message(message).await,
                    None => return,
                },
                what = self.clock.next() => self.time(what).await,
            }
        }
        // Nobody finds the machine here any more; who waits in the queue is sent to the record.
        self.app.machines.remove(&self.row.id);
        if self.is_gone {
            ended(&self.app, &self.row);
        }
        self.messages.close();
        while let Some(message) = self.messages.recv().await {
            // Whoever asked looks at the record.
            drop(message);
        }
    }

    fn state(&self) -> State {
        State::parse(&self.row.state).unwrap_or(State::Error)
    }

    async fn build(&mut self, spec: MachineSpec, beginning: Beginning, reply: Reply) {
        let engine = tracing::debug_span!("engine.create", engine = self.app.engine.name());
        let mut recorded = None;
        let (built, runtime) = match beginning {
            Beginning::New(runtime) => {
                let built = self.app.engine.create(&spec).instrument(engine).await;
                (built, runtime)
            }
            Beginning::Pooled { guest, running, .. } => {
                recorded = Some(running);
                // What its template wants done at the beginning was done in the pool.
                (self.make_its_own(&spec, guest).await, Runtime::default())
            }
            Beginning::Kept { from, .. } => {
                let restored = self.app.engine.restore(&spec, &from);
                // What it does at its beginning was done before it was kept.
                (restored.instrument(engine).await, Runtime::default())
            }
        };
        // It holds the values of environment variables: gone as soon as it was used.
        drop(spec);
        let starts = runtime.start_cmd.is_some() || runtime.readiness.is_some();
        let has_volumes = !self.row.volumes.is_empty();
        let result = match built {
            Ok(()) if starts && let Err(error) = self.get_ready(&runtime).await => {
                self.must(Input::BuildFailed, Some(error.message.clone()))
                    .await;
                Err(error)
            }
            Ok(()) if let Some(row) = recorded => {
                self.row = *row;
                self.clock = Clock::set(&self.row);
                let published = Arc::new(self.row.clone());
                self.publish.send_replace(published.clone());
                self.app.machines.changed(&published);
                handed_out(&self.app, &self.row);
                Ok(())
            }
            Ok(()) => {
                let app = self.app.clone();
                let handle = self.handle.clone();
                let (recorded, guest) = tokio::join!(
                    self.step(Input::Built, None, None)
                        .instrument(tracing::debug_span!("machine.record")),
                    handle
                        .connect(&*app.engine)
                        .instrument(tracing::debug_span!("guest.connect"))
                );
                if let Err(error) = guest {
                    tracing::warn!(machine = self.row.id, context = ?error.context, "the guest of a new machine does not answer");
                }
                if recorded.is_err() {
                    // Not on record as running: then it does not run.
                    self.must(
                        Input::BuildFailed,
                        Some("the record could not be written".into()),
                    )
                    .await;
                }
                recorded
            }
            Err(error) => {
                tracing::warn!(machine = self.row.id, %error, "the engine could not build a machine");
                self.must(Input::BuildFailed, Some(error.to_string())).await;
                match error {
                    EngineError::InvalidSpec(why) if why.starts_with(CWD) => {
                        Err(Error::invalid(why))
                    }
                    EngineError::InvalidSpec(_) if has_volumes => {
                        Err(mount::refusal(error, &self.row.id))
                    }
                    error => Err(error.into()),
                }
            }
        };
        let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
    }

    /// Gives a machine of a pool what it may reach, its volumes, and last its environment.
    async fn make_its_own(
        &mut self,
        spec: &MachineSpec,
        guest: GuestClient,
    ) -> Result<(), EngineError> {
        *self.handle.guest.lock().await = Some(guest.clone());
        let engine = &self.app.engine;
        if spec.egress != Rules::default() {
            engine.set_egress(&spec.id, &spec.egress).await?;
        }
        for volume in &self.row.volumes {
            engine
                .attach(&spec.id, &mount::bind(&self.app, volume))
                .await?;
        }
        let defaults = DefaultsRequest {
            env: spec.env.clone(),
            cwd: Some(spec.cwd.clone()),
        };
        let told = tokio::time::timeout(super::CONNECT, guest.set_defaults(&defaults)).await;
        let failed = |reason: String| EngineError::Step {
            step: "give a machine of a pool its environment".into(),
            reason,
        };
        let told = told.map_err(|_| failed("the guest does not answer".into()))?;
        told.map_err(|error| match error.kind() {
            Some(ErrorKind::NoSpace) => EngineError::NoSpace(error.to_string()),
            None | Some(ErrorKind::Exhausted) => failed(error.to_string()),
            Some(_) => EngineError::InvalidSpec(format!("{CWD}{error}")),
        })
    }

    /// Has the machine do what its template wants done before it runs. Whoever ends it meanwhile need not wait for that.
    async fn get_ready(&mut self, runtime: &Runtime) -> Result<()> {
        let (app, handle) = (self.app.clone(), self.handle.clone());
        let ready = async {
            let guest = handle.connect(&*app.engine).await?;
            let up = template::ready::up(&guest, runtime).await;
            up.map_err(|why| {
                Error::new(
                    Kind::Machine,
                    code::MACHINE_NOT_READY,
                    format!("a machine of template {}: {why}", self.row.template),
                )
                .with_action("see that the template's start command gets ready in time")
            })
        };
        tokio::select! {
            ready = ready => ready,
            message = self.messages.recv() => {
                let what = match &message {
                    Some(Message::Ended(..)) => "it ended",
                    _ => "it was deleted",
                };
                let error = format!("machine {} did not get ready: {what}", self.row.id);
                Err(Error::conflict(code::MACHINE_NOT_READY, error))
            }
        }
    }

    async fn handle_message(&mut self, message: Message) {
        match message {
            Message::Destroy { key_id, reply } => {
                let result = self.step(Input::Destroy, key_id.as_deref(), None).await;
                let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
                if self.is_ending && !self.state().has_ended() {
                    // The caller knows that it is not on record yet.
                    self.must(Input::Destroy, None).await;
                }
            }
            Message::Keep { target, reply } => {
                self.keep = Some((target, None));
                let mut result = self.step(Input::Destroy, None, None).await;
                if self.is_ending && !self.state().has_ended() {
                    self.must(Input::Destroy, None).await;
                }
                if let Some((_, Some(error))) = self.keep.take() {
                    result = Err(error.into());
                }
                let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
            }
            Message::SetTimeLimit {
                timeout_ms,
                action,
                key_id,
                reply,
            } => {
                let before = self.row.clone();
                self.row.timeout_ms = timeout_ms;
                self.row.timeout_at = timeout_ms
                    .filter(|_| self.state() == State::Running)
                    .map(|ms| after(time::now(), ms));
                if let Some(action) = action {
                    super::plan::set_action(&mut self.row, action);
                }
                let result = self
                    .step(Input::SetTimeLimit, key_id.as_deref(), None)
                    .await;
                if result.is_err() {
                    self.row = before;
                }
                let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
            }
            Message::Hibernate { by, reply } => {
                let kept = self.hibernate(Input::Hibernate, by).await;
                let _ = reply.send(kept);
            }
            Message::Resume { key_id, reply } => {
                let result = self.resume(key_id.as_deref()).await;
                let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
            }
            Message::Checkpoint { wanted, reply } => {
                let _ = reply.send(self.checkpoint(*wanted).await);
            }
            // What was kept on disk does not end.
            Message::Ended(..) if self.state() == State::Paused && self.place.is_none() => {}
            Message::SetEgress {
                rules,
                key_id,
                reply,
            } => {
                let result = self.set_egress(&rules, key_id.as_deref()).await;
                let _ = reply.send(result.map(|()| Arc::new(self.row.clone())));
            }
            Message::Volume { change, reply } => {
                let _ = reply.send(self.change_volume(change).await);
            }
            Message::Ended(loss, detail) => {
                tracing::info!(
                    machine = self.row.id,
                    reason = loss.as_str(),
                    detail,
                    "a machine ended by itself"
                );
                self.must(Input::Ended(loss), Some(detail)).await;
            }
        }
    }

    /// Decides, records, publishes, does.
    async fn step(
        &mut self,
        input: Input,
        key_id: Option<&str>,
        message: Option<String>,
    ) -> Result<()> {
        self.step_with(input, key_id, message, Change::None).await
    }

    /// A step that has to do with what is kept of the machine.
    async fn step_with(
        &mut self,
        input: Input,
        key_id: Option<&str>,
        message: Option<String>,
        change: Change,
    ) -> Result<()> {
        let step = lifecycle::step(self.state(), input)
            .map_err(|refused| Error::not_ready(&self.row.id, refused.state.as_str()))?;
        let mut row = stepped(&self.row, &step, time::now());
        if let (State::Paused, Change::Put(snapshot)) = (step.state, &change) {
            row.snapshot_id = Some(snapshot.id.clone());
        }
        // A machine that does not wait for its state any more has no use for it.
        let change = match (&self.row.snapshot_id, &row.snapshot_id) {
            (Some(left), None) => Change::Forget(left.clone()),
            _ => change,
        };
        let forgotten = match &change {
            Change::Forget(id) => Some(id.clone()),
            _ => None,
        };
        let app = self.app.clone();
        let recording = record_step(&app.store, &row, &step, key_id, message, change);
        if step.actions.contains(&Action::EndMachine) {
            // Side by side, because either takes about as long as the other and whoever asked waits for both.
            let (recorded, ()) = tokio::join!(recording, self.end());
            recorded?;
        } else {
            recording.await?;
        }
        self.row = row;
        let published = Arc::new(self.row.clone());
        self.publish.send_replace(published.clone());
        self.app.machines.changed(&published);
        if let Some(id) = forgotten {
            snapshot::remove_files(&self.app, &id);
        }
        for action in step.actions {
            match action {
                Action::StartClock | Action::KeepClock | Action::RestartClock => {
                    self.clock = Clock::set(&self.row);
                }
                Action::StopClock => self.clock = Clock::default(),
                Action::EndMachine | Action::Hibernate | Action::Resume => {}
            }
        }
        Ok(())
    }

    /// Records rules, and has the engine keep them. If the server dies in between, the next one does it.
    async fn set_egress(&mut self, rules: &Rules, key_id: Option<&str>) -> Result<()> {
        if self.state() != State::Running {
            return Err(Error::not_ready(&self.row.id, &self.row.state));
        }
        let mut row = self.row.clone();
        egress::record(&mut row, rules);
        let event = egress::updated(&row, rules, key_id, time::now());
        let recording = row.clone();
        self.app
            .store
            .write(move |tx| {
                rows::update(tx, &recording)?;
                event_rows::append(tx, &event)?;
                Ok::<_, StoreError>(())
            })
            .await?;
        self.row = row;
        self.publish.send_replace(Arc::new(self.row.clone()));
        match self.app.engine.set_egress(&self.row.id, rules).await {
            // It ended a moment ago; that is told in the queue.
            Err(EngineError::NotFound(_)) => {
                Err(Error::not_ready(&self.row.id, State::Error.as_str()))
            }
            other => Ok(other?),
        }
    }

    /// What is recorded is kept, whatever the server before this one came to.
    async fn replay_egress(&mut self) {
        let rules = egress::recorded(&self.row);
        if let Err(error) = self.app.engine.set_egress(&self.row.id, &rules).await {
            tracing::error!(machine = self.row.id, %error, "the recorded rules are not in force");
        }
    }

    /// A fact: it is recorded even if that takes several attempts.
    async fn must(&mut self, input: Input, message: Option<String>) {
        self.must_with(input, message, Change::None).await;
    }

    async fn must_with(&mut self, input: Input, message: Option<String>, change: Change) {
        while let Err(error) = self
            .step_with(input, None, message.clone(), change.clone())
            .await
        {
            if matches!(error.kind, crate::error::Kind::Conflict) {
                return;
            }
            tracing::error!(machine = self.row.id, context = ?error.context, "a change could not be recorded; trying again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Has the engine end what is left. A failure is no news for the caller, for whom the machine is no more;
    /// it is tried again behind the scenes.
    async fn end(&mut self) {
        self.is_ending = true;
        let (app, id) = (self.app.clone(), self.row.id.clone());
        if let Some((target, failure)) = &mut self.keep
            && let Err(error) = app.engine.keep(&id, target).await
        {
            *failure = Some(error);
        }
        // One that was kept is gone already; this makes sure.
        match app.engine.destroy(&id).await {
            Ok(()) => self.is_gone = true,
            Err(error) => {
                tracing::error!(machine = id, %error, "the engine could not end a machine; trying again");
                let record = self.publish.subscribe();
                tokio::spawn(async move {
                    let mut pause = RETRY;
                    loop {
                        tokio::time::sleep(pause).await;
                        if app.engine.destroy(&id).await.is_ok() {
                            let row = record.borrow().clone();
                            return ended(&app, &row);
                        }
                        pause = (pause * 2).min(std::time::Duration::from_secs(60));
                    }
                });
            }
        }
        // Not before: saying goodbye to the guest would only hold up its end.
        *self.handle.guest.lock().await = None;
    }
}

/// Says in the log that a machine of a pool is somebody's now and runs.
pub(super) fn handed_out(app: &App, row: &MachineRow) {
    let Ok(step) = lifecycle::step(State::Creating, Input::Built) else {
        return;
    };
    let now = time::now();
    let events: Vec<_> = step
        .events
        .iter()
        .map(|told| event::record(row, told, None, now))
        .collect();
    let id = row.id.clone();
    app.store.write_later(move |tx| {
        pool_rows::hand_out(tx, &id)?;
        for event in &events {
            event_rows::append(tx, event)?;
        }
        Ok(())
    });
}

/// Says in the log that nothing of the machine is left.
pub(super) fn ended(app: &App, row: &MachineRow) {
    if row.state == State::Destroyed.as_str() {
        let event = event::record(row, &lifecycle::DESTROYED, None, time::now());
        app.store
            .write_later(move |tx| event_rows::append(tx, &event).map(drop));
    }
}

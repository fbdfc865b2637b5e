//! What a run does: the one task that owns it, from its machine to its end. The backing of a service is a run whose
//! entry point is started again when it ends.
//!
//! ```text
//!  machine (the bundle is a layer of it) ─▶ input ─▶ install ─▶ entry point ─▶ outputs ─▶ the end ─▶ release
//!                                                       └── output ──▶ lines ──▶ log ──▶ acknowledged to the guest
//! ```
//! Every step is decided by `nullspace_lifecycle::run` and recorded before the next. The guest keeps output
//! until it is acknowledged, and that happens after it is in the log: a server that is killed at any point
//! goes on where the record ends, without a hole and without a double.

mod cached;
mod machine;
mod process;
pub(super) mod retained;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use nullspace_api::{agent::OutputManifest, time};
use nullspace_lifecycle::run::{self as lifecycle, Input, Phase, Release, State};
use nullspace_store::{
    StoreError,
    agent_log::{self as logs, NewLog},
    agent_run::{self as runs, RunRow},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

use super::{
    AppState,
    agent::{self, Live},
    agent_config,
    agent_log::{self, Writer},
    agent_output,
    agent_service::ServiceLive,
    agent_version::{self, Prepared},
    machine::Handle,
};

/// Pause before something that must happen is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a guest that does not answer is asked again before its run is given up.
const ATTEMPTS: u32 = 10;
/// `SIGKILL`.
const KILL: i32 = 9;
/// `SIGTERM`.
const TERM: i32 = 15;
/// How long the processes of a service may take to end when they are asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How long an entry point must have run for its end not to count with those before.
const STEADY: Duration = Duration::from_secs(60);
/// Lines of output that the reason for a failure repeats, and bytes of each.
const LAST_LINES: usize = 5;
const LAST_LINE: usize = 400;

/// Where a run comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It was just recorded.
    New,
    /// A server before this one had begun it.
    Earlier,
}

/// Takes a new run on.
pub(super) fn start(
    app: &AppState,
    row: RunRow,
    version: Arc<Prepared>,
    envs: BTreeMap<String, String>,
) {
    spawn(app, row, version, Origin::New, Some(envs), None);
}

/// Takes a run on that an earlier server had begun.
pub(super) fn resume(app: &AppState, row: RunRow, version: Arc<Prepared>) {
    spawn(app, row, version, Origin::Earlier, None, None);
}

/// Takes the backing of a service on, with the values of its environment if they can be read.
pub(super) fn back(
    app: &AppState,
    row: RunRow,
    version: Arc<Prepared>,
    origin: Origin,
    envs: Option<BTreeMap<String, String>>,
    service: &Arc<ServiceLive>,
) -> Arc<Live> {
    spawn(app, row, version, origin, envs, Some(service.clone()))
}

/// What a backing tells the supervisor of its service.
#[derive(Debug)]
pub(super) enum News {
    /// Its entry point runs (again).
    Started {
        /// Where.
        machine: Arc<Handle>,
    },
    /// Its entry point ended and will be started again.
    Crashed,
    /// It has ended, and is on record.
    Over {
        /// Why, unless somebody wanted that.
        failure: Option<Failure>,
    },
}

/// Why a backing ended.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// For people.
    pub(super) reason: String,
    /// Where it was.
    pub(super) phase: Phase,
    /// Its machine was lost: another might fare better.
    pub(super) machine_lost: bool,
}

fn spawn(
    app: &AppState,
    row: RunRow,
    version: Arc<Prepared>,
    origin: Origin,
    envs: Option<BTreeMap<String, String>>,
    service: Option<Arc<ServiceLive>>,
) -> Arc<Live> {
    let live = app.agents.insert(&row.id, row.log_count);
    if row.cancel_requested_at.is_some() {
        live.cancel.cancel();
    }
    let task = Task {
        app: app.clone(),
        cancel: live.cancel.clone(),
        handle: app_handle(app, &row),
        row,
        version,
        origin,
        envs,
        live: live.clone(),
        service,
        last_lines: VecDeque::new(),
        ending_at: None,
    };
    let stopping = app.stopping.clone();
    let span = tracing::debug_span!(
        "agent.run",
        run = task.row.id,
        deployment = task.row.deployment_id,
        version = task.row.version_id,
        is_resumed = origin == Origin::Earlier,
        state = Empty,
    );
    // Stopping in the middle is what being killed is: the next server goes on.
    let work = async move {
        tokio::select! {
            () = task.run() => {}
            () = stopping.cancelled() => {}
        }
    };
    app.tasks.spawn(work.instrument(span));
    live
}

fn app_handle(app: &AppState, row: &RunRow) -> Option<Arc<Handle>> {
    match &row.machine_id {
        Some(id) => app.machines.get(id),
        None => agent::machine_of(app, &row.id),
    }
}

/// How a run ends.
#[derive(Debug)]
struct End {
    input: Input,
    reason: Option<String>,
    exit_code: Option<i32>,
    machine_lost: bool,
}

impl End {
    fn cancelled() -> Self {
        Self {
            input: Input::Cancelled,
            reason: None,
            exit_code: None,
            machine_lost: false,
        }
    }

    fn broke(reason: impl Into<String>) -> Self {
        Self {
            input: Input::Broke,
            reason: Some(reason.into()),
            exit_code: None,
            machine_lost: false,
        }
    }
}

/// How a process ended.
#[derive(Debug)]
struct Exit {
    code: i32,
    timed_out: bool,
}

/// The two commands of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Install,
    Entrypoint,
}

impl Command {
    fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Entrypoint => "entrypoint",
        }
    }

    /// How the process is listed in its machine. A server that starts again knows it by this, so each start of an
    /// entry point has its own.
    fn label(self, line: &str, restarts: u32) -> String {
        match restarts {
            0 => format!("{}: {line}", self.as_str()),
            n => format!("{} {}: {line}", self.as_str(), n + 1),
        }
    }
}

struct Task {
    app: AppState,
    row: RunRow,
    version: Arc<Prepared>,
    /// Values of environment variables; `None` when the server that knew them is gone.
    envs: Option<BTreeMap<String, String>>,
    origin: Origin,
    handle: Option<Arc<Handle>>,
    cancel: CancellationToken,
    live: Arc<Live>,
    /// The service that it backs.
    service: Option<Arc<ServiceLive>>,
    /// What was written last, for the reason of a failure.
    last_lines: VecDeque<String>,
    /// When the patience with a process that was asked to end is over.
    ending_at: Option<Instant>,
}

impl Task {
    async fn run(mut self) {
        let end = match self.work().await {
            Ok(end) | Err(end) => end,
        };
        self.finish(end, Span::current())
            .instrument(tracing::debug_span!("agent.finish"))
            .await;
    }

    fn state(&self) -> State {
        State::parse(&self.row.status).unwrap_or(State::Failed)
    }

    /// The run's life up to its end. Both results are ends; errors leave early.
    async fn work(&mut self) -> Result<End, End> {
        let resumed = self.origin == Origin::Earlier;
        if self.cancel.is_cancelled() {
            return Ok(End::cancelled());
        }
        let install = self
            .version
            .config
            .install
            .clone()
            .filter(|line| !line.trim().is_empty());
        match install {
            Some(line) if self.version.uses_cache => {
                let install = self
                    .install_with_cache(&line, resumed)
                    .instrument(tracing::debug_span!("agent.install", cache = true));
                if let Some(end) = install.await? {
                    return Ok(end);
                }
            }
            install => {
                if matches!(self.state(), State::Queued | State::Starting) {
                    self.make_machine(None, resumed)
                        .instrument(tracing::debug_span!("agent.machine"))
                        .await?;
                    self.deliver_input()
                        .instrument(tracing::debug_span!("agent.input"))
                        .await?;
                }
                if let Some(line) = install
                    && self.state() != State::Running
                    && self.row.install_exit_code.is_none()
                    && let Some(end) = self
                        .install(&line, resumed)
                        .instrument(tracing::debug_span!("agent.install", cache = false))
                        .await?
                {
                    return Ok(end);
                }
            }
        }
        if self.row.is_build {
            return Ok(End {
                input: Input::Built,
                reason: None,
                exit_code: Some(0),
                machine_lost: false,
            });
        }
        // What is left of the input is in the machine.
        self.row.input = String::new();
        let line = self.version.config.entrypoint.clone().unwrap_or_default();
        if self.service.is_some() {
            return self.keep_running(&line, resumed).await;
        }
        let exit = self
            .execute(Command::Entrypoint, &line, resumed)
            .instrument(tracing::debug_span!("agent.entrypoint"))
            .await?;
        if exit.timed_out || exit.code != 0 {
            return Ok(self.bad_exit(Command::Entrypoint, &exit));
        }
        Ok(End {
            input: Input::EntrypointExited(0),
            reason: None,
            exit_code: Some(0),
            machine_lost: false,
        })
    }

    /// The life of a backing: its entry point is started again until somebody ends that, or it ends too often.
    async fn keep_running(&mut self, line: &str, resumed: bool) -> Result<End, End> {
        let mut resumed = resumed;
        let mut ends = 0;
        loop {
            let begun = Instant::now();
            let exit = self.execute(Command::Entrypoint, line, resumed).await?;
            resumed = false;
            if self.cancel.is_cancelled() {
                return Ok(End::cancelled());
            }
            if begun.elapsed() >= STEADY {
                ends = 0;
            }
            let how = format!("entrypoint ended with exit code {}", exit.code);
            let config = &self.app.config;
            if ends == config.service_restarts {
                let reason = format!("{how}, {} times in a row{}", ends + 1, self.last_words());
                return Ok(End {
                    exit_code: Some(exit.code),
                    ..End::broke(reason)
                });
            }
            let pause = pause(config, ends);
            ends += 1;
            let ended = self.row.process_id.take();
            self.row.exit_code = Some(exit.code);
            self.row.output_offset = 0;
            self.row.restarts += 1;
            let message = format!("{how}; it is started again in {} s", pause.as_secs_f32());
            let event = agent_log::news(
                lifecycle::Event {
                    event_type: "entrypoint_ended",
                    is_error: true,
                    failure_phase: None,
                },
                message,
                ended,
                true,
            );
            self.record([event], true).await;
            self.tell(News::Crashed);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.cancel.cancelled() => return Ok(End::cancelled()),
            }
        }
    }

    /// Tells the supervisor, if there is one.
    fn tell(&self, news: News) {
        if let Some(service) = &self.service {
            service.tell(&self.row.id, news);
        }
    }

    /// The last lines of output, as the end of a reason.
    fn last_words(&self) -> String {
        if self.last_lines.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = self.last_lines.iter().map(String::as_str).collect();
        format!("; last output: {}", lines.join(" | "))
    }

    fn bad_exit(&self, command: Command, exit: &Exit) -> End {
        let name = command.as_str();
        let (input, reason) = if exit.timed_out {
            let limit = self.time_limit(command).as_secs();
            (
                Input::DeadlineReached,
                format!("{name} was ended at its time limit of {limit} s"),
            )
        } else {
            let input = match command {
                Command::Install => Input::InstallExited(exit.code),
                Command::Entrypoint => Input::EntrypointExited(exit.code),
            };
            (input, format!("{name} failed with exit code {}", exit.code))
        };
        End {
            input,
            reason: Some(reason),
            exit_code: Some(exit.code),
            machine_lost: false,
        }
    }

    fn time_limit(&self, command: Command) -> Duration {
        Duration::from_secs(match command {
            // Far away.
            Command::Entrypoint if self.service.is_some() => return Duration::MAX,
            Command::Install => agent_config::INSTALL_TIMEOUT_SECONDS,
            Command::Entrypoint => agent_config::timeout_seconds(&self.version.config),
        })
    }

    /// Keeps what the run left behind, records its end and lets its machine go.
    async fn finish(mut self, end: End, run: Span) {
        let mut end = end;
        if end.input == Input::Cancelled {
            self.kill().await;
            if let Some(failure) = self.live.failure.get() {
                end = End::broke(format!("{failure}{}", self.last_words()));
            }
        }
        let cancelled = end.input == Input::Cancelled;
        let outputs = match &self.service {
            None if !self.row.is_build => Some(self.outputs().await),
            _ => None,
        };
        let reason = if cancelled {
            Some(self.cancel_reason().await)
        } else {
            end.reason
        };
        let phase = lifecycle::phase_of(self.state());
        let step = match lifecycle::step(self.state(), end.input) {
            Ok(step) => step,
            Err(_) => {
                tracing::error!(
                    run = self.row.id,
                    status = self.row.status,
                    "a run's end does not fit its state"
                );
                self.app.agents.remove(&self.row.id);
                return;
            }
        };
        let now = time::now();
        self.row.status = step.state.as_str().into();
        run.record("state", step.state.as_str());
        self.row.exit_code = end.exit_code.or(self.row.exit_code);
        self.row.failure_reason = reason.clone();
        self.row.outputs = outputs.and_then(|outputs| serde_json::to_string(&outputs).ok());
        self.row.completed_at = Some(now);
        self.row.updated_at = now;
        let machine_lives = self
            .handle
            .as_ref()
            .is_some_and(|handle| handle.row().state == "running");
        let retain = match step.release {
            Some(Release::KeepIfAsked) => self.row.retain_seconds,
            // Only services are kept when they are ended.
            _ => self.live.retain.get().copied(),
        };
        self.row.retained_until = retain.filter(|_| machine_lives).map(|seconds| {
            now.saturating_add(
                i64::try_from(seconds)
                    .unwrap_or(i64::MAX)
                    .saturating_mul(1_000_000),
            )
        });
        let mut events = Vec::new();
        if let Some(process_id) = self.row.process_id.or(self.row.install_process_id) {
            let phase = if self.row.process_id.is_some() {
                "entrypoint"
            } else {
                "install"
            };
            agent_log::finish(&mut self.row, Writer { phase, process_id }, &mut events);
        }
        if let (Some(until), Some(id)) = (self.row.retained_until, &self.row.machine_id) {
            events.push(retained::kept(id, until));
        }
        let message = reason.clone().unwrap_or_else(|| match self.row.is_build {
            true => "the result of the install was kept".into(),
            false => "run succeeded".into(),
        });
        events.push(agent_log::news(
            self.event(step.event),
            message,
            self.row.process_id,
            self.row.machine_id.is_some(),
        ));
        self.record(events, true).await;
        if self.row.is_build {
            agent_version::settle(&self.app, &self.row).await;
        }
        // Whoever waits for news of this run sees the end of them.
        self.app.agents.remove(&self.row.id);
        self.tell(News::Over {
            failure: (!cancelled).then(|| Failure {
                reason: reason.unwrap_or_default(),
                phase,
                machine_lost: end.machine_lost,
            }),
        });
        let id = self.row.machine_id.clone();
        let id = id.or_else(|| self.handle.as_ref().map(|handle| handle.id.clone()));
        let (app, row) = (self.app.clone(), self.row.clone());
        drop(self);
        if let Some(id) = id {
            retained::release(&app, &row, &id).await;
        }
    }

    /// Ends what runs of the run.
    async fn kill(&mut self) {
        let pid = match (
            self.row.process_id,
            self.row.install_process_id,
            self.row.install_exit_code,
        ) {
            (Some(pid), ..) | (None, Some(pid), None) => pid,
            _ => return,
        };
        let Some(handle) = &self.handle else { return };
        if let Ok(guest) = handle.guest(&*self.app.engine).await {
            let _ = guest.signal(pid, KILL).await;
        }
    }

    async fn cancel_reason(&self) -> String {
        let id = self.row.id.clone();
        let asked = self.app.store.read(move |db| runs::get(db, &id)).await;
        match asked.ok().flatten().and_then(|row| row.cancel_reason) {
            Some(reason) => format!("cancelled: {reason}"),
            None => "cancelled".to_owned(),
        }
    }

    /// Copies the outputs out of the machine, if there is one to copy from.
    async fn outputs(&mut self) -> OutputManifest {
        let config = self.version.clone();
        let config = &config.config;
        let machine_id = self.row.machine_id.clone();
        let Some((handle, id)) = self.handle.clone().zip(machine_id.clone()) else {
            return agent_output::nothing(config, machine_id.as_deref());
        };
        let captured = match handle.guest(&*self.app.engine).await {
            Ok(guest) => agent_output::capture(&self.app, &guest, config, &self.row.id, &id).await,
            Err(_) => return agent_output::nothing(config, Some(&id)),
        };
        captured.unwrap_or_else(|error| {
            tracing::error!(run = self.row.id, context = ?error.context, "the outputs of a run could not be kept");
            let mut manifest = agent_output::nothing(config, Some(&id));
            for output in &mut manifest.outputs {
                output.status = "error".into();
                output.error = Some(error.message.clone());
            }
            manifest
        })
    }

    /// Decides and records a step that is not the end.
    async fn step(&mut self, input: Input, message: String, process_id: Option<u32>) {
        match lifecycle::step(self.state(), input) {
            Ok(step) => {
                self.row.status = step.state.as_str().into();
                self.row.updated_at = time::now();
                let event = agent_log::news(
                    self.event(step.event),
                    message,
                    process_id,
                    self.row.machine_id.is_some(),
                );
                self.record([event], true).await;
            }
            Err(refused) => {
                tracing::error!(
                    run = self.row.id,
                    state = refused.state.as_str(),
                    ?input,
                    "a step does not fit the state of its run"
                );
            }
        }
    }

    /// Keeps events and the row as it is now in one transaction, however often that has to be tried: the
    /// process waits meanwhile, and nothing is lost.
    async fn record(&mut self, events: impl Into<Arc<[NewLog]>>, whole: bool) {
        let events = events.into();
        if self.service.is_none() {
            self.row.log_count += logs::count(&events);
        }
        let count = loop {
            let (row, events) = (self.row.clone(), events.clone());
            let kept = self
                .app
                .store
                .write(move |tx| agent_log::keep(tx, &row, &events, whole))
                .await;
            match kept {
                Ok(count) => break count,
                Err(error) => {
                    let error: StoreError = error;
                    tracing::error!(run = self.row.id, %error, "a run could not be recorded; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        advance(self.log(), count);
    }

    /// Who waits for the log: a backing writes into its service's.
    fn log(&self) -> &watch::Sender<u64> {
        match &self.service {
            Some(service) => &service.log,
            None => &self.live.log,
        }
    }

    /// An event of this run's life in the words of what it is for.
    fn event(&self, event: lifecycle::Event) -> lifecycle::Event {
        if self.service.is_none() {
            return event;
        }
        let event_type = match event.event_type {
            "run_starting" => "machine_starting",
            "run_started" => "entrypoint_started",
            "run_restarted" => "entrypoint_restarted",
            "run_failed" => "backing_failed",
            "run_cancelled" => "backing_ended",
            same => same,
        };
        // Whether that is the end of the service, and where it failed, is its supervisor's to say.
        lifecycle::Event {
            event_type,
            is_error: event_type == "backing_failed",
            failure_phase: None,
        }
    }
}

/// The pause before something of a service is tried again that ended so often in a row before.
pub(super) fn pause(config: &crate::Config, before: u32) -> Duration {
    Duration::from_millis(
        config
            .service_restart_pause_ms
            .saturating_mul(1 << before.min(10)),
    )
}

/// Tells followers how far a log goes now. Two may write to the log of a service, and the later may come first.
pub(super) fn advance(log: &watch::Sender<u64>, count: u64) {
    log.send_if_modified(|known| {
        let news = count > *known;
        *known = count.max(*known);
        news
    });
}

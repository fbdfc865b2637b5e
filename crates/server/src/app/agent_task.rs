//! What a run does: the one task that owns it, from its machine to its end.
//!
//! ```text
//!  machine (the bundle is a layer of it) ─▶ input ─▶ install ─▶ entry point ─▶ outputs ─▶ the end ─▶ release
//!                                                       └── output ──▶ lines ──▶ log ──▶ acknowledged to the guest
//! ```
//! Every step is decided by `nullspace_lifecycle::run` and recorded before the next. The guest keeps output
//! until it is acknowledged, and that happens after it is in the log: a server that is killed at any point
//! goes on where the record ends, without a hole and without a double.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use nullspace_api::{agent::OutputManifest, error::code, time};
use nullspace_lifecycle::run::{self as lifecycle, Input, Release, State};
use nullspace_protocol::{
    ExecRequest, GuestClient, GuestError, OutputQuery, Retain, WriteQuery, frame::Frame,
};
use nullspace_store::{
    StoreError,
    agent_log::NewLog,
    agent_run::{self as runs, RunRow},
    machine as machines,
};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    AppState,
    agent::{self, Live},
    agent_config,
    agent_log::{self, Source, Writer},
    agent_output, agent_run,
    agent_version::Prepared,
    bundle,
    machine::{self, Handle, NewMachine},
};
use crate::error::{Error, Result};

/// Pause before something that must happen is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a guest that does not answer is asked again before its run is given up.
const ATTEMPTS: u32 = 10;
/// How often it is looked whether the template is ready.
const TEMPLATE_POLL: Duration = Duration::from_millis(500);
/// Lines and bytes that are recorded together at most.
const BATCH_EVENTS: usize = 2000;
const BATCH_BYTES: usize = 1 << 20;
/// What a shell finds without a template's own word.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// `SIGKILL`.
const KILL: i32 = 9;

/// Takes a new run on.
pub(super) fn start(
    app: &AppState,
    row: RunRow,
    version: Arc<Prepared>,
    envs: BTreeMap<String, String>,
) {
    spawn(app, row, version, Some(envs));
}

/// Takes a run on that an earlier server had begun.
pub(super) fn resume(app: &AppState, row: RunRow, version: Arc<Prepared>) {
    spawn(app, row, version, None);
}

fn spawn(
    app: &AppState,
    row: RunRow,
    version: Arc<Prepared>,
    envs: Option<BTreeMap<String, String>>,
) {
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
        envs,
        live,
    };
    let stopping = app.stopping.clone();
    // Stopping in the middle is what being killed is: the next server goes on.
    app.tasks.spawn(async move {
        tokio::select! {
            () = task.run() => {}
            () = stopping.cancelled() => {}
        }
    });
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
}

impl End {
    fn cancelled() -> Self {
        Self {
            input: Input::Cancelled,
            reason: None,
            exit_code: None,
        }
    }

    fn broke(reason: impl Into<String>) -> Self {
        Self {
            input: Input::Broke,
            reason: Some(reason.into()),
            exit_code: None,
        }
    }
}

/// How a process ended.
#[derive(Debug)]
struct Exit {
    code: i32,
    timed_out: bool,
}

/// Why following a process stopped before its end.
enum Stopped {
    /// The run ends.
    End(End),
    /// The connection broke; the machine may be fine.
    Lost(String),
}

impl From<GuestError> for Stopped {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Lost { .. } => Self::Lost(error.to_string()),
            other => Self::End(End::broke(format!("the output could not be read: {other}"))),
        }
    }
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

    /// How the process is listed in its machine. A server that starts again knows it by this.
    fn label(self, line: &str) -> String {
        format!("{}: {line}", self.as_str())
    }
}

struct Task {
    app: AppState,
    row: RunRow,
    version: Arc<Prepared>,
    /// Values of environment variables; `None` when the server that knew them is gone.
    envs: Option<BTreeMap<String, String>>,
    handle: Option<Arc<Handle>>,
    cancel: CancellationToken,
    live: Arc<Live>,
}

impl Task {
    async fn run(mut self) {
        let end = match self.work().await {
            Ok(end) | Err(end) => end,
        };
        self.finish(end).await;
    }

    fn state(&self) -> State {
        State::parse(&self.row.status).unwrap_or(State::Failed)
    }

    /// The run's life up to its end. Both results are ends; errors leave early.
    async fn work(&mut self) -> Result<End, End> {
        let resumed = self.envs.is_none();
        if self.cancel.is_cancelled() {
            return Ok(End::cancelled());
        }
        if matches!(self.state(), State::Queued | State::Starting) {
            self.prepare_machine(resumed).await?;
        }
        // What is left of the input is on its way in the machine.
        self.row.input = String::new();
        let install = self
            .version
            .config
            .install
            .clone()
            .filter(|line| !line.trim().is_empty());
        if let Some(line) = install
            && self.state() != State::Running
            && self.row.install_exit_code.is_none()
        {
            let exit = self.execute(Command::Install, &line, resumed).await?;
            if exit.timed_out || exit.code != 0 {
                return Ok(self.bad_exit(Command::Install, &exit));
            }
            self.row.install_exit_code = Some(0);
            self.step(Input::InstallExited(0), "install finished".into(), None)
                .await;
        }
        let line = self.version.config.entrypoint.clone().unwrap_or_default();
        let exit = self.execute(Command::Entrypoint, &line, resumed).await?;
        if exit.timed_out || exit.code != 0 {
            return Ok(self.bad_exit(Command::Entrypoint, &exit));
        }
        Ok(End {
            input: Input::EntrypointExited(0),
            reason: None,
            exit_code: Some(0),
        })
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
        }
    }

    fn time_limit(&self, command: Command) -> Duration {
        Duration::from_secs(match command {
            Command::Install => agent_config::INSTALL_TIMEOUT_SECONDS,
            Command::Entrypoint => agent_config::timeout_seconds(&self.version.config),
        })
    }

    /// From a recorded run to a machine that has its input.
    async fn prepare_machine(&mut self, resumed: bool) -> Result<(), End> {
        self.step(Input::Begin, "starting a machine".into(), None)
            .await;
        if self.handle.is_none() {
            if resumed && self.row.has_envs {
                return Err(End::broke(
                    "the server was stopped before the machine was there, and values of environment variables are \
                     not stored: start the run again",
                ));
            }
            let row = self.create_machine().await?;
            self.handle = self.app.machines.get(&row.id);
        }
        let Some(handle) = &self.handle else {
            return Err(self.machine_lost("starting").await);
        };
        let id = handle.id.clone();
        self.row.machine_id = Some(id.clone());
        self.deliver_input().await?;
        self.step(Input::MachineReady, format!("machine {id} is ready"), None)
            .await;
        Ok(())
    }

    async fn create_machine(&self) -> Result<Arc<machines::MachineRow>, End> {
        let config = &self.version.config;
        let template = loop {
            match self.app.templates.find(&config.template) {
                Ok(template) => break template,
                Err(error) if error.code == code::TEMPLATE_NOT_READY => {}
                Err(error) => {
                    return Err(End::broke(format!("starting failed: {}", error.message)));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(TEMPLATE_POLL) => {}
                () = self.cancel.cancelled() => return Err(End::cancelled()),
            }
        };
        let workdir = agent_config::trimmed(&config.workdir).to_owned();
        let path = template
            .env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(DEFAULT_PATH, |(_, path)| path);
        let mut envs = agent_run::environment(&self.row, &workdir, path);
        for (name, value) in self.envs.iter().flatten() {
            // Who a run is, is not the caller's to say; everything else is.
            if !agent_config::IDENTITY.contains(&name.as_str()) {
                envs.insert(name.clone(), value.clone());
            }
        }
        let metadata = Map::from_iter([
            (
                "agent_deployment_id".into(),
                Value::from(self.row.deployment_id.clone()),
            ),
            ("agent_run_id".into(), Value::from(self.row.id.clone())),
        ]);
        let resources = &config.resources;
        let defaults = NewMachine::from_template(&self.app, template);
        let new = NewMachine {
            layers: vec![bundle::path(&self.app.data_dir, &self.version.bundle)],
            vcpus: resources
                .vcpus
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(defaults.vcpus),
            memory_mb: resources.memory_mb.unwrap_or(defaults.memory_mb),
            disk_mb: resources.disk_mb,
            internet_access: config.permissions.internet_access.unwrap_or(true),
            envs,
            cwd: workdir,
            metadata,
            key_id: self.row.key_id.clone(),
            owner: Some(self.row.id.clone()),
            ..defaults
        };
        match machine::create(&self.app, new, None).await {
            Ok(machine::Created::New(row) | machine::Created::Replayed(row)) => Ok(row),
            Err(error) => Err(End::broke(format!(
                "starting a machine failed: {}",
                error.message
            ))),
        }
    }

    /// Puts the run's input where programs look that do not read the environment.
    async fn deliver_input(&mut self) -> Result<(), End> {
        let query = WriteQuery {
            path: format!(
                "{}/.nullspace/run.json",
                agent_config::trimmed(&self.version.config.workdir)
            ),
            ..WriteQuery::default()
        };
        let guest = self.guest("starting").await?;
        let input = Bytes::from(self.row.input.clone());
        let input = futures_util::stream::iter([Ok(input)]);
        match guest.write(&query, input).await {
            Ok(_) => Ok(()),
            Err(GuestError::Lost { .. }) => Err(self.machine_lost("starting").await),
            Err(error) => Err(End::broke(format!(
                "starting failed: the input could not be delivered: {error}"
            ))),
        }
    }

    /// Runs a command of the version to its end, or goes on with one that runs.
    async fn execute(&mut self, command: Command, line: &str, resumed: bool) -> Result<Exit, End> {
        let known = match command {
            Command::Install => self.row.install_process_id,
            Command::Entrypoint => self.row.process_id,
        };
        let pid = match known {
            Some(pid) => pid,
            None => {
                let pid = match self.begun(command, line, resumed).await? {
                    Some(pid) => pid,
                    None => self.begin(command, line).await?,
                };
                self.row.output_offset = 0;
                let input = match command {
                    Command::Install => {
                        self.row.install_process_id = Some(pid);
                        Input::InstallStarted
                    }
                    Command::Entrypoint => {
                        self.row.process_id = Some(pid);
                        self.row.started_at = Some(time::now());
                        Input::EntrypointStarted
                    }
                };
                self.step(input, line.to_owned(), Some(pid)).await;
                pid
            }
        };
        let writer = Writer {
            phase: command.as_str(),
            process_id: pid,
        };
        let exit = self.follow(writer).await?;
        // What ends with its machine was not its own doing.
        if exit.code != 0
            && self
                .handle
                .as_ref()
                .is_some_and(|h| h.row().state != "running")
        {
            return Err(self.machine_lost(writer.phase).await);
        }
        Ok(exit)
    }

    /// The process, if a server before this one started it and did not get to record that.
    async fn begun(
        &mut self,
        command: Command,
        line: &str,
        resumed: bool,
    ) -> Result<Option<u32>, End> {
        if !resumed {
            return Ok(None);
        }
        let label = command.label(line);
        for _ in 0..ATTEMPTS {
            let guest = self.guest(command.as_str()).await?;
            match guest.processes().await {
                Ok(list) => {
                    let found = list.into_iter().find(|process| process.command == label);
                    return Ok(found.map(|process| process.pid));
                }
                Err(_) => self.pause().await?,
            }
        }
        Err(self.machine_lost(command.as_str()).await)
    }

    async fn begin(&mut self, command: Command, line: &str) -> Result<u32, End> {
        let request = ExecRequest {
            argv: vec!["/bin/sh".into(), "-c".into(), line.to_owned()],
            cwd: Some(agent_config::trimmed(&self.version.config.workdir).to_owned()),
            timeout_ms: u64::try_from(self.time_limit(command).as_millis()).ok(),
            retain: Retain::UntilAcknowledged,
            label: Some(command.label(line)),
            ..ExecRequest::default()
        };
        let guest = self.guest(command.as_str()).await?;
        match guest.spawn(&request).await {
            Ok(pid) => Ok(pid),
            Err(GuestError::Refused(body)) => Err(End::broke(format!(
                "{} could not be started: {}",
                command.as_str(),
                body.message
            ))),
            Err(_) => {
                // It may run: whoever asks the guest again finds out.
                self.pause().await?;
                match self.begun(command, line, true).await? {
                    Some(pid) => Ok(pid),
                    None => Err(self.machine_lost(command.as_str()).await),
                }
            }
        }
    }

    /// Reads a process's output into the log until it ends.
    async fn follow(&mut self, writer: Writer) -> Result<Exit, End> {
        let mut attempts = 0;
        loop {
            let guest = self.guest(writer.phase).await?;
            let before = self.row.output_offset;
            match self.follow_once(&guest, writer).await {
                Ok(exit) => return Ok(exit),
                Err(Stopped::End(end)) => return Err(end),
                Err(Stopped::Lost(reason)) => {
                    tracing::debug!(run = self.row.id, reason, "lost the guest of a run");
                    attempts = if self.row.output_offset > before {
                        0
                    } else {
                        attempts + 1
                    };
                    if attempts == ATTEMPTS {
                        return Err(self.machine_lost(writer.phase).await);
                    }
                    self.pause().await?;
                }
            }
        }
    }

    async fn follow_once(&mut self, guest: &GuestClient, writer: Writer) -> Result<Exit, Stopped> {
        let query = OutputQuery {
            from: self.row.output_offset,
            follow: true,
        };
        let mut stream = guest.output(writer.process_id, query).await?;
        loop {
            let mut next = tokio::select! {
                frame = stream.next() => frame,
                () = self.cancel.cancelled() => return Err(Stopped::End(End::cancelled())),
            };
            let mut events = Vec::new();
            let mut bytes = 0;
            let mut ended = None;
            // What is there already is recorded together.
            loop {
                match next {
                    Ok(Some(Frame::Started(_))) => {}
                    Ok(Some(Frame::Stdout(offset, data))) => {
                        bytes += data.len();
                        self.take(writer, Source::Stdout, offset, &data, &mut events);
                    }
                    Ok(Some(Frame::Stderr(offset, data))) => {
                        bytes += data.len();
                        self.take(writer, Source::Stderr, offset, &data, &mut events);
                    }
                    Ok(Some(Frame::Exit {
                        code, timed_out, ..
                    })) => {
                        agent_log::finish(&mut self.row, writer, &mut events);
                        ended = Some(Ok(Exit { code, timed_out }));
                    }
                    Ok(None) => ended = Some(Err(Stopped::Lost("the output ended early".into()))),
                    Err(error) => ended = Some(Err(error.into())),
                }
                if ended.is_some() || events.len() >= BATCH_EVENTS || bytes >= BATCH_BYTES {
                    break;
                }
                match stream.next().now_or_never() {
                    Some(frame) => next = frame,
                    None => break,
                }
            }
            if bytes > 0 || !events.is_empty() {
                self.record(&events, false).await;
            }
            if let Some(ended) = ended {
                return ended;
            }
            guest
                .acknowledge(writer.process_id, self.row.output_offset)
                .await?;
        }
    }

    fn take(
        &mut self,
        writer: Writer,
        source: Source,
        offset: u64,
        data: &Bytes,
        events: &mut Vec<NewLog>,
    ) {
        agent_log::take(&mut self.row, writer, source, data, events);
        self.row.output_offset = offset + data.len() as u64;
    }

    /// The guest, as long as the machine runs.
    async fn guest(&mut self, phase: &str) -> Result<GuestClient, End> {
        for _ in 0..ATTEMPTS {
            let Some(handle) = self.handle.clone() else {
                break;
            };
            match handle.guest(&*self.app.engine).await {
                Ok(guest) => return Ok(guest),
                Err(error) if error.code == code::MACHINE_NOT_READY => break,
                Err(_) => self.pause().await?,
            }
        }
        Err(self.machine_lost(phase).await)
    }

    /// Waits a little before the guest is asked again.
    async fn pause(&self) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => Ok(()),
            () = self.cancel.cancelled() => Err(End::cancelled()),
        }
    }

    /// Says what became of the machine.
    async fn machine_lost(&self, phase: &str) -> End {
        let id = self
            .row
            .machine_id
            .clone()
            .or_else(|| self.handle.as_ref().map(|h| h.id.clone()));
        let row = match &id {
            Some(id) => machine::get(&self.app, id).await.ok(),
            None => None,
        };
        let what = match row.as_deref() {
            Some(row) if row.state == "destroyed" => "the machine was deleted".to_owned(),
            Some(row) => match &row.failure_reason {
                Some(reason) => format!("the machine was lost ({reason})"),
                None => "the machine does not answer".to_owned(),
            },
            None => "the machine was lost".to_owned(),
        };
        End::broke(format!("{what} during {phase}"))
    }

    /// Keeps what the run left behind, records its end and lets its machine go.
    async fn finish(mut self, end: End) {
        let cancelled = end.input == Input::Cancelled;
        if cancelled {
            self.kill().await;
        }
        let outputs = self.outputs().await;
        let reason = if cancelled {
            Some(self.cancel_reason().await)
        } else {
            end.reason
        };
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
        self.row.exit_code = end.exit_code.or(self.row.exit_code);
        self.row.failure_reason = reason.clone();
        self.row.outputs = serde_json::to_string(&outputs).ok();
        self.row.completed_at = Some(now);
        self.row.updated_at = now;
        let machine_lives = self
            .handle
            .as_ref()
            .is_some_and(|handle| handle.row().state == "running");
        self.row.retained_until = self
            .row
            .retain_seconds
            .filter(|_| step.release == Some(Release::KeepIfAsked) && machine_lives)
            .map(|seconds| {
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
        let message = reason.unwrap_or_else(|| "run succeeded".into());
        events.push(agent_log::news(
            step.event,
            message,
            self.row.process_id,
            self.row.machine_id.is_some(),
        ));
        self.record(&events, true).await;
        // Whoever waits for news of this run sees the end of them.
        self.app.agents.remove(&self.row.id);
        let (app, id, until) = (
            self.app.clone(),
            self.row.machine_id.clone(),
            self.row.retained_until,
        );
        let id = id.or_else(|| self.handle.as_ref().map(|handle| handle.id.clone()));
        drop(self);
        if let Some(id) = id {
            release(&app, &id, until).await;
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
                    step.event,
                    message,
                    process_id,
                    self.row.machine_id.is_some(),
                );
                self.record(&[event], true).await;
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
    async fn record(&mut self, events: &[NewLog], whole: bool) {
        self.row.log_count += events.len() as u64;
        loop {
            let (row, events) = (self.row.clone(), events.to_vec());
            let kept = self
                .app
                .store
                .write(move |tx| agent_log::keep(tx, &row, &events, whole))
                .await;
            match kept {
                Ok(()) => break,
                Err(error) => {
                    let error: StoreError = error;
                    tracing::error!(run = self.row.id, %error, "a run could not be recorded; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        self.live.log.send_replace(self.row.log_count);
    }
}

/// Lets the machine of a run that has ended go: at once, or at the time until which it is kept.
pub(super) async fn release(app: &AppState, machine_id: &str, until: Option<i64>) {
    let left = until.map(|until| u64::try_from((until - time::now()) / 1000).unwrap_or(0));
    let done: Result<()> = match left {
        Some(left) if left > 0 => machine::set_time_limit(app, machine_id, Some(left), None, None)
            .await
            .map(drop),
        _ => machine::destroy(app, machine_id, None).await.map(drop),
    };
    if let Err(error) = done {
        let Error { code, context, .. } = error;
        if !matches!(code, code::MACHINE_NOT_READY | code::MACHINE_NOT_FOUND) {
            tracing::warn!(
                machine = machine_id,
                code,
                ?context,
                "the machine of a run could not be let go"
            );
        }
    }
}

//! The one task that keeps a service alive.
//!
//! ```text
//!  wishes (stop, restart) ──┐
//!  news of backings ────────┼──▶ decide (`nullspace_lifecycle::service`) ──▶ record ──▶ backings, door
//!  checks, time ────────────┘
//! ```
//! It has at most one backing that takes traffic and one that is on its way to that; others are being ended. A server
//! that starts again finds the backings' runs in the record and goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nullspace_api::{id, time};
use nullspace_gateway::{Access, Door, Route, Upstream};
use nullspace_lifecycle::{
    run::{Event, Phase, State as RunState},
    service::{self as lifecycle, Input, State},
};
use nullspace_store::{
    StoreError,
    agent_log::NewLog,
    agent_run::{self as runs, RunRow},
    agent_service::{self as rows, ServiceRow},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{
    Heard, ServiceLive,
    check::{self, Plan},
};
use crate::{
    app::{
        AppState,
        agent::Live as RunLive,
        agent_config, agent_log,
        agent_task::{self, Failure, News, Origin},
        agent_version::{self, Prepared},
        machine::{Handle, Port},
    },
    error::{Error, Result},
};

/// Pause before something that must happen is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Checks that must fail in a row before a service counts as unhealthy.
const FAILURES: u32 = 3;
/// How long requests under way may take in a backing that was replaced.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a machine must have lasted for its loss not to count with those before.
const STEADY: Duration = Duration::from_secs(60);

/// Starts the supervisor of a service, or tells the one that lives that there is a wish.
pub(super) fn ensure(app: &AppState, id: &str, log_count: u64) {
    let mut services = app.agents.services.lock();
    if let Some(live) = services.get(id) {
        live.wake.notify_one();
        return;
    }
    let (news, heard) = mpsc::unbounded_channel();
    let live = Arc::new(ServiceLive {
        log: watch::Sender::new(log_count),
        wake: Notify::new(),
        news,
    });
    services.insert(id.to_owned(), live.clone());
    drop(services);
    let (app, id) = (app.clone(), id.to_owned());
    let (tasks, stopping) = (app.tasks.clone(), app.stopping.clone());
    // Stopping in the middle is what being killed is: the next server goes on.
    tasks.spawn(async move {
        tokio::select! {
            () = run(app, id, live, heard) => {}
            () = stopping.cancelled() => {}
        }
    });
}

async fn run(
    app: AppState,
    id: String,
    live: Arc<ServiceLive>,
    heard: mpsc::UnboundedReceiver<(String, Heard)>,
) {
    let row = loop {
        match read(&app, &id).await {
            Ok(row) => break row,
            Err(error) => {
                tracing::error!(service = id, context = ?error.context, "a service could not be read; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    if row.stopped_at.is_none() {
        let supervisor = Supervisor {
            app: app.clone(),
            live,
            heard,
            row,
            backings: Vec::new(),
            route: Arc::new(Route::new("the service")),
            door: None,
            losses: 0,
            lost_at: Instant::now(),
            again_at: None,
        };
        supervisor.supervise().await;
    }
    app.agents.services.lock().remove(&id);
    // A restart that was asked for at the last moment found a supervisor and started none.
    if let Ok(row) = read(&app, &id).await
        && row.stopped_at.is_none()
    {
        ensure(&app, &id, row.log_count);
    }
}

async fn read(app: &AppState, id: &str) -> Result<ServiceRow> {
    let id = id.to_owned();
    app.store
        .read(move |db| rows::get(db, &id)?.ok_or_else(|| super::no_service(&id)))
        .await
}

/// A machine with a version in it.
struct Backing {
    run_id: String,
    version: Arc<Prepared>,
    plan: Plan,
    live: Arc<RunLive>,
    upstream: Option<Arc<Upstream>>,
    check: Option<AbortHandle>,
    /// When it must be ready at the latest.
    deadline: Option<Instant>,
    was_overdue: bool,
    is_healthy: bool,
    failures: u32,
    last_error: Option<String>,
    /// It is being ended, and is nobody's concern any more.
    is_retired: bool,
}

impl Drop for Backing {
    fn drop(&mut self) {
        self.stop_checking();
    }
}

impl Backing {
    fn stop_checking(&mut self) {
        if let Some(check) = self.check.take() {
            check.abort();
        }
    }

    fn end(&mut self) {
        self.is_retired = true;
        self.deadline = None;
        self.stop_checking();
        self.live.cancel.cancel();
    }
}

struct Supervisor {
    app: AppState,
    live: Arc<ServiceLive>,
    heard: mpsc::UnboundedReceiver<(String, Heard)>,
    row: ServiceRow,
    backings: Vec<Backing>,
    route: Arc<Route>,
    door: Option<Door>,
    /// Machines that were lost in a row.
    losses: u32,
    lost_at: Instant,
    /// When another machine is made for one that was lost.
    again_at: Option<Instant>,
}

impl Supervisor {
    async fn supervise(mut self) {
        self.resume().await;
        loop {
            self.follow_wishes().await;
            if self.row.stopped_at.is_some() {
                return;
            }
            let deadlines = self.backings.iter().filter_map(|backing| backing.deadline);
            let next = deadlines.chain(self.again_at).min();
            let live = self.live.clone();
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Some((run_id, heard)) => self.hear(&run_id, heard).await,
                    None => return,
                },
                () = live.wake.notified() => {}
                () = at(next) => self.time_passed().await,
            }
            if self.row.stopped_at.is_some() {
                return;
            }
        }
    }

    fn state(&self) -> State {
        State::parse(&self.row.status).unwrap_or(State::Failed)
    }

    fn backing(&mut self, run_id: &str) -> Option<&mut Backing> {
        self.backings.iter_mut().find(|b| b.run_id == run_id)
    }

    fn is_newest(&self, run_id: &str) -> bool {
        self.row.run_id.as_deref() == Some(run_id)
    }

    fn is_serving(&self, run_id: &str) -> bool {
        self.row.serving_run_id.as_deref() == Some(run_id)
    }

    /// Takes the backings over that an earlier server had begun.
    async fn resume(&mut self) {
        let id = self.row.id.clone();
        let found = loop {
            let wanted = id.clone();
            let read = self.app.store.read(move |db| runs::of_service(db, &wanted));
            match read.await {
                Ok(found) => break found,
                Err(error) => {
                    let error: StoreError = error;
                    tracing::error!(service = id, %error, "backings could not be read; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        for run in found {
            let concerns = self.is_newest(&run.id) || self.is_serving(&run.id);
            if run.completed_at.is_some() {
                // The server stopped between the end of the run and what follows from it.
                if concerns {
                    let failure = Failure {
                        reason: run.failure_reason.clone().unwrap_or_default(),
                        phase: Phase::Start,
                        machine_lost: false,
                    };
                    let failure = (run.status == RunState::Failed.as_str()).then_some(failure);
                    self.live.tell(&run.id, News::Over { failure });
                }
                continue;
            }
            let run_id = run.id.clone();
            let machine = run
                .machine_id
                .as_ref()
                .and_then(|id| self.app.machines.get(id));
            // Needed if it has no machine yet.
            let envs = self.envs().ok();
            if let Err(error) = self.take_on(run, Origin::Earlier, envs).await {
                tracing::error!(service = id, run = run_id, context = ?error.context, "a backing could not be taken over");
                continue;
            }
            if !concerns {
                if let Some(backing) = self.backing(&run_id) {
                    backing.end();
                }
            } else if self.is_serving(&run_id)
                && let Some(machine) = machine
            {
                // It took traffic, and goes on to. What the checks say comes later.
                let healthy = self.state() == State::Ready || !self.is_newest(&run_id);
                let upstream = self.upstream(&run_id, machine);
                if let Some(backing) = self.backing(&run_id) {
                    backing.is_healthy = healthy;
                }
                let port = self.row.gateway_port;
                self.open_door(&run_id).await;
                self.route.lead_to(upstream);
                if self.row.gateway_port != port {
                    self.record(&[]).await;
                }
            }
        }
    }

    /// Starts the task of a backing's run.
    async fn take_on(
        &mut self,
        run: RunRow,
        origin: Origin,
        envs: Option<BTreeMap<String, String>>,
    ) -> Result<()> {
        let version = agent_version::prepared(&self.app, &run.version_id).await?;
        let port = version.config.service.port.unwrap_or(self.row.port);
        let run_id = run.id.clone();
        let live = agent_task::back(&self.app, run, version.clone(), origin, envs, &self.live);
        self.backings.push(Backing {
            run_id,
            plan: Plan::of(&version.config, port),
            version,
            live,
            upstream: None,
            check: None,
            deadline: None,
            was_overdue: false,
            is_healthy: false,
            failures: 0,
            last_error: None,
            is_retired: false,
        });
        Ok(())
    }

    /// Does what was recorded by requests since.
    async fn follow_wishes(&mut self) {
        let fresh = match read(&self.app, &self.row.id).await {
            Ok(fresh) => fresh,
            Err(error) => {
                tracing::error!(service = self.row.id, context = ?error.context, "a service could not be read");
                return;
            }
        };
        let begins_again = fresh.wanted > self.row.followed;
        // Theirs to write, ours to read.
        self.row.wanted = fresh.wanted;
        self.row.envs = fresh.envs;
        self.row.restart_reason = fresh.restart_reason;
        self.row.stop_requested_at = fresh.stop_requested_at;
        self.row.stop_reason = fresh.stop_reason;
        self.row.stop_retain = fresh.stop_retain;
        if begins_again {
            self.row.version_id = fresh.version_id;
            self.row.port = fresh.port;
        }
        if self.row.stop_requested_at.is_some() {
            if self.state() != State::Stopping {
                self.stop().await;
            }
            if self.backings.is_empty() {
                self.conclude(Input::Gone, "stopped".into()).await;
            }
        } else if begins_again {
            self.begin(true).await;
        }
    }

    async fn stop(&mut self) {
        let message = match &self.row.stop_reason {
            Some(reason) => format!("stopping: {reason}"),
            None => "stopping".into(),
        };
        self.route.lead_to(None);
        self.again_at = None;
        self.step(Input::Stop, message).await;
        let kept = self.row.serving_run_id.clone().or(self.row.run_id.clone());
        for backing in &mut self.backings {
            if let Some(seconds) = self.row.stop_retain
                && kept.as_ref() == Some(&backing.run_id)
            {
                let _ = backing.live.retain.set(seconds);
            }
            backing.end();
        }
    }

    /// Makes a backing of the version that is wanted. One that takes traffic stays until it is ready.
    async fn begin(&mut self, is_asked: bool) {
        let serving = self.row.serving_run_id.clone();
        for backing in &mut self.backings {
            if serving.as_ref() != Some(&backing.run_id) {
                backing.end();
            }
        }
        self.again_at = None;
        if is_asked {
            self.losses = 0;
        }
        let is_restart = is_asked && self.row.followed > 0;
        self.row.followed = self.row.wanted;
        if let Err(error) = self.try_begin(is_restart).await {
            let failure = Failure {
                reason: error.message,
                phase: Phase::Start,
                machine_lost: false,
            };
            self.failed(failure).await;
        }
    }

    async fn try_begin(&mut self, is_restart: bool) -> Result<()> {
        let envs = self.envs()?;
        let version = agent_version::prepared(&self.app, &self.row.version_id).await?;
        let now = time::now();
        let run = RunRow {
            id: id::new(id::RUN),
            deployment_id: self.row.deployment_id.clone(),
            version_id: self.row.version_id.clone(),
            service_id: Some(self.row.id.clone()),
            status: RunState::Queued.as_str().into(),
            input: "{}".into(),
            has_envs: self.row.envs.is_some(),
            retain_seconds: agent_config::retain_seconds(&version.config, None, None),
            key_id: self.row.key_id.clone(),
            created_at: now,
            updated_at: now,
            ..RunRow::default()
        };
        self.row.run_id = Some(run.id.clone());
        self.row.updated_at = now;
        let mut events = Vec::new();
        if is_restart && let Ok(step) = lifecycle::step(self.state(), Input::Restart) {
            let message = match &self.row.restart_reason {
                Some(reason) => format!("restarting: {reason}"),
                None => "restarting".into(),
            };
            self.row.failure_reason = None;
            self.row.status = step.state.as_str().into();
            events.push(agent_log::news(step.event, message, None, false));
        }
        let run = loop {
            let (new, row, events) = (run.clone(), self.row.clone(), events.clone());
            let recorded = self
                .app
                .store
                .write(move |tx| {
                    let seq = runs::insert(tx, &new)?;
                    rows::update(tx, &row)?;
                    let count = rows::take_log(tx, &row.id, &events, 0)?;
                    Ok::<_, StoreError>((RunRow { seq, ..new }, count))
                })
                .await;
            match recorded {
                Ok((run, count)) => {
                    agent_task::advance(&self.live.log, count);
                    break run;
                }
                Err(error) => self.not_recorded(&error).await,
            }
        };
        self.take_on(run, Origin::New, Some(envs)).await
    }

    /// The values of its environment variables.
    fn envs(&self) -> Result<BTreeMap<String, String>> {
        let Some(sealed) = &self.row.envs else {
            return Ok(BTreeMap::new());
        };
        let plain = self.app.seal.open_sealed(&self.row.id, sealed);
        plain
            .and_then(|plain| serde_json::from_slice(&plain).ok())
            .ok_or_else(|| {
                Error::internal("a sealed environment could not be opened").with_message(
                    "the values of its environment variables cannot be read any more: restart it with them",
                )
            })
    }

    async fn hear(&mut self, run_id: &str, heard: Heard) {
        match heard {
            Heard::News(News::Started { machine }) => self.started(run_id, machine),
            Heard::News(News::Crashed) => self.crashed(run_id).await,
            Heard::News(News::Over { failure }) => self.over(run_id, failure).await,
            Heard::Checked(result) => self.checked(run_id, result).await,
            Heard::Drained => {
                if let Some(backing) = self.backing(run_id) {
                    backing.end();
                }
            }
        }
    }

    fn upstream(&mut self, run_id: &str, machine: Arc<Handle>) -> Option<Arc<Upstream>> {
        let engine = self.app.engine.clone();
        let backing = self.backing(run_id)?;
        let upstream = Upstream::new(Port {
            engine,
            machine,
            port: backing.plan.port,
        });
        backing.upstream = Some(upstream.clone());
        Some(upstream)
    }

    /// An entry point runs: now it is looked at.
    fn started(&mut self, run_id: &str, machine: Arc<Handle>) {
        if self.backing(run_id).is_some_and(|b| b.upstream.is_none()) {
            self.upstream(run_id, machine.clone());
        }
        let (engine, live) = (self.app.engine.clone(), self.live.clone());
        let Some(backing) = self.backing(run_id).filter(|b| !b.is_retired) else {
            return;
        };
        if !backing.is_healthy {
            let limit = backing.plan.deadline;
            backing
                .deadline
                .get_or_insert_with(|| Instant::now() + limit);
        }
        let port = Port {
            engine,
            machine,
            port: backing.plan.port,
        };
        backing.stop_checking();
        let checking = check::repeat(backing.plan.clone(), port, run_id.to_owned(), live);
        backing.check = Some(tokio::spawn(checking).abort_handle());
    }

    async fn crashed(&mut self, run_id: &str) {
        let Some(backing) = self.backing(run_id).filter(|b| !b.is_retired) else {
            return;
        };
        backing.stop_checking();
        backing.is_healthy = false;
        backing.failures = 0;
        // Connections to a process that is gone are of no use.
        backing.upstream = None;
        self.row.restart_count += 1;
        if self.is_serving(run_id) {
            self.route.lead_to(None);
        }
        if self.is_newest(run_id) && self.state() != State::Starting {
            self.step(Input::Crashed, "its entry point ended".into())
                .await;
        } else {
            self.record(&[]).await;
        }
    }

    async fn checked(&mut self, run_id: &str, result: std::result::Result<(), String>) {
        let (newest, serving) = (self.is_newest(run_id), self.is_serving(run_id));
        let Some(backing) = self.backing(run_id) else {
            return;
        };
        if backing.is_retired || backing.check.is_none() {
            return;
        }
        let status = backing.plan.status(&result, time::rfc3339(time::now()));
        let mut became_healthy = false;
        let mut became_unhealthy = None;
        let mut is_news = false;
        match result {
            Ok(()) => {
                backing.failures = 0;
                backing.deadline = None;
                is_news = backing.last_error.take().is_some();
                became_healthy = !std::mem::replace(&mut backing.is_healthy, true);
            }
            Err(error) => {
                backing.failures += 1;
                is_news |= backing.last_error.as_ref() != Some(&error);
                backing.last_error = Some(error.clone());
                if backing.is_healthy && backing.failures >= FAILURES {
                    backing.is_healthy = false;
                    became_unhealthy = Some(error);
                }
            }
        }
        let upstream = backing.upstream.clone();
        if newest {
            self.row.readiness = status.to_string();
        }
        if became_healthy {
            if newest {
                return self.ready(run_id).await;
            }
            if serving {
                self.route.lead_to(upstream);
            }
        } else if let Some(error) = became_unhealthy
            && newest
        {
            let message = format!("the health check failed {FAILURES} times in a row: {error}");
            self.step(Input::CheckFailed, message).await;
        } else if is_news && newest {
            self.record(&[]).await;
        }
    }

    /// The newest backing answers: traffic goes there from now on.
    async fn ready(&mut self, run_id: &str) {
        self.open_door(run_id).await;
        let upstream = self.backing(run_id).and_then(|b| b.upstream.clone());
        self.route.lead_to(upstream);
        self.row.serving_run_id = Some(run_id.to_owned());
        self.row.started_at.get_or_insert(time::now());
        self.row.failure_reason = None;
        for backing in &mut self.backings {
            if backing.run_id != run_id && !backing.is_retired {
                retire(backing, &self.live);
            }
        }
        self.step(Input::Ready, "ready".into()).await;
    }

    /// Opens or closes the service's port, as the version of this backing allows.
    async fn open_door(&mut self, run_id: &str) {
        let Some(backing) = self.backing(run_id) else {
            return;
        };
        let permissions = backing.version.config.permissions.clone();
        if permissions.public_url != Some(true) {
            self.door = None;
            self.row.gateway_port = None;
            return;
        }
        self.route.allow(match permissions.allow_public_traffic {
            Some(false) => Access::Token(self.app.seal.token(&self.row.id).into()),
            _ => Access::Public,
        });
        if self.door.is_some() {
            return;
        }
        let config = &self.app.config;
        let range = config.gateway_first_port..=config.gateway_last_port;
        // Services of one server do not compete for the same port, nor do servers of one host.
        let hint = u16::try_from(self.row.seq.rem_euclid(10_000)).unwrap_or_default();
        let doors = &self.app.doors;
        let opened = Door::open(
            doors.address.ip(),
            self.row.gateway_port,
            range,
            hint,
            self.route.clone(),
            &doors.connections,
            &self.app.stopping,
        );
        match opened.await {
            Ok(door) => {
                self.row.gateway_port = Some(door.port());
                self.door = Some(door);
            }
            Err(error) => {
                tracing::error!(service = self.row.id, %error, "no port could be opened for a service");
                self.row.gateway_port = None;
            }
        }
    }

    async fn over(&mut self, run_id: &str, failure: Option<Failure>) {
        let backing = self.backings.iter().position(|b| b.run_id == run_id);
        let backing = backing.map(|at| self.backings.swap_remove(at));
        if self.state() == State::Stopping {
            if self.backings.is_empty() {
                self.conclude(Input::Gone, "stopped".into()).await;
            }
            return;
        }
        if backing.as_ref().is_some_and(|backing| backing.is_retired) {
            return;
        }
        if self.is_serving(run_id) {
            self.route.lead_to(None);
            self.row.serving_run_id = None;
        }
        if !self.is_newest(run_id) {
            return self.record(&[]).await;
        }
        let mut failure = failure.unwrap_or_else(|| Failure {
            reason: "it was ended from outside".into(),
            phase: Phase::Entrypoint,
            machine_lost: false,
        });
        if backing.is_some_and(|backing| backing.was_overdue) {
            failure.phase = Phase::Readiness;
        }
        self.failed(failure).await;
    }

    /// The newest backing came to nothing.
    async fn failed(&mut self, failure: Failure) {
        if self.lost_at.elapsed() > STEADY {
            self.losses = 0;
        }
        if failure.machine_lost && self.losses < self.app.config.service_restarts {
            let pause = agent_task::pause(&self.app.config, self.losses);
            self.losses += 1;
            self.lost_at = Instant::now();
            self.row.restart_count += 1;
            self.again_at = Some(Instant::now() + pause);
            let message = format!("{}; another machine is made", failure.reason);
            return self.step(Input::Crashed, message).await;
        }
        let serving = self.row.serving_run_id.clone();
        let before = self
            .backings
            .iter()
            .find(|b| Some(&b.run_id) == serving.as_ref() && !b.is_retired);
        let Some(before) = before else {
            self.row.failure_reason = Some(failure.reason.clone());
            return self
                .conclude(Input::Broke(failure.phase), failure.reason)
                .await;
        };
        let (healthy, version_id, port) = (
            before.is_healthy,
            before.version.id.clone(),
            before.plan.port,
        );
        let last = match &before.last_error {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        };
        let readiness = before.plan.status(&last, time::rfc3339(time::now()));
        let readiness = readiness.to_string();
        self.row.run_id = serving;
        self.row.version_id.clone_from(&version_id);
        self.row.port = port;
        let message = format!(
            "the restart failed, the version before goes on: {}",
            failure.reason
        );
        self.row.failure_reason = Some(message.clone());
        self.row.readiness = readiness;
        let Ok(step) = lifecycle::step(self.state(), Input::FellBack { healthy }) else {
            return;
        };
        self.row.status = step.state.as_str().into();
        let event = self.event(step.event, message);
        self.record_with(&[event], Some((version_id, port))).await;
    }

    /// What is due.
    async fn time_passed(&mut self) {
        let now = Instant::now();
        if self.again_at.is_some_and(|at| at <= now) {
            return self.begin(false).await;
        }
        for backing in &mut self.backings {
            if backing.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            backing.deadline = None;
            backing.was_overdue = true;
            backing.stop_checking();
            let seconds = backing.plan.deadline.as_secs();
            let error = backing.last_error.as_deref().unwrap_or("no check passed");
            let reason = format!("readiness: not ready within {seconds} s: {error}");
            let _ = backing.live.failure.set(reason);
            backing.live.cancel.cancel();
        }
    }

    /// Decides and records a step that is not the end.
    async fn step(&mut self, input: Input, message: String) {
        match lifecycle::step(self.state(), input) {
            Ok(step) => {
                self.row.status = step.state.as_str().into();
                let event = self.event(step.event, message);
                self.record(&[event]).await;
            }
            Err(refused) => tracing::error!(
                service = self.row.id,
                state = refused.state.as_str(),
                ?input,
                "a step does not fit the state of its service"
            ),
        }
    }

    fn event(&self, event: Event, message: String) -> NewLog {
        agent_log::news(event, message, None, self.row.run_id.is_some())
    }

    async fn record(&mut self, events: &[NewLog]) {
        self.record_with(events, None).await;
    }

    /// With the version and port that go on after a restart that failed.
    async fn record_with(&mut self, events: &[NewLog], falls_back: Option<(String, u16)>) {
        self.row.updated_at = time::now();
        loop {
            let (row, events, falls_back) = (self.row.clone(), events.to_vec(), falls_back.clone());
            let recorded = self
                .app
                .store
                .write(move |tx| {
                    rows::update(tx, &row)?;
                    if let Some((version_id, port)) = falls_back {
                        rows::fall_back(tx, &row.id, &version_id, port)?;
                    }
                    rows::take_log(tx, &row.id, &events, 0)
                })
                .await;
            match recorded {
                Ok(count) => return agent_task::advance(&self.live.log, count),
                Err(error) => self.not_recorded(&error).await,
            }
        }
    }

    async fn not_recorded(&self, error: &StoreError) {
        tracing::error!(service = self.row.id, %error, "a service could not be recorded; trying again");
        tokio::time::sleep(RETRY).await;
    }

    /// Records the end, unless somebody has asked for a new beginning at this moment.
    async fn conclude(&mut self, input: Input, message: String) {
        let Ok(step) = lifecycle::step(self.state(), input) else {
            tracing::error!(
                service = self.row.id,
                status = self.row.status,
                ?input,
                "an end does not fit the state of its service"
            );
            return;
        };
        self.route.lead_to(None);
        let now = time::now();
        let ended = ServiceRow {
            status: step.state.as_str().into(),
            serving_run_id: None,
            stopped_at: Some(now),
            updated_at: now,
            ..self.row.clone()
        };
        let event = self.event(step.event, message);
        loop {
            let (row, event) = (ended.clone(), event.clone());
            let recorded = self
                .app
                .store
                .write(move |tx| {
                    let wanted = rows::get(tx, &row.id)?.map_or(0, |fresh| fresh.wanted);
                    if wanted > row.followed {
                        return Ok::<_, StoreError>(None);
                    }
                    rows::update(tx, &row)?;
                    rows::take_log(tx, &row.id, &[event], 0).map(Some)
                })
                .await;
            match recorded {
                Ok(Some(count)) => {
                    self.row = ended;
                    agent_task::advance(&self.live.log, count);
                    return;
                }
                // The wish is followed next.
                Ok(None) => return,
                Err(error) => self.not_recorded(&error).await,
            }
        }
    }
}

/// Lets a backing that was replaced finish its requests, then ends it.
fn retire(backing: &mut Backing, live: &Arc<ServiceLive>) {
    backing.is_retired = true;
    backing.deadline = None;
    backing.stop_checking();
    let Some(upstream) = backing.upstream.take() else {
        backing.live.cancel.cancel();
        return;
    };
    // It must not keep the service's log open.
    let (live, run_id) = (Arc::downgrade(live), backing.run_id.clone());
    tokio::spawn(async move {
        let _ = tokio::time::timeout(DRAIN, upstream.drained()).await;
        if let Some(live) = live.upgrade() {
            live.hear(&run_id, Heard::Drained);
        }
    });
}

/// A moment, if there is one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

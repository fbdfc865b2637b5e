//! One build, from its turn to its end.
//!
//! ```text
//!  turn ──▶ start ──▶ each stage: base ──▶ each step: a layer that is there, or a machine ──▶ layer (see `step`)
//!                 └─▶ settle ──▶ a machine gets ready ──▶ artifact, tags, end: one transaction
//! ```
//! It stops where it waits: when somebody cancels it, the server goes down, or its time is over. Whatever the end, no
//! machine of it is left.

mod caches;
mod copy;
mod end;
mod image;
mod instruction;
mod step;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use nullspace_api::{
    template_build::{Build, BuildLogEntry, BuildRequest, BuildStatus},
    time,
};
use nullspace_store::{
    StoreError,
    template_build::{self as rows, BuildRow},
};
use tokio::{sync::watch, time::Instant};

use self::{
    caches::Caches,
    end::{End, of_machine},
    instruction::State,
};
use super::{
    artifact::Artifact,
    build::{self, Live},
    context::Context,
    definition::Secrets,
    journal::Journal,
    layer,
    program::{Action, CopyFrom, From, Program},
};
use crate::{
    app::{AppState, machine},
    error::{Error, Result},
};

/// What a build is to do.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: BuildRequest,
    pub(super) program: Program,
    pub(super) secrets: Secrets,
    pub(super) context: Context,
}

/// Whether layers that are there count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bypass {
    No,
    /// Since a step said so.
    Boundary,
    /// The whole build was asked to be done again.
    Whole,
}

struct Worker {
    app: AppState,
    job: Arc<Job>,
    live: Arc<Live>,
    journal: Journal,
    view: Build,
    deadline: Instant,
    bypass: Bypass,
    /// The machine of the step.
    machine: Option<String>,
    /// What it has besides.
    caches: Caches,
    /// Layers that may not have reached the disk.
    unsettled: Vec<String>,
}

/// Builds; returns when everything about it is on record.
pub(super) async fn run(
    app: AppState,
    job: Job,
    row: BuildRow,
    live: Arc<Live>,
    told: watch::Sender<u64>,
) {
    let id = row.id.clone();
    let view = match build::view(&row) {
        Ok(view) => view,
        Err(error) => {
            tracing::error!(build = id, context = ?error.context, "a build cannot be begun");
            return;
        }
    };
    let journal = Journal::new(&app, row, told, &job.secrets.hidden());
    let limit = Duration::from_secs(app.config.template_build_secs);
    let mut worker = Worker {
        bypass: match job.request.skip_cache {
            true => Bypass::Whole,
            false => Bypass::No,
        },
        app: app.clone(),
        job: Arc::new(job),
        live,
        journal,
        view,
        deadline: Instant::now() + limit,
        machine: None,
        caches: Caches::default(),
        unsettled: Vec::new(),
    };
    let turns = app.templates.builds.turns(&app);
    let turn = tokio::select! {
        turn = turns.acquire_owned() => turn.map_err(|_| End::Interrupted),
        () = worker.live.cancel.cancelled() => Err(End::Cancelled),
        () = app.stopping.cancelled() => Err(End::Interrupted),
    };
    let end = match turn {
        Ok(_turn) => {
            // The wait for its turn does not count.
            worker.deadline = Instant::now() + limit;
            let end = worker.build().await;
            worker.end_machine().await;
            end
        }
        Err(end) => Err(end),
    };
    worker.finish(end).await;
    app.templates.held.release(&id);
    app.templates.builds.remove(&id);
}

impl Worker {
    async fn build(&mut self) -> Result<Artifact, End> {
        let now = time::now();
        self.view.started_at = Some(time::rfc3339(now));
        self.journal.row.status = BuildStatus::Building.as_str().into();
        self.journal.at.total = self.total();
        self.journal.say(BuildLogEntry {
            kind: "start".into(),
            level: "info".into(),
            phase: Some("preparing".into()),
            message: format!("building template {}", self.view.name),
            ..BuildLogEntry::default()
        });
        for warning in self.job.program.warnings.clone() {
            self.journal.warn("preparing", warning);
        }
        self.flush().await?;
        let state = self.stages().await?;
        self.journal.at.step = None;
        let artifact = self.artifact(state);
        self.keep(&artifact).await?;
        Ok(artifact)
    }

    /// Steps that are to be done.
    fn total(&self) -> u32 {
        let needed = self.needed();
        let stages = self.job.program.stages.iter().zip(needed);
        let steps = stages
            .filter(|(_, needed)| *needed)
            .flat_map(|(stage, _)| &stage.instructions)
            .filter(|instruction| instruction.action.is_step());
        u32::try_from(steps.count()).unwrap_or(u32::MAX)
    }

    /// Which stages the last one needs.
    fn needed(&self) -> Vec<bool> {
        let stages = &self.job.program.stages;
        let mut needed = vec![false; stages.len()];
        let mut open: Vec<usize> = stages.len().checked_sub(1).into_iter().collect();
        while let Some(number) = open.pop() {
            if std::mem::replace(&mut needed[number], true) {
                continue;
            }
            if let From::Stage(other) = stages[number].from {
                open.push(other);
            }
            for instruction in &stages[number].instructions {
                if let Action::Copy(copy) = &instruction.action
                    && let CopyFrom::Stage(other) = copy.from
                {
                    open.push(other);
                }
            }
        }
        needed
    }

    async fn stages(&mut self) -> Result<State, End> {
        let needed = self.needed();
        let mut done: Vec<Option<State>> = Vec::new();
        for (number, is_needed) in needed.into_iter().enumerate() {
            let state = match is_needed {
                true => Some(self.stage(number, &done).await?),
                false => None,
            };
            done.push(state);
        }
        done.pop()
            .flatten()
            .ok_or_else(|| End::failed("prepare", "empty", "the build has no stage", "add one"))
    }

    /// What the build comes to, with what the request says about machines.
    fn artifact(&mut self, state: State) -> Artifact {
        let start_cmd = state.start_cmd();
        let mut artifact = state.artifact;
        let request = &self.job.request;
        artifact.start_cmd = request.start_cmd.clone().or(start_cmd);
        if let Some(runtime) = &request.runtime_config {
            if let Some(user) = &runtime.default_user {
                artifact.user = Some(user.clone());
            }
            if let Some(workdir) = &runtime.default_workdir {
                artifact.cwd.clone_from(workdir);
            }
            for (name, value) in runtime.default_envs.iter().flatten() {
                artifact.set_env(name, value.clone());
            }
            artifact.readiness.clone_from(&runtime.readiness);
            artifact.isolation = runtime.isolation.or(artifact.isolation);
        }
        if matches!(artifact.user.as_deref(), Some("root" | "0" | "")) {
            artifact.user = None;
        }
        artifact
    }

    /// Sees layers to the disk, and that a machine of the template gets ready.
    async fn keep(&mut self, artifact: &Artifact) -> Result<(), End> {
        let digest = artifact.digest();
        let wanted = digest.clone();
        let known = (self.app.store)
            .read(move |db| rows::by_digest(db, &wanted))
            .await
            .map_err(|e: StoreError| End::of("finalize", &e.into()))?;
        let status = match (self.bypass, known) {
            (Bypass::Whole, _) => "bypass",
            (_, Some(_)) => "hit",
            (_, None) => "miss",
        };
        self.cache(
            "final_artifact",
            status,
            &format!("template {}", self.view.name),
        );
        let layers = std::mem::take(&mut self.unsettled);
        if !layers.is_empty() {
            self.journal.message("snapshot", "keeping the layers");
            self.flush().await?;
            layer::settle(&self.app, layers)
                .await
                .map_err(|error| End::of("snapshot", &error))?;
        }
        if status != "hit" {
            self.try_out(artifact).await?;
            self.cache(
                "final_artifact",
                "stored",
                &format!("template {}", self.view.name),
            );
        }
        Ok(())
    }

    /// Makes a machine of the template, as callers will.
    async fn try_out(&mut self, artifact: &Artifact) -> Result<(), End> {
        let starts = artifact.start_cmd.is_some() || artifact.readiness.is_some();
        if !starts && artifact.user.is_none() {
            return Ok(());
        }
        if starts {
            self.journal
                .message("readiness", "starting a machine of the template");
            self.flush().await?;
        }
        let layer = artifact.layer(&self.app.data_dir, &self.view.name);
        let created = self.create(layer, Vec::new()).await;
        let id = created.map_err(|error| {
            let action = "see that the start command works, and that the readiness check fits it";
            let phase = if starts { "readiness" } else { "finalize" };
            End::failed(phase, error.code, error.message, action)
        })?;
        if let Some(user) = &artifact.user {
            let request = nullspace_protocol::ExecRequest {
                argv: vec!["/bin/true".into()],
                user: Some(user.clone()),
                ..Default::default()
            };
            let guest = machine::own_guest(&self.app, &id)
                .await
                .map_err(|error| End::of("finalize", &error))?;
            // An image need not have the program; what counts is whether it has the user.
            if let Err(error) = guest.exec(&request).await
                && error.to_string().contains("in this machine")
            {
                let message = format!("the default user cannot be used: {error}");
                let action = "make the user in a step before";
                return Err(End::failed("finalize", "no_user", message, action));
            }
        }
        self.end_machine().await;
        Ok(())
    }

    /// A machine of this build.
    async fn create(
        &mut self,
        layer: nullspace_templates::Layer,
        binds: Vec<nullspace_engine::Bind>,
    ) -> Result<String> {
        let config = &self.job.request.build_config.clone().unwrap_or_default();
        let tenant_id = self.journal.row.tenant_id.clone();
        let layer = Arc::new(layer);
        let defaults = machine::NewMachine::from_template(&self.app, &tenant_id, layer);
        let new = machine::NewMachine {
            vcpus: config.vcpus.unwrap_or(2).min(self.app.config.max_vcpus),
            memory_mb: (config.memory_mib.unwrap_or(512)).min(self.app.config.max_memory_mb),
            egress: match config.internet_access {
                Some(false) => nullspace_engine::egress::Rules::deny_all(),
                _ => defaults.egress.clone(),
            },
            owner: Some(format!("{}{}", super::derived::OWNER, self.view.build_id)),
            binds,
            becomes_layer: true,
            ..defaults
        };
        // Not dropped in its middle: nobody would know the machine.
        let app = self.app.clone();
        let created = tokio::spawn(async move { machine::create(&app, new, None).await }).await;
        let created = created.map_err(|e| Error::internal(format!("making a machine: {e}")))??;
        let (machine::Created::New(row) | machine::Created::Replayed(row)) = created;
        self.machine = Some(row.id.clone());
        Ok(row.id.clone())
    }

    /// And what it has besides, which is removed only then.
    async fn end_machine(&mut self) {
        if let Some(id) = self.machine.take()
            && let Err(error) = machine::destroy(&self.app, &id, None).await
        {
            tracing::error!(machine = id, context = ?error.context, "the machine of a build could not be ended");
        }
        self.caches = Caches::default();
    }

    /// Waits for something, but not for longer than the build may go on.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            done = work => Ok(done),
            () = self.live.cancel.cancelled() => Err(End::Cancelled),
            () = self.app.stopping.cancelled() => Err(End::Interrupted),
            () = tokio::time::sleep_until(self.deadline) => Err(self.too_long()),
        }
    }

    fn too_long(&self) -> End {
        let limit = self.app.config.template_build_secs;
        let message = format!("the build took over {limit} s");
        let action = "see what the step waits for, or raise template_build_secs";
        End::failed("build_step", "timeout", message, action)
    }

    /// Keeps what was said. Who stopped it is a part of the record.
    async fn flush(&mut self) -> Result<(), End> {
        self.note().map_err(|error| End::of("prepare", &error))?;
        let kept = self.journal.flush().await;
        kept.map_err(|error| End::of("prepare", &error).retryable())
    }

    /// Puts what is known about the build into its record.
    fn note(&mut self) -> Result<()> {
        let cancelled = (self.live.cancelled.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(cancelled) = cancelled {
            self.view.cancel_requested_at = Some(time::rfc3339(cancelled.at));
            self.view.cancel_requested_by = Some(cancelled.by);
            self.view.cancellation_reason = cancelled.reason;
        }
        self.journal.row.view = build::text(&self.view)?;
        Ok(())
    }

    /// Says what became of something that may be there already.
    fn cache(&mut self, kind: &'static str, status: &'static str, subject: &str) {
        let summary = &mut self.view.cache_summary;
        let count = match (kind, status) {
            ("layer", "hit") => &mut summary.layer_hits,
            ("layer", "miss") => &mut summary.layer_misses,
            ("layer", "bypass") => &mut summary.layer_bypasses,
            ("layer", _) => &mut summary.layer_stores,
            (_, "hit") => &mut summary.final_artifact_hits,
            (_, "miss") => &mut summary.final_artifact_misses,
            (_, "bypass") => &mut summary.final_artifact_bypasses,
            _ => &mut summary.final_artifact_stores,
        };
        *count += 1;
        let reason = match (status, self.bypass) {
            ("bypass", Bypass::Whole) => Some("whole_build_skip_cache"),
            ("bypass", Bypass::Boundary) => Some("builder_cache_boundary"),
            ("bypass", Bypass::No) => Some("force_upload"),
            ("miss", _) => Some("missing_or_incompatible"),
            _ => None,
        };
        let shown: String = subject.chars().take(200).collect();
        let subject = self.journal.clean(&shown);
        let message = match status {
            "hit" => format!("cached: {subject}"),
            "miss" => format!("not cached: {subject}"),
            "bypass" => format!("made again: {subject}"),
            _ => format!("kept: {subject}"),
        };
        self.journal.say(BuildLogEntry {
            kind: "cache".into(),
            level: if status == "hit" { "info" } else { "debug" }.into(),
            phase: Some("cache".into()),
            message,
            cache_kind: Some(kind.into()),
            cache_status: Some(status.into()),
            cache_reason: reason.map(str::to_owned),
            cache_subject: Some(subject),
            ..BuildLogEntry::default()
        });
    }
}

//! A step: a layer that is there already, or what a machine wrote.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use nullspace_api::template_build::{BuildLogEntry, BuildSecret};
use nullspace_protocol::{
    ExecRequest as GuestExec, GuestClient, GuestError, OutputStream, PathRequest, WriteQuery,
    frame::Frame,
};
use tokio::time::{Instant, MissedTickBehavior};

use nullspace_engine::Bind;

use super::{Bypass, End, Worker, caches::Caches, instruction::State, of_machine};
use crate::app::{
    machine,
    template::{
        layer::{self, key},
        program::{Instruction, Run, SecretUse, quoted},
    },
};

/// Trees of a machine, above which they are made one. An overlay takes 32, and runs of agents put some of their own on
/// top.
const MAX_DEPTH: usize = 22;
/// What was said is kept this often.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What a machine wrote is measured this often.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// A line that does not end is told in pieces of this many bytes.
const MAX_LINE: usize = 8 << 10;
/// Lines of output that a failure shows.
const TAIL: usize = 8;
/// Where secrets are while a step runs: in the machine's memory.
const SECRETS: &str = "/dev/shm/.nullspace-secrets";
/// Where programs look for them.
const RUN_SECRETS: &str = "/run/secrets";

/// How a command ended.
enum Ended {
    Exit(i32),
    /// It wrote more than it may.
    DiskFull(u64),
}

impl Worker {
    /// Puts a layer that is there on top. Answers whether there was one.
    pub(super) async fn take(
        &mut self,
        state: &mut State,
        key: &str,
        instruction: &Instruction,
        again: bool,
    ) -> Result<bool, End> {
        if again || self.bypass != Bypass::No {
            self.cache("layer", "bypass", &instruction.text);
            return Ok(false);
        }
        let key = layer::key_of_step(&self.journal.row.tenant_id, key);
        let found = layer::take(&self.app, &self.view.build_id, key).await;
        match found.map_err(|error| End::of("prepare", &error))? {
            Some(row) => {
                self.cache("layer", "hit", &instruction.text);
                state.artifact.layers.insert(0, row.id.clone());
                // One that a build at work made may not be on the disk yet.
                if !row.is_synced {
                    self.unsettled.push(row.id);
                }
                Ok(true)
            }
            None => {
                self.cache("layer", "miss", &instruction.text);
                Ok(false)
            }
        }
    }

    /// A machine to do a step in.
    pub(super) async fn step_machine(&mut self, state: &mut State) -> Result<String, End> {
        self.step_machine_with(state, Vec::new()).await
    }

    /// The same with directories of the host.
    async fn step_machine_with(
        &mut self,
        state: &mut State,
        binds: Vec<Bind>,
    ) -> Result<String, End> {
        self.flush().await?;
        self.check_disk()?;
        self.limit_depth(state).await?;
        let mut layer = state.artifact.layer(&self.app.data_dir, &self.view.name);
        layer.runtime = nullspace_templates::Runtime::default();
        let created = self.create(layer, binds).await;
        created.map_err(|error| End::of("prepare", &error))
    }

    /// Makes one layer of all that there are, if there are too many for another.
    pub(super) async fn limit_depth(&mut self, state: &mut State) -> Result<(), End> {
        if state.artifact.depth() < MAX_DEPTH {
            return Ok(());
        }
        let artifact = &state.artifact;
        let layers = artifact.layers.join(" ");
        let key = key(&["flat", &artifact.base, &layers]);
        let found = layer::take(&self.app, &self.view.build_id, key.clone()).await;
        let row = match found.map_err(|error| End::of("prepare", &error))? {
            Some(row) => row,
            None => {
                self.journal
                    .message("step", "making one layer of all before");
                self.flush().await?;
                let lower = artifact.layer(&self.app.data_dir, "").lower;
                let made = self
                    .unless_stopped(layer::flatten(&self.app, &self.view.build_id, key, lower))
                    .await?;
                made.map_err(|error| End::of("snapshot", &error))?
            }
        };
        if !row.is_synced {
            self.unsettled.push(row.id.clone());
        }
        // The binds of a base stay: its trees have only the places for them.
        state.artifact.layers = vec![row.id];
        state.artifact.lower.truncate(0);
        Ok(())
    }

    /// Keeps what the machine of a step wrote, as the topmost layer.
    pub(super) async fn keep_step(
        &mut self,
        state: &mut State,
        key: String,
        instruction: &Instruction,
    ) -> Result<(), End> {
        let Some(id) = self.machine.take() else {
            return Ok(());
        };
        let key = layer::key_of_step(&self.journal.row.tenant_id, &key);
        let kept = layer::keep(&self.app, &self.view.build_id, &id, key).await;
        self.caches = Caches::default();
        let row = kept.map_err(|error| End::of("snapshot", &error).retryable())?;
        self.cache("layer", "stored", &instruction.text);
        state.artifact.layers.insert(0, row.id.clone());
        self.unsettled.push(row.id);
        Ok(())
    }

    /// What a guest refuses is the step's fault.
    pub(super) fn refused(instruction: &Instruction, error: &GuestError) -> End {
        let place = instruction
            .line
            .map_or(String::new(), |line| format!("line {line}: "));
        match error {
            GuestError::Refused(body) => End::failed(
                "build_step",
                "refused",
                format!("{place}{}: {}", instruction.text, body.message),
                "correct the step and build again",
            ),
            other => of_machine("build_step", &other.clone().into()),
        }
    }

    /// Runs a command and keeps what it wrote.
    pub(super) async fn run_step(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<(), End> {
        let argv = state.argv(&run.command);
        let user = run.user.clone().or_else(|| state.artifact.user.clone());
        let user = user.filter(|user| !matches!(user.as_str(), "root" | "0"));
        let envs = state.envs(self);
        let uses = self.secrets_of(run, instruction)?;
        let internet = (self.job.request.build_config.as_ref())
            .and_then(|config| config.internet_access)
            .unwrap_or(true);
        // Of secrets only which there are: a value in the key would let others guess it.
        let counted = serde_json::to_string(&(
            &argv,
            &user,
            &envs,
            &state.artifact.env,
            &state.artifact.cwd,
            uses.iter()
                .map(|(usage, _)| (&usage.id, &usage.target, &usage.env))
                .collect::<Vec<_>>(),
            internet,
            &run.caches,
        ))
        .unwrap_or_default();
        let key = key(&["run", &state.artifact.files(), &counted]);
        if self.take(state, &key, instruction, false).await? {
            return Ok(());
        }
        self.caches = Caches::make(&self.app.data_dir, &run.caches)
            .map_err(|error| End::of("prepare", &error))?;
        let id = (self.step_machine_with(state, self.caches.binds())).await?;
        let guest = machine::own_guest(&self.app, &id)
            .await
            .map_err(|error| of_machine("build_step", &error))?;
        let mut env = envs;
        let links = self
            .place_secrets(&guest, &uses, user.as_deref(), &mut env)
            .await?;
        let request = GuestExec {
            argv,
            env,
            cwd: Some(state.artifact.cwd.clone()),
            user,
            label: Some("build step".into()),
            ..GuestExec::default()
        };
        let started = self.unless_stopped(guest.exec(&request)).await?;
        let output = started.map_err(|error| Self::refused(instruction, &error))?;
        let mut tail = VecDeque::new();
        let ended = self.follow(&id, output, &mut tail).await?;
        self.flush().await?;
        let tail = Vec::from(tail).join("\n");
        let place = instruction
            .line
            .map_or(String::new(), |line| format!("line {line}: "));
        let text = self.journal.clean(&instruction.text);
        let shown: String = text.chars().take(500).collect();
        match ended {
            Ended::Exit(0) => {}
            Ended::Exit(code) => {
                let message = format!("{place}{shown}: ended with {code}\n{tail}");
                let end = End::failed(
                    "build_step",
                    "exit_code",
                    message.trim_end(),
                    "see the log of the step, correct it and build again",
                );
                return Err(end.with("exit_code", code).with("command", shown));
            }
            Ended::DiskFull(mib) => {
                let message = format!("{place}{shown}: wrote over {mib} MiB, or filled the disk");
                let action = "write less, or give the build more with build_config.disk_mb";
                return Err(
                    End::failed("build_step", "disk_full", message, action).with("command", shown)
                );
            }
        }
        for path in links {
            let request = PathRequest {
                path,
                ..PathRequest::default()
            };
            match guest.remove(&request).await {
                Err(GuestError::Refused(body))
                    if body.kind == nullspace_protocol::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| Self::refused(instruction, &error))?,
            }
        }
        self.keep_step(state, key, instruction).await
    }

    /// Tells what a command writes, until it ends.
    async fn follow(
        &mut self,
        machine: &str,
        mut output: OutputStream,
        tail: &mut VecDeque<String>,
    ) -> Result<Ended, End> {
        let limit = (self.job.request.build_config.as_ref())
            .and_then(|config| config.disk_mb)
            .unwrap_or(self.app.config.template_disk_mb);
        let mut cut = [Vec::new(), Vec::new()];
        let mut tick = tokio::time::interval(TELL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut measured = Instant::now();
        let (cancel, stopping) = (self.live.cancel.clone(), self.app.stopping.clone());
        let deadline = self.deadline;
        loop {
            let frame = tokio::select! {
                frame = output.next() => Some(frame),
                _ = tick.tick() => None,
                () = cancel.cancelled() => return Err(End::Cancelled),
                () = stopping.cancelled() => return Err(End::Interrupted),
                () = tokio::time::sleep_until(deadline) => return Err(self.too_long()),
            };
            let Some(frame) = frame else {
                self.flush().await?;
                if measured.elapsed() >= MEASURE_EVERY {
                    measured = Instant::now();
                    let usage = self.app.engine.usage(machine).await;
                    // One that cannot be measured now will be in a moment.
                    let cached = self.caches.size().await;
                    let over = usage.is_ok_and(|usage| {
                        usage.disk_used_bytes.saturating_add(cached) > limit << 20
                    });
                    if over || self.check_disk().is_err() {
                        return Ok(Ended::DiskFull(limit));
                    }
                }
                continue;
            };
            let frame = frame.map_err(|error| of_machine("build_step", &error.into()))?;
            match frame {
                Some(Frame::Stdout(_, data)) => self.lines(&mut cut[0], &data, tail),
                Some(Frame::Stderr(_, data)) => self.lines(&mut cut[1], &data, tail),
                Some(Frame::Exit { code, .. }) => {
                    for cut in &mut cut {
                        if !cut.is_empty() {
                            self.lines(cut, b"\n", tail);
                        }
                    }
                    return Ok(Ended::Exit(code));
                }
                Some(Frame::Started(_)) => {}
                None => {
                    let error = GuestError::Protocol("the output ended first".into());
                    return Err(of_machine("build_step", &error.into()));
                }
            }
        }
    }

    fn lines(&mut self, cut: &mut Vec<u8>, data: &[u8], tail: &mut VecDeque<String>) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            cut.extend_from_slice(piece);
            if cut.last() != Some(&b'\n') && cut.len() < MAX_LINE {
                continue;
            }
            let line = String::from_utf8_lossy(cut).into_owned();
            cut.clear();
            // What a program wrote over itself, as progress bars do, is told as it stood at the end.
            let line = line.trim_end_matches(['\n', '\r']);
            let line = line.rsplit('\r').next().unwrap_or(line);
            let line = self.journal.clean(line);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line.chars().take(300).collect());
            self.journal.say(BuildLogEntry {
                kind: "message".into(),
                level: "info".into(),
                phase: Some("step".into()),
                message: line,
                ..BuildLogEntry::default()
            });
        }
    }

    /// Whether the host has room for another layer.
    fn check_disk(&self) -> Result<(), End> {
        /// What stays free for the record of everything else.
        const RESERVE: u64 = 256 << 20;
        let Ok(stat) = rustix::fs::statvfs(&self.app.data_dir) else {
            return Ok(());
        };
        if stat.f_bavail.saturating_mul(stat.f_frsize) >= RESERVE {
            return Ok(());
        }
        Err(End::failed(
            "build_step",
            "disk_full",
            "the server's disk is full",
            "make room on the server's disk, and retry the build",
        )
        .retryable())
    }

    /// The secrets that a command reads, with their values.
    fn secrets_of(
        &self,
        run: &Run,
        instruction: &Instruction,
    ) -> Result<Vec<(SecretUse, BuildSecret)>, End> {
        let values = &self.job.secrets.values;
        if run.all_secrets {
            let all = values.iter().map(|secret| {
                let usage = SecretUse {
                    id: secret.id.clone(),
                    ..SecretUse::default()
                };
                (usage, secret.clone())
            });
            return Ok(all.collect());
        }
        let mut found = Vec::new();
        for usage in &run.secrets {
            match values.iter().find(|secret| secret.id == usage.id) {
                Some(secret) => found.push((usage.clone(), secret.clone())),
                None if usage.required => {
                    let place = instruction
                        .line
                        .map_or(String::new(), |line| format!("line {line}: "));
                    let message = format!("{place}the build has no secret {:?}", usage.id);
                    let action = "send it with build_secrets";
                    return Err(End::failed("build_step", "no_secret", message, action));
                }
                None => {}
            }
        }
        Ok(found)
    }

    /// Puts secrets into the machine's memory, and links to them where programs look. Answers what is to be removed before
    /// the layer is kept.
    async fn place_secrets(
        &self,
        guest: &GuestClient,
        uses: &[(SecretUse, BuildSecret)],
        user: Option<&str>,
        env: &mut std::collections::BTreeMap<String, String>,
    ) -> Result<Vec<String>, End> {
        let failed = |error: GuestError| of_machine("build_step", &error.into());
        let mut links = Vec::new();
        let mut script = String::from("set -e\n");
        for (number, (usage, secret)) in uses.iter().enumerate() {
            if let Some(name) = &usage.env {
                env.insert(name.clone(), secret.value.0.clone());
                if usage.target.is_none() {
                    continue;
                }
            }
            let file = format!("{SECRETS}/{number}");
            let query = WriteQuery {
                path: file.clone(),
                user: None,
                mode: Some(usage.mode.unwrap_or(0o400)),
            };
            let value = Bytes::from(secret.value.0.clone().into_bytes());
            let value = futures_util::stream::iter([Ok(value)]);
            self.unless_stopped(guest.write(&query, value))
                .await?
                .map_err(failed)?;
            let target = match &usage.target {
                Some(target) => target.clone(),
                None => format!("{RUN_SECRETS}/{}", usage.id),
            };
            let (at, to) = (quoted(&target), quoted(&file));
            if let Some(owner) = usage.uid.map(|uid| uid.to_string()).as_deref().or(user) {
                script.push_str(&format!("chown {} {to}\n", quoted(owner)));
            }
            script.push_str(&format!(
                "if [ -e {at} ] || [ -L {at} ]; then echo {at}: is there already >&2; exit 1; fi\n\
                 mkdir -p \"$(dirname {at})\"\nln -s {to} {at}\n"
            ));
            links.push(target);
        }
        if links.is_empty() {
            return Ok(links);
        }
        let request = GuestExec {
            argv: vec!["/bin/sh".into(), "-c".into(), script],
            label: Some("build secrets".into()),
            ..GuestExec::default()
        };
        let mut output = self
            .unless_stopped(guest.exec(&request))
            .await?
            .map_err(failed)?;
        let mut said = Vec::new();
        loop {
            match self.unless_stopped(output.next()).await?.map_err(failed)? {
                Some(Frame::Stderr(_, data)) if said.len() < 1024 => said.extend_from_slice(&data),
                Some(Frame::Exit { code: 0, .. }) => return Ok(links),
                Some(Frame::Exit { .. }) | None => {
                    let why = String::from_utf8_lossy(&said);
                    let message = format!("the secrets could not be put in place: {}", why.trim());
                    let action = "choose another target for the secret";
                    return Err(End::failed("build_step", "secret_target", message, action));
                }
                Some(_) => {}
            }
        }
    }
}

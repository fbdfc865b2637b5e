//! The processes of a run: starting the install command and the entry point, or finding them again, and
//! reading what they write into the log.

use bytes::Bytes;
use futures_util::FutureExt;
use nullspace_api::time;
use nullspace_lifecycle::run::Input;
use nullspace_protocol::{ExecRequest, GuestClient, GuestError, OutputQuery, Retain, frame::Frame};
use nullspace_store::agent_log::NewLog;
use tokio::time::Instant;

use super::{ATTEMPTS, Command, End, Exit, GRACE, LAST_LINE, LAST_LINES, News, TERM, Task};
use crate::app::{
    agent_config,
    agent_log::{self, Source, Writer},
};

/// Output that is recorded together, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// Goes before the entry point of a service. A shell that is asked to end waits for its command, so that what that says
/// last is read; and whatever it started in the background ends with it, so that the next start finds the ports free.
const SHELL_OF_A_SERVICE: &str = "trap 'exit 143' TERM\n\
    trap 'code=$?; trap \"\" TERM; kill -TERM 0; exit $code' EXIT\n";

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

impl Task {
    /// Runs a command of the version to its end, or goes on with one that runs.
    pub(super) async fn execute(
        &mut self,
        command: Command,
        line: &str,
        resumed: bool,
    ) -> Result<Exit, End> {
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
                        self.row.install_started_at = Some(time::now());
                        Input::InstallStarted
                    }
                    Command::Entrypoint => {
                        self.row.process_id = Some(pid);
                        self.row.started_at.get_or_insert(time::now());
                        match self.row.restarts {
                            0 => Input::EntrypointStarted,
                            _ => Input::EntrypointRestarted,
                        }
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
        if command == Command::Entrypoint
            && let Some(machine) = self.handle.clone()
        {
            self.tell(News::Started { machine });
        }
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
        let label = command.label(line, self.row.restarts);
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
        let script = match &self.service {
            Some(_) if command == Command::Entrypoint => format!("{SHELL_OF_A_SERVICE}{line}"),
            _ => line.to_owned(),
        };
        let request = ExecRequest {
            argv: vec!["/bin/sh".into(), "-c".into(), script],
            cwd: Some(agent_config::trimmed(&self.version.config.workdir).to_owned()),
            timeout_ms: u64::try_from(self.time_limit(command).as_millis()).ok(),
            retain: Retain::UntilAcknowledged,
            label: Some(command.label(line, self.row.restarts)),
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
            if self.cancel.is_cancelled() && self.ending_at.is_none() {
                if self.service.is_none() {
                    return Err(Stopped::End(End::cancelled()));
                }
                // A service may finish what it does; what it says meanwhile is kept.
                guest.signal(writer.process_id, TERM).await?;
                self.ending_at = Some(Instant::now() + GRACE);
            }
            let mut next = tokio::select! {
                frame = stream.next() => frame,
                () = self.cancel.cancelled(), if self.ending_at.is_none() => continue,
                () = at(self.ending_at) => return Err(Stopped::End(End::cancelled())),
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
                if ended.is_some() || bytes >= BATCH_BYTES {
                    break;
                }
                match stream.next().now_or_never() {
                    Some(frame) => next = frame,
                    None => break,
                }
            }
            if bytes > 0 || !events.is_empty() {
                self.remember(&events);
                self.record(events, false).await;
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
        if self.row.process_id == Some(writer.process_id) {
            self.row.first_output_at.get_or_insert_with(time::now);
        }
        self.row.output_offset = offset + data.len() as u64;
    }

    /// The last words of a service are told if it fails.
    fn remember(&mut self, events: &[NewLog]) {
        if self.service.is_none() {
            return;
        }
        let newest = events.iter().rev().flat_map(|event| event.lines().rev());
        let newest: Vec<String> = newest
            .take(LAST_LINES)
            .map(|line| line.chars().take(LAST_LINE).collect())
            .collect();
        self.last_lines.extend(newest.into_iter().rev());
        while self.last_lines.len() > LAST_LINES {
            self.last_lines.pop_front();
        }
    }
}

/// A moment, if there is one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

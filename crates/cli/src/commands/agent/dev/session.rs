//! A project in its machine: uploading, installing, running, watching, and the end of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nullspace_api::exec::ExecRequest;
use nullspace_api::machine::MachineInfo;
use nullspace_client::Client;
use nullspace_project::{Entry, Mode};
use serde_json::{Map, Value};

use super::output::Output;
use super::project::Project;
use super::signals::Signals;
use super::sync::{Changes, put};
use super::watch::Watch;
use super::{KEPT, LEASE};
use crate::commands::agent::deploy::archive;
use crate::commands::machine::exec::exit_code;
use crate::error::{CliError, Outcome};
use crate::exit;
use crate::ui::Ui;

/// Unpacks the archive `$1` in directory `$2`.
const UNPACK: &str =
    r#"mkdir -p -- "$2" && tar -xof "$1" -C "$2"; code=$?; rm -f -- "$1"; exit "$code""#;
/// Where the archive is put.
const ARCHIVE: &str = "/tmp/.nullspace-dev.tar";
/// How long unpacking may take.
const UNPACK_SECONDS: u64 = 600;
/// Runs `$2`; what the project in `$1` installed for itself comes first, as in a run. A shell without the trap would go
/// at once when it is asked to end, and nobody would wait for the last words of the program.
const COMMAND: &str = r#"trap 'exit 143' TERM
PATH="$1/.venv/bin:$1/node_modules/.bin:$PATH"; export PATH; eval "$2""#;
/// Ends the process group `$1`: asks, waits two seconds, and does not ask any more. Without `--` before the id, which
/// not every shell's `kill` takes.
const STOP: &str = r#"kill -TERM "-$1" 2>/dev/null || exit 0
n=0
while kill -0 "-$1" 2>/dev/null && [ "$n" -lt 20 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "-$1" 2>/dev/null
exit 0"#;
/// How long the last lines of an ended program are waited for.
const LAST_LINES: Duration = Duration::from_secs(2);

/// See the module's docs.
pub(super) struct Session<'a> {
    ui: Ui,
    pub(super) client: &'a Client,
    pub(super) machine: String,
    pub(super) project: Project,
    input: Map<String, Value>,
    /// The install step or the entry point.
    running: Option<Output>,
    /// Whether it was told where the service can be opened.
    announced: bool,
    /// What requests to it need, if it takes no public traffic.
    traffic_token: Option<String>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        ui: Ui,
        client: &'a Client,
        machine: MachineInfo,
        project: Project,
        input: Map<String, Value>,
    ) -> Self {
        Self {
            ui,
            client,
            machine: machine.id,
            traffic_token: machine.traffic_access_token,
            project,
            input,
            running: None,
            announced: false,
        }
    }

    fn workdir(&self) -> &str {
        self.project.config.workdir.trim_end_matches('/')
    }

    pub(super) fn is_service(&self) -> bool {
        self.project.config.mode == Mode::Service
    }

    /// A command of the project as a request.
    pub(super) fn command(&self, command: &str) -> ExecRequest {
        ExecRequest {
            command: COMMAND.to_owned(),
            args: Some(vec![self.workdir().to_owned(), command.to_owned()]),
            cwd: Some(self.project.config.workdir.clone()),
            shell: Some(true),
            ..ExecRequest::default()
        }
    }

    /// Brings the whole bundle, and a job's input, into the machine.
    pub(super) async fn upload(&self) -> Result<(), CliError> {
        let bundle = &self.project.bundle;
        let length = bundle.archive_len();
        let bar = self.ui.byte_bar("Uploading", Some(length));
        let stream = archive(Arc::clone(bundle), bar.clone());
        let sent = self
            .client
            .files(&self.machine)
            .upload(ARCHIVE, Some(length), stream)
            .await;
        bar.finish_and_clear();
        sent?;
        let request = ExecRequest {
            command: UNPACK.to_owned(),
            args: Some(vec![ARCHIVE.to_owned(), self.workdir().to_owned()]),
            shell: Some(true),
            timeout_secs: Some(UNPACK_SECONDS),
            ..ExecRequest::default()
        };
        let unpacked = self.client.exec(&self.machine, &request).await?;
        match unpacked.exit_code {
            0 => {}
            // A template without tar.
            exit::NO_SUCH_COMMAND => {
                self.client
                    .files(&self.machine)
                    .make_dir(self.workdir())
                    .await?;
                let entries: Vec<&Entry> = bundle.manifest().included().collect();
                let root = &self.project.root;
                put(self.client, &self.machine, root, self.workdir(), &entries).await?;
            }
            _ => {
                return Err(CliError::new(
                    "file_error",
                    format!(
                        "the project could not be unpacked in the machine: {}",
                        unpacked.stderr.trim()
                    ),
                ));
            }
        }
        if !self.is_service() {
            let path = format!("{}/.nullspace/run.json", self.workdir());
            let text = Bytes::from(Value::Object(self.input.clone()).to_string());
            let (length, text) = (text.len() as u64, futures_util::stream::iter([Ok(text)]));
            self.client
                .files(&self.machine)
                .upload(&path, Some(length), text)
                .await?;
        }
        if !self.ui.json {
            let files = bundle.manifest().file_count;
            self.ui.note(format!("uploaded {files} files"));
        }
        Ok(())
    }

    /// Runs it once, to its end; gives the exit code of the entry point, or of an install step that failed.
    pub(super) async fn once(&mut self) -> Outcome {
        let installed = self.install().await?;
        if installed != 0 {
            return Ok(exit_code(installed));
        }
        self.start().await?;
        let code = self.follow().await?;
        self.tell_end("the entry point", code);
        Ok(exit_code(code))
    }

    /// Runs it, and again after each change, until something goes wrong.
    pub(super) async fn watch(&mut self) -> Outcome {
        let mut watch = Watch::of(&self.project)?;
        let mut installed = self.install().await? == 0;
        if installed {
            self.start().await?;
        } else {
            self.ui.dim("· waiting for changes");
        }
        loop {
            tokio::select! {
                code = self.follow() => {
                    self.tell_end("the entry point", code?);
                    self.ui.dim("· waiting for changes; Ctrl-C ends this");
                    continue;
                }
                () = watch.changed() => {}
            }
            let now = match self.project.again().await {
                Ok(now) => now,
                // Half of an edit, perhaps. What runs goes on.
                Err(error) => {
                    self.ui.failure(&error);
                    continue;
                }
            };
            watch.follow(&now)?;
            if self.project.needs_other_machine(&now) {
                self.ui.warn(
                    "the machine stays as it is; end this and start it again to use the new config",
                );
            }
            let install_changed = self.project.config.install != now.config.install;
            let commands_changed =
                install_changed || self.project.config.entrypoint != now.config.entrypoint;
            let old = Arc::clone(&self.project.bundle);
            let changes = Changes::between(old.manifest(), now.bundle.manifest());
            if changes.is_empty() && !commands_changed {
                continue;
            }
            self.stop().await?;
            // The machine is made for the old one.
            let workdir = self.workdir().to_owned();
            changes
                .apply(self.client, &self.machine, &now.root, &workdir)
                .await?;
            self.ui.note(format!("synced {} files", changes.files()));
            let again = !installed || install_changed || changes.need_install();
            drop(changes);
            self.project.take(now);
            if again {
                installed = self.install().await? == 0;
            }
            if installed {
                self.start().await?;
            } else {
                self.ui.dim("· waiting for changes");
            }
        }
    }

    /// Runs the install step, if there is one, and shows what it writes; gives its exit code.
    async fn install(&mut self) -> Result<i32, CliError> {
        let Some(install) = self.project.config.install.clone() else {
            return Ok(0);
        };
        self.spawn(&install).await?;
        let code = self.follow().await?;
        if code != 0 {
            self.tell_end("the install step", code);
        }
        Ok(code)
    }

    /// Starts the entry point.
    async fn start(&mut self) -> Result<(), CliError> {
        let entrypoint = self.project.config.entrypoint.clone().unwrap_or_default();
        self.spawn(&entrypoint).await?;
        if self.is_service() && !self.announced {
            self.announced = true;
            self.announce().await;
        }
        Ok(())
    }

    async fn spawn(&mut self, command: &str) -> Result<(), CliError> {
        self.ui.dim(format!("· {command}"));
        let request = self.command(command);
        let started = self.client.exec_background(&self.machine, &request).await?;
        self.running = Some(Output::of(started.pid));
        Ok(())
    }

    /// Shows what the process writes until it ends. Without one, waits for ever.
    async fn follow(&mut self) -> Result<i32, CliError> {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let code = running.follow(self.ui, self.client, &self.machine).await?;
        self.running = None;
        Ok(code)
    }

    fn tell_end(&self, what: &str, code: i32) {
        self.ui.dim(format!("· {what} ended with exit code {code}"));
    }

    /// Tells where the service can be opened.
    async fn announce(&self) {
        let Some(port) = self.project.config.service.port else {
            return;
        };
        match self.client.machine_host(&self.machine, port).await {
            Ok(host) => {
                let url = host.url.unwrap_or_else(|| format!("http://{}", host.host));
                self.ui.note(format!("URL: {}", self.ui.bold(&url)));
                if let Some(token) = &self.traffic_token {
                    self.ui.note(format!(
                        "Requests need the header x-nullspace-traffic-access-token: {token}"
                    ));
                }
            }
            Err(error) => self
                .ui
                .warn(format!("port {port} could not be opened: {error}")),
        }
    }

    /// Ends what runs, and shows its last lines.
    async fn stop(&mut self) -> Result<(), CliError> {
        let Some(mut running) = self.running.take() else {
            return Ok(());
        };
        let request = ExecRequest {
            command: STOP.to_owned(),
            args: Some(vec![running.pid.to_string()]),
            shell: Some(true),
            ..ExecRequest::default()
        };
        self.client.exec(&self.machine, &request).await?;
        // What left the process group.
        self.client.kill_process(&self.machine, running.pid).await?;
        let last = running.follow(self.ui, self.client, &self.machine);
        match tokio::time::timeout(LAST_LINES, last).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Ok(()),
        }
    }

    /// Ends what runs and deletes the machine, or keeps it. Another signal means: do not wait.
    pub(super) async fn end(&mut self, in_order: bool, keep: bool, signals: &mut Signals) {
        // Where something went wrong there is no telling how long asking the machine would take.
        if in_order {
            tokio::select! {
                // The machine goes in any case.
                _ = self.stop() => {}
                _ = signals.next() => {}
            }
        }
        let (ui, id) = (self.ui, &self.machine);
        if keep {
            if let Err(error) = self.client.set_timeout(id, KEPT, None).await {
                ui.warn(format!(
                    "the time limit of the machine could not be set: {error}"
                ));
            }
            ui.note(format!(
                "Kept for an hour: nullspace machine exec {id} --shell 'ls -la'"
            ));
            ui.note(format!("End it with: nullspace machine kill {id}"));
            return;
        }
        let left = tokio::select! {
            deleted = self.client.delete_machine(id) => match deleted {
                Ok(()) => return,
                Err(error) if error.is_not_found() => return,
                Err(error) => error.to_string(),
            },
            _ = signals.next() => "interrupted".to_owned(),
        };
        ui.warn(format!(
            "machine {id} was not deleted: {left}; it ends by itself within {} minutes",
            LEASE.as_secs() / 60
        ));
    }
}

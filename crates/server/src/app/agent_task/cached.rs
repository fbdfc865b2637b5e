//! Installing with the cache: the result of an install is taken from it, or made and kept.

use nullspace_api::time;
use nullspace_lifecycle::run::{Event, Input, State};
use nullspace_store::agent_artifact::ArtifactRow;

use super::{End, Task};
use crate::app::{
    agent_artifact::{self, Keeper, Place},
    agent_log,
};

impl Task {
    /// From a recorded run to a machine in which the project is installed. An end comes back when the install failed.
    pub(super) async fn install_with_cache(
        &mut self,
        line: &str,
        resumed: bool,
    ) -> Result<Option<End>, End> {
        if self.state() == State::Running {
            return Ok(None);
        }
        let keeper = if self.has_machine() {
            // A server before this one made it.
            let installed = self.row.install_exit_code == Some(0);
            if self.row.artifact_id.is_some() || (installed && !self.row.is_build) {
                self.adopt_machine().await?;
                return Ok(None);
            }
            self.adopt_machine().await?;
            match self.place(line).await? {
                Place::Build(keeper) => Some(keeper),
                // Somebody else makes it now: then the result of this install stays where it is.
                Place::Ready(_) | Place::Wait(_) => None,
            }
        } else {
            let installs = self.row.machine_id.is_some() && self.row.install_exit_code.is_none();
            if self.state() == State::Installing && installs {
                return Err(self.machine_lost("install").await);
            }
            // One that goes is of no use any more.
            self.handle = None;
            match self.wait_for_place(line).await? {
                Ok(artifact) => {
                    self.make_machine_over(&artifact, resumed).await?;
                    return Ok(None);
                }
                Err(keeper) => {
                    self.forget_install().await;
                    self.make_machine(None, resumed).await?;
                    Some(keeper)
                }
            }
        };
        if self.row.install_exit_code.is_none()
            && let Some(end) = self.install(line, resumed).await?
        {
            return Ok(Some(end));
        }
        let Some(keeper) = keeper else {
            self.deliver_input().await?;
            return Ok(None);
        };
        let artifact = self.keep(keeper).await?;
        if !self.row.is_build {
            self.make_machine_over(&artifact, resumed).await?;
        }
        Ok(None)
    }

    /// The machine in which the install ended is gone, and with it what a server before this one did not get to keep.
    async fn forget_install(&mut self) {
        if self.row.install_exit_code.is_none() {
            return;
        }
        self.row.install_exit_code = None;
        self.row.install_process_id = None;
        self.row.artifact_id = None;
        self.row.machine_id = None;
        let message =
            "the server ended before the result of the install was kept; installing again";
        self.say("install_lost", message.into()).await;
    }

    /// The artifact, or the right to make it, however long another run takes over it.
    async fn wait_for_place(&mut self, line: &str) -> Result<Result<ArtifactRow, Keeper>, End> {
        let mut waits = false;
        loop {
            match self.place(line).await? {
                Place::Ready(artifact) => return Ok(Ok(artifact)),
                Place::Build(keeper) => return Ok(Err(keeper)),
                Place::Wait(mut built) => {
                    if !std::mem::replace(&mut waits, true) {
                        let message = "another run installs the same; waiting for its result";
                        self.say("install_waiting", message.into()).await;
                    }
                    tokio::select! {
                        // It is dropped at the end.
                        _ = built.changed() => {}
                        () = self.cancel.cancelled() => return Err(End::cancelled()),
                    }
                }
            }
        }
    }

    async fn place(&mut self, line: &str) -> Result<Place, End> {
        let template = self.template().await?;
        let key = agent_artifact::key(&template, &self.version, line);
        let fresh = self.row.is_build;
        agent_artifact::place(&self.app, &key, self.row.seq, fresh)
            .await
            .map_err(|error| End::broke(format!("install: {}", error.message)))
    }

    async fn keep(&mut self, keeper: Keeper) -> Result<ArtifactRow, End> {
        let Some(handle) = self.handle.take() else {
            return Err(self.machine_lost("install").await);
        };
        let kept = keeper.keep(&handle.id).await;
        let artifact = kept.map_err(|error| {
            tracing::error!(run = self.row.id, context = ?error.context, "the result of an install could not be kept");
            End::broke(format!("install: its result could not be kept: {}", error.message))
        })?;
        self.row.artifact_id = Some(artifact.id.clone());
        self.row.machine_id = None;
        let message = format!(
            "kept as artifact {}, {} MiB",
            artifact.id,
            artifact.size_bytes >> 20
        );
        self.say("install_kept", message).await;
        Ok(artifact)
    }

    /// A machine that begins where the install ended.
    async fn make_machine_over(
        &mut self,
        artifact: &ArtifactRow,
        resumed: bool,
    ) -> Result<(), End> {
        if self.row.artifact_id.as_ref() != Some(&artifact.id) {
            self.row.artifact_id = Some(artifact.id.clone());
            let message = format!("install skipped: artifact {} has its result", artifact.id);
            self.say("install_cached", message).await;
        }
        self.make_machine(Some(&artifact.id), resumed).await?;
        self.deliver_input().await?;
        Ok(())
    }

    fn has_machine(&self) -> bool {
        self.handle
            .as_ref()
            .is_some_and(|handle| handle.row().state == "running")
    }

    /// Records the machine that a server before this one made.
    async fn adopt_machine(&mut self) -> Result<(), End> {
        if self.row.machine_id.is_none() {
            self.make_machine(None, true).await?;
        }
        if self.row.artifact_id.is_some() {
            self.deliver_input().await?;
        }
        Ok(())
    }

    /// Says something in the log that is no step.
    pub(super) async fn say(&mut self, event_type: &'static str, message: String) {
        self.row.updated_at = time::now();
        let event = Event {
            event_type,
            is_error: false,
            failure_phase: None,
        };
        let in_machine = self.row.machine_id.is_some();
        let event = agent_log::news(event, message, None, in_machine);
        self.record([event], true).await;
    }

    /// Runs the install command to its end. An end comes back when it failed.
    pub(super) async fn install(&mut self, line: &str, resumed: bool) -> Result<Option<End>, End> {
        let exit = self.execute(super::Command::Install, line, resumed).await?;
        if exit.timed_out || exit.code != 0 {
            return Ok(Some(self.bad_exit(super::Command::Install, &exit)));
        }
        self.row.install_exit_code = Some(0);
        self.row.installed_at = Some(time::now());
        self.step(Input::InstallExited(0), "install finished".into(), None)
            .await;
        Ok(None)
    }
}

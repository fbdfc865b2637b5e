//! The machine of a run: making it, handing it the input, and what is said when it is gone.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use nullspace_api::{error::code, time};
use nullspace_engine::egress::Rules;
use nullspace_lifecycle::run::{Input, State};
use nullspace_protocol::{GuestClient, GuestError, WriteQuery};
use nullspace_store::machine::MachineRow;
use nullspace_templates::Layer;
use serde_json::{Map, Value};

use super::{ATTEMPTS, End, Task};
use crate::app::{
    agent_artifact, agent_config, agent_run, bundle,
    machine::{self, NewMachine},
    template,
};

/// How often it is looked whether the template is ready.
const TEMPLATE_POLL: Duration = Duration::from_millis(500);
/// What a shell finds without a template's own word.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Task {
    /// Makes the run's machine, over an artifact if there is one, or takes the one that a server before this one made.
    pub(super) async fn make_machine(
        &mut self,
        artifact: Option<&str>,
        resumed: bool,
    ) -> Result<(), End> {
        // The second machine of a run, after an install that was kept, is no step of its own.
        let is_step = self.state() != State::Installing;
        if is_step {
            self.step(Input::Begin, "starting a machine".into(), None)
                .await;
        }
        if self.handle.is_none() {
            if resumed && self.row.has_envs && self.envs.is_none() {
                return Err(End::broke(
                    "the server was stopped before the machine was there, and values of environment variables are \
                     not stored: start the run again",
                ));
            }
            let row = self.create_machine(artifact).await?;
            self.row.machine_at.get_or_insert(time::now());
            self.handle = self.app.machines.get(&row.id);
        }
        let Some(handle) = &self.handle else {
            return Err(self.machine_lost("starting").await);
        };
        let id = handle.id.clone();
        self.row.machine_id = Some(id.clone());
        // The bundle is a layer of it.
        self.row.unpacked_at.get_or_insert(time::now());
        let message = format!("machine {id} is ready");
        if is_step {
            self.step(Input::MachineReady, message, None).await;
        } else {
            self.say("sandbox_created", message).await;
        }
        Ok(())
    }

    /// What the machine starts from, once it is ready.
    pub(super) async fn template(&self) -> Result<Arc<Layer>, End> {
        let name = &self.version.config.template;
        loop {
            let ensured = tokio::select! {
                ensured = template::ensure(&self.app, &self.version.tenant_id, name) => ensured,
                () = self.cancel.cancelled() => return Err(End::cancelled()),
            };
            match ensured {
                Ok(()) => {}
                Err(error) if error.code == code::TRANSITION_IN_PROGRESS => {}
                // The one that it is made from is not there yet.
                Err(_) if self.app.templates.why_not("base").is_some() => {}
                Err(error) => {
                    return Err(End::broke(format!("starting failed: {}", error.message)));
                }
            }
            match self.app.templates.find(&self.version.tenant_id, name) {
                Ok(template) => return Ok(template),
                Err(error) if error.code == code::TEMPLATE_NOT_READY => {}
                Err(error) => {
                    return Err(End::broke(format!("starting failed: {}", error.message)));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(TEMPLATE_POLL) => {}
                () = self.cancel.cancelled() => return Err(End::cancelled()),
            }
        }
    }

    async fn create_machine(&self, artifact: Option<&str>) -> Result<Arc<MachineRow>, End> {
        let config = &self.version.config;
        let template = self.template().await?;
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
        if let (Some(_), Some(port)) = (&self.service, config.service.port) {
            // Where most frameworks look.
            envs.entry("PORT".into())
                .or_insert_with(|| port.to_string());
        }
        let (kind, subject) = match &self.row.service_id {
            Some(service) => ("agent_service_id", service),
            None => ("agent_run_id", &self.row.id),
        };
        let metadata = Map::from_iter([
            (
                "agent_deployment_id".into(),
                Value::from(self.row.deployment_id.clone()),
            ),
            (kind.into(), Value::from(subject.clone())),
        ]);
        let resources = &config.resources;
        let defaults = NewMachine::from_template(&self.app, &self.version.tenant_id, template);
        let new = NewMachine {
            layers: artifact
                .map(|id| agent_artifact::path(&self.app.data_dir, id))
                .into_iter()
                .chain([bundle::path(&self.app.data_dir, &self.version.bundle)])
                .collect(),
            vcpus: resources
                .vcpus
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(defaults.vcpus),
            memory_mb: resources.memory_mb.unwrap_or(defaults.memory_mb),
            disk_mb: resources.disk_mb,
            // Checked when the version was made.
            egress: agent_config::egress(config).unwrap_or_else(|_| Rules::deny_all()),
            allow_public_traffic: config.permissions.allow_public_traffic.unwrap_or(true),
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
    pub(super) async fn deliver_input(&mut self) -> Result<(), End> {
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

    /// The guest, as long as the machine runs.
    pub(super) async fn guest(&mut self, phase: &str) -> Result<GuestClient, End> {
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
    pub(super) async fn pause(&self) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => Ok(()),
            () = self.cancel.cancelled() => Err(End::cancelled()),
        }
    }

    /// Says what became of the machine.
    pub(super) async fn machine_lost(&self, phase: &str) -> End {
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
        End {
            machine_lost: true,
            ..End::broke(format!("{what} during {phase}"))
        }
    }
}

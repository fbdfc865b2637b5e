//! What the server does, without HTTP: authorise, decide, record, act. `http` calls it; one file per noun.

pub mod agent;
mod agent_artifact;
mod agent_config;
pub mod agent_deployment;
pub mod agent_gc;
pub mod agent_log;
pub mod agent_output;
pub mod agent_run;
pub mod agent_service;
mod agent_task;
pub mod agent_version;
pub mod audit;
mod bundle;
pub mod code;
pub(crate) mod count;
pub mod egress;
pub mod event;
pub(crate) mod event_stream;
pub mod exec;
pub mod file;
pub mod file_grant;
pub mod git;
pub mod health;
pub(crate) mod isolation;
pub mod key;
pub mod machine;
pub mod metrics;
pub(crate) mod monitor;
pub mod output;
pub mod pool;
pub mod preview;
pub mod process;
pub mod pty;
pub mod scope;
pub(crate) mod seal;
pub mod search;
pub(crate) mod share;
pub mod snapshot;
pub(crate) mod socket;
pub mod ssh;
pub mod template;
pub mod tenant;
pub mod upload;
pub mod volume;
pub mod webhook;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use nullspace_engine::Engine;
use nullspace_store::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::Config;

/// Everything the handlers share.
pub struct App {
    /// Limits and habits.
    pub config: Config,
    /// `nullspace.db`, `machines/`, `outputs/`, … live here.
    pub data_dir: PathBuf,
    /// Where machines have the bundle of certificate authorities that they trust, if the host gives them
    /// one.
    pub ca_file: Option<&'static str>,
    /// The record.
    pub store: Store,
    /// What this server counts about itself.
    pub(crate) counts: count::Counts,
    /// What makes machines real.
    pub engine: Arc<dyn Engine>,
    /// What machines start from.
    pub templates: template::Registry,
    /// The valid API keys, and the tenants.
    pub keys: key::Ring,
    /// Who asked for what.
    pub(crate) audit: audit::Log,
    /// How they spell a machine.
    pub spelling: key::Spelling,
    /// The live machines.
    pub machines: machine::Live,
    /// Machines that are made beforehand.
    pub(crate) pools: pool::Pools,
    /// States of machines that others are being made of.
    pub(crate) snapshots: snapshot::Uses,
    /// Files of machines that are gone; set by the agent side at start-up.
    pub outputs: OnceLock<Arc<dyn output::Outputs>>,
    /// Seals what must not be readable in the record.
    pub(crate) seal: Arc<seal::Seal>,
    /// Where the doors of services and previews are opened, and who is on the way through them.
    pub(crate) doors: Doors,
    /// Ports of machines that are seen from outside.
    pub(crate) previews: preview::Previews,
    /// Logging in to machines, unless it is turned off.
    pub(crate) ssh: Option<ssh::Ssh>,
    /// Volumes whose files are worked on.
    pub(crate) volumes: volume::State,
    /// Uploads in parts that are under way.
    pub(crate) uploads: upload::Uploads,
    /// Who is told of events over HTTP.
    pub(crate) webhooks: webhook::Webhooks,
    /// Code in machines.
    pub(crate) code: code::State,
    /// The agent side's own state.
    pub agents: agent::Agents,
    /// Cancelled when the server is told to stop: open streams end themselves then.
    pub stopping: CancellationToken,
    /// Work that goes on behind the requests; waited for (shortly) when the server stops.
    pub tasks: TaskTracker,
}

/// Where doors into machines are.
#[derive(Debug)]
pub(crate) struct Doors {
    /// The address that the API listens on.
    pub(crate) address: SocketAddr,
    /// Connections through them.
    pub(crate) connections: TaskTracker,
}

/// As handlers get it.
pub type AppState = Arc<App>;

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App")
            .field("data_dir", &self.data_dir)
            .field("engine", &self.engine.name())
            .finish_non_exhaustive()
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The id of the key.
    pub key_id: Arc<str>,
    /// Whose key it is.
    pub tenant: Arc<tenant::Tenant>,
    /// What it may be used for.
    pub scope: Arc<scope::Scope>,
}

impl Caller {
    /// Refuses what the key is not for.
    ///
    /// # Errors
    /// `permission_denied`.
    pub fn must(&self, need: scope::Need) -> crate::error::Result<()> {
        if self.scope.allows(need) {
            return Ok(());
        }
        Err(crate::error::Error::new(
            crate::error::Kind::Forbidden,
            nullspace_api::error::code::PERMISSION_DENIED,
            format!(
                "this needs an api key with {need}; this one has {:?}",
                self.scope.as_str()
            ),
        )
        .with_action("ask with a key of a wider scope, or ask for one"))
    }

    /// Whether it is the operator of the server.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        let need = scope::Need(scope::Area::Server, scope::Access::Write);
        self.scope.allows(need)
    }

    /// What the caller calls a thing of its own, in the words of the record.
    pub(crate) fn tenant_id(&self) -> String {
        self.tenant.id.to_string()
    }
}

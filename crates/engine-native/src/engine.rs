//! The native engine: machines of this host's own kernel.

use std::path::Path;

use async_trait::async_trait;
use nullspace_engine::{
    Bind, BoxedIo, Capabilities, Denial, Engine, EngineError, LiveMachine, MachineExit,
    MachineSpec, Usage, egress::Rules,
};
use nullspace_sys::stream::LocalStream;
use tokio::sync::broadcast;

use crate::{
    host::{Config, Host, is_id},
    wire::Kind,
};

/// See the crate's docs. Dropping it leaves its machines alive.
#[derive(Clone, Debug)]
pub struct NativeEngine {
    host: Host,
}

impl NativeEngine {
    /// An engine with a launcher that no other engine uses.
    ///
    /// # Errors
    /// Those of [`Host::start`].
    pub async fn start(config: Config) -> Result<Self, EngineError> {
        Host::start(config).await.map(Self::over)
    }

    /// An engine over a launcher.
    #[must_use]
    pub fn over(host: Host) -> Self {
        Self { host }
    }
}

#[async_trait]
impl Engine for NativeEngine {
    fn name(&self) -> &'static str {
        Kind::Native.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolated: true,
            pause: true,
            hibernate: false,
            fork: false,
            disk_limits: self.host.has_disk_limits(),
            images: true,
        }
    }

    async fn health(&self) -> Result<(), EngineError> {
        self.host.health().await
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        self.host.create(Kind::Native, spec, None).await
    }

    async fn destroy(&self, id: &str) -> Result<(), EngineError> {
        self.host.destroy(id).await
    }

    async fn keep(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        self.host.keep(id, target).await
    }

    async fn pause(&self, id: &str) -> Result<(), EngineError> {
        self.host.pause(id).await
    }

    async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        self.host.unpause(id).await
    }

    async fn list(&self) -> Result<Vec<LiveMachine>, EngineError> {
        self.host.list(Kind::Native).await
    }

    async fn dial(&self, id: &str) -> Result<BoxedIo, EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        match LocalStream::connect(&self.host.machine_dir(id).join("guest.sock")) {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) => Err(EngineError::NotFound(id.to_owned())),
        }
    }

    async fn connect(&self, id: &str, port: u16) -> Result<Option<BoxedIo>, EngineError> {
        self.host.connect(id, port).await
    }

    async fn usage(&self, id: &str) -> Result<Usage, EngineError> {
        self.host.usage(id, 0).await
    }

    async fn set_share(&self, id: &str, share: u32) -> Result<(), EngineError> {
        self.host.set_share(id, share).await
    }

    async fn set_egress(&self, id: &str, rules: &Rules) -> Result<(), EngineError> {
        self.host.set_egress(id, rules).await
    }

    async fn attach(&self, id: &str, bind: &Bind) -> Result<(), EngineError> {
        self.host.attach(id, bind).await
    }

    async fn detach(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        self.host.detach(id, target).await
    }

    async fn attached(&self, id: &str) -> Result<Vec<Bind>, EngineError> {
        self.host.attached(id).await
    }

    fn denials(&self) -> broadcast::Receiver<Denial> {
        self.host.denials(Kind::Native)
    }

    fn exits(&self) -> broadcast::Receiver<MachineExit> {
        self.host.exits(Kind::Native)
    }
}

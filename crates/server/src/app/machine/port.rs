//! Connections to ports of machines.

use std::{io, sync::Arc};

use async_trait::async_trait;
use nullspace_engine::Engine;
use nullspace_gateway::Dial;
use nullspace_protocol::BoxedIo;

use super::Handle;

/// One port of one machine.
pub(crate) struct Port {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) machine: Arc<Handle>,
    pub(crate) port: u16,
}

#[async_trait]
impl Dial for Port {
    async fn dial(&self) -> io::Result<BoxedIo> {
        self.machine
            .wake()
            .await
            .map_err(|e| io::Error::other(e.message))?;
        let direct = self.engine.connect(&self.machine.id, self.port).await;
        if let Ok(Some(stream)) = direct {
            return Ok(stream);
        }
        // What listens on the machine's own loopback is reached from inside alone.
        let guest = self
            .machine
            .guest(&*self.engine)
            .await
            .map_err(|e| io::Error::other(e.message))?;
        guest
            .tunnel(self.port)
            .await
            .map_err(|e| io::Error::new(io::ErrorKind::ConnectionRefused, e.to_string()))
    }
}

//! What machines use, and the monitor that tells of all of them.

use nullspace_api::metrics::MachineMetrics;
use nullspace_api::monitor::{ClientMessage, ServerMessage};

use crate::error::Error;
use crate::machines::machine_path;
use crate::socket::Frames;
use crate::transport::{Call, Client};

/// A connection that tells of all machines.
#[derive(Debug)]
pub struct Monitor(Frames);

impl Client {
    /// What a machine uses, oldest first; this server has one sample.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metrics(&self, machine: &str) -> Result<Vec<MachineMetrics>, Error> {
        let path = format!("{}/metrics", machine_path(machine));
        self.fetch(Call::get(path)).await
    }

    /// Opens the monitor. It says nothing before a subscription.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn monitor(&self) -> Result<Monitor, Error> {
        self.frames("/v1/monitor/ws".to_owned()).await.map(Monitor)
    }
}

impl Monitor {
    /// Sends a message.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection is gone.
    pub async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        self.0.send(message).await
    }

    /// The next message; `None` when the server has closed the connection. Messages of kinds that this client does not
    /// know are left out.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks.
    pub async fn next(&mut self) -> Result<Option<ServerMessage<'static>>, Error> {
        self.0.next().await
    }
}

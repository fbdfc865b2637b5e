//! Terminals of a machine. They are made and looked at over its [`crate::socket`].

use http::Method;
use nullspace_api::pty::{PtyInfo, PtyResizeRequest};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, segment};

impl Client {
    /// All terminals of a machine, recently ended ones too.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_ptys(&self, machine: &str) -> Result<Vec<PtyInfo>, Error> {
        let path = format!("{}/pty", machine_path(machine));
        self.fetch(Call::get(path)).await
    }

    /// One terminal.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_pty(&self, machine: &str, session: &str) -> Result<PtyInfo, Error> {
        self.fetch(Call::get(pty_path(machine, session))).await
    }

    /// Changes the size of a terminal.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resize_pty(
        &self,
        machine: &str,
        session: &str,
        size: PtyResizeRequest,
    ) -> Result<(), Error> {
        let path = format!("{}/resize", pty_path(machine, session));
        self.discard(Call::post(path).json(&size)?).await
    }

    /// Ends everything in a terminal.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kill_pty(&self, machine: &str, session: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, pty_path(machine, session)))
            .await
    }
}

fn pty_path(machine: &str, session: &str) -> String {
    format!("{}/pty/{}", machine_path(machine), segment(session))
}

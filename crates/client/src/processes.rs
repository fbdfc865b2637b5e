//! Processes of a machine that go on by themselves.

use nullspace_api::process::ProcessLogs;

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client};

impl Client {
    /// What a process wrote so far, from its start, and its exit code once it has ended.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn process_logs(&self, id: &str, pid: u32) -> Result<ProcessLogs, Error> {
        self.fetch(Call::get(format!(
            "{}/processes/{pid}/logs",
            machine_path(id)
        )))
        .await
    }

    /// Ends a process and everything it started, at once; one that has ended is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kill_process(&self, id: &str, pid: u32) -> Result<(), Error> {
        self.discard(Call::post(format!(
            "{}/processes/{pid}/kill",
            machine_path(id)
        )))
        .await
    }
}

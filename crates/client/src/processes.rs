//! Processes of a machine that go on by themselves.

use nullspace_api::process::{ProcessInfo, ProcessLogs, StdinRequest};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client};

impl Client {
    /// The processes that were started through the API, recently ended ones too.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_processes(&self, id: &str) -> Result<Vec<ProcessInfo>, Error> {
        let path = format!("{}/processes", machine_path(id));
        self.fetch(Call::get(path)).await
    }

    /// Writes to a background process's standard input.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn process_stdin(&self, id: &str, pid: u32, data: String) -> Result<(), Error> {
        let path = format!("{}/processes/{pid}/stdin", machine_path(id));
        let request = StdinRequest { data };
        self.discard(Call::post(path).json(&request)?).await
    }

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

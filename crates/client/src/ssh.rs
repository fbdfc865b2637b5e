//! Logging in to a machine over SSH.

use nullspace_api::ssh::{SshAccess, SshAccessRequest};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client};

impl Client {
    /// Lets a key log in for a while.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_ssh_access(
        &self,
        machine: &str,
        request: &SshAccessRequest,
    ) -> Result<SshAccess, Error> {
        let path = format!("{}/ssh-access", machine_path(machine));
        self.fetch(Call::post(path).json(request)?).await
    }
}

//! Rules for traffic out of machines.

use http::Method;
use nullspace_api::egress::{EgressPolicy, UpdateEgressRequest, UpdateEgressResponse};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client};

impl Client {
    /// Replaces the rules of a running machine: as they are afterwards.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_egress(
        &self,
        machine: &str,
        egress: EgressPolicy,
    ) -> Result<EgressPolicy, Error> {
        let call = Call::new(Method::PATCH, machine_path(machine) + "/egress")
            .json(&UpdateEgressRequest { egress })?;
        let answer: UpdateEgressResponse = self.fetch(call).await?;
        Ok(answer.egress)
    }
}

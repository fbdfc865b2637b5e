//! Machines and the commands in them.

use std::time::Duration;

use http::Method;
use nullspace_api::exec::{ExecRequest, ExecResponse, ExecStarted};
use nullspace_api::machine::{
    CreateMachineRequest, ListMachinesQuery, MachineInfo, SetTimeoutRequest, TimeoutAction,
};
use nullspace_api::page::TokenPage;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::transport::{CREATE_TIMEOUT, Call, Client, Retry, segment};

/// Time allowed over a command's own limit for its answer to arrive.
const EXEC_SLACK: Duration = Duration::from_secs(30);

/// Path of a machine.
pub(crate) fn machine_path(id: &str) -> String {
    format!("/v1/machines/{}", segment(id))
}

impl Client {
    /// Makes a machine and waits until it runs. With the same `idempotency_key` it is made once, however often this is
    /// called.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_machine(
        &self,
        request: &CreateMachineRequest,
        idempotency_key: Option<&str>,
    ) -> Result<MachineInfo, Error> {
        let call = Call::post("/v1/machines")
            .idempotent(idempotency_key)
            .json(request)?
            .limit(self.timeout.max(CREATE_TIMEOUT))
            .retry(Retry::Create);
        self.fetch(call).await
    }

    /// One machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_machine(&self, id: &str) -> Result<MachineInfo, Error> {
        self.fetch(Call::get(machine_path(id))).await
    }

    /// The named fields of one machine, as the server spells them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_machine_fields(
        &self,
        id: &str,
        fields: &str,
    ) -> Result<Map<String, Value>, Error> {
        self.fetch(Call::get(machine_path(id)).query("fields", Some(fields)))
            .await
    }

    /// All machines that `query` selects, page after page.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_machines(
        &self,
        query: &ListMachinesQuery,
    ) -> Result<Vec<MachineInfo>, Error> {
        let mut query = query.clone();
        let mut machines = Vec::new();
        loop {
            let page: TokenPage<MachineInfo> = self.fetch(list_call(&query)).await?;
            machines.extend(page.items);
            match page
                .next_token
                .filter(|token| page.has_next && !token.is_empty())
            {
                Some(token) => query.next_token = Some(token),
                None => return Ok(machines),
            }
        }
    }

    /// The first page of what `query` selects, with the fields it names, as the server spells them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_machine_fields(&self, query: &ListMachinesQuery) -> Result<Value, Error> {
        self.fetch(list_call(query)).await
    }

    /// Ends a machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_machine(&self, id: &str) -> Result<(), Error> {
        self.discard(
            Call::new(Method::DELETE, machine_path(id)).limit(self.timeout.max(CREATE_TIMEOUT)),
        )
        .await
    }

    /// Sets the time limit of a machine, counted from now, and what happens then if `action` says so.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_timeout(
        &self,
        id: &str,
        limit: Duration,
        action: Option<TimeoutAction>,
    ) -> Result<(), Error> {
        let request = SetTimeoutRequest {
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            timeout_action: action,
        };
        self.discard(Call::post(machine_path(id) + "/timeout").json(&request)?)
            .await
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// See [`Error`]; `exec_timeout` when its time was over.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResponse, Error> {
        let own = Duration::from_secs(request.timeout_secs.unwrap_or(30));
        let call = Call::post(machine_path(id) + "/exec")
            .json(request)?
            .limit(self.timeout.max(own + EXEC_SLACK));
        self.fetch(call).await
    }

    /// Starts a command and leaves it running; `request.background` is set for the caller.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn exec_background(
        &self,
        id: &str,
        request: &ExecRequest,
    ) -> Result<ExecStarted, Error> {
        let request = ExecRequest {
            background: Some(true),
            ..request.clone()
        };
        self.fetch(Call::post(machine_path(id) + "/exec").json(&request)?)
            .await
    }
}

fn list_call(query: &ListMachinesQuery) -> Call<'static> {
    Call::get("/v1/machines")
        .query("state", query.state.as_ref())
        .query("template", query.template.as_ref())
        .query("metadata", query.metadata.as_ref())
        .query("limit", query.limit)
        .query("next_token", query.next_token.as_ref())
        .query("fields", query.fields.as_ref())
}

//! Machines' states: hibernating, resuming, forking, keeping.

use std::time::Duration;

use http::Method;
use nullspace_api::machine::MachineInfo;
use nullspace_api::snapshot::{ListSnapshotsQuery, SnapshotInfo};

use crate::error::Error;
use crate::machines::machine_path;
use crate::transport::{Call, Client, Retry, segment};

const PATH: &str = "/v1/snapshots";
/// Memory goes to a disk and comes from it.
const LIMIT: Duration = Duration::from_secs(300);

impl Client {
    /// Stops a machine and keeps its memory; done when its state is safe.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hibernate(&self, machine: &str) -> Result<SnapshotInfo, Error> {
        let call = Call::post(machine_path(machine) + "/hibernate");
        self.fetch(call.limit(self.timeout.max(LIMIT))).await
    }

    /// Lets a machine go on, named by its id or by that of the snapshot it goes on from.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resume(&self, id: &str) -> Result<MachineInfo, Error> {
        let call = Call::post(machine_path(id) + "/resume");
        self.fetch(call.limit(self.timeout.max(LIMIT))).await
    }

    /// Makes another machine that goes on from where this one is. With the same `idempotency_key` it is made once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fork(
        &self,
        machine: &str,
        idempotency_key: Option<&str>,
    ) -> Result<MachineInfo, Error> {
        let call = Call::post(machine_path(machine) + "/fork")
            .idempotent(idempotency_key)
            .limit(self.timeout.max(LIMIT))
            .retry(Retry::Create);
        self.fetch(call).await
    }

    /// Keeps a machine's state, for machines that are made of it. With the same `idempotency_key` it is kept once.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_snapshot(
        &self,
        machine: &str,
        idempotency_key: Option<&str>,
    ) -> Result<SnapshotInfo, Error> {
        let call = Call::post(machine_path(machine) + "/snapshots")
            .idempotent(idempotency_key)
            .limit(self.timeout.max(LIMIT))
            .retry(Retry::Create);
        self.fetch(call).await
    }

    /// Snapshots, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_snapshots(
        &self,
        query: &ListSnapshotsQuery,
    ) -> Result<Vec<SnapshotInfo>, Error> {
        let call = Call::get(PATH)
            .query("machine_id", query.machine_id())
            .query("metadata", query.metadata.as_ref());
        self.fetch(call).await
    }

    /// One snapshot.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_snapshot(&self, id: &str) -> Result<SnapshotInfo, Error> {
        self.fetch(Call::get(format!("{PATH}/{}", segment(id))))
            .await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// See [`Error`]; `snapshot_in_use` while a machine needs it.
    pub async fn delete_snapshot(&self, id: &str) -> Result<(), Error> {
        self.discard(Call::new(Method::DELETE, format!("{PATH}/{}", segment(id))))
            .await
    }
}

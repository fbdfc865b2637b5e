//! What a machine that is made of a kept state is like.

use nullspace_api::error::code;
use nullspace_engine::MachineSpec;
use nullspace_store::{machine::MachineRow, snapshot::SnapshotRow};
use serde::{Deserialize, Serialize};

use crate::{
    app::{egress, volume::mount::Mount},
    error::{Error, Result},
};

/// See the file's docs. It is recorded with the state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Without the values of environment variables.
    pub(crate) spec: MachineSpec,
    /// Who runs commands in it, unless they say so.
    #[serde(default)]
    pub(crate) user: Option<String>,
    template: String,
    layer_digest: String,
    vcpus: u32,
    memory_mb: u64,
    disk_mb: Option<u64>,
    allow_public_traffic: bool,
    mask_request_host: Option<String>,
    /// Those that it has mounted.
    #[serde(default)]
    pub(crate) volumes: Vec<Mount>,
}

impl Shape {
    /// That of a machine, without its volumes.
    pub(crate) fn of(row: &MachineRow, user: Option<String>) -> Result<Self> {
        let spec = row.spec.as_deref().ok_or_else(|| {
            Error::conflict(
                code::CONFLICT,
                format!("machine {} was made by an older server, which did not record what it is made of", row.id),
            )
            .with_action("make a new machine")
        })?;
        let spec: MachineSpec = serde_json::from_str(spec)
            .map_err(|e| Error::internal(format!("the recorded spec of {}: {e}", row.id)))?;
        Ok(Self {
            spec: MachineSpec {
                egress: egress::recorded(row),
                ..spec
            },
            user,
            template: row.template.clone(),
            layer_digest: row.layer_digest.clone(),
            vcpus: row.vcpus,
            memory_mb: row.memory_mb,
            disk_mb: row.disk_mb,
            allow_public_traffic: row.allow_public_traffic,
            mask_request_host: row.mask_request_host.clone(),
            volumes: Vec::new(),
        })
    }

    /// As it is recorded.
    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::internal(format!("writing a shape as JSON: {e}")))
    }

    /// Gives its likeness to a machine that will be made.
    pub(crate) fn put(self, row: &mut MachineRow) -> MachineSpec {
        row.template = self.template;
        row.layer_digest = self.layer_digest;
        row.vcpus = self.vcpus;
        row.memory_mb = self.memory_mb;
        row.disk_mb = self.disk_mb;
        row.cwd.clone_from(&self.spec.cwd);
        row.allow_public_traffic = self.allow_public_traffic;
        row.mask_request_host = self.mask_request_host;
        self.spec
    }
}

/// The recorded shape of a state.
pub(crate) fn shape(row: &SnapshotRow) -> Result<Shape> {
    serde_json::from_str(&row.shape)
        .map_err(|e| Error::internal(format!("the recorded shape of {}: {e}", row.id)))
}

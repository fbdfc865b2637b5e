//! Volumes: directories that outlive machines and that several machines can have at once.
//!
//! ```text
//!  requested ──▶ mounting ──▶ mounted ◀──▶ paused (with its machine)      releasing ──▶ released
//!                   └──▶ failed ◀── remounting ◀── mounted                   ▲ detached, or its machine ended
//! ```

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// `POST /v1/volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolumeRequest {
    /// 1 to 128 of letters, digits, `.`, `_` and `-`, the first a letter or digit; not an id. No other volume has it.
    pub name: String,
    /// The most bytes it may have on disk; as the server is set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size_bytes: Option<u64>,
    /// The most files, directories and links; as the server is set when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_file_count: Option<u64>,
}

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeStatus {
    /// Mounted nowhere.
    Available,
    /// Some machine has it, or is about to.
    Attached,
    /// It cannot be mounted where it should be.
    Degraded,
    /// Its directory is not there.
    Error,
}

/// Who keeps a volume to its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuotaEnforcement {
    /// The server counts: once a volume is over a limit, writes and uploads through the API and new mounts that could write
    /// are refused. What a machine writes that has it mounted already is counted, and not stopped.
    Counted,
    /// A file system of its own of that size: nobody can write more, from wherever.
    FileSystem,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub status: VolumeStatus,
    /// Bytes on disk, as they were counted last.
    pub used_bytes: u64,
    /// Files, directories and links, as they were counted last.
    pub inode_count: u64,
    /// Machines that run or sleep and have it, counted for each path.
    pub mount_count: u64,
    /// The most bytes; null for no limit but the disk's.
    pub max_size_bytes: Option<u64>,
    /// The most files, directories and links; null for no limit.
    pub max_file_count: Option<u64>,
    /// The most mounts; null for no limit.
    pub max_mounts: Option<u64>,
    /// How the limits are kept, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_enforcement: Option<QuotaEnforcement>,
    /// When it was counted last, RFC 3339.
    pub last_reconciled_at: Option<String>,
    /// RFC 3339.
    pub created_at: String,
}

/// The names of [`VolumeInfo`]'s fields, for `fields=`.
pub const VOLUME_FIELDS: &[&str] = &[
    "id",
    "name",
    "status",
    "used_bytes",
    "inode_count",
    "mount_count",
    "max_size_bytes",
    "max_file_count",
    "max_mounts",
    "quota_enforcement",
    "last_reconciled_at",
    "created_at",
];

/// Query of `GET /v1/volumes`, of one, and of one by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VolumeQuery {
    /// Comma list of the fields wanted.
    pub fields: Option<String>,
}

/// Where a mount of a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttachmentState {
    /// Recorded.
    Requested,
    /// On its way.
    Mounting,
    /// In the machine.
    Mounted,
    /// In a machine that sleeps.
    Paused,
    /// Taken away and put back.
    Remounting,
    /// Not in the machine, and it should be.
    Unmounted,
    /// On its way out.
    Releasing,
    /// Not in the machine any more.
    Released,
    /// It could not be mounted; `last_error_message` says why.
    Failed,
}

impl AttachmentState {
    /// From how it is written.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        serde_json::from_value(serde_json::Value::from(word)).ok()
    }
}

/// A volume in a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeAttachment {
    /// Its id.
    pub id: String,
    /// The volume.
    pub volume_id: String,
    /// The machine.
    pub machine_id: String,
    /// The same, for clients that call machines so.
    pub sandbox_id: String,
    /// Absolute, in the machine.
    pub mount_path: String,
    /// Whether writes are refused, by the kernel.
    pub read_only: bool,
    /// The directory of the volume that is shown; all of it when null.
    pub subpath: Option<String>,
    /// Where it stands.
    pub state: AttachmentState,
    /// With `failed`, for programs.
    pub last_error_code: Option<String>,
    /// With `failed`, for people.
    pub last_error_message: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
}

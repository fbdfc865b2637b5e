//! Processes that were started through the API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One process. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessInfo {
    /// Its id inside the machine.
    pub pid: u32,
    /// Its command as one line.
    pub command: String,
    /// Whether it still runs.
    pub running: bool,
}

/// `POST …/processes/{pid}/stdin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StdinRequest {
    /// Written as it is, no newline added.
    pub data: String,
}

/// `GET …/processes/{pid}/logs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessLogs {
    /// From the process's start.
    pub stdout: String,
    /// From the process's start.
    pub stderr: String,
    /// Both, in the order in which they came.
    pub output: String,
    /// Null while it runs.
    pub exit_code: Option<i32>,
}

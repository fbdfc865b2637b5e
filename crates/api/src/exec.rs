//! Commands in a machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST /v1/machines/{id}/exec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program, or a whole script with `shell`.
    pub command: String,
    /// Its arguments; with `shell` the script's `$1` and on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Working directory, absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Set over the machine's own environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envs: Option<BTreeMap<String, String>>,
    /// Run `command` with `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<bool>,
    /// Start it and answer with its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
    /// Kill it after this long (foreground only); 30 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
}

/// Answer to a foreground [`ExecRequest`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// 0 to 255; 128 + N after signal N, 127 and 126 when the program cannot be run.
    pub exit_code: i32,
    /// As text; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// As text.
    pub stderr: String,
    /// Its id inside the machine; null when it never ran.
    pub pid: Option<u32>,
    /// Present and true when output over the limit was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Answer to a background [`ExecRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecStarted {
    /// Its id inside the machine.
    pub pid: u32,
}

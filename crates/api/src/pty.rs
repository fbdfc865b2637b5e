//! Terminals in a machine. They are made and looked at over its WebSocket: see [`crate::socket`].

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PtyInfo {
    /// Its id.
    pub session_id: String,
    /// The shell in it.
    pub pid: u32,
    /// Characters in a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
    /// Whether its shell still runs. One that ended is remembered for a while.
    pub running: bool,
    /// The shell's exit code once it ended.
    pub exit_code: Option<i32>,
}

/// `POST /v1/machines/{id}/pty/{session_id}/resize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PtyResizeRequest {
    /// Characters in a line, 1 to 2000.
    pub cols: u16,
    /// Lines, 1 to 2000.
    pub rows: u16,
}

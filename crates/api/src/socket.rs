//! The messages of a machine's WebSocket, `GET /v1/machines/{id}/ws`: one JSON object in each frame.
//!
//! ```text
//!  client                         server
//!  exec_start   ─────────────▶   exec_started, exec_stdout / exec_stderr …, exec_exit
//!  exec_connect ─────────────▶   the same, from the first byte that is kept
//!  exec_stdin, exec_stdin_close, exec_kill ──▶ nothing, or error
//!  pty_start, pty_connect ───▶   pty_started, pty_output …, pty_exited
//!  pty_input, pty_resize, pty_kill ──▶ nothing, or error
//!  file_watch   ─────────────▶   file_watch_started, file_event …, error when it ends
//! ```
//! `id` is the client's own word for a request; every message that the request causes has it.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// From a client. Fields that are not known are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// Run a command.
    ExecStart {
        /// The client's word for it.
        id: String,
        /// Program, or a whole script with `shell`.
        command: String,
        /// Its arguments; with `shell` the script's `$1` and on.
        #[serde(default)]
        args: Vec<String>,
        /// Seconds after which it is killed. The default of clients, 30, is no wish and does not count: the message
        /// does not tell a command that is waited for from one that is to go on.
        #[serde(default)]
        timeout_secs: Option<u64>,
        /// Working directory, absolute.
        #[serde(default)]
        cwd: Option<String>,
        /// Set over the machine's own environment.
        #[serde(default)]
        envs: Option<BTreeMap<String, String>>,
        /// Run `command` with `/bin/sh -c`.
        #[serde(default)]
        shell: Option<bool>,
    },
    /// Follow a process that was started before, from its first byte.
    ExecConnect {
        /// The client's word for it.
        id: String,
        /// The process.
        pid: u32,
    },
    /// Write to a process's standard input.
    ExecStdin {
        /// The client's word for it.
        id: String,
        /// The process.
        pid: u32,
        /// What to write, verbatim.
        data: String,
    },
    /// Close a process's standard input.
    ExecStdinClose {
        /// The client's word for it.
        id: String,
        /// The process.
        pid: u32,
    },
    /// End a process and everything that it started.
    ExecKill {
        /// The client's word for it.
        id: String,
        /// The process.
        pid: u32,
    },
    /// Start a shell in a terminal.
    PtyStart {
        /// The client's word for it.
        id: String,
        /// Characters in a line; 120 when absent.
        #[serde(default)]
        cols: Option<u16>,
        /// Lines; 30 when absent.
        #[serde(default)]
        rows: Option<u16>,
        /// Working directory, absolute.
        #[serde(default)]
        cwd: Option<String>,
        /// Set over the machine's own environment.
        #[serde(default)]
        envs: Option<BTreeMap<String, String>>,
    },
    /// Look at a terminal that is there, from the last that it showed.
    PtyConnect {
        /// The client's word for it.
        id: String,
        /// The terminal; this or `pid`.
        #[serde(default)]
        session_id: Option<String>,
        /// The shell that runs in it.
        #[serde(default)]
        pid: Option<u32>,
    },
    /// Type.
    PtyInput {
        /// The client's word for it.
        id: String,
        /// The terminal.
        session_id: String,
        /// What is typed, in base64; this or `data`.
        #[serde(default)]
        data_base64: Option<String>,
        /// What is typed, as text.
        #[serde(default)]
        data: Option<String>,
    },
    /// Tell what happens to files, until the connection ends.
    FileWatch {
        /// The client's word for it.
        id: String,
        /// A directory, or one file.
        path: String,
        /// Act as this user of the machine.
        #[serde(default)]
        user: Option<String>,
        /// Everything beneath, not the direct children alone.
        #[serde(default)]
        recursive: bool,
        /// Seconds after which it ends by itself.
        #[serde(default)]
        timeout_secs: Option<f64>,
    },
    /// Change a terminal's size.
    PtyResize {
        /// The client's word for it.
        id: String,
        /// The terminal.
        session_id: String,
        /// Characters in a line.
        cols: u16,
        /// Lines.
        rows: u16,
    },
    /// End everything in a terminal.
    PtyKill {
        /// The client's word for it.
        id: String,
        /// The terminal.
        session_id: String,
    },
}

/// To a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// It runs. Comes before anything else of it.
    ExecStarted {
        /// The request's.
        id: Cow<'a, str>,
        /// Its id inside the machine; 0 for a program that could not be started.
        pid: u32,
    },
    /// It wrote to standard output.
    ExecStdout {
        /// The request's.
        id: Cow<'a, str>,
        /// The process.
        pid: u32,
        /// As text: never half a character, and bytes that are no UTF-8 are replaced.
        data: Cow<'a, str>,
        /// The bytes in base64, where text alone would not be them.
        #[serde(skip_serializing_if = "Option::is_none")]
        data_base64: Option<Cow<'a, str>>,
    },
    /// It wrote to standard error.
    ExecStderr {
        /// The request's.
        id: Cow<'a, str>,
        /// The process.
        pid: u32,
        /// As for [`ServerMessage::ExecStdout`].
        data: Cow<'a, str>,
        /// As for [`ServerMessage::ExecStdout`].
        #[serde(skip_serializing_if = "Option::is_none")]
        data_base64: Option<Cow<'a, str>>,
    },
    /// Output that came while nobody followed, and was over what is kept.
    ExecGap {
        /// The request's.
        id: Cow<'a, str>,
        /// The process.
        pid: u32,
        /// So many are missing here, of both streams together.
        bytes: u64,
    },
    /// It ended; nothing more comes of it.
    ExecExit {
        /// The request's.
        id: Cow<'a, str>,
        /// The process.
        pid: u32,
        /// 0 to 255; 128 + N after signal N, 127 and 126 when the program cannot be run, 124 at the time limit.
        exit_code: i32,
    },
    /// The terminal is there. The first message of its request.
    PtyStarted {
        /// The request's.
        id: Cow<'a, str>,
        /// The terminal.
        session_id: Cow<'a, str>,
        /// The shell in it.
        pid: u32,
        /// Characters in a line.
        cols: u16,
        /// Lines.
        rows: u16,
    },
    /// It showed something.
    PtyOutput {
        /// The request's.
        id: Cow<'a, str>,
        /// The terminal.
        session_id: Cow<'a, str>,
        /// The bytes in base64.
        data_base64: Cow<'a, str>,
        /// The same as text, as far as it is text.
        data: Cow<'a, str>,
    },
    /// Its shell ended; nothing more comes of it.
    PtyExited {
        /// The request's.
        id: Cow<'a, str>,
        /// The terminal.
        session_id: Cow<'a, str>,
        /// As for [`ServerMessage::ExecExit`].
        exit_code: i32,
    },
    /// A watch is there: whatever happens from now on is told.
    FileWatchStarted {
        /// The request's.
        id: Cow<'a, str>,
    },
    /// Something happened to a file.
    FileEvent {
        /// The request's.
        id: Cow<'a, str>,
        /// `create`, `write`, `remove`, `rename` (it went from this path; a `create` follows if the new one is watched
        /// too), `chmod`, or `resync_required`: more happened than could be told, look again.
        event: Cow<'a, str>,
        /// The last segment of `path`.
        name: Cow<'a, str>,
        /// Absolute.
        path: Cow<'a, str>,
    },
    /// The request was refused or broke off.
    Error {
        /// The request's; empty if it could not be read.
        id: Cow<'a, str>,
        /// For programs; see [`crate::error::code`].
        code: Cow<'a, str>,
        /// For people.
        message: Cow<'a, str>,
    },
}

impl ClientMessage {
    /// The client's word for it.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::ExecStart { id, .. }
            | Self::ExecConnect { id, .. }
            | Self::ExecStdin { id, .. }
            | Self::ExecStdinClose { id, .. }
            | Self::ExecKill { id, .. }
            | Self::PtyStart { id, .. }
            | Self::PtyConnect { id, .. }
            | Self::PtyInput { id, .. }
            | Self::PtyResize { id, .. }
            | Self::PtyKill { id, .. }
            | Self::FileWatch { id, .. } => id,
        }
    }
}

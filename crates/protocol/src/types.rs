//! The JSON bodies and queries of the guest protocol. Unknown fields are ignored by both ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// First answer of a guest: `GET /hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the guest.
    pub protocol: u32,
    /// The guest's own version, for people.
    pub version: String,
    /// Whether the defaults of commands were changed since the machine was made.
    #[serde(default)]
    pub has_own_defaults: bool,
}

/// What becomes of a process's output once it was read from the pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retain {
    /// Keep the first bytes up to the guest's limit and drop what comes later (a log that only grows at
    /// its end). The process never waits for a reader.
    #[default]
    Head,
    /// Keep everything from the last acknowledged offset on; when a full window is not acknowledged the
    /// process waits. Nothing is ever lost.
    UntilAcknowledged,
    /// Keep the first bytes like [`Retain::Head`], and hand what comes later to whoever follows then: the process
    /// waits for the slowest of them, and for nobody when there is none. What nobody followed is missing in the
    /// offsets. With `POST /exec` the caller follows from the first byte on, and the process outlives it.
    Live,
    /// Keep the last bytes. The process waits for whoever follows, but not for one that takes nothing for some seconds:
    /// that one misses what the others have had.
    Tail,
}

/// `POST /exec` (attached, answers frames) and `POST /spawn` (background, answers [`Started`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; not split, no shell. At least one element.
    pub argv: Vec<String>,
    /// Set over the machine's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute directory; the machine's default when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Kill the process tree after this long; the exit frame then says `timed_out`.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Keep standard input open for `/processes/{pid}/stdin`; otherwise it is `/dev/null`.
    #[serde(default)]
    pub stdin: bool,
    /// What becomes of output that was read.
    #[serde(default)]
    pub retain: Retain,
    /// What lists show as the command; derived from `argv` when absent.
    #[serde(default)]
    pub label: Option<String>,
    /// Of an attached process: send nothing before it ended or wrote 64 KiB. For a caller that shows nothing
    /// before the end either: a short command is then answered in one piece.
    #[serde(default)]
    pub collect: bool,
    /// Run a user's shell, as when somebody logs in; `argv` and `cwd` do not count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// Standard input, output and error are a terminal (all output is then standard output); `stdin` does not count.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Run as this user of the machine: a name or number, with a group after a colon; root when absent. Does not count
    /// with `login`. Their home directory is `HOME` unless `env` says something else. Since version 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `POST /defaults`: what commands have that start from now on, unless they say otherwise. A guest that is older than this
/// answers [`ErrorKind::Invalid`] or [`ErrorKind::NotFound`].
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultsRequest {
    /// Set over the environment that the machine has. May hold secrets: not printed.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The default working directory, absolute; made if missing. As before when absent.
    #[serde(default)]
    pub cwd: Option<String>,
}

impl std::fmt::Debug for DefaultsRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DefaultsRequest")
            .field("env", &self.env.len())
            .field("cwd", &self.cwd)
            .finish()
    }
}

/// Somebody who logs in. The shell and the home directory are those of the machine's `/etc/passwd`.
///
/// An attached process that was started so is not killed when its caller goes away: it is hung up, as by a terminal that
/// is closed, and what it writes later is dropped. Its exit frame tells exit codes and signals apart: see
/// [`crate::SIGNALLED`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The user of the machine.
    pub user: String,
    /// What the shell is to run; without it it is a login shell.
    #[serde(default)]
    pub command: Option<String>,
}

/// A terminal that a process runs in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// The host's name for it.
    pub session: String,
    /// Its size.
    #[serde(flatten)]
    pub size: TerminalSize,
}

/// `POST /processes/{pid}/resize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// A process was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its id inside the machine.
    pub pid: u32,
}

/// One process started through the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Its id inside the machine.
    pub pid: u32,
    /// The command as one line.
    pub command: String,
    /// Whether it still runs.
    pub running: bool,
    /// Exit code once ended; 128 + N after signal N.
    pub exit_code: Option<i32>,
    /// Whether the time limit ended it.
    #[serde(default)]
    pub timed_out: bool,
    /// The terminal it was started in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

/// Query of `GET /processes/{pid}/output`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputQuery {
    /// First byte wanted, counted over both streams together from the process's start.
    #[serde(default)]
    pub from: u64,
    /// Go on until the process ends and all output was sent; otherwise end after what is there now.
    #[serde(default)]
    pub follow: bool,
}

/// `POST /processes/{pid}/signal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// Signal number, 1 to 64.
    pub signal: i32,
}

/// A line of the answer to `POST /listen`. The first is about the listener itself: `connection` is 0 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// What to ask for the connection by, once.
    pub connection: u64,
    /// The port that is listened on.
    pub port: u16,
    /// The port of whoever connected.
    pub peer_port: u16,
}

/// What a file system object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Device, socket, pipe.
    Other,
}

/// One file system object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Last path segment; `/` for the root.
    pub name: String,
    /// Absolute path as asked for (links in it are not resolved).
    pub path: String,
    /// Kind; links are not followed.
    pub kind: FileKind,
    /// Bytes; 0 for everything but regular files.
    pub size: u64,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner's name, or number when the machine has no name for it.
    pub owner: String,
    /// Group's name, or number.
    pub group: String,
    /// Last change of contents, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Where a link points, verbatim.
    pub symlink_target: Option<String>,
}

/// Body of requests that name one path: stat, list, remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathRequest {
    /// Absolute, or relative to the machine's default directory (or the user's home).
    pub path: String,
    /// Act as this user of the machine; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Levels for a list; 0 and 1 are direct children.
    #[serde(default)]
    pub depth: u32,
    /// Follow a link at the end of the path (stat only).
    #[serde(default)]
    pub follow: bool,
}

/// Body of `POST /files/mkdir`; parents are made too.
pub type MkdirRequest = PathRequest;

/// Body of `POST /files/rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameRequest {
    /// From.
    pub old_path: String,
    /// To; its parents must exist.
    pub new_path: String,
    /// Act as this user.
    #[serde(default)]
    pub user: Option<String>,
}

/// Body of `POST /files/permissions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermissionsRequest {
    /// Which.
    pub path: String,
    /// New permission bits, `0o7777`.
    pub mode: u32,
    /// Act as this user.
    #[serde(default)]
    pub user: Option<String>,
}

/// Query of `GET /files/raw` and `GET /files/tar`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadQuery {
    /// Which.
    pub path: String,
    /// Act as this user.
    #[serde(default)]
    pub user: Option<String>,
    /// First byte.
    #[serde(default)]
    pub offset: u64,
    /// At most this many bytes; all when absent.
    #[serde(default)]
    pub length: Option<u64>,
    /// Leave this path and what is below it out of an archive.
    #[serde(default)]
    pub except: Option<String>,
}

/// Query of `PUT /files/raw`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteQuery {
    /// Which; missing parents are made, the file is replaced at once when all bytes have arrived.
    pub path: String,
    /// Act as this user.
    #[serde(default)]
    pub user: Option<String>,
    /// Permission bits; an existing file keeps its own, a new one gets `0o644`.
    #[serde(default)]
    pub mode: Option<u32>,
}

/// Query of `PUT /files/unpack`: the body is a tar with names relative to the path. What is there already is replaced, but
/// for directories, which keep what is not in the archive. Links in the path are followed; those in the archive are not.
/// Since version 5.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackQuery {
    /// The directory, made if it is not there.
    pub path: String,
    /// Whom everything belongs to: a name or number, with a group after a colon; root when absent.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether everything belongs to whom the archive says, by number, unless there is an `owner`.
    #[serde(default)]
    pub keep_owners: bool,
    /// Permission bits of all files and directories, instead of those in the archive.
    #[serde(default)]
    pub mode: Option<u32>,
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Why the guest refused, in a word that programs test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Malformed or impossible request (a directory where a file is needed, unknown user, bad cwd).
    Invalid,
    /// No such file or process.
    NotFound,
    /// The machine's own permissions refuse it.
    Permission,
    /// It is there already.
    Exists,
    /// No space left, or over a quota.
    NoSpace,
    /// Too many processes, too little memory, too many open files.
    Exhausted,
    /// Anything else the system said.
    Io,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: what failed and on what.
    pub message: String,
}

//! What `serve` and a machine's guest say to each other.
//!
//! HTTP/2 over one byte stream that the engine dials (a unix socket, vsock, ...): the streams, the flow
//! control and the cancellation are HTTP/2's, so that many commands, files and ports share one
//! connection and a slow reader holds up only itself. Control bodies are JSON; file contents and ports
//! are raw bytes; process output is a sequence of [`frame::Frame`]s.
//!
//! [`GuestClient`] is the host's end and is used by `nullspace-server`; the other end is
//! `nullspace-guest`. Everything that the guest sends is hostile: sizes and counts are bounded here.
//! A machine outlives upgrades of the host, so a guest may be older than the client: see
//! [`PROTOCOL_VERSION`].

pub mod alone;
mod client;
pub mod frame;
mod search;
mod types;
mod upload;
mod watch;

pub use client::{ByteStream, GuestClient, GuestError, Listener, OutputStream, WatchStream};
pub use search::{ReplaceRequest, Replaced, SearchMatch, SearchRequest};
pub use types::{
    Connected, DefaultsRequest, ErrorBody, ErrorKind, ExecRequest, FileInfo, FileKind, Hello,
    Login, MkdirRequest, OutputQuery, PathRequest, PermissionsRequest, ProcessInfo, ReadQuery,
    RenameRequest, Retain, SignalRequest, Started, Terminal, TerminalSize, UnpackQuery, Unpacked,
    WriteQuery,
};
pub use upload::{
    Conflict, DiscardRequest, PartQuery, PublishOutcome, PublishRequest, Published, RefusedReason,
    StageRequest, Staged, Target, UploadKind,
};
pub use watch::{WatchEvent, WatchKind, WatchRequest};

use tokio::io::{AsyncRead, AsyncWrite};

/// The version in [`Hello`]. It grows when an old client could misunderstand a new guest; additions that
/// old peers ignore do not change it.
///
/// 2: [`Retain::Live`], [`Retain::Tail`], terminals.
/// 3: searching, replacing, watching, uploads in parts.
/// 4: logins, SFTP, ports that the machine listens on for the host.
/// 5: commands of another user, unpacking, going on from a checkpoint, writing everything out.
pub const PROTOCOL_VERSION: u32 = 5;
/// In the exit code of a [`Login`]: it was ended by the signal that is left when 128 is taken off.
pub const SIGNALLED: i32 = 0x100;

/// Any byte stream, as engines hand it out.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream of unknown make.
pub type BoxedIo = Box<dyn Io>;

/// HTTP/2 flow-control window of one stream: how much may be under way before the reader is asked.
/// Large enough to keep a local socket busy, small enough that a stuck reader costs little.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// The same for a whole connection.
pub const CONNECTION_WINDOW: u32 = 8 << 20;
/// The largest HTTP/2 frame either end sends.
pub const MAX_FRAME: u32 = 256 << 10;

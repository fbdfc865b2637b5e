//! `POST /files/watch`: a stream of lines, each a [`WatchEvent`] as JSON. The first says that the watch is there.

use serde::{Deserialize, Serialize};

/// What to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// A directory or a file.
    pub path: String,
    /// Act as this user of the machine; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Everything beneath, not the direct children alone.
    #[serde(default)]
    pub recursive: bool,
    /// Absolute paths that are left out with everything beneath them.
    #[serde(default)]
    pub except: Vec<String>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// Which sort.
    pub event: WatchKind,
    /// Absolute.
    pub path: String,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Sorts of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchKind {
    /// The watch is there; what happens from now on is told.
    Started,
    /// It is new at this path.
    Create,
    /// Its contents changed.
    Write,
    /// It is gone.
    Remove,
    /// It went from this path to another one; if that is watched too, a `create` follows.
    Rename,
    /// Its permissions, owner or times changed.
    Chmod,
    /// More happened than could be told: look again at everything beneath this path.
    ResyncRequired,
    /// The watched path itself is gone, or can no longer be watched: the last event.
    Ended,
}

//! What a guest that is a program of its own is told: on engines where it cannot be forked into a machine.
//!
//! It reads a [`Setup`] from its standard input (a length, u32 big-endian, and that many bytes of JSON), says [`READY`]
//! on its standard output, and from then on listens on [`PORT`]. From outside only the server gets through to it, but other
//! programs of the machine can connect there as well: whoever does not begin with the secret is hung up on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The port. No server program uses it.
pub const PORT: u16 = 4;
/// Bytes of a secret; a connection to the guest begins with them.
pub const SECRET_BYTES: usize = 32;
/// Said once it listens.
pub const READY: u8 = b'r';
/// Said instead when what it is told cannot be done; the reason follows, for people.
pub const REFUSED: u8 = b'x';
/// Where in the machine the host's mounts appear, by name. The guest puts them where they are wanted.
pub const SHOWN: &str = "/dev/nullspace-shown";
/// The most bytes a [`Setup`] may have.
pub const MAX_SETUP: usize = 8 << 20;

/// What tells a machine from others. Holds secrets: not printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// What connections begin with from now on.
    pub secret: [u8; SECRET_BYTES],
    /// The name it gives itself.
    pub hostname: String,
    /// Environment of commands that start from now on, unless they set the name themselves. A machine that goes on from a
    /// checkpoint has what it had besides.
    pub env: BTreeMap<String, String>,
    /// The default working directory; made if missing.
    pub cwd: String,
    /// Files to write if they are not so already, by absolute path.
    pub files: BTreeMap<String, String>,
    /// What its processes and its files in memory may take together, in bytes. A machine that goes on from a checkpoint
    /// keeps to what it was told first.
    pub memory_bytes: u64,
    /// How many processes it may have at once, threads not counted; 0 is no limit. A machine that goes on from a checkpoint keeps to
    /// what it was told first.
    #[serde(default)]
    pub pids_max: u32,
    /// What of the host is to be seen where. A machine that goes on from a checkpoint has it there already.
    pub shown: Vec<Show>,
}

/// Puts something of the host where it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Show {
    /// Its name in [`SHOWN`].
    pub name: String,
    /// An absolute path; directories on the way are made.
    pub target: String,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("hostname", &self.hostname)
            .finish_non_exhaustive()
    }
}

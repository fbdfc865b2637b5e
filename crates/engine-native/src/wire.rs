//! What the engine and its launcher say to each other over the launcher's unix socket: a length (u32,
//! big-endian) and that many bytes of JSON, both ways. Answers carry the request's `tag`; news carry none.

use std::{net::Ipv4Addr, path::PathBuf};

use crate::launcher::pack::Pack;
use nullspace_engine::{Bind, Denial, EngineError, ExitReason, MachineSpec, egress::Rules};
use serde::{Deserialize, Serialize};

/// The most bytes one message may have: a spec with a large environment.
pub(crate) const MAX_MESSAGE: usize = 8 << 20;
/// Version of these messages. The launcher outlives `serve`, so a newer `serve` may meet an older one.
pub(crate) const VERSION: u32 = 8;

/// What a launcher must know; given to it on its standard input, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LauncherConfig {
    /// Holds `run/` and `machines/`.
    pub(crate) data_dir: PathBuf,
    /// Distinguishes what this launcher makes on the host (interfaces, cgroups) from others': 6 hex digits.
    pub(crate) instance: String,
    /// The host's bundle of certificate authorities to place in machines, if any.
    pub(crate) ca_bundle: Option<PathBuf>,
    /// The program and first arguments that start the DNS resolver; empty for none.
    pub(crate) resolver: Vec<String>,
    /// Machines prepared ahead.
    pub(crate) spare: usize,
    /// How gVisor's machines are made; `None` where there are none.
    pub(crate) gvisor: Option<GvisorConfig>,
}

/// What the launcher must know to make machines of gVisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GvisorConfig {
    /// `runsc`.
    pub runsc: PathBuf,
    /// The first arguments with which the launcher's own program is the guest.
    pub guest: Vec<String>,
    /// Machines prepared ahead, once one was asked for. Each takes about 40 MB.
    pub spare: usize,
}

/// The checkpoint that a machine goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its directory.
    pub directory: PathBuf,
    /// Where the kernel's own files of it are read.
    pub image: PathBuf,
    /// The guest that runs in it.
    pub guest: Pack,
}

/// What a machine is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Namespaces of this host's kernel.
    Native,
    /// A kernel of its own, in a process.
    Gvisor,
}

impl Kind {
    /// The engine's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Gvisor => "gvisor",
        }
    }
}

/// Asked by the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) tag: u64,
    pub(crate) body: RequestBody,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RequestBody {
    Hello,
    Create {
        kind: Kind,
        spec: Box<MachineSpec>,
        from: Option<Origin>,
    },
    Destroy {
        id: String,
        /// Whether what was written in it is wanted still.
        keep: bool,
    },
    List,
    /// Where a machine is on the host's network.
    Address {
        id: String,
    },
    /// Where the kernel counts what a machine uses.
    Meters {
        id: String,
    },
    /// Replace what a machine may reach.
    Egress {
        id: String,
        rules: Box<Rules>,
    },
    /// Show a directory of the host in a machine.
    Attach {
        id: String,
        bind: Box<Bind>,
    },
    /// Take it away.
    Detach {
        id: String,
        target: PathBuf,
    },
    /// What a machine is shown.
    Attached {
        id: String,
    },
    /// End every machine and the launcher.
    Shutdown,
}

/// Said by the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Answer {
        tag: u64,
        result: Result<Answer, Refusal>,
    },
    Ended {
        id: String,
        reason: ExitReason,
    },
    Denied {
        denials: Vec<Denial>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Hello {
        version: u32,
        pid: u32,
        /// Whether machines are held to what they may write.
        disk_limits: bool,
    },
    Done,
    List {
        machines: Vec<(String, Kind)>,
    },
    /// `None` for a machine that has no network, or is not alive.
    Address {
        address: Option<Ipv4Addr>,
    },
    Attached {
        binds: Vec<Bind>,
    },
    /// `None` for a machine that is not alive.
    Meters {
        meters: Option<Meters>,
    },
}

/// Where the kernel counts what a machine uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meters {
    /// The group that counts processor time; `None` where the host counts it for no group.
    pub(crate) cpu: Option<Counter>,
    /// The group that gets processors.
    pub(crate) processors: Counter,
    /// The group that counts memory.
    pub(crate) memory: Counter,
    /// The group that stops its processes where they stand; `None` where the host has none.
    pub(crate) freezer: Option<Counter>,
    /// The host's end of the machine's link.
    pub(crate) interface: String,
}

/// A cgroup, by the generation that its files are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Counter {
    V1(PathBuf),
    V2(PathBuf),
}

/// An [`EngineError`] on its way to the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    Invalid(String),
    Exists(String),
    Unknown(String),
    Capacity(String),
    Step { step: String, reason: String },
}

impl Refusal {
    pub(crate) fn step(step: &str, reason: impl std::fmt::Display) -> Self {
        Self::Step {
            step: step.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid(what) => Self::InvalidSpec(what),
            Refusal::Exists(id) => Self::Exists(id),
            Refusal::Unknown(id) => Self::NotFound(id),
            Refusal::Capacity(what) => Self::Capacity(what),
            Refusal::Step { step, reason } => Self::Step { step, reason },
        }
    }
}

/// A message with its length in front.
pub(crate) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    // Writing plain data to a Vec cannot fail.
    let _ = serde_json::to_writer(&mut bytes, message);
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Takes the next message off a buffer; `None` when more bytes are needed.
pub(crate) fn decode<T: for<'a> Deserialize<'a>>(
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<T>> {
    let Some(length) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return Err(std::io::Error::other(format!(
            "a message of {length} bytes"
        )));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length])?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

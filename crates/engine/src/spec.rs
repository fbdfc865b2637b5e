//! What is asked of an engine, and what it tells about what lives.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use nullspace_egress::{Name, Rules};
use serde::{Deserialize, Serialize};

/// A host path shown inside a machine. Programs in it get no rights by set-user-id bits, and device nodes are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute host path, opened by the engine. An engine that can ([`Capabilities::images`]) shows what is in the image beside
    /// it instead, if there is one.
    pub source: PathBuf,
    /// A directory beneath `source` that is shown instead of it: a clean relative path. What is in `source` may be hostile
    /// then (a volume, which machines write to): the engine opens this path beneath `source` and through no link.
    #[serde(default)]
    pub beneath: Option<PathBuf>,
    /// Absolute path inside the machine; made if missing. No link on the way is followed.
    pub target: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Bind {
    /// Checks what [`MachineSpec::validate`] checks of its binds. Engines call it before they attach one.
    ///
    /// # Errors
    /// [`crate::EngineError::InvalidSpec`] with what is wrong.
    pub fn validate(&self) -> Result<(), crate::EngineError> {
        let bad = |what: String| Err(crate::EngineError::InvalidSpec(what));
        let source = self.source.to_string_lossy();
        if !self.source.is_absolute() || source.contains([':', ',', '\\', '\0']) {
            return bad(format!(
                "bind source {source:?} is not absolute or holds one of : , \\"
            ));
        }
        let target = self.target.to_string_lossy();
        if !clean_absolute(&target) || target == "/" {
            return bad(format!(
                "bind target {target:?} is not a clean absolute path"
            ));
        }
        match &self.beneath {
            Some(beneath) if !clean_absolute(&format!("/{}", beneath.to_string_lossy())) => bad(
                format!("bind beneath {beneath:?} is not a clean relative path"),
            ),
            _ => Ok(()),
        }
    }
}

/// Binds of one machine.
pub const MAX_BINDS: usize = 64;

/// Everything an engine needs to build one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// The machine's id: 1 to 64 characters of `[A-Za-z0-9_-]`, unique for all time.
    pub id: String,
    /// The name the machine gives itself; 1 to 63 characters of a DNS label.
    pub hostname: String,
    /// Read-only trees, topmost first; at least one. Files in them belong to uid 0 and up, as inside
    /// the machine.
    pub lower: Vec<PathBuf>,
    /// Host paths shown inside, after the layers are in place.
    pub binds: Vec<Bind>,
    /// Environment of every command in the machine unless the command sets the name itself. May hold
    /// secrets: an engine keeps it in memory and never writes it to disk or a log.
    pub env: BTreeMap<String, String>,
    /// The default working directory of commands; made if missing.
    pub cwd: String,
    /// CPU limit in thousandths of a core; at least 10.
    pub cpu_millis: u32,
    /// Memory limit in bytes (anonymous and page cache together); at least 16 MiB.
    pub memory_bytes: u64,
    /// Most processes and threads at once; at least 16.
    pub pids_max: u32,
    /// The most that may be written in the machine, in bytes, outside its binds: what is beyond it is refused like on a full disk.
    /// `None` for no limit but the host's disk. An engine that cannot hold machines to it takes it for `None`
    /// ([`Capabilities::disk_limits`]).
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// What the machine may reach. With closed rules it has its loopback only.
    pub egress: Rules,
    /// The engine that it is asked to be made by, where there are several; `None` for whichever is strongest.
    #[serde(default)]
    pub engine: Option<String>,
}

impl MachineSpec {
    /// Checks the bounds that the field docs give. Engines call it before they do anything.
    ///
    /// # Errors
    /// [`crate::EngineError::InvalidSpec`] with the field that is wrong.
    pub fn validate(&self) -> Result<(), crate::EngineError> {
        let bad = |what: String| Err(crate::EngineError::InvalidSpec(what));
        let word = |s: &str, max: usize, extra: &[char]| {
            !s.is_empty()
                && s.len() <= max
                && s.chars()
                    .all(|c| c.is_ascii_alphanumeric() || extra.contains(&c))
        };
        if !word(&self.id, 64, &['_', '-']) {
            return bad(format!("id {:?} is not 1 to 64 of [A-Za-z0-9_-]", self.id));
        }
        if !word(&self.hostname, 63, &['-']) {
            return bad(format!("hostname {:?} is not a DNS label", self.hostname));
        }
        if self.lower.is_empty() || self.lower.len() > 32 {
            return bad("lower must name 1 to 32 layers".into());
        }
        for path in &self.lower {
            let text = path.to_string_lossy();
            if !path.is_absolute() || text.contains([':', ',', '\\', '\0']) {
                return bad(format!(
                    "layer path {text:?} is not absolute or holds one of : , \\"
                ));
            }
        }
        if self.binds.len() > MAX_BINDS {
            return bad(format!("binds must be at most {MAX_BINDS}"));
        }
        for bind in &self.binds {
            bind.validate()?;
        }
        if !clean_absolute(&self.cwd) {
            return bad(format!("cwd {:?} is not a clean absolute path", self.cwd));
        }
        if self.cpu_millis < 10 {
            return bad("cpu_millis is under 10".into());
        }
        if self.memory_bytes < 16 << 20 {
            return bad("memory_bytes is under 16 MiB".into());
        }
        if self.pids_max < 16 {
            return bad("pids_max is under 16".into());
        }
        if self.disk_bytes.is_some_and(|bytes| bytes < 1 << 20) {
            return bad("disk_bytes is under 1 MiB".into());
        }
        if self
            .env
            .iter()
            .any(|(k, v)| k.is_empty() || k.contains(['=', '\0']) || v.contains('\0'))
        {
            return bad("env holds an empty name, `=` in a name, or a NUL".into());
        }
        Ok(())
    }
}

/// `/` or `/a/b`: absolute, no empty, `.` or `..` segment, no NUL.
fn clean_absolute(path: &str) -> bool {
    path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            !path.contains('\0') && rest.split('/').all(|s| !matches!(s, "" | "." | ".."))
        })
}

/// A machine that an engine keeps alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveMachine {
    /// Its id.
    pub id: String,
    /// The engine that keeps it, by name.
    pub engine: String,
}

/// A machine that ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineExit {
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: ExitReason,
}

/// What a machine was kept from, how often since that was last said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The machine's id.
    pub id: String,
    /// What it tried.
    pub target: DeniedTarget,
    /// Packets, or questions.
    pub count: u64,
}

/// See [`Denial`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeniedTarget {
    /// To resolve a name.
    Name(Name),
    /// To send something there.
    Address {
        /// Where to.
        address: Ipv4Addr,
        /// The protocol's number: 1 is ICMP, 6 TCP, 17 UDP.
        protocol: u8,
        /// The port; 0 where there are none.
        port: u16,
    },
}

/// Why a machine ended without being asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// Its process 1 ended; the text is what the engine saw (exit code or signal).
    GuestEnded(String),
    /// The kernel killed process 1 for memory.
    OutOfMemory,
    /// The engine's helper died and took the machine with it.
    EngineLost,
}

/// What a machine uses, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// When the processor time was read.
    pub at: std::time::Instant,
    /// Processor time of everything in the machine since it was made, in microseconds. Never goes back.
    pub cpu_micros: u64,
    /// Bytes of memory that it would not give back: without the cache of files.
    pub memory_bytes: u64,
    /// The most memory it may have, in bytes.
    pub memory_limit_bytes: u64,
    /// Bytes on disk of what was written in it.
    pub disk_used_bytes: u64,
    /// The most that could become, in bytes: a quota, or with what is free on the disk.
    pub disk_total_bytes: u64,
    /// Bytes that it received over its link since it was made.
    pub network_rx_bytes: u64,
    /// Bytes that it sent.
    pub network_tx_bytes: u64,
}

/// What an engine can do beyond create, destroy, list and dial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// A boundary between machine and host that the kernel enforces.
    pub isolated: bool,
    /// Stops a machine where it stands, with its memory on the host.
    pub pause: bool,
    /// Keeps memory across a stop, durably.
    pub hibernate: bool,
    /// Branches a running machine.
    pub fork: bool,
    /// Holds a machine to what it may write ([`MachineSpec::disk_bytes`]).
    #[serde(default)]
    pub disk_limits: bool,
    /// Shows of a bind's source what is in the image beside it, if there is one (`nullspace_sys::image`).
    pub images: bool,
}

//! Machines prepared ahead.
//!
//! ```text
//!  start ──▶ Forked ──(parked)──▶ Parked ──order──▶ a machine
//! ```
//! A slot has everything that does not depend on what the machine will be: process 1 in its namespaces,
//! cgroups, a user namespace with its range of ids, a network link, and the mounts that all machines have.
//! The child makes them by itself, so that preparing does not hold the launcher up.

use std::{
    fs, io,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
};

use nullspace_engine::MachineSpec;
use nullspace_sys::namespace::{self, Fork};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::{
    cgroup::Group,
    inside::{self, Common, Order, Preparation, RANGE},
    keeper::{self, Gvisor},
    network::{self, Link},
};
use crate::{
    freezer,
    wire::{Counter, Kind, Meters, Refusal},
};

/// First host id of the first range: far from those that people and packages use.
const FIRST_ID: u32 = 0x1000_0000;
/// Ranges in all: as many as a subnet has addresses.
const RANGES: usize = 4096;

/// What a machine's own kernel may take beyond what the machine may, in bytes: 40 MB for itself, and what the machine
/// takes before its guest has ended the largest process.
pub(crate) const KERNEL_MEMORY: u64 = 512 << 20;
/// What the host must have for each process of a machine with a kernel of its own, in bytes. A small one takes 2 MB of it;
/// as much again is for what processes are there for.
const PROCESS_MEMORY: u64 = 4 << 20;
/// Host threads of a machine's own kernel.
const KERNEL_THREADS: u32 = 256;
/// The most host threads that stand for one of a machine's.
const THREADS_EACH: u32 = 3;

/// How many processes a machine with a kernel of its own may have: no more than that kernel has memory for.
pub(super) fn pids_max(spec: &MachineSpec) -> u32 {
    let memory = spec.memory_bytes.saturating_add(KERNEL_MEMORY);
    spec.pids_max
        .min(u32::try_from(memory / PROCESS_MEMORY).unwrap_or(u32::MAX))
}

/// User namespaces by range. A namespace is used again once its machine is gone: it holds nothing.
pub(super) struct Ranges {
    made: Vec<OwnedFd>,
    free: Vec<usize>,
}

impl Ranges {
    pub(super) fn new() -> Self {
        Self {
            made: Vec::new(),
            free: Vec::new(),
        }
    }

    fn take(&mut self) -> io::Result<usize> {
        if let Some(range) = self.free.pop() {
            return Ok(range);
        }
        if self.made.len() == RANGES {
            return Err(io::Error::other(format!(
                "all {RANGES} id ranges are in use"
            )));
        }
        let range = self.made.len();
        self.made
            .push(namespace::user_namespace(first_id(range), RANGE)?);
        Ok(range)
    }

    /// The namespace of a range that is taken.
    pub(super) fn namespace(&self, range: usize) -> Result<OwnedFd, Refusal> {
        let made = self.made.get(range).map(OwnedFd::try_clone);
        made.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
            .map_err(|error| Refusal::step("find the machine's ids", error))
    }

    pub(super) fn give_back(&mut self, range: usize) {
        self.free.push(range);
    }
}

/// Host id of the root of a range.
pub(super) fn first_id(range: usize) -> u32 {
    FIRST_ID + range as u32 * RANGE
}

/// A process 1 and what is its own.
#[derive(Debug)]
pub(super) struct Slot {
    pid: i32,
    pub(super) pidfd: OwnedFd,
    /// Until the machine runs: then there is nothing more to say.
    pub(super) control: Option<UnixStream>,
    pub(super) kind: Kind,
    pub(super) group: Group,
    /// `None` where nothing has host ids of its own.
    pub(super) range: Option<usize>,
    pub(super) link: Link,
    /// What becomes the machine's directory.
    pub(super) directory: PathBuf,
    /// What it has made.
    pub(super) ahead: Ahead,
}

/// What is made before it is known which machine it is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The layers of a root; none for no root.
    pub(super) lower: Vec<PathBuf>,
    /// The most that its writable layer holds.
    pub(super) disk_bytes: Option<u64>,
}

impl Ahead {
    pub(super) fn of(spec: &MachineSpec) -> Self {
        Self {
            lower: spec.lower.clone(),
            disk_bytes: spec.disk_bytes,
        }
    }
}

/// What a slot is made with.
pub(super) struct Materials<'a> {
    pub(super) group: Group,
    pub(super) link: Link,
    /// Does not exist yet.
    pub(super) directory: PathBuf,
    pub(super) ahead: Ahead,
    pub(super) common: &'a Common,
    /// For a machine of gVisor.
    pub(super) gvisor: Option<&'a Gvisor>,
}

impl Slot {
    /// Forks process 1. It reports [`inside::PARKED`] on `control` when it has all that is prepared.
    pub(super) fn start(
        own_pids: &OwnedFd,
        ranges: &mut Ranges,
        materials: Materials<'_>,
    ) -> io::Result<Self> {
        let Materials {
            group,
            link,
            directory,
            ahead,
            common,
            gvisor,
        } = materials;
        fs::create_dir(&directory)?;
        let range = match gvisor {
            None => Some(ranges.take()?),
            Some(_) => None,
        };
        let fork = || {
            let (ours, theirs) = UnixStream::pair()?;
            match namespace::fork_init(own_pids.as_fd())? {
                Fork::Child => {
                    let preparation = Preparation {
                        group: &group,
                        link: &link,
                        users: range.map(|range| &ranges.made[range]),
                        first_id: range.map_or(0, first_id),
                        directory: &directory,
                        ahead: &ahead,
                        common,
                    };
                    match gvisor {
                        None => inside::main(theirs, &preparation),
                        Some(gvisor) => keeper::main(theirs, &preparation, gvisor),
                    }
                }
                Fork::Parent(pid) => Ok((pid, ours)),
            }
        };
        let started = fork().and_then(|(pid, control)| {
            let open = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"))?;
            Ok((pid, control, pidfd_open(open, PidfdFlags::empty())?))
        });
        match started {
            Ok((pid, control, pidfd)) => Ok(Self {
                pid,
                pidfd,
                control: Some(control),
                kind: match gvisor {
                    None => Kind::Native,
                    Some(_) => Kind::Gvisor,
                },
                group,
                range,
                link,
                directory,
                ahead,
            }),
            Err(error) => {
                if let Some(range) = range {
                    ranges.give_back(range);
                }
                Err(error)
            }
        }
    }

    /// Turns a parked slot into a machine. The child reports [`inside::READY`].
    pub(super) fn order(&mut self, order: &Order) -> io::Result<()> {
        let spec = &order.spec;
        let (memory, pids) = match self.kind {
            Kind::Native => (spec.memory_bytes, spec.pids_max),
            Kind::Gvisor => (
                spec.memory_bytes.saturating_add(KERNEL_MEMORY),
                spec.pids_max
                    .saturating_mul(THREADS_EACH)
                    .saturating_add(KERNEL_THREADS),
            ),
        };
        self.group.limit(memory, spec.cpu_millis, pids)?;
        match &mut self.control {
            Some(control) => control.write_all(&crate::wire::encode(order)),
            None => Err(io::Error::other("it is a machine already")),
        }
    }

    /// Its view of the file system, held open so that its processes can end without taking it down.
    pub(super) fn mounts(&self) -> Option<fs::File> {
        namespace::open(self.pid, "mnt").ok()
    }

    /// Where the kernel counts what it uses.
    pub(super) fn meters(&self) -> Option<Meters> {
        Some(Meters {
            cpu: self.group.cpu_counter(),
            processors: self.group.counter("cpu")?,
            memory: self.group.counter("memory")?,
            freezer: self.group.freezer(),
            interface: self.link.name.clone(),
        })
    }

    /// Does something in its network.
    pub(super) fn in_network(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        network::inside(self.pid, work)
    }

    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        // On v1 what stands still does not even end.
        if let Some(group @ Counter::V1(_)) = self.group.freezer() {
            let _ = freezer::write(&group, false);
        }
        self.group.lift_cpu_limit();
    }

    /// Waits for the end of process 1, which is the end of every process of the machine.
    pub(super) fn wait(&self) -> Ended {
        match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ended(format!("process 1 ended with code {code}")),
                (_, Some(signal)) => Ended(format!("process 1 was ended by signal {signal}")),
                _ => Ended("process 1 ended".to_owned()),
            },
            _ => Ended("process 1 is gone".to_owned()),
        }
    }
}

/// How process 1 ended, for people.
pub(super) struct Ended(pub(super) String);

//! Machines prepared ahead.
//!
//! ```text
//!  start ──▶ Forked ──(namespaces made)──▶ plug ──▶ Plugged ──(parked)──▶ Parked ──order──▶ a machine
//! ```
//! A slot has everything that does not depend on what the machine will be: process 1 in its namespaces,
//! cgroups, a user namespace with its range of ids, and a network link. The launcher takes the steps one
//! at a time between requests, so that preparing never holds up a caller for long.

use std::{
    fs, io,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use nullspace_sys::{
    namespace::{self, Fork, Namespaces},
    seccomp::Filter,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::{
    cgroup::{Cgroups, Group},
    inside::{self, Order, RANGE},
    network::{Inside, Link, Network},
};

/// First host id of the first range: far from those that people and packages use.
const FIRST_ID: u32 = 0x1000_0000;
/// Ranges in all: as many as a subnet has addresses.
const RANGES: usize = 4096;

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
        self.made.push(make_user_namespace(first_id(range))?);
        Ok(range)
    }

    pub(super) fn give_back(&mut self, range: usize) {
        self.free.push(range);
    }
}

/// Host id of the root of a range.
pub(super) fn first_id(range: usize) -> u32 {
    FIRST_ID + range as u32 * RANGE
}

/// A user namespace with one range of ids, held by its descriptor alone.
fn make_user_namespace(first: u32) -> io::Result<OwnedFd> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    match namespace::fork()? {
        Fork::Child => {
            // Lives until the parent closes its end.
            let made = namespace::unshare(Namespaces::USER).is_ok();
            drop(ours);
            let _ = theirs.write_all(&[u8::from(made)]);
            let _ = theirs.read(&mut [0]);
            namespace::exit_now(0)
        }
        Fork::Parent(pid) => {
            drop(theirs);
            let mut work = || {
                let mut made = [0];
                ours.read_exact(&mut made)?;
                if made != [1] {
                    return Err(io::Error::other(
                        "user namespaces cannot be made on this host",
                    ));
                }
                let map = format!("0 {first} {RANGE}\n");
                fs::write(format!("/proc/{pid}/uid_map"), &map)?;
                fs::write(format!("/proc/{pid}/gid_map"), &map)?;
                namespace::open(pid, "user").map(OwnedFd::from)
            };
            let namespace = work();
            drop(ours);
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            }
            namespace
        }
    }
}

/// A process 1 and what is its own.
#[derive(Debug)]
pub(super) struct Slot {
    pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) control: UnixStream,
    pub(super) group: Group,
    pub(super) range: usize,
    pub(super) link: Option<Link>,
}

impl Slot {
    /// Forks process 1. It reports [`inside::NAMESPACES_MADE`] on `control`.
    pub(super) fn start(
        name: &str,
        own_pids: &OwnedFd,
        cgroups: &Cgroups,
        ranges: &mut Ranges,
        filter: &Filter,
    ) -> io::Result<Self> {
        let range = ranges.take()?;
        let start = || {
            let group = cgroups.make(name)?;
            let forked = UnixStream::pair().and_then(|(ours, theirs)| {
                Ok(match namespace::fork_init(own_pids.as_fd())? {
                    Fork::Child => inside::main(theirs, &ranges.made[range], filter),
                    Fork::Parent(pid) => (pid, ours),
                })
            });
            let (pid, control) = match forked {
                Ok(forked) => forked,
                Err(error) => {
                    group.remove();
                    return Err(error);
                }
            };
            let open = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process id"));
            let pidfd = open.and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))?;
            let slot = Self {
                pid,
                pidfd,
                control,
                group,
                range,
                link: None,
            };
            if let Err(error) = slot.group.add(pid) {
                slot.kill();
                slot.wait();
                slot.group.remove();
                return Err(error);
            }
            Ok(slot)
        };
        let started = start();
        if started.is_err() {
            ranges.give_back(range);
        }
        started
    }

    /// Plugs the network in. The child reports [`inside::PARKED`] when its end is up.
    pub(super) fn plug(
        &mut self,
        network: &mut Network,
        in_use: impl Fn(std::net::Ipv4Addr) -> bool,
    ) -> io::Result<()> {
        let namespace = namespace::open(self.pid, "net")?;
        let link = network.link(namespace.as_fd(), in_use)?;
        let inside = Inside {
            address: link.address,
            gateway: network.gateway(),
        };
        self.link = Some(link);
        self.control.write_all(&crate::wire::encode(&inside))
    }

    /// Turns a parked slot into a machine. The child reports [`inside::READY`].
    pub(super) fn order(&mut self, order: &Order) -> io::Result<()> {
        let spec = &order.spec;
        self.group
            .limit(spec.memory_bytes, spec.cpu_millis, spec.pids_max)?;
        self.control.write_all(&crate::wire::encode(order))
    }

    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
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

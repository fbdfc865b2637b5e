//! What makes a machine real.
//!
//! [`Engine`] is the contract between the platform (`nullspace-server`) and the things that can
//! build an isolated Linux environment. Its method docs say what the caller guarantees and what the
//! engine owes; [`conformance`] checks every engine against them, and [`fake::FakeEngine`] is an
//! engine without isolation, good enough to develop the platform on any Linux box.
//!
//! An engine creates, destroys, lists and dials; some also keep a machine's memory. Everything that happens *inside*
//! a machine (commands, files, ports) is spoken to its guest over the dialled stream with `nullspace-protocol`, the
//! same on every engine. [`several::Several`] puts more than one behind one door.

mod checkpoint;
pub mod conformance;
pub mod fake;
pub mod several;
mod spec;

pub use checkpoint::{Checkpoint, FileDigest, FileHasher, Purpose};
pub use nullspace_egress as egress;
pub use nullspace_protocol::BoxedIo;
pub use spec::{
    Bind, Capabilities, Denial, DeniedTarget, ExitReason, LiveMachine, MAX_BINDS, MachineExit,
    MachineSpec, Usage,
};

use async_trait::async_trait;
use tokio::sync::broadcast;

/// Why an engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The spec asks for something that cannot be: the caller's input is wrong.
    #[error("invalid machine spec: {0}")]
    InvalidSpec(String),
    /// The engine knows no live machine of that id.
    #[error("no live machine {0}")]
    NotFound(String),
    /// A machine of that id is alive already.
    #[error("machine {0} exists already")]
    Exists(String),
    /// No room for one more machine (addresses, ids, memory or a configured limit).
    #[error("no capacity: {0}")]
    Capacity(String),
    /// The engine cannot do this at all.
    #[error("the {engine} engine cannot {what}")]
    Unsupported {
        /// The engine that was asked.
        engine: &'static str,
        /// The missing ability, as a verb phrase.
        what: &'static str,
    },
    /// The disk is full. What was there before is unharmed.
    #[error("the disk is full: {0}")]
    NoSpace(String),
    /// A checkpoint is not there, is not whole or was changed, or was written by an engine that is not like this one.
    #[error("no machine can be made of the checkpoint: {0}")]
    Checkpoint(String),
    /// The machine's state cannot be kept as it is now: a process has something open that could not be opened again. It
    /// runs on.
    #[error("the machine's state cannot be kept now: {0}")]
    Busy(String),
    /// The checkpoint is whole, but what its processes had open in a bind is not there as it was.
    #[error("the machine cannot go on: {0}")]
    Lacks(String),
    /// A step of building or ending the machine failed.
    #[error("{step} failed: {reason}")]
    Step {
        /// The step, as the engine's own docs name it.
        step: String,
        /// What the system said.
        reason: String,
    },
    /// The engine's helper process is gone or does not answer; the operation may be retried.
    #[error("engine unavailable: {0}")]
    Unavailable(String),
}

/// Makes, ends and reaches machines.
///
/// All methods may be called concurrently. Ids are unique for all time: a caller never reuses the id
/// of a machine that was destroyed.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The engine's name as users write it: `native`, `gvisor`, `microvm`, or `fake`.
    fn name(&self) -> &'static str;

    /// What this engine can do beyond the basics. With several engines behind one door: what it does for machines that
    /// ask for none by name.
    fn capabilities(&self) -> Capabilities;

    /// The engines that a machine can ask for by name, and what each can do; the one for machines that ask for none first.
    fn offers(&self) -> Vec<(&'static str, Capabilities)> {
        vec![(self.name(), self.capabilities())]
    }

    /// The same for one machine, where several engines are behind one.
    async fn capabilities_of(&self, _id: &str) -> Result<Capabilities, EngineError> {
        Ok(self.capabilities())
    }

    /// Whether a machine could be created now; the error says what is in the way.
    async fn health(&self) -> Result<(), EngineError>;

    /// Builds a machine and returns once its guest answers.
    ///
    /// The caller guarantees that `spec.lower` are finished, immutable trees that stay in place while
    /// the machine lives, and that `spec.id` was never used before. The engine owes: all or nothing
    /// (on error no process, mount, cgroup, interface or file of the machine remains), the limits of
    /// the spec enforced, and a machine that outlives the calling process.
    async fn create(&self, spec: &MachineSpec) -> Result<(), EngineError>;

    /// Ends a machine: when this returns no process of it runs. What it leaves on disk is removed in
    /// the background. Unknown ids are fine (`Ok`), so that a repeated call is harmless.
    async fn destroy(&self, id: &str) -> Result<(), EngineError>;

    /// Ends a machine and hands over what was written in it: its writable layer becomes the directory `target`, a
    /// finished tree that can be a lower layer of other machines (above the same layers), with owners as inside the
    /// machine.
    ///
    /// The caller guarantees that `target` does not exist and lies in the data directory. On error the machine is
    /// gone and `target` is not there, or is of no use.
    async fn keep(&self, id: &str, target: &std::path::Path) -> Result<(), EngineError>;

    /// Stops every process of a machine where it stands. Its memory stays on the host until the machine goes on or is
    /// ended, or the host restarts. A machine that stands still already is fine.
    ///
    /// While it stands still its guest does not answer, and [`Engine::dial`] may wait for it. [`Engine::destroy`],
    /// [`Engine::list`] and [`Engine::usage`] are as ever.
    async fn pause(&self, _id: &str) -> Result<(), EngineError> {
        Err(self.cannot("pause machines"))
    }

    /// Lets a machine that was paused go on. One that runs is fine.
    async fn unpause(&self, _id: &str) -> Result<(), EngineError> {
        Err(self.cannot("pause machines"))
    }

    /// Writes a machine's processes, memory and writable layer, as they were at one moment, into the directory `target`.
    /// When this returns all of it is on disk and stays there if the power goes, but for [`Purpose::Fork`].
    ///
    /// The caller guarantees that `target` does not exist and that its parent does. On error the machine goes on
    /// running, and `target` is not there or holds no finished checkpoint (see [`Checkpoint::read`]). With
    /// [`Purpose::Hibernate`] no process of the machine does anything after the moment that was kept.
    ///
    /// [`EngineError::Busy`] while a process has something open that was deleted, or is in a bind that was detached: a machine
    /// could not be built of that.
    async fn checkpoint(
        &self,
        _id: &str,
        _target: &std::path::Path,
        _purpose: Purpose,
    ) -> Result<Checkpoint, EngineError> {
        Err(self.cannot("keep memory"))
    }

    /// Builds a machine from a checkpoint: its processes go on where they were kept, with their files, terminals and
    /// listening ports. Returns once its guest answers.
    ///
    /// As for [`Engine::create`], but what was started in the checkpoint has its environment and directory already.
    /// Before anything of it runs the engine proves the checkpoint by the digest in its record ([`EngineError::Checkpoint`]
    /// when it is not what was written); the caller compares that with the one it was given, because a checkpoint that has none
    /// is taken as it is. It is only read, and once this returns it may be removed.
    /// The caller guarantees that the layers are those of the machine that was kept, and that wherever that one had a bind
    /// there is one: the same, or another directory. Binds at further targets are shown as by [`Engine::attach`]. Where processes have
    /// something open in a bind and it is not there, or may not be opened like that any more, no machine is made
    /// ([`EngineError::Lacks`]).
    /// Id, host name and address may be others; several machines may be built from one checkpoint, and share nothing that
    /// can change but what their binds show. The engine owes besides: a clock that is right and random numbers that were
    /// not drawn before.
    async fn restore(
        &self,
        _spec: &MachineSpec,
        _from: &std::path::Path,
    ) -> Result<(), EngineError> {
        Err(self.cannot("keep memory"))
    }

    /// The refusal of what this engine does not have.
    fn cannot(&self, what: &'static str) -> EngineError {
        EngineError::Unsupported {
            engine: self.name(),
            what,
        }
    }

    /// The machines that are alive now, also those that an earlier process of the caller created.
    async fn list(&self) -> Result<Vec<LiveMachine>, EngineError>;

    /// Opens a byte stream to the machine's guest, to speak `nullspace-protocol` over. Many streams
    /// may be open at once.
    async fn dial(&self, id: &str) -> Result<BoxedIo, EngineError>;

    /// Opens a TCP connection to a port of a machine over its network, as fast as the engine has it. `None` when the
    /// engine has no such way, the machine has no network, or nothing listens on the machine's address: the caller
    /// then asks the guest, which also reaches what listens on the machine's own loopback.
    async fn connect(&self, _id: &str, _port: u16) -> Result<Option<BoxedIo>, EngineError> {
        Ok(None)
    }

    /// What a machine uses now. Meant to be asked often: a call costs some tens of microseconds and holds up neither
    /// the machine nor other calls. What cannot be read at that price (the size of the writable layer) may be some
    /// seconds old.
    ///
    /// [`EngineError::NotFound`] when it is not alive.
    async fn usage(&self, id: &str) -> Result<Usage, EngineError>;

    /// Says how much of the host's processors a live machine gets beside others when all are busy: twice the share is twice the time,
    /// 100 is what one has that nothing was said of. It is a share and no limit. An engine that cannot leaves it at that.
    ///
    /// [`EngineError::NotFound`] when it is not alive.
    async fn set_share(&self, _id: &str, _share: u32) -> Result<(), EngineError> {
        Ok(())
    }

    /// Replaces what a live machine may reach, as a whole: at no moment are some of the old rules and some of the new
    /// ones in force. When this returns the new ones are, for open connections too. When it fails and the new rules
    /// are tighter, the machine reaches nothing until a later call succeeds. The same rules again are fine.
    ///
    /// What no rules open: the host's own services, other machines, link-local and metadata addresses.
    async fn set_egress(&self, id: &str, rules: &egress::Rules) -> Result<(), EngineError>;

    /// Shows a host directory in a live machine. When this returns every process of the machine sees it.
    ///
    /// The caller guarantees that `bind.source` is a directory that stays in place until it was detached or the machine is
    /// gone. The engine owes: all or nothing; the same bind again is fine; nothing that is in the source or in the machine
    /// (links, directories that are swapped meanwhile) leads to another place of the host or the machine; owners in it are
    /// those that other machines see, whatever ids each has; writes to a read-only one are refused by the kernel.
    ///
    /// [`EngineError::NotFound`] when the machine is not alive, [`EngineError::InvalidSpec`] when the target cannot be a
    /// directory or has another bind already, or `bind.beneath` is no directory or leads through a link.
    async fn attach(&self, _id: &str, _bind: &Bind) -> Result<(), EngineError> {
        Err(EngineError::Unsupported {
            engine: self.name(),
            what: "attach volumes to a machine that runs",
        })
    }

    /// Takes a bind away, one that [`Engine::create`] made or [`Engine::attach`]. When this returns nobody can open anything
    /// in it any more; what processes have open (files, working directories) they keep until they close it, so that nothing
    /// that is busy refuses. One that is not there is fine. The (empty) directory at the target stays.
    ///
    /// [`EngineError::NotFound`] when the machine is not alive.
    async fn detach(&self, _id: &str, _target: &std::path::Path) -> Result<(), EngineError> {
        Err(EngineError::Unsupported {
            engine: self.name(),
            what: "detach volumes from a machine that runs",
        })
    }

    /// The binds that a live machine has now: those of its spec and those attached since, less those detached.
    ///
    /// [`EngineError::NotFound`] when it is not alive.
    async fn attached(&self, _id: &str) -> Result<Vec<Bind>, EngineError> {
        Err(EngineError::Unsupported {
            engine: self.name(),
            what: "say what is attached to a machine",
        })
    }

    /// What machines with rules were kept from, from now on, within seconds and bounded for each machine. A lagging
    /// receiver misses some.
    fn denials(&self) -> broadcast::Receiver<Denial>;

    /// Machines that ended without [`Engine::destroy`], from now on. A lagging receiver must call
    /// [`Engine::list`] to catch up.
    fn exits(&self) -> broadcast::Receiver<MachineExit>;
}

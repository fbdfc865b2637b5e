//! What one client has, as far as it was told: what must hold after whatever happens.

use std::collections::BTreeMap;

/// Small files with a line each, by name.
pub(crate) type Files = BTreeMap<String, String>;

/// What a client does, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Create,
    Checkout,
    CreateFromTemplate,
    CreateFromSnapshot,
    Fork,
    Furnish,
    Write,
    Hibernate,
    Resume,
    Wake,
    Destroy,
    Snapshot,
    DeleteSnapshot,
    CreateVolume,
    WriteVolume,
    Attach,
    WriteMounted,
    Detach,
    DeleteVolume,
    Build,
    Pull,
    DeleteTemplate,
    Deploy,
    Run,
    DeleteDeployment,
    Collect,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Checkout => "pool checkout",
            Self::CreateFromTemplate => "create from template",
            Self::CreateFromSnapshot => "create from snapshot",
            Self::Fork => "fork",
            Self::Furnish => "exec",
            Self::Write => "exec that writes",
            Self::Hibernate => "hibernate",
            Self::Resume => "resume",
            Self::Wake => "wake by use",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::DeleteSnapshot => "delete snapshot",
            Self::CreateVolume => "volume create",
            Self::WriteVolume => "volume write",
            Self::Attach => "volume attach",
            Self::WriteMounted => "write to a mounted volume",
            Self::Detach => "volume detach",
            Self::DeleteVolume => "volume delete",
            Self::Build => "template build",
            Self::Pull => "image pull",
            Self::DeleteTemplate => "template delete",
            Self::Deploy => "deploy",
            Self::Run => "agent run",
            Self::DeleteDeployment => "deployment delete",
            Self::Collect => "garbage collection",
        }
    }
}

/// Where a machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// It stands still in the host's memory.
    Standing,
    /// Its memory is on the disk.
    Kept,
}

/// A process that must stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: String,
    /// Its argument, which no other has.
    pub(crate) number: u64,
}

/// What a machine has inside, which copies of it have too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inside {
    /// The variable that it was made with; none if nobody who asked for it was answered.
    pub(crate) env: Option<String>,
    pub(crate) files: Files,
    pub(crate) process: Option<Process>,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// In its metadata; copies of it have the same.
    pub(crate) tag: String,
    pub(crate) state: State,
    pub(crate) inside: Inside,
}

#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) files: Files,
    /// The machine that has it, and the mount.
    pub(crate) mount: Option<(String, String)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    pub(crate) files: Files,
}

/// A job that can be run.
#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) id: String,
    /// What a run of it prints follows from this.
    pub(crate) version: u64,
    /// The id of that.
    pub(crate) version_id: String,
    /// The runs that were asked for, by key.
    pub(crate) runs: BTreeMap<String, String>,
}

/// Everything of one client, by id (templates and deployments by name).
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) machines: BTreeMap<String, Machine>,
    pub(crate) snapshots: BTreeMap<String, Inside>,
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) templates: BTreeMap<String, Template>,
    pub(crate) deployments: BTreeMap<String, Deployment>,
    /// What sleeping machines are kept as, as they said last.
    pub(crate) kept_as: BTreeMap<String, String>,
}

impl Own {
    /// Nothing of the machine is there any more.
    pub(crate) fn forget_machine(&mut self, id: &str) {
        self.machines.remove(id);
        self.kept_as.remove(id);
        for volume in self.volumes.values_mut() {
            if volume
                .mount
                .as_ref()
                .is_some_and(|(machine, _)| machine == id)
            {
                volume.mount = None;
            }
        }
    }

    /// Whether a machine has a volume.
    pub(crate) fn has_volume(&self, id: &str) -> bool {
        let mut mounts = self
            .volumes
            .values()
            .filter_map(|volume| volume.mount.as_ref());
        mounts.any(|(machine, _)| machine == id)
    }
}

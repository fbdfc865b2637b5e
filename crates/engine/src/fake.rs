//! An engine without isolation: a machine is a folder and a real guest in this process.
//!
//! Good enough to develop the whole platform on: commands really run (on the host, in the folder), files
//! are real, the guest protocol is the real one. It keeps the same promises as the others where they do
//! not need a kernel boundary, and it can be told to fail.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use nullspace_guest::{Config, Guest};
use tokio::{sync::broadcast, task::JoinSet};

use crate::{
    Bind, BoxedIo, Capabilities, Checkpoint, Denial, Engine, EngineError, ExitReason, LiveMachine,
    MachineExit, MachineSpec, Purpose, Usage, egress::Rules,
};

/// Of what it writes as checkpoints.
const FORMAT: &str = "1";
/// What machines could still write, in bytes.
const DISK_FREE: u64 = 1 << 30;

/// See the module's docs. Dropping it ends its machines.
pub struct FakeEngine {
    name: &'static str,
    root: tempfile::TempDir,
    machines: Mutex<HashMap<String, Machine>>,
    exits: broadcast::Sender<MachineExit>,
    denials: broadcast::Sender<Denial>,
    failing: Mutex<BTreeSet<String>>,
    /// Held while no machine may end.
    ending: tokio::sync::Mutex<()>,
    keeps_memory: bool,
}

struct Machine {
    guest: Guest,
    root: PathBuf,
    memory_limit_bytes: u64,
    /// What a test says that it uses.
    counted: Counted,
    /// Kept and told, not enforced: commands run on the host.
    egress: Rules,
    /// Links in the folder: what is in them is the real thing, but nothing keeps a machine from writing to it.
    binds: Vec<Bind>,
    /// Open connections; they end with the machine.
    connections: JoinSet<()>,
}

/// What nobody counts here, so that a test says it: see [`FakeEngine::set_counted`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Microseconds.
    pub cpu_micros: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes.
    pub network_rx_bytes: u64,
    /// Bytes.
    pub network_tx_bytes: u64,
}

impl std::fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeEngine")
            .field("root", &self.root.path())
            .finish_non_exhaustive()
    }
}

impl FakeEngine {
    /// An engine with no machines, in a temporary folder of its own.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new() -> io::Result<Self> {
        Self::named("fake")
    }

    /// The same under another name, for what tells engines apart.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn named(name: &'static str) -> io::Result<Self> {
        Ok(Self {
            name,
            root: tempfile::tempdir()?,
            machines: Mutex::default(),
            exits: broadcast::Sender::new(64),
            denials: broadcast::Sender::new(64),
            failing: Mutex::default(),
            ending: tokio::sync::Mutex::default(),
            keeps_memory: false,
        })
    }

    /// One that says that it keeps memory. It keeps files, and no process.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn with_memory() -> io::Result<Self> {
        let mut engine = Self::new()?;
        engine.keeps_memory = true;
        Ok(engine)
    }

    /// Ends a machine as if its guest had died.
    pub fn crash(&self, id: &str) {
        if self.lock().remove(id).map(Machine::end).is_some() {
            let reason = ExitReason::GuestEnded("crashed by a test".into());
            let _ = self.exits.send(MachineExit {
                id: id.to_owned(),
                reason,
            });
        }
    }

    /// Makes every later [`Engine::create`] whose hostname or id is this one fail.
    pub fn fail_create(&self, id_or_hostname: &str) {
        self.failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id_or_hostname.to_owned());
    }

    /// The rules of a live machine.
    #[must_use]
    pub fn egress(&self, id: &str) -> Option<Rules> {
        self.lock().get(id).map(|machine| machine.egress.clone())
    }

    /// Says that a machine was kept from something.
    pub fn deny(&self, denial: Denial) {
        let _ = self.denials.send(denial);
    }

    /// Makes every [`Engine::destroy`] wait until what this returns is dropped.
    pub async fn hold_destroys(&self) -> impl Drop + '_ {
        self.ending.lock().await
    }

    /// What [`Engine::usage`] says of a machine from now on. The size of its folder is measured all the same.
    pub fn set_counted(&self, id: &str, counted: Counted) {
        if let Some(machine) = self.lock().get_mut(id) {
            machine.counted = counted;
        }
    }

    /// The folder that is a machine's `/`.
    #[must_use]
    pub fn machine_root(&self, id: &str) -> PathBuf {
        self.root.path().join(id)
    }

    /// Makes every later [`Engine::checkpoint`] of this machine fail, or no longer.
    pub fn fail_checkpoint(&self, id: &str, fails: bool) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let what = format!("checkpoint {id}");
        if fails {
            failing.insert(what);
        } else {
            failing.remove(&what);
        }
    }

    /// A guest in a folder that is ready.
    fn start(&self, spec: &MachineSpec, root: PathBuf) -> Result<(), EngineError> {
        let mut env = spec.env.clone();
        env.entry("PATH".into())
            .or_insert_with(|| std::env::var("PATH").unwrap_or_default());
        let config = Config {
            env,
            cwd: spec.cwd.clone(),
            root: root.clone(),
            init: false,
        };
        let guest = Guest::new(config).map_err(step("guest"))?;
        self.lock().insert(
            spec.id.clone(),
            Machine {
                guest,
                root,
                memory_limit_bytes: spec.memory_bytes,
                counted: Counted::default(),
                egress: spec.egress.clone(),
                binds: spec.binds.clone(),
                connections: JoinSet::new(),
            },
        );
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machine {
    fn end(self) {
        let Self {
            guest,
            mut connections,
            root,
            ..
        } = self;
        // As when process 1 dies: nobody is left to say how the others ended.
        connections.abort_all();
        guest.kill_all();
        let _ = std::fs::remove_dir_all(root);
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        for (_, machine) in self.lock().drain() {
            machine.end();
        }
    }
}

/// Copies the layers, lowest first, so that the folder looks like the overlay would.
fn populate(root: &Path, spec: &MachineSpec) -> io::Result<()> {
    for dir in ["tmp", "etc", "root", "workspace"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\n")?;
    for layer in spec.lower.iter().rev() {
        // A whole template is of no use to commands that run on the host: they see the host's own.
        if layer.join("usr").exists() {
            continue;
        }
        copy_tree(layer, root)?;
    }
    for bind in &spec.binds {
        show(root, bind)?;
    }
    std::fs::create_dir_all(root.join(spec.cwd.trim_start_matches('/')))
}

/// What a bind shows.
fn shown(bind: &Bind) -> PathBuf {
    match &bind.beneath {
        Some(beneath) => bind.source.join(beneath),
        None => bind.source.clone(),
    }
}

fn place(root: &Path, target: &Path) -> PathBuf {
    root.join(target.strip_prefix("/").unwrap_or(target))
}

fn show(root: &Path, bind: &Bind) -> io::Result<()> {
    let at = place(root, &bind.target);
    if let Some(parent) = at.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // An empty directory is covered, as a mount covers it.
    let _ = std::fs::remove_dir(&at);
    std::os::unix::fs::symlink(shown(bind), at)
}

fn step(step: &str) -> impl FnOnce(io::Error) -> EngineError {
    let step = step.to_owned();
    move |e: io::Error| EngineError::Step {
        step,
        reason: e.to_string(),
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The files of a folder. What goes away while it is looked at counts nothing.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[async_trait]
impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            hibernate: self.keeps_memory,
            fork: self.keeps_memory,
            disk_limits: false,
            images: false,
            ..Capabilities::default()
        }
    }

    async fn health(&self) -> Result<(), EngineError> {
        Ok(())
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        spec.validate()?;
        {
            let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
            if failing.contains(&spec.id) || failing.contains(&spec.hostname) {
                return Err(EngineError::Step {
                    step: "create".into(),
                    reason: "told to fail".into(),
                });
            }
        }
        for layer in &spec.lower {
            if !layer.is_dir() {
                return Err(EngineError::InvalidSpec(format!(
                    "layer {} is no directory",
                    layer.display()
                )));
            }
        }
        if self.lock().contains_key(&spec.id) {
            return Err(EngineError::Exists(spec.id.clone()));
        }
        let root = self.machine_root(&spec.id);
        if let Err(error) = populate(&root, spec) {
            let _ = std::fs::remove_dir_all(&root);
            return Err(step("populate")(error));
        }
        self.start(spec, root)
    }

    async fn checkpoint(
        &self,
        id: &str,
        target: &Path,
        purpose: Purpose,
    ) -> Result<Checkpoint, EngineError> {
        if !self.keeps_memory {
            return Err(self.cannot("keep memory"));
        }
        let _may_end = self.ending.lock().await;
        let root = self
            .lock()
            .get(id)
            .map(|machine| machine.root.clone())
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        let failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = failing.contains(&format!("checkpoint {id}"));
        drop(failing);
        let work = || -> io::Result<Checkpoint> {
            if fails {
                return Err(io::Error::other("told to fail"));
            }
            std::fs::create_dir(target)?;
            copy_tree(&root, &target.join("root"))?;
            std::fs::write(target.join("memory"), format!("there is none: {id}\n"))?;
            let made = match purpose {
                Purpose::Fork => Checkpoint::passing(self.name, FORMAT),
                Purpose::Hibernate | Purpose::Snapshot => {
                    Checkpoint::of(target, self.name, FORMAT)?
                }
            };
            made.write(target)?;
            Ok(made)
        };
        let checkpoint = work().map_err(|error| {
            let _ = std::fs::remove_dir_all(target);
            step("checkpoint")(error)
        })?;
        if purpose == Purpose::Hibernate
            && let Some(machine) = self.lock().remove(id)
        {
            machine.end();
        }
        Ok(checkpoint)
    }

    async fn restore(&self, spec: &MachineSpec, from: &Path) -> Result<(), EngineError> {
        if !self.keeps_memory {
            return Err(self.cannot("keep memory"));
        }
        spec.validate()?;
        if self.lock().contains_key(&spec.id) {
            return Err(EngineError::Exists(spec.id.clone()));
        }
        let made = Checkpoint::read(from)
            .ok_or_else(|| EngineError::Checkpoint("its record is not there".into()))?;
        if made.engine != self.name || made.format != FORMAT {
            return Err(EngineError::Checkpoint(format!(
                "it is of {} {}",
                made.engine, made.format
            )));
        }
        made.prove(from)?;
        let root = self.machine_root(&spec.id);
        let made = copy_tree(&from.join("root"), &root).and_then(|()| {
            for bind in &spec.binds {
                // What the machine had there before, which is a link here.
                let _ = std::fs::remove_file(place(&root, &bind.target));
                show(&root, bind)?;
            }
            Ok(())
        });
        if let Err(error) = made {
            let _ = std::fs::remove_dir_all(&root);
            return Err(step("restore")(error));
        }
        self.start(spec, root)
    }

    async fn destroy(&self, id: &str) -> Result<(), EngineError> {
        let _may_end = self.ending.lock().await;
        let machine = self.lock().remove(id);
        if let Some(machine) = machine {
            machine.end();
        }
        Ok(())
    }

    async fn keep(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        let _may_end = self.ending.lock().await;
        let machine = self
            .lock()
            .remove(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        let root = machine.root.clone();
        let kept = copy_tree(&root, target);
        machine.end();
        kept.map_err(|e| EngineError::Step {
            step: "keep".into(),
            reason: e.to_string(),
        })
    }

    async fn list(&self) -> Result<Vec<LiveMachine>, EngineError> {
        Ok(self
            .lock()
            .keys()
            .map(|id| LiveMachine {
                id: id.clone(),
                engine: self.name.to_owned(),
            })
            .collect())
    }

    async fn dial(&self, id: &str) -> Result<BoxedIo, EngineError> {
        let mut machines = self.lock();
        let machine = machines
            .get_mut(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let guest = machine.guest.clone();
        machine
            .connections
            .spawn(async move { guest.serve(theirs).await });
        Ok(Box::new(ours))
    }

    async fn usage(&self, id: &str) -> Result<Usage, EngineError> {
        let (root, memory_limit_bytes, counted) = {
            let machines = self.lock();
            let machine = machines
                .get(id)
                .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
            let root = machine.root.clone();
            (root, machine.memory_limit_bytes, machine.counted)
        };
        let disk_used_bytes = size(&root);
        Ok(Usage {
            at: std::time::Instant::now(),
            cpu_micros: counted.cpu_micros,
            memory_bytes: counted.memory_bytes,
            memory_limit_bytes,
            disk_used_bytes,
            disk_total_bytes: disk_used_bytes + DISK_FREE,
            network_rx_bytes: counted.network_rx_bytes,
            network_tx_bytes: counted.network_tx_bytes,
        })
    }

    async fn set_egress(&self, id: &str, rules: &Rules) -> Result<(), EngineError> {
        if self
            .failing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(id)
        {
            return Err(EngineError::Step {
                step: "set the rules".into(),
                reason: "told to fail".into(),
            });
        }
        let mut machines = self.lock();
        let machine = machines
            .get_mut(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        machine.egress = rules.clone();
        Ok(())
    }

    async fn attach(&self, id: &str, bind: &Bind) -> Result<(), EngineError> {
        bind.validate()?;
        let mut machines = self.lock();
        let machine = machines
            .get_mut(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        if machine.binds.contains(bind) {
            return Ok(());
        }
        if machine.binds.iter().any(|b| b.target == bind.target) {
            let what = format!("{} has a bind already", bind.target.display());
            return Err(EngineError::InvalidSpec(what));
        }
        if !shown(bind).is_dir() {
            let what = format!("{} is no directory", shown(bind).display());
            return Err(EngineError::InvalidSpec(what));
        }
        show(&machine.root, bind).map_err(|e| {
            let what = format!("bind target {}: {e}", bind.target.display());
            EngineError::InvalidSpec(what)
        })?;
        machine.binds.push(bind.clone());
        Ok(())
    }

    async fn detach(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        let mut machines = self.lock();
        let machine = machines
            .get_mut(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        if let Some(n) = machine.binds.iter().position(|b| b.target == target) {
            machine.binds.remove(n);
            let at = place(&machine.root, target);
            std::fs::remove_file(&at)
                .and_then(|()| std::fs::create_dir(&at))
                .map_err(|e| EngineError::Step {
                    step: "detach".into(),
                    reason: e.to_string(),
                })?;
        }
        Ok(())
    }

    async fn attached(&self, id: &str) -> Result<Vec<Bind>, EngineError> {
        let machines = self.lock();
        let machine = machines
            .get(id)
            .ok_or_else(|| EngineError::NotFound(id.to_owned()))?;
        Ok(machine.binds.clone())
    }

    fn denials(&self) -> broadcast::Receiver<Denial> {
        self.denials.subscribe()
    }

    fn exits(&self) -> broadcast::Receiver<MachineExit> {
        self.exits.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() -> Result<(), Box<dyn std::error::Error>> {
        let layer = tempfile::tempdir()?;
        let engine = FakeEngine::new()?;
        crate::conformance::run(&engine, &[layer.path().to_owned()]).await;
        let engine = FakeEngine::with_memory()?;
        crate::conformance::run(&engine, &[layer.path().to_owned()]).await;
        Ok(())
    }
}

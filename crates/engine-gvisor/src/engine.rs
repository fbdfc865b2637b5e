//! The engine: the launcher makes machines, their kernels' control sockets do the rest.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use nullspace_engine::{
    Bind, BoxedIo, Capabilities, Checkpoint, Denial, Engine, EngineError, LiveMachine, MachineExit,
    MachineSpec, Purpose, Usage, egress::Rules,
};
use nullspace_engine_native::{
    Host, KERNEL_MEMORY, Kind, Origin, Pack, find_pack, is_id,
    place::{GUEST, KEPT_SECRET, NAME, SECRET, STATE},
    shown_name,
};
use nullspace_protocol::{
    ErrorKind, GuestClient, GuestError,
    alone::{PORT, SECRET_BYTES, Setup, Show},
};
use tokio::{io::AsyncWriteExt, sync::broadcast};

use crate::{
    checkpoint::Source,
    endings::Endings,
    gate::{self, Gate},
    proofs::Proofs,
    release::Release,
};

/// How long a guest may take to write everything out, or to take in which machine it is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between attempts to reach a guest.
const AGAIN: Duration = Duration::from_millis(10);
/// In a machine's directory: the secret that its guest is being told.
const NEXT_SECRET: &str = "secret.next";
/// In a machine's directory: it had something shown that was taken away since.
const TAKEN: &str = "taken";
/// How long a connection is left alone after it was used before its machine is kept: what still arrives on it while the kernel
/// writes has been seen to make a state that no guest answers in.
const QUIET: Duration = Duration::from_millis(50);
/// How long a guest that runs takes to answer at most, on a busy host.
const ANSWERS: Duration = Duration::from_secs(5);

/// See the crate's docs. Dropping it leaves its machines alive.
#[derive(Clone, Debug)]
pub struct GvisorEngine {
    host: Host,
    release: Release,
    data_dir: PathBuf,
    proofs: Arc<Proofs>,
    endings: Arc<Endings>,
}

impl GvisorEngine {
    /// An engine over a launcher that was told of gVisor. Machines that an earlier process left half-way to a
    /// checkpoint go on; those that it had kept all of end, if they were to.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    pub async fn over(
        host: Host,
        release: Release,
        data_dir: PathBuf,
    ) -> Result<Self, EngineError> {
        let engine = Self {
            host,
            release,
            data_dir,
            proofs: Arc::default(),
            endings: Arc::default(),
        };
        if let Err(error) = gate::sweep(&engine.run()) {
            tracing::warn!(%error, "what an earlier process had begun to read may be left");
        }
        for machine in engine.list().await? {
            let source = engine.source(&machine.id);
            if source.is_left_kept() {
                engine.host.destroy(&machine.id).await?;
                continue;
            }
            engine.settle_secret(&machine.id).await;
            if source.is_left_paused() {
                tracing::info!(machine = %machine.id, "an unfinished checkpoint is given up");
                let answers =
                    tokio::time::timeout(ANSWERS, engine.client(&machine.id, SECRET)).await;
                let answers = matches!(answers, Ok(Ok(_)));
                blocking(move || source.recover(answers)).await?;
            }
        }
        Ok(engine)
    }

    fn source(&self, id: &str) -> Source {
        let directory = self.host.machine_dir(id);
        Source {
            control: directory.join(STATE).join(format!("runsc-{NAME}.sock")),
            in_order: self.release.writes_in_order(),
            directory,
        }
    }

    /// Opens a stream to the guest that listens in the machine's network. `secret` is the file with what it begins with.
    async fn open(&self, id: &str, secret: &str) -> Result<BoxedIo, EngineError> {
        let gone = || EngineError::NotFound(id.to_owned());
        if !is_id(id) || self.endings.has(id) {
            return Err(gone());
        }
        let secret = std::fs::read(self.host.machine_dir(id).join(secret)).map_err(|_| gone())?;
        let mut stream = self.host.connect(id, PORT).await?.ok_or_else(gone)?;
        stream
            .write_all(&secret)
            .await
            .map_err(|error| unavailable("reach the guest", error))?;
        Ok(stream)
    }

    async fn client(&self, id: &str, secret: &str) -> Result<GuestClient, EngineError> {
        let stream = self.open(id, secret).await?;
        GuestClient::connect(stream)
            .await
            .map_err(|error| unavailable("shake hands with the guest", error))
    }

    async fn is_alive(&self, id: &str) -> Result<bool, EngineError> {
        let live = self.list().await?;
        Ok(live.iter().any(|machine| machine.id == id))
    }

    /// Asks the guest for something, with an end to the waiting.
    async fn ask<F>(
        &self,
        id: &str,
        step: &str,
        work: impl FnOnce(GuestClient) -> F,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), GuestError>>,
    {
        self.ask_by(id, SECRET, step, work).await
    }

    async fn ask_by<F>(
        &self,
        id: &str,
        secret: &str,
        step: &str,
        work: impl FnOnce(GuestClient) -> F,
    ) -> Result<(), EngineError>
    where
        F: Future<Output = Result<(), GuestError>>,
    {
        let failed = |reason: String| EngineError::Step {
            step: step.to_owned(),
            reason,
        };
        let asked = async {
            let client = loop {
                match self.client(id, secret).await {
                    // One that has just gone on takes a moment until its network does.
                    Err(EngineError::NotFound(_) | EngineError::Unavailable(_))
                        if self.is_alive(id).await? =>
                    {
                        tokio::time::sleep(AGAIN).await;
                    }
                    client => break client?,
                }
            };
            work(client).await.map_err(|error| match error.kind() {
                Some(ErrorKind::Invalid) => EngineError::InvalidSpec(error.to_string()),
                _ => failed(error.to_string()),
            })
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(done) => done,
            Err(_) => Err(failed("the guest does not answer".into())),
        }
    }

    /// What must be the same to read a checkpoint.
    fn format(&self, pack: &str) -> String {
        format!("2 runsc {} guest {pack}", self.release.version)
    }

    /// Refuses what cannot be read here. Answers with its record and the guest in it.
    fn readable(&self, from: &Path) -> Result<(Checkpoint, Pack), EngineError> {
        let damaged = EngineError::Checkpoint;
        let Some(made) = Checkpoint::read(from) else {
            return Err(damaged("its record is not there, or is no record".into()));
        };
        if made.engine != self.name() {
            return Err(damaged(format!("the {} engine wrote it", made.engine)));
        }
        let pack = made.format.rsplit(' ').next().unwrap_or_default();
        if made.format != self.format(pack) {
            return Err(damaged(format!(
                "it was written as {:?}, and this host has runsc {}",
                made.format, self.release.version
            )));
        }
        let Some(guest) = find_pack(&self.data_dir, pack) else {
            return Err(damaged(format!(
                "the guest {pack} that runs in it is not here"
            )));
        };
        Ok((made, guest))
    }

    /// Has a kernel started that goes on from a checkpoint, and the checkpoint proven meanwhile, if there is anything to
    /// prove: see [`gate`].
    async fn build(
        &self,
        spec: &MachineSpec,
        from: &Path,
        made: Checkpoint,
        guest: Pack,
    ) -> Result<(), EngineError> {
        let Some(digest) = &made.digest else {
            let origin = Origin {
                directory: from.to_owned(),
                image: from.to_owned(),
                guest,
            };
            let created = self.host.create(Kind::Gvisor, spec, Some(origin)).await;
            return created.map_err(|error| lacks(error, spec));
        };
        let failed = |error: io::Error| EngineError::Step {
            step: "have the checkpoint read".into(),
            reason: error.to_string(),
        };
        let gate = match Gate::new(&self.run(), &spec.id, from) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(EngineError::Exists(spec.id.clone()));
            }
            gate => gate.map_err(failed)?,
        };
        let origin = Origin {
            directory: from.to_owned(),
            image: gate.directory().to_owned(),
            guest,
        };
        // Held until the machine is made.
        let proof = self.proofs.of(from, digest);
        let (tell, told) = std::sync::mpsc::channel();
        let proving = async {
            // Dropped with this: without a word the kernel gets no memory.
            let tell = tell;
            let directory = from.to_owned();
            let proven = proof
                .get_or_try_init(|| async { blocking(move || made.prove(&directory)).await? })
                .await;
            proven.inspect(|_| _ = tell.send(()))
        };
        // A thread of its own: many that wait for their proofs would take all those that proofs are made by.
        let (feeder, fed) = tokio::sync::oneshot::channel();
        let (pipe, kept) = (gate.pipe(), from.to_owned());
        std::thread::Builder::new()
            .name("restore".into())
            .spawn(move || feeder.send(gate::feed(&pipe, &kept, told)))
            .map_err(failed)?;
        let creating = self.host.create(Kind::Gvisor, spec, Some(origin));
        let (proven, created) = tokio::join!(proving, creating);
        drop(gate);
        if let Ok(Err(error)) = fed.await {
            tracing::debug!(machine = spec.id, %error, "nobody read a checkpoint's table to its end");
        }
        proven?;
        created.map_err(|error| lacks(error, spec))
    }

    fn run(&self) -> PathBuf {
        self.data_dir.join("run")
    }

    /// Tells a machine that goes on from a checkpoint which one it is, shows it what it did not have, and gives it a secret
    /// of its own. Until all of that is done nobody else can speak to it.
    async fn introduce(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        let failed = |reason: String| EngineError::Step {
            step: "tell the guest which machine it is".into(),
            reason,
        };
        let mut secret = [0; SECRET_BYTES];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut source| io::Read::read_exact(&mut source, &mut secret))
            .map_err(|error| failed(error.to_string()))?;
        let setup = Setup {
            secret,
            hostname: spec.hostname.clone(),
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            files: self.host.files(&spec.hostname),
            memory_bytes: spec.memory_bytes,
            pids_max: spec.pids_max,
            shown: Vec::new(),
        };
        // On disk before it is in force: whoever starts next tries both.
        let directory = self.host.machine_dir(&spec.id);
        let (place, passing) = (directory.join(SECRET), directory.join(NEXT_SECRET));
        let first = match directory.join(KEPT_SECRET).exists() {
            true => KEPT_SECRET,
            // A launcher that is older than this program.
            false => SECRET,
        };
        let written = {
            let passing = passing.clone();
            move || {
                use std::os::unix::fs::OpenOptionsExt;
                let mut file = std::fs::OpenOptions::new()
                    .create(true)
                    .truncate(true)
                    .write(true)
                    .mode(0o600)
                    .open(passing)?;
                io::Write::write_all(&mut file, &secret)
            }
        };
        blocking(written)
            .await?
            .map_err(|error| failed(error.to_string()))?;
        let shown: Vec<Show> = spec.binds.iter().map(show).collect();
        self.ask_by(
            &spec.id,
            first,
            "tell the guest which machine it is",
            |guest| async move {
                for what in &shown {
                    guest.show(what).await?;
                }
                guest.resumed(&setup).await
            },
        )
        .await?;
        std::fs::rename(passing, place).map_err(|error| failed(error.to_string()))?;
        let _ = std::fs::remove_file(directory.join(KEPT_SECRET));
        Ok(())
    }

    /// Whether something is shown in a machine, or was.
    async fn shows(&self, id: &str) -> Result<bool, EngineError> {
        Ok(self.host.machine_dir(id).join(TAKEN).exists() || !self.attached(id).await?.is_empty())
    }

    /// Refuses to keep a machine that could not be built again because of what is open in its binds. Answers with the
    /// connection over which that was asked.
    async fn check_open(&self, id: &str) -> Result<GuestClient, EngineError> {
        let asked = async {
            let guest = self.client(id, SECRET).await?;
            let answer = guest.check_open().await;
            Ok::<_, EngineError>((guest, answer))
        };
        let answer = tokio::time::timeout(PATIENCE, asked).await;
        let (guest, answer) =
            answer.map_err(|_| unavailable("look at what is open", "no answer"))??;
        match answer {
            Err(error) if error.kind() == Some(ErrorKind::Exists) => {
                Err(EngineError::Busy(error.to_string()))
            }
            // A guest that is older than this program does not look.
            Ok(()) | Err(GuestError::Refused(_)) => {
                tokio::time::sleep(QUIET).await;
                Ok(guest)
            }
            Err(error) => Err(unavailable("look at what is open", error)),
        }
    }

    /// Finds out which secret is in force in a machine whose guest was being told a new one when the last process here
    /// died. One that was not told it does not answer.
    async fn settle_secret(&self, id: &str) {
        let directory = self.host.machine_dir(id);
        let (place, passing) = (directory.join(SECRET), directory.join(NEXT_SECRET));
        if !passing.exists() {
            return;
        }
        let answers = tokio::time::timeout(ANSWERS, self.client(id, SECRET)).await;
        let done = match answers {
            Ok(Ok(_)) => std::fs::remove_file(passing),
            _ => std::fs::rename(passing, place),
        };
        if let Err(error) = done {
            tracing::warn!(machine = id, error = %error, "a machine's secret is not settled");
        }
    }
}

/// Why a kernel did not go on from a checkpoint, if that is because of what a bind shows now: it opens everything again that
/// its processes had open.
fn lacks(error: EngineError, spec: &MachineSpec) -> EngineError {
    const FAULTS: [&str; 4] = [
        "no such file or directory",
        "not a directory",
        "read-only file system",
        "stale file handle",
    ];
    match error {
        EngineError::Step { reason, .. }
            if !spec.binds.is_empty() && FAULTS.iter().any(|fault| reason.ends_with(fault)) =>
        {
            let fault = reason.rsplit(": ").next().unwrap_or_default();
            EngineError::Lacks(format!(
                "what its processes had open in a volume cannot be opened again ({fault})"
            ))
        }
        other => other,
    }
}

/// What a guest is told of a bind.
fn show(bind: &Bind) -> Show {
    Show {
        name: shown_name(&bind.target),
        target: bind.target.display().to_string(),
    }
}

fn unavailable(step: &str, error: impl std::fmt::Display) -> EngineError {
    EngineError::Unavailable(format!("{step}: {error}"))
}

/// Does what blocks beside everything else.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| unavailable("a thread ended", error))
}

#[async_trait]
impl Engine for GvisorEngine {
    fn name(&self) -> &'static str {
        Kind::Gvisor.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolated: true,
            pause: false,
            hibernate: true,
            fork: true,
            disk_limits: self.host.has_disk_limits(),
            images: true,
        }
    }

    async fn health(&self) -> Result<(), EngineError> {
        self.host.health().await
    }

    async fn create(&self, spec: &MachineSpec) -> Result<(), EngineError> {
        self.endings.done(&spec.id, PATIENCE).await?;
        self.host.create(Kind::Gvisor, spec, None).await
    }

    async fn destroy(&self, id: &str) -> Result<(), EngineError> {
        self.endings.done(id, PATIENCE).await?;
        self.host.destroy(id).await
    }

    async fn keep(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        // Its kernel holds back what was written; whatever is not with the host yet would be lost.
        let written = self.ask(id, "write everything out", |guest| async move {
            guest.sync().await
        });
        if let Err(error) = written.await {
            self.host.destroy(id).await?;
            return Err(error);
        }
        self.host.keep(id, target).await
    }

    async fn checkpoint(
        &self,
        id: &str,
        target: &Path,
        purpose: Purpose,
    ) -> Result<Checkpoint, EngineError> {
        if !is_id(id) || self.endings.has(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        let (source, target) = (self.source(id), target.to_owned());
        let pack = std::fs::read_to_string(source.directory.join(GUEST))
            .map_err(|_| EngineError::NotFound(id.to_owned()))?;
        let format = self.format(&pack);
        let guest = match self.shows(id).await? {
            true => Some(self.check_open(id).await?),
            false => None,
        };
        let made = blocking(move || source.write(&target, &format, purpose)).await?;
        // Not before: a connection that comes to its end while the kernel writes is what a rehearsal is there to prevent.
        drop(guest);
        let made = made?;
        if purpose == Purpose::Hibernate {
            self.endings.begin(self.host.clone(), id);
        }
        Ok(made)
    }

    async fn restore(&self, spec: &MachineSpec, from: &Path) -> Result<(), EngineError> {
        spec.validate()?;
        let (made, guest) = self.readable(from)?;
        self.endings.done(&spec.id, PATIENCE).await?;
        self.build(spec, from, made, guest).await?;
        let introduced = self.introduce(spec).await;
        if introduced.is_err() {
            self.host.destroy(&spec.id).await?;
        }
        introduced.map_err(|error| match error {
            // It did not get far enough for anybody to have done that to it.
            EngineError::NotFound(_) => {
                unavailable("make a machine of a checkpoint", "it ended at once")
            }
            other => other,
        })
    }

    async fn list(&self) -> Result<Vec<LiveMachine>, EngineError> {
        // Looked at before as well: one that comes to its end meanwhile may still be in the list.
        let ending = self.endings.ids();
        let mut live = self.host.list(Kind::Gvisor).await?;
        live.retain(|machine| !ending.contains(&machine.id) && !self.endings.has(&machine.id));
        Ok(live)
    }

    async fn dial(&self, id: &str) -> Result<BoxedIo, EngineError> {
        self.open(id, SECRET).await
    }

    async fn connect(&self, id: &str, port: u16) -> Result<Option<BoxedIo>, EngineError> {
        if self.endings.has(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        self.host.connect(id, port).await
    }

    async fn attach(&self, id: &str, bind: &Bind) -> Result<(), EngineError> {
        bind.validate()?;
        let known = self.attached(id).await?.contains(bind);
        self.host.attach(id, bind).await?;
        let what = show(bind);
        let shown = self
            .ask(id, "show a directory in the machine", |guest| async move {
                guest.show(&what).await
            })
            .await;
        if shown.is_err() && !known {
            self.detach(id, &bind.target).await?;
        }
        shown
    }

    async fn detach(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        let attached = self.attached(id).await?;
        let Some(bind) = attached.iter().find(|bind| bind.target == target) else {
            return Ok(());
        };
        std::fs::write(self.host.machine_dir(id).join(TAKEN), "").map_err(|error| {
            EngineError::Step {
                step: "note that a directory was taken away".into(),
                reason: error.to_string(),
            }
        })?;
        // First inside: what is left of a mount there would be a directory that is empty.
        let what = show(bind);
        self.ask(
            id,
            "take a directory of the machine's away",
            |guest| async move { guest.hide(&what).await },
        )
        .await?;
        self.host.detach(id, target).await
    }

    async fn attached(&self, id: &str) -> Result<Vec<Bind>, EngineError> {
        self.host.attached(id).await
    }

    async fn usage(&self, id: &str) -> Result<Usage, EngineError> {
        self.host.usage(id, KERNEL_MEMORY).await
    }

    async fn set_share(&self, id: &str, share: u32) -> Result<(), EngineError> {
        self.host.set_share(id, share).await
    }

    async fn set_egress(&self, id: &str, rules: &Rules) -> Result<(), EngineError> {
        self.host.set_egress(id, rules).await
    }

    fn denials(&self) -> broadcast::Receiver<Denial> {
        self.host.denials(Kind::Gvisor)
    }

    fn exits(&self) -> broadcast::Receiver<MachineExit> {
        self.host.exits(Kind::Gvisor)
    }
}

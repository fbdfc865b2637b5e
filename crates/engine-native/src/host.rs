//! The engines' side: asking the launcher, measuring machines, removing what they leave on disk.
//!
//! One launcher makes the machines of a data directory, whatever they are made of: they share one subnet, packet filter
//! and resolver. The engines over it are views of its machines by [`Kind`].

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use nullspace_engine::{
    Bind, BoxedIo, Denial, EngineError, ExitReason, LiveMachine, MachineExit, MachineSpec, Usage,
    egress::Rules,
};
use nullspace_sys::stream::LocalStream;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpSocket,
    sync::{broadcast, mpsc, oneshot},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    disk::Disks,
    freezer, launcher, layer, share,
    tied::Tied,
    usage,
    wire::{
        self, Answer, Counter, GvisorConfig, Kind, LauncherConfig, Message, Meters, Origin,
        Refusal, Request, RequestBody,
    },
};

/// How often a launcher that goes away while it is spoken to for the first time is replaced.
const ATTEMPTS: usize = 3;

/// How long a launcher may take to answer the first question. Nothing else ends the wait for one that never does.
const GREETING: Duration = Duration::from_secs(10);

/// How long a machine may take to take a connection: it is on the same host.
const CONNECT: Duration = Duration::from_secs(3);

/// How long the files of an ended machine are left alone: whoever ended it is being answered at that moment, and
/// removing files keeps the disk busy.
const AFTERWARDS: Duration = Duration::from_millis(20);

/// How the launcher is found or started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where machines, layers and sockets live.
    pub data_dir: PathBuf,
    /// The program and first arguments that run [`crate::launcher_main`]; one more argument follows, which tells
    /// it from other launchers in lists of processes.
    pub launcher: Vec<String>,
    /// The program and first arguments of the DNS resolver; the address follows. Empty for none.
    pub resolver: Vec<String>,
    /// The host's bundle of certificate authorities to place in machines.
    pub ca_bundle: Option<PathBuf>,
    /// Machines prepared ahead of any request. Each costs about half a megabyte.
    pub spare: usize,
    /// How gVisor's machines are made; `None` for none.
    pub gvisor: Option<GvisorConfig>,
}

/// This host's launcher, as the engines over it see it. Dropping it leaves its machines alive.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    link: Mutex<Option<Link>>,
    /// One connection attempt at a time.
    connecting: tokio::sync::Mutex<()>,
    tags: AtomicU64,
    native: News,
    gvisor: News,
    trash: mpsc::UnboundedSender<PathBuf>,
    /// Where the kernel counts what machines use, as far as that was asked.
    meters: Mutex<HashMap<String, Arc<Meters>>>,
    disks: Disks,
    /// Whether the launcher holds machines to what they may write.
    disk_limits: AtomicBool,
}

/// What machines of one kind have to tell.
#[derive(Debug)]
struct News {
    exits: broadcast::Sender<MachineExit>,
    denials: broadcast::Sender<Denial>,
}

impl Default for News {
    fn default() -> Self {
        Self {
            exits: broadcast::Sender::new(4096),
            denials: broadcast::Sender::new(4096),
        }
    }
}

/// A standing connection to the launcher.
#[derive(Clone, Debug)]
struct Link {
    requests: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Waiting,
    /// The machines that end with this launcher.
    machines: Machines,
    /// Where machines are on the network, as far as that was asked.
    addresses: Arc<Mutex<HashMap<String, Option<Ipv4Addr>>>>,
}

/// The machines of a launcher, by id.
type Machines = Arc<Mutex<HashMap<String, Live>>>;

/// A machine that is alive, as far as is known.
#[derive(Debug)]
struct Live {
    kind: Kind,
    /// Ends connections when this is dropped.
    gone: DropGuard,
}

impl Live {
    fn new(kind: Kind) -> Self {
        let gone = CancellationToken::new().drop_guard();
        Self { kind, gone }
    }
}

type Reply = Result<Answer, Refusal>;
/// Who waits for an answer, by tag. `None` once the connection broke: nobody may wait any more.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(step: &str, error: impl std::fmt::Display) -> EngineError {
    EngineError::Unavailable(format!("{step}: {error}"))
}

impl Host {
    /// Finds the launcher of the data directory, or starts one, and removes what machines that are gone
    /// left on disk.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] with what the host lacks.
    pub async fn start(config: Config) -> Result<Self, EngineError> {
        let (trash, bin) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("machine-trash".into())
            .spawn(move || empty_bin(bin))
            .map_err(|e| unavailable("start a thread", e))?;
        let shared = Shared {
            config,
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            tags: AtomicU64::new(1),
            native: News::default(),
            gvisor: News::default(),
            trash,
            meters: Mutex::default(),
            disks: Disks::start().map_err(|e| unavailable("start a thread", e))?,
            disk_limits: AtomicBool::new(false),
        };
        let host = Self {
            shared: Arc::new(shared),
        };
        host.link().await?;
        host.sweep().await?;
        Ok(host)
    }

    /// The directory of a machine.
    #[must_use]
    pub fn machine_dir(&self, id: &str) -> PathBuf {
        self.shared.config.data_dir.join("machines").join(id)
    }

    /// Whether machines are held to what they may write.
    #[must_use]
    pub fn has_disk_limits(&self) -> bool {
        self.shared.disk_limits.load(Ordering::Relaxed)
    }

    /// Throws away the directories of machines that are not alive.
    async fn sweep(&self) -> Result<(), EngineError> {
        // Looked for before the launcher is asked who lives: it may be about to make what a server that was killed asked it for.
        let machines = self.shared.config.data_dir.join("machines");
        let there = std::fs::read_dir(machines).into_iter().flatten().flatten();
        let there: Vec<_> = there.collect();
        let live: HashSet<String> = self
            .machines()
            .await?
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        for entry in there {
            if !live.contains(entry.file_name().to_string_lossy().as_ref()) {
                let _ = self.shared.trash.send(entry.path());
            }
        }
        Ok(())
    }

    /// Where a machine is on the network, asked once.
    async fn address(&self, id: &str) -> Result<Option<Ipv4Addr>, EngineError> {
        let link = self.link().await?;
        if let Some(known) = lock(&link.addresses).get(id) {
            return Ok(*known);
        }
        let asked = RequestBody::Address { id: id.to_owned() };
        match self.ask_over(&link, asked).await? {
            Answer::Address { address } => {
                // One that ended meanwhile is not remembered: nobody would forget it again.
                if lock(&link.machines).contains_key(id) {
                    lock(&link.addresses).insert(id.to_owned(), address);
                }
                Ok(address)
            }
            other => Err(EngineError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
        }
    }

    /// Where the kernel counts what a machine uses, asked once.
    async fn meters(&self, id: &str) -> Result<Arc<Meters>, EngineError> {
        if let Some(known) = lock(&self.shared.meters).get(id) {
            return Ok(known.clone());
        }
        let link = self.link().await?;
        let asked = RequestBody::Meters { id: id.to_owned() };
        match self.ask_over(&link, asked).await? {
            Answer::Meters { meters } => {
                let meters = Arc::new(meters.ok_or_else(|| EngineError::NotFound(id.to_owned()))?);
                // One that ended meanwhile is not remembered: nobody would forget it again.
                if lock(&link.machines).contains_key(id) {
                    lock(&self.shared.meters).insert(id.to_owned(), meters.clone());
                }
                Ok(meters)
            }
            other => Err(EngineError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
        }
    }

    /// Ends a machine; its files stay.
    async fn end(&self, id: &str, keep: bool) -> Result<(), EngineError> {
        let link = self.link().await?;
        let id_too = id.to_owned();
        self.ask_over(&link, RequestBody::Destroy { id: id_too, keep })
            .await?;
        lock(&link.machines).remove(id);
        lock(&link.addresses).remove(id);
        self.shared.forget(id);
        Ok(())
    }

    async fn ask(&self, body: RequestBody) -> Result<Answer, EngineError> {
        let link = self.link().await?;
        self.ask_over(&link, body).await
    }

    async fn ask_over(&self, link: &Link, body: RequestBody) -> Result<Answer, EngineError> {
        let tag = self.shared.tags.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        if let Some(waiting) = lock(&link.waiting).as_mut() {
            waiting.insert(tag, sender);
        }
        // When this fails the connection broke, and whoever waits is told below.
        let _ = link.requests.send(wire::encode(&Request { tag, body }));
        let gone = |_| EngineError::Unavailable("the launcher went away".into());
        receiver.await.map_err(gone)?.map_err(Into::into)
    }

    /// The standing connection, made anew when it broke: to another launcher if the old one is gone.
    async fn link(&self) -> Result<Link, EngineError> {
        let standing = |shared: &Shared| {
            lock(&shared.link)
                .as_ref()
                .filter(|link| lock(&link.waiting).is_some())
                .cloned()
        };
        if let Some(link) = standing(&self.shared) {
            return Ok(link);
        }
        let _one = self.shared.connecting.lock().await;
        if let Some(link) = standing(&self.shared) {
            return Ok(link);
        }
        // A launcher that has nothing to do may end at the moment it is connected to.
        let mut last = EngineError::Unavailable("the launcher does not answer".into());
        for _ in 0..ATTEMPTS {
            let link = self.open_link().await?;
            let greeting = self.ask_over(&link, RequestBody::Hello);
            let greeted = tokio::time::timeout(GREETING, greeting).await;
            match greeted.unwrap_or_else(|error| Err(unavailable("greet the launcher", error))) {
                Ok(Answer::Hello {
                    version,
                    disk_limits,
                    ..
                }) if version == wire::VERSION => {
                    self.shared
                        .disk_limits
                        .store(disk_limits, Ordering::Relaxed);
                }
                Ok(Answer::Hello { version, .. }) => {
                    return Err(EngineError::Unavailable(format!(
                        "the running launcher speaks version {version}, this program {}; end its machines first",
                        wire::VERSION
                    )));
                }
                Ok(_) => continue,
                Err(error) => {
                    last = error;
                    continue;
                }
            }
            match self.ask_over(&link, RequestBody::List).await {
                Ok(Answer::List { machines }) => {
                    let live = machines.into_iter().map(|(id, kind)| (id, Live::new(kind)));
                    lock(&link.machines).extend(live);
                    *lock(&self.shared.link) = Some(link.clone());
                    return Ok(link);
                }
                Ok(_) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn open_link(&self) -> Result<Link, EngineError> {
        let (reader, writer) = tokio::io::split(self.find_or_start().await?);
        let (requests, queue) = mpsc::unbounded_channel();
        let link = Link {
            requests,
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
            machines: Arc::default(),
            addresses: Arc::default(),
        };
        tokio::spawn(write_requests(writer, queue));
        tokio::spawn(read_messages(
            reader,
            link.waiting.clone(),
            link.machines.clone(),
            link.addresses.clone(),
            Arc::downgrade(&self.shared),
        ));
        Ok(link)
    }

    async fn find_or_start(&self) -> Result<LocalStream, EngineError> {
        let run = self.shared.config.data_dir.join("run");
        let socket = run.join("launcher.sock");
        if let Ok(stream) = LocalStream::connect(&socket) {
            return Ok(stream);
        }
        std::fs::create_dir_all(&run).map_err(|e| unavailable("make the run directory", e))?;
        std::fs::create_dir_all(self.shared.config.data_dir.join("layers"))
            .map_err(|e| unavailable("make the layers directory", e))?;
        let mut child = self
            .spawn_launcher(&run)
            .map_err(|e| unavailable("start the launcher", e))?;
        // It listens once it has prepared the host: some tens of milliseconds.
        for _ in 0..3000 {
            if let Ok(stream) = LocalStream::connect(&socket) {
                // Its end is noticed on the socket; this only takes the zombie away.
                std::thread::spawn(move || child.wait());
                return Ok(stream);
            }
            if let Ok(Some(status)) = child.try_wait() {
                let reason = std::fs::read_to_string(run.join("launcher.error"))
                    .unwrap_or_else(|_| format!("it ended with {status}"));
                return Err(unavailable("the launcher cannot work here", reason));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _ = child.kill();
        Err(EngineError::Unavailable(
            "the launcher did not get ready in 30 s".into(),
        ))
    }

    fn spawn_launcher(&self, run: &Path) -> io::Result<std::process::Child> {
        let config = &self.shared.config;
        let launcher = LauncherConfig {
            data_dir: std::fs::canonicalize(&config.data_dir)?,
            instance: instance(&std::fs::canonicalize(&config.data_dir)?),
            ca_bundle: config.ca_bundle.clone(),
            resolver: config.resolver.clone(),
            spare: config.spare,
            gvisor: config.gvisor.clone(),
        };
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(run.join("launcher.log"))?;
        let mut child = Command::new(&config.launcher[0])
            .args(&config.launcher[1..])
            .arg(&launcher.instance)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C at the server's terminal is not for it.
            .process_group(0)
            .spawn()?;
        // Fits the pipe. One that ends at once leaves the reason elsewhere.
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(&serde_json::to_vec(&launcher)?);
        }
        Ok(child)
    }
}

/// Ends every machine of a data directory and its launcher, if there is one, waits for it, and removes what
/// a launcher that was killed left on the host.
///
/// # Errors
/// When the launcher is there and does not answer, or what is left cannot be removed.
pub fn shutdown(data_dir: &Path) -> io::Result<()> {
    use std::io::Read;
    if let Ok(mut stream) =
        std::os::unix::net::UnixStream::connect(data_dir.join("run/launcher.sock"))
    {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        // A launcher that ends at this moment answers nothing; what it leaves is removed below.
        let asked = stream.write_all(&wire::encode(&Request {
            tag: 1,
            body: RequestBody::Shutdown,
        }));
        if asked.is_ok() {
            // Its answer, or news of machines that end first, and then the end of the stream.
            match stream.read_to_end(&mut Vec::new()) {
                Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
                _ => {}
            }
        }
    }
    if !data_dir.join("run/launcher.lock").exists() {
        return Ok(());
    }
    let data_dir = std::fs::canonicalize(data_dir)?;
    launcher::clear(&data_dir, &instance(&data_dir))
}

/// Six hex digits that tell this data directory from others on the host.
fn instance(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    hex::encode(&digest[..3])
}

/// Whether this can be a machine's id, and so a name in `machines/`.
#[must_use]
pub fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

async fn write_requests(
    mut writer: WriteHalf<LocalStream>,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    while let Some(bytes) = queue.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The launcher closes its side then, and the reader ends.
    let _ = writer.shutdown().await;
}

async fn read_messages(
    mut reader: ReadHalf<LocalStream>,
    waiting: Waiting,
    machines: Machines,
    addresses: Arc<Mutex<HashMap<String, Option<Ipv4Addr>>>>,
    shared: std::sync::Weak<Shared>,
) {
    let mut buffer = Vec::new();
    loop {
        match reader.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => break,
        }
        while let Ok(Some(message)) = wire::decode(&mut buffer) {
            match message {
                Message::Answer { tag, result } => {
                    let waiter = lock(&waiting).as_mut().and_then(|w| w.remove(&tag));
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(result);
                    }
                }
                Message::Ended { id, reason } => {
                    let kind = lock(&machines).remove(&id).map(|live| live.kind);
                    lock(&addresses).remove(&id);
                    if let (Some(shared), Some(kind)) = (shared.upgrade(), kind) {
                        shared.ended(id, kind, reason);
                    }
                }
                Message::Denied { denials } => {
                    if let Some(shared) = shared.upgrade() {
                        for denial in denials {
                            if let Some(live) = lock(&machines).get(&denial.id) {
                                let _ = shared.news(live.kind).denials.send(denial);
                            }
                        }
                    }
                }
            }
        }
    }
    // The launcher died and took its machines with it. Whoever waits hears it by the dropped channel; the
    // next request starts another launcher.
    *lock(&waiting) = None;
    let lost = std::mem::take(&mut *lock(&machines));
    if let Some(shared) = shared.upgrade() {
        tracing::warn!(machines = lost.len(), "launcher connection lost");
        for (id, live) in lost {
            shared.ended(id, live.kind, ExitReason::EngineLost);
        }
    }
}

impl Shared {
    /// Nothing of the machine is measured any more.
    fn forget(&self, id: &str) {
        lock(&self.meters).remove(id);
        self.disks.forget(id);
    }

    /// Throws away what is left of a machine that has ended. Its name is free at once: it may come back from a
    /// checkpoint while its old files are still being removed.
    fn discard(&self, id: &str) {
        let directory = self.config.data_dir.join("machines").join(id);
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        // No id has a dot. Whoever starts next throws away what is left.
        let passing = directory.with_extension(since.as_nanos().to_string());
        match std::fs::rename(&directory, &passing) {
            Ok(()) => drop(self.trash.send(passing)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => drop(self.trash.send(directory)),
        }
    }

    fn news(&self, kind: Kind) -> &News {
        match kind {
            Kind::Native => &self.native,
            Kind::Gvisor => &self.gvisor,
        }
    }

    fn ended(&self, id: String, kind: Kind, reason: ExitReason) {
        self.forget(&id);
        self.discard(&id);
        let _ = self.news(kind).exits.send(MachineExit { id, reason });
    }
}

/// Removes what machines left, one at a time: it is nobody's hurry.
fn empty_bin(mut bin: mpsc::UnboundedReceiver<PathBuf>) {
    // Of this thread alone, as the kernel counts.
    let _ = rustix::process::setpriority_process(None, 10);
    while let Some(first) = bin.blocking_recv() {
        std::thread::sleep(AFTERWARDS);
        let mut next = Some(first);
        while let Some(path) = next {
            if let Err(error) = std::fs::remove_dir_all(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), error = %error, "machine files not removed");
            }
            next = bin.try_recv().ok();
        }
    }
}

fn frozen(id: &str, result: io::Result<()>) -> Result<(), EngineError> {
    result.map_err(|error| match error.kind() {
        // Its group is gone, and so is it.
        io::ErrorKind::NotFound => EngineError::NotFound(id.to_owned()),
        _ => EngineError::Step {
            step: "stop or start a machine's processes".into(),
            reason: error.to_string(),
        },
    })
}

impl Host {
    /// Whether a machine could be made now.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`] with what is in the way.
    pub async fn health(&self) -> Result<(), EngineError> {
        self.link().await.map(drop)
    }

    /// Builds a machine, of a checkpoint if one is given.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::create`].
    pub async fn create(
        &self,
        kind: Kind,
        spec: &MachineSpec,
        from: Option<Origin>,
    ) -> Result<(), EngineError> {
        spec.validate()?;
        let link = self.link().await?;
        // Before it is asked for: its end must be told even if it comes at once.
        let known = lock(&link.machines).contains_key(&spec.id);
        if !known {
            lock(&link.machines).insert(spec.id.clone(), Live::new(kind));
        }
        let asked = RequestBody::Create {
            kind,
            spec: Box::new(spec.clone()),
            from,
        };
        let made = self.ask_over(&link, asked).await;
        match &made {
            Err(EngineError::Exists(_)) | Ok(_) => {}
            Err(_) if known => {}
            Err(_) => {
                lock(&link.machines).remove(&spec.id);
                self.shared.discard(&spec.id);
            }
        }
        made.map(drop)
    }

    /// Ends a machine and throws away what it leaves on disk. Unknown ids are fine.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    pub async fn destroy(&self, id: &str) -> Result<(), EngineError> {
        if !is_id(id) {
            return Ok(());
        }
        self.end(id, false).await?;
        self.shared.discard(id);
        Ok(())
    }

    /// Files of a machine that say its name and who answers its questions for others, as they are on this host now.
    #[must_use]
    pub fn files(&self, hostname: &str) -> BTreeMap<String, String> {
        let gateway = std::fs::read_to_string(self.shared.config.data_dir.join("run/gateway"));
        let names = gateway.ok().and_then(|text| text.trim().parse().ok());
        launcher::files(hostname, names)
    }

    /// Ends a machine and makes its writable layer one for others.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::keep`].
    pub async fn keep(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        self.end(id, true).await?;
        let (directory, target) = (self.machine_dir(id), target.to_owned());
        let kept = tokio::task::spawn_blocking(move || layer::keep(&directory, &target)).await;
        self.shared.discard(id);
        let fail = |reason: String| EngineError::Step {
            step: "keep the writable layer".into(),
            reason,
        };
        match kept {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(fail(error.to_string())),
            Err(error) => Err(fail(error.to_string())),
        }
    }

    /// The machines of one kind that are alive now.
    ///
    /// # Errors
    /// [`EngineError::Unavailable`].
    pub async fn list(&self, kind: Kind) -> Result<Vec<LiveMachine>, EngineError> {
        let machines = self.machines().await?.into_iter();
        Ok(machines
            .filter(|(_, its)| *its == kind)
            .map(|(id, its)| LiveMachine {
                id,
                engine: its.name().to_owned(),
            })
            .collect())
    }

    async fn machines(&self) -> Result<Vec<(String, Kind)>, EngineError> {
        match self.ask(RequestBody::List).await? {
            Answer::List { machines } => Ok(machines),
            other => Err(EngineError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
        }
    }

    /// Opens a connection to a port of a machine over its network.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::connect`].
    pub async fn connect(&self, id: &str, port: u16) -> Result<Option<BoxedIo>, EngineError> {
        let Some(address) = self.address(id).await? else {
            return Ok(None);
        };
        let machine = match lock(&self.link().await?.machines).get(id) {
            Some(live) => live.gone.token().clone(),
            None => return Ok(None),
        };
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            socket2::SockRef::from(&socket).set_mark(launcher::MARK)?;
            socket.connect((address, port).into()).await
        };
        match tokio::time::timeout(CONNECT, connect).await {
            Ok(Ok(stream)) => {
                // Requests are small, and whoever waits for them waits for each.
                let _ = stream.set_nodelay(true);
                Ok(Some(Box::new(Tied::new(stream, &machine))))
            }
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// What a machine uses. `overhead` bytes of memory are the engine's own: they are no part of the machine's limit.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::usage`].
    pub async fn usage(&self, id: &str, overhead: u64) -> Result<Usage, EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        let meters = self.meters(id).await?;
        let directory = self.machine_dir(id);
        let disk = self.shared.disks.measure(id, &directory);
        // The kernel adds up some of it when it is read.
        let at = directory.clone();
        let counted = tokio::task::spawn_blocking(move || {
            let counted = usage::read(&meters)?;
            let disk = rustix::fs::statvfs(&at)?;
            Ok::<_, io::Error>((counted, disk.f_bavail.saturating_mul(disk.f_frsize)))
        });
        let (disk, counted) = tokio::join!(disk, counted);
        // Nobody would forget one that ended meanwhile.
        if !lock(&self.link().await?.machines).contains_key(id) {
            self.shared.forget(id);
        }
        let failed = |error: io::Error| match error.kind() {
            // It ended under our hands.
            io::ErrorKind::NotFound => EngineError::NotFound(id.to_owned()),
            io::ErrorKind::Unsupported => EngineError::Unsupported {
                engine: "launcher",
                what: "measure machines on a host without the cpuacct controller",
            },
            _ => EngineError::Step {
                step: "measure a machine".into(),
                reason: error.to_string(),
            },
        };
        let counted = counted.map_err(|error| failed(io::Error::other(error)))?;
        let (counted, free) = counted.map_err(failed)?;
        Ok(Usage {
            at: counted.at,
            cpu_micros: counted.cpu_micros,
            // What the engine takes for itself is not told apart.
            memory_bytes: counted
                .memory_bytes
                .min(counted.memory_limit_bytes.saturating_sub(overhead)),
            memory_limit_bytes: counted.memory_limit_bytes.saturating_sub(overhead),
            disk_used_bytes: disk.used,
            disk_total_bytes: disk
                .used
                .saturating_add(disk.left.map_or(free, |left| left.min(free))),
            network_rx_bytes: counted.network_rx_bytes,
            network_tx_bytes: counted.network_tx_bytes,
        })
    }

    /// Replaces what a machine may reach.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::set_egress`].
    pub async fn set_egress(&self, id: &str, rules: &Rules) -> Result<(), EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        let link = self.link().await?;
        let asked = RequestBody::Egress {
            id: id.to_owned(),
            rules: Box::new(rules.clone()),
        };
        let done = self.ask_over(&link, asked).await;
        // It may be on the network now, or off it.
        lock(&link.addresses).remove(id);
        done.map(drop)
    }

    /// Says how much of busy processors a machine gets.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::set_share`].
    pub async fn set_share(&self, id: &str, share: u32) -> Result<(), EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        let meters = self.meters(id).await?;
        share::set(&meters.processors, share).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => EngineError::NotFound(id.to_owned()),
            _ => EngineError::Step {
                step: "share processors".into(),
                reason: error.to_string(),
            },
        })
    }

    /// The group that stops a machine's processes.
    async fn freezer(&self, id: &str) -> Result<Counter, EngineError> {
        if !is_id(id) {
            return Err(EngineError::NotFound(id.to_owned()));
        }
        let meters = self.meters(id).await?;
        if !lock(&self.link().await?.machines).contains_key(id) {
            self.shared.forget(id);
        }
        meters.freezer.clone().ok_or(EngineError::Unsupported {
            engine: "launcher",
            what: "pause machines on a host without the freezer controller",
        })
    }

    /// Stops a machine's processes where they stand.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::pause`].
    pub async fn pause(&self, id: &str) -> Result<(), EngineError> {
        let group = self.freezer(id).await?;
        frozen(id, freezer::freeze(&group).await)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::unpause`].
    pub async fn unpause(&self, id: &str) -> Result<(), EngineError> {
        let group = self.freezer(id).await?;
        frozen(id, freezer::write(&group, false))
    }

    /// Shows a directory of the host in a machine.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::attach`].
    pub async fn attach(&self, id: &str, bind: &Bind) -> Result<(), EngineError> {
        bind.validate()?;
        let (id, bind) = (id.to_owned(), Box::new(bind.clone()));
        self.ask(RequestBody::Attach { id, bind }).await.map(drop)
    }

    /// Takes it away.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::detach`].
    pub async fn detach(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        let (id, target) = (id.to_owned(), target.to_owned());
        self.ask(RequestBody::Detach { id, target }).await.map(drop)
    }

    /// What a machine is shown.
    ///
    /// # Errors
    /// Those of [`nullspace_engine::Engine::attached`].
    pub async fn attached(&self, id: &str) -> Result<Vec<Bind>, EngineError> {
        match self
            .ask(RequestBody::Attached { id: id.to_owned() })
            .await?
        {
            Answer::Attached { binds } => Ok(binds),
            other => Err(EngineError::Unavailable(format!(
                "unexpected answer {other:?}"
            ))),
        }
    }

    /// What machines of one kind were kept from.
    #[must_use]
    pub fn denials(&self, kind: Kind) -> broadcast::Receiver<Denial> {
        self.shared.news(kind).denials.subscribe()
    }

    /// Machines of one kind that ended by themselves.
    #[must_use]
    pub fn exits(&self, kind: Kind) -> broadcast::Receiver<MachineExit> {
        self.shared.news(kind).exits.subscribe()
    }
}

//! The launcher: the small privileged process that builds machines.
//!
//! One thread, one loop. It has no secrets beyond the environments that it hands on, reads no file of a
//! machine, and outlives `serve`: machines are its children and live as long as it does. It ends by itself
//! when it has neither a machine nor a caller.
//!
//! ```text
//!  serve ──Create──▶ waiting ──(a parked slot)──▶ Starting ──READY──▶ Live ──Destroy──▶ Ending ──▶ gone
//!                                                    │                  └──(process 1 ended)──▶ gone + news
//!                                                    └──(failed)──▶ gone + refusal
//! ```

mod binds;
mod cgroup;
mod egress;
mod filter;
mod inside;
mod keeper;
mod network;
pub(crate) mod pack;
mod resolver;
mod shared;
mod slot;
mod system_layer;
mod undertaker;
mod writable;

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use nullspace_engine::{
    Bind, Denial, DeniedTarget, ExitReason, MAX_BINDS, MachineSpec,
    egress::{
        Rules,
        control::{FromResolver, ToResolver},
    },
};
use nullspace_sys::{
    image::Passing,
    namespace::{self, Namespaces},
};
use rustix::event::epoll;

pub(crate) use self::binds::name as shown_name;
pub use self::keeper::{GUEST, KEPT_SECRET, LAYER, NAME, SECRET, STATE};
use self::{
    binds::Shown,
    cgroup::Cgroups,
    egress::Egress,
    inside::{Common, Order},
    keeper::Gvisor,
    network::Network,
    resolver::Resolver,
    slot::{Ahead, Materials, Ranges, Slot},
    undertaker::{Remains, Undertaker},
};
pub(crate) use self::{inside::RANGE, network::MARK, slot::KERNEL_MEMORY, system_layer::files};
use crate::wire::{
    self, Answer, Kind, LauncherConfig, Message, Origin, Refusal, Request, RequestBody,
};

/// How long the launcher stays when it has neither machine nor caller.
const LINGER: Duration = Duration::from_secs(2);
/// Slots that are prepared at the same time when callers wait for them. More than a host has processors,
/// because most of that time the kernel waits for itself.
const PREPARING_AT_ONCE: usize = 8;
/// How long nobody may have asked for anything before a spare slot is prepared: whoever got a machine is
/// about to use it, and may end it soon.
const QUIET: Duration = Duration::from_millis(10);
/// The same when none is left: long enough for a first command, so that the next machine need not wait.
const QUIET_WITHOUT: Duration = Duration::from_millis(3);
/// The same for one with a kernel of its own, which takes a processor for some tenths of a second: long enough for a first command in
/// a machine of that kind, which would share the processors with it.
const QUIET_WITH_KERNEL: Duration = Duration::from_millis(80);
/// How long tidying waits for a quiet moment.
const TIDY: Duration = Duration::from_secs(1);
/// How long a child may take to get ready before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same for one that starts a kernel, or copies a writable layer first.
const PATIENCE_WITH_KERNEL: Duration = Duration::from_secs(240);
/// Where directories of machines are prepared, in the data directory.
const SPARE: &str = "spare";
/// How long a launcher that ends may take until the next one has its place.
const HANDOVER: Duration = Duration::from_secs(10);
/// Freed memory that a guest keeps while files go through it, in bytes: a few of its largest buffers.
const KEEP_FREED: u32 = 4 << 20;

/// Runs the launcher with the JSON configuration that its engine writes to its standard input, until it is of no
/// use any more. Not on the command line: machines are copies of this process and can read that.
///
/// # Errors
/// When another launcher has the data directory, or the host lacks something that machines need; the
/// reason is also left in `run/launcher.error` for the engine.
pub fn main() -> io::Result<()> {
    let config: LauncherConfig = serde_json::from_reader(io::stdin().lock())?;
    let error_file = config.data_dir.join("run/launcher.error");
    let _ = fs::remove_file(&error_file);
    let result = Launcher::open(config).and_then(Launcher::run);
    if let Err(error) = &result {
        let _ = fs::write(error_file, error.to_string());
    }
    result
}

/// Removes what a launcher that was killed left on the host and in its data directory: cgroups, packet
/// filter, the gateway's address, machines' files. Its processes and mounts went with it.
pub(crate) fn clear(data_dir: &Path, instance: &str) -> io::Result<()> {
    let run = data_dir.join("run");
    let _lock = take(&run)?;
    let _ = fs::remove_file(run.join("launcher.sock"));
    Cgroups::clear(instance)?;
    Network::clear(instance, &run)?;
    // An engine that lives still sees its machines end at this moment, and gives what is left of them another name
    // before it throws it away: what is gone is well, and a name may be new.
    loop {
        let mut left = fs::read_dir(data_dir.join("machines"))?
            .flatten()
            .peekable();
        if left.peek().is_none() {
            break;
        }
        for entry in left {
            remove_all(&entry.path())?;
        }
    }
    remove_all(&data_dir.join(SPARE))
}

/// Removes a directory that may be gone already.
fn remove_all(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes the data directory for this process. One that is ending is waited for: its socket is gone before
/// it has cleared up.
fn take(run: &Path) -> io::Result<File> {
    let lock = File::create(run.join("launcher.lock"))?;
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < HANDOVER => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => {
                let error = io::Error::from(error);
                let text = format!("another launcher has this data directory: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        }
    }
}

/// Says that the directories in this one have nothing to do with each other, so that ext4 keeps them apart on
/// the disk. Without a journal it does not use an inode again for minutes after a file was removed and looks
/// for another one nearby: machines that come and go would soon make that the longest step of making one.
fn spread(directory: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    if let Ok(directory) = File::open(directory) {
        // Other file systems do not know the flag, and have no need of it.
        let flags = ioctl_getflags(&directory);
        let _ = flags.and_then(|flags| ioctl_setflags(&directory, flags | IFlags::TOPDIR));
    }
}

/// What an event of the poll is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener,
    Client(u32),
    /// A process 1 ended.
    Ended(u32),
    /// A process 1 said something.
    Control(u32),
    Resolver,
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Self::Listener => 0,
            Self::Client(n) => 1 << 32 | u64::from(n),
            Self::Ended(n) => 2 << 32 | u64::from(n),
            Self::Control(n) => 3 << 32 | u64::from(n),
            Self::Resolver => 4 << 32,
        }
    }

    fn unpack(raw: u64) -> Self {
        let n = raw as u32;
        match raw >> 32 {
            1 => Self::Client(n),
            2 => Self::Ended(n),
            3 => Self::Control(n),
            4 => Self::Resolver,
            _ => Self::Listener,
        }
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug)]
struct Caller {
    client: u32,
    tag: u64,
}

#[derive(Debug)]
enum State {
    Forked,
    Parked,
    Starting {
        id: String,
        caller: Caller,
        text: Vec<u8>,
        binds: Vec<Bind>,
    },
    Live {
        id: String,
    },
    Ending {
        id: String,
        callers: Vec<Caller>,
    },
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    state: State,
    since: Instant,
    /// It was cut off from the network.
    is_cut: bool,
    /// It reaches nothing beyond this host, whatever the packet filter says.
    is_fenced: bool,
    /// What it may reach; `None` when that is not sure.
    rules: Option<Rules>,
    /// The host's directories that it has.
    binds: Vec<Shown>,
    /// The file system that its writable layer has for itself.
    disk: Option<Passing>,
    /// Its mounts, once it is ending.
    mounts: Option<File>,
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// A machine that is asked for.
struct Wanted {
    caller: Caller,
    kind: Kind,
    spec: Box<MachineSpec>,
    from: Option<Origin>,
}

impl Wanted {
    /// Whether something of it can be made before it is known which machine it is: a kernel that goes on from a checkpoint, or
    /// with binds, is started for itself.
    fn can_be_ahead(&self) -> bool {
        self.kind == Kind::Native || (self.from.is_none() && self.spec.binds.is_empty())
    }
}

struct Launcher {
    config: LauncherConfig,
    /// Held for its lock.
    _lock: File,
    common: Common,
    gvisor: Option<Gvisor>,
    poll: OwnedFd,
    listener: UnixListener,
    own_pids: OwnedFd,
    cgroups: Cgroups,
    network: Network,
    egress: Egress,
    resolver: Option<Resolver>,
    ranges: Ranges,
    entries: HashMap<u32, Entry>,
    by_id: HashMap<String, u32>,
    parked: VecDeque<u32>,
    /// What the last machine of a kind was made of: probably the next one too.
    usual: HashMap<Kind, Ahead>,
    waiting: VecDeque<Wanted>,
    clients: HashMap<u32, Client>,
    undertaker: Undertaker,
    next: u32,
    /// When a machine was last asked for, ready or gone.
    active: Instant,
    /// When the last machine and caller went.
    idle_since: Instant,
    /// When things were last tidied.
    tidied: Instant,
    /// A slot could not be prepared: do not try again at once for the spare ones.
    prepare_again: Option<Instant>,
    shutdown: Option<Caller>,
}

impl Launcher {
    fn open(config: LauncherConfig) -> io::Result<Self> {
        let context = |step: &'static str| {
            move |e: io::Error| io::Error::new(e.kind(), format!("{step}: {e}"))
        };
        let run = config.data_dir.join("run");
        fs::create_dir_all(&run)?;
        fs::create_dir_all(config.data_dir.join("machines"))?;
        let scratch = run.join("scratch");
        fs::create_dir_all(&scratch)?;
        let lock = take(&run)?;
        let spare = config.data_dir.join(SPARE);
        let _ = fs::remove_dir_all(&spare);
        fs::create_dir(&spare).map_err(context("make the directory of spare machines"))?;
        spread(&spare);
        let _ = rustix::process::setsid();
        namespace::set_name("nullspace launch");
        // Every machine's process 1 is a copy of this process and knows it from here.
        nullspace_sys::spawn::ignored_signals();
        nullspace_sys::memory::keep_freed(KEEP_FREED);
        // A thousand machines are a few thousand descriptors.
        namespace::limit(namespace::Resource::OpenFiles, 1 << 16)
            .map_err(context("raise the limit of open files"))?;
        namespace::unshare(Namespaces::MOUNT)
            .map_err(context("make the launcher's mount namespace"))?;
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::DOWNSTREAM
                | rustix::mount::MountPropagationFlags::REC,
        )
        .map_err(|e| context("detach from the host's mounts")(e.into()))?;
        let cgroups = Cgroups::open(&config.instance).map_err(context("prepare cgroups"))?;
        let network =
            Network::open(&config.instance, &run).map_err(context("prepare the network"))?;
        let egress =
            Egress::open(&config.instance).map_err(context("prepare the packet filter"))?;
        let system_layer = system_layer::make(&config, network.gateway())
            .map_err(context("make the system layer"))?;
        let empty_images = writable::empty_images(&run)
            .inspect_err(|error| eprintln!("what machines write has no limits: {error}"))
            .ok();
        let undertaker = Undertaker::start().map_err(context("fork"))?;
        let resolver = Resolver::start(&config.resolver, network.gateway())
            .map_err(context("start the resolver"))?;
        let own_pids = namespace::open(std::process::id() as i32, "pid")?.into();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let socket = run.join("launcher.sock");
        let _ = fs::remove_file(&socket);
        let listener =
            UnixListener::bind(&socket).map_err(context("make the launcher's socket"))?;
        // Whoever may connect may make machines: the owner of the data directory alone.
        fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        watch(&poll, listener.as_fd(), Token::Listener)?;
        if let Some(link) = resolver.as_ref().and_then(Resolver::link) {
            watch(&poll, link, Token::Resolver)?;
        }
        Ok(Self {
            config,
            _lock: lock,
            common: Common {
                system_layer,
                scratch,
                empty_images,
                filter: filter::build(),
            },
            gvisor: None,
            poll,
            listener,
            own_pids,
            cgroups,
            network,
            egress,
            resolver,
            ranges: Ranges::new(),
            entries: HashMap::new(),
            by_id: HashMap::new(),
            parked: VecDeque::new(),
            usual: HashMap::new(),
            waiting: VecDeque::new(),
            clients: HashMap::new(),
            undertaker,
            next: 0,
            active: Instant::now(),
            idle_since: Instant::now(),
            tidied: Instant::now(),
            prepare_again: None,
            shutdown: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        loop {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.handle(Token::unpack(event.data.u64()));
            }
            if self.shutdown.is_some() {
                // The caller hears the end of the stream when all is done.
                drop(self.close());
                return Ok(());
            }
            self.serve_waiting();
            self.prepare_spare();
            if events.is_empty() || self.tidied.elapsed() > TIDY {
                self.tidy();
            }
            if events.is_empty() && self.is_useless() {
                self.close();
                return Ok(());
            }
        }
    }

    /// Until something happens, or it is time to prepare a spare slot.
    fn timeout(&self) -> rustix::event::Timespec {
        let wait = self
            .spare_wanted_in()
            .map_or(Duration::from_millis(500), |wait| {
                wait + Duration::from_micros(50)
            });
        rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(wait.subsec_nanos()),
        }
    }

    /// When the next spare slot should be prepared: when it is quiet. Not while a machine starts.
    fn spare_wanted_in(&self) -> Option<Duration> {
        let starting = |e: &Entry| matches!(e.state, State::Starting { .. });
        let kind = self.spare_wanted()?;
        if !self.waiting.is_empty() || self.entries.values().any(starting) {
            return None;
        }
        let quiet = match kind {
            Kind::Gvisor => QUIET_WITH_KERNEL,
            Kind::Native if self.parked_of(kind) == 0 => QUIET_WITHOUT,
            Kind::Native => QUIET,
        };
        Some(quiet.saturating_sub(self.active.elapsed()))
    }

    fn preparing(&self, kind: Kind) -> usize {
        self.entries
            .values()
            .filter(|e| e.slot.kind == kind && matches!(e.state, State::Forked))
            .count()
    }

    fn parked_of(&self, kind: Kind) -> usize {
        let is_it = |n: &&u32| self.entries.get(n).is_some_and(|e| e.slot.kind == kind);
        self.parked.iter().filter(is_it).count()
    }

    /// The kind of machine of which one should be prepared ahead: one of each at a time.
    fn spare_wanted(&self) -> Option<Kind> {
        let allowed = self.prepare_again.is_none_or(|at| Instant::now() >= at);
        if !allowed || self.clients.is_empty() {
            return None;
        }
        [Kind::Native, Kind::Gvisor].into_iter().find(|kind| {
            let spare = match kind {
                Kind::Native => self.config.spare,
                // Each takes memory: none before anybody asked for one.
                Kind::Gvisor if !self.usual.contains_key(kind) => 0,
                Kind::Gvisor => self.config.gvisor.as_ref().map_or(0, |g| g.spare),
            };
            self.preparing(*kind) == 0 && self.parked_of(*kind) < spare
        })
    }

    fn prepare_spare(&mut self) {
        if self.spare_wanted_in() == Some(Duration::ZERO)
            && let Some(kind) = self.spare_wanted()
        {
            let ahead = self.usual.get(&kind).cloned().unwrap_or_default();
            if self.prepare(kind, ahead).is_err() {
                self.prepare_again = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }

    /// What is done when nothing happens, or has not been done for a while.
    fn tidy(&mut self) {
        self.tidied = Instant::now();
        let late: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.state, State::Forked | State::Starting { .. }))
            .filter(|(_, e)| {
                let patience = match e.slot.kind {
                    Kind::Native => PATIENCE,
                    Kind::Gvisor => PATIENCE_WITH_KERNEL,
                };
                e.since.elapsed() > patience
            })
            .map(|(n, _)| *n)
            .collect();
        for n in late {
            self.entries[&n].slot.kill();
        }
        if let Some(resolver) = &mut self.resolver
            && resolver.keep_alive(&self.egress.policies())
            && let Some(link) = resolver.link()
        {
            let _ = watch(&self.poll, link, Token::Resolver);
        }
        let denials = self.egress.upkeep();
        self.tell_denials(denials);
    }

    fn tell_denials(&mut self, denials: Vec<Denial>) {
        if !denials.is_empty() {
            self.tell_all(&Message::Denied { denials });
        }
    }

    fn is_useless(&mut self) -> bool {
        if !self.clients.is_empty()
            || self
                .entries
                .values()
                .any(|e| !matches!(e.state, State::Parked | State::Forked))
        {
            self.idle_since = Instant::now();
            return false;
        }
        self.idle_since.elapsed() > LINGER
    }

    fn close(mut self) -> Option<Client> {
        let _ = fs::remove_file(self.config.data_dir.join("run/launcher.sock"));
        for entry in self.entries.values() {
            entry.slot.kill();
        }
        for (_, entry) in self.entries.drain() {
            entry.slot.wait();
            let Slot {
                group, directory, ..
            } = &entry.slot;
            let remains = Remains {
                mounts: entry.mounts,
                disk: entry.disk,
            };
            self.undertaker.take(remains, group.paths(), directory);
        }
        self.resolver = None;
        self.undertaker.finish();
        let _ = fs::remove_dir_all(self.config.data_dir.join(SPARE));
        self.cgroups.close();
        self.network.close();
        self.shutdown
            .and_then(|caller| self.clients.remove(&caller.client))
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Listener => self.accept(),
            Token::Client(n) => self.read_client(n),
            Token::Control(n) => self.read_control(n),
            Token::Ended(n) => self.process_ended(n),
            Token::Resolver => self.hear_resolver(),
        }
    }

    fn hear_resolver(&mut self) {
        let Some(resolver) = &mut self.resolver else {
            return;
        };
        let mut denials = Vec::new();
        for message in resolver.listen() {
            match message {
                FromResolver::Open {
                    serial,
                    source,
                    name,
                    addresses,
                    seconds,
                } => {
                    let addresses = self
                        .egress
                        .open_addresses(source, &name, &addresses, seconds);
                    resolver.send(&ToResolver::Opened { serial, addresses });
                }
                FromResolver::Denied {
                    source,
                    name,
                    count,
                } => {
                    if let Some(id) = self.egress.id_of(source) {
                        denials.push(Denial {
                            id: id.to_owned(),
                            target: DeniedTarget::Name(name),
                            count,
                        });
                    }
                }
                FromResolver::Done { .. } => {}
            }
        }
        self.tell_denials(denials);
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let n = self.number();
            if stream.set_nonblocking(true).is_ok()
                && watch(&self.poll, stream.as_fd(), Token::Client(n)).is_ok()
            {
                self.clients.insert(
                    n,
                    Client {
                        stream,
                        buffer: Vec::new(),
                    },
                );
            }
        }
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn read_client(&mut self, n: u32) {
        let Some(client) = self.clients.get_mut(&n) else {
            return;
        };
        let mut chunk = [0; 16 << 10];
        let mut requests: Vec<Request> = Vec::new();
        let alive = loop {
            match client.stream.read(&mut chunk) {
                Ok(0) => break false,
                Ok(read) => client.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break true,
                Err(_) => break false,
            }
        };
        let mut sane = true;
        loop {
            match wire::decode(&mut client.buffer) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(_) => {
                    sane = false;
                    break;
                }
            }
        }
        for request in requests {
            self.request(
                Caller {
                    client: n,
                    tag: request.tag,
                },
                request.body,
            );
        }
        if !alive || !sane {
            self.clients.remove(&n);
        }
    }

    fn request(&mut self, caller: Caller, body: RequestBody) {
        match body {
            RequestBody::Hello => {
                self.answer(
                    caller,
                    Ok(Answer::Hello {
                        version: wire::VERSION,
                        pid: std::process::id(),
                        disk_limits: self.common.empty_images.is_some(),
                    }),
                );
            }
            RequestBody::List => {
                let live = self.entries.values().filter_map(|e| match &e.state {
                    State::Live { id } | State::Starting { id, .. } => {
                        Some((id.clone(), e.slot.kind))
                    }
                    _ => None,
                });
                let machines = live.collect();
                self.answer(caller, Ok(Answer::List { machines }));
            }
            RequestBody::Create { kind, spec, from } => {
                let waits = self.waiting.iter().any(|other| other.spec.id == spec.id);
                if waits || self.by_id.contains_key(&spec.id) {
                    self.answer(caller, Err(Refusal::Exists(spec.id)));
                } else if kind == Kind::Gvisor
                    && let Err(refusal) = self.need_gvisor()
                {
                    self.answer(caller, Err(refusal));
                } else {
                    self.active = Instant::now();
                    self.waiting.push_back(Wanted {
                        caller,
                        kind,
                        spec,
                        from,
                    });
                }
            }
            RequestBody::Address { id } => {
                let entry = self.by_id.get(&id).and_then(|n| self.entries.get(n));
                let address = entry
                    .filter(|e| matches!(e.state, State::Live { .. }) && !e.is_cut)
                    .map(|e| e.slot.link.address);
                self.answer(caller, Ok(Answer::Address { address }));
            }
            RequestBody::Meters { id } => {
                let entry = self.by_id.get(&id).and_then(|n| self.entries.get(n));
                let meters = entry
                    .filter(|e| matches!(e.state, State::Live { .. }))
                    .and_then(|e| e.slot.meters());
                self.answer(caller, Ok(Answer::Meters { meters }));
            }
            RequestBody::Egress { id, rules } => {
                let done = self.set_egress(&id, &rules);
                self.answer(caller, done.map(|()| Answer::Done));
            }
            RequestBody::Attach { id, bind } => {
                let done = self.attach(&id, &bind);
                self.answer(caller, done.map(|()| Answer::Done));
            }
            RequestBody::Detach { id, target } => {
                let done = self.detach(&id, &target);
                self.answer(caller, done.map(|()| Answer::Done));
            }
            RequestBody::Attached { id } => {
                let shown = self.live(&id).map(|entry| &entry.binds);
                let binds = shown.map(|all| all.iter().map(|one| one.bind.clone()).collect());
                self.answer(caller, binds.map(|binds| Answer::Attached { binds }));
            }
            RequestBody::Destroy { id, keep } => self.destroy(caller, &id, keep),
            RequestBody::Shutdown => self.shutdown = Some(caller),
        }
    }

    fn live(&mut self, id: &str) -> Result<&mut Entry, Refusal> {
        self.by_id
            .get(id)
            .and_then(|n| self.entries.get_mut(n))
            .filter(|entry| matches!(entry.state, State::Live { .. }))
            .ok_or_else(|| Refusal::Unknown(id.to_owned()))
    }

    fn attach(&mut self, id: &str, bind: &Bind) -> Result<(), Refusal> {
        let scratch = self.common.scratch.clone();
        let entry = self.live(id)?;
        if entry.binds.iter().any(|one| one.bind == *bind) {
            return Ok(());
        }
        let target = bind.target.display();
        if entry.binds.iter().any(|one| one.bind.target == bind.target) {
            return Err(Refusal::Invalid(format!(
                "{target}: something is shown there already"
            )));
        }
        if entry.binds.len() >= MAX_BINDS {
            return Err(Refusal::Invalid(format!(
                "a machine has at most {MAX_BINDS} binds"
            )));
        }
        let shown = match entry.slot.range {
            Some(range) => {
                let users = self.ranges.namespace(range)?;
                let entry = self.live(id)?;
                binds::attach(&entry.slot, range, users.as_fd(), bind)?
            }
            // It has a kernel of its own.
            None => binds::offer(&entry.slot, &scratch, bind)?,
        };
        self.live(id)?.binds.push(shown);
        Ok(())
    }

    fn detach(&mut self, id: &str, target: &Path) -> Result<(), Refusal> {
        let entry = self.live(id)?;
        let there = |one: &Shown| one.bind.target == target;
        if let Some(at) = entry.binds.iter().position(there) {
            binds::detach(&entry.slot, &entry.binds[at])?;
            entry.binds.remove(at);
        }
        Ok(())
    }

    fn set_egress(&mut self, id: &str, rules: &Rules) -> Result<(), Refusal> {
        let unknown = || Refusal::Unknown(id.to_owned());
        let n = *self.by_id.get(id).ok_or_else(unknown)?;
        let entry = self.entries.get(&n).ok_or_else(unknown)?;
        if !matches!(entry.state, State::Live { .. }) {
            return Err(unknown());
        }
        if entry.rules.as_ref() == Some(rules) {
            return Ok(());
        }
        let done = self.enforce(n, id, rules);
        let Some(entry) = self.entries.get_mut(&n) else {
            return Err(unknown());
        };
        entry.rules = done.is_ok().then(|| rules.clone());
        if done.is_err() {
            // It is not known what it may reach: so nothing. One whose guest is reached over the link keeps that.
            match entry.slot.kind {
                Kind::Native => entry.is_cut |= entry.slot.in_network(network::cut).is_ok(),
                Kind::Gvisor => entry.is_fenced |= entry.slot.link.fence().is_ok(),
            }
        }
        done.map_err(|error| Refusal::step("set the rules", error))
    }

    /// Puts rules in force for a machine, names and packets.
    fn enforce(&mut self, n: u32, id: &str, rules: &Rules) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&n) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let link = &entry.slot.link;
        self.egress.apply(n, id, link, rules)?;
        if let Some(resolver) = &mut self.resolver {
            resolver.set(link.address, (!rules.is_open()).then_some(rules));
        }
        // Only now may something get through.
        if entry.is_cut && !rules.is_closed() {
            entry.slot.in_network(|| link.join())?;
            entry.is_cut = false;
        }
        if entry.is_fenced {
            link.unfence()?;
            entry.is_fenced = false;
        }
        Ok(())
    }

    fn destroy(&mut self, caller: Caller, id: &str, keep: bool) {
        self.waiting.retain(|wanted| wanted.spec.id != id);
        let Some(entry) = self.by_id.get(id).and_then(|n| self.entries.get_mut(n)) else {
            return self.answer(caller, Ok(Answer::Done));
        };
        if let State::Ending { callers, .. } = &mut entry.state {
            return callers.push(caller);
        }
        entry.mounts = entry.slot.mounts();
        if keep {
            // Somebody is about to read it. It is still mounted elsewhere, so this takes no time.
            entry.disk = None;
        }
        entry.slot.kill();
        self.active = Instant::now();
        let ending = State::Ending {
            id: id.to_owned(),
            callers: vec![caller],
        };
        if let State::Starting { caller, .. } = std::mem::replace(&mut entry.state, ending) {
            self.answer(
                caller,
                Err(Refusal::step(
                    "create",
                    "the machine was destroyed while it started",
                )),
            );
        }
    }

    /// Gives parked slots to those who wait, and prepares more when there are too few.
    fn serve_waiting(&mut self) {
        let mut unserved = VecDeque::new();
        while let Some(wanted) = self.waiting.pop_front() {
            match self.parked_for(&wanted) {
                Some(n) => {
                    self.usual.insert(wanted.kind, Ahead::of(&wanted.spec));
                    self.begin(n, wanted);
                }
                None => unserved.push_back(wanted),
            }
        }
        self.waiting = unserved;
        for kind in [Kind::Native, Kind::Gvisor] {
            while let Some(wanted) = self.unprepared(kind) {
                // What somebody waits for is known for sure; what it is given later is not made ahead.
                let ahead = match wanted.can_be_ahead() {
                    true => Ahead::of(&wanted.spec),
                    false => Ahead::default(),
                };
                if let Err(error) = self.prepare(kind, ahead) {
                    self.refuse_one(kind, &Refusal::step("prepare", error));
                    break;
                }
            }
        }
    }

    /// The first of those who wait for a slot for whom none is on its way.
    fn unprepared(&self, kind: Kind) -> Option<&Wanted> {
        let (mut plain, mut ahead) = (0_usize, 0_usize);
        for entry in self.entries.values() {
            if entry.slot.kind == kind && matches!(entry.state, State::Forked) {
                match entry.slot.ahead.lower.is_empty() {
                    true => plain += 1,
                    false => ahead += 1,
                }
            }
        }
        let waiting = self.waiting.iter().filter(|wanted| wanted.kind == kind);
        waiting.take(PREPARING_AT_ONCE).find(|wanted| {
            let theirs = match wanted.can_be_ahead() && ahead > 0 {
                true => &mut ahead,
                false => &mut plain,
            };
            let left = theirs.checked_sub(1);
            *theirs = left.unwrap_or(0);
            left.is_none()
        })
    }

    /// A parked slot for a machine: one that was made for it, if there is one. What was made ahead in a slot is left to those
    /// who can use it: to take it down takes longer than a slot without.
    fn parked_for(&mut self, wanted: &Wanted) -> Option<u32> {
        let slot = |n: &u32| self.entries.get(n).map(|e| &e.slot);
        let fits = |n: &u32| {
            slot(n).is_some_and(|s| {
                s.kind == wanted.kind && (wanted.can_be_ahead() || s.ahead.lower.is_empty())
            })
        };
        let its = Ahead::of(&wanted.spec);
        let made_for_it = |n: &u32| slot(n).is_some_and(|s| s.ahead == its);
        let at = self
            .parked
            .iter()
            .position(|n| fits(n) && made_for_it(n))
            .or_else(|| self.parked.iter().position(fits))?;
        self.parked.remove(at)
    }

    /// Makes what all machines of gVisor need, once somebody asks for one: few hosts do, and it takes room on the disk.
    fn need_gvisor(&mut self) -> Result<(), Refusal> {
        if self.gvisor.is_some() {
            return Ok(());
        }
        let Some(config) = self.config.gvisor.clone() else {
            let text = "this launcher was started without gVisor: end its machines first";
            return Err(Refusal::step("start", text));
        };
        let pack = pack::make(&self.config.data_dir)
            .map_err(|error| Refusal::step("pack the guest", error))?;
        self.gvisor = Some(Gvisor { config, pack });
        Ok(())
    }

    /// The one who waited longest for a machine of a kind gets none.
    fn refuse_one(&mut self, kind: Kind, refusal: &Refusal) {
        let at = self.waiting.iter().position(|wanted| wanted.kind == kind);
        if let Some(wanted) = at.and_then(|at| self.waiting.remove(at)) {
            self.answer(wanted.caller, Err(refusal.clone()));
        }
    }

    fn prepare(&mut self, kind: Kind, ahead: Ahead) -> io::Result<()> {
        let n = self.number();
        let link = self.network.reserve(|address| {
            self.entries
                .values()
                .any(|e| e.slot.link.address == address)
        })?;
        let materials = Materials {
            group: self.cgroups.group(&format!("m{n}")),
            link,
            directory: self.config.data_dir.join(SPARE).join(n.to_string()),
            ahead,
            common: &self.common,
            gvisor: self.gvisor.as_ref().filter(|_| kind == Kind::Gvisor),
        };
        let slot = Slot::start(&self.own_pids, &mut self.ranges, materials)?;
        watch(&self.poll, slot.pidfd.as_fd(), Token::Ended(n))?;
        if let Some(control) = &slot.control {
            watch(&self.poll, control.as_fd(), Token::Control(n))?;
        }
        self.entries.insert(
            n,
            Entry {
                slot,
                state: State::Forked,
                since: Instant::now(),
                is_cut: false,
                is_fenced: false,
                rules: None,
                binds: Vec::new(),
                disk: None,
                mounts: None,
            },
        );
        Ok(())
    }

    /// Hands an order to a parked slot.
    fn begin(&mut self, n: u32, wanted: Wanted) {
        let Wanted {
            caller,
            kind,
            spec,
            from,
        } = wanted;
        let id = spec.id.clone();
        let (rules, binds) = (spec.egress.clone(), spec.binds.clone());
        // Closed ones need no filter: the machine cuts its link itself before it runs anything. One with a kernel of
        // its own is reached over its link, so for it the filter is all.
        let is_cut = rules.is_closed() && kind == Kind::Native;
        if !is_cut
            && !rules.is_open()
            && let Err(error) = self.enforce(n, &id, &rules)
        {
            return self.break_off(n, caller, Refusal::step("set the rules", error));
        }
        let Some(entry) = self.entries.get_mut(&n) else {
            return;
        };
        let directory = self.config.data_dir.join("machines").join(&id);
        let order = Order {
            spec: *spec,
            directory,
            from,
        };
        let mut work = || -> Result<(), Refusal> {
            rustix::fs::renameat_with(
                rustix::fs::CWD,
                &entry.slot.directory,
                rustix::fs::CWD,
                &order.directory,
                rustix::fs::RenameFlags::NOREPLACE,
            )
            .map_err(|e| match e {
                rustix::io::Errno::EXIST => Refusal::Exists(id.clone()),
                _ => Refusal::step("make the machine's directory", e),
            })?;
            entry
                .slot
                .order(&order)
                .map_err(|e| Refusal::step("set limits and order", e))
        };
        match work() {
            Ok(()) => {
                entry.state = State::Starting {
                    id: id.clone(),
                    caller,
                    text: Vec::new(),
                    binds,
                };
                entry.since = Instant::now();
                entry.is_cut = is_cut;
                entry.rules = Some(rules);
                self.by_id.insert(id, n);
            }
            Err(refusal) => self.break_off(n, caller, refusal),
        }
    }

    /// A slot did not become a machine.
    fn break_off(&mut self, n: u32, caller: Caller, refusal: Refusal) {
        if let Some(entry) = self.entries.get_mut(&n) {
            entry.slot.kill();
            entry.state = State::Ending {
                id: String::new(),
                callers: Vec::new(),
            };
        }
        self.answer(caller, Err(refusal));
    }

    fn read_control(&mut self, n: u32) {
        let Some(entry) = self.entries.get_mut(&n) else {
            return;
        };
        let Some(control) = &mut entry.slot.control else {
            return;
        };
        let mut chunk = [0; 4096];
        let (read, trees) = match binds::receive(control, &mut chunk) {
            Ok((read, trees)) if read > 0 => (&chunk[..read], trees),
            _ => {
                // It ends: there is nothing more to hear.
                entry.slot.control = None;
                return;
            }
        };
        match (&mut entry.state, read[0]) {
            (State::Forked, inside::PARKED) => {
                entry.state = State::Parked;
                self.parked.push_back(n);
            }
            (
                State::Starting {
                    id, caller, binds, ..
                },
                inside::READY,
            ) => {
                let (id, caller) = (id.clone(), *caller);
                let mut trees = trees.into_iter();
                let shown = std::mem::take(binds).into_iter().zip(trees.by_ref());
                entry.binds = shown.map(|(bind, tree)| Shown::new(bind, tree)).collect();
                entry.disk = Passing::from_parts(trees);
                entry.state = State::Live { id };
                entry.slot.control = None;
                self.active = Instant::now();
                self.answer(caller, Ok(Answer::Done));
            }
            (State::Starting { text, .. }, _) => text.extend_from_slice(&read[1..]),
            (State::Forked, _) => {
                let reason = String::from_utf8_lossy(&read[1..]).replace('\n', ": ");
                self.preparation_failed(n, &reason);
            }
            _ => {}
        }
    }

    /// A slot came to nothing: the one who waited longest hears why.
    fn preparation_failed(&mut self, n: u32, reason: &str) {
        let mut kind = Kind::Native;
        if let Some(entry) = self.entries.get_mut(&n) {
            kind = entry.slot.kind;
            entry.slot.kill();
            entry.state = State::Ending {
                id: String::new(),
                callers: Vec::new(),
            };
        }
        self.prepare_later(kind, reason);
    }

    fn prepare_later(&mut self, kind: Kind, reason: &str) {
        self.prepare_again = Some(Instant::now() + Duration::from_secs(1));
        self.refuse_one(kind, &Refusal::step("prepare", reason));
    }

    fn process_ended(&mut self, n: u32) {
        // A last word may still be in the socket.
        if self
            .entries
            .get(&n)
            .is_some_and(|e| matches!(e.state, State::Starting { .. }))
        {
            self.read_control(n);
        }
        let Some(entry) = self.entries.remove(&n) else {
            return;
        };
        self.parked.retain(|p| *p != n);
        let Entry {
            slot,
            state,
            mounts,
            disk,
            ..
        } = entry;
        self.active = Instant::now();
        if let State::Ending { id, callers } = &state {
            // Nothing of it runs any more; that it is still to be waited for is no news.
            self.by_id.remove(id);
            for caller in callers {
                self.answer(*caller, Ok(Answer::Done));
            }
        }
        let ended = slot.wait();
        match state {
            State::Ending { .. } => {}
            State::Live { id } => {
                self.by_id.remove(&id);
                let reason = if slot.group.out_of_memory() {
                    ExitReason::OutOfMemory
                } else {
                    ExitReason::GuestEnded(ended.0)
                };
                self.tell_all(&Message::Ended { id, reason });
            }
            State::Starting {
                id, caller, text, ..
            } => {
                self.by_id.remove(&id);
                let text = String::from_utf8_lossy(&text).into_owned();
                let (step, reason) = match text.split_once('\n') {
                    Some((step, reason)) => (step.to_owned(), reason.to_owned()),
                    None if slot.group.out_of_memory() => ("start".into(), "out of memory".into()),
                    None => ("start".into(), ended.0),
                };
                let refusal = match step.strip_prefix(binds::ASKED_FOR) {
                    Some(what) => Refusal::Invalid(what.to_owned()),
                    None => Refusal::Step { step, reason },
                };
                self.answer(caller, Err(refusal));
            }
            State::Forked => self.prepare_later(slot.kind, &ended.0),
            State::Parked => {
                self.prepare_again = Some(Instant::now() + Duration::from_secs(1));
            }
        }
        if self.egress.forget(n)
            && let Some(resolver) = &mut self.resolver
        {
            resolver.forget(slot.link.address);
        }
        if let Some(range) = slot.range {
            self.ranges.give_back(range);
        }
        let remains = Remains { mounts, disk };
        self.undertaker
            .take(remains, slot.group.paths(), &slot.directory);
    }

    fn answer(&mut self, caller: Caller, result: Result<Answer, Refusal>) {
        self.tell(
            caller.client,
            &Message::Answer {
                tag: caller.tag,
                result,
            },
        );
    }

    fn tell_all(&mut self, message: &Message) {
        let all: Vec<u32> = self.clients.keys().copied().collect();
        for client in all {
            self.tell(client, message);
        }
    }

    /// A caller that does not read is dropped: it connects again and asks what lives.
    fn tell(&mut self, n: u32, message: &Message) {
        if let Some(client) = self.clients.get_mut(&n)
            && client.stream.write_all(&wire::encode(message)).is_err()
        {
            self.clients.remove(&n);
        }
    }
}

fn watch(poll: &OwnedFd, fd: impl AsFd, token: Token) -> io::Result<()> {
    Ok(epoll::add(
        poll,
        fd,
        epoll::EventData::new_u64(token.pack()),
        epoll::EventFlags::IN,
    )?)
}

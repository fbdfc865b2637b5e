//! The machines' rules, as the launcher says them: the [`Policy`] of a resolver that works for one.
//!
//! ```text
//!  question ─▶ allow ─no──▶ NXDOMAIN, counted
//!                └──yes─▶ name server ─▶ admit ─▶ (launcher opens the addresses) ─▶ answer with those alone
//! ```
//! What the launcher confirmed is remembered for a while, so that a machine that asks the same again costs nothing.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nullspace_egress::{
    Name, Rules,
    control::{self, FromResolver, MAX_ADDRESSES, ToResolver},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
};

use crate::{Admission, Policy};

/// How long a confirmed address is not asked for again. The launcher keeps it open for longer than this and the
/// longest time that an answer is good for.
const CONFIRMED: Duration = Duration::from_secs(300);
/// The most confirmed addresses that are remembered for one machine.
const MAX_CONFIRMED: usize = 1024;
/// The most names that are counted for one machine until they are told.
const MAX_DENIED: usize = 64;
/// How often denied names are told.
const TELL: Duration = Duration::from_secs(1);
/// How long the launcher may take to open addresses.
const PATIENCE: Duration = Duration::from_secs(3);
/// Messages that wait for the launcher to read them.
const QUEUE: usize = 1024;

/// See the module's docs.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    machines: Mutex<HashMap<Ipv4Addr, Machine>>,
    /// Questions to the launcher, by serial.
    waiting: Mutex<HashMap<u64, oneshot::Sender<Vec<Ipv4Addr>>>>,
    serial: AtomicU64,
    out: mpsc::Sender<Vec<u8>>,
    stage: watch::Receiver<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The launcher says what there is.
    Learning,
    Ready,
    /// The launcher is gone.
    Over,
}

#[derive(Debug)]
struct Machine {
    rules: Arc<Rules>,
    confirmed: HashMap<(Name, Ipv4Addr), Instant>,
    denied: HashMap<Name, u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Listens to the launcher at the other end. Must be called in a runtime.
    ///
    /// # Errors
    /// When the socket is none.
    pub fn new(launcher: std::os::unix::net::UnixStream) -> io::Result<Self> {
        launcher.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(launcher)?.into_split();
        let (out, queue) = mpsc::channel(QUEUE);
        let (stage, watched) = watch::channel(Stage::Learning);
        let shared = Arc::new(Shared {
            machines: Mutex::default(),
            waiting: Mutex::default(),
            serial: AtomicU64::new(1),
            out,
            stage: watched,
        });
        tokio::spawn(write(writer, queue));
        tokio::spawn(read(reader, Arc::clone(&shared), stage));
        tokio::spawn(tell_denied(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// Waits until all rules are known. Nobody may be answered before.
    pub async fn ready(&self) {
        let mut stage = self.0.stage.clone();
        let _ = stage.wait_for(|stage| *stage != Stage::Learning).await;
    }

    /// Waits until the launcher is gone.
    pub async fn over(&self) {
        let mut stage = self.0.stage.clone();
        let _ = stage.wait_for(|stage| *stage == Stage::Over).await;
    }

    async fn ask(
        &self,
        source: Ipv4Addr,
        name: Name,
        addresses: Vec<Ipv4Addr>,
        seconds: u32,
    ) -> Option<Vec<Ipv4Addr>> {
        let serial = self.0.serial.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.0.waiting).insert(serial, sender);
        let question = FromResolver::Open {
            serial,
            source,
            name,
            addresses,
            seconds,
        };
        let answer = async {
            self.0.out.send(control::line(&question)).await.ok()?;
            receiver.await.ok()
        };
        let opened = tokio::time::timeout(PATIENCE, answer).await;
        lock(&self.0.waiting).remove(&serial);
        opened.ok().flatten()
    }
}

impl Policy for Control {
    fn allow(&self, source: Ipv4Addr, name: &str) -> bool {
        let mut machines = lock(&self.0.machines);
        let Some(machine) = machines.get_mut(&source) else {
            return true;
        };
        // What is no name for the rules is none for the machine.
        let Ok(name) = name.parse::<Name>() else {
            return !machine.rules.restricts_names();
        };
        if machine.rules.name(&name) {
            return true;
        }
        if machine.denied.len() < MAX_DENIED || machine.denied.contains_key(&name) {
            *machine.denied.entry(name).or_default() += 1;
        }
        false
    }

    fn opens(&self, source: Ipv4Addr) -> bool {
        lock(&self.0.machines)
            .get(&source)
            .is_some_and(|machine| machine.rules.opens_by_name())
    }

    fn admit<'a>(
        &'a self,
        source: Ipv4Addr,
        name: &'a str,
        mut addresses: Vec<Ipv4Addr>,
        seconds: u32,
    ) -> Admission<'a> {
        Box::pin(async move {
            let name: Name = name.parse().ok()?;
            addresses.truncate(MAX_ADDRESSES);
            let now = Instant::now();
            let rules = {
                let machines = lock(&self.0.machines);
                let machine = machines.get(&source)?;
                let rules = Arc::clone(&machine.rules);
                // By its address alone it may be reached, or never.
                let (by_name, mut admitted): (Vec<Ipv4Addr>, Vec<Ipv4Addr>) = addresses
                    .iter()
                    .filter(|a| rules.address(**a) != nullspace_egress::Verdict::Deny)
                    .partition(|a| rules.may_open(**a));
                admitted.retain(|a| rules.address(*a) == nullspace_egress::Verdict::Allow);
                let known = |a: &Ipv4Addr| {
                    machine
                        .confirmed
                        .get(&(name.clone(), *a))
                        .is_some_and(|until| *until > now)
                };
                if by_name.iter().all(known) {
                    admitted.extend(by_name);
                    return Some(admitted);
                }
                addresses = by_name;
                (rules, admitted)
            };
            let (rules, mut admitted) = rules;
            let opened = self.ask(source, name.clone(), addresses, seconds).await?;
            let mut machines = lock(&self.0.machines);
            // Rules that changed meanwhile may know nothing of this.
            let machine = machines
                .get_mut(&source)
                .filter(|machine| Arc::ptr_eq(&machine.rules, &rules))?;
            if machine.confirmed.len() + opened.len() > MAX_CONFIRMED {
                machine.confirmed.retain(|_, until| *until > now);
            }
            for address in &opened {
                if machine.confirmed.len() < MAX_CONFIRMED {
                    machine
                        .confirmed
                        .insert((name.clone(), *address), now + CONFIRMED);
                }
            }
            admitted.extend(opened);
            Some(admitted)
        })
    }
}

async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read(mut reader: OwnedReadHalf, shared: Arc<Shared>, stage: watch::Sender<Stage>) {
    let mut buffer = Vec::new();
    'over: loop {
        match reader.read_buf(&mut buffer).await {
            Ok(length) if length > 0 => {}
            _ => break,
        }
        loop {
            match control::take(&mut buffer) {
                Ok(Some(message)) => shared.hear(message, &stage).await,
                Ok(None) => break,
                Err(_) => break 'over,
            }
        }
    }
    stage.send_replace(Stage::Over);
}

impl Shared {
    async fn hear(&self, message: ToResolver, stage: &watch::Sender<Stage>) {
        match message {
            ToResolver::Policy {
                serial,
                source,
                rules,
            } => {
                {
                    let mut machines = lock(&self.machines);
                    match rules {
                        None => drop(machines.remove(&source)),
                        Some(rules) => {
                            // What was confirmed was so under the old rules; what was denied is to be told.
                            let denied = machines.remove(&source).map(|old| old.denied);
                            let machine = Machine {
                                rules: Arc::from(rules),
                                confirmed: HashMap::new(),
                                denied: denied.unwrap_or_default(),
                            };
                            machines.insert(source, machine);
                        }
                    }
                }
                if serial != 0 {
                    let done = control::line(&FromResolver::Done { serial });
                    let _ = self.out.send(done).await;
                }
            }
            ToResolver::Ready => drop(stage.send_replace(Stage::Ready)),
            ToResolver::Opened { serial, addresses } => {
                if let Some(waiting) = lock(&self.waiting).remove(&serial) {
                    let _ = waiting.send(addresses);
                }
            }
        }
    }
}

/// Tells the launcher of denied names, as long as there is somebody to be answered.
async fn tell_denied(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(TELL).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let denied: Vec<Vec<u8>> = lock(&shared.machines)
            .iter_mut()
            .flat_map(|(source, machine)| {
                let source = *source;
                machine.denied.drain().map(move |(name, count)| {
                    control::line(&FromResolver::Denied {
                        source,
                        name,
                        count,
                    })
                })
            })
            .collect();
        for line in denied {
            // Counts are of use to people; questions of machines come first.
            let _ = shared.out.try_send(line);
        }
    }
}

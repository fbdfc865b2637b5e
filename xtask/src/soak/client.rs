//! One caller: it does one thing after the other, as its random numbers say, and knows what it has.

use std::{
    collections::BTreeSet,
    rc::Rc,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Shared,
    api::{Api, Stop, wrong},
    losses::Loss,
    machines::{From, New},
    model::{Inside, Kind, Own, State},
    volumes::Mounted,
};

/// Of each of these a client has at most so many.
const MACHINES: usize = 3;
const SNAPSHOTS: usize = 2;
const VOLUMES: usize = 2;
const TEMPLATES: usize = 2;
const DEPLOYMENTS: usize = 2;

/// Something to do. All that it takes to do it again is in it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Make(New),
    /// Write a first file and start the process that must stay.
    Furnish(String, u64),
    Write(String, String),
    Hibernate(String),
    Resume(String),
    /// A command in one that sleeps.
    Wake(String),
    Destroy(String),
    Snapshot {
        machine: String,
        key: String,
    },
    DeleteSnapshot(String),
    CreateVolume(String),
    WriteVolume(String, String),
    Attach {
        volume: String,
        machine: String,
    },
    WriteMounted(Mounted),
    Detach(String),
    DeleteVolume(String),
    Build {
        name: String,
        version: u64,
    },
    Pull {
        name: String,
        version: u64,
    },
    DeleteTemplate(String),
    Deploy {
        name: String,
        version: u64,
    },
    Run {
        name: String,
        key: String,
    },
    DeleteDeployment(String),
    Collect,
}

impl Op {
    fn kind(&self) -> Kind {
        match self {
            Self::Make(new) => match new.from {
                From::Base => Kind::Create,
                From::Pool => Kind::Checkout,
                From::Template(_) => Kind::CreateFromTemplate,
                From::Snapshot(_) => Kind::CreateFromSnapshot,
                From::Fork(_) => Kind::Fork,
            },
            Self::Furnish(..) => Kind::Furnish,
            Self::Write(..) => Kind::Write,
            Self::Hibernate(_) => Kind::Hibernate,
            Self::Resume(_) => Kind::Resume,
            Self::Wake(_) => Kind::Wake,
            Self::Destroy(_) => Kind::Destroy,
            Self::Snapshot { .. } => Kind::Snapshot,
            Self::DeleteSnapshot(_) => Kind::DeleteSnapshot,
            Self::CreateVolume(_) => Kind::CreateVolume,
            Self::WriteVolume(..) => Kind::WriteVolume,
            Self::Attach { .. } => Kind::Attach,
            Self::WriteMounted(_) => Kind::WriteMounted,
            Self::Detach(_) => Kind::Detach,
            Self::DeleteVolume(_) => Kind::DeleteVolume,
            Self::Build { .. } => Kind::Build,
            Self::Pull { .. } => Kind::Pull,
            Self::DeleteTemplate(_) => Kind::DeleteTemplate,
            Self::Deploy { .. } => Kind::Deploy,
            Self::Run { .. } => Kind::Run,
            Self::DeleteDeployment(_) => Kind::DeleteDeployment,
            Self::Collect => Kind::Collect,
        }
    }
}

pub(crate) struct Client {
    pub(crate) number: u32,
    pub(crate) shared: Rc<Shared>,
    /// With a key of its own where each is a tenant.
    pub(crate) api: Api,
    pub(crate) rng: StdRng,
    pub(crate) own: Own,
    /// What was begun and not answered.
    pub(crate) cut: Option<Op>,
    /// The snapshots that it had when the round began.
    pub(crate) had: BTreeSet<String>,
    /// Counts names and keys.
    next: u64,
    /// In this round the launcher was killed, or the disk was full: what was under way may have failed.
    pub(crate) is_lossy: bool,
}

impl Client {
    pub(crate) fn new(number: u32, seed: u64, shared: Rc<Shared>, api: Api) -> Self {
        Self {
            number,
            shared,
            api,
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(u64::from(number))),
            own: Own::default(),
            cut: None,
            had: BTreeSet::new(),
            next: 0,
            is_lossy: false,
        }
    }

    /// A number that nothing else has, and that is long enough for a process that sleeps for so many seconds.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        (u64::from(self.number) + 1) * 1_000_000 + self.next
    }

    pub(crate) fn name(&mut self, what: &str) -> String {
        format!("soak-{what}-{}", self.number())
    }

    pub(crate) fn note(&self, line: impl AsRef<str>) {
        self.shared
            .history
            .note(format!("client {}: {}", self.number, line.as_ref()));
    }

    /// Does one thing after the other until it is told to stop, or the server is gone.
    pub(crate) async fn work(&mut self) -> Result<(), Stop> {
        self.is_lossy = false;
        self.had = self.own.snapshots.keys().cloned().collect();
        while !self.shared.is_over.get() {
            self.tell_what_runs();
            let op = self.choose();
            let kind = op.kind();
            self.note(format!("begins {op:?}"));
            self.shared.under_way.borrow_mut().insert(self.number, kind);
            let began = Instant::now();
            let done = self.perform(&op, false).await;
            self.shared.under_way.borrow_mut().remove(&self.number);
            match done {
                Ok(()) => {
                    self.note(format!("done {op:?}"));
                    let mut times = self.shared.times.borrow_mut();
                    let (sum, count) = times.entry(kind).or_default();
                    *sum += began.elapsed();
                    *count += 1;
                }
                Err(Stop::Cut) => {
                    self.note(format!("cut {op:?}"));
                    self.cut = Some(op);
                    return Ok(());
                }
                Err(stop) => return Err(stop),
            }
        }
        Ok(())
    }

    /// For whoever chooses a machine to end: what is this one's is lent out while it works.
    fn tell_what_runs(&self) {
        let machines = self.own.machines.iter();
        let running = machines.filter(|(_, machine)| machine.state == State::Running);
        let running = running.map(|(id, _)| id.clone()).collect();
        let mut all = self.shared.running.borrow_mut();
        all.insert(self.number, running);
    }

    /// Finds out what became of what was cut off, and looks at everything that there must be.
    pub(crate) async fn recover(&mut self, loss: &Loss) -> Result<(), Stop> {
        self.is_lossy = matches!(loss, Loss::Machines | Loss::Writes);
        match loss {
            Loss::Nothing => {}
            // A server that lost its launcher needs a moment to see it.
            Loss::Machines => self.bury().await?,
            Loss::Machine(id) => self.mourn(id).await?,
            Loss::Writes => self.sift().await?,
        }
        if let Some(op) = self.cut.take() {
            match self.perform(&op, true).await {
                Ok(()) => self.note(format!("after all {op:?}")),
                Err(Stop::Cut) => return wrong(format!("the server is gone, again, at {op:?}")),
                Err(stop) => return Err(stop),
            }
        }
        if *loss == Loss::Writes {
            // What that found may have been made while there was no room.
            self.sift().await?;
            self.drop_young_snapshots().await?;
        }
        self.look().await
    }

    async fn look(&mut self) -> Result<(), Stop> {
        for id in self.own.machines.keys().cloned().collect::<Vec<_>>() {
            self.look_at_machine(&id).await?;
        }
        for id in self.own.volumes.keys().cloned().collect::<Vec<_>>() {
            self.look_at_volume(&id).await?;
        }
        for name in self.own.deployments.keys().cloned().collect::<Vec<_>>() {
            self.look_at_deployment(&name).await?;
        }
        Ok(())
    }

    pub(crate) async fn delete_all(&mut self) -> Result<(), Stop> {
        for id in self.own.machines.keys().cloned().collect::<Vec<_>>() {
            self.perform(&Op::Destroy(id), false).await?;
        }
        for id in self.own.snapshots.keys().cloned().collect::<Vec<_>>() {
            self.perform(&Op::DeleteSnapshot(id), false).await?;
        }
        for id in self.own.volumes.keys().cloned().collect::<Vec<_>>() {
            self.perform(&Op::DeleteVolume(id), false).await?;
        }
        for name in self.own.templates.keys().cloned().collect::<Vec<_>>() {
            self.perform(&Op::DeleteTemplate(name), false).await?;
        }
        for name in self.own.deployments.keys().cloned().collect::<Vec<_>>() {
            self.perform(&Op::DeleteDeployment(name), false).await?;
        }
        Ok(())
    }

    /// Does something, or does it again of which nobody knows whether it was done.
    async fn perform(&mut self, op: &Op, again: bool) -> Result<(), Stop> {
        match op {
            Op::Make(new) => self.make(new, again).await,
            Op::Furnish(id, number) => self.furnish(id, *number).await,
            Op::Write(id, file) => self.write(id, file).await,
            Op::Hibernate(id) => self.hibernate(id, again).await,
            Op::Resume(id) => self.resume(id, again).await,
            Op::Wake(id) => self.wake(id).await,
            Op::Destroy(id) => self.destroy(id, again).await,
            Op::Snapshot { machine, key } => self.snapshot(machine, key, again).await,
            Op::DeleteSnapshot(id) => self.delete_snapshot(id, again).await,
            Op::CreateVolume(name) => self.create_volume(name, again).await,
            Op::WriteVolume(id, file) => self.write_volume(id, file).await,
            Op::Attach { volume, machine } => self.attach(volume, machine, again).await,
            Op::WriteMounted(mounted) => self.write_mounted(mounted).await,
            Op::Detach(volume) => self.detach(volume, again).await,
            Op::DeleteVolume(id) => self.delete_volume(id, again).await,
            Op::Build { name, version } => self.build(name, *version, again).await,
            Op::Pull { name, version } => self.pull(name, *version, again).await,
            Op::DeleteTemplate(name) => self.delete_template(name, again).await,
            Op::Deploy { name, version } => self.deploy(name, *version).await,
            Op::Run { name, key } => self.run(name, key).await,
            Op::DeleteDeployment(name) => self.delete_deployment(name, again).await,
            Op::Collect => self.collect().await,
        }
    }

    /// What to do next, of all that can be done.
    fn choose(&mut self) -> Op {
        let mut all: Vec<(u32, Op)> = Vec::new();
        let tag = self.name("machine");
        let file = format!("f{}", self.number());
        let number = self.number();
        let own = &self.own;
        if own.machines.len() < MACHINES {
            let mut make = |weight, from| {
                let inside = match &from {
                    From::Template(name) => own.templates.get(name).map(|template| Inside {
                        files: template.files.clone(),
                        ..Inside::default()
                    }),
                    From::Snapshot(id) => own.snapshots.get(id).cloned(),
                    From::Fork(id) => own.machines.get(id).map(|machine| machine.inside.clone()),
                    From::Base | From::Pool => None,
                };
                let tag = match &from {
                    // It has the metadata of the other.
                    From::Fork(id) => own.machines.get(id).map(|machine| machine.tag.clone()),
                    _ => None,
                }
                .unwrap_or_else(|| tag.clone());
                let new = New {
                    key: format!("{tag}-{number}"),
                    tag,
                    from,
                    inside: inside.unwrap_or_default(),
                };
                all.push((weight, Op::Make(new)));
            };
            make(6, From::Base);
            if self.shared.pool.borrow().is_some() {
                make(6, From::Pool);
            }
            for name in own.templates.keys() {
                make(3, From::Template(name.clone()));
            }
            for id in own.snapshots.keys() {
                make(4, From::Snapshot(id.clone()));
            }
            for (id, machine) in &own.machines {
                if self.shared.keeps_memory
                    && machine.state == State::Running
                    && !own.has_volume(id)
                {
                    make(3, From::Fork(id.clone()));
                }
            }
        }
        for (id, machine) in &own.machines {
            let id = id.clone();
            match machine.state {
                State::Running => {
                    if machine.inside.process.is_none() {
                        all.push((8, Op::Furnish(id.clone(), number)));
                    }
                    all.push((2, Op::Write(id.clone(), file.clone())));
                    all.push((3, Op::Hibernate(id.clone())));
                    if self.shared.keeps_memory
                        && own.snapshots.len() < SNAPSHOTS
                        && !own.has_volume(&id)
                    {
                        let key = format!("{}-s-{number}", machine.tag);
                        all.push((
                            3,
                            Op::Snapshot {
                                machine: id.clone(),
                                key,
                            },
                        ));
                    }
                }
                State::Standing | State::Kept => {
                    all.push((4, Op::Resume(id.clone())));
                    all.push((4, Op::Wake(id.clone())));
                }
            }
            let weight = if own.machines.len() < MACHINES { 1 } else { 4 };
            all.push((weight, Op::Destroy(id)));
        }
        for id in own.snapshots.keys() {
            all.push((1, Op::DeleteSnapshot(id.clone())));
        }
        if own.volumes.len() < VOLUMES {
            all.push((2, Op::CreateVolume(tag.replace("machine", "volume"))));
        }
        for (id, volume) in &own.volumes {
            all.push((2, Op::WriteVolume(id.clone(), file.clone())));
            match &volume.mount {
                None => {
                    all.push((1, Op::DeleteVolume(id.clone())));
                    for (machine, _) in own
                        .machines
                        .iter()
                        .filter(|(_, m)| m.state == State::Running)
                    {
                        let machine = machine.clone();
                        all.push((
                            3,
                            Op::Attach {
                                volume: id.clone(),
                                machine,
                            },
                        ));
                    }
                }
                Some((machine, _))
                    if own
                        .machines
                        .get(machine)
                        .is_some_and(|m| m.state == State::Running) =>
                {
                    all.push((2, Op::Detach(id.clone())));
                    let mounted = Mounted {
                        volume: id.clone(),
                        machine: machine.clone(),
                        file: file.clone(),
                    };
                    all.push((2, Op::WriteMounted(mounted)));
                }
                Some(_) => {}
            }
        }
        if own.templates.len() < TEMPLATES {
            let name = tag.replace("machine", "template");
            all.push((
                3,
                Op::Build {
                    name: name.clone(),
                    version: number,
                },
            ));
            if self.shared.registry.is_some() {
                all.push((
                    3,
                    Op::Pull {
                        name: name.replace("template", "image"),
                        version: number,
                    },
                ));
            }
        }
        for name in own.templates.keys() {
            let name = name.clone();
            let version = number;
            match name.starts_with("soak-template") {
                true => all.push((
                    2,
                    Op::Build {
                        name: name.clone(),
                        version,
                    },
                )),
                false => all.push((
                    1,
                    Op::Pull {
                        name: name.clone(),
                        version,
                    },
                )),
            }
            all.push((1, Op::DeleteTemplate(name)));
        }
        if own.deployments.len() < DEPLOYMENTS {
            let name = tag.replace("machine", "agent");
            all.push((
                3,
                Op::Deploy {
                    name,
                    version: number,
                },
            ));
        }
        for name in own.deployments.keys() {
            let name = name.clone();
            let key = format!("{name}-r-{number}");
            all.push((
                3,
                Op::Run {
                    name: name.clone(),
                    key,
                },
            ));
            all.push((
                2,
                Op::Deploy {
                    name: name.clone(),
                    version: number,
                },
            ));
            all.push((1, Op::DeleteDeployment(name)));
        }
        all.push((1, Op::Collect));
        let sum: u32 = all.iter().map(|(weight, _)| *weight).sum();
        let mut at = self.rng.random_range(0..sum);
        for (weight, op) in all {
            if at < weight {
                return op;
            }
            at -= weight;
        }
        Op::Collect
    }
}

/// Asks until what is there satisfies the condition.
pub(crate) async fn until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>, Stop>,
) -> Result<T, Stop> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return wrong(format!("{what}: not in two minutes"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

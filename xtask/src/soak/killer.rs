//! What happens to the server while clients work: when, to what, and what must hold after it.

use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Shared,
    api::{Stop, wrong},
    client::Client,
    delete_pool,
    losses::Loss,
    make_pool,
    model::Kind,
    server::Server,
    whole,
};

/// One in so many kills hits the launcher too or alone.
const LAUNCHER: u32 = 16;
/// One in so many of the other rounds hits a machine, as many the disk, and as many the clock.
const OTHER: u32 = 12;
/// One in so many starts is killed as well.
const START: u32 = 8;
/// How long the disk is full.
const FULL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// How often it is looked whether there is room again, because something was deleted.
const REFILL: Duration = Duration::from_millis(20);
/// How far the clock may be from the right time, in seconds. No limit that a client sets is as short.
const JUMP: i64 = 3000;

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Serve,
    Launcher,
    Both,
    /// The processes of a machine.
    Guest,
    /// All the room on it.
    Disk,
    Clock,
}

pub(crate) struct Killer {
    shared: Rc<Shared>,
    rng: StdRng,
    pub(crate) kills: u32,
    launchers: u32,
    guests: u32,
    starts: u32,
    disks: u32,
    clocks: u32,
}

impl Killer {
    pub(crate) fn new(shared: Rc<Shared>, seed: u64) -> Self {
        Self {
            shared,
            rng: StdRng::seed_from_u64(seed ^ 0x6b69_6c6c),
            kills: 0,
            launchers: 0,
            guests: 0,
            starts: 0,
            disks: 0,
            clocks: 0,
        }
    }

    pub(crate) async fn round(
        &mut self,
        server: &mut Server,
        clients: &mut [Client],
    ) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let aim = self.aim(server);
        // A full disk ends no launcher.
        let launcher = match aim {
            Aim::Disk => server.host.launcher(),
            _ => None,
        };
        shared.is_over.set(false);
        shared.api.calm();
        let work = join_all(clients.iter_mut().map(Client::work));
        let strike = async {
            let struck = self.strike(server, aim).await;
            shared.is_over.set(true);
            struck
        };
        let (worked, struck) = tokio::join!(work, strike);
        let (loss, is_down) = struck?;
        worked.into_iter().collect::<Result<Vec<()>, Stop>>()?;
        if is_down {
            self.start(server).await?;
        }
        shared.api.calm();
        // One that starts has a launcher before it is ready.
        if loss == Loss::Writes || (loss == Loss::Machines && !is_down) {
            server.until_makes(&shared.api).await?;
        }
        if launcher.is_some() && server.host.launcher() != launcher {
            return wrong("the launcher ended when the disk was full");
        }
        shared.history.note("up again");
        let recovered = join_all(clients.iter_mut().map(|client| client.recover(&loss))).await;
        recovered.into_iter().collect::<Result<Vec<()>, Stop>>()?;
        if loss == Loss::Writes {
            // What waits in it may have a file system that broke.
            delete_pool(&shared).await?;
            make_pool(&shared).await?;
        }
        whole::settled(&shared, server, clients, shared.waiting()).await
    }

    fn aim(&mut self, server: &Server) -> Aim {
        match self.rng.random_range(0..LAUNCHER * 2) {
            0 => return Aim::Launcher,
            1 => return Aim::Both,
            _ => {}
        }
        match self.rng.random_range(0..OTHER) {
            0 => Aim::Guest,
            1 if server.disk.is_some() => Aim::Disk,
            2 if server.clock.is_some() => Aim::Clock,
            _ => Aim::Serve,
        }
    }

    /// Waits for its moment and does it: what may be lost by that, and whether the server is to be started.
    async fn strike(&mut self, server: &mut Server, aim: Aim) -> Result<(Loss, bool), Stop> {
        // Until each has begun, so that there is something to choose among.
        tokio::task::yield_now().await;
        let moment = self.moment();
        tokio::time::sleep(moment).await;
        // From here on nobody else gets to do anything until it is done.
        let victim = match aim {
            Aim::Guest => self.victim().filter(|id| server.kill_machine(id)),
            _ => None,
        };
        let aim = match victim {
            None if aim == Aim::Guest => Aim::Serve,
            _ => aim,
        };
        if !matches!(aim, Aim::Serve | Aim::Clock) {
            self.shared.api.disturb();
        }
        self.shared.hit();
        let names: Vec<&str> = self
            .shared
            .under_way
            .borrow()
            .values()
            .map(|kind| kind.name())
            .collect();
        let of = victim.as_deref().unwrap_or_default();
        self.shared.history.note(format!(
            "kill {aim:?} {of} after {moment:.0?}, under way {names:?}"
        ));
        Ok(match aim {
            Aim::Serve => {
                self.kill(server);
                (Loss::Nothing, true)
            }
            Aim::Launcher => {
                self.kill_launcher(server);
                (Loss::Machines, false)
            }
            Aim::Both => {
                self.kill(server);
                self.kill_launcher(server);
                (Loss::Machines, true)
            }
            Aim::Guest => {
                self.kills += 1;
                self.guests += 1;
                (victim.map_or(Loss::Nothing, Loss::Machine), false)
            }
            Aim::Disk => (Loss::Writes, self.fill(server).await?),
            Aim::Clock => (Loss::Nothing, self.jump(server).await?),
        })
    }

    fn kill(&mut self, server: &mut Server) {
        server.kill();
        self.kills += 1;
    }

    fn kill_launcher(&mut self, server: &mut Server) {
        server.kill_launcher();
        self.kills += 1;
        self.launchers += 1;
    }

    /// Takes all the room on the disk and gives it back. Whether the server was killed just before it got that.
    async fn fill(&mut self, server: &mut Server) -> Result<bool, Stop> {
        let Some(disk) = &server.disk else {
            return Ok(false);
        };
        let failed = |error: io::Error| Stop::Wrong(format!("filling the disk: {error}"));
        let mut filler = disk.filler().map_err(failed)?;
        self.disks += 1;
        let (least, most) = FULL;
        let end = Instant::now() + self.rng.random_range(least..most);
        while Instant::now() < end {
            filler.grow().map_err(failed)?;
            tokio::time::sleep(REFILL).await;
        }
        let is_killed = self.rng.random();
        if is_killed {
            self.kill(server);
        }
        drop(filler);
        self.shared
            .history
            .note(format!("the disk has room again, kill before: {is_killed}"));
        Ok(is_killed)
    }

    /// Sets the clock, and after a while the server may be killed: whether it was.
    async fn jump(&mut self, server: &mut Server) -> Result<bool, Stop> {
        let Some(clock) = &server.clock else {
            return Ok(false);
        };
        let seconds = self.rng.random_range(-JUMP..=JUMP);
        clock
            .jump(seconds)
            .or_else(|error| wrong(format!("setting the clock: {error}")))?;
        self.clocks += 1;
        let moment = self.moment();
        tokio::time::sleep(moment).await;
        let is_killed = self.rng.random();
        if is_killed {
            self.kill(server);
        }
        self.shared.history.note(format!(
            "the clock was set to {seconds:+} s, kill after: {is_killed}"
        ));
        Ok(is_killed)
    }

    /// Starts the server, at times in the second attempt.
    async fn start(&mut self, server: &mut Server) -> Result<(), Stop> {
        if self.rng.random_range(0..START) == 0 {
            let moment = self.rng.random_range(Duration::ZERO..server.start_time());
            server.begin()?;
            tokio::time::sleep(moment).await;
            self.shared
                .history
                .note(format!("kill while it starts, after {moment:.0?}"));
            self.kill(server);
            self.starts += 1;
        }
        server.begin()?;
        server.until_ready().await
    }

    /// A machine that runs and that nobody puts to sleep or ends just now: it must be found lost.
    fn victim(&mut self) -> Option<String> {
        let under_way = self.shared.under_way.borrow();
        let running = self.shared.running.borrow();
        let all: Vec<&String> = running
            .iter()
            .filter(|(client, _)| {
                !matches!(
                    under_way.get(*client),
                    Some(Kind::Hibernate | Kind::Destroy)
                )
            })
            .flat_map(|(_, machines)| machines)
            .collect();
        if all.is_empty() {
            return None;
        }
        Some(all[self.rng.random_range(0..all.len())].clone())
    }

    /// When to kill: at any moment of what one of the clients is doing, or a little later.
    fn moment(&mut self) -> Duration {
        let under_way: Vec<Kind> = self.shared.under_way.borrow().values().copied().collect();
        let time = match under_way.is_empty() {
            true => Duration::from_millis(300),
            false => self
                .shared
                .time(under_way[self.rng.random_range(0..under_way.len())]),
        };
        // At times it gets to what comes next.
        let times = if self.rng.random_range(0..3) == 0 {
            4.0
        } else {
            1.1
        };
        time.mul_f64(times * self.rng.random::<f64>())
    }

    pub(crate) fn line(&self) -> String {
        let hits = self.shared.hits.borrow();
        let hits: Vec<String> = hits
            .iter()
            .map(|(kind, count)| format!("{} {count}", kind.name()))
            .collect();
        format!(
            "{} operations, {} kills ({} of the launcher, {} of a machine, {} during a start), \
             {} full disks, {} clock jumps; under way: {}",
            self.shared.operations(),
            self.kills,
            self.launchers,
            self.guests,
            self.starts,
            self.disks,
            self.clocks,
            hits.join(", ")
        )
    }
}

//! `cargo xtask soak`: a real server is killed again and again, in the middle of whatever it is doing, and what it
//! answered must hold.
//!
//! ```text
//!  round:  clients work ──▶ kill -9 (serve, at times the launcher) ──▶ start
//!            ──▶ each client asks again for what it has no answer to, and looks at all that is its own
//!            ──▶ the record, the kernel and the disk have that, and nothing else
//!  end:    everything is deleted ──▶ nothing is left on the host
//! ```
//! What is asked for follows from the seed; what is under way when the kill comes also from how fast this host is. A
//! violation ends the soak with an error: it says what happened to the thing in question, and keeps the data directory.
//!
//! What must hold is in `docs/design/`. A killed server: nothing acknowledged is lost or changed, machines run on;
//! what was not acknowledged is there whole or not at all, and asked for again with the same key it is there once. A
//! killed launcher: its machines are lost, and their record says so; what is on the disk stays.

mod api;
mod client;
mod history;
#[allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "the view of the host that the system tests have"
)]
#[path = "../../../tests/system/host.rs"]
mod host;
mod machines;
mod model;
mod registry;
mod server;
mod templates;
mod volumes;
mod whole;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use http::Method;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use self::{
    api::{Api, Stop},
    client::Client,
    history::History,
    model::Kind,
    registry::Registry,
    server::Server,
};

/// What takes longer counts as so long when the moment of a kill is chosen.
const MOST: Duration = Duration::from_secs(5);
/// Machines that the pool keeps ready.
pub(crate) const POOL: u64 = 2;
/// One in so many kills hits the launcher too or alone.
const LAUNCHER: u32 = 16;
/// One in so many starts is killed as well.
const START: u32 = 8;

/// How long, and over what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Processes to kill.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// What is asked for follows from it; the time of day when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// The program under test; a debug build, made first, when absent.
    #[arg(long)]
    program: Option<PathBuf>,
    /// What its machines are made of: `native`, `gvisor` or `auto`.
    #[arg(long, default_value = "native")]
    isolation: String,
    /// Callers at once.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Where the data directory is made.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
}

/// What all parts of a soak see.
pub(crate) struct Shared {
    pub(crate) api: Api,
    pub(crate) history: History,
    /// Whether memory is kept on the disk, and machines can be branched.
    pub(crate) keeps_memory: bool,
    /// The warm pool.
    pub(crate) pool: RefCell<String>,
    /// Where images are.
    pub(crate) registry: Option<Registry>,
    /// Nothing new is begun.
    pub(crate) is_over: Cell<bool>,
    /// What each client does now.
    pub(crate) under_way: RefCell<BTreeMap<u32, Kind>>,
    /// How long each takes: sum and count of those that were answered.
    pub(crate) times: RefCell<BTreeMap<Kind, (Duration, u32)>>,
    /// Kills that came while it was under way.
    hits: RefCell<BTreeMap<Kind, u32>>,
}

impl Shared {
    /// How long something takes, as far as is known.
    fn time(&self, kind: Kind) -> Duration {
        let times = self.times.borrow();
        let known = times.get(&kind).map(|(sum, count)| *sum / *count);
        known.unwrap_or(Duration::from_millis(300)).min(MOST)
    }

    fn hit(&self) {
        for kind in self.under_way.borrow().values() {
            *self.hits.borrow_mut().entry(*kind).or_default() += 1;
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => {
            let built = std::process::Command::new("cargo")
                .args(["build", "--quiet", "--bin", "nullspace"])
                .status()?;
            anyhow::ensure!(built.success(), "the build failed");
            PathBuf::from("target/debug/nullspace")
        }
    };
    let program = program
        .canonicalize()
        .with_context(|| program.display().to_string())?;
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| since.as_secs())
    });
    println!("seed {seed}, isolation {}", args.isolation);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, soak(args, program, seed))
}

async fn soak(args: &Args, program: PathBuf, seed: u64) -> Result<()> {
    let began = Instant::now();
    let mut server = Server::start(program, &args.isolation, &args.dir).await?;
    let api = Api::new(server.address.clone());
    let shared = Rc::new(Shared {
        history: History::default(),
        keeps_memory: server.keeps_memory(&api).await?,
        api,
        pool: RefCell::default(),
        registry: Registry::start().await?,
        is_over: Cell::new(false),
        under_way: RefCell::default(),
        times: RefCell::default(),
        hits: RefCell::default(),
    });
    let mut clients: Vec<Client> = (0..args.clients)
        .map(|number| Client::new(number, seed, shared.clone()))
        .collect();
    let mut killer = Killer {
        shared: shared.clone(),
        rng: StdRng::seed_from_u64(seed ^ 0x6b69_6c6c),
        kills: 0,
        launchers: 0,
        starts: 0,
    };
    let outcome = async {
        make_pool(&shared).await?;
        while killer.kills < args.kills {
            killer.round(&mut server, &mut clients).await?;
            if killer.kills.is_multiple_of(25) {
                println!("{} after {:.0?}", killer.line(), began.elapsed());
            }
        }
        delete_all(&shared, &mut clients).await?;
        whole::settled(&shared, &mut server, &[], 0).await
    };
    let outcome = match outcome.await {
        Ok(()) => server
            .stop()
            .and_then(|()| whole::nothing_left(&server.data)),
        Err(stop) => Err(stop),
    };
    if let Err(stop) = outcome {
        let why = match &stop {
            Stop::Wrong(why) => why.clone(),
            Stop::Cut => "the server is gone without having been killed".to_owned(),
        };
        println!("{}", shared.history.about(&why));
        let kept = server.keep();
        bail!(
            "{why}\nseed {seed}, {}; data and logs are in {}",
            killer.line(),
            kept.display()
        );
    }
    println!(
        "{}, seed {seed}, {} in {:.0?}: nothing lost, nothing doubled, nothing left",
        args.isolation,
        killer.line(),
        began.elapsed()
    );
    Ok(())
}

async fn make_pool(shared: &Shared) -> Result<(), Stop> {
    let body = json!({
        "template_ref": "base", "name": "soak", "min_ready": POOL, "max_ready": POOL,
        "resources": {"vcpus": 1, "memory_mb": 256}, "stale_after_seconds": 86_400,
    });
    let made = shared
        .api
        .ask(Method::POST, "/v1/template-warm-pools", None, Some(body))
        .await?;
    *shared.pool.borrow_mut() = made.text("id")?;
    Ok(())
}

async fn delete_all(shared: &Shared, clients: &mut [Client]) -> Result<(), Stop> {
    for client in clients {
        client.delete_all().await?;
    }
    let pool = format!("/v1/template-warm-pools/{}", shared.pool.borrow());
    shared
        .api
        .ask(Method::DELETE, &pool, None, None)
        .await?
        .expect(&[200])?;
    let all = json!({"dry_run": false});
    shared
        .api
        .ask(Method::POST, "/v1/agent-gc", None, Some(all))
        .await?
        .expect(&[200])?;
    Ok(())
}

/// What a round does to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    Serve,
    Launcher,
    Both,
}

struct Killer {
    shared: Rc<Shared>,
    rng: StdRng,
    kills: u32,
    launchers: u32,
    starts: u32,
}

impl Killer {
    async fn round(&mut self, server: &mut Server, clients: &mut [Client]) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let aim = match self.rng.random_range(0..LAUNCHER * 2) {
            0 => Aim::Launcher,
            1 => Aim::Both,
            _ => Aim::Serve,
        };
        shared.is_over.set(false);
        shared.api.calm();
        let work = join_all(clients.iter_mut().map(Client::work));
        let kill = async {
            // Until each has begun, so that there is something to choose among.
            tokio::task::yield_now().await;
            let moment = self.moment();
            tokio::time::sleep(moment).await;
            if aim != Aim::Serve {
                shared.api.disturb();
            }
            shared.hit();
            let names: Vec<&str> = shared
                .under_way
                .borrow()
                .values()
                .map(|kind| kind.name())
                .collect();
            shared.history.note(format!(
                "kill {aim:?} after {moment:.0?}, under way {names:?}"
            ));
            if aim != Aim::Launcher {
                server.kill();
                self.kills += 1;
            }
            if aim != Aim::Serve {
                server.kill_launcher();
                self.kills += 1;
                self.launchers += 1;
            }
            shared.is_over.set(true);
            Ok::<_, Stop>(())
        };
        let (worked, killed) = tokio::join!(work, kill);
        killed?;
        worked.into_iter().collect::<Result<Vec<()>, Stop>>()?;
        if aim != Aim::Launcher {
            if self.rng.random_range(0..START) == 0 {
                let moment = self.rng.random_range(Duration::ZERO..server.start_time());
                server.begin()?;
                tokio::time::sleep(moment).await;
                shared
                    .history
                    .note(format!("kill while it starts, after {moment:.0?}"));
                server.kill();
                self.kills += 1;
                self.starts += 1;
            }
            server.begin()?;
            server.until_ready().await?;
        }
        shared.api.calm();
        if aim == Aim::Launcher {
            server.until_makes(&shared.api).await?;
        }
        shared.history.note("up again");
        let is_lossy = aim != Aim::Serve;
        let recovered = join_all(clients.iter_mut().map(|client| client.recover(is_lossy))).await;
        recovered.into_iter().collect::<Result<Vec<()>, Stop>>()?;
        let own: Vec<_> = clients.iter().map(|client| &client.own).collect();
        whole::settled(&shared, server, &own, POOL).await
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

    fn line(&self) -> String {
        let hits = self.shared.hits.borrow();
        let hits: Vec<String> = hits
            .iter()
            .map(|(kind, count)| format!("{} {count}", kind.name()))
            .collect();
        format!(
            "{} kills ({} of the launcher, {} during a start); under way: {}",
            self.kills,
            self.launchers,
            self.starts,
            hits.join(", ")
        )
    }
}

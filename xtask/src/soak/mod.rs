//! `cargo xtask soak`: a real server is killed again and again, in the middle of whatever it is doing, and what it
//! answered must hold.
//!
//! ```text
//!  round:  clients work ──▶ one of these ──▶ start, if it was killed
//!            ──▶ each client asks again for what it has no answer to, and looks at all that is its own
//!            ──▶ the record, the kernel and the disk have that, and nothing else
//!  end:    everything is deleted ──▶ nothing is left on the host
//! ```
//! What is asked for follows from the seed; what is under way when something happens comes also from how fast this host
//! is. A violation ends the soak with an error: it says what happened to the thing in question, and keeps the data directory.
//!
//! What must hold is in `docs/design/`, and depends on what is hit (`killer.rs`, `losses.rs`):
//!
//! - `serve` is killed: nothing acknowledged is lost or changed, machines and runs go on; what was not acknowledged is
//!   there whole or not at all, and asked for again with the same key it is there once.
//! - The launcher is killed: its machines are lost, and their record says so; what is on the disk stays.
//! - The processes of one machine are killed: it is lost, and its record says so. Nothing else is.
//! - The disk is full for a moment (`--disk`), and at times the server is killed then: what machines wrote may be lost
//!   (SECURITY.md), and one whose file system broke is deleted by who has it. All else holds as after a kill of `serve`,
//!   what was acknowledged of volumes too.
//! - The clock jumps (`--clock`), and at times the server is killed then: as after a kill of `serve`.
//!
//! With `--tenants` each client is a tenant of its own, which must be shown what is its own and nothing else. There is no
//! warm pool then: one is a tenant's too.

mod agents;
mod api;
mod client;
mod clock;
mod disk;
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
mod killer;
mod losses;
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
use http::Method;
use serde_json::json;

use self::{
    api::{Api, Stop},
    client::Client,
    history::History,
    killer::Killer,
    model::Kind,
    registry::Registry,
    server::Server,
};

/// What takes longer counts as so long when the moment of a kill is chosen.
const MOST: Duration = Duration::from_secs(5);
/// Machines that the pool keeps ready.
const POOL: u64 = 2;
/// How it goes is told whenever so many were killed.
const TOLD: u32 = 25;

/// How long, and over what.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often to kill something.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Goes on until so many operations were answered, however many kills that takes.
    #[arg(long)]
    operations: Option<u32>,
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
    /// It is on a file system of its own, of so many MB, which is full now and then. `base`, images and machines have to fit.
    #[arg(long, value_name = "MB")]
    disk: Option<u64>,
    /// The server is shown a clock that jumps now and then; needs libfaketime.
    #[arg(long)]
    clock: bool,
    /// Each client is a tenant of its own.
    #[arg(long)]
    tenants: bool,
}

/// What all parts of a soak see.
pub(crate) struct Shared {
    /// The operator's.
    pub(crate) api: Api,
    pub(crate) history: History,
    /// Whether memory is kept on the disk, and machines can be branched.
    pub(crate) keeps_memory: bool,
    /// Whether each client is a tenant.
    pub(crate) has_tenants: bool,
    /// The warm pool, while there is one.
    pub(crate) pool: RefCell<Option<String>>,
    /// Where images are.
    pub(crate) registry: Option<Registry>,
    /// Nothing new is begun.
    pub(crate) is_over: Cell<bool>,
    /// What each client does now.
    pub(crate) under_way: RefCell<BTreeMap<u32, Kind>>,
    /// The machines of each client that ran when it began what it does now.
    pub(crate) running: RefCell<BTreeMap<u32, Vec<String>>>,
    /// How long each takes: sum and count of those that were answered.
    pub(crate) times: RefCell<BTreeMap<Kind, (Duration, u32)>>,
    /// How often something was hit while it was under way.
    hits: RefCell<BTreeMap<Kind, u32>>,
}

impl Shared {
    /// How long something takes, as far as is known.
    fn time(&self, kind: Kind) -> Duration {
        let times = self.times.borrow();
        let known = times.get(&kind).map(|(sum, count)| *sum / *count);
        known.unwrap_or(Duration::from_millis(300)).min(MOST)
    }

    /// How many operations were answered.
    fn operations(&self) -> u32 {
        self.times.borrow().values().map(|(_, count)| count).sum()
    }

    /// How many machines wait for somebody to want them.
    fn waiting(&self) -> u64 {
        match *self.pool.borrow() {
            Some(_) => POOL,
            None => 0,
        }
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
    let mut server = Server::start(program, args).await?;
    let api = Api::new(server.address.clone());
    let shared = Rc::new(Shared {
        history: History::default(),
        keeps_memory: server.keeps_memory(&api).await?,
        api,
        has_tenants: args.tenants,
        pool: RefCell::default(),
        registry: Registry::start().await?,
        is_over: Cell::new(false),
        under_way: RefCell::default(),
        running: RefCell::default(),
        times: RefCell::default(),
        hits: RefCell::default(),
    });
    let mut killer = Killer::new(shared.clone(), seed);
    let outcome = async {
        let mut clients = make_clients(args, seed, &shared).await?;
        make_pool(&shared).await?;
        let is_enough = |killer: &Killer| match args.operations {
            Some(operations) => shared.operations() >= operations,
            None => killer.kills >= args.kills,
        };
        while !is_enough(&killer) {
            let before = killer.kills;
            killer.round(&mut server, &mut clients).await?;
            if killer.kills / TOLD > before / TOLD {
                println!("{} after {:.0?}", killer.line(), began.elapsed());
            }
        }
        delete_all(&shared, &mut clients).await?;
        whole::settled(&shared, &mut server, &clients, 0).await
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

async fn make_clients(args: &Args, seed: u64, shared: &Rc<Shared>) -> Result<Vec<Client>, Stop> {
    let mut clients = Vec::new();
    for number in 0..args.clients {
        let api = match args.tenants {
            true => shared.api.with_key(make_tenant(&shared.api, number).await?),
            false => shared.api.clone(),
        };
        clients.push(Client::new(number, seed, shared.clone(), api));
    }
    Ok(clients)
}

/// A key of a new one.
async fn make_tenant(operator: &Api, number: u32) -> Result<String, Stop> {
    let name = format!("soak-{number}");
    let body = json!({"name": name});
    let made = operator.ask(Method::POST, "/v1/tenants", None, Some(body));
    made.await?.expect(&[201])?;
    let path = format!("/v1/tenants/{name}/keys");
    let body = json!({"scope": "write"});
    let made = operator.ask(Method::POST, &path, None, Some(body));
    made.await?.expect(&[201])?.text("key")
}

/// None where each client is a tenant: it would be one tenant's.
async fn make_pool(shared: &Shared) -> Result<(), Stop> {
    if shared.has_tenants {
        return Ok(());
    }
    let body = json!({
        "template_ref": "base", "name": "soak", "min_ready": POOL, "max_ready": POOL,
        "resources": {"vcpus": 1, "memory_mb": 256}, "stale_after_seconds": 86_400,
    });
    let made = shared
        .api
        .ask(Method::POST, "/v1/template-warm-pools", None, Some(body))
        .await?;
    *shared.pool.borrow_mut() = Some(made.text("id")?);
    Ok(())
}

async fn delete_pool(shared: &Shared) -> Result<(), Stop> {
    let Some(pool) = shared.pool.take() else {
        return Ok(());
    };
    let path = format!("/v1/template-warm-pools/{pool}");
    let gone = shared.api.ask(Method::DELETE, &path, None, None).await?;
    gone.expect(&[200])?;
    Ok(())
}

async fn delete_all(shared: &Shared, clients: &mut [Client]) -> Result<(), Stop> {
    for client in clients {
        client.delete_all().await?;
    }
    delete_pool(shared).await?;
    let all = json!({"dry_run": false});
    shared
        .api
        .ask(Method::POST, "/v1/agent-gc", None, Some(all))
        .await?
        .expect(&[200])?;
    Ok(())
}

//! `cargo xtask bench`: what a caller of the public HTTP API waits for, next to what the host's own
//! container tools take for the same, in one run on one machine.
//!
//! The server is the release build, in a data directory of its own. Peers are bare processes (`crun run`
//! and the like) over the same root file system; a peer that is not installed or does not work here is
//! left out with its reason. Ratios of medians are what counts: absolute times differ from host to host.
//!
//! crun refuses hosts that have cgroup v1 next to a v2 with controllers of its own. There, hide the latter:
//! `unshare --mount sh -c 'umount /sys/fs/cgroup/unified; cargo xtask bench'`.

mod agent;
mod api;
mod artifact;
mod crowd;
mod density;
mod follow;
mod gateway;
mod memory;
mod nginx;
mod peers;
mod pool;
mod rows;
mod service;
mod sleep;
mod socket;
mod ssh;
mod stream;
mod table;
mod template;
mod tree;
mod upload;
mod volume;
mod watch;
mod webhook;
mod wire;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Samples of each short measurement.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Only these groups of rows; all when absent.
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Group>,
    /// Idle machines for the density rows; 0 leaves those rows out.
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Where the results go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// The program under test; the release build, made first, when absent.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Group {
    /// Create, first command, delete.
    Create,
    /// A command in a live machine.
    Exec,
    /// Many machines asked for at once.
    Burst,
    /// A large file in and out.
    File,
    /// A run of an agent to its first line of output.
    Run,
    /// A project deployed.
    Deploy,
    /// Requests through the gateway to a service.
    Gateway,
    /// A service that moves to a new version under load.
    Service,
    /// Runs of what is already installed, and many at once.
    Artifact,
    /// A template built again.
    Template,
    /// A job's output on its way to a follower.
    Follow,
    /// Output and keys over a machine's WebSocket.
    Stream,
    /// Events on their way to a webhook.
    Webhook,
    /// Keys and files over SSH.
    Ssh,
    /// A large file in parts.
    Upload,
    /// Many files listed, much text searched.
    Tree,
    /// Machines that are stopped in place and go on.
    Sleep,
    /// Machines of gVisor: made, kept on the disk, woken, forked.
    Memory,
    /// A change of a file on its way to who watches.
    Watch,
    /// Volumes mounted, and written to.
    Volume,
    /// Machines of a warm pool, one by one and in a burst.
    Pool,
    /// Many terminals and WebSockets.
    Crowd,
    /// The server started on what is there.
    Restart,
    /// Many idle machines.
    Density,
}

impl Args {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// Goes on in the release build of this program: a client that is slow itself would be what is measured.
fn optimised() -> Result<()> {
    use std::os::unix::process::CommandExt;
    let built = std::process::Command::new("cargo")
        .args(["build", "--release", "--quiet", "--package", "xtask"])
        .status()?;
    ensure!(built.success(), "the release build failed");
    let error = std::process::Command::new("target/release/xtask")
        .args(std::env::args_os().skip(1))
        .exec();
    Err(error).context("target/release/xtask")
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        return optimised();
    }
    peers::hide_mixed_cgroups()?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => {
            let built = std::process::Command::new("cargo")
                .args(["build", "--release", "--quiet", "--bin", "nullspace"])
                .status()?;
            ensure!(built.success(), "the release build failed");
            PathBuf::from("target/release/nullspace")
        }
    };
    let program = program
        .canonicalize()
        .with_context(|| program.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut server = api::Server::start(program)
            .await
            .context("starting the server")?;
        let mut table = table::Table::default();
        let result = rows::all(args, &mut server, &mut table).await;
        server.stop().await;
        table.print();
        std::fs::write(&args.json, serde_json::to_vec_pretty(&table)?)?;
        println!("written to {}", args.json.display());
        result
    })
}

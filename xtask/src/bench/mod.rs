//! `cargo xtask bench`: what a caller of the public HTTP API waits for, next to what the host's own
//! container tools take for the same, in one run on one machine.
//!
//! The server is the release build, in a data directory of its own. Peers are bare processes (`crun run`
//! and the like) over the same root file system; a peer that is not installed or does not work here is
//! left out with its reason. Ratios of medians are what counts: absolute times differ from host to host.

mod api;
mod density;
mod peers;
mod rows;
mod table;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Samples of each short measurement.
    #[arg(long, default_value_t = 200)]
    samples: usize,
    /// Only rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Idle machines for the density rows; 0 leaves those rows out.
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Where the results go as JSON.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let built = std::process::Command::new("cargo")
        .args(["build", "--release", "--quiet", "--bin", "nullspace"])
        .status()?;
    ensure!(built.success(), "the release build failed");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut server = api::Server::start().await.context("starting the server")?;
        let mut table = table::Table::default();
        let result = rows::all(args, &mut server, &mut table).await;
        server.stop().await;
        table.print();
        std::fs::write(&args.json, serde_json::to_vec_pretty(&table)?)?;
        println!("written to {}", args.json.display());
        result
    })
}

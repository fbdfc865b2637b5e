//! Project tasks, one file per task: `cargo xtask <task>`.

mod bench;
mod check;
mod soak;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Project tasks")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure the server through its HTTP API, side by side with the host's container tools.
    Bench(bench::Args),
    /// Format, lint and licence checks: what CI runs before the tests.
    Check,
    /// Kill the server again and again in the middle of what it does: nothing may be lost, doubled or left behind.
    Soak(soak::Args),
}

fn main() -> anyhow::Result<()> {
    match Args::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Check => check::run(),
        Task::Soak(args) => soak::run(&args),
    }
}

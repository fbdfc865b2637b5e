//! `nullspace machine …`, also spelled `sandbox`: machines and what is in them.

mod code;
mod cp;
mod create;
mod egress;
pub(crate) mod exec;
mod file;
mod get;
mod git;
mod host;
mod kill;
mod list;
mod metrics;
mod preview_proxy_target;
mod preview_url;
mod process;
mod pty;
mod readiness;
mod state;
mod sync;
mod timeout;
mod upload;
mod url;
mod volume;

use clap::Subcommand;

use crate::app::App;
use crate::error::Outcome;

/// Make machines, run commands in them, move files.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a machine
    Create(Box<create::Args>),
    /// List machines
    List(list::Args),
    /// Show a machine
    Get(get::Args),
    /// Show what a machine uses
    Metrics(metrics::Args),
    /// Run a command in a machine
    Exec(exec::Args),
    /// End machines
    Kill(kill::Args),
    /// Processes that go on by themselves, and commands that are streamed
    Process(process::Args),
    /// Run code in kernels that keep its variables
    Code(code::Args),
    /// Terminals
    Pty(pty::Args),
    /// Publish a port, and print its host
    Host(host::Args),
    /// Publish a port, and print its URL
    Url(url::Args),
    /// URLs of ports that have their token in them
    PreviewUrl(preview_url::Args),
    /// Ports behind a proxy of your own
    PreviewProxyTarget(preview_proxy_target::Args),
    /// Let a key log in over SSH, and say how
    SshAccess(crate::commands::ssh::AccessArgs),
    /// What a machine may reach
    Egress(egress::Args),
    /// Copy files to or from a machine
    Cp(cp::Args),
    /// Make a directory of a machine like a local one
    Sync(sync::Args),
    /// Upload a file, a directory or standard input
    Upload(Box<upload::Args>),
    /// Read, write, find and watch files
    File(file::Args),
    /// Git repositories
    Git(git::Args),
    /// Volumes of a machine that runs
    Volume(volume::Args),
    /// Set how long a machine lives
    Timeout(timeout::Args),
    /// Stop a machine and keep its memory
    Hibernate(state::Hibernate),
    /// Let a hibernated machine go on
    Resume(state::Resume),
    /// Make a copy of a running machine
    Fork(state::Fork),
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Create(args) => create::run(&args, app).await,
        Command::List(args) => list::run(&args, app).await,
        Command::Get(args) => get::run(&args, app).await,
        Command::Metrics(args) => metrics::run(&args, app).await,
        Command::Exec(args) => exec::run(&args, app).await,
        Command::Kill(args) => kill::run(&args, app).await,
        Command::Process(args) => process::run(args, app).await,
        Command::Code(args) => code::run(args, app).await,
        Command::Pty(args) => pty::run(args, app).await,
        Command::Host(args) => host::run(&args, app).await,
        Command::Url(args) => url::run(&args, app).await,
        Command::PreviewUrl(args) => preview_url::run(args, app).await,
        Command::PreviewProxyTarget(args) => preview_proxy_target::run(args, app).await,
        Command::SshAccess(args) => crate::commands::ssh::access(&args, app).await,
        Command::Egress(args) => egress::run(args, app).await,
        Command::Cp(args) => cp::run(&args, app).await,
        Command::Sync(args) => sync::run(&args, app).await,
        Command::Upload(args) => upload::run(&args, app).await,
        Command::File(args) => file::run(args, app).await,
        Command::Git(args) => git::run(args, app).await,
        Command::Volume(args) => volume::run(args, app).await,
        Command::Timeout(args) => timeout::run(args, app).await,
        Command::Hibernate(args) => state::hibernate(&args, app).await,
        Command::Resume(args) => state::resume(&args, app).await,
        Command::Fork(args) => state::fork(&args, app).await,
    }
}

//! `nullspace agent …`: deployments and what they run.

mod cancel;
mod delete;
mod delete_version;
pub(crate) mod deploy;
mod dev;
mod diff;
mod gc;
mod get;
mod init;
mod list;
mod logs;
mod machine;
mod outputs;
mod restart;
mod rollback;
pub(crate) mod run;
mod shell;
mod status;
mod stop;
mod url;
mod versions;

use clap::Subcommand;

use crate::app::App;
use crate::error::Outcome;

/// Deploy a local agent project and run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a nullspace.agent.toml for a local project
    Init(init::Args),
    /// Bundle a local project and upload it as a new version
    Deploy(deploy::Args),
    /// Run a local project in a machine of its own, and again whenever it changes
    Dev(dev::Args),
    /// Run a job
    Run(run::Args),
    /// Show the log of a run or a service
    Logs(logs::Args),
    /// Show or download what a run left behind
    Outputs(outputs::Args),
    /// Show where a run or a service stands
    Status(status::Args),
    /// Compare two runs
    Diff(diff::Args),
    /// Show the machine behind a run or a service
    #[command(alias = "sandbox")]
    Machine(machine::Args),
    /// Run commands in the machine behind a run or a service
    Shell(shell::Args),
    /// Print where a service can be opened; start it if it never was
    Url(url::Args),
    /// Stop a service, or end a run
    Stop(stop::Args),
    /// Restart a service with the active version
    Restart(restart::Args),
    /// List deployments
    List(list::Args),
    /// Show a deployment
    Get(get::Args),
    /// Delete a deployment
    Delete(delete::Args),
    /// End a run
    Cancel(cancel::Args),
    /// List the versions of a deployment
    Versions(versions::Args),
    /// Make an earlier version the active one
    Rollback(rollback::Args),
    /// Delete a version
    DeleteVersion(delete_version::Args),
    /// Remove what nothing points at from the server
    Gc(gc::Args),
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Init(args) => init::run(&args, app),
        Command::Deploy(args) => deploy::run(&args, app).await,
        Command::Dev(args) => dev::run(&args, app).await,
        Command::Run(args) => run::run(&args, app).await,
        Command::Logs(args) => logs::run(&args, app).await,
        Command::Outputs(args) => outputs::run(&args, app).await,
        Command::Status(args) => status::run(&args, app).await,
        Command::Diff(args) => diff::run(&args, app).await,
        Command::Machine(args) => machine::run(&args, app).await,
        Command::Shell(args) => shell::run(&args, app).await,
        Command::Url(args) => url::run(&args, app).await,
        Command::Stop(args) => stop::run(&args, app).await,
        Command::Restart(args) => restart::run(&args, app).await,
        Command::List(args) => list::run(&args, app).await,
        Command::Get(args) => get::run(&args, app).await,
        Command::Delete(args) => delete::run(&args, app).await,
        Command::Cancel(args) => cancel::run(&args, app).await,
        Command::Versions(args) => versions::run(&args, app).await,
        Command::Rollback(args) => rollback::run(&args, app).await,
        Command::DeleteVersion(args) => delete_version::run(&args, app).await,
        Command::Gc(args) => gc::run(&args, app).await,
    }
}

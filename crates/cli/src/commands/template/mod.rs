//! `nullspace template …`: what machines start from.

mod build;
mod context;
mod history;
mod make;
mod name;
mod warm_pool;

use clap::Subcommand;

use crate::app::App;
use crate::error::Outcome;

/// Build what machines start from, and name it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a template
    Build(make::Args),
    /// Check a build without beginning it
    Validate(make::Args),
    /// Say what a build would do
    Plan(make::Args),
    /// List templates
    List(name::ListArgs),
    /// Show a template
    Get(name::GetArgs),
    /// Say whether a template is there
    Exists(name::One),
    /// Delete a template
    Delete(name::One),
    /// Give a template another name
    Rename(name::RenameArgs),
    /// Tags of a template
    Tag(name::TagArgs),
    /// Names that a template had
    Alias(name::AliasArgs),
    /// Who may use a template
    Visibility(name::VisibilityArgs),
    /// Keep a name for a quarter of an hour
    Reserve(name::One),
    /// Names that are kept
    Claim(name::ClaimArgs),
    /// Namespaces
    Namespace(name::NamespaceArgs),
    /// List the builds of a template
    Builds(history::BuildsArgs),
    /// Show where a build stands
    BuildStatus(history::StatusArgs),
    /// Show what a build said
    Logs(history::LogsArgs),
    /// Wait for a build
    Wait(history::WaitArgs),
    /// Stop a build
    Cancel(history::CancelArgs),
    /// Build again
    Retry(history::RetryArgs),
    /// Make a tag mean a build
    Promote(history::PromoteArgs),
    /// Machines that are made beforehand
    WarmPool(warm_pool::Args),
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Build(args) => build::build(&args, app).await,
        Command::Validate(args) => build::validate(&args, app).await,
        Command::Plan(args) => build::plan(&args, app).await,
        Command::List(args) => name::list(&args, app).await,
        Command::Get(args) => name::get(&args, app).await,
        Command::Exists(args) => name::exists(&args, app).await,
        Command::Delete(args) => name::delete(&args, app).await,
        Command::Rename(args) => name::rename(args, app).await,
        Command::Tag(args) => name::tag(args, app).await,
        Command::Alias(args) => name::alias(args, app).await,
        Command::Visibility(args) => name::visibility(args, app).await,
        Command::Reserve(args) => name::reserve(args, app).await,
        Command::Claim(args) => name::claim(args, app).await,
        Command::Namespace(args) => name::namespace(args, app).await,
        Command::Builds(args) => history::builds(args, app).await,
        Command::BuildStatus(args) => history::status(&args, app).await,
        Command::Logs(args) => history::logs(&args, app).await,
        Command::Wait(args) => history::wait(&args, app).await,
        Command::Cancel(args) => history::cancel(args, app).await,
        Command::Retry(args) => history::retry(args, app).await,
        Command::Promote(args) => history::promote(args, app).await,
        Command::WarmPool(args) => warm_pool::run(args, app).await,
    }
}

//! `nullspace machine timeout …`

use std::time::Duration;

use clap::Subcommand;
use nullspace_api::machine::TimeoutAction;

use crate::app::App;
use crate::error::Outcome;

/// How long a machine lives.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a machine's time limit, counted from now
    Set(Set),
}

/// Set a machine's time limit, counted from now. Always prints the machine as JSON.
#[derive(Debug, clap::Args)]
struct Set {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// How long it may live from now on.
    #[arg(long, value_name = "SECONDS")]
    seconds: u64,
    /// What happens then; as before when not said.
    #[arg(long, value_name = "ACTION", ignore_case = true, value_parser = ["destroy", "hibernate", "pause"])]
    action: Option<String>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let Command::Set(args) = args.command;
    let client = app.client()?;
    let limit = Duration::from_secs(args.seconds);
    let action = args.action.as_deref().map(action);
    client.set_timeout(&args.machine, limit, action).await?;
    app.ui.json(&client.get_machine(&args.machine).await?)?;
    Ok(0)
}

/// The parser lets only known words through.
pub(super) fn action(word: &str) -> TimeoutAction {
    match word.eq_ignore_ascii_case("destroy") {
        true => TimeoutAction::Destroy,
        false => TimeoutAction::Hibernate,
    }
}

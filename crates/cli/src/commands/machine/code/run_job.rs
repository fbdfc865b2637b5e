//! `nullspace machine code run-job …`

use std::time::Duration;

use clap::Subcommand;
use nullspace_api::code::{CreateCodeRunRequest, ListCodeRunsQuery};
use tokio::time::Instant;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;

/// Code that nobody waits for.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a run
    Create(Create),
    /// Show a run
    Get(One),
    /// List runs, newest first
    List(List),
    /// Cancel a run
    Cancel(One),
    /// Wait until a run ended, and show it
    Wait(Wait),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The context to run it in.
    #[arg(value_name = "CONTEXT", value_parser = crate::input::named)]
    context: String,
    /// The code; `@FILE` takes it from a file, `-` from standard input.
    #[arg(value_name = "CODE", allow_hyphen_values = true)]
    code: String,
    /// A variable for this run alone; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Seconds after which it is interrupted.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct One {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The run's id.
    #[arg(value_name = "RUN", value_parser = crate::input::named)]
    run: String,
}

#[derive(Debug, clap::Args)]
struct List {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Only these: queued, running, succeeded, failed or cancelled.
    #[arg(long)]
    status: Option<String>,
    /// Only those of this context.
    #[arg(long, value_name = "ID")]
    context_id: Option<String>,
    /// Runs of a page.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Go on after a page.
    #[arg(long)]
    cursor: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Wait {
    #[command(flatten)]
    one: One,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    poll_interval: f64,
    /// Seconds after which this is given up; the run goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0)]
    timeout: f64,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            let envs = input::pairs("--env", &args.env)?;
            let request = CreateCodeRunRequest {
                code: super::text(&args.code)?,
                context_id: args.context,
                envs: (!envs.is_empty()).then_some(envs),
                timeout: args.timeout,
            };
            app.ui
                .json(&client.create_code_run(&args.machine, &request).await?)?;
        }
        Command::Get(one) => app
            .ui
            .json(&client.get_code_run(&one.machine, &one.run).await?)?,
        Command::List(args) => {
            let query = ListCodeRunsQuery {
                status: args.status,
                context_id: args.context_id,
                limit: args.limit,
                cursor: args.cursor,
            };
            app.ui
                .json(&client.list_code_runs(&args.machine, &query).await?)?;
        }
        Command::Cancel(one) => app
            .ui
            .json(&client.cancel_code_run(&one.machine, &one.run).await?)?,
        Command::Wait(args) => {
            let seconds = |flag: &str, value: f64| {
                Duration::try_from_secs_f64(value)
                    .map_err(|_| CliError::usage(format!("{flag}: not a number of seconds")))
            };
            let pause = seconds("--poll-interval", args.poll_interval)?;
            let limit = seconds("--timeout", args.timeout)?;
            let start = Instant::now();
            loop {
                let run = client
                    .get_code_run(&args.one.machine, &args.one.run)
                    .await?;
                if run.status.has_ended() {
                    app.ui.json(&run)?;
                    break;
                }
                if start.elapsed() >= limit {
                    let text = format!("run {} has not ended after {} s", run.id, args.timeout);
                    return Err(CliError::new("timeout", text));
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    Ok(0)
}

//! `nullspace machine code context …`

use clap::Subcommand;
use nullspace_api::code::CreateContextRequest;

use crate::app::App;
use crate::error::Outcome;

/// Kernels with variables of their own.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a context
    Create(Create),
    /// List the contexts of a machine
    List(Of),
    /// Remove a context and end its kernel
    Remove(One),
    /// Begin with a fresh kernel
    Restart(One),
    /// Stop what runs
    Interrupt(One),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
}

#[derive(Debug, clap::Args)]
struct Create {
    #[command(flatten)]
    of: Of,
    /// Where its code starts.
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// python3, javascript or typescript.
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
}

#[derive(Debug, clap::Args)]
struct One {
    #[command(flatten)]
    of: Of,
    /// The context's id.
    #[arg(value_name = "CONTEXT", value_parser = crate::input::named)]
    context: String,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let client = app.client()?;
    match args.command {
        Command::Create(args) => {
            let request = CreateContextRequest {
                cwd: args.cwd,
                language: args.language,
            };
            let context = client
                .create_code_context(&args.of.machine, &request)
                .await?;
            app.ui.json(&context)?;
        }
        Command::List(args) => app
            .ui
            .json(&client.list_code_contexts(&args.machine).await?)?,
        Command::Remove(one) => {
            client
                .remove_code_context(&one.of.machine, &one.context)
                .await?;
        }
        Command::Restart(one) => {
            client
                .restart_code_context(&one.of.machine, &one.context)
                .await?;
        }
        Command::Interrupt(one) => {
            client
                .interrupt_code_context(&one.of.machine, &one.context)
                .await?;
        }
    }
    Ok(0)
}

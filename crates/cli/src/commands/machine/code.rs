//! `nullspace machine code …`: code in the kernels of a machine.

mod artifact;
mod context;
mod run_job;

use std::io::{Read as _, Write as _};

use clap::Subcommand;
use nullspace_api::code::{CodeResult, ExecuteCodeRequest, Execution, ExecutionEvent};

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::exit;
use crate::input;

/// Run code in the kernels of a machine, which must be made with the template code-interpreter.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run code and show what it gives
    Run(Run),
    /// Install Python packages for code to import
    Install(Install),
    /// Kernels with variables of their own
    Context(context::Args),
    /// Code that nobody waits for
    RunJob(run_job::Args),
    /// Files that came out of code
    Artifact(artifact::Args),
}

/// Run code and show what it gives. Exits with 1 when the code raised an error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine code run mch_123 'x = 41' && nullspace machine code run mch_123 'x + 1'
  nullspace machine code run mch_123 @report.py --env TOPIC=birds --timeout 600
  nullspace machine code run mch_123 --language javascript 'const a: number = 1; a + 1'

Without --context the code runs in the language's default context, whose variables stay.
Interrupting this program interrupts the code.")]
struct Run {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The code; `@FILE` takes it from a file, `-` from standard input.
    #[arg(value_name = "CODE", allow_hyphen_values = true)]
    code: String,
    /// python3, javascript or typescript.
    #[arg(long, value_name = "NAME")]
    language: Option<String>,
    /// The context to run it in.
    #[arg(long, value_name = "ID")]
    context: Option<String>,
    /// A variable for this code alone; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Seconds after which it is interrupted.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Install Python packages for code to import. Exits with 1 when that raised an error.
#[derive(Debug, clap::Args)]
struct Install {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Packages, as pip names them.
    #[arg(value_name = "PACKAGES", required = true)]
    packages: Vec<String>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Run(args) => {
            let envs = input::pairs("--env", &args.env)?;
            let request = ExecuteCodeRequest {
                code: text(&args.code)?,
                language: args.language,
                context_id: args.context,
                envs: (!envs.is_empty()).then_some(envs),
                timeout: args.timeout,
            };
            execute(&args.machine, &request, app).await
        }
        Command::Install(args) => {
            let request = ExecuteCodeRequest {
                code: format!("!pip install {}", args.packages.join(" ")),
                ..ExecuteCodeRequest::default()
            };
            execute(&args.machine, &request, app).await
        }
        Command::Context(args) => context::run(args, app).await,
        Command::RunJob(args) => run_job::run(args, app).await,
        Command::Artifact(args) => artifact::run(args, app).await,
    }
}

/// Code as it was given: itself, `@FILE`, or `-`.
fn text(code: &str) -> Result<String, CliError> {
    if code == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| CliError::local("cannot read standard input", &error))?;
        return Ok(text);
    }
    match code.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| CliError::local(format!("cannot read {path}"), &error)),
        None => Ok(code.to_owned()),
    }
}

/// What is printed comes as it is printed, values at the end; as JSON, all of it at the end.
async fn execute(machine: &str, request: &ExecuteCodeRequest, app: &App) -> Outcome {
    let mut events = app.client()?.execute_code(machine, request).await?;
    let mut execution = Execution::default();
    while let Some(event) = events.next().await? {
        match &event {
            _ if app.ui.json => {}
            ExecutionEvent::Stdout { text, .. } => app.ui.data(text.as_bytes()),
            ExecutionEvent::Stderr { text, .. } => {
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            _ => {}
        }
        execution.add(event);
    }
    if app.ui.json {
        app.ui.json(&execution)?;
    } else {
        for text in execution.results.iter().filter_map(shown) {
            app.ui.line(text);
        }
        if let Some(error) = &execution.error {
            eprintln!("{}", error.traceback);
        }
    }
    Ok(match execution.error {
        Some(_) => exit::GENERAL,
        None => 0,
    })
}

/// A value as text, if it has such a form.
fn shown(result: &CodeResult) -> Option<&str> {
    [&result.text, &result.markdown, &result.html, &result.svg]
        .into_iter()
        .find_map(|form| form.as_deref().filter(|text| !text.is_empty()))
}

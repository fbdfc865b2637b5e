//! The program `nullspace`: the command line of the platform, and the server behind `nullspace serve`.
//!
//! One file per verb in [`commands`]: its arguments and its function. Data goes to stdout, everything else to stderr
//! ([`ui`]); the kind of error decides the exit code ([`exit`]); an error ends with a hint ([`error`]). The client part
//! builds on macOS too; the server and its engines are there on Linux only.

mod app;
mod argv;
pub mod commands;
pub mod error;
pub mod exit;
mod fields;
mod files;
mod follow;
mod input;
mod reference;
mod transfer;
mod tree;
pub mod ui;
mod upload;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::ui::Ui;

/// Cloud machines for AI agents, on your own hardware.
#[derive(Debug, Parser)]
#[command(
    name = "nullspace",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Examples:
  nullspace quickstart                        start a server, deploy an example agent and run it
  nullspace serve                             run the server
  nullspace agent deploy . && nullspace agent run my-agent --follow
  nullspace machine create --template host    a machine of your own

Address and key come from --api-url, NULLSPACE_API_URL and NULLSPACE_API_KEY, ./.env, or
`nullspace auth login`, in this order; without any, from http://localhost:3000."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, clap::Args)]
pub struct Global {
    /// Print JSON to stdout; errors too.
    #[arg(long, global = true)]
    json: bool,
    /// Address of the server.
    #[arg(long, global = true, value_name = "URL")]
    api_url: Option<String>,
    /// Version of the machine-readable output; there is one.
    #[arg(long, global = true, hide = true, value_parser = ["v1"], value_name = "VERSION")]
    output_version: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Deploy a local agent project and run it
    Agent(commands::agent::Args),
    /// Make machines, run commands in them, move files
    #[command(alias = "sandbox")]
    Machine(commands::machine::Args),
    /// Directories that outlive machines, and their files
    Volume(commands::volume::Args),
    /// Show what happens to machines, and tell others of it
    Lifecycle(commands::lifecycle::Args),
    /// Keep machines' states, for others that are made of them
    Snapshot(commands::snapshot::Args),
    /// Build what machines start from, and name it
    Template(commands::template::Args),
    /// Log in to a machine over SSH, or run a command there
    Ssh(commands::ssh::Args),
    /// See all machines as they change and what they use
    Monitor(commands::monitor::Args),
    /// Make API keys, replace them and take them back
    Key(commands::key::Args),
    /// Who shares nothing with others, and what each may have
    Tenant(commands::tenant::Args),
    /// See who asked the server for what
    Audit(commands::audit::Args),
    /// Save the API key
    Auth(commands::auth::Args),
    /// Check this host, the configuration and the server
    Doctor(commands::doctor::Args),
    /// See the whole path once: server, deployment, run, result
    Quickstart(commands::quickstart::Args),
    #[cfg(target_os = "linux")]
    /// Run the server
    Serve(commands::serve::Args),
}

/// Runs the program with these arguments, the first being its name.
pub fn run(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.into_iter().collect();
    #[cfg(target_os = "linux")]
    if let Some(code) = commands::serve::helper_process(&argv) {
        return code;
    }
    // Looked for by hand, as it also decides how a command line is refused that cannot be parsed.
    let json = argv.iter().any(|argument| argument == "--json");
    let code = match Cli::try_parse_from(argv::options_first(argv)) {
        Ok(cli) => {
            let ui = Ui::new(cli.global.json);
            let app = App::new(ui, &cli.global);
            dispatch(cli.command, &app).unwrap_or_else(|error| {
                ui.failure(&error);
                error.exit()
            })
        }
        Err(error) => refuse(&error, json),
    };
    ExitCode::from(code)
}

/// Help and version, or what is wrong with the command line.
fn refuse(error: &clap::Error, json: bool) -> u8 {
    use clap::error::ErrorKind;
    let asked = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if json && !asked {
        Ui::new(true).failure(&usage_error(&error.render().to_string()));
        return exit::USAGE;
    }
    // Help that nobody reads is no error.
    let _ = error.print();
    if asked { 0 } else { exit::USAGE }
}

/// What the parser says, without what only helps people: the message is its first paragraph, the hint its tip.
fn usage_error(text: &str) -> CliError {
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        let lines: Vec<_> = paragraph.lines().map(str::trim).collect();
        lines.join(" ")
    });
    let message = paragraphs.next().unwrap_or_default();
    let error = CliError::usage(message.strip_prefix("error: ").unwrap_or(&message));
    match paragraphs.find_map(|paragraph| Some(paragraph.strip_prefix("tip: ")?.to_owned())) {
        Some(tip) => error.hint(tip),
        None => error,
    }
}

fn dispatch(command: Command, app: &App) -> Outcome {
    match command {
        // The server brings a runtime of its own.
        #[cfg(target_os = "linux")]
        Command::Serve(args) => commands::serve::run(&args, app),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| CliError::local("cannot start", &error))?;
            let outcome = runtime.block_on(async {
                match command {
                    Command::Agent(args) => commands::agent::run(args, app).await,
                    Command::Machine(args) => commands::machine::run(args, app).await,
                    Command::Volume(args) => commands::volume::run(args, app).await,
                    Command::Lifecycle(args) => commands::lifecycle::run(args, app).await,
                    Command::Snapshot(args) => commands::snapshot::run(args, app).await,
                    Command::Template(args) => commands::template::run(args, app).await,
                    Command::Ssh(args) => commands::ssh::run(&args, app).await,
                    Command::Monitor(args) => commands::monitor::run(&args, app).await,
                    Command::Key(args) => commands::key::run(args, app).await,
                    Command::Tenant(args) => commands::tenant::run(args, app).await,
                    Command::Audit(args) => commands::audit::run(args, app).await,
                    Command::Auth(args) => commands::auth::run(&args, app),
                    Command::Doctor(args) => commands::doctor::run(&args, app).await,
                    Command::Quickstart(args) => commands::quickstart::run(&args, app).await,
                    #[cfg(target_os = "linux")]
                    Command::Serve(_) => Ok(0),
                }
            });
            // A thread that still waits for input must not keep the program.
            runtime.shutdown_background();
            outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_refused_command_line_is_told_whole() {
        let told = |line: &str| {
            let argv = line.split(' ').map(OsString::from);
            let error = Cli::try_parse_from(argv).expect_err(line);
            let error = usage_error(&error.render().to_string());
            assert_eq!(error.exit(), exit::USAGE);
            (error.message, error.hint.unwrap_or_default())
        };
        let (message, hint) = told("nullspace machine exec mch_1");
        assert_eq!(
            message,
            "the following required arguments were not provided: <COMMAND>"
        );
        assert!(hint.contains("--help"), "{hint}");
        let (message, hint) = told("nullspace machine crate");
        assert_eq!(message, "unrecognized subcommand 'crate'");
        assert!(hint.contains("'create'"), "{hint}");
        let (message, _) = told("nullspace machine get ");
        assert!(message.contains("it is empty"), "{message}");
    }

    #[test]
    fn a_run_begins_from_one_thing() {
        let parsed = |line: &str| {
            let argv = ["nullspace", "agent", "run"].into_iter();
            Cli::try_parse_from(argv.chain(line.split(' '))).is_ok()
        };
        for fine in [
            "--from r",
            "n --from r --version-id v",
            "--from r --set a=1 --set b.c=2",
            "n --input f --set a=1",
            "n --input-json {} --set a=1",
        ] {
            assert!(parsed(fine), "{fine}");
        }
        for bad in [
            "--follow",
            "n --set a=1",
            "n --from r --input f",
            "--from r --input-json {}",
        ] {
            assert!(!parsed(bad), "{bad}");
        }
    }

    /// Flags of the published CLI 0.1.9, each with a value where it takes one.
    #[test]
    fn published_flags_are_accepted() {
        for line in [
            "agent init --project-dir d --force --json",
            "agent deploy --project-dir d --config f --name n --description t --metadata-json {} --metadata a=b \
             --no-cache --dry-run --json",
            "agent deploy --rebuild",
            "agent deploy .",
            "agent run n --input f",
            "agent run n --input-file f",
            "agent run n --input-json {} --version-id v --env A=b --env C=d --env-file f --retain-on-failure \
             --retention-seconds 1 --idempotency-key k --follow --json",
            "agent run n --no-retain-on-failure",
            "agent logs n --run r --offset 1 --limit 2 --cursor c --tail 3 --follow --poll-interval-ms 5 --json",
            "agent logs n --service s",
            "agent outputs n --run r --json",
            "agent status n --run r --json",
            "agent status n --service s",
            "agent sandbox n --run r --json",
            "agent machine n --service s --json",
            "agent shell n --run r --cmd ls --json",
            "agent list --mode job --status active --limit 5 --cursor c --json",
            "agent get n --json",
            "agent delete n --yes --json",
            "agent stop n --service s --reason r --retain-sandbox --json",
            "agent stop n --run r",
            "agent restart n --service s --reason r --env A=b --env-file f --json",
            "agent url n --service s --env A=b --env-file f --json",
            "sandbox create --template t --warm-pool w --warm-pool-mode prefer --warm-pool-wait 1 --vcpus 1 --memory 2 \
             --disk 3 --timeout 4 --cwd /x --metadata-json {} --metadata a=b --env a=b --env-json {} --network-json {} \
             --internet-access --idempotency-key k --on-timeout destroy --timeout-action destroy --no-auto-resume \
             --volume ref=a,mount=/b --resolution 1x2 --dpi 96 --display :1",
            "template warm-pool create t --name n --min-ready 0 --max-ready 1 --vcpus 1 --memory 2 --disk 3 \
             --checkout-policy REQUIRE --idle-timeout 4 --stale-after 5 --version-policy track_tag --track-tag s \
             --label a=b --metadata-json {} --metadata a=b --json",
            "template warm-pool list --template t --state enabled --label a=b --status ready --limit 1 --json",
            "template warm-pool get p --json",
            "template warm-pool wait p --min-ready 1 --timeout 2 --interval 0.5 --json",
            "template warm-pool scale p --min-ready 1 --max-ready 2 --json",
            "template warm-pool scale p --max-ready 2",
            "template warm-pool enable p --json",
            "template warm-pool disable p --json",
            "template warm-pool drain p --json",
            "template warm-pool reconcile p --json",
            "template warm-pool delete p --json",
            "sandbox create --snapshot-id s --no-internet-access --auto-resume --on-timeout pause",
            "sandbox list --json --fields id --state running --state paused --template t --metadata a=b \
             --metadata-json {} --limit 3 --next-token t",
            "sandbox get i --json --fields id,status",
            "sandbox exec i ls -la --timeout 4 --json --background --cwd /x --env A=b --shell",
            "machine exec i -- ls --json",
            "sandbox kill i --json",
            "ssh i ls -la --user u --ttl 10m --public-key k --identity-file f --print-command --json",
            "sandbox ssh-access i --user u --ttl 10m --public-key k --identity-file f --print-command --json",
            "doctor --json",
            "auth login --api-url http://x",
            "--output-version v1 agent list",
        ] {
            let argv = std::iter::once("nullspace")
                .chain(line.split_whitespace())
                .map(OsString::from)
                .collect();
            if let Err(error) = Cli::try_parse_from(argv::options_first(argv)) {
                panic!("{line}: {error}");
            }
        }
    }
}

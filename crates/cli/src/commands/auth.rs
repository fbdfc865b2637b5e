//! `nullspace auth login`

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use clap::Subcommand;
use nullspace_client::Client;
use nullspace_client::config::{Config, Setting, Source, write_values};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::app::App;
use crate::error::{CliError, Outcome};

/// Save the API key.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask for an API key and save it in ~/.nullspace/config.json, for this user only
    #[command(after_help = "Examples:
  nullspace auth login --api-url https://nullspace.example.com
  nullspace auth login < key.txt

Nothing is sent. A key in NULLSPACE_API_KEY, ./.env or ~/.config/nullspace/config.json still goes
before the saved one.")]
    Login,
}

pub(crate) fn run(args: &Args, app: &App) -> Outcome {
    match args.command {
        Command::Login => login(app),
    }
}

fn login(app: &App) -> Outcome {
    let ui = app.ui;
    let file = app.surroundings.login_config_file().ok_or_else(|| {
        CliError::usage("there is no home directory to save the key in")
            .hint("Set HOME, or export NULLSPACE_API_KEY instead.")
    })?;
    // `--api-url` is a flag of every command; here it is what is saved, if it was given.
    let url =
        (app.config.base_url.source == Source::Argument).then(|| app.config.base_url.value.clone());
    if let Some(url) = &url {
        let setting = Setting {
            value: url.clone(),
            source: Source::Argument,
        };
        Client::new(&Config {
            base_url: setting,
            ..app.config.clone()
        })?;
    }
    let key = if std::io::stdin().is_terminal() {
        ask("Enter your Nullspace API key: ")
    } else {
        read_line()
    };
    let key = key.map_err(|error| CliError::local("cannot read the key", &error))?;
    let key = key.trim();
    if key.is_empty() {
        return Err(CliError::usage("no key was given")
            .hint("Paste the key at the prompt, or send it on standard input."));
    }
    let mut values = vec![("api_key", key)];
    values.extend(url.as_deref().map(|url| ("base_url", url)));
    write_values(&file, &values)
        .map_err(|error| CliError::local(format!("cannot write {}", file.display()), &error))?;
    ui.line(format!("API key saved to {}", file.display()));
    if let Some(url) = &url {
        ui.line(format!("API URL saved: {url}"));
    }
    if let Some(setting) = app
        .config_now()
        .api_key
        .filter(|setting| setting.value != key)
    {
        ui.warn(format!("another key goes before it: {}", setting.source));
    }
    Ok(0)
}

fn read_line() -> std::io::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

/// Asks without showing what is typed.
fn ask(prompt: &str) -> std::io::Result<String> {
    let stdin = std::io::stdin();
    let mut err = std::io::stderr();
    err.write_all(prompt.as_bytes())?;
    err.flush()?;
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let line = read_line();
    // Whatever was read, the terminal must show again what is typed.
    tcsetattr(&stdin, OptionalActions::Flush, &shown)?;
    err.write_all(b"\n")?;
    line
}

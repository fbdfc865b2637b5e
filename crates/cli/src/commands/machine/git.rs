//! `nullspace machine git …`: repositories in a machine.
//!
//! What the API has an endpoint for goes there; the rest ([`settings`]) runs git with exec, as the published clients do.

mod settings;

use std::io::BufRead as _;
use std::path::PathBuf;

use clap::Subcommand;
use nullspace_api::git::{
    GitAddRequest, GitAuth, GitBranchAction, GitBranchRequest, GitCheckoutRequest, GitCloneRequest,
    GitCommitRequest, GitSyncRequest,
};
use serde::Serialize;
use serde_json::json;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::ui::tame;

/// Git repositories in a machine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Clone a repository
    Clone(Clone),
    /// Fetch, and bring the current branch up to it
    Pull(Pull),
    /// Push commits
    Push(Push),
    /// Show what changed since the last commit
    Status(Of),
    /// Show the newest commits
    Log(Log),
    /// Show changes line by line
    Diff(Of),
    /// List, make and delete branches
    Branch(Branch),
    /// Check out a branch, a tag or a commit
    Checkout(Checkout),
    /// Stage files, or everything
    Add(Add),
    /// Commit everything, or some files
    Commit(Commit),
    /// Give a remote a name
    RemoteAdd(settings::RemoteAdd),
    /// Read and change git's settings
    Config(settings::Config),
    /// Keep a password in the machine, readable for all that runs there
    DangerouslyAuthenticate(settings::Password),
    /// Keep a private key in the machine, readable for all that runs there as root
    AddSshKey(settings::Key),
}

#[derive(Debug, clap::Args)]
struct Where {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The repository.
    #[arg(long, value_name = "DIRECTORY", default_value = "/workspace")]
    path: String,
}

#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    at: Where,
}

/// What opens a private repository. It is used for this operation and kept nowhere.
#[derive(Debug, clap::Args)]
struct AuthArgs {
    /// Name for an http(s) remote; for some services the token.
    #[arg(long, value_name = "NAME")]
    auth_username: Option<String>,
    /// Password or token for an http(s) remote; - reads a line of standard input.
    #[arg(long, value_name = "PASSWORD")]
    auth_password: Option<String>,
    /// Private key for an ssh remote.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["auth_username", "auth_password"])]
    auth_key: Option<PathBuf>,
    /// What opens the key; - reads a line of standard input.
    #[arg(long, value_name = "PASSPHRASE", requires = "auth_key")]
    auth_passphrase: Option<String>,
}

impl AuthArgs {
    fn auth(&self) -> Result<Option<GitAuth>, CliError> {
        if let Some(file) = &self.auth_key {
            let private_key = std::fs::read_to_string(file)
                .map_err(|error| CliError::local(file.display(), &error))?;
            return Ok(Some(GitAuth::Ssh {
                private_key,
                passphrase: self.auth_passphrase.as_deref().map(secret).transpose()?,
            }));
        }
        match (&self.auth_username, &self.auth_password) {
            (Some(username), Some(password)) => Ok(Some(GitAuth::Https {
                username: username.clone(),
                password: secret(password)?,
            })),
            (None, None) => Ok(None),
            _ => Err(CliError::usage(
                "--auth-username and --auth-password must be given together",
            )),
        }
    }
}

/// A secret from the command line, or from standard input.
fn secret(given: &str) -> Result<String, CliError> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| CliError::local("cannot read standard input", &error))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine git clone mch_123 https://git.example/a.git /workspace/a
  printf %s \"$TOKEN\" | nullspace machine git clone mch_123 https://git.example/a.git --auth-username me --auth-password -
  nullspace machine git clone mch_123 git@git.example:a.git --auth-key ~/.ssh/deploy")]
struct Clone {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The repository's address.
    #[arg(value_name = "URL")]
    url: String,
    /// Where to; must not exist or be empty.
    #[arg(value_name = "DIRECTORY", default_value = "/workspace")]
    path: String,
    /// A branch or tag.
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    /// Only so many commits of history.
    #[arg(long, value_name = "COMMITS")]
    depth: Option<u32>,
    #[command(flatten)]
    auth: AuthArgs,
}

#[derive(Debug, clap::Args)]
struct Pull {
    #[command(flatten)]
    at: Where,
    /// The remote.
    #[arg(long, value_name = "NAME", default_value = "origin")]
    remote: String,
    /// A branch of it.
    #[arg(long, value_name = "NAME")]
    branch: Option<String>,
    #[command(flatten)]
    auth: AuthArgs,
}

#[derive(Debug, clap::Args)]
struct Push {
    #[command(flatten)]
    pull: Pull,
    /// Make what is pushed to the branch's upstream.
    #[arg(long)]
    set_upstream: bool,
}

#[derive(Debug, clap::Args)]
struct Log {
    #[command(flatten)]
    at: Where,
    /// How many; 50 when not said.
    #[arg(long, value_name = "COMMITS")]
    limit: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct Branch {
    #[command(subcommand)]
    command: BranchCommand,
}

#[derive(Debug, Subcommand)]
enum BranchCommand {
    /// List local branches
    List(Of),
    /// Make a branch and check it out
    Create(Named),
    /// Delete a branch
    Delete(Delete),
}

#[derive(Debug, clap::Args)]
struct Named {
    #[command(flatten)]
    at: Where,
    /// The branch.
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, clap::Args)]
struct Delete {
    #[command(flatten)]
    named: Named,
    /// Even when commits are lost with it.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Checkout {
    #[command(flatten)]
    at: Where,
    /// A branch, a tag or a commit.
    #[arg(value_name = "REF")]
    r#ref: String,
    /// Make the branch first.
    #[arg(long)]
    create: bool,
}

#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    at: Where,
    /// Git's patterns of files; everything when there is none.
    #[arg(value_name = "FILES")]
    files: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Commit {
    #[command(flatten)]
    at: Where,
    /// The message.
    #[arg(value_name = "MESSAGE")]
    message: String,
    /// Git's patterns of files to stage first; everything when there is none.
    #[arg(value_name = "FILES")]
    files: Vec<String>,
    /// Who commits.
    #[arg(long, value_name = "NAME")]
    author_name: Option<String>,
    /// Who commits.
    #[arg(long, value_name = "ADDRESS")]
    author_email: Option<String>,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Clone(args) => clone(args, app).await,
        Command::Pull(args) => pull(args, app).await,
        Command::Push(args) => push(args, app).await,
        Command::Status(args) => status(&args.at, app).await,
        Command::Log(args) => log(&args, app).await,
        Command::Diff(args) => settings::diff(&args.at, app).await,
        Command::Branch(args) => branch(args.command, app).await,
        Command::Checkout(args) => checkout(args, app).await,
        Command::Add(args) => add(args, app).await,
        Command::Commit(args) => commit(args, app).await,
        Command::RemoteAdd(args) => settings::remote_add(&args, app).await,
        Command::Config(args) => settings::config(&args, app).await,
        Command::DangerouslyAuthenticate(args) => settings::authenticate(&args, app).await,
        Command::AddSshKey(args) => settings::add_key(&args, app).await,
    }
}

/// What a command that did something says.
fn told(app: &App, line: &str, value: impl Serialize) -> Outcome {
    if app.ui.json {
        app.ui.json(&value)?;
    } else {
        app.ui.line(tame(line));
    }
    Ok(0)
}

async fn clone(args: Clone, app: &App) -> Outcome {
    let request = GitCloneRequest {
        auth: args.auth.auth()?,
        url: args.url,
        path: args.path,
        branch: args.branch,
        depth: args.depth,
    };
    let waiting = app.ui.spinner("Cloning");
    let client = app.client()?;
    let done = client.git(&args.machine).clone_from(&request).await;
    waiting.finish_and_clear();
    let done = done?;
    told(app, &format!("Cloned into {}", done.path), &done)
}

fn sync(args: &Pull, set_upstream: bool) -> Result<GitSyncRequest, CliError> {
    Ok(GitSyncRequest {
        path: args.at.path.clone(),
        remote: args.remote.clone(),
        branch: args.branch.clone(),
        set_upstream,
        auth: args.auth.auth()?,
    })
}

async fn pull(args: Pull, app: &App) -> Outcome {
    let request = sync(&args, false)?;
    let waiting = app.ui.spinner("Pulling");
    let done = app.client()?.git(&args.at.machine).pull(&request).await;
    waiting.finish_and_clear();
    let done = done?;
    summary(app, &done.summary, &done)
}

async fn push(args: Push, app: &App) -> Outcome {
    let request = sync(&args.pull, args.set_upstream)?;
    let waiting = app.ui.spinner("Pushing");
    let client = app.client()?;
    let done = client.git(&args.pull.at.machine).push(&request).await;
    waiting.finish_and_clear();
    let done = done?;
    summary(app, &done.summary, &done)
}

/// Git's own words, line by line.
fn summary(app: &App, text: &str, value: impl Serialize) -> Outcome {
    if app.ui.json {
        app.ui.json(&value)?;
    } else {
        for line in text.lines() {
            app.ui.line(tame(line));
        }
    }
    Ok(0)
}

async fn status(at: &Where, app: &App) -> Outcome {
    let status = app.client()?.git(&at.machine).status(&at.path).await?;
    if app.ui.json {
        app.ui.json(&status)?;
        return Ok(0);
    }
    let branch = status.branch.as_deref().unwrap_or("a commit by itself");
    let mut line = format!("On {}", tame(branch));
    for (count, word) in [(status.ahead, "ahead"), (status.behind, "behind")] {
        if let Some(count) = count.filter(|count| *count > 0) {
            line.push_str(&format!(", {count} {word}"));
        }
    }
    if status.clean {
        line.push_str(", nothing changed");
    }
    app.ui.line(line);
    for file in &status.changed {
        let from = file.original_path.as_ref();
        let from = from.map_or_else(String::new, |from| format!(" (was {})", tame(from)));
        let path = tame(&file.path);
        app.ui.line(format!("{} {path}{from}", file.status));
    }
    Ok(0)
}

async fn log(args: &Log, app: &App) -> Outcome {
    let git = app.client()?;
    let log = git
        .git(&args.at.machine)
        .log(&args.at.path, args.limit)
        .await?;
    if app.ui.json {
        app.ui.json(&log.commits)?;
        return Ok(0);
    }
    for commit in &log.commits {
        let title = commit.message.lines().next().unwrap_or_default();
        let short = commit.sha.get(..10).unwrap_or(&commit.sha);
        let (date, who) = (tame(&commit.date), tame(&commit.author_name));
        app.ui
            .line(format!("{short}  {date}  {who}  {}", tame(title)));
    }
    Ok(0)
}

async fn branch(command: BranchCommand, app: &App) -> Outcome {
    let client = app.client()?;
    let (named, action, force) = match command {
        BranchCommand::List(Of { at }) => {
            let found = client.git(&at.machine).branches(&at.path).await?;
            if app.ui.json {
                // As the published program spells it.
                let current = found.current.unwrap_or_default();
                app.ui
                    .json(&json!({"current_branch": current, "branches": found.branches}))?;
            } else {
                for branch in found.branches {
                    let mark = if found.current.as_ref() == Some(&branch) {
                        '*'
                    } else {
                        ' '
                    };
                    app.ui.line(format!("{mark} {}", tame(&branch)));
                }
            }
            return Ok(0);
        }
        BranchCommand::Create(named) => (named, GitBranchAction::Create, false),
        BranchCommand::Delete(args) => (args.named, GitBranchAction::Delete, args.force),
    };
    let request = GitBranchRequest {
        path: named.at.path,
        name: named.name,
        action,
        force,
    };
    client.git(&named.at.machine).branch(&request).await?;
    let done = match action {
        GitBranchAction::Create => "On new branch",
        GitBranchAction::Delete => "Deleted branch",
    };
    let line = format!("{done} {}", request.name);
    told(app, &line, json!({"name": request.name, "action": action}))
}

async fn checkout(args: Checkout, app: &App) -> Outcome {
    let request = GitCheckoutRequest {
        path: args.at.path,
        r#ref: args.r#ref,
        create: args.create,
    };
    app.client()?
        .git(&args.at.machine)
        .checkout(&request)
        .await?;
    told(
        app,
        &format!("On {}", request.r#ref),
        json!({"ref": request.r#ref}),
    )
}

async fn add(args: Add, app: &App) -> Outcome {
    let request = GitAddRequest {
        path: args.at.path,
        files: args.files,
    };
    app.client()?.git(&args.at.machine).add(&request).await?;
    told(app, "Staged", json!({"ok": true}))
}

async fn commit(args: Commit, app: &App) -> Outcome {
    let request = GitCommitRequest {
        path: args.at.path,
        message: args.message,
        add_all: args.files.is_empty(),
        files: (!args.files.is_empty()).then_some(args.files),
        author_name: args.author_name,
        author_email: args.author_email,
    };
    let client = app.client()?;
    let done = client.git(&args.at.machine).commit(&request).await?;
    told(app, &format!("Committed {}", done.sha), &done)
}

//! What has no endpoint: git and files of the machine, as the published clients use them.

use bytes::Bytes;
use clap::Subcommand;
use nullspace_api::exec::{ExecRequest, ExecResponse};
use nullspace_client::Client;
use serde_json::json;

use super::{Where, secret, told};
use crate::app::App;
use crate::error::{CliError, Outcome};

/// Where git keeps passwords that are to stay.
const CREDENTIALS: &str = "/root/.git-credentials";
const KEY: &str = "/root/.ssh/id_rsa";
const SSH_CONFIG: &str = "/root/.ssh/config";

#[derive(Debug, clap::Args)]
pub(super) struct RemoteAdd {
    #[command(flatten)]
    at: Where,
    /// The remote.
    #[arg(value_name = "NAME")]
    name: String,
    /// Its address.
    #[arg(value_name = "URL")]
    url: String,
    /// Fetch from it at once.
    #[arg(long)]
    fetch: bool,
    /// In place of one that has the name.
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a setting
    Get(Get),
    /// Change a setting
    Set(Set),
    /// Say who commits
    User(User),
}

#[derive(Debug, clap::Args)]
struct Whose {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Whose: `global` for those of root, `local` for those of the repository that --path names.
    #[arg(long, value_name = "SCOPE", default_value = "global")]
    scope: String,
    /// The repository.
    #[arg(long, value_name = "DIRECTORY")]
    path: Option<String>,
}

impl Whose {
    fn flag(&self) -> Result<&'static str, CliError> {
        match (self.scope.to_ascii_lowercase().as_str(), &self.path) {
            ("global", _) => Ok("--global"),
            ("local", Some(_)) => Ok("--local"),
            ("local", None) => Err(CliError::usage(
                "--scope local needs --path: the repository whose setting it is",
            )),
            _ => Err(CliError::usage("--scope: must be global or local")),
        }
    }
}

#[derive(Debug, clap::Args)]
struct Get {
    #[command(flatten)]
    whose: Whose,
    /// The setting, `user.name` for one.
    #[arg(value_name = "KEY")]
    key: String,
}

#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    get: Get,
    /// Its value.
    #[arg(value_name = "VALUE")]
    value: String,
}

#[derive(Debug, clap::Args)]
struct User {
    #[command(flatten)]
    whose: Whose,
    /// `user.name`.
    #[arg(value_name = "NAME")]
    name: String,
    /// `user.email`.
    #[arg(value_name = "ADDRESS")]
    email: String,
}

/// Keep a password in the machine. Everything that runs there can read it: prefer --auth-password of the other commands.
#[derive(Debug, clap::Args)]
pub(super) struct Password {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Name.
    #[arg(value_name = "NAME")]
    username: String,
    /// Password or token; - reads a line of standard input.
    #[arg(value_name = "PASSWORD")]
    password: String,
    /// For which host.
    #[arg(long, value_name = "HOST", default_value = "github.com")]
    host: String,
    /// http or https.
    #[arg(long, value_name = "SCHEME", default_value = "https")]
    protocol: String,
}

/// Keep a private key in the machine. Prefer --auth-key of the other commands.
#[derive(Debug, clap::Args)]
pub(super) struct Key {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// The key as text, @FILE for one in a file, or - for standard input.
    #[arg(value_name = "KEY")]
    private_key: String,
}

/// Runs git, and fails when it does.
async fn git(
    client: &Client,
    machine: &str,
    path: Option<&str>,
    arguments: &[&str],
) -> Result<ExecResponse, CliError> {
    let request = ExecRequest {
        command: "git".into(),
        args: Some(arguments.iter().map(|a| (*a).to_owned()).collect()),
        cwd: path.map(str::to_owned),
        ..ExecRequest::default()
    };
    let done = client.exec(machine, &request).await?;
    if done.exit_code == 0 {
        return Ok(done);
    }
    // Only the verb: what follows may be a secret.
    let verb = arguments.first().copied().unwrap_or_default();
    let said = done.stderr.trim();
    let code = done.exit_code;
    Err(CliError::new(
        "git_error",
        format!("git {verb} failed with exit code {code}: {said}"),
    ))
}

pub(super) async fn diff(at: &Where, app: &App) -> Outcome {
    let client = app.client()?;
    let done = git(&client, &at.machine, Some(&at.path), &["diff"]).await?;
    if app.ui.json {
        app.ui.json(&json!({"diff": done.stdout}))?;
    } else {
        app.ui.data(done.stdout.as_bytes());
    }
    if done.truncated {
        app.ui
            .warn("the output was longer than one answer holds and was cut");
    }
    Ok(0)
}

pub(super) async fn remote_add(args: &RemoteAdd, app: &App) -> Outcome {
    let url = &args.url;
    let after = url
        .split_once("://")
        .map(|(_, rest)| rest.split('/').next());
    if after
        .flatten()
        .is_some_and(|authority| authority.contains('@'))
        && url.starts_with("http")
    {
        return Err(CliError::usage(
            "the address holds a name or a password, which would stay in the machine",
        )
        .hint("Leave it out, and give --auth-username and --auth-password to pull and push."));
    }
    let client = app.client()?;
    let (machine, path) = (&args.at.machine, Some(args.at.path.as_str()));
    if args.overwrite {
        // There may be none.
        let _ = git(&client, machine, path, &["remote", "remove", &args.name]).await;
    }
    let fetch: &[&str] = if args.fetch { &["-f"] } else { &[] };
    let line = [&["remote", "add"], fetch, &["--", &args.name, url]].concat();
    git(&client, machine, path, &line).await?;
    let line = format!("Remote {} is {url}", args.name);
    told(app, &line, json!({"name": args.name, "url": url}))
}

pub(super) async fn config(args: &Config, app: &App) -> Outcome {
    let client = app.client()?;
    let set = async |whose: &Whose, key: &str, value: &str| {
        let line = ["config", whose.flag()?, "--", key, value];
        git(&client, &whose.machine, whose.path.as_deref(), &line).await
    };
    match &args.command {
        ConfigCommand::Get(args) => {
            let whose = &args.whose;
            let line = ["config", whose.flag()?, "--get", "--", &args.key];
            let path = whose.path.as_deref();
            let done = git(&client, &whose.machine, path, &line).await;
            // It says nothing about a setting that is not there.
            let done = done.map_err(|error| match error.message.ends_with("exit code 1: ") {
                true => CliError::new("git_error", format!("{} is not set", args.key)),
                false => error,
            })?;
            let value = done.stdout.trim();
            told(app, value, json!({"key": args.key, "value": value}))
        }
        ConfigCommand::Set(args) => {
            let key = &args.get.key;
            set(&args.get.whose, key, &args.value).await?;
            told(
                app,
                &format!("Set {key}"),
                json!({"key": key, "value": args.value}),
            )
        }
        ConfigCommand::User(args) => {
            set(&args.whose, "user.name", &args.name).await?;
            set(&args.whose, "user.email", &args.email).await?;
            let line = format!("Commits are by {} <{}>", args.name, args.email);
            told(app, &line, json!({"name": args.name, "email": args.email}))
        }
    }
}

pub(super) async fn authenticate(args: &Password, app: &App) -> Outcome {
    let client = app.client()?;
    let files = client.files(&args.machine);
    let encoded = |text: &str| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let one = |b: u8| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        };
        text.bytes().map(one).collect()
    };
    let Password {
        protocol,
        host,
        username,
        ..
    } = args;
    if host.is_empty() || host.contains(['/', '@']) || !matches!(&**protocol, "http" | "https") {
        return Err(CliError::usage(
            "--host must be a host, and --protocol http or https",
        ));
    }
    let password = encoded(&secret(&args.password)?);
    let line = format!("{protocol}://{}:{password}@{host}\n", encoded(username));
    let mut text = match files.download(CREDENTIALS).await {
        Ok(mut there) => {
            let mut text = Vec::new();
            while let Some(piece) = there.chunk().await? {
                text.extend_from_slice(&piece);
            }
            text
        }
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    private(&client, &args.machine, CREDENTIALS, text).await?;
    let helper = format!("store --file {CREDENTIALS}");
    let line = ["config", "--global", "credential.helper", &helper];
    git(&client, &args.machine, None, &line).await?;
    app.ui.warn(format!(
        "the password stays in {CREDENTIALS} of the machine"
    ));
    told(
        app,
        &format!("Git knows {username} at {host}"),
        json!({"host": host, "username": username}),
    )
}

pub(super) async fn add_key(args: &Key, app: &App) -> Outcome {
    let client = app.client()?;
    let text = match args.private_key.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())
            .map_err(|error| CliError::local("cannot read standard input", &error))?,
        key => match key.strip_prefix('@') {
            Some(file) => {
                std::fs::read_to_string(file).map_err(|error| CliError::local(file, &error))?
            }
            None => key.to_owned(),
        },
    };
    let settings = format!(
        "Host *\n    IdentityFile {KEY}\n    IdentitiesOnly yes\n    StrictHostKeyChecking accept-new\n"
    );
    private(
        &client,
        &args.machine,
        KEY,
        format!("{}\n", text.trim()).into_bytes(),
    )
    .await?;
    private(&client, &args.machine, SSH_CONFIG, settings.into_bytes()).await?;
    let files = client.files(&args.machine);
    files.set_permissions("/root/.ssh", "0700").await?;
    app.ui
        .warn(format!("the key stays in {KEY} of the machine"));
    told(app, "Git uses the key for ssh", json!({"path": KEY}))
}

/// Writes a file that only its owner reads: empty first, so that nobody else can in between.
async fn private(
    client: &Client,
    machine: &str,
    path: &str,
    text: Vec<u8>,
) -> Result<(), CliError> {
    let files = client.files(machine);
    let content = |text: Vec<u8>| futures_util::stream::iter([Ok(Bytes::from(text))]);
    if !files.exists(path).await? {
        files.upload(path, Some(0), content(Vec::new())).await?;
    }
    files.set_permissions(path, "0600").await?;
    let length = u64::try_from(text.len()).ok();
    files.upload(path, length, content(text)).await?;
    Ok(())
}

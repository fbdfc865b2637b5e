//! `nullspace machine file …`

use std::io::{Read as _, Write as _};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use nullspace_api::socket::{ClientMessage, ServerMessage};
use nullspace_api::upload::ArchiveFormat;
use nullspace_client::{Client, files::Files};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::exit;

/// Files of a machine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a file
    Read(Read),
    /// Write standard input to a file
    Write(Write),
    /// Write several files
    WriteFiles(WriteFiles),
    /// List a directory
    List(List),
    /// Say whether something is there; exits with 1 if not
    Exists(Of),
    /// Show what is known of a file or directory
    Info(Of),
    /// Rename a file or directory
    Mv(Mv),
    /// Remove a file, or a directory with everything in it
    Rm(Of),
    /// Make a directory and its parents
    Mkdir(Of),
    /// Set permissions
    Chmod(Chmod),
    /// Find lines in files by a regular expression
    Find(Look),
    /// Find files by their names
    Search(Look),
    /// Replace text in files
    Replace(Replace),
    /// Show what happens to files, one line of JSON each
    Watch(Watch),
    /// Make a URL for a download that needs no key
    DownloadUrl(DownloadUrl),
    /// Make a URL for an upload that needs no key
    UploadUrl(Of),
}

/// Whose files.
#[derive(Debug, clap::Args)]
struct Whose {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
    /// Act as this user of the machine.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
}

impl Whose {
    fn files<'a>(&'a self, client: &'a Client) -> Files<'a> {
        client.files(&self.machine).as_user(self.user.as_deref())
    }
}

#[derive(Debug, clap::Args)]
struct Of {
    #[command(flatten)]
    whose: Whose,
    /// The path; a relative one begins at the machine's working directory, or at the user's home.
    #[arg(value_name = "PATH")]
    path: String,
}

/// How content is written here.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Encoding {
    /// As it is.
    Utf8,
    /// In base64.
    Base64,
}

#[derive(Debug, clap::Args)]
struct Read {
    #[command(flatten)]
    of: Of,
    /// How to print it.
    #[arg(long, value_enum, default_value = "utf8")]
    encoding: Encoding,
}

#[derive(Debug, clap::Args)]
struct Write {
    #[command(flatten)]
    of: Of,
    /// How standard input is written.
    #[arg(long, value_enum, default_value = "utf8")]
    encoding: Encoding,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine file write-files mch_123 '{\"/srv/a\": \"one\", \"/srv/b\": \"two\"}'
  nullspace machine file write-files mch_123 @files.json")]
struct WriteFiles {
    #[command(flatten)]
    whose: Whose,
    /// An object of paths and contents, or a list of objects with `path` and `content`; @FILE reads it from there.
    #[arg(value_name = "FILES_JSON")]
    files: String,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    whose: Whose,
    /// The directory.
    #[arg(value_name = "PATH", default_value = "/")]
    path: String,
    /// Levels to go down.
    #[arg(long, value_name = "LEVELS")]
    depth: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct Mv {
    #[command(flatten)]
    whose: Whose,
    /// What it is called.
    #[arg(value_name = "OLD_PATH")]
    old_path: String,
    /// What it will be called.
    #[arg(value_name = "NEW_PATH")]
    new_path: String,
}

#[derive(Debug, clap::Args)]
struct Chmod {
    #[command(flatten)]
    of: Of,
    /// Octal digits, 0755 for instance.
    #[arg(value_name = "PERMISSIONS")]
    permissions: String,
}

#[derive(Debug, clap::Args)]
struct Look {
    #[command(flatten)]
    of: Of,
    /// For `find` a regular expression; for `search` a glob, where ** goes through directories.
    #[arg(value_name = "PATTERN")]
    pattern: String,
}

#[derive(Debug, clap::Args)]
struct Replace {
    #[command(flatten)]
    whose: Whose,
    /// A regular expression.
    #[arg(value_name = "PATTERN")]
    pattern: String,
    /// What comes in its place; $1 is its first group, $$ a dollar sign.
    #[arg(value_name = "REPLACEMENT")]
    replacement: String,
    /// The files.
    #[arg(value_name = "FILES")]
    files: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Watch {
    #[command(flatten)]
    of: Of,
    /// Everything beneath, not the direct children alone.
    #[arg(long)]
    recursive: bool,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<f64>,
}

#[derive(Debug, clap::Args)]
struct DownloadUrl {
    #[command(flatten)]
    of: Of,
    /// Of a directory, as a tar.
    #[arg(long)]
    archive: bool,
}

pub(super) async fn run(args: Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = &app.client()?;
    match args.command {
        Command::Read(args) => read(&args, app, client).await?,
        Command::Write(args) => write(&args, app, client).await?,
        Command::WriteFiles(args) => write_files(&args, app, client).await?,
        Command::List(args) => list(&args, app, client).await?,
        Command::Exists(Of { whose, path }) => {
            let exists = whose.files(client).exists(&path).await?;
            ui.json(&json!({"path": path, "exists": exists}))?;
            return Ok(if exists { 0 } else { exit::GENERAL });
        }
        Command::Info(Of { whose, path }) => ui.json(&whose.files(client).info(&path).await?)?,
        Command::Mv(args) => {
            let files = args.whose.files(client);
            ui.json(&files.rename(&args.old_path, &args.new_path).await?)?;
        }
        Command::Rm(Of { whose, path }) => {
            whose.files(client).remove(&path).await?;
            ui.line(format!("Removed {path}"));
        }
        Command::Mkdir(Of { whose, path }) => {
            whose.files(client).make_dir(&path).await?;
            ui.line(format!("Created {path}"));
        }
        Command::Chmod(Chmod { of, permissions }) => {
            let files = of.whose.files(client);
            files.set_permissions(&of.path, &permissions).await?;
            ui.line(format!("Updated permissions for {}", of.path));
        }
        Command::Find(Look { of, pattern }) => {
            ui.json(&of.whose.files(client).find(&of.path, &pattern).await?)?;
        }
        Command::Search(Look { of, pattern }) => {
            ui.json(&of.whose.files(client).search(&of.path, &pattern).await?)?;
        }
        Command::Replace(args) => {
            let files = args.whose.files(client);
            let done = files
                .replace(args.files.clone(), &args.pattern, &args.replacement)
                .await?;
            ui.json(&json!({"replacements": done.replacements}))?;
        }
        Command::Watch(args) => watch(&args, app, client).await?,
        Command::DownloadUrl(DownloadUrl { of, archive }) => {
            let archive = archive.then_some(ArchiveFormat::Tar);
            let signed = of
                .whose
                .files(client)
                .download_url(&of.path, archive)
                .await?;
            match ui.json {
                true => ui.json(&json!({"url": signed.url}))?,
                false => ui.line(signed.url),
            }
        }
        Command::UploadUrl(Of { whose, path }) => {
            ui.json(&whose.files(client).upload_url(&path).await?)?;
        }
    }
    Ok(0)
}

async fn read(args: &Read, app: &App, client: &Client) -> Result<(), CliError> {
    let Of { whose, path } = &args.of;
    let mut download = whose.files(client).download(path).await?;
    let as_it_is = matches!(args.encoding, Encoding::Utf8);
    let mut all = Vec::new();
    while let Some(piece) = download.chunk().await? {
        match as_it_is && !app.ui.json {
            true => app.ui.data(&piece),
            false => all.extend_from_slice(&piece),
        }
    }
    let text = || match as_it_is {
        true => String::from_utf8_lossy(&all).into_owned(),
        false => BASE64.encode(&all),
    };
    if app.ui.json {
        let encoding = if as_it_is { "utf8" } else { "base64" };
        app.ui
            .json(&json!({"path": path, "encoding": encoding, "content": text()}))?;
    } else if !as_it_is {
        app.ui.data(text().as_bytes());
    }
    Ok(())
}

async fn write(args: &Write, app: &App, client: &Client) -> Result<(), CliError> {
    let Of { whose, path } = &args.of;
    let files = whose.files(client);
    match args.encoding {
        Encoding::Utf8 => {
            let content = ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10);
            files.upload(path, None, content).await?;
        }
        Encoding::Base64 => {
            let mut text = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut text)
                .map_err(|error| CliError::local("cannot read standard input", &error))?;
            text.retain(|byte| !byte.is_ascii_whitespace());
            let content = BASE64
                .decode(text)
                .map_err(|_| CliError::usage("standard input is not base64"))?;
            put(files, path, content).await?;
        }
    }
    match app.ui.json {
        true => app.ui.json(&files.info(path).await?)?,
        false => app.ui.line(format!("Wrote {path}")),
    }
    Ok(())
}

async fn put(files: Files<'_>, path: &str, content: Vec<u8>) -> Result<(), CliError> {
    let length = Some(content.len() as u64);
    let content = futures_util::stream::iter([Ok(Bytes::from(content))]);
    Ok(files.upload(path, length, content).await?)
}

async fn write_files(args: &WriteFiles, app: &App, client: &Client) -> Result<(), CliError> {
    let list = parse_files(&args.files)?;
    let files = args.whose.files(client);
    let (mut written, mut failed) = (Vec::new(), Vec::new());
    let count = list.len();
    for (path, content) in list {
        let done = match put(files, &path, content.into_bytes()).await {
            Ok(()) => files.info(&path).await.map_err(CliError::from),
            Err(error) => Err(error),
        };
        match done {
            Ok(info) => written.push(info),
            Err(error) => failed.push((path, error)),
        }
    }
    // All are tried; the first that failed says why.
    if let Some((path, mut error)) = failed.into_iter().next() {
        let missing = count - written.len();
        error.message = format!(
            "{missing} of {count} files were not written; {path}: {}",
            error.message
        );
        return Err(error);
    }
    app.ui.json(&written)
}

fn parse_files(text: &str) -> Result<Vec<(String, String)>, CliError> {
    let wrong = || {
        CliError::usage("FILES_JSON must be an object of paths and texts, or a list of them")
            .hint("For example: '{\"/srv/a.txt\": \"text\"}'.")
    };
    let text = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| CliError::usage(format!("cannot read {path}: {error}")))?,
    };
    let pair = |path: Option<&Value>, content: Option<&Value>| {
        Some((path?.as_str()?.to_owned(), content?.as_str()?.to_owned()))
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(files)) => files
            .iter()
            .map(|(path, content)| Some((path.clone(), content.as_str()?.to_owned())))
            .collect::<Option<_>>(),
        Ok(Value::Array(files)) => files
            .iter()
            .map(|file| pair(file.get("path"), file.get("content")))
            .collect(),
        _ => None,
    }
    .ok_or_else(wrong)
}

async fn list(args: &List, app: &App, client: &Client) -> Result<(), CliError> {
    let entries = args
        .whose
        .files(client)
        .list(&args.path, args.depth)
        .await?;
    if app.ui.json {
        return app.ui.json(&entries);
    }
    if entries.is_empty() {
        app.ui.line("No files found.");
    }
    for entry in entries {
        let line = format!(
            "{}\t{}\t{}\t{}",
            entry.name, entry.kind, entry.size, entry.path
        );
        app.ui.line(crate::ui::tame(&line).replace('\n', " "));
    }
    Ok(())
}

/// One line of `watch`; both words are the same, as the published program has them.
#[derive(Serialize)]
struct Change<'a> {
    r#type: &'a str,
    name: &'a str,
    path: &'a str,
    event_type: &'a str,
}

async fn watch(args: &Watch, app: &App, client: &Client) -> Result<(), CliError> {
    let limit = match args.timeout.map(Duration::try_from_secs_f64) {
        None => None,
        Some(Ok(limit)) => Some(limit),
        Some(Err(_)) => return Err(CliError::usage("--timeout must be a number of seconds")),
    };
    let mut socket = client.socket(&args.of.whose.machine).await?;
    socket
        .send(&ClientMessage::FileWatch {
            id: "watch".to_owned(),
            path: args.of.path.clone(),
            user: args.of.whose.user.clone(),
            recursive: args.recursive,
            timeout_secs: args.timeout,
        })
        .await?;
    let follow = async {
        while let Some(message) = socket.next().await? {
            match message {
                ServerMessage::FileWatchStarted { .. } => {
                    app.ui.dim("Watching; Ctrl-C ends it.");
                    let _ = std::io::stderr().flush();
                }
                ServerMessage::FileEvent {
                    event, name, path, ..
                } => app.ui.json_line(&Change {
                    r#type: &event,
                    name: &name,
                    path: &path,
                    event_type: &event,
                })?,
                ServerMessage::Error { code, message, .. } => {
                    return Err(CliError::new(code, message));
                }
                _ => {}
            }
        }
        Err(CliError::new("watch_error", "the connection was closed"))
    };
    match limit {
        None => follow.await,
        Some(limit) => tokio::time::timeout(limit, follow).await.unwrap_or(Ok(())),
    }
}

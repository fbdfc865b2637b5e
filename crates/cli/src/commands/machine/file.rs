//! `nullspace machine file …`

use clap::Subcommand;
use nullspace_api::upload::ArchiveFormat;
use nullspace_client::{Client, files::Files};
use serde_json::json;

use crate::app::App;
use crate::error::Outcome;
use crate::exit;
use crate::files::{self, Encoding};

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
        Command::Read(Read { of, encoding }) => {
            files::read(of.whose.files(client), &of.path, encoding, app.ui).await?;
        }
        Command::Write(Write { of, encoding }) => {
            let files = of.whose.files(client);
            files::write(files, &of.path, encoding).await?;
            match ui.json {
                true => ui.json(&files.info(&of.path).await?)?,
                false => ui.line(format!("Wrote {}", of.path)),
            }
        }
        Command::WriteFiles(args) => {
            files::write_all(args.whose.files(client), &args.files, ui).await?;
        }
        Command::List(args) => {
            let entries = args
                .whose
                .files(client)
                .list(&args.path, args.depth)
                .await?;
            files::show_list(&entries, ui)?;
        }
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
                .replace(args.files.clone(), &args.pattern, &args.replacement, false)
                .await?;
            ui.json(&json!({"replacements": done.replacements}))?;
        }
        Command::Watch(Watch {
            of,
            recursive,
            timeout,
        }) => {
            let what = files::Watch {
                path: of.path,
                user: of.whose.user,
                recursive,
                timeout,
            };
            files::watch(client, &of.whose.machine, what, ui).await?;
        }
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

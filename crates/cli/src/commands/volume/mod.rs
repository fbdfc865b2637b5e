//! `nullspace volume …`: directories that outlive machines, and their files without a machine.

mod download;

use clap::Subcommand;
use nullspace_api::{id, upload::ArchiveFormat, volume::CreateVolumeRequest};
use nullspace_client::{Client, files::Files};
use serde_json::{Value, json};

use crate::app::App;
use crate::commands::upload::{self, To, What};
use crate::error::{CliError, Outcome};
use crate::exit;
use crate::files::{self, Encoding};
use crate::ui::Ui;

/// Directories that outlive machines and that several machines can have at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace volume create data
  nullspace machine create --volume ref=data,mount=/data
  nullspace volume upload data ./corpus /corpus
  nullspace volume ls-files data /corpus

VOLUME is an id or a name.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume
    Create(Create),
    /// List volumes
    List(List),
    /// Show a volume
    Get(Get),
    /// Delete a volume that is empty and that no machine has
    Delete(Delete),
    /// List the machines that have a volume
    Attachments(Of),
    /// List a directory
    LsFiles(LsFiles),
    /// Show what is known of a file or directory
    #[command(alias = "info")]
    Stat(At),
    /// Print a text file
    Cat(At),
    /// Print a file
    Read(Coded),
    /// Write standard input to a file
    Write(Coded),
    /// Write several files
    WriteFiles(WriteFiles),
    /// Say whether something is there; exits with 1 if not
    Exists(At),
    /// Make a directory and its parents
    Mkdir(At),
    /// Remove a file, or a directory with everything in it
    Rm(At),
    /// Rename a file or directory
    Mv(Mv),
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
    UploadUrl(At),
    /// Upload a file, a directory or standard input
    Upload(Box<Upload>),
    /// Download a file or a directory
    Download(download::Args),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// 1 to 128 of letters, digits, `.`, `_` and `-`.
    #[arg(value_name = "NAME", value_parser = crate::input::named)]
    name: String,
    /// The most it may have, in MiB.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..))]
    max_size: Option<u64>,
    /// The most files, directories and links it may have.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_files: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only these fields.
    #[arg(long, value_name = "A,B")]
    fields: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Get {
    #[command(flatten)]
    of: Of,
    /// Only these fields.
    #[arg(long, value_name = "A,B")]
    fields: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Delete {
    /// The volume's id, or its name.
    #[arg(value_name = "VOLUME_ID", value_parser = crate::input::named)]
    volume: String,
}

/// Which volume.
#[derive(Debug, clap::Args)]
struct Of {
    /// The volume's id or name.
    #[arg(value_name = "VOLUME", value_parser = crate::input::named)]
    volume: String,
}

/// Which file.
#[derive(Debug, clap::Args)]
struct At {
    #[command(flatten)]
    of: Of,
    /// The path in the volume, from `/`.
    #[arg(value_name = "PATH")]
    path: String,
}

#[derive(Debug, clap::Args)]
struct LsFiles {
    #[command(flatten)]
    of: Of,
    /// The directory.
    #[arg(value_name = "PATH", default_value = "/")]
    path: String,
    /// Levels to go down.
    #[arg(long, value_name = "LEVELS")]
    depth: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct Coded {
    #[command(flatten)]
    at: At,
    /// How it is written here.
    #[arg(long, value_enum, default_value = "utf8", ignore_case = true)]
    encoding: Encoding,
}

#[derive(Debug, clap::Args)]
struct WriteFiles {
    #[command(flatten)]
    of: Of,
    /// An object of paths and contents, or a list of objects with `path` and `content`; @FILE reads it from there.
    #[arg(value_name = "FILES_JSON")]
    files: String,
}

#[derive(Debug, clap::Args)]
struct Mv {
    #[command(flatten)]
    of: Of,
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
    at: At,
    /// Octal digits, 0755 for instance.
    #[arg(value_name = "PERMISSIONS")]
    permissions: String,
}

#[derive(Debug, clap::Args)]
struct Look {
    #[command(flatten)]
    at: At,
    /// For `find` a regular expression; for `search` a glob, where ** goes through directories.
    #[arg(value_name = "PATTERN")]
    pattern: String,
}

#[derive(Debug, clap::Args)]
struct Replace {
    #[command(flatten)]
    of: Of,
    /// A regular expression.
    #[arg(value_name = "PATTERN")]
    pattern: String,
    /// What comes in its place; $1 is its first group, $$ a dollar sign.
    #[arg(value_name = "REPLACEMENT")]
    replacement: String,
    /// The files.
    #[arg(value_name = "FILES")]
    files: Vec<String>,
    /// Only count.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct Watch {
    #[command(flatten)]
    at: At,
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
    at: At,
    /// Of a directory, as a tar.
    #[arg(long, value_parser = ["tar"], value_name = "FORMAT")]
    archive_format: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace volume upload data model.bin /models/
  nullspace volume upload data ./site /site --conflict replace --exclude node_modules/
  nullspace volume upload data model.bin --resume upl_456
  tar c . | nullspace volume upload data - /tree.tar

Without DESTINATION the source keeps its name, at the top of the volume; after one that ends in / too. A
directory's .nullspaceignore says what stays here.")]
struct Upload {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    what: What,
}

/// The volume's id. A name is asked for.
async fn resolve(client: &Client, reference: &str) -> Result<String, CliError> {
    match reference.starts_with(id::VOLUME) {
        true => Ok(reference.to_owned()),
        false => Ok(client.get_volume(reference).await?.id),
    }
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = &app.client()?;
    match args.command {
        Command::Create(args) => {
            let request = CreateVolumeRequest {
                name: args.name,
                max_size_bytes: args.max_size.map(|mb| mb.saturating_mul(1 << 20)),
                max_file_count: args.max_files,
            };
            ui.json(&client.create_volume(&request).await?)?;
        }
        Command::List(args) => list(&args, client, ui).await?,
        Command::Get(Get { of, fields }) => match &fields {
            Some(fields) => ui.json(&client.get_volume_fields(&of.volume, fields).await?)?,
            None => ui.json(&client.get_volume(&of.volume).await?)?,
        },
        Command::Delete(Delete { volume }) => {
            let id = resolve(client, &volume).await?;
            client.delete_volume(&id).await?;
            ui.line(format!("Deleted {volume}"));
        }
        Command::Attachments(of) => {
            let id = resolve(client, &of.volume).await?;
            ui.json(&client.volume_attachments(&id).await?)?;
        }
        Command::Upload(args) => {
            let id = resolve(client, &args.of.volume).await?;
            let to = To {
                id: &id,
                reference: &args.of.volume,
                user: None,
                noun: "volume",
                base: "/",
            };
            return upload::run(to, &args.what, app).await;
        }
        Command::Download(args) => {
            let id = resolve(client, &args.volume).await?;
            download::run(&args, &id, client, ui).await?;
        }
        Command::Watch(args) => {
            let id = resolve(client, &args.at.of.volume).await?;
            let what = files::Watch {
                path: args.at.path,
                user: None,
                recursive: args.recursive,
                timeout: args.timeout,
            };
            files::watch(client, &id, what, ui).await?;
        }
        command => return of_files(command, client, ui).await,
    }
    Ok(0)
}

async fn list(args: &List, client: &Client, ui: Ui) -> Result<(), CliError> {
    if let Some(fields) = &args.fields {
        return ui.json(&client.list_volume_fields(fields).await?);
    }
    let volumes = client.list_volumes().await?;
    if ui.json {
        return ui.json(&volumes);
    }
    if volumes.is_empty() {
        ui.line("No volumes found.");
    }
    for volume in volumes {
        let status = match serde_json::to_value(volume.status) {
            Ok(Value::String(word)) => word,
            _ => String::new(),
        };
        let most = volume.max_size_bytes.map(|most| most.to_string());
        ui.line(format!(
            "{}\t{}\t{status}\t{}\t{}",
            volume.id,
            volume.name,
            volume.used_bytes,
            most.unwrap_or_default()
        ));
    }
    Ok(())
}

/// The commands that need nothing but the volume's files.
async fn of_files(command: Command, client: &Client, ui: Ui) -> Outcome {
    let reference = match &command {
        Command::LsFiles(args) => &args.of,
        Command::Stat(at)
        | Command::Cat(at)
        | Command::Exists(at)
        | Command::Mkdir(at)
        | Command::Rm(at)
        | Command::UploadUrl(at) => &at.of,
        Command::Read(args) | Command::Write(args) => &args.at.of,
        Command::WriteFiles(args) => &args.of,
        Command::Mv(args) => &args.of,
        Command::Chmod(args) => &args.at.of,
        Command::Find(args) | Command::Search(args) => &args.at.of,
        Command::Replace(args) => &args.of,
        Command::DownloadUrl(args) => &args.at.of,
        _ => return Ok(0),
    };
    let id = resolve(client, &reference.volume).await?;
    let files = client.files(&id);
    match command {
        Command::LsFiles(args) => {
            files::show_list(&files.list(&args.path, args.depth).await?, ui)?;
        }
        Command::Stat(at) => ui.json(&files.info(&at.path).await?)?,
        Command::Cat(at) => cat(files, &at.path, ui).await?,
        Command::Read(args) => files::read(files, &args.at.path, args.encoding, ui).await?,
        Command::Write(args) => {
            files::write(files, &args.at.path, args.encoding).await?;
            ui.json(&files.info(&args.at.path).await?)?;
        }
        Command::WriteFiles(args) => files::write_all(files, &args.files, ui).await?,
        Command::Exists(at) => {
            let exists = files.exists(&at.path).await?;
            ui.json(&json!({"path": at.path, "exists": exists}))?;
            return Ok(if exists { 0 } else { exit::GENERAL });
        }
        Command::Mkdir(at) => {
            files.make_dir(&at.path).await?;
            ui.line(format!("Created {} in {id}", at.path));
        }
        Command::Rm(at) => {
            files.remove(&at.path).await?;
            ui.line(format!("Removed {} from {id}", at.path));
        }
        Command::Mv(args) => ui.json(&files.rename(&args.old_path, &args.new_path).await?)?,
        Command::Chmod(args) => {
            let path = &args.at.path;
            files.set_permissions(path, &args.permissions).await?;
            ui.line(format!("Updated permissions for {path}"));
        }
        Command::Find(args) => ui.json(&files.find(&args.at.path, &args.pattern).await?)?,
        Command::Search(args) => ui.json(&files.search(&args.at.path, &args.pattern).await?)?,
        Command::Replace(args) => {
            let (pattern, replacement) = (&args.pattern, &args.replacement);
            ui.json(
                &files
                    .replace(args.files.clone(), pattern, replacement, args.dry_run)
                    .await?,
            )?;
        }
        Command::DownloadUrl(args) => {
            let archive = args.archive_format.map(|_| ArchiveFormat::Tar);
            let signed = files.download_url(&args.at.path, archive).await?;
            match ui.json {
                true => ui.json(&json!({"url": signed.url}))?,
                false => ui.line(signed.url),
            }
        }
        Command::UploadUrl(at) => ui.json(&files.upload_url(&at.path).await?)?,
        _ => {}
    }
    Ok(0)
}

async fn cat(files: Files<'_>, path: &str, ui: Ui) -> Result<(), CliError> {
    let mut download = files.download(path).await?;
    let mut all = Vec::new();
    while let Some(piece) = download.chunk().await? {
        all.extend_from_slice(&piece);
    }
    match std::str::from_utf8(&all) {
        Ok(_) => ui.data(&all),
        Err(_) => {
            return Err(
                CliError::new("file_error", format!("{path} is not text in UTF-8"))
                    .hint("Use `nullspace volume read` or `nullspace volume download`."),
            );
        }
    }
    Ok(())
}

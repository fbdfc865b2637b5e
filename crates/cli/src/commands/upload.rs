//! `nullspace machine upload` and `nullspace volume upload`: what both take and do.

use std::fs::File;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nullspace_api::upload::{self as api, SourceKind, UploadStatus};
use nullspace_client::Client;
use serde::Serialize;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::transfer;
use crate::tree::{Kind, Tree};
use crate::upload::{self, IN_PARTS, Source};

/// Where an upload goes, and what is said about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To<'a> {
    /// A machine or a volume.
    pub(crate) id: &'a str,
    /// What it was called on the command line.
    pub(crate) reference: &'a str,
    /// Of the machine.
    pub(crate) user: Option<&'a str>,
    /// `machine` or `volume`.
    pub(crate) noun: &'static str,
    /// Where something goes that is given no place.
    pub(crate) base: &'static str,
}

/// What is uploaded.
#[derive(Debug, clap::Args)]
pub(crate) struct What {
    /// A local file or directory, or - for standard input.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where it goes.
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
    /// What becomes of a directory that is there.
    #[arg(long, value_enum, default_value = "merge")]
    conflict: Conflict,
    /// Leave out what matches, in the syntax of .gitignore; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Carry an upload on.
    #[arg(long, value_name = "UPLOAD")]
    resume: Option<String>,
    /// Parts on the way at once.
    #[arg(long, value_name = "PARTS", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Whether it goes in parts; auto: from 8 MiB on.
    #[arg(long, value_enum, default_value = "auto")]
    resumable: Mode,
    /// Check all bytes together as well, not each part alone.
    #[arg(long, value_enum, default_value = "auto")]
    checksum: Checksum,
    /// Whether standard input is put on disk first; auto: if it goes in parts.
    #[arg(long, value_enum, default_value = "auto")]
    spool_to_disk: Mode,
    /// Say what would be sent.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Conflict {
    /// It keeps what is not in the source.
    Merge,
    /// It is swapped for the source.
    Replace,
    /// It stays, and nothing is uploaded.
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Checksum {
    Auto,
    Sha256,
}

impl From<Conflict> for api::Conflict {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Merge => Self::Merge,
            Conflict::Replace => Self::Replace,
            Conflict::Error => Self::Error,
        }
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    kind: &'static str,
    target_path: String,
    bytes_uploaded: u64,
    file_count: u64,
    transport: &'static str,
    resumed: bool,
    upload_id: Option<String>,
}

pub(crate) async fn run(to: To<'_>, args: &What, app: &App) -> Outcome {
    check(to, args)?;
    if args.dry_run {
        return dry_run(to, args, app).map(|()| 0);
    }
    let client = app.client()?;
    let done = match args.source.as_str() {
        "-" => of_stdin(to, args, app, &client).await,
        source if Path::new(source).is_dir() => of_directory(to, args, app, &client).await,
        _ => of_file(to, args, app, &client).await,
    };
    let done = done.map_err(|error| advise(to, args, error))?;
    if app.ui.json {
        let source_kind = match args.source.as_str() {
            "-" => "stdin",
            _ if done.kind == "directory_tar" => "directory",
            _ => "file",
        };
        app.ui.json(&json!({
            "source_kind": source_kind, "target_path": done.target_path, "transport": done.transport,
            "resumed": done.resumed, "result": done,
        }))?;
        return Ok(0);
    }
    let verb = if done.resumed { "Resumed" } else { "Uploaded" };
    let what = match done.kind {
        "directory_tar" => format!("a directory with {} files", done.file_count),
        _ => format!("{} bytes", done.bytes_uploaded),
    };
    app.ui.line(format!(
        "{verb} {what} to {} ({})",
        done.target_path, done.transport
    ));
    Ok(0)
}

/// Refuses options that say nothing together.
fn check(to: To<'_>, args: &What) -> Result<(), CliError> {
    let is_stdin = args.source == "-";
    let path = Path::new(&args.source);
    let auto = args.resumable == Mode::Auto
        && args.checksum == Checksum::Auto
        && args.spool_to_disk == Mode::Auto;
    let destination = args.destination.as_deref();
    let wrong = [
        (
            args.dry_run && (is_stdin || args.resume.is_some()),
            "--dry-run does not go with standard input or --resume",
        ),
        (
            args.resume.is_some() && (destination.is_some() || to.user.is_some()),
            "--resume knows DESTINATION and --user from the upload; leave them out",
        ),
        (
            args.resume.is_some() && (args.conflict != Conflict::Merge || !auto),
            "--resume does not go with --conflict, --resumable, --checksum or --spool-to-disk",
        ),
        (
            is_stdin && args.resume.is_some(),
            "standard input cannot be carried on with --resume",
        ),
        (
            is_stdin && destination.is_none_or(|path| path.ends_with('/')),
            "standard input needs a DESTINATION that names a file",
        ),
        (
            is_stdin
                && args.spool_to_disk == Mode::Never
                && (args.resumable == Mode::Always || args.checksum == Checksum::Sha256),
            "standard input goes in parts from the disk alone; use --spool-to-disk auto or always",
        ),
        (
            !path.is_dir() && (!args.exclude.is_empty() || args.conflict != Conflict::Merge),
            "--exclude and --conflict are for directories",
        ),
    ];
    if let Some((_, message)) = wrong.iter().find(|(is_wrong, _)| *is_wrong) {
        return Err(CliError::usage(*message));
    }
    if !is_stdin && !path.exists() {
        let message = format!("no such file or directory: {}", path.display());
        return Err(CliError::usage(message));
    }
    Ok(())
}

/// How to go on after a failure.
fn advise(to: To<'_>, args: &What, error: CliError) -> CliError {
    let id = error
        .details
        .as_ref()
        .and_then(|details| details["upload_id"].as_str())
        .map(str::to_owned);
    match id.filter(|_| args.source != "-") {
        None => error,
        Some(id) => error.hint(format!(
            "Carry it on: nullspace {} upload {} {} --resume {id}",
            to.noun, to.reference, args.source
        )),
    }
}

fn target(to: To<'_>, args: &What) -> Result<String, CliError> {
    let name = || {
        let full = Path::new(&args.source).canonicalize().ok();
        let name = full.and_then(|path| path.file_name().map(ToOwned::to_owned));
        name.and_then(|name| name.into_string().ok())
            .ok_or_else(|| CliError::usage("the source has no name; say DESTINATION"))
    };
    match &args.destination {
        None => Ok(format!("{}{}", to.base, name()?)),
        Some(path) if path.ends_with('/') => Ok(format!("{path}{}", name()?)),
        Some(path) => Ok(path.clone()),
    }
}

fn goes_in_parts(args: &What, length: u64) -> bool {
    match args.resumable {
        Mode::Always => true,
        Mode::Never => args.checksum == Checksum::Sha256,
        Mode::Auto => args.checksum == Checksum::Sha256 || length > IN_PARTS,
    }
}

async fn of_file(to: To<'_>, args: &What, app: &App, client: &Client) -> Result<Done, CliError> {
    let path = Path::new(&args.source);
    let open = |error| CliError::local(format!("cannot open {}", path.display()), &error);
    let source = Source::new(File::open(path).map_err(open)?, SourceKind::RestartableFile);
    let source = source.map_err(open)?;
    if args.resume.is_some() || goes_in_parts(args, source.length) {
        return in_parts(to, args, app, client, source).await;
    }
    let target = target(to, args)?;
    let files = client.files(to.id).as_user(to.user);
    let bar = app.ui.byte_bar(&args.source, Some(source.length));
    let sent = transfer::send_stream(
        files,
        tokio::fs::File::open(path).await.map_err(open)?,
        &target,
        &bar,
    );
    let sent = sent.await;
    let bytes = bar.position();
    bar.finish_and_clear();
    sent?;
    direct(files, target, bytes).await
}

async fn of_stdin(to: To<'_>, args: &What, app: &App, client: &Client) -> Result<Done, CliError> {
    if args.spool_to_disk == Mode::Always || goes_in_parts(args, 0) {
        let spool = |error| CliError::local("cannot put standard input on disk", &error);
        let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(spool)?);
        tokio::io::copy(&mut tokio::io::stdin(), &mut file)
            .await
            .map_err(spool)?;
        file.flush().await.map_err(spool)?;
        let source = Source::new(file.into_std().await, SourceKind::SpooledStream);
        return in_parts(to, args, app, client, source.map_err(spool)?).await;
    }
    let target = target(to, args)?;
    let files = client.files(to.id).as_user(to.user);
    let bar = app.ui.byte_bar("standard input", None);
    let sent = transfer::send_stream(files, tokio::io::stdin(), &target, &bar).await;
    let bytes = bar.position();
    bar.finish_and_clear();
    sent?;
    direct(files, target, bytes).await
}

async fn direct(
    files: nullspace_client::files::Files<'_>,
    target: String,
    bytes: u64,
) -> Result<Done, CliError> {
    // It is there; only its whole path is not known when this fails.
    let path = files.info(&target).await.map(|info| info.path);
    Ok(Done {
        kind: "file",
        target_path: path.unwrap_or(target),
        bytes_uploaded: bytes,
        file_count: 1,
        transport: "direct",
        resumed: false,
        upload_id: None,
    })
}

async fn of_directory(
    to: To<'_>,
    args: &What,
    app: &App,
    client: &Client,
) -> Result<Done, CliError> {
    let (path, exclude) = (PathBuf::from(&args.source), args.exclude.clone());
    let pack = move || {
        let archive = Tree::read(&path, &exclude)?.archive(|_| true)?;
        Source::new(archive, SourceKind::DirectoryArchive)
            .map_err(|error| CliError::local("cannot read the archive", &error))
    };
    let spinner = app.ui.spinner("packing");
    let source = tokio::task::spawn_blocking(pack).await;
    spinner.finish_and_clear();
    let source = source.map_err(|error| CliError::new("internal_error", error.to_string()))??;
    in_parts(to, args, app, client, source).await
}

async fn in_parts(
    to: To<'_>,
    args: &What,
    app: &App,
    client: &Client,
    source: Source,
) -> Result<Done, CliError> {
    let whole =
        match args.checksum == Checksum::Sha256 || source.kind == SourceKind::DirectoryArchive {
            true => Some(source.sha256().await?),
            false => None,
        };
    let upload = match &args.resume {
        None => {
            let target = target(to, args)?;
            let request = source.request(&target, to.user, args.conflict.into(), whole.clone());
            client.create_upload(to.id, &request).await?
        }
        Some(id) => client.get_upload(to.id, id).await?,
    };
    let session = &upload.session;
    let id = session.upload_id.clone();
    let mut done = Done {
        kind: match source.kind {
            SourceKind::DirectoryArchive => "directory_tar",
            _ => "file",
        },
        target_path: session.target_path.clone(),
        bytes_uploaded: session.content_length,
        file_count: 1,
        transport: "resumable",
        resumed: args.resume.is_some(),
        upload_id: Some(id.clone()),
    };
    match session.status {
        UploadStatus::Completed => return Ok(done),
        UploadStatus::Aborted | UploadStatus::Expired | UploadStatus::Failed => {
            let status = session.status.as_str();
            let message = format!("upload {id} is {status} and cannot be carried on");
            return Err(CliError::new("file_upload_error", message));
        }
        _ => {}
    }
    let is_same = session.content_length == source.length
        && (session.whole_checksum_sha256.is_none()
            || whole.is_none()
            || session.whole_checksum_sha256 == whole);
    if !is_same {
        let message = format!("{} is not what upload {id} was begun with", args.source);
        return Err(CliError::new("file_upload_error", message).hint("Upload it anew."));
    }
    if args.resume.is_none() && args.source != "-" {
        app.ui.dim(format!("upload {id}"));
    }
    let bar = app.ui.byte_bar(&args.source, Some(source.length));
    let sent = upload::send(
        client,
        to.id,
        &upload,
        &source,
        whole,
        args.concurrency,
        &bar,
    )
    .await;
    bar.finish_and_clear();
    let sent = sent?;
    done.bytes_uploaded = sent.published_bytes;
    done.file_count = sent.published_file_count;
    Ok(done)
}

fn dry_run(to: To<'_>, args: &What, app: &App) -> Result<(), CliError> {
    let path = Path::new(&args.source);
    let target = target(to, args)?;
    if !path.is_dir() {
        let length = std::fs::metadata(path)
            .map_err(|error| CliError::local(format!("cannot read {}", path.display()), &error))?
            .len();
        let transport = match goes_in_parts(args, length) {
            true => "resumable",
            false => "direct",
        };
        if app.ui.json {
            return app.ui.json(
                &json!({"dry_run": true, "plan": {"source_kind": "file", "target_path": target,
                "transport": transport, "content_length": length, "file_count": 1}}),
            );
        }
        app.ui
            .line(format!("Dry run: file -> {target} via {transport}"));
        app.ui.line(format!("{length} bytes"));
        return Ok(());
    }
    let tree = Tree::read(path, &args.exclude)?;
    let included = tree.included().count();
    let excluded = tree.entries.len() - included;
    let leaves = tree.included().filter(|entry| entry.kind != Kind::Dir);
    let leaves = leaves.count();
    let bytes: u64 = tree.included().map(|entry| entry.size).sum();
    if app.ui.json {
        let manifest: Vec<_> = tree
            .entries
            .iter()
            .map(|entry| {
                json!({"path": entry.path, "kind": entry.kind.as_str(), "included": entry.is_included,
                    "size": entry.size})
            })
            .collect();
        return app.ui.json(
            &json!({"dry_run": true, "plan": {"source_kind": "directory", "target_path": target,
            "transport": "resumable", "file_count": leaves, "included_entry_count": included,
            "excluded_entry_count": excluded, "source_bytes": bytes, "manifest": manifest}}),
        );
    }
    app.ui
        .line(format!("Dry run: directory -> {target} via resumable"));
    app.ui.line(format!(
        "Included {included} entries, excluded {excluded}, leaf entries {leaves}, source bytes {bytes}"
    ));
    for entry in &tree.entries {
        let sign = if entry.is_included { "+" } else { "-" };
        app.ui
            .line(format!("{sign} {} [{}]", entry.path, entry.kind.as_str()));
    }
    Ok(())
}

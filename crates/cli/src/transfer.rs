//! Files and trees between this host and a machine, of any size, as streams.
//!
//! What comes from a machine is not trusted: names are plain segments, a directory that is a link here is not followed,
//! and links are made last, so that nothing is written through one.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use indicatif::ProgressBar;
use nullspace_api::exec::ExecRequest;
use nullspace_api::file::FileInfo;
use nullspace_api::upload::{Conflict, SourceKind};
use nullspace_client::{Client, files::Files};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

use crate::error::CliError;
use crate::ui::Ui;
use crate::upload::{self, Source};

/// Size of the pieces that are read from a file.
const PIECE: usize = 256 * 1024;
/// Deepest tree that is copied; deeper ones are taken for loops.
const MAX_DEPTH: usize = 128;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Copied {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) links: u64,
    pub(crate) bytes: u64,
}

fn local(verb: &str, path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let what = format!("cannot {verb} {}", path.display());
    move |error| CliError::local(what, &error)
}

/// A local file into a machine.
pub(crate) async fn upload_file(
    ui: Ui,
    client: &Client,
    from: &Path,
    id: &str,
    to: &str,
) -> Result<Copied, CliError> {
    let length = std::fs::metadata(from).map_err(local("read", from))?.len();
    let bar = ui.byte_bar(&from.display().to_string(), Some(length));
    let sent = send_file(client, from, id, to, &bar).await;
    bar.finish_and_clear();
    Ok(Copied {
        files: 1,
        bytes: sent?,
        ..Copied::default()
    })
}

async fn send_file(
    client: &Client,
    from: &Path,
    id: &str,
    to: &str,
    bar: &ProgressBar,
) -> Result<u64, CliError> {
    let file = tokio::fs::File::open(from)
        .await
        .map_err(local("open", from))?;
    let info = file.metadata().await.map_err(local("read", from))?;
    let mode = info.permissions().mode() & 0o777;
    if info.is_file() && info.len() > upload::IN_PARTS {
        let source = Source::new(file.into_std().await, SourceKind::RestartableFile);
        let source = source.map_err(local("read", from))?;
        let request = source.request(to, None, Conflict::Merge, None);
        let begun = client.create_upload(id, &request).await?;
        upload::send(client, id, &begun, &source, None, None, bar).await?;
    } else {
        send_stream(client.files(id), file, to, bar).await?;
    }
    if mode & 0o111 != 0 {
        client
            .files(id)
            .set_permissions(to, &format!("{mode:04o}"))
            .await?;
    }
    Ok(info.len())
}

/// A file of a machine from whatever can be read once.
pub(crate) async fn send_stream(
    files: Files<'_>,
    from: impl AsyncRead + Send + 'static,
    to: &str,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let counted = bar.clone();
    let content = ReaderStream::with_capacity(from, PIECE).inspect(move |piece| {
        if let Ok(piece) = piece {
            counted.inc(piece.len() as u64);
        }
    });
    // A file that grows or shrinks meanwhile has no length to promise; pipes have none at all.
    Ok(files.upload(to, None, content).await?)
}

/// Standard input into a file of a machine.
pub(crate) async fn upload_stdin(
    ui: Ui,
    client: &Client,
    id: &str,
    to: &str,
) -> Result<Copied, CliError> {
    let bar = ui.byte_bar("standard input", None);
    let sent = send_stream(client.files(id), tokio::io::stdin(), to, &bar).await;
    let bytes = bar.position();
    bar.finish_and_clear();
    sent?;
    Ok(Copied {
        files: 1,
        bytes,
        ..Copied::default()
    })
}

/// A local directory into a machine.
pub(crate) async fn upload_tree(
    ui: Ui,
    client: &Client,
    from: &Path,
    id: &str,
    to: &str,
) -> Result<Copied, CliError> {
    let bar = ui.byte_bar(&from.display().to_string(), None);
    let copied = send_tree(client, from, id, to, &bar).await;
    bar.finish_and_clear();
    copied
}

async fn send_tree(
    client: &Client,
    from: &Path,
    id: &str,
    to: &str,
    bar: &ProgressBar,
) -> Result<Copied, CliError> {
    let mut copied = Copied::default();
    let mut waiting = vec![(from.to_path_buf(), to.to_owned())];
    while let Some((from, to)) = waiting.pop() {
        client.files(id).make_dir(&to).await?;
        copied.directories += 1;
        let mut names: Vec<_> = std::fs::read_dir(&from)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.file_name()))
                    .collect()
            })
            .map_err(local("list", &from))?;
        names.sort();
        for name in names {
            let path = from.join(&name);
            let name = name.to_str().ok_or_else(|| {
                CliError::usage(format!("the name of {} is not UTF-8", path.display()))
                    .hint("Rename it, or leave it out.")
            })?;
            let target = format!("{to}/{name}");
            let kind = std::fs::symlink_metadata(&path)
                .map_err(local("read", &path))?
                .file_type();
            if kind.is_dir() {
                waiting.push((path, target));
            } else if kind.is_file() {
                copied.bytes += send_file(client, &path, id, &target, bar).await?;
                copied.files += 1;
            } else if kind.is_symlink() {
                let link = std::fs::read_link(&path).map_err(local("read", &path))?;
                send_link(client, id, &target, &link).await?;
                copied.links += 1;
            } else {
                return Err(CliError::usage(format!(
                    "{} is neither a file, a directory nor a link",
                    path.display()
                ))
                .hint("Leave it out."));
            }
        }
    }
    Ok(copied)
}

/// A link in a machine; one that is there is replaced.
pub(crate) async fn send_link(
    client: &Client,
    id: &str,
    path: &str,
    target: &Path,
) -> Result<(), CliError> {
    let args = ["-sfn", "--", &target.to_string_lossy(), path]
        .map(str::to_owned)
        .to_vec();
    let request = ExecRequest {
        command: "ln".to_owned(),
        args: Some(args),
        ..ExecRequest::default()
    };
    let response = client.exec(id, &request).await?;
    if response.exit_code != 0 {
        return Err(CliError::new(
            "file_error",
            format!("cannot make the link {path}: {}", response.stderr.trim()),
        ));
    }
    Ok(())
}

/// A file of a machine to standard output.
pub(crate) async fn download_stdout(
    ui: Ui,
    client: &Client,
    id: &str,
    from: &str,
) -> Result<Copied, CliError> {
    let mut download = client.files(id).download(from).await?;
    let mut bytes = 0;
    while let Some(piece) = download.chunk().await? {
        bytes += piece.len() as u64;
        ui.data(&piece);
    }
    Ok(Copied {
        files: 1,
        bytes,
        ..Copied::default()
    })
}

/// A file of a machine into a local one, which is replaced when all of it is there.
pub(crate) async fn download_file(
    ui: Ui,
    client: &Client,
    id: &str,
    from: &str,
    to: &Path,
    info: Option<&FileInfo>,
) -> Result<Copied, CliError> {
    let bar = ui.byte_bar(from, info.map(|info| info.size));
    let received = receive_file(client, id, from, to, info.map(mode_of), &bar).await;
    bar.finish_and_clear();
    Ok(Copied {
        files: 1,
        bytes: received?,
        ..Copied::default()
    })
}

async fn receive_file(
    client: &Client,
    id: &str,
    from: &str,
    to: &Path,
    mode: Option<u32>,
    bar: &ProgressBar,
) -> Result<u64, CliError> {
    let mut download = client.files(id).download(from).await?;
    if bar.length().is_none()
        && let Some(length) = download.content_length()
    {
        bar.set_length(length);
    }
    let parent = to
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let (file, path) = tempfile::Builder::new()
        .prefix(".nullspace-")
        .tempfile_in(parent)
        .map_err(local("write to", parent))?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut bytes = 0;
    while let Some(piece) = download.chunk().await? {
        write_piece(&mut file, &piece)
            .await
            .map_err(local("write", to))?;
        bytes += piece.len() as u64;
        bar.inc(piece.len() as u64);
    }
    file.flush().await.map_err(local("write", to))?;
    // Files from a machine are as private as a new file of this user's, and executable if they were.
    let mode = 0o644 | (mode.unwrap_or(0o644) & 0o111);
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .await
        .map_err(local("write", to))?;
    path.persist(to)
        .map_err(|error| CliError::local(format!("cannot write {}", to.display()), &error.error))?;
    Ok(bytes)
}

async fn write_piece(file: &mut tokio::fs::File, piece: &Bytes) -> std::io::Result<()> {
    file.write_all(piece).await
}

fn mode_of(info: &FileInfo) -> u32 {
    u32::from_str_radix(&info.mode, 8).unwrap_or(0o644)
}

/// A directory of a machine into a local one.
pub(crate) async fn download_tree(
    ui: Ui,
    client: &Client,
    id: &str,
    from: &str,
    to: &Path,
) -> Result<Copied, CliError> {
    let bar = ui.byte_bar(from, None);
    let copied = receive_tree(ui, client, id, from, to, &bar).await;
    bar.finish_and_clear();
    copied
}

async fn receive_tree(
    ui: Ui,
    client: &Client,
    id: &str,
    from: &str,
    to: &Path,
    bar: &ProgressBar,
) -> Result<Copied, CliError> {
    let mut copied = Copied::default();
    let mut links: Vec<(PathBuf, String)> = Vec::new();
    let mut waiting = vec![(from.trim_end_matches('/').to_owned(), to.to_path_buf(), 0)];
    while let Some((from, to, depth)) = waiting.pop() {
        if depth > MAX_DEPTH {
            return Err(CliError::usage(format!("{from} is too deep"))
                .hint("Pack it with tar in the machine and copy that."));
        }
        make_dir(&to)?;
        copied.directories += 1;
        let dir = if from.is_empty() { "/" } else { &from };
        for info in client.files(id).list(dir, Some(1)).await? {
            if info.name.is_empty()
                || info.name.contains(['/', '\0'])
                || matches!(info.name.as_str(), "." | "..")
            {
                return Err(CliError::new(
                    "invalid_response",
                    format!("{dir} has an entry with the name {:?}", info.name),
                ));
            }
            let (source, target) = (format!("{from}/{}", info.name), to.join(&info.name));
            match info.kind.as_str() {
                "dir" => waiting.push((source, target, depth + 1)),
                "file" => {
                    copied.bytes +=
                        receive_file(client, id, &source, &target, Some(mode_of(&info)), bar)
                            .await?;
                    copied.files += 1;
                }
                "symlink" => links.extend(info.symlink_target.map(|link| (target, link))),
                kind => ui.warn(format!("left out {source}: {kind}")),
            }
        }
    }
    for (path, target) in links {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(local("replace", &path)(error));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(&target, &path).map_err(local("make", &path))?;
        copied.links += 1;
    }
    Ok(copied)
}

/// Makes a directory; one that is there is fine, a link to one is not.
fn make_dir(path: &Path) -> Result<(), CliError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let info = std::fs::symlink_metadata(path).map_err(local("read", path))?;
            if info.is_dir() {
                return Ok(());
            }
            Err(CliError::usage(format!(
                "{} is there and is not a directory",
                path.display()
            ))
            .hint("Copy to another place."))
        }
        made => made.map_err(local("make", path)),
    }
}

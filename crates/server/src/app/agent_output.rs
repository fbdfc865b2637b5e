//! Outputs of runs: what a run left behind under its declared paths, copied out of its machine before the
//! run's end is recorded, and still there when the machine is gone.
//!
//! ```text
//!  guest ── bytes, tar ──▶ outputs/.incoming-XXXX/<n> ── sync, rename ──▶ outputs/<run>/<n>
//! ```
//! `<n>` counts the declared paths. What comes out of the machine is hostile: only regular files and
//! directories are kept, opened beneath their own directory, and there are limits.

mod kept;

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Component, Path, PathBuf},
};

use futures_util::StreamExt;
use nullspace_api::{
    agent::{Output, OutputAccess, OutputManifest, Outputs as RunOutputs},
    time,
};
use nullspace_project::AgentConfig;
use nullspace_protocol::{ByteStream, FileKind, GuestClient, PathRequest, ReadQuery};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{
    App, agent, agent_config, agent_run,
    bundle::{self, Incoming},
};
use crate::error::{Error, Result};

pub(super) use kept::Kept;

/// The most that one run leaves behind.
const MAX_BYTES: u64 = 16 << 30;
/// The most files and directories of one directory.
const MAX_ENTRIES: u64 = 200_000;

pub(super) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("outputs")
}

/// Makes the directory of outputs and removes what an earlier server left half-made.
pub(super) async fn clean(data_dir: &Path) -> Result<()> {
    let root = root(data_dir);
    agent::blocking(move || {
        bundle::remove_incoming(&root)
            .map_err(|e| Error::internal(format!("preparing {}: {e}", root.display())))
    })
    .await
}

/// What a run left behind, once it has ended.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_run_not_found`.
pub async fn get(app: &App, reference: &agent::Reference, run_id: &str) -> Result<RunOutputs> {
    let run = agent_run::find(app, reference, run_id).await?;
    let output_manifest = manifest(run.outputs.as_deref());
    Ok(RunOutputs {
        run_id: run.id,
        outputs: output_manifest
            .as_ref()
            .map(|manifest| manifest.outputs.clone())
            .unwrap_or_default(),
        output_manifest,
    })
}

/// Reads a kept manifest.
pub(super) fn manifest(text: Option<&str>) -> Option<OutputManifest> {
    text.and_then(|text| serde_json::from_str(text).ok())
}

/// The manifest of a run whose machine is gone, or never was: everything is missing.
pub(super) fn nothing(config: &AgentConfig, machine_id: Option<&str>) -> OutputManifest {
    let outputs = config
        .outputs
        .paths
        .iter()
        .map(|declared| missing(config, declared));
    sealed(machine_id, outputs.collect())
}

fn sealed(machine_id: Option<&str>, outputs: Vec<Output>) -> OutputManifest {
    OutputManifest {
        sandbox_id: machine_id.map(str::to_owned),
        machine_id: machine_id.map(str::to_owned),
        captured_at: time::rfc3339(time::now()),
        outputs,
    }
}

fn missing(config: &AgentConfig, declared: &str) -> Output {
    let path = agent_config::output_path(config, declared);
    Output {
        configured_path: declared.to_owned(),
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path,
        status: "missing".into(),
        ..Output::default()
    }
}

/// Copies what a run left behind out of its machine. What cannot be copied says so in its place; only when
/// nothing can be kept on this host at all is there an error.
pub(super) async fn capture(
    app: &App,
    guest: &GuestClient,
    config: &AgentConfig,
    run_id: &str,
    machine_id: &str,
) -> Result<OutputManifest> {
    if config.outputs.paths.is_empty() {
        return Ok(sealed(Some(machine_id), Vec::new()));
    }
    let root = root(&app.data_dir);
    let kept = root.join(run_id);
    let incoming = {
        let root = root.clone();
        agent::blocking(move || {
            // A server before this one kept them and could not record it.
            if kept.exists() {
                bundle::remove_tree(&kept).map_err(|e| disk("removing older outputs", &e))?;
            }
            Incoming::new(&root).map_err(|e| disk("keeping outputs", &e))
        })
        .await?
    };
    let mut outputs = Vec::new();
    let mut left = MAX_BYTES;
    let mut files = 0u64;
    for (number, declared) in config.outputs.paths.iter().enumerate() {
        let mut output = missing(config, declared);
        let to = incoming.path().join(number.to_string());
        match copy(guest, &output.path, to.clone(), left).await {
            Ok(None) => {}
            Ok(Some(copied)) => {
                left = left.saturating_sub(copied.bytes);
                files += copied.files;
                output.status = "available".into();
                output.size_bytes = Some(copied.bytes);
                output.kind = Some(
                    if copied.directory {
                        "directory"
                    } else {
                        "file"
                    }
                    .into(),
                );
                output.file_count = copied.directory.then_some(copied.files);
                output.skipped_count = Some(copied.skipped).filter(|count| *count > 0);
                output.access = Some(OutputAccess {
                    sandbox_id: machine_id.to_owned(),
                    machine_id: machine_id.to_owned(),
                    path: output.path.clone(),
                });
            }
            Err(error) => {
                tracing::info!(run = run_id, %error, "an output could not be kept");
                output.status = "error".into();
                output.error = Some(error.to_string());
                agent::blocking(move || {
                    let _ = bundle::remove_tree(&to).or_else(|_| fs::remove_file(&to));
                    Ok(())
                })
                .await?;
            }
        }
        outputs.push(output);
    }
    if outputs.iter().any(|output| output.status == "available") {
        let name = run_id.to_owned();
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        agent::blocking(move || {
            incoming
                .keep(&root, &name, files)
                .map_err(|e| disk("keeping outputs", &e))
        })
        .await?;
    }
    Ok(sealed(Some(machine_id), outputs))
}

fn disk(step: &str, error: &io::Error) -> Error {
    if agent::is_disk_full(error) {
        agent::disk_full(format!("{step}: {error}"))
    } else {
        Error::internal(format!("{step}: {error}"))
    }
}

/// What was copied.
#[derive(Debug, Default)]
struct Copied {
    directory: bool,
    bytes: u64,
    files: u64,
    skipped: u64,
}

/// Why an output could not be copied; shown to the user.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("it is neither a file nor a directory")]
    Kind,
    #[error("over the limit of {} GiB of output in one run", MAX_BYTES >> 30)]
    TooLarge,
    #[error("over the limit of {MAX_ENTRIES} files in one directory")]
    TooMany,
    #[error("the server's disk is full")]
    DiskFull,
    #[error("it could not be read: {0}")]
    Guest(String),
    #[error("it could not be kept: {0}")]
    Disk(io::Error),
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        if agent::is_disk_full(&error) {
            Self::DiskFull
        } else {
            Self::Disk(error)
        }
    }
}

async fn copy(
    guest: &GuestClient,
    path: &str,
    to: PathBuf,
    limit: u64,
) -> Result<Option<Copied>, CopyError> {
    let request = PathRequest {
        path: path.to_owned(),
        follow: true,
        ..PathRequest::default()
    };
    let info = match guest.stat(&request).await {
        Ok(info) => info,
        Err(error) if error.kind() == Some(nullspace_protocol::ErrorKind::NotFound) => {
            return Ok(None);
        }
        Err(error) => return Err(CopyError::Guest(error.to_string())),
    };
    let query = ReadQuery {
        path: path.to_owned(),
        ..ReadQuery::default()
    };
    let broken = |error: nullspace_protocol::GuestError| CopyError::Guest(error.to_string());
    match info.kind {
        FileKind::File => {
            let (info, bytes) = guest.read(&query).await.map_err(broken)?;
            if info.size > limit {
                return Err(CopyError::TooLarge);
            }
            let mode = info.mode;
            on_thread(bytes, move |bytes| copy_file(bytes, &to, mode, limit)).await
        }
        FileKind::Dir => {
            let bytes = guest.tar(&query).await.map_err(broken)?;
            on_thread(bytes, move |bytes| copy_tree(bytes, &to, limit)).await
        }
        FileKind::Symlink | FileKind::Other => Err(CopyError::Kind),
    }
    .map(Some)
}

/// Runs blocking work that reads a stream.
async fn on_thread(
    bytes: ByteStream,
    work: impl FnOnce(&mut dyn io::Read) -> Result<Copied, CopyError> + Send + 'static,
) -> Result<Copied, CopyError> {
    let bytes = bytes.map(|piece| piece.map_err(|e| io::Error::new(io::ErrorKind::BrokenPipe, e)));
    let mut bridge = SyncIoBridge::new(StreamReader::new(bytes));
    tokio::task::spawn_blocking(move || work(&mut bridge))
        .await
        .unwrap_or_else(|error| Err(CopyError::Disk(io::Error::other(error))))
}

/// Bits that a kept file has: those of the machine's user, and always readable for the server.
fn file_mode(mode: u32) -> u32 {
    mode & 0o777 | 0o600
}

fn copy_file(
    bytes: &mut dyn io::Read,
    to: &Path,
    mode: u32,
    limit: u64,
) -> Result<Copied, CopyError> {
    let mut file = fs::File::create_new(to)?;
    let count = copy_bytes(bytes, &mut file, limit)?;
    file.set_permissions(fs::Permissions::from_mode(file_mode(mode)))?;
    Ok(Copied {
        bytes: count,
        files: 1,
        ..Copied::default()
    })
}

/// Copies at most `limit` bytes.
fn copy_bytes(from: &mut dyn io::Read, to: &mut fs::File, limit: u64) -> Result<u64, CopyError> {
    let count = io::copy(&mut io::Read::take(from, limit.saturating_add(1)), to)?;
    if count > limit {
        return Err(CopyError::TooLarge);
    }
    Ok(count)
}

fn copy_tree(bytes: &mut dyn io::Read, to: &Path, limit: u64) -> Result<Copied, CopyError> {
    fs::create_dir(to)?;
    let top = open_dir(to)?;
    let mut copied = Copied {
        directory: true,
        ..Copied::default()
    };
    let mut entries = 0;
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries()? {
        let mut entry = entry?;
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(CopyError::TooMany);
        }
        let path = entry.path()?.into_owned();
        let mode = entry.header().mode().unwrap_or(0o644);
        let kind = entry.header().entry_type();
        let Some(path) = plain(&path) else {
            // The directory itself, or a name that leads elsewhere.
            if !kind.is_dir() {
                copied.skipped += 1;
            }
            continue;
        };
        if kind.is_dir() {
            make_dirs(&top, &path)?;
        } else if kind.is_file() {
            if let Some(parent) = path.parent() {
                make_dirs(&top, parent)?;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut file = fs::File::from(beneath(&top, &path, flags, 0o600)?);
            copied.bytes += copy_bytes(&mut entry, &mut file, limit - copied.bytes)?;
            file.set_permissions(fs::Permissions::from_mode(file_mode(mode)))?;
            copied.files += 1;
        } else {
            copied.skipped += 1;
        }
    }
    Ok(copied)
}

/// A relative path of plain names; `None` for the directory itself and for what leads out of it.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(clean).filter(|path| !path.as_os_str().is_empty())
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens below `top`, never through a link.
fn beneath(top: impl AsFd, path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        top,
        path,
        flags,
        Mode::from_raw_mode(mode),
        resolve,
    )?)
}

fn make_dirs(top: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut so_far = PathBuf::new();
    for part in path.components() {
        let parent = if so_far.as_os_str().is_empty() {
            top.try_clone()?
        } else {
            beneath(
                top,
                &so_far,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                0,
            )?
        };
        match rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        so_far.push(part);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tree(
        build: impl FnOnce(&mut tar::Builder<Vec<u8>>),
    ) -> (tempfile::TempDir, Result<Copied, CopyError>) {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let bytes = builder.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copied = copy_tree(&mut bytes.as_slice(), &dir.path().join("0"), 1 << 20);
        (dir, copied)
    }

    fn member(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, data: &[u8]) {
        let mut header = tar::Header::new_ustar();
        // Written by hand: the library refuses names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc").unwrap();
        }
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    fn a_hostile_archive_stays_in_its_place() {
        use tar::EntryType as Kind;
        let (dir, copied) = tree(|builder| {
            member(builder, "../escaped", Kind::Regular, b"x");
            member(builder, "/absolute", Kind::Regular, b"x");
            member(builder, "link", Kind::Symlink, b"");
            member(
                builder,
                "link/passwd",
                Kind::Regular,
                b"fine: the link was never made",
            );
            member(builder, "device", Kind::Char, b"");
            member(builder, "a/b/c", Kind::Regular, b"deep");
        });
        let copied = copied.unwrap();
        assert_eq!((copied.files, copied.skipped), (2, 4));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read(dir.path().join("0/a/b/c")).unwrap(), b"deep");
        assert!(
            fs::symlink_metadata(dir.path().join("0/link"))
                .unwrap()
                .is_dir()
        );
    }

    #[test]
    fn the_same_name_twice_is_refused() {
        let (_dir, copied) = tree(|builder| {
            member(builder, "a", tar::EntryType::Regular, b"1");
            member(builder, "a", tar::EntryType::Regular, b"2");
        });
        assert!(matches!(copied, Err(CopyError::Disk(_))), "{copied:?}");
    }

    #[test]
    fn output_is_bounded() {
        let (_dir, copied) = tree(|builder| {
            member(builder, "a", tar::EntryType::Regular, &vec![0; 1 << 19]);
            member(
                builder,
                "b",
                tar::EntryType::Regular,
                &vec![0; (1 << 19) + 1],
            );
        });
        assert!(matches!(copied, Err(CopyError::TooLarge)), "{copied:?}");
    }
}

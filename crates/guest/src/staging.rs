//! Uploads in parts: see [`nullspace_protocol::upload`] for the order of the calls.
//!
//! The staged file is in the file system of its target, so that publishing is a rename. Nothing about it is remembered
//! here but what is being published right now and the last results: whoever asks again gets the same answer.

mod archive;

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hyper::body::Incoming;
use nullspace_protocol::{
    Conflict, DiscardRequest, ErrorBody, ErrorKind, PartQuery, PublishOutcome, PublishRequest,
    Published, RefusedReason, StageRequest, Staged, UploadKind,
};
use rustix::fs::{FallocateFlags, RenameFlags};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, mpsc};

use crate::{
    Guest,
    error::{Error, Result},
    files::{Files, IN_FLIGHT, INCOMING, Target, cut_off, feed},
};

/// Results that are remembered.
const REMEMBERED: usize = 256;
/// Bytes that are read at once for a checksum.
const CHUNK: usize = 1 << 20;
const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

type Outcome = std::result::Result<PublishOutcome, ErrorBody>;

/// What is being published, and the last that was, by staged file.
#[derive(Clone, Default)]
pub(crate) struct Publishing(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    cells: HashMap<String, Arc<OnceCell<Outcome>>>,
    order: VecDeque<String>,
}

impl Publishing {
    fn cell(&self, staging: &str) -> Arc<OnceCell<Outcome>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = table.cells.get(staging) {
            return cell.clone();
        }
        if table.order.len() >= REMEMBERED
            && let Some(oldest) = table.order.pop_front()
        {
            table.cells.remove(&oldest);
        }
        table.order.push_back(staging.to_owned());
        let cell = Arc::<OnceCell<Outcome>>::default();
        table.cells.insert(staging.to_owned(), cell.clone());
        cell
    }

    fn forget(&self, staging: &str) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.cells.remove(staging);
        table.order.retain(|name| name != staging);
    }
}

/// Why nothing was published: what the host should tell its client, or what the system said.
pub(super) enum Failure {
    Refused(RefusedReason, String, Option<String>),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Makes the staged file and reserves its bytes.
pub(crate) async fn stage(guest: &Guest, request: StageRequest) -> Result<Staged> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if request.name.is_empty() || request.name.len() > 64 || !request.name.chars().all(is_name) {
        return Err(Error::invalid("the name of an upload is not one"));
    }
    let files = Files::new(guest, request.target.user.as_deref())?;
    let target = files.target(&request.target.path)?;
    if target.shown == "/" && request.target.kind == UploadKind::File {
        return Err(Error::invalid("the root is a directory"));
    }
    let root = guest.host_path("/");
    files
        .run(move || {
            let (kind, conflict) = (request.target.kind, request.target.conflict);
            check_target(&target, kind, conflict).map_err(|failure| match failure {
                Failure::Refused(_, message, _) => Error::new(ErrorKind::Exists, message),
                Failure::Error(error) => error,
            })?;
            let place = staging_place(&target, kind)?;
            let staging = place.join(format!("{INCOMING}{}", request.name));
            let shown = shown_of(&staging, &root);
            let fail = |error: io::Error| Error::io(&shown, &error);
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(O_NOFOLLOW)
                .open(&staging)
                .map_err(fail)?;
            if let Err(error) = reserve(&file, request.length) {
                let _ = fs::remove_file(&staging);
                return Err(fail(error));
            }
            Ok(Staged {
                staging: shown,
                target: target.shown,
            })
        })
        .await
}

/// Reserves room, where the file system can, so that a full disk is found before the bytes are sent.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(length),
        reserved => Ok(reserved?),
    }
}

/// The directory for the staged file: the nearest one above the target that is there.
fn staging_place(target: &Target, kind: UploadKind) -> Result<PathBuf> {
    // Through a link the file it points at is replaced, and the staged file must be in that one's file system.
    let real = match kind {
        UploadKind::File => fs::canonicalize(&target.real).unwrap_or_else(|_| target.real.clone()),
        UploadKind::DirectoryTar => target.real.clone(),
    };
    let mut place = real.parent().unwrap_or(&real);
    loop {
        match fs::metadata(place) {
            Ok(meta) if meta.is_dir() => return Ok(place.to_owned()),
            Ok(_) => {
                return Err(Error::invalid(format!(
                    "{}: a directory it should be in is a file",
                    target.shown
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                place = place
                    .parent()
                    .ok_or_else(|| Error::io(&target.shown, &error))?;
            }
            // Something further up is a file.
            Err(error) => return Err(Error::io(&target.shown, &error)),
        }
    }
}

fn shown_of(real: &Path, root: &Path) -> String {
    let inside = real.strip_prefix(root).unwrap_or(real);
    format!("/{}", inside.to_string_lossy())
}

/// Whether something is at the target that may not be replaced.
fn check_target(
    target: &Target,
    kind: UploadKind,
    conflict: Conflict,
) -> std::result::Result<(), Failure> {
    let refuse = |why: &str| {
        let message = format!("{}: {why}", target.shown);
        let path = Some(target.shown.clone());
        Err(Failure::Refused(
            RefusedReason::TargetConflict,
            message,
            path,
        ))
    };
    let Ok(meta) = fs::metadata(&target.real) else {
        return Ok(());
    };
    match (kind, meta.is_dir()) {
        (UploadKind::File, true) => refuse("is a directory"),
        (UploadKind::DirectoryTar, false) => refuse("is not a directory"),
        _ if conflict == Conflict::Error => refuse("is there already"),
        _ => Ok(()),
    }
}

/// Writes a part into its place.
pub(crate) async fn part(guest: &Guest, query: PartQuery, body: Incoming) -> Result<()> {
    let files = Files::new(guest, query.user.as_deref())?;
    let staging = files.target(&query.staging)?;
    let (sender, mut receiver) = mpsc::channel::<Option<bytes::Bytes>>(IN_FLIGHT);
    let store = files.run(move || {
        let fail = |error: io::Error| Error::io(&staging.shown, &error);
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(O_NOFOLLOW)
            .open(&staging.real)
            .map_err(fail)?;
        let mut written = 0;
        while let Some(message) = receiver.blocking_recv() {
            let Some(data) = message else {
                if written == query.length {
                    return Ok(());
                }
                return Err(Error::invalid(format!(
                    "the part has {written} bytes, not {}",
                    query.length
                )));
            };
            if written + data.len() as u64 > query.length {
                return Err(Error::invalid(format!(
                    "the part has more than {} bytes",
                    query.length
                )));
            }
            file.write_all_at(&data, query.offset + written)
                .map_err(fail)?;
            written += data.len() as u64;
        }
        Err(cut_off())
    });
    let ((), stored) = tokio::join!(feed(body, sender), store);
    stored
}

/// Checks a staged upload and puts it in its place.
pub(crate) async fn publish(guest: &Guest, request: PublishRequest) -> Result<PublishOutcome> {
    let publishing = guest.inner.publishing.clone();
    let cell = publishing.cell(&request.staging);
    let guest = guest.clone();
    // Not dropped with a host that goes away: what was begun is ended, and the next who asks waits for it.
    let outcome = tokio::spawn(async move {
        let staging = request.staging.clone();
        let outcome = cell.get_or_init(|| put(guest, request)).await.clone();
        if !matches!(outcome, Ok(PublishOutcome::Published(_))) {
            publishing.forget(&staging);
        }
        outcome
    })
    .await;
    match outcome {
        Ok(outcome) => outcome.map_err(Error),
        Err(error) => Err(Error::new(ErrorKind::Io, error.to_string())),
    }
}

async fn put(guest: Guest, request: PublishRequest) -> Outcome {
    let published = async {
        let files = Files::new(&guest, request.target.user.as_deref())?;
        let staging = files.target(&request.staging)?;
        let target = files.target(&request.target.path)?;
        files
            .run(move || Ok(put_in_place(&staging, &target, &request)))
            .await
    };
    match published.await {
        Ok(Ok(published)) => Ok(PublishOutcome::Published(published)),
        Ok(Err(Failure::Refused(reason, message, path))) => Ok(PublishOutcome::Refused {
            reason,
            message,
            path,
        }),
        Ok(Err(Failure::Error(Error(body)))) | Err(Error(body)) => Err(body),
    }
}

fn put_in_place(
    staging: &Target,
    target: &Target,
    request: &PublishRequest,
) -> std::result::Result<Published, Failure> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW)
        .open(&staging.real)
        .map_err(|e| Error::io(&staging.shown, &e))?;
    let length = file.metadata().map_err(|e| Error::io(&staging.shown, &e))?;
    if length.len() != request.length {
        let message = format!("{} bytes are staged, not {}", length.len(), request.length);
        return Err(Error::invalid(message).into());
    }
    if let Some(announced) = &request.sha256 {
        let found = checksum(&file).map_err(|e| Error::io(&staging.shown, &e))?;
        if found != *announced {
            let message = format!("the bytes have the SHA-256 {found}, not {announced}");
            let reason = RefusedReason::WholeChecksumMismatch;
            return Err(Failure::Refused(reason, message, None));
        }
    }
    check_target(target, request.target.kind, request.target.conflict)?;
    match request.target.kind {
        UploadKind::File => publish_file(&file, staging, target, request.target.conflict)
            .map(|()| Published {
                bytes: request.length,
                files: 1,
            })
            .map_err(|error| Error::io(&target.shown, &error).into()),
        UploadKind::DirectoryTar => {
            let mut unpacked = staging.clone();
            unpacked.real.as_mut_os_string().push(".d");
            unpacked.shown.push_str(".d");
            let published = archive::publish(&file, &unpacked, target, request.target.conflict);
            // With nothing published the staged archive stays, for another try.
            let _ = fs::remove_dir_all(&unpacked.real);
            if published.is_ok() {
                let _ = fs::remove_file(&staging.real);
            }
            published
        }
    }
}

fn checksum(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn publish_file(
    file: &File,
    staging: &Target,
    target: &Target,
    conflict: Conflict,
) -> io::Result<()> {
    let real = fs::canonicalize(&target.real).unwrap_or_else(|_| target.real.clone());
    let mode = match fs::metadata(&real) {
        Ok(meta) => {
            // Only root may give files away; others keep their own.
            let _ = std::os::unix::fs::fchown(file, Some(meta.uid()), Some(meta.gid()));
            meta.mode() & 0o7777
        }
        Err(_) => 0o644,
    };
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some(parent) = real.parent() {
        fs::create_dir_all(parent)?;
    }
    rename(&staging.real, &real, conflict == Conflict::Error)
}

/// rename(2); with `fresh` only to where nothing is.
fn rename(from: &Path, to: &Path, fresh: bool) -> io::Result<()> {
    if !fresh {
        return fs::rename(from, to);
    }
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, from, here, to, RenameFlags::NOREPLACE) {
        // Not every file system can; it was looked at a moment ago.
        Err(rustix::io::Errno::INVAL) => fs::rename(from, to),
        renamed => Ok(renamed?),
    }
}

/// Removes a staged upload.
pub(crate) async fn discard(guest: &Guest, request: DiscardRequest) -> Result<()> {
    let files = Files::new(guest, None)?;
    let staging = files.target(&request.staging)?;
    let is_ours =
        (staging.real.file_name()).is_some_and(|name| name.to_string_lossy().starts_with(INCOMING));
    if !is_ours {
        return Err(Error::invalid("this is no staged upload"));
    }
    files
        .run(move || match fs::remove_file(&staging.real) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(&staging.shown, &error))
            }
            _ => Ok(()),
        })
        .await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_appears_at_the_last_moment_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = |name: &str| Target {
            shown: format!("/{name}"),
            real: directory.path().join(name),
        };
        let (staging, there) = (target("staged"), target("there"));
        for (conflict, kept) in [(Conflict::Error, "old"), (Conflict::Replace, "new")] {
            fs::write(&staging.real, "new").unwrap();
            fs::write(&there.real, "old").unwrap();
            let file = File::open(&staging.real).unwrap();
            let published = publish_file(&file, &staging, &there, conflict);
            assert_eq!(published.is_err(), kept == "old");
            assert_eq!(fs::read_to_string(&there.real).unwrap(), kept);
        }
    }
}

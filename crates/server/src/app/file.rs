//! Files of machines and volumes. A guest opens the paths, inside its own root (of a volume: its keeper); here they are only
//! checked against the platform's own folder and turned into what the wire says.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_api::{
    error::code,
    file::{Encoding, FileInfo},
    id as ids, time,
};
use nullspace_lifecycle::machine::State;
use nullspace_protocol::{
    ByteStream, ErrorKind, FileInfo as GuestInfo, FileKind, GuestClient, GuestError, PathRequest,
    PermissionsRequest, ReadQuery, RenameRequest, WatchRequest, WatchStream, WriteQuery,
};

use super::{
    App,
    exec::lossy,
    machine,
    output::KeptFile,
    volume::{self, Limits, Room},
};
use crate::error::{Error, Kind, Result};

/// The protocol version from which on guests search, watch and take uploads in parts.
const WORKSPACE: u32 = 3;
/// The largest file that an answer in JSON holds.
const MAX_READ: u64 = 64 << 20;

/// The files of one running machine, on behalf of one of its users, or those of a volume.
#[derive(Debug)]
pub struct Files {
    pub(super) guest: GuestClient,
    place: Place,
    pub(super) user: Option<String>,
}

/// Whose files.
#[derive(Debug)]
enum Place {
    Machine {
        cwd: String,
    },
    Volume {
        open: Arc<volume::Open>,
        limits: Option<Limits>,
    },
}

impl Files {
    /// Reaches the machine, or the volume if the id is one's. A machine whose run is over counts as gone already: it would be gone before much of a file was
    /// read, and what was kept of it is all there.
    ///
    /// # Errors
    /// Those of [`machine::guest`]; of a volume `not_found`, `invalid_request` (it has no users),
    /// `volume_backend_unavailable`.
    pub async fn open(app: &App, id: &str, user: Option<String>) -> Result<Self> {
        let user = user.filter(|user| !user.is_empty());
        if id.starts_with(ids::VOLUME) {
            return Self::of_volume(app, id, user).await;
        }
        let guest = machine::guest(app, id).await?;
        let row = machine::get(app, id).await?;
        if let (Some(_), Some(outputs)) = (&row.owner, app.outputs.get()) {
            let leaving = outputs.is_leaving(id).await;
            if leaving.map_err(|e| Error::internal(format!("looking for a machine's run: {e}")))? {
                return Err(Error::not_ready(id, State::Destroyed.as_str()));
            }
        }
        Ok(Self {
            guest,
            place: Place::Machine {
                cwd: row.cwd.clone(),
            },
            user,
        })
    }

    async fn of_volume(app: &App, id: &str, user: Option<String>) -> Result<Self> {
        let (row, open) = volume::open(app, id).await?;
        if user.is_some() {
            return Err(Error::invalid("user: a volume has no users"));
        }
        Ok(Self {
            guest: open.guest().await?,
            place: Place::Volume {
                limits: Limits::of(&row),
                open,
            },
            user: None,
        })
    }

    /// Something in a volume is about to be changed: it has to be counted.
    pub(super) fn touch(&self) {
        if let Place::Volume { open, .. } = &self.place {
            open.write();
        }
    }

    /// The same for what takes room. Others who write to a volume with limits wait until the answer is dropped.
    ///
    /// # Errors
    /// `volume_quota_exceeded`.
    pub(super) async fn make_room(
        &self,
        bytes: u64,
    ) -> Result<Option<(Room, tokio::sync::MutexGuard<'_, ()>)>> {
        self.touch();
        match &self.place {
            Place::Volume {
                open,
                limits: Some(limits),
            } => {
                let alone = open.gate.lock().await;
                Ok(Some((volume::room(open, *limits, bytes).await?, alone)))
            }
            _ => Ok(None),
        }
    }

    /// Refuses empty paths and the platform's own folder.
    pub(super) fn check(&self, path: String) -> Result<String> {
        if path.is_empty() || path.contains('\0') {
            return Err(Error::invalid("path: must not be empty or hold a NUL byte"));
        }
        let Place::Machine { cwd } = &self.place else {
            return in_volume(path);
        };
        // Another user's relative paths start at a home that only the guest knows; homes are not in the
        // reserved folder.
        let base = if self.user.is_some() { "/" } else { cwd };
        if machine::is_reserved(base, &path) {
            return Err(Error::invalid(format!(
                "path: {} is reserved",
                machine::RESERVED
            )));
        }
        Ok(path)
    }

    /// What is none of the caller's there.
    pub(super) fn reserved(&self) -> Option<&'static str> {
        matches!(self.place, Place::Machine { .. }).then_some(machine::RESERVED)
    }

    fn is_reserved(&self, path: &str) -> bool {
        self.reserved().is_some() && machine::is_reserved("/", path)
    }

    /// Refuses what the guest of a machine that an earlier version made cannot do.
    pub(super) fn require_workspace(&self, what: &str) -> Result<()> {
        if self.guest.hello().protocol >= WORKSPACE {
            return Ok(());
        }
        let what = format!("{what} in a machine that an earlier version made");
        Err(Error::not_implemented(what).with_action("make a new machine"))
    }

    fn request(&self, path: String) -> Result<PathRequest> {
        Ok(PathRequest {
            path: self.check(path)?,
            user: self.user.clone(),
            ..PathRequest::default()
        })
    }

    /// A directory's entries, sorted by path. The platform's own folder is not among them.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (not a directory).
    pub async fn list(&self, path: String, depth: u32) -> Result<Vec<FileInfo>> {
        let request = PathRequest {
            depth,
            ..self.request(path)?
        };
        let entries = self.guest.list(&request).await.map_err(file_error)?;
        Ok(entries
            .into_iter()
            .filter(|entry| !self.is_reserved(&entry.path))
            .map(info)
            .collect())
    }

    /// One object; links are not followed.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`.
    pub async fn info(&self, path: String) -> Result<FileInfo> {
        let request = self.request(path)?;
        let found = self.guest.stat(&request).await.map_err(file_error)?;
        Ok(info(found))
    }

    /// Whether there is something at the path.
    ///
    /// # Errors
    /// `permission_denied`.
    pub async fn exists(&self, path: String) -> Result<bool> {
        let request = self.request(path)?;
        match self.guest.stat(&request).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok(false),
            // Something on the way is a file: then there is nothing at the path.
            Err(error) if error.kind() == Some(ErrorKind::Invalid) && self.user.is_none() => {
                Ok(false)
            }
            Err(error) => Err(file_error(error)),
        }
    }

    /// A file's size as links lead to it.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`.
    pub async fn size(&self, path: String) -> Result<u64> {
        let request = PathRequest {
            follow: true,
            ..self.request(path)?
        };
        Ok(self.guest.stat(&request).await.map_err(file_error)?.size)
    }

    /// A file's bytes, or some of them.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (not a file).
    pub async fn read(
        &self,
        path: String,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileInfo, ByteStream)> {
        let query = ReadQuery {
            path: self.check(path)?,
            user: self.user.clone(),
            offset,
            length,
            except: None,
        };
        let (found, bytes) = self.guest.read(&query).await.map_err(file_error)?;
        Ok((info(found), bytes))
    }

    /// A directory's files, directories and links as a tar, names relative to it. The platform's own folder is not in it.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (not a directory).
    pub async fn archive(&self, path: String) -> Result<ByteStream> {
        let path = self.downloadable(path, true).await?;
        let query = ReadQuery {
            path,
            user: self.user.clone(),
            except: self.reserved().map(str::to_owned),
            ..ReadQuery::default()
        };
        self.guest.tar(&query).await.map_err(file_error)
    }

    /// The path, if it can be downloaded: a file as it is, a directory as an archive.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (the other one of the two).
    pub async fn downloadable(&self, path: String, as_archive: bool) -> Result<String> {
        let request = PathRequest {
            follow: true,
            ..self.request(path)?
        };
        let found = self.guest.stat(&request).await.map_err(file_error)?;
        match (found.kind == FileKind::Dir, as_archive) {
            (true, false) => Err(Error::invalid("path: is a directory")
                .with_action("say `\"archive_format\": \"tar\"` to get it as an archive")),
            (false, true) => Err(Error::invalid("path: is not a directory")
                .with_action("leave `archive_format` out")),
            _ => Ok(request.path),
        }
    }

    /// A whole file as text or base64.
    ///
    /// # Errors
    /// As [`Files::read`]; `file_error` for one that is too large for this way.
    pub async fn content(&self, path: String, encoding: Encoding) -> Result<(String, u64)> {
        let (found, mut stream) = self.read(path, 0, None).await?;
        let too_large = || {
            Error::new(
                Kind::TooLarge,
                code::FILE_ERROR,
                format!("the file is larger than {MAX_READ} bytes"),
            )
            .with_action("download it with GET …/file")
        };
        if found.size > MAX_READ {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.size).unwrap_or(0));
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| broken(&e))?;
            if bytes.len() + chunk.len() > MAX_READ as usize {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        let size = bytes.len() as u64;
        let content = match encoding {
            Encoding::Utf8 => lossy(bytes),
            Encoding::Base64 => base64::engine::general_purpose::STANDARD.encode(bytes),
        };
        Ok((content, size))
    }

    /// Replaces or makes a file from a stream; it appears whole or not at all.
    ///
    /// # Errors
    /// `permission_denied`, `invalid_request`, `file_error`.
    pub async fn write<S>(&self, path: String, data: S) -> Result<FileInfo>
    where
        S: Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
    {
        let query = WriteQuery {
            path: self.check(path)?,
            user: self.user.clone(),
            mode: None,
        };
        let found = match self.make_room(0).await? {
            None => self.guest.write(&query, data).await.map_err(file_error),
            Some((room, _alone)) => {
                let written = self.guest.write(&query, room.bound(data)).await;
                written.map_err(|error| room.explain(file_error(error)))
            }
        };
        Ok(info(found?))
    }

    /// The same from bytes.
    ///
    /// # Errors
    /// As [`Files::write`].
    pub async fn write_bytes(&self, path: String, data: Bytes) -> Result<FileInfo> {
        // In pieces that fit the connection's frames.
        let chunks: Vec<_> = (0..data.len())
            .step_by(CHUNK)
            .map(|at| Ok(data.slice(at..data.len().min(at + CHUNK))))
            .collect();
        self.write(path, futures_util::stream::iter(chunks)).await
    }

    /// Makes a directory and its parents.
    ///
    /// # Errors
    /// `permission_denied`, `conflict` (a file is there).
    pub async fn mkdir(&self, path: String) -> Result<()> {
        let request = self.request(path)?;
        let _alone = self.make_room(0).await?;
        self.guest.mkdir(&request).await.map_err(file_error)
    }

    /// Removes a file or a whole directory.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`.
    pub async fn remove(&self, path: String) -> Result<()> {
        let request = self.request(path)?;
        self.touch();
        self.guest.remove(&request).await.map_err(file_error)
    }

    /// Moves.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `conflict`.
    pub async fn rename(&self, old_path: String, new_path: String) -> Result<FileInfo> {
        let request = RenameRequest {
            old_path: self.check(old_path)?,
            new_path: self.check(new_path)?,
            user: self.user.clone(),
        };
        self.touch();
        let found = self.guest.rename(&request).await.map_err(file_error)?;
        Ok(info(found))
    }

    /// Watches a path. The platform's own folder is left out.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request` (too many directories), `file_error` (too many watches).
    pub async fn watch(&self, path: String, recursive: bool) -> Result<WatchStream> {
        self.require_workspace("watching files")?;
        let request = WatchRequest {
            path: self.check(path)?,
            user: self.user.clone(),
            recursive,
            except: self.reserved().into_iter().map(str::to_owned).collect(),
        };
        match self.guest.watch(&request).await {
            // A limit of the machine or the host, not a fault of ours.
            Err(error) if error.kind() == Some(ErrorKind::Exhausted) => Err(Error::new(
                Kind::Limit,
                code::CAPACITY_EXCEEDED,
                error.to_string(),
            )),
            watched => watched.map_err(file_error),
        }
    }

    /// Sets permission bits from octal digits.
    ///
    /// # Errors
    /// `not_found`, `permission_denied`, `invalid_request`.
    pub async fn permissions(&self, path: String, permissions: &str) -> Result<()> {
        let digits = permissions.strip_prefix("0o").unwrap_or(permissions);
        let mode = (!digits.is_empty() && digits.len() <= 5)
            .then(|| u32::from_str_radix(digits, 8).ok())
            .flatten()
            .filter(|mode| *mode <= 0o7777)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "permissions: {permissions:?} is not octal digits up to 7777"
                ))
            })?;
        let request = PermissionsRequest {
            path: self.check(path)?,
            mode,
            user: self.user.clone(),
        };
        self.touch();
        self.guest.permissions(&request).await.map_err(file_error)
    }
}

/// A path of a volume: absolute, and not out of it.
fn in_volume(path: String) -> Result<String> {
    let mut depth = 0_usize;
    let mut stays = path.starts_with('/');
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => stays = false,
            },
            _ => depth += 1,
        }
    }
    match stays {
        true => Ok(path),
        false => Err(Error::invalid(
            "path: must be an absolute path that does not lead out of the volume",
        )),
    }
}

/// Bytes sent to the guest at once.
const CHUNK: usize = 256 << 10;

/// A file that was kept of a machine that is gone.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready` (nothing of that path was kept).
pub async fn kept(app: &App, id: &str, path: &str) -> Result<KeptFile> {
    let found = match app.outputs.get() {
        Some(outputs) => outputs.open(id, path).await,
        None => Ok(None),
    };
    or_gone(app, id, found).await
}

/// What is known about a file or directory that was kept of a machine that is gone.
///
/// # Errors
/// As [`kept`].
pub async fn kept_info(app: &App, id: &str, path: &str) -> Result<FileInfo> {
    let found = match app.outputs.get() {
        Some(outputs) => outputs.info(id, path).await,
        None => Ok(None),
    };
    or_gone(app, id, found).await
}

/// The entries of a directory that was kept of a machine that is gone.
///
/// # Errors
/// As [`kept`].
pub async fn kept_list(app: &App, id: &str, path: &str, depth: u32) -> Result<Vec<FileInfo>> {
    let found = match app.outputs.get() {
        Some(outputs) => outputs.list(id, path, depth).await,
        None => Ok(None),
    };
    or_gone(app, id, found).await
}

async fn or_gone<T>(app: &App, id: &str, found: std::io::Result<Option<T>>) -> Result<T> {
    match found {
        Ok(Some(found)) => Ok(found),
        Ok(None) => {
            let row = machine::get(app, id).await?;
            Err(Error::not_ready(id, &row.state))
        }
        Err(error) => Err(Error::internal(format!("reading kept files: {error}"))),
    }
}

/// Refusals about files; the machine itself is fine.
pub(super) fn file_error(error: GuestError) -> Error {
    match error.kind() {
        Some(ErrorKind::Exhausted) => {
            Error::new(Kind::Internal, code::FILE_ERROR, error.to_string())
        }
        _ => error.into(),
    }
}

fn broken(error: &std::io::Error) -> Error {
    Error::new(
        Kind::Machine,
        code::FILE_ERROR,
        "the machine went away while the file was read",
    )
    .with_context(error.to_string())
}

fn info(found: GuestInfo) -> FileInfo {
    let mode = format!("{:04o}", found.mode);
    let kind = match found.kind {
        FileKind::File => "file",
        FileKind::Dir => "dir",
        FileKind::Symlink => "symlink",
        FileKind::Other => "other",
    };
    let microseconds = i64::try_from(found.modified_ns.div_euclid(1000)).unwrap_or(0);
    FileInfo {
        is_dir: found.kind == FileKind::Dir,
        name: found.name,
        path: found.path,
        size: found.size,
        kind: kind.into(),
        permissions: mode.clone(),
        mode,
        owner: found.owner,
        group: found.group,
        modified_time: time::rfc3339(microseconds),
        symlink_target: found.symlink_target,
    }
}

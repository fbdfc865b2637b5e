//! Files of the machine. Paths are opened by the guest inside the machine's own root, so nothing a path
//! says can lead out of it; the host never resolves one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nullspace_protocol::{
    FileInfo, FileKind, PathRequest, PermissionsRequest, ReadQuery, RenameRequest, WriteQuery,
};
use tokio::sync::mpsc;

use crate::{
    Guest,
    error::{Error, Result},
    users::{Names, User},
};

/// The most entries one list answers with.
const MAX_ENTRIES: usize = 200_000;
/// What the kernel shows in the machine's root.
const KERNEL: [&str; 3] = ["dev", "proc", "sys"];
/// The deepest a list goes.
const MAX_DEPTH: u32 = 64;
/// Bytes moved at once.
const CHUNK: usize = 256 << 10;
/// Chunks under way between a file and the connection.
pub(crate) const IN_FLIGHT: usize = 4;
/// How the names of files that are not in their place yet begin. Watches do not tell of them.
pub(crate) const INCOMING: &str = ".nullspace-incoming-";
/// The same for one that will replace a file.
pub(crate) const INCOMING_OVER: &str = ".nullspace-incoming-over-";
const O_NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;
const O_NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Bytes on their way to the host.
pub(crate) type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// A request's path as the machine sees it and as this process opens it.
#[derive(Clone)]
pub(crate) struct Target {
    /// Absolute in the machine.
    pub(crate) shown: String,
    pub(crate) real: PathBuf,
}

/// The files of one guest, on behalf of one user of the machine.
pub(crate) struct Files<'a> {
    guest: &'a Guest,
    pub(crate) user: Option<User>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(guest: &'a Guest, user: Option<&str>) -> Result<Self> {
        let user = match user {
            None | Some("root" | "0") => None,
            Some(name) => Some(Names::read(&guest.host_path("/etc")).find(name)?),
        };
        Ok(Self { guest, user })
    }

    /// Relative paths start at the machine's default directory, or at the user's home.
    pub(crate) fn target(&self, path: &str) -> Result<Target> {
        if path.is_empty() || path.contains('\0') {
            return Err(Error::invalid("the path is empty or holds a NUL byte"));
        }
        let defaults = self.guest.defaults();
        let base = self
            .user
            .as_ref()
            .map_or(defaults.cwd.as_str(), |u| u.home.as_str());
        let mut parts: Vec<&str> = Vec::new();
        let base = if path.starts_with('/') { "" } else { base };
        for part in base.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                name => parts.push(name),
            }
        }
        let shown = format!("/{}", parts.join("/"));
        let real = self.guest.host_path(&shown);
        Ok(Target { shown, real })
    }

    /// Does the work as the user: on a thread of its own when that is not root.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let user = self.user.clone();
        let task = tokio::task::spawn_blocking(move || match user {
            None => work(),
            Some(user) => nullspace_sys::cred::as_user(user.uid, user.gid, user.groups, work)
                .map_err(|e| Error::io("changing user", &e))?,
        });
        task.await
            .unwrap_or_else(|e| Err(Error::new(nullspace_protocol::ErrorKind::Io, e.to_string())))
    }
}

pub(crate) async fn stat(guest: &Guest, request: PathRequest) -> Result<FileInfo> {
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    let etc = guest.host_path("/etc");
    files
        .run(move || info(&target, request.follow, &Names::read(&etc)))
        .await
}

pub(crate) async fn list(guest: &Guest, request: PathRequest) -> Result<Vec<FileInfo>> {
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    let etc = guest.host_path("/etc");
    let depth = request.depth.clamp(1, MAX_DEPTH);
    files
        .run(move || {
            let names = Names::read(&etc);
            let mut found = Vec::new();
            walk(&target, depth, &names, &mut found)?;
            found.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(found)
        })
        .await
}

fn walk(directory: &Target, depth: u32, names: &Names, found: &mut Vec<FileInfo>) -> Result<()> {
    let entries = fs::read_dir(&directory.real).map_err(|e| Error::io(&directory.shown, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(&directory.shown, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let shown = format!("{}/{name}", directory.shown.trim_end_matches('/'));
        let child = Target {
            shown,
            real: entry.path(),
        };
        // An entry may vanish between the listing and the look. The look is from the directory that is open, not along the
        // whole path.
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        let details = describe(&child, &meta, names);
        if found.len() == MAX_ENTRIES {
            return Err(Error::invalid(format!(
                "{}: over {MAX_ENTRIES} entries",
                directory.shown
            )));
        }
        let descend = details.kind == FileKind::Dir && depth > 1;
        found.push(details);
        if descend {
            match walk(&child, depth - 1, names, found) {
                // A directory that may not be read is listed without its children.
                Err(Error(body)) if body.kind == nullspace_protocol::ErrorKind::Invalid => {
                    return Err(Error(body));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn info(target: &Target, follow: bool, names: &Names) -> Result<FileInfo> {
    let meta = if follow {
        fs::metadata(&target.real)
    } else {
        fs::symlink_metadata(&target.real)
    };
    let meta = meta.map_err(|e| Error::io(&target.shown, &e))?;
    Ok(describe(target, &meta, names))
}

fn describe(target: &Target, meta: &fs::Metadata, names: &Names) -> FileInfo {
    let kind = match meta.file_type() {
        t if t.is_file() => FileKind::File,
        t if t.is_dir() => FileKind::Dir,
        t if t.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let link = (kind == FileKind::Symlink)
        .then(|| fs::read_link(&target.real).ok())
        .flatten();
    FileInfo {
        name: target
            .shown
            .rsplit('/')
            .next()
            .filter(|n| !n.is_empty())
            .unwrap_or("/")
            .to_owned(),
        path: target.shown.clone(),
        kind,
        size: if kind == FileKind::File {
            meta.len()
        } else {
            0
        },
        mode: meta.mode() & 0o7777,
        owner: names.user(meta.uid()),
        group: names.group(meta.gid()),
        modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        symlink_target: link.map(|l| l.to_string_lossy().into_owned()),
    }
}

/// Opens a regular file and streams its bytes.
pub(crate) async fn read(guest: &Guest, query: ReadQuery) -> Result<(FileInfo, Chunks)> {
    let files = Files::new(guest, query.user.as_deref())?;
    let target = files.target(&query.path)?;
    let etc = guest.host_path("/etc");
    let (details, file) = files
        .run(move || {
            let open = || -> io::Result<_> {
                // Not blocking: opening a pipe nobody writes to must not hold the thread.
                let mut file = OpenOptions::new()
                    .read(true)
                    .custom_flags(O_NONBLOCK)
                    .open(&target.real)?;
                let meta = file.metadata()?;
                if query.offset > 0 && meta.is_file() {
                    file.seek(SeekFrom::Start(query.offset))?;
                }
                Ok((meta, file))
            };
            let (meta, file) = open().map_err(|e| Error::io(&target.shown, &e))?;
            if !meta.is_file() {
                return Err(Error::invalid(format!(
                    "{}: not a regular file",
                    target.shown
                )));
            }
            Ok((describe(&target, &meta, &Names::read(&etc)), file))
        })
        .await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let mut left = query.length.unwrap_or(u64::MAX);
    tokio::task::spawn_blocking(move || {
        while left > 0 {
            let room = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            let mut chunk = Vec::with_capacity(room);
            // The whole chunk in one call: the library's own loops begin with small pieces.
            let item = match rustix::io::read(&file, rustix::buffer::spare_capacity(&mut chunk)) {
                Ok(0) => return,
                Ok(_) => {
                    chunk.truncate(room);
                    left -= chunk.len() as u64;
                    Ok(chunk.into())
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    left = 0;
                    Err(error.into())
                }
            };
            if sender.blocking_send(item).is_err() {
                return;
            }
        }
    });
    Ok((details, receiver))
}

/// Streams a directory (or one file) as a tar: see [`nullspace_protocol::GuestClient::tar`].
pub(crate) async fn tar(guest: &Guest, query: ReadQuery) -> Result<Chunks> {
    let files = Files::new(guest, query.user.as_deref())?;
    let target = files.target(&query.path)?;
    let except = match &query.except {
        Some(path) => Some(files.target(path)?.real),
        None => None,
    };
    // What the kernel shows in the machine's root is not of it, and has files without an end.
    let root = guest.host_path("/");
    let checked = target.clone();
    files
        .run(move || {
            fs::metadata(&checked.real)
                .map_err(|e| Error::io(&checked.shown, &e))
                .map(drop)
        })
        .await?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let user = files.user.clone();
    tokio::task::spawn_blocking(move || {
        let failed = sender.clone();
        let work = move || -> io::Result<()> {
            let mut archive = tar::Builder::new(ChunkWriter {
                sender,
                buffer: Vec::with_capacity(CHUNK),
            });
            archive.follow_symlinks(false);
            if fs::metadata(&target.real)?.is_dir() {
                let mut tree = Tree {
                    archive: &mut archive,
                    except: except.and_then(|path| path.canonicalize().ok()),
                    kernel: KERNEL.map(|name| root.join(name)),
                    left: MAX_ENTRIES,
                };
                tree.add(&target.real.canonicalize()?, Path::new(""), MAX_DEPTH)?;
            } else {
                let name = target
                    .real
                    .file_name()
                    .map(PathBuf::from)
                    .unwrap_or_default();
                archive.append_path_with_name(&target.real, name)?;
            }
            archive.into_inner()?.flush()
        };
        let result = match user {
            None => work(),
            Some(user) => nullspace_sys::cred::as_user(user.uid, user.gid, user.groups, work)
                .and_then(|result| result),
        };
        if let Err(error) = result {
            let _ = failed.blocking_send(Err(error));
        }
    });
    Ok(receiver)
}

/// A directory that becomes an archive.
struct Tree<'a, W: Write> {
    archive: &'a mut tar::Builder<W>,
    except: Option<PathBuf>,
    /// What the kernel shows, which is left out.
    kernel: [PathBuf; 3],
    left: usize,
}

impl<W: Write> Tree<'_, W> {
    /// Adds a directory's entries, sorted, so that the same tree gives the same archive.
    fn add(&mut self, real: &Path, inside: &Path, depth: u32) -> io::Result<()> {
        let mut entries = fs::read_dir(real)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), inside.join(entry.file_name()));
            if self.except.as_ref() == Some(&path) || self.kernel.contains(&path) {
                continue;
            }
            if self.left == 0 || depth == 0 {
                return Err(io::Error::other("the tree has too many entries or levels"));
            }
            self.left -= 1;
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                self.archive.append_dir(&name, &path)?;
                self.add(&path, &name, depth - 1)?;
            } else if kind.is_file() {
                self.add_file(&path, &name)?;
            } else if kind.is_symlink() {
                self.archive.append_path_with_name(&path, &name)?;
            }
        }
        Ok(())
    }

    /// Adds a file as long as it is now: what is written to it meanwhile must not shift what follows in the archive.
    fn add_file(&mut self, path: &Path, name: &Path) -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(O_NOFOLLOW | O_NONBLOCK)
            .open(path)?;
        let meta = file.metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_metadata(&meta);
        let bytes = file.chain(io::repeat(0)).take(meta.len());
        self.archive.append_data(&mut header, name, bytes)
    }
}

/// Collects small writes into chunks for the connection.
struct ChunkWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        if full.is_empty() {
            return Ok(());
        }
        self.sender
            .blocking_send(Ok(full.into()))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A new file beside its place, gone again unless it is published.
pub(crate) struct Upload {
    file: File,
    temporary: PathBuf,
    target: Target,
    published: bool,
}

impl Upload {
    pub(crate) fn create(target: Target, mode: Option<u32>) -> Result<Self> {
        let fail = |e: io::Error| Error::io(&target.shown, &e);
        let parent = target
            .real
            .parent()
            .ok_or_else(|| Error::invalid("the root is a directory"))?;
        let (mode, owner) = match fs::metadata(&target.real) {
            Ok(meta) if meta.is_dir() => {
                return Err(Error::invalid(format!("{}: is a directory", target.shown)));
            }
            Ok(meta) => (
                mode.unwrap_or(meta.mode() & 0o7777),
                Some((meta.uid(), meta.gid())),
            ),
            Err(_) => (mode.unwrap_or(0o644), None),
        };
        fs::create_dir_all(parent).map_err(|error| match error.kind() {
            // Said of a directory that is to be made where a file is.
            io::ErrorKind::AlreadyExists => Error::invalid(format!(
                "{}: the directory it should be in is a file",
                target.shown
            )),
            _ => fail(error),
        })?;
        // Through a link the file it points at is replaced, as a plain write would do.
        let real = fs::canonicalize(&target.real).unwrap_or_else(|_| target.real.clone());
        let target = Target { real, ..target };
        let fail = |e: io::Error| Error::io(&target.shown, &e);
        let parent = target.real.parent().unwrap_or(parent);
        let prefix = if owner.is_some() {
            INCOMING_OVER
        } else {
            INCOMING
        };
        for attempt in 0.. {
            let temporary = parent.join(format!("{prefix}{}-{attempt}", unique()));
            match OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
            {
                Ok(file) => {
                    let this = Self {
                        file,
                        temporary,
                        target,
                        published: false,
                    };
                    let finish = || -> io::Result<()> {
                        if let Some((uid, gid)) = owner {
                            // Only root may give files away; others keep their own.
                            let _ = std::os::unix::fs::fchown(&this.file, Some(uid), Some(gid));
                        }
                        this.file.set_permissions(fs::Permissions::from_mode(mode))
                    };
                    finish().map_err(|e| Error::io(&this.target.shown, &e))?;
                    return Ok(this);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 8 => {}
                Err(error) => return Err(fail(error)),
            }
        }
        Err(Error::invalid("unreachable"))
    }

    pub(crate) fn append(&mut self, data: &[u8]) -> Result<()> {
        self.file
            .write_all(data)
            .map_err(|e| Error::io(&self.target.shown, &e))
    }

    pub(crate) fn publish(mut self, etc: &Path) -> Result<FileInfo> {
        fs::rename(&self.temporary, &self.target.real)
            .map_err(|e| Error::io(&self.target.shown, &e))?;
        self.published = true;
        info(&self.target, false, &Names::read(etc))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// A number no other call of this process gets.
fn unique() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    (u64::from(std::process::id()) << 32) | NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Replaces a file by the request's bytes: whole or not at all.
pub(crate) async fn write(guest: &Guest, query: WriteQuery, body: Incoming) -> Result<FileInfo> {
    let files = Files::new(guest, query.user.as_deref())?;
    let target = files.target(&query.path)?;
    let etc = guest.host_path("/etc");
    let (sender, mut receiver) = mpsc::channel::<Option<Bytes>>(IN_FLIGHT);
    let store = files.run(move || {
        let mut incoming = Upload::create(target, query.mode)?;
        while let Some(message) = receiver.blocking_recv() {
            match message {
                Some(data) => incoming.append(&data)?,
                None => return incoming.publish(&etc),
            }
        }
        Err(cut_off())
    });
    let ((), stored) = tokio::join!(feed(body, sender), store);
    stored
}

/// Hands a body to whoever stores it. The end is a message of its own: a connection that breaks must not look like it.
pub(crate) async fn feed(mut body: Incoming, sender: mpsc::Sender<Option<Bytes>>) {
    loop {
        let message = match body.frame().await {
            None => None,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Some(data),
                Err(_) => continue,
            },
            Some(Err(_)) => return,
        };
        let end = message.is_none();
        if sender.send(message).await.is_err() || end {
            return;
        }
    }
}

/// A body that did not come to its end.
pub(crate) fn cut_off() -> Error {
    Error::new(nullspace_protocol::ErrorKind::Io, "the upload was cut off")
}

pub(crate) async fn mkdir(guest: &Guest, request: PathRequest) -> Result<()> {
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    files
        .run(move || fs::create_dir_all(&target.real).map_err(|e| Error::io(&target.shown, &e)))
        .await
}

pub(crate) async fn remove(guest: &Guest, request: PathRequest) -> Result<()> {
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    if target.shown == "/" {
        return Err(Error::invalid("the root cannot be removed"));
    }
    files
        .run(move || {
            let remove = || {
                if fs::symlink_metadata(&target.real)?.is_dir() {
                    fs::remove_dir_all(&target.real)
                } else {
                    fs::remove_file(&target.real)
                }
            };
            remove().map_err(|e| Error::io(&target.shown, &e))
        })
        .await
}

pub(crate) async fn rename(guest: &Guest, request: RenameRequest) -> Result<FileInfo> {
    let files = Files::new(guest, request.user.as_deref())?;
    let (old, new) = (
        files.target(&request.old_path)?,
        files.target(&request.new_path)?,
    );
    let etc = guest.host_path("/etc");
    files
        .run(move || {
            fs::rename(&old.real, &new.real)
                .map_err(|e| Error::io(&format!("{} to {}", old.shown, new.shown), &e))?;
            info(&new, false, &Names::read(&etc))
        })
        .await
}

pub(crate) async fn permissions(guest: &Guest, request: PermissionsRequest) -> Result<()> {
    let files = Files::new(guest, request.user.as_deref())?;
    let target = files.target(&request.path)?;
    if request.mode > 0o7777 {
        return Err(Error::invalid(format!(
            "mode {:o} is over 7777",
            request.mode
        )));
    }
    let mode = fs::Permissions::from_mode(request.mode);
    files
        .run(move || {
            fs::set_permissions(&target.real, mode).map_err(|e| Error::io(&target.shown, &e))
        })
        .await
}

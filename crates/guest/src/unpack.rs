//! A tar put over what is there: what builds of templates copy.
//!
//! Unlike uploads it comes from the host or from another machine of the same caller, may have links that lead anywhere,
//! and sets owners. What is hostile in it harms the machine that asked for it alone; this process bounds what it keeps.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::{Component, Path, PathBuf},
};

use bytes::Bytes;
use hyper::body::Incoming;
use nullspace_protocol::{UnpackQuery, Unpacked};
use tokio::sync::mpsc;

use crate::{
    Guest,
    error::{Error, Result},
    files::{Files, IN_FLIGHT, Target, cut_off, feed},
    users::Names,
};

/// More than any tree that is copied.
const MAX_ENTRIES: u64 = 1_000_000;

/// A request's body as it comes.
struct Body {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    is_whole: bool,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_whole {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.is_whole = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = into.len().min(self.piece.len());
        into[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

/// Unpacks the body; when this fails some of it may be there.
pub(crate) async fn unpack(guest: &Guest, query: UnpackQuery, body: Incoming) -> Result<Unpacked> {
    let files = Files::new(guest, None)?;
    let target = files.target(&query.path)?;
    let owner = match &query.owner {
        Some(owner) => {
            let user = Names::read(&guest.host_path("/etc")).identity(owner)?;
            Some((user.uid, user.gid))
        }
        None => None,
    };
    let (sender, pieces) = mpsc::channel::<Option<Bytes>>(IN_FLIGHT);
    let work = files.run(move || {
        let mut body = Body {
            pieces,
            piece: Bytes::new(),
            is_whole: false,
        };
        let owner = match (owner, query.keep_owners) {
            (Some(owner), _) => Some(owner),
            (None, false) => Some((0, 0)),
            (None, true) => None,
        };
        let unpacked = put(&mut body, &target, owner, query.mode)?;
        // What follows the archive's end is of no use, but the sender must get rid of it.
        io::copy(&mut body, &mut io::sink()).map_err(|_| cut_off())?;
        Ok(unpacked)
    });
    let ((), unpacked) = tokio::join!(feed(body, sender), work);
    unpacked
}

/// `owner` is whom everything belongs to; without one the archive says it.
fn put(
    body: &mut Body,
    target: &Target,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
) -> Result<Unpacked> {
    let broken = |error: io::Error| Error::invalid(format!("the archive: {error}"));
    let is_new = !target.real.is_dir();
    if is_new {
        let (uid, gid) = owner.unwrap_or((0, 0));
        fs::create_dir_all(&target.real)
            .and_then(|()| lchown(&target.real, Some(uid), Some(gid)))
            .map_err(|e| Error::io(&target.shown, &e))?;
    }
    let mut unpacked = Unpacked::default();
    let mut modes = BTreeMap::new();
    let mut archive = tar::Archive::new(body);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        let shown = format!("{}/{}", target.shown.trim_end_matches('/'), name.display());
        let inside = plain(&name)
            .ok_or_else(|| Error::invalid(format!("{shown}: leads out of the directory")))?;
        unpacked.entries += 1;
        if unpacked.entries > MAX_ENTRIES {
            return Err(Error::invalid("the archive has too many entries"));
        }
        let kind = entry.header().entry_type();
        let bits = mode.unwrap_or(entry.header().mode().unwrap_or(0o755) & 0o7777);
        let (uid, gid) = owner.unwrap_or_else(|| said_owner(entry.header()));
        let give = |path: &Path| lchown(path, Some(uid), Some(gid));
        let real = target.real.join(&inside);
        let system = |error: io::Error| Error::io(&shown, &error);
        if kind.is_dir() {
            if inside.as_os_str().is_empty() {
                if is_new {
                    modes.insert(real, bits);
                }
                continue;
            }
            fs::create_dir_all(&real).map_err(system)?;
            give(&fs::canonicalize(&real).map_err(system)?).map_err(system)?;
            modes.insert(real, bits);
            continue;
        }
        if inside.as_os_str().is_empty() {
            return Err(Error::invalid("an entry of the archive has no name"));
        }
        if let Some(parent) = real.parent() {
            fs::create_dir_all(parent).map_err(system)?;
        }
        match fs::symlink_metadata(&real) {
            Ok(there) if there.is_dir() => {
                return Err(Error::invalid(format!("{shown}: a directory is there")));
            }
            Ok(_) => fs::remove_file(&real).map_err(system)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system(error)),
        }
        if kind.is_symlink() {
            let link = entry.link_name().map_err(broken)?.unwrap_or_default();
            symlink(&link, &real).map_err(system)?;
            give(&real).map_err(system)?;
        } else if kind.is_hard_link() {
            let link = entry.link_name().map_err(broken)?.unwrap_or_default();
            let other = plain(&link)
                .ok_or_else(|| Error::invalid(format!("{shown}: links out of the directory")))?;
            fs::hard_link(target.real.join(other), &real).map_err(system)?;
        } else if kind.is_file() {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&real)
                .map_err(system)?;
            unpacked.bytes +=
                io::copy(&mut entry, &mut file).map_err(|error| match error.raw_os_error() {
                    Some(_) => Error::io(&shown, &error),
                    None => broken(error),
                })?;
            // Changing the owner takes special bits away, so they come last.
            give(&real).map_err(system)?;
            file.set_permissions(Permissions::from_mode(bits))
                .map_err(system)?;
        } else {
            return Err(Error::invalid(format!(
                "{shown}: is no file, directory or link"
            )));
        }
    }
    // The deepest first: a directory may forbid what is done in it.
    for (real, bits) in modes.into_iter().rev() {
        fs::set_permissions(&real, Permissions::from_mode(bits))
            .map_err(|error| Error::io(&real.to_string_lossy(), &error))?;
    }
    Ok(unpacked)
}

/// Whom an archive says that an entry belongs to; root if that is no number that can be one.
fn said_owner(header: &tar::Header) -> (u32, u32) {
    let id = |said: io::Result<u64>| {
        (said.ok().and_then(|id| u32::try_from(id).ok()))
            .filter(|id| *id != u32::MAX)
            .unwrap_or(0)
    };
    (id(header.uid()), id(header.gid()))
}

/// A name without `.` and a slash at its beginning; nothing if it has `..`.
fn plain(name: &Path) -> Option<PathBuf> {
    name.components()
        .filter(|part| !matches!(part, Component::CurDir | Component::RootDir))
        .map(|part| match part {
            Component::Normal(part) => Some(part),
            _ => None,
        })
        .collect()
}

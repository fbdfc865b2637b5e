//! A directory that was uploaded as a tar: unpacked beside its target, checked, and put in its place.
//!
//! What it holds is hostile: names are plain segments, links are made last, so that nothing is written through one, and
//! whatever is not a file, a directory or a link that stays inside refuses the whole.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Seek},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Component, Path, PathBuf},
};

use nullspace_protocol::{Conflict, Published, RefusedReason};
use rustix::fs::RenameFlags;

use super::{Failure, rename};
use crate::{error::Error, files::Target};

type Result<T> = std::result::Result<T, Failure>;

/// The most entries of an archive.
const MAX_ENTRIES: usize = 500_000;
/// The deepest tree.
const MAX_DEPTH: usize = 128;
/// The longest target of a link.
const MAX_LINK: usize = 4096;

/// Unpacks an archive into `unpacked` and puts that at the target.
pub(super) fn publish(
    archive: &File,
    unpacked: &Target,
    target: &Target,
    conflict: Conflict,
) -> Result<Published> {
    let fail = |error: io::Error| Failure::Error(Error::io(&target.shown, &error));
    // What an interrupted attempt left.
    match fs::remove_dir_all(&unpacked.real) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    fs::DirBuilder::new()
        .mode(0o755)
        .create(&unpacked.real)
        .map_err(fail)?;
    let published = unpack(archive, &unpacked.real)?;
    let real = fs::canonicalize(&target.real).unwrap_or_else(|_| target.real.clone());
    let is_there = real.is_dir();
    if !is_there {
        if let Some(parent) = real.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        rename(&unpacked.real, &real, true).map_err(fail)?;
        return Ok(published);
    }
    match conflict {
        Conflict::Replace => swap(&unpacked.real, &real).map_err(fail)?,
        Conflict::Merge | Conflict::Error => {
            check_merge(&unpacked.real, &real, target)?;
            merge(&unpacked.real, &real).map_err(fail)?;
        }
    }
    Ok(published)
}

fn refuse(reason: RefusedReason, path: &Path, why: &str) -> Failure {
    let path = path.to_string_lossy();
    Failure::Refused(reason, format!("{path}: {why}"), Some(path.into_owned()))
}

fn unpack(mut archive: &File, into: &Path) -> Result<Published> {
    let broken = |error: io::Error| {
        let reason = RefusedReason::DirectoryExtractUnsupportedEntry;
        Failure::Refused(reason, format!("the archive cannot be read: {error}"), None)
    };
    // The checksum has read all of it.
    archive.rewind().map_err(broken)?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(256 << 10, archive));
    let mut published = Published { bytes: 0, files: 0 };
    let (mut modes, mut links) = (BTreeMap::new(), BTreeMap::new());
    for (count, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        let invalid = |why: &str| refuse(RefusedReason::DirectoryExtractInvalidPath, &name, why);
        if count >= MAX_ENTRIES {
            return Err(invalid("the archive has too many entries"));
        }
        let kind = entry.header().entry_type();
        if !(kind.is_dir() || kind.is_file() || kind.is_symlink()) {
            let reason = RefusedReason::DirectoryExtractUnsupportedEntry;
            return Err(refuse(
                reason,
                &name,
                "is no file, directory or symbolic link",
            ));
        }
        let inside = plain(&name).ok_or_else(|| invalid("leads out of the directory"))?;
        if inside.as_os_str().is_empty() {
            // The directory itself.
            if kind.is_dir() {
                continue;
            }
            return Err(invalid("has no name"));
        }
        if inside.starts_with(".nullspace") {
            return Err(invalid("is reserved"));
        }
        if inside.components().count() > MAX_DEPTH || links.contains_key(&inside) {
            return Err(invalid("is too deep or there twice"));
        }
        let mode = entry.header().mode().unwrap_or(0o755) & 0o777;
        let real = into.join(&inside);
        let system = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                invalid("is there twice")
            }
            _ => Failure::Error(Error::io(&name.to_string_lossy(), &error)),
        };
        if kind.is_dir() {
            fs::create_dir_all(&real).map_err(system)?;
            modes.insert(inside, mode);
            continue;
        }
        if let Some(parent) = real.parent() {
            fs::create_dir_all(parent).map_err(system)?;
        }
        published.files += 1;
        if kind.is_symlink() {
            let link = entry.link_name().map_err(broken)?.unwrap_or_default();
            if !stays_inside(&inside, &link) {
                let reason = RefusedReason::DirectoryExtractInvalidSymlink;
                return Err(refuse(reason, &name, "links out of the directory"));
            }
            links.insert(inside, link.into_owned());
            continue;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&real)
            .map_err(system)?;
        published.bytes +=
            io::copy(&mut entry, &mut file).map_err(|error| match error.raw_os_error() {
                Some(_) => Failure::Error(Error::io(&name.to_string_lossy(), &error)),
                None => broken(error),
            })?;
        file.set_permissions(fs::Permissions::from_mode(mode))
            .map_err(system)?;
    }
    for (inside, link) in links {
        std::os::unix::fs::symlink(&link, into.join(&inside)).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => refuse(
                    RefusedReason::DirectoryExtractInvalidPath,
                    &inside,
                    "is there twice",
                ),
                _ => Failure::Error(Error::io(&inside.to_string_lossy(), &error)),
            }
        })?;
    }
    // The deepest first: a directory may forbid what is done in it.
    for (inside, mode) in modes.into_iter().rev() {
        fs::set_permissions(into.join(&inside), fs::Permissions::from_mode(mode))
            .map_err(|error| Failure::Error(Error::io(&inside.to_string_lossy(), &error)))?;
    }
    Ok(published)
}

/// A name without `.`; nothing if it is absolute or has `..`.
fn plain(name: &Path) -> Option<PathBuf> {
    name.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(part) => Some(part),
            _ => None,
        })
        .collect()
}

/// Whether a link leads to something in the tree that it is in.
fn stays_inside(inside: &Path, link: &Path) -> bool {
    if link.as_os_str().is_empty() || link.as_os_str().len() > MAX_LINK {
        return false;
    }
    let mut depth = inside.components().count() - 1;
    for part in link.components() {
        match part {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

/// Puts a directory where another is, and removes that.
fn swap(new: &Path, old: &Path) -> io::Result<()> {
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, new, here, old, RenameFlags::EXCHANGE) {
        // The caller removes what is at the new one's place now.
        Ok(()) => Ok(()),
        // A directory of a layer below cannot be moved, and not every file system can exchange.
        Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL) => {
            fs::remove_dir_all(old)?;
            fs::rename(new, old)
        }
        Err(error) => Err(error.into()),
    }
}

/// Looks whether everything can be put over what is there, before anything is.
fn check_merge(new: &Path, old: &Path, target: &Target) -> Result<()> {
    let fail = |error: io::Error| Failure::Error(Error::io(&target.shown, &error));
    for entry in fs::read_dir(new).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let there = old.join(entry.file_name());
        let Ok(meta) = fs::symlink_metadata(&there) else {
            continue;
        };
        let is_dir = entry.file_type().map_err(fail)?.is_dir();
        if is_dir != meta.is_dir() {
            let shown = format!(
                "{}/{}",
                target.shown.trim_end_matches('/'),
                entry.file_name().to_string_lossy()
            );
            let why = match is_dir {
                true => "is not a directory",
                false => "is a directory",
            };
            return Err(refuse(
                RefusedReason::TargetConflict,
                Path::new(&shown),
                why,
            ));
        }
        if is_dir {
            let beneath = Target {
                shown: format!(
                    "{}/{}",
                    target.shown.trim_end_matches('/'),
                    entry.file_name().to_string_lossy()
                ),
                real: there.clone(),
            };
            check_merge(&entry.path(), &there, &beneath)?;
        }
    }
    Ok(())
}

/// Moves everything over what is there, each file at once.
fn merge(new: &Path, old: &Path) -> io::Result<()> {
    for entry in fs::read_dir(new)? {
        let entry = entry?;
        let (from, to) = (entry.path(), old.join(entry.file_name()));
        let is_dir = entry.file_type()?.is_dir();
        if is_dir && fs::symlink_metadata(&to).is_ok_and(|meta| meta.is_dir()) {
            merge(&from, &to)?;
            continue;
        }
        match fs::rename(&from, &to) {
            // Something of another file system is mounted on the way.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(&from, &to)?,
            moved => moved?,
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    if meta.is_dir() {
        fs::create_dir(to)?;
        fs::set_permissions(to, meta.permissions())?;
        return merge(from, to);
    }
    let beside = to.with_file_name(format!(
        "{}{}",
        crate::files::INCOMING,
        to.file_name().unwrap_or_default().to_string_lossy()
    ));
    if meta.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, &beside)?;
    } else {
        fs::copy(from, &beside)?;
    }
    fs::rename(&beside, to)
}

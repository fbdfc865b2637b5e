//! File operations beneath a directory that is never left: no link is followed, whatever a name says.

use std::{
    ffi::{CStr, OsStr},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat, XattrFlags},
    io::Errno,
};

/// Opens a directory that is the root of others.
pub(crate) fn root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens what is at `path` beneath `root`; an empty path is the root itself.
pub(crate) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    loop {
        let flags = flags | OFlags::CLOEXEC;
        match rustix::fs::openat2(root, name(path), flags, Mode::empty(), resolve) {
            // Something was renamed or mounted somewhere on the host meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens a directory beneath `root`, to name things in it.
pub(crate) fn directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// What is at `name`, itself.
pub(crate) fn stat(parent: BorrowedFd<'_>, at: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(parent, name(at), AtFlags::SYMLINK_NOFOLLOW)
}

/// The mark of the overlay on a directory that shows nothing from below.
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Has an overlay show nothing from below in the directory.
pub(crate) fn make_opaque(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(readable(directory)?, OPAQUE, b"y", XattrFlags::empty())
}

/// Whether an overlay shows nothing from below in the directory.
pub(crate) fn is_opaque(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut value = [0; 4];
    match rustix::fs::fgetxattr(readable(directory)?, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The same directory, as calls on what is in it and about it want it.
fn readable(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, ".", flags, Mode::empty())
}

/// Bytes as the name that they are.
pub(crate) fn name(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// Removes a file or a whole directory. Fine if it is not there.
pub(crate) fn remove(parent: BorrowedFd<'_>, at: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name(at), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name(at), flags, Mode::empty())?;
    // Names are read whole before any is removed: a directory that changes while it is read may skip some.
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let entry = entry.file_name().to_bytes();
        if !matches!(entry, b"." | b"..") {
            names.push(entry.to_vec());
        }
    }
    for entry in names {
        remove(directory.as_fd(), &entry)?;
    }
    match rustix::fs::unlinkat(parent, name(at), AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

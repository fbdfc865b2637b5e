//! Putting what the host shows where it is wanted, in a machine with a kernel of its own.
//!
//! The host's mounts appear beneath [`SHOWN`], each under its name. From there they are bound to their targets. A machine
//! can rename what is above a target; a mount is found again by what it is of, whatever its path is by now.

use std::{fs, io, path::Path};

use nullspace_protocol::alone::{SHOWN, Show};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::UnmountFlags,
};

use crate::error::{Error, Result};

/// Where the kernel says what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Makes it appear at its target.
pub(crate) fn show(what: &Show) -> Result<()> {
    let failed = |error: io::Error| Error::io(&what.target, &error);
    if place_of(what).map_err(failed)?.is_some() {
        return Ok(());
    }
    let source = Path::new(SHOWN).join(&what.name);
    let is_dir = fs::metadata(&source).map_err(failed)?.is_dir();
    make_place(&what.target, is_dir).map_err(|error| match error {
        rustix::io::Errno::LOOP => {
            Error::invalid(format!("{}: it leads through a link", what.target))
        }
        rustix::io::Errno::NOTDIR => Error::invalid(format!("{}: it is no directory", what.target)),
        other => failed(other.into()),
    })?;
    rustix::mount::mount_bind(&source, &what.target).map_err(|error| failed(error.into()))
}

/// Takes it away from wherever it is.
pub(crate) fn hide(what: &Show) -> Result<()> {
    let failed = |error: io::Error| Error::io(&what.target, &error);
    while let Some(place) = place_of(what).map_err(failed)? {
        rustix::mount::unmount(place, UnmountFlags::DETACH)
            .map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// Makes a path a directory, or a file in one, without going through any link.
fn make_place(path: &str, is_dir: bool) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = flags | OFlags::DIRECTORY;
    let mut at = rustix::fs::openat(CWD, "/", directory, Mode::empty())?;
    let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() && !is_dir {
            let new = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            return match rustix::fs::openat(&at, part, new, Mode::from_raw_mode(0o644)) {
                Ok(_) => Ok(()),
                Err(rustix::io::Errno::EXIST) => no_link(&at, part),
                Err(error) => Err(error),
            };
        }
        match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        no_link(&at, part)?;
        at = rustix::fs::openat(&at, part, directory, Mode::empty())?;
    }
    Ok(())
}

fn no_link(at: &impl rustix::fd::AsFd, name: &str) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(at, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Symlink => Err(rustix::io::Errno::LOOP),
        _ => Ok(()),
    }
}

/// Where it is mounted now, but for [`SHOWN`] itself.
fn place_of(what: &Show) -> io::Result<Option<String>> {
    Ok(find(&fs::read_to_string(MOUNTS)?, &what.name))
}

fn find(mounts: &str, name: &str) -> Option<String> {
    let device = entries(mounts)
        .find(|(_, root, place)| (*root, *place) == ("/", SHOWN))?
        .0;
    let root = format!("/{name}");
    entries(mounts)
        .find(|(its, its_root, _)| (*its, *its_root) == (device, root.as_str()))
        .map(|(_, _, place)| unescape(place))
}

/// Device, root in it, and place of each mount, from "id parent major:minor root place options…".
fn entries(mounts: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        Some((fields.next()?, fields.next()?, fields.next()?))
    })
}

/// The kernel writes what would end a field as three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_what_it_is_of() {
        let mounts = "16 15 0:17 / / rw - 9p none rw\n\
                      24 18 0:24 / /dev/nullspace-shown rw - 9p none rw\n\
                      25 16 0:99 /abc /no rw - 9p none rw\n\
                      26 16 0:24 /abc /moved\\040to/late rw - 9p none rw\n";
        assert_eq!(find(mounts, "abc").as_deref(), Some("/moved to/late"));
        assert_eq!(find(mounts, "ab"), None);
        assert_eq!(find("", "abc"), None);
    }
}

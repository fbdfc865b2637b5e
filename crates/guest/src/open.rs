//! What programs have open in what the host shows: whether a machine that goes on from a checkpoint would find it there.
//!
//! A kernel finds files that are open again by their paths. What was deleted or moved from outside, or is in a volume that
//! was taken away since, it does not find, and then it makes no machine at all. Looking at each path here has two uses:
//! whoever asks is told what is in the way, and the kernel takes notice of what others did.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nullspace_protocol::{ErrorKind, alone::SHOWN};

use crate::error::{Error, Result};

/// Refuses (`Exists`) if a program has something open there that is not at its path any more.
pub(crate) fn check() -> Result<()> {
    let shown = match fs::metadata(SHOWN) {
        Ok(shown) if fs::read_dir(SHOWN).is_ok_and(|mut all| all.next().is_some()) => shown.dev(),
        // Nothing is shown, nor was since this kernel runs.
        _ => return Ok(()),
    };
    let processes = fs::read_dir("/proc").map_err(|error| Error::io("/proc", &error))?;
    for process in processes.flatten() {
        let is_one = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        if process.file_name().to_str().is_some_and(is_one)
            && let Some(path) = lost(&process.path(), shown)
        {
            let id = process.file_name().to_string_lossy().into_owned();
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Exists,
                format!(
                    "process {id} ({}) has {} open, of a volume, and it is not there any more",
                    name.trim(),
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

/// What a process has open on a file system that is not to be found by its path. Processes that end meanwhile have nothing.
fn lost(process: &Path, device: u64) -> Option<PathBuf> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
    let links = descriptors.flatten().map(|entry| entry.path());
    // Of other users' processes nobody is told where they are.
    let links = links.chain(["cwd", "exe", "root"].map(|name| process.join(name)));
    for link in links {
        let Ok(open) = fs::metadata(&link) else {
            continue;
        };
        if open.dev() == device
            && let Ok(path) = fs::read_link(&link)
            && !is_at(&path, (open.dev(), open.ino()))
        {
            return Some(path);
        }
    }
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = maps.lines().filter_map(mapping);
    mapped
        .filter(|(dev, ..)| *dev == device)
        .find(|(dev, ino, path)| !is_at(path, (*dev, *ino)))
        .map(|(_, _, path)| path.to_owned())
}

fn is_at(path: &Path, which: (u64, u64)) -> bool {
    let found: io::Result<_> = fs::symlink_metadata(path);
    found.is_ok_and(|found| (found.dev(), found.ino()) == which)
}

/// Device, inode and path of "start-end rights offset major:minor inode path".
fn mapping(line: &str) -> Option<(u64, u64, &Path)> {
    let mut fields = line.splitn(6, ' ').skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let hex = |text| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(hex(major)?, hex(minor)?);
    let inode = fields.next()?.parse().ok()?;
    let path = fields.next()?.trim_start();
    path.starts_with('/')
        .then(|| (device, inode, Path::new(path)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_with_spaces_in_paths() {
        let line =
            "7eb1429f5000-7eb1429f6000 rw-s 00000000 00:18 3                          /a/two words";
        let expected = (rustix::fs::makedev(0, 0x18), 3, Path::new("/a/two words"));
        assert_eq!(mapping(line), Some(expected));
        for other in [
            "7eb454650000-7eb454651000 rw-p 00000000 00:00 0",
            "7ffe-7fff rw-p 00000000 00:00 0    [stack]",
            "",
        ] {
            assert_eq!(mapping(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_open_is_found_by_its_path_or_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("file");
        let file = fs::File::create(&at).unwrap();
        let device = file.metadata().unwrap().dev();
        let own = Path::new("/proc/self");
        let is_lost = || lost(own, device).is_some_and(|path| path.starts_with(directory.path()));
        assert!(!is_lost());
        // Another file at the same path is not the one that is open.
        fs::rename(&at, directory.path().join("moved")).unwrap();
        fs::write(&at, "another").unwrap();
        fs::remove_file(directory.path().join("moved")).unwrap();
        assert!(is_lost());
        drop(file);
        assert!(!is_lost());
    }
}

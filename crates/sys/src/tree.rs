//! How much a tree of files takes. What is in it is hostile: links are not followed, each directory is opened from the one
//! above it, and depth and number of files are bounded.

use std::{
    collections::HashSet,
    ffi::CString,
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

/// Directories within each other that are looked into: each costs a descriptor while it is.
const DEPTH: usize = 256;
/// Names that are looked at. More are not counted.
const NAMES: u64 = 10_000_000;
/// Files with several names that are remembered, so that each counts once.
const LINKED: usize = 1 << 20;

/// What a directory and everything beneath it take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Names beneath it: files, directories, links.
    pub names: u64,
}

/// Measures a directory. What cannot be looked at, or goes away meanwhile, counts nothing. `counting` has the bytes as they
/// are counted.
pub fn usage(directory: &Path, counting: &AtomicU64) -> Usage {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (mut names, mut linked) = (0, HashSet::new());
    counting.store(0, Ordering::Relaxed);
    let Ok(top) = rustix::fs::open(directory, flags, Mode::empty()) else {
        return Usage::default();
    };
    let mut open: Vec<(OwnedFd, Vec<CString>)> = Vec::new();
    let mut next = Some(top);
    loop {
        if let Some(directory) = next.take() {
            let inner = look(&directory, &mut names, &mut linked, counting);
            open.push((directory, inner));
        }
        let deep = open.len() >= DEPTH;
        match open.last_mut() {
            None => break,
            Some((directory, inner)) => match inner.pop() {
                Some(name) if !deep => next = openat(&*directory, name, flags, Mode::empty()).ok(),
                Some(_) => {}
                None => {
                    open.pop();
                }
            },
        }
    }
    Usage {
        bytes: counting.load(Ordering::Relaxed),
        names,
    }
}

/// Counts what is in one directory and answers with the directories there.
fn look(
    directory: &OwnedFd,
    names: &mut u64,
    linked: &mut HashSet<u64>,
    counting: &AtomicU64,
) -> Vec<CString> {
    let mut inner = Vec::new();
    let Ok(entries) = Dir::read_from(directory) else {
        return inner;
    };
    for entry in entries {
        let Ok(entry) = entry else { break };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *names += 1;
        if *names > NAMES {
            break;
        }
        let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let again = !is_directory
            && stat.st_nlink > 1
            && linked.len() < LINKED
            && !linked.insert(stat.st_ino);
        if !again {
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            counting.fetch_add(bytes, Ordering::Relaxed);
        }
        if is_directory {
            inner.push(name.to_owned());
        }
    }
    inner
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn sized(directory: &Path) -> u64 {
        usage(directory, &AtomicU64::new(7)).bytes
    }

    #[test]
    fn everything_beneath_counts_once_and_nothing_else() {
        let at = tempfile::tempdir().unwrap();
        let (tree, outside) = (at.path().join("tree"), at.path().join("outside"));
        std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("large"), vec![1; 8 * MIB]).unwrap();
        let before = sized(&tree);
        assert!(before < MIB as u64, "{before}");
        std::fs::write(tree.join("a/one"), vec![1; MIB]).unwrap();
        std::fs::write(tree.join("a/b/c/two"), vec![1; 2 * MIB]).unwrap();
        std::fs::hard_link(tree.join("a/one"), tree.join("same")).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("large"), tree.join("a/file")).unwrap();
        let grown = sized(&tree) - before;
        assert!((3 * MIB as u64..4 * MIB as u64).contains(&grown), "{grown}");
        assert_eq!(sized(&at.path().join("none")), 0);
    }

    #[test]
    fn a_tree_without_end_is_not_followed_to_its_end() {
        let at = tempfile::tempdir().unwrap();
        let mut deep = at.path().to_owned();
        for _ in 0..DEPTH + 50 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("large"), vec![1; 8 * MIB]).unwrap();
        assert!(sized(at.path()) < 8 * MIB as u64);
    }
}

//! Unpacking below an open directory, one segment at a time and following nothing.

use super::{BundleError, Sink, write_error};
use crate::manifest::Entry;
use rustix::fs::{Mode, OFlags, RawMode};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Mode of directories the manifest does not name.
const IMPLIED_DIR_MODE: u32 = 0o755;

/// Permission bits as the system has them: some have 16 bits for a mode, which is enough.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode as RawMode)
}

pub(super) struct Unpack<'r, 'm> {
    root: BorrowedFd<'r>,
    /// The directories from the root to where the last member went.
    open: Vec<(&'m str, OwnedFd)>,
    /// The mode every directory gets in the end; until then only this process gets in.
    made: BTreeMap<&'m str, u32>,
    links: Vec<&'m Entry>,
}

impl<'r, 'm> Unpack<'r, 'm> {
    pub(super) fn below(root: BorrowedFd<'r>) -> Self {
        Self {
            root,
            open: Vec::new(),
            made: BTreeMap::new(),
            links: Vec::new(),
        }
    }

    /// Opens the directory at `path`, making what is missing on the way. Fails on anything that is no directory.
    fn open_dir(&mut self, path: &'m str) -> Result<BorrowedFd<'_>, Errno> {
        let segments = if path.is_empty() {
            "".split_terminator('/')
        } else {
            path.split_terminator('/')
        };
        let shared = segments
            .clone()
            .zip(&self.open)
            .take_while(|(segment, (open, _))| segment == open)
            .count();
        self.open.truncate(shared);
        let mut end = segments
            .clone()
            .take(shared)
            .map(|segment| segment.len() + 1)
            .sum::<usize>();
        for segment in segments.skip(shared) {
            end += segment.len() + 1;
            let above = self.open.last().map_or(self.root, |(_, fd)| fd.as_fd());
            match rustix::fs::mkdirat(above, segment, Mode::RWXU) {
                Ok(()) => {
                    self.made.insert(&path[..end - 1], IMPLIED_DIR_MODE);
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(above, segment, flags, Mode::empty())?;
            self.open.push((segment, fd));
        }
        Ok(self.open.last().map_or(self.root, |(_, fd)| fd.as_fd()))
    }

    /// The open directory an entry belongs in, and its name there.
    fn place(&mut self, entry: &'m Entry) -> Result<(BorrowedFd<'_>, &'m str), BundleError> {
        let (above, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        let dir = self
            .open_dir(above)
            .map_err(|error| write_error(entry, error.into()))?;
        Ok((dir, name))
    }
}

impl<'m> Sink<'m> for Unpack<'_, 'm> {
    fn dir(&mut self, entry: &'m Entry) -> Result<(), BundleError> {
        self.open_dir(&entry.path)
            .map_err(|error| write_error(entry, error.into()))?;
        self.made.insert(&entry.path, entry.archived_mode());
        Ok(())
    }

    fn symlink(&mut self, entry: &'m Entry) -> Result<(), BundleError> {
        self.links.push(entry);
        Ok(())
    }

    fn file(&mut self, entry: &'m Entry) -> Result<Option<File>, BundleError> {
        let (dir, name) = self.place(entry)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(error) => Err(write_error(entry, error.into())),
        }
    }

    fn finish(&mut self, entry: &'m Entry, file: Option<File>) -> Result<(), BundleError> {
        let Some(file) = file else { return Ok(()) };
        rustix::fs::fchmod(&file, permissions(entry.archived_mode()))
            .map_err(|error| write_error(entry, error.into()))
    }

    fn end(&mut self) -> Result<(), BundleError> {
        for entry in std::mem::take(&mut self.links) {
            let (dir, name) = self.place(entry)?;
            let target = entry.symlink_target.as_deref().unwrap_or_default();
            rustix::fs::symlinkat(target, dir, name)
                .map_err(|error| write_error(entry, error.into()))?;
        }
        // Deepest first, as a directory may become closed to its owner. Backwards is enough: what is above is a prefix.
        for (path, mode) in std::mem::take(&mut self.made).into_iter().rev() {
            let result = self
                .open_dir(path)
                .and_then(|dir| rustix::fs::fchmod(dir, permissions(mode)));
            result.map_err(|error| BundleError::Write {
                path: path.to_owned(),
                source: error.into(),
            })?;
        }
        Ok(())
    }
}

//! The directories of one watch, and what the kernel's events about them mean.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nullspace_protocol::{ErrorKind, WatchKind};
use rustix::fs::inotify::{self, CreateFlags, Event, ReadFlags, WatchFlags};

use super::Lines;
use crate::{
    error::{Error, Result},
    files::{INCOMING, INCOMING_OVER, Target},
};

/// The most directories of one watch.
const MAX_DIRECTORIES: usize = 65_536;
/// The deepest that a watch goes.
const MAX_DEPTH: usize = 128;
/// The machine's views of its kernel: nothing there tells of changes.
const PSEUDO: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What is watched.
pub(super) struct Tree {
    inotify: OwnedFd,
    root: Target,
    recursive: bool,
    /// Of a watched file, its name: the directory that it is in is what the kernel watches.
    only: Option<Vec<u8>>,
    left_out: HashSet<PathBuf>,
    directories: HashMap<i32, Directory>,
    /// A directory that went from its place, and may be about to turn up at another.
    half_moved: Option<(u32, String)>,
    /// A file of ours that is about to be put in its place, and whether it is new there.
    arriving: Option<(u32, bool)>,
    over: bool,
}

struct Directory {
    place: Target,
    /// Names that were told when the directory was listed; the kernel may tell of them once more.
    told: HashSet<Vec<u8>>,
}

impl Tree {
    /// Begins to watch.
    pub(super) fn new(root: Target, recursive: bool, left_out: HashSet<PathBuf>) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|error| refused(&root.shown, &error.into()))?;
        let meta = fs::metadata(&root.real).map_err(|e| Error::io(&root.shown, &e))?;
        let mut this = Self {
            inotify,
            root: root.clone(),
            recursive: recursive && meta.is_dir(),
            only: None,
            left_out,
            directories: HashMap::new(),
            half_moved: None,
            arriving: None,
            over: false,
        };
        if meta.is_dir() {
            this.add(&root, 0, None)?;
            return Ok(this);
        }
        let name = root.real.file_name().map(|name| name.as_bytes().to_vec());
        this.only = Some(name.unwrap_or_default());
        let (above, _) = root.shown.rsplit_once('/').unwrap_or_default();
        let above = Target {
            shown: if above.is_empty() { "/" } else { above }.to_owned(),
            real: root.real.parent().unwrap_or(Path::new("/")).to_owned(),
        };
        this.add(&above, 0, None)?;
        Ok(this)
    }

    pub(super) fn inotify(&self) -> &OwnedFd {
        &self.inotify
    }

    /// The watched path.
    pub(super) fn path(&self) -> &str {
        &self.root.shown
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn is_half_moved(&self) -> bool {
        self.half_moved.is_some()
    }

    /// What went from its place did not turn up at another: it is not watched any more.
    pub(super) fn moved_away(&mut self) {
        let Some((_, from)) = self.half_moved.take() else {
            return;
        };
        let gone: Vec<i32> = self
            .directories
            .iter()
            .filter(|(_, directory)| is_beneath(&directory.place.shown, &from))
            .map(|(wd, _)| *wd)
            .collect();
        for wd in gone {
            self.directories.remove(&wd);
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    /// Watches a directory, and everything beneath with a recursive watch. With `tell` what is found in it is told as
    /// new.
    fn add(&mut self, place: &Target, depth: usize, mut tell: Option<&mut Lines>) -> Result<()> {
        if self.directories.len() >= MAX_DIRECTORIES || depth > MAX_DEPTH {
            return Err(Error::invalid(format!(
                "{}: over {MAX_DIRECTORIES} directories or {MAX_DEPTH} levels to watch",
                self.root.shown
            )));
        }
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::EXCL_UNLINK
            | WatchFlags::ONLYDIR;
        if depth > 0 {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        let wd = inotify::add_watch(&self.inotify, &place.real, flags)
            .map_err(|error| refused(&place.shown, &error.into()))?;
        let mut directory = Directory {
            place: place.clone(),
            told: HashSet::new(),
        };
        let mut beneath = Vec::new();
        if self.recursive || tell.is_some() {
            let entries = fs::read_dir(&place.real).map_err(|e| Error::io(&place.shown, &e))?;
            for entry in entries.flatten() {
                let name = entry.file_name();
                let child = beneath_of(place, &name);
                if self.is_left_out(&child, name.as_bytes()) {
                    continue;
                }
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if let Some(tell) = tell.as_deref_mut() {
                    tell.push(WatchKind::Create, child.shown.clone(), None);
                    directory.told.insert(name.as_bytes().to_vec());
                    if !is_dir && entry.metadata().is_ok_and(|meta| meta.len() > 0) {
                        tell.push(WatchKind::Write, child.shown.clone(), None);
                    }
                }
                if is_dir && self.recursive {
                    beneath.push(child);
                }
            }
        }
        self.directories.insert(wd, directory);
        for child in beneath {
            self.add_beneath(&child, depth + 1, tell.as_deref_mut())?;
        }
        Ok(())
    }

    /// Watches a directory that may be gone by now, or may not be read.
    fn add_beneath(
        &mut self,
        place: &Target,
        depth: usize,
        tell: Option<&mut Lines>,
    ) -> Result<()> {
        match self.add(place, depth, tell) {
            Err(Error(body))
                if matches!(
                    body.kind,
                    ErrorKind::NotFound | ErrorKind::Permission | ErrorKind::Io
                ) || (body.kind == ErrorKind::Invalid && !place.real.is_dir()) =>
            {
                Ok(())
            }
            added => added,
        }
    }

    fn is_left_out(&self, child: &Target, name: &[u8]) -> bool {
        name.starts_with(INCOMING.as_bytes())
            || self.left_out.contains(&child.real)
            || PSEUDO.contains(&child.shown.as_str())
    }

    /// Says what an event means.
    pub(super) fn take(&mut self, event: &Event<'_>, tell: &mut Lines) {
        let is = |flag: ReadFlags| event.events().contains(flag);
        if is(ReadFlags::QUEUE_OVERFLOW) {
            return self.resync(tell);
        }
        // The second half of a move comes right after the first.
        let moved = self.half_moved.as_ref().map(|(cookie, _)| *cookie);
        let is_second = is(ReadFlags::MOVED_TO) && moved == Some(event.cookie());
        if !is_second && !is(ReadFlags::MOVE_SELF) {
            self.moved_away();
        }
        let wd = event.wd();
        let Some(directory) = self.directories.get_mut(&wd) else {
            return;
        };
        let place = directory.place.clone();
        if is(ReadFlags::IGNORED) || is(ReadFlags::UNMOUNT) {
            self.directories.remove(&wd);
            if place.shown == self.root.shown || self.only.is_some() {
                self.end(WatchKind::Remove, "it was removed", tell);
            }
            return;
        }
        if is(ReadFlags::MOVE_SELF) {
            if place.shown == self.root.shown || self.only.is_some() {
                self.end(WatchKind::Rename, "it was moved away", tell);
            }
            return;
        }
        let Some(name) = event.file_name().map(std::ffi::CStr::to_bytes) else {
            // The directory's own attributes; of one beneath, its parent tells.
            if is(ReadFlags::ATTRIB) && place.shown == self.root.shown && self.only.is_none() {
                tell.push(WatchKind::Chmod, place.shown, None);
            }
            return;
        };
        if is(ReadFlags::DELETE) || is(ReadFlags::MOVED_FROM) {
            directory.told.remove(name);
        }
        let was_told = is(ReadFlags::CREATE) && directory.told.remove(name);
        let child = beneath_of(&place, OsStr::from_bytes(name));
        if name.starts_with(INCOMING.as_bytes()) {
            if is(ReadFlags::MOVED_FROM) {
                let is_new = !name.starts_with(INCOMING_OVER.as_bytes());
                self.arriving = Some((event.cookie(), is_new));
            }
            return;
        }
        if self.is_left_out(&child, name) || self.only.as_deref().is_some_and(|only| only != name) {
            return;
        }
        let is_dir = is(ReadFlags::ISDIR);
        if is(ReadFlags::CREATE) {
            if !was_told {
                tell.push(WatchKind::Create, child.shown.clone(), None);
            }
            if is_dir && self.recursive {
                self.appeared(&child, true, tell);
            }
        } else if is(ReadFlags::MOVED_TO) {
            let arriving = self
                .arriving
                .take_if(|(cookie, _)| *cookie == event.cookie());
            if arriving.is_none_or(|(_, is_new)| is_new) {
                tell.push(WatchKind::Create, child.shown.clone(), None);
            }
            if arriving.is_some() && !is_dir {
                tell.push(WatchKind::Write, child.shown.clone(), None);
            }
            if is_dir && self.recursive {
                match self.half_moved.take() {
                    Some((_, from)) => self.moved(&from, &child),
                    None => self.appeared(&child, false, tell),
                }
            }
        } else if is(ReadFlags::MOVED_FROM) {
            if is_dir && self.recursive {
                self.half_moved = Some((event.cookie(), child.shown.clone()));
            }
            tell.push(WatchKind::Rename, child.shown, None);
        } else if is(ReadFlags::DELETE) {
            tell.push(WatchKind::Remove, child.shown, None);
        } else if is(ReadFlags::MODIFY) {
            tell.push(WatchKind::Write, child.shown, None);
        } else if is(ReadFlags::ATTRIB) {
            tell.push(WatchKind::Chmod, child.shown, None);
        }
    }

    /// A directory is there that was not.
    fn appeared(&mut self, child: &Target, is_new: bool, tell: &mut Lines) {
        let depth = child.shown.matches('/').count();
        if let Err(Error(body)) = self.add_beneath(child, depth, is_new.then_some(&mut *tell)) {
            self.over = true;
            tell.push(
                WatchKind::Ended,
                self.root.shown.clone(),
                Some(body.message),
            );
        }
    }

    /// A directory has another place now.
    fn moved(&mut self, from: &str, to: &Target) {
        for directory in self.directories.values_mut() {
            let shown = &directory.place.shown;
            if !is_beneath(shown, from) {
                continue;
            }
            let rest = &shown[from.len()..];
            directory.place = Target {
                real: to.real.join(rest.trim_start_matches('/')),
                shown: format!("{}{rest}", to.shown),
            };
        }
    }

    /// Events were lost: looks for directories that nobody told of.
    fn resync(&mut self, tell: &mut Lines) {
        let root = self.root.clone();
        tell.push(WatchKind::ResyncRequired, root.shown.clone(), None);
        self.moved_away();
        self.arriving = None;
        for directory in self.directories.values_mut() {
            directory.told.clear();
        }
        if !self.recursive {
            return;
        }
        // What is watched already keeps its descriptor and gets the path that it has now.
        self.directories.clear();
        if let Err(Error(body)) = self.add(&root, 0, None) {
            self.over = true;
            tell.push(WatchKind::Ended, root.shown, Some(body.message));
        }
    }

    fn end(&mut self, kind: WatchKind, why: &str, tell: &mut Lines) {
        self.over = true;
        tell.push(kind, self.root.shown.clone(), None);
        let message = format!("{}: {why}", self.root.shown);
        tell.push(WatchKind::Ended, self.root.shown.clone(), Some(message));
    }
}

/// What the kernel has no room for.
fn refused(shown: &str, error: &io::Error) -> Error {
    match error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::NOSPC | rustix::io::Errno::MFILE) => Error::new(
            ErrorKind::Exhausted,
            format!("{shown}: the host has no more watches (fs.inotify): {error}"),
        ),
        _ => Error::io(shown, error),
    }
}

fn beneath_of(place: &Target, name: &OsStr) -> Target {
    Target {
        shown: format!(
            "{}/{}",
            place.shown.trim_end_matches('/'),
            name.to_string_lossy()
        ),
        real: place.real.join(name),
    }
}

/// Whether a path is another or beneath it.
fn is_beneath(path: &str, other: &str) -> bool {
    path.strip_prefix(other)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

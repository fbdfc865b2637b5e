//! A layer's archive becomes a directory that an overlay can have below it.
//!
//! | in the archive | in the directory |
//! |---|---|
//! | `dir/.wh.name` | `dir/name`, a character device 0:0: the overlay shows nothing there |
//! | `dir/.wh..wh..opq` | `trusted.overlay.opaque` on `dir`: the overlay shows nothing from below in it |
//! | device nodes | nothing: a machine has the devices that its engine gives it |
//! | `security.capability`, `user.*` | the same extended attributes |
//! | other extended attributes | nothing: `trusted.*` would be orders to the overlay |
//!
//! Everything in the archive is hostile. Its names are taken apart here and opened one directory at a time beneath the
//! layer's root; a member below a symbolic link is refused, not followed. What has a member's name is removed first and
//! made anew, never written into: it may be a hard link to something else.

mod attributes;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{Read, Write},
};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use crate::{
    beneath,
    error::{LayerError, shown},
    limits::{Allowance, Limits},
    tar::{Kind, Member, Members, Time},
};
use attributes::{group, owner, set_xattrs, times};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs, where whiteouts come from, kept for itself.
const AUFS: &[u8] = b".wh..wh.";
/// Longest name of one directory entry, as Linux has it.
const MAX_NAME: usize = 255;
const MAX_LINK: usize = 4095;
const BUFFER: usize = 256 << 10;

/// What was unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Members that left something.
    pub(crate) entries: u64,
    /// Headers in the archive.
    pub(crate) headers: u64,
    /// Sum of the sizes of files in bytes.
    pub(crate) file_bytes: u64,
    /// Device nodes that were left out.
    pub(crate) devices_left_out: u64,
    /// Directories that no member tells of, though members are in them.
    pub(crate) implied: BTreeSet<Vec<u8>>,
    /// Whether nothing from below shows in the whole layer.
    pub(crate) opaque: bool,
}

/// Unpacks the archive beneath `root`, an empty directory. Returns what was unpacked, and the input for whatever comes
/// after the archive's end.
///
/// # Errors
/// The archive's faults and the host's; `root` then holds a part that is good for nothing.
pub(crate) fn unpack<R: Read>(
    input: R,
    root: BorrowedFd<'_>,
    allowance: &Allowance,
) -> Result<(Unpacked, R), LayerError> {
    let mut members = Members::new(input, allowance);
    let mut tree = Tree {
        root,
        limits: &allowance.limits,
        parent: None,
        times: BTreeMap::new(),
        done: Unpacked::default(),
        buffer: vec![0; BUFFER],
    };
    while let Some(member) = members.next()? {
        tree.add(&member, &mut members)?;
    }
    tree.finish()?;
    tree.done.headers = members.headers();
    Ok((tree.done, members.into_inner()))
}

struct Tree<'a> {
    root: BorrowedFd<'a>,
    limits: &'a Limits,
    /// The directory that was used last: members of one directory mostly follow each other.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// When directories were changed last: set when nothing more is put in them.
    times: BTreeMap<Vec<u8>, Time>,
    done: Unpacked,
    buffer: Vec<u8>,
}

impl Tree<'_> {
    fn add<R: Read>(
        &mut self,
        member: &Member,
        content: &mut Members<'_, R>,
    ) -> Result<(), LayerError> {
        let path = self.clean(&member.name, &member.name)?;
        let Some((parent, name)) = split(&path) else {
            // The layer's root.
            if member.kind != Kind::Directory {
                return Err(at(&member.name, "is the layer's root and no directory"));
            }
            self.own_directory(&path, member)?;
            return Ok(());
        };
        if name.starts_with(WHITEOUT) {
            return self.white_out(parent, name, &member.name);
        }
        if member.kind == Kind::Device {
            self.done.devices_left_out += 1;
            return Ok(());
        }
        self.enter(parent, &member.name)?;
        match member.kind {
            Kind::Directory => self.add_directory(&path, name, member)?,
            Kind::File => self.add_file(&path, name, member, content)?,
            Kind::Symlink => self.add_symlink(&path, name, member)?,
            Kind::HardLink => self.add_hard_link(&path, parent, name, member)?,
            Kind::Fifo => self.add_fifo(&path, name, member)?,
            Kind::Device => {}
        }
        self.done.entries += 1;
        Ok(())
    }

    /// The path of a member: segments with one slash between them, empty for the root.
    fn clean(&self, path: &[u8], member: &[u8]) -> Result<Vec<u8>, LayerError> {
        if path.contains(&0) {
            return Err(at(member, "has a zero byte in its name"));
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0;
        for segment in path.split(|byte| *byte == b'/') {
            match segment {
                b"" | b"." => continue,
                b".." => return Err(at(member, "leads out of the layer")),
                long if long.len() > MAX_NAME => {
                    return Err(at(member, "has a segment of more than 255 bytes"));
                }
                _ => {}
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(segment);
            depth += 1;
        }
        if clean.len() > self.limits.path_bytes {
            return Err(LayerError::Limit {
                what: "bytes in a path",
                limit: self.limits.path_bytes as u64,
            });
        }
        if depth > self.limits.depth {
            return Err(LayerError::Limit {
                what: "directories in a path",
                limit: self.limits.depth as u64,
            });
        }
        Ok(clean)
    }

    /// Makes `path` the directory that things are named in, and that directory if it is missing.
    fn enter(&mut self, path: &[u8], member: &[u8]) -> Result<(), LayerError> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        let opened = match beneath::directory(self.root, path) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.imply(path, member)?,
            Err(e) => return Err(LayerError::write("open the directory of", member)(e)),
        };
        self.parent = Some((path.to_vec(), opened));
        Ok(())
    }

    /// Opens a directory, segment by segment, and makes what is missing.
    fn imply(&mut self, path: &[u8], member: &[u8]) -> Result<OwnedFd, LayerError> {
        let failed = |e| LayerError::write("make the directory of", member)(e);
        let mut directory = beneath::directory(self.root, b"").map_err(failed)?;
        let mut end = 0;
        for segment in path.split(|byte| *byte == b'/') {
            end += segment.len() + usize::from(end > 0);
            match beneath::directory(directory.as_fd(), segment) {
                Ok(next) => {
                    directory = next;
                    continue;
                }
                Err(Errno::NOENT) => self
                    .make_directory(directory.as_fd(), segment)
                    .map_err(failed)?,
                Err(Errno::LOOP) => return Err(at(member, "is below a symbolic link")),
                Err(Errno::NOTDIR) => {
                    let there = beneath::stat(directory.as_fd(), segment).map_err(failed)?;
                    if !is_whiteout(&there) {
                        return Err(at(member, "is below something that is no directory"));
                    }
                    // Gone from below and here anew.
                    beneath::remove(directory.as_fd(), segment).map_err(failed)?;
                    self.make_directory(directory.as_fd(), segment)
                        .map_err(failed)?;
                    let anew = beneath::directory(directory.as_fd(), segment).map_err(failed)?;
                    beneath::make_opaque(anew.as_fd()).map_err(failed)?;
                }
                Err(e) => return Err(failed(e)),
            }
            self.done.implied.insert(path[..end].to_vec());
            // Equal layers are equal, whenever they were unpacked.
            self.times.insert(path[..end].to_vec(), Time::default());
            directory = beneath::directory(directory.as_fd(), segment).map_err(failed)?;
        }
        Ok(directory)
    }

    fn make_directory(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let name = beneath::name(name);
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        // Not what the process's mask or the parent's set-group-id bit made of it.
        rustix::fs::chownat(parent, name, owner(0), group(0), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())
    }

    /// Makes something new with `make`; what has the name already goes first. True if that was a whiteout.
    fn anew<T>(
        &mut self,
        path: &[u8],
        name: &[u8],
        member: &Member,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<(T, bool), LayerError> {
        let failed = |e| LayerError::write("make", &member.name)(e);
        match make(self.parent()) {
            Ok(made) => return Ok((made, false)),
            Err(Errno::EXIST) => {}
            Err(e) => return Err(failed(e)),
        }
        let there = beneath::stat(self.parent(), name).map_err(failed)?;
        beneath::remove(self.parent(), name).map_err(failed)?;
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            self.forget(path);
        }
        let made = make(self.parent()).map_err(failed)?;
        Ok((made, is_whiteout(&there)))
    }

    /// A directory is gone, with all that was in it.
    fn forget(&mut self, path: &[u8]) {
        let below = |other: &[u8]| {
            other
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        self.times.retain(|other, _| !below(other));
        self.done.implied.retain(|other| !below(other));
    }

    fn add_directory(
        &mut self,
        path: &[u8],
        name: &[u8],
        member: &Member,
    ) -> Result<(), LayerError> {
        let failed = |e| LayerError::write("make", &member.name)(e);
        let at = beneath::name(name);
        let mode = Mode::from_raw_mode(0o700);
        let is_there = match rustix::fs::mkdirat(self.parent(), at, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => {
                let there = beneath::stat(self.parent(), name).map_err(failed)?;
                FileType::from_raw_mode(there.st_mode) == FileType::Directory
            }
            Err(e) => return Err(failed(e)),
        };
        if !is_there {
            let ((), white) = self.anew(path, name, member, |parent| {
                rustix::fs::mkdirat(parent, at, mode)
            })?;
            if white {
                let directory = beneath::directory(self.parent(), name).map_err(failed)?;
                beneath::make_opaque(directory.as_fd()).map_err(failed)?;
            }
        }
        self.own_directory(path, member)
    }

    /// Gives a directory that is there what the member says of it.
    fn own_directory(&mut self, path: &[u8], member: &Member) -> Result<(), LayerError> {
        let failed = |e| LayerError::write("set the owner and mode of", &member.name)(e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = beneath::open(self.root, path, flags).map_err(failed)?;
        rustix::fs::fchown(&directory, owner(member.uid), group(member.gid)).map_err(failed)?;
        set_xattrs(directory.as_fd(), member)?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(member.mode)).map_err(failed)?;
        self.done.implied.remove(path);
        self.times.insert(path.to_vec(), member.mtime);
        Ok(())
    }

    fn add_file<R: Read>(
        &mut self,
        path: &[u8],
        name: &[u8],
        member: &Member,
        content: &mut Members<'_, R>,
    ) -> Result<(), LayerError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (file, _) = self.anew(path, name, member, |parent| {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::openat(parent, beneath::name(name), flags, mode)
        })?;
        let mut file = File::from(file);
        loop {
            let read = content.content(&mut self.buffer)?;
            if read == 0 {
                break;
            }
            file.write_all(&self.buffer[..read])
                .map_err(LayerError::write("write", &member.name))?;
            self.done.file_bytes += read as u64;
        }
        let failed = |e| LayerError::write("set the owner and mode of", &member.name)(e);
        rustix::fs::fchown(&file, owner(member.uid), group(member.gid)).map_err(failed)?;
        // After the owner: changing that takes capabilities and set-id bits away.
        set_xattrs(file.as_fd(), member)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(member.mode)).map_err(failed)?;
        rustix::fs::futimens(&file, &times(member.mtime)).map_err(failed)
    }

    fn add_symlink(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<(), LayerError> {
        let target = &member.link;
        if target.is_empty() || target.len() > MAX_LINK || target.contains(&0) {
            return Err(at(&member.name, "is a symbolic link to no possible name"));
        }
        self.anew(path, name, member, |parent| {
            rustix::fs::symlinkat(beneath::name(target), parent, beneath::name(name))
        })?;
        self.own(name, member)
    }

    fn add_hard_link(
        &mut self,
        path: &[u8],
        parent: &[u8],
        name: &[u8],
        member: &Member,
    ) -> Result<(), LayerError> {
        let bad = |why| LayerError::HardLink {
            name: shown(&member.name),
            target: shown(&member.link),
            why,
        };
        let target = self.clean(&member.link, &member.name)?;
        let Some((target_parent, target_name)) = split(&target) else {
            return Err(bad("which is a directory"));
        };
        let opened;
        let directory = if target_parent == parent {
            self.parent()
        } else {
            opened = match beneath::directory(self.root, target_parent) {
                Ok(directory) => directory,
                Err(Errno::LOOP) => return Err(bad("which is below a symbolic link")),
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(bad("which the layer has not")),
                Err(e) => return Err(LayerError::write("find the target of", &member.name)(e)),
            };
            opened.as_fd()
        };
        let there = match beneath::stat(directory, target_name) {
            Ok(there) if !is_whiteout(&there) => there,
            Ok(_) | Err(Errno::NOENT) => return Err(bad("which the layer has not")),
            Err(e) => return Err(LayerError::write("find the target of", &member.name)(e)),
        };
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Err(bad("which is a directory"));
        }
        if let Ok(here) = beneath::stat(self.parent(), name)
            && here.st_ino == there.st_ino
        {
            return Ok(());
        }
        let target_name = beneath::name(target_name);
        // Kept open, so that it stays the same directory while what has the name is removed.
        let directory = directory
            .try_clone_to_owned()
            .map_err(LayerError::write("find the target of", &member.name))?;
        self.anew(path, name, member, |parent| {
            let name = beneath::name(name);
            rustix::fs::linkat(&directory, target_name, parent, name, AtFlags::empty())
        })?;
        Ok(())
    }

    fn add_fifo(&mut self, path: &[u8], name: &[u8], member: &Member) -> Result<(), LayerError> {
        self.anew(path, name, member, |parent| {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(parent, beneath::name(name), FileType::Fifo, mode, 0)
        })?;
        self.own(name, member)?;
        let mode = Mode::from_raw_mode(member.mode);
        rustix::fs::chmodat(self.parent(), beneath::name(name), mode, AtFlags::empty())
            .map_err(LayerError::write("set the mode of", &member.name))
    }

    /// Owner and time of something that is not opened.
    fn own(&self, name: &[u8], member: &Member) -> Result<(), LayerError> {
        let failed = |e| LayerError::write("set the owner of", &member.name)(e);
        let (name, itself) = (beneath::name(name), AtFlags::SYMLINK_NOFOLLOW);
        let (uid, gid) = (owner(member.uid), group(member.gid));
        rustix::fs::chownat(self.parent(), name, uid, gid, itself).map_err(failed)?;
        rustix::fs::utimensat(self.parent(), name, &times(member.mtime), itself).map_err(failed)
    }

    /// A mark that something below is gone. It says nothing about what is in this layer, whichever comes first.
    fn white_out(&mut self, parent: &[u8], name: &[u8], member: &[u8]) -> Result<(), LayerError> {
        let failed = |e| LayerError::write("leave the mark", member)(e);
        if name == OPAQUE {
            self.enter(parent, member)?;
            beneath::make_opaque(self.parent()).map_err(failed)?;
            self.done.opaque |= parent.is_empty();
            self.done.entries += 1;
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let gone = &name[WHITEOUT.len()..];
        if matches!(gone, b"" | b"." | b"..") {
            return Err(at(member, "marks no possible name as gone"));
        }
        self.enter(parent, member)?;
        match beneath::stat(self.parent(), gone) {
            Ok(there) if FileType::from_raw_mode(there.st_mode) == FileType::Directory => {
                let directory = beneath::directory(self.parent(), gone).map_err(failed)?;
                beneath::make_opaque(directory.as_fd()).map_err(failed)?;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let (gone, none) = (beneath::name(gone), Mode::empty());
                rustix::fs::mknodat(self.parent(), gone, FileType::CharacterDevice, none, 0)
                    .map_err(failed)?;
                // Equal layers are equal, whenever they were unpacked.
                let (then, itself) = (times(Time::default()), AtFlags::SYMLINK_NOFOLLOW);
                rustix::fs::utimensat(self.parent(), gone, &then, itself).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
        }
        self.done.entries += 1;
        Ok(())
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.parent
            .as_ref()
            .map_or(self.root, |(_, directory)| directory.as_fd())
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        for (path, time) in &self.times {
            let failed = |e| LayerError::write("set the time of", path)(e);
            let directory = beneath::directory(self.root, path).map_err(failed)?;
            rustix::fs::utimensat(&directory, ".", &times(*time), AtFlags::empty())
                .map_err(failed)?;
        }
        Ok(())
    }
}

fn at(name: &[u8], why: &'static str) -> LayerError {
    LayerError::Path {
        name: shown(name),
        why,
    }
}

/// The directory of a path and the name in it; none for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None if path.is_empty() => None,
        None => Some((b"", path)),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests;

//! One SFTP session: each request is answered before the next is looked at.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirBuilder, File, Metadata, OpenOptions, ReadDir},
    io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{AtFlags, CWD, RenameFlags, StatVfs, Timespec, Timestamps},
    io::Errno,
};

use super::{
    listing,
    wire::{Attributes, MAX_CONTENT, MAX_PACKET, Malformed, Packet, Reader, kind},
};
use crate::users::{Names, User};

/// Files and directories that one session has open.
const MAX_HANDLES: usize = 256;
/// Entries in one answer.
const ENTRIES: usize = 100;
/// Bits that nobody's umask lets through when a client says nothing better.
const UMASK: u32 = 0o022;

/// Status codes.
mod status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const FAILURE: u32 = 4;
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const UNSUPPORTED: u32 = 8;
}

/// Why a request was not done.
enum Refusal {
    Io(io::Error),
    Status(u32, &'static str),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Status(status::BAD_MESSAGE, "Bad message")
    }
}

/// Done with an answer of its own, or with a status.
type Done = Result<Option<()>, Refusal>;

const ANSWERED: Done = Ok(Some(()));
const FINE: Done = Ok(None);

enum Handle {
    File {
        file: File,
        appends: bool,
    },
    Directory {
        entries: ReadDir,
        path: PathBuf,
        dots: bool,
    },
}

/// What a session knows between two requests.
pub(super) struct Session {
    root: PathBuf,
    home: Vec<u8>,
    handles: BTreeMap<u32, Handle>,
    last: u32,
}

impl Session {
    pub(super) fn new(root: PathBuf, user: &User) -> Self {
        let mut session = Self {
            root,
            home: b"/".to_vec(),
            handles: BTreeMap::new(),
            last: 0,
        };
        if session.path(user.home.as_bytes()).is_dir() {
            session.home = user.home.clone().into_bytes();
        }
        session
    }

    /// Answers one request.
    pub(super) fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) {
        let mut reader = Reader(packet);
        let (Ok(wanted), Ok(id)) = (reader.u8(), reader.u32()) else {
            return;
        };
        if wanted == kind::INIT {
            return version(out);
        }
        let before = out.len();
        let (code, text) = match self.act(wanted, id, &mut reader, out) {
            Ok(Some(())) => return,
            Ok(None) => (status::OK, "Success".to_owned()),
            Err(Refusal::Status(code, text)) => (code, text.to_owned()),
            Err(Refusal::Io(error)) => (code_of(&error), text_of(&error)),
        };
        out.truncate(before);
        drop(
            Packet::answer(out, kind::STATUS, id)
                .u32(code)
                .bytes(text.as_bytes())
                .bytes(b""),
        );
    }

    fn act(&mut self, wanted: u8, id: u32, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Done {
        match wanted {
            kind::OPEN => self.open(id, reader, out),
            kind::CLOSE => {
                let handle = number(reader.bytes()?)?;
                self.handles.remove(&handle).ok_or(NO_HANDLE)?;
                FINE
            }
            kind::READ => {
                let (file, _) = self.file(reader.bytes()?)?;
                let (offset, length) = (reader.u64()?, reader.u32()? as usize);
                let packet = Packet::answer(out, kind::DATA, id);
                let fill = |room: &mut [u8]| read_at(file, room, offset);
                match packet.content(length.min(MAX_CONTENT), fill)? {
                    Some(()) => ANSWERED,
                    None => Err(END),
                }
            }
            kind::WRITE => {
                let (mut file, appends) = self.file(reader.bytes()?)?;
                let (offset, data) = (reader.u64()?, reader.bytes()?);
                match appends {
                    true => io::Write::write_all(&mut file, data)?,
                    false => file.write_all_at(data, offset)?,
                }
                FINE
            }
            kind::LSTAT => told(id, &fs::symlink_metadata(self.target(reader)?)?, out),
            kind::STAT => told(id, &fs::metadata(self.target(reader)?)?, out),
            kind::FSTAT => {
                let (file, _) = self.file(reader.bytes()?)?;
                told(id, &file.metadata()?, out)
            }
            kind::SETSTAT => {
                let path = self.target(reader)?;
                change(&path, &reader.attributes()?)
            }
            kind::FSETSTAT => {
                let (file, _) = self.file(reader.bytes()?)?;
                change_open(file, &reader.attributes()?)
            }
            kind::OPENDIR => {
                let path = self.target(reader)?;
                let entries = fs::read_dir(&path)?;
                let dots = false;
                self.keep(
                    id,
                    Handle::Directory {
                        entries,
                        path,
                        dots,
                    },
                    out,
                )
            }
            kind::READDIR => self.entries(id, reader, out),
            kind::REMOVE => done(fs::remove_file(self.target(reader)?)),
            kind::MKDIR => {
                let path = self.target(reader)?;
                let mode = reader.attributes()?.mode.unwrap_or(0o777) & 0o7777 & !UMASK;
                done(DirBuilder::new().mode(mode).create(path))
            }
            kind::RMDIR => done(fs::remove_dir(self.target(reader)?)),
            kind::REALPATH => {
                let path = reader.bytes()?;
                self.real(id, path, out)
            }
            kind::RENAME => {
                let (from, to) = (self.target(reader)?, self.target(reader)?);
                let flags = RenameFlags::NOREPLACE;
                Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags).map(|()| None)?)
            }
            kind::READLINK => {
                let target = fs::read_link(self.target(reader)?)?;
                named(id, target.as_os_str().as_bytes(), out)
            }
            kind::SYMLINK => {
                // OpenSSH has the two the other way round than the draft, and so has everybody since.
                let target = reader.bytes()?;
                let link = self.target(reader)?;
                done(std::os::unix::fs::symlink(OsStr::from_bytes(target), link))
            }
            kind::EXTENDED => self.extended(id, reader, out),
            _ => Err(UNKNOWN),
        }
    }

    fn extended(&mut self, id: u32, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Done {
        match reader.bytes()? {
            b"posix-rename@openssh.com" => {
                let (from, to) = (self.target(reader)?, self.target(reader)?);
                done(fs::rename(from, to))
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (self.target(reader)?, self.target(reader)?);
                done(fs::hard_link(from, to))
            }
            b"fsync@openssh.com" => done(self.file(reader.bytes()?)?.0.sync_all()),
            b"statvfs@openssh.com" => space(id, &rustix::fs::statvfs(self.target(reader)?)?, out),
            b"fstatvfs@openssh.com" => {
                let (file, _) = self.file(reader.bytes()?)?;
                space(id, &rustix::fs::fstatvfs(file)?, out)
            }
            b"lsetstat@openssh.com" => {
                let path = self.target(reader)?;
                change_link(&path, &reader.attributes()?)
            }
            b"limits@openssh.com" => {
                drop(
                    Packet::answer(out, kind::EXTENDED_REPLY, id)
                        .u64(MAX_PACKET as u64)
                        .u64(MAX_CONTENT as u64)
                        .u64(MAX_CONTENT as u64)
                        .u64(MAX_HANDLES as u64),
                );
                ANSWERED
            }
            b"expand-path@openssh.com" => {
                let path = reader.bytes()?;
                let home = self.home.clone();
                match path {
                    b"~" => self.real(id, &home, out),
                    [b'~', b'/', rest @ ..] => {
                        self.real(id, &[&home, &b"/"[..], rest].concat(), out)
                    }
                    [b'~', ..] => Err(Refusal::Status(
                        status::FAILURE,
                        "Only one's own home is known",
                    )),
                    path => self.real(id, path, out),
                }
            }
            b"users-groups-by-id@openssh.com" => {
                let names = Names::read(&self.path(b"/etc"));
                let list = |bytes: &[u8], name: &dyn Fn(u32) -> String| -> Vec<u8> {
                    let mut text = Vec::new();
                    for id in bytes.chunks_exact(4) {
                        let id = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
                        let name = name(id);
                        // Who has no name is not to be shown by number twice.
                        let name = if name == id.to_string() { "" } else { &name };
                        text.extend_from_slice(&(name.len() as u32).to_be_bytes());
                        text.extend_from_slice(name.as_bytes());
                    }
                    text
                };
                let users = list(reader.bytes()?, &|id| names.user(id));
                let groups = list(reader.bytes()?, &|id| names.group(id));
                drop(
                    Packet::answer(out, kind::EXTENDED_REPLY, id)
                        .bytes(&users)
                        .bytes(&groups),
                );
                ANSWERED
            }
            _ => Err(UNKNOWN),
        }
    }

    fn open(&mut self, id: u32, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Done {
        let path = self.target(reader)?;
        let flags = reader.u32()?;
        let attributes = reader.attributes()?;
        let has = |flag: u32| flags & flag != 0;
        let (reads, writes, appends) = (has(1), has(2), has(4));
        let (creates, truncates, exclusive) = (has(8), has(16), has(32));
        let mut options = OpenOptions::new();
        options
            .read(reads || !writes)
            .write(writes)
            .append(writes && appends)
            .create(writes && creates)
            .create_new(writes && creates && exclusive)
            .truncate(writes && truncates && !appends)
            .mode(attributes.mode.unwrap_or(0o666) & 0o7777 & !UMASK)
            // A pipe that nobody writes to would be waited for for ever.
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
        let file = options.open(path)?;
        self.keep(id, Handle::File { file, appends }, out)
    }

    fn keep(&mut self, id: u32, handle: Handle, out: &mut Vec<u8>) -> Done {
        if self.handles.len() >= MAX_HANDLES {
            return Err(Refusal::Status(status::FAILURE, "Too many open files"));
        }
        self.last = self.last.wrapping_add(1);
        self.handles.insert(self.last, handle);
        drop(Packet::answer(out, kind::HANDLE, id).bytes(&self.last.to_be_bytes()));
        ANSWERED
    }

    fn entries(&mut self, id: u32, reader: &mut Reader<'_>, out: &mut Vec<u8>) -> Done {
        let names = Names::read(&self.path(b"/etc"));
        let handle = number(reader.bytes()?)?;
        let Some(Handle::Directory {
            entries,
            path,
            dots,
        }) = self.handles.get_mut(&handle)
        else {
            return Err(NO_HANDLE);
        };
        let mut found: Vec<(Vec<u8>, Metadata)> = Vec::new();
        if !std::mem::replace(dots, true) {
            for name in [".", ".."] {
                if let Ok(meta) = fs::symlink_metadata(path.join(name)) {
                    found.push((name.into(), meta));
                }
            }
        }
        while found.len() < ENTRIES {
            let Some(entry) = entries.next() else { break };
            let entry = entry?;
            // One may vanish between the listing and the look.
            if let Ok(meta) = entry.metadata() {
                found.push((entry.file_name().into_vec(), meta));
            }
        }
        if found.is_empty() {
            return Err(END);
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or_default();
        let mut packet = Packet::answer(out, kind::NAME, id).u32(found.len() as u32);
        for (name, meta) in found {
            packet = packet
                .bytes(&name)
                .bytes(&listing::line(&name, &meta, &names, now))
                .attributes(&attributes(&meta));
        }
        drop(packet);
        ANSWERED
    }

    /// A path without links; what is not there yet is only put in order.
    fn real(&self, id: u32, path: &[u8], out: &mut Vec<u8>) -> Done {
        let shown = self.absolute(path);
        let found = fs::canonicalize(self.path(&shown)).ok();
        let inside = |path: PathBuf| match self.root == Path::new("/") {
            true => Some(path),
            false => path
                .strip_prefix(&self.root)
                .ok()
                .map(|rest| Path::new("/").join(rest)),
        };
        let shown = match found.and_then(inside) {
            Some(path) => path.into_os_string().into_vec(),
            None => shown,
        };
        named(id, &shown, out)
    }

    /// A path of a request, as this process opens it.
    fn target(&self, reader: &mut Reader<'_>) -> Result<PathBuf, Refusal> {
        let path = reader.bytes()?;
        if path.contains(&0) {
            return Err(Malformed.into());
        }
        Ok(self.path(path))
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        if self.root != Path::new("/") {
            let shown = self.absolute(path);
            let inside = OsStr::from_bytes(shown.strip_prefix(b"/").unwrap_or(&shown));
            return self.root.join(inside);
        }
        // In a real machine the kernel follows it: what `..` means behind a link is its business.
        match path.first() {
            Some(b'/') => PathBuf::from(OsStr::from_bytes(path)),
            _ => Path::new(OsStr::from_bytes(&self.home)).join(OsStr::from_bytes(path)),
        }
    }

    /// Without `.` and `..`, from the root.
    fn absolute(&self, path: &[u8]) -> Vec<u8> {
        let base: &[u8] = match path.first() {
            Some(b'/') => b"",
            _ => &self.home,
        };
        let mut parts: Vec<&[u8]> = Vec::new();
        let slash = |byte: &u8| *byte == b'/';
        for part in base.split(slash).chain(path.split(slash)) {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                name => parts.push(name),
            }
        }
        [&b"/"[..], &parts.join(&b'/')].concat()
    }

    fn file(&self, handle: &[u8]) -> Result<(&File, bool), Refusal> {
        match self.handles.get(&number(handle)?) {
            Some(Handle::File { file, appends }) => Ok((file, *appends)),
            _ => Err(NO_HANDLE),
        }
    }
}

const NO_HANDLE: Refusal = Refusal::Status(status::FAILURE, "No such handle");
const END: Refusal = Refusal::Status(status::EOF, "End of file");
const UNKNOWN: Refusal = Refusal::Status(status::UNSUPPORTED, "Operation unsupported");

fn version(out: &mut Vec<u8>) {
    let mut packet = Packet::new(out, kind::VERSION).u32(3);
    for (name, version) in [
        ("posix-rename@openssh.com", "1"),
        ("statvfs@openssh.com", "2"),
        ("fstatvfs@openssh.com", "2"),
        ("hardlink@openssh.com", "1"),
        ("fsync@openssh.com", "1"),
        ("lsetstat@openssh.com", "1"),
        ("limits@openssh.com", "1"),
        ("expand-path@openssh.com", "1"),
        ("users-groups-by-id@openssh.com", "1"),
    ] {
        packet = packet.bytes(name.as_bytes()).bytes(version.as_bytes());
    }
    drop(packet);
}

fn number(handle: &[u8]) -> Result<u32, Refusal> {
    let bytes = handle.try_into().map_err(|_| NO_HANDLE)?;
    Ok(u32::from_be_bytes(bytes))
}

fn done(result: io::Result<()>) -> Done {
    Ok(result.map(|()| None)?)
}

fn told(id: u32, meta: &Metadata, out: &mut Vec<u8>) -> Done {
    drop(Packet::answer(out, kind::ATTRS, id).attributes(&attributes(meta)));
    ANSWERED
}

/// One name, without anything about it.
fn named(id: u32, name: &[u8], out: &mut Vec<u8>) -> Done {
    drop(
        Packet::answer(out, kind::NAME, id)
            .u32(1)
            .bytes(name)
            .bytes(name)
            .attributes(&Attributes::default()),
    );
    ANSWERED
}

fn space(id: u32, space: &StatVfs, out: &mut Vec<u8>) -> Done {
    let values = [
        space.f_bsize,
        space.f_frsize,
        space.f_blocks,
        space.f_bfree,
        space.f_bavail,
        space.f_files,
        space.f_ffree,
        space.f_favail,
        space.f_fsid,
        u64::from(space.f_flag.bits() as u32 & 0b11),
        space.f_namemax,
    ];
    let packet = Packet::answer(out, kind::EXTENDED_REPLY, id);
    drop(values.into_iter().fold(packet, Packet::u64));
    ANSWERED
}

fn attributes(meta: &Metadata) -> Attributes {
    // Seconds have 32 bits here.
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(meta.size()),
        owner: Some((meta.uid(), meta.gid())),
        mode: Some(meta.mode()),
        times: Some((seconds(meta.atime()), seconds(meta.mtime()))),
    }
}

/// Fills as much as there is: a short answer would be taken for the end.
fn read_at(file: &File, room: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match file.read_at(&mut room[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if filled == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(filled)
}

fn change(path: &Path, attributes: &Attributes) -> Done {
    if let Some(size) = attributes.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::empty())?;
    }
    if let Some((user, group)) = attributes.owner {
        std::os::unix::fs::chown(path, Some(user), Some(group))?;
    }
    FINE
}

fn change_open(file: &File, attributes: &Attributes) -> Done {
    if let Some(size) = attributes.size {
        file.set_len(size)?;
    }
    if let Some(mode) = attributes.mode {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::futimens(file, &timestamps(times))?;
    }
    if let Some((user, group)) = attributes.owner {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    FINE
}

/// The same without following a link; links have no permissions and no size.
fn change_link(path: &Path, attributes: &Attributes) -> Done {
    if attributes.size.is_some() || attributes.mode.is_some() {
        let is_link = fs::symlink_metadata(path)?.is_symlink();
        if is_link {
            return Err(UNKNOWN);
        }
        return change(path, attributes);
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if let Some((user, group)) = attributes.owner {
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    }
    FINE
}

fn timestamps((read, changed): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time(read),
        last_modification: time(changed),
    }
}

fn code_of(error: &io::Error) -> u32 {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::BADF | Errno::LOOP) => status::NO_SUCH_FILE,
        Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => status::PERMISSION_DENIED,
        Some(Errno::NAMETOOLONG | Errno::INVAL) => status::BAD_MESSAGE,
        Some(Errno::NOSYS | Errno::OPNOTSUPP) => status::UNSUPPORTED,
        _ => status::FAILURE,
    }
}

/// What the system said, without the number.
fn text_of(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn session(root: &Path) -> Session {
        fs::create_dir_all(root.join("home/ann")).unwrap();
        let user = User {
            name: "ann".into(),
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            home: "/home/ann".into(),
            shell: String::new(),
        };
        Session::new(root.to_owned(), &user)
    }

    fn ask(session: &mut Session, kind: u8, parts: &[&[u8]]) -> (u8, Vec<u8>) {
        let mut packet = vec![kind, 0, 0, 0, 9];
        for part in parts {
            packet.extend_from_slice(part);
        }
        let mut out = Vec::new();
        session.answer(&packet, &mut out);
        assert_eq!(
            u32::from_be_bytes(out[..4].try_into().unwrap()) as usize,
            out.len() - 4
        );
        assert_eq!(out[5..9], [0, 0, 0, 9]);
        (out[4], out.split_off(9))
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text].concat()
    }

    #[test]
    fn a_file_is_written_read_and_ends() {
        let root = tempfile::tempdir().unwrap();
        let mut session = session(root.path());
        let none = 0u32.to_be_bytes();
        let flags = (1u32 | 2 | 8).to_be_bytes();
        let name = text(b"n\xe9");
        let (answered, handle) = ask(&mut session, kind::OPEN, &[&name, &flags, &none]);
        assert_eq!(answered, kind::HANDLE);
        let (at, data) = (5u64.to_be_bytes(), text(b"hello"));
        ask(&mut session, kind::WRITE, &[&handle, &at, &data]);
        let whole = [&0u64.to_be_bytes()[..], &1_000_000u32.to_be_bytes()].concat();
        let (answered, read) = ask(&mut session, kind::READ, &[&handle, &whole]);
        assert_eq!(
            (answered, &read[4..]),
            (kind::DATA, &b"\0\0\0\0\0hello"[..])
        );
        let end = [&10u64.to_be_bytes()[..], &9u32.to_be_bytes()].concat();
        let (answered, code) = ask(&mut session, kind::READ, &[&handle, &end]);
        assert_eq!(
            (answered, &code[..4]),
            (kind::STATUS, &status::EOF.to_be_bytes()[..])
        );
        ask(&mut session, kind::CLOSE, &[&handle]);
        let (_, code) = ask(&mut session, kind::READ, &[&handle, &whole]);
        assert_eq!(code[..4], status::FAILURE.to_be_bytes());
        // Names lead nowhere else than into the machine.
        let (_, real) = ask(&mut session, kind::REALPATH, &[&text(b"../../../n\xe9")]);
        assert_eq!(
            real[4..],
            [text(b"/n\xe9"), text(b"/n\xe9"), none.to_vec()].concat()
        );
    }

    /// Whatever is sent, a whole answer comes or none.
    #[test]
    fn nonsense_is_answered() {
        let root = tempfile::tempdir().unwrap();
        let mut session = session(root.path());
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..20_000 {
            let length = random(40) as usize;
            let kinds = [random(24) as u8, 200];
            let mut packet = vec![kinds[random(2) as usize]];
            packet.extend((0..length).map(|_| (random(4) * random(3)) as u8));
            let mut out = Vec::new();
            session.answer(&packet, &mut out);
            if let Some(head) = out.first_chunk::<4>() {
                assert_eq!(u32::from_be_bytes(*head) as usize, out.len() - 4);
            }
        }
    }
}

//! Checking, and unpacking, an uploaded archive against its manifest.
//!
//! Both come from outside. The archive is read once, member by member, with memory for the manifest and little else;
//! whatever is not exactly what the manifest announces ends the reading with an error that has a stable
//! [`BundleError::reason`]. The reader knows ustar headers and pax records and refuses all else. The digest of a bundle
//! is not a hash of the archive: what counts is that every member is one of the included entries, that each of those
//! is there once, and that its content has the announced digest.

use crate::archive::{BLOCK, NAME_BYTES, padding};
use crate::bundle::BUFFER_BYTES;
use crate::manifest::{Entry, Kind, MAX_TOTAL_BYTES, Manifest, ManifestError, leaves_root};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most bytes of pax records before a member.
pub const MAX_PAX_BYTES: u64 = 64 * 1024;
/// Most zero bytes taken after the two blocks that end an archive. Writers pad to 10 KiB, some to 1 MiB.
pub const MAX_END_BYTES: u64 = 1024 * 1024;

/// Why an upload was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The manifest itself.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The archive could not be read on: the sender's connection, not its content.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The archive ends before its end mark.
    #[error("archive is cut short")]
    Truncated,
    /// A header or pax record is not what the format says.
    #[error("malformed header: {0}")]
    MalformedHeader(&'static str),
    /// A member is a hard link, device, fifo, sparse or GNU-extended file, or anything but file, directory and symlink.
    #[error("unsupported entry type {:?}", char::from(*.0))]
    UnsupportedType(u8),
    /// More than [`MAX_PAX_BYTES`] of pax records, or a file beyond the limit of a whole bundle.
    #[error("{0} is too large")]
    TooLarge(&'static str),
    /// A member's path is absolute or steps up.
    #[error("path leaves the bundle: {0:?}")]
    PathEscapes(String),
    /// A member is no included entry of the manifest.
    #[error("not in the manifest: {0:?}")]
    UnexpectedMember(String),
    /// A member is there twice.
    #[error("member appears twice: {0:?}")]
    DuplicateMember(String),
    /// An included entry has no member; the first in the manifest's order.
    #[error("missing from the archive: {0:?}")]
    MissingMember(String),
    /// A member is another kind than its entry.
    #[error("kind does not agree with the manifest: {0:?}")]
    KindMismatch(String),
    /// A member has another size than its entry.
    #[error("size does not agree with the manifest: {0:?}")]
    SizeMismatch(String),
    /// A member has other permission bits than its entry.
    #[error("mode does not agree with the manifest: {0:?}")]
    ModeMismatch(String),
    /// A file's content has another digest than its entry.
    #[error("content does not agree with the manifest: {0:?}")]
    DigestMismatch(String),
    /// A symlink points elsewhere than its entry.
    #[error("symlink target does not agree with the manifest: {0:?}")]
    LinkMismatch(String),
    /// Something other than zeros, or too many of them, after the end mark.
    #[error("data after the end of the archive")]
    TrailingData,
    /// A member could not be unpacked.
    #[error("could not write {path:?}")]
    Write {
        /// The member.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl BundleError {
    /// A stable word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Manifest(error) => error.reason(),
            Self::Read(_) => "read_failed",
            Self::Truncated => "truncated",
            Self::MalformedHeader(_) => "malformed_header",
            Self::UnsupportedType(_) => "unsupported_entry_type",
            Self::TooLarge(_) => "too_large",
            Self::PathEscapes(_) => "path_escapes",
            Self::UnexpectedMember(_) => "unexpected_member",
            Self::DuplicateMember(_) => "duplicate_member",
            Self::MissingMember(_) => "missing_member",
            Self::KindMismatch(_) => "kind_mismatch",
            Self::SizeMismatch(_) => "size_mismatch",
            Self::ModeMismatch(_) => "mode_mismatch",
            Self::DigestMismatch(_) => "digest_mismatch",
            Self::LinkMismatch(_) => "link_mismatch",
            Self::TrailingData => "trailing_data",
            Self::Write { .. } => "write_failed",
        }
    }

    /// Whether the platform, not the upload, is at fault.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// What was in an archive that passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Directories.
    pub dirs: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of all files.
    pub content_bytes: u64,
    /// Bytes read, padding included.
    pub archive_bytes: u64,
}

/// Checks the archive and keeps nothing of it. Reads to the end of `reader`; members may come in any order.
///
/// # Errors
/// The first problem, of the manifest ([`Manifest::validate`] comes first) or of the archive.
pub fn verify_archive(reader: impl Read, manifest: &Manifest) -> Result<Stats, BundleError> {
    run(reader, manifest, &mut Discard)
}

/// Checks the archive while unpacking it below the open directory `root`, which should be empty and no one else's.
///
/// Nothing is opened by a path of more than one segment and no link is followed; files must not exist yet; symlinks
/// come last. Modes are those of the manifest without set-id and sticky bits (0755 for directories that are no entries);
/// times and owners are the process's. Holds a descriptor for each level of depth.
///
/// # Errors
/// As [`verify_archive`], and [`BundleError::Write`]. What was unpacked by then stays and is not to be used.
pub fn extract_archive(
    reader: impl Read,
    manifest: &Manifest,
    root: impl AsFd,
) -> Result<Stats, BundleError> {
    run(
        reader,
        manifest,
        &mut Unpack {
            root: root.as_fd(),
            open: Vec::new(),
            made: BTreeMap::new(),
            links: Vec::new(),
        },
    )
}

fn run<'m>(
    reader: impl Read,
    manifest: &'m Manifest,
    sink: &mut impl Sink<'m>,
) -> Result<Stats, BundleError> {
    manifest.validate()?;
    let included: Vec<&Entry> = manifest.included().collect();
    let index: HashMap<&str, usize> = included
        .iter()
        .enumerate()
        .map(|(index, entry)| (entry.path.as_str(), index))
        .collect();
    let mut seen = vec![false; included.len()];
    let mut source = Source {
        reader: BufReader::with_capacity(BUFFER_BYTES, reader),
        taken: 0,
    };
    let mut stats = Stats::default();

    while let Some(member) = Member::read(&mut source)? {
        if leaves_root(&member.path) {
            return Err(BundleError::PathEscapes(member.path));
        }
        let Some(&at) = index.get(member.path.as_str()) else {
            return Err(BundleError::UnexpectedMember(member.path));
        };
        let entry = included[at];
        if std::mem::replace(&mut seen[at], true) {
            return Err(BundleError::DuplicateMember(member.path));
        }
        if member.kind != entry.kind {
            return Err(BundleError::KindMismatch(member.path));
        }
        if member.size != entry.size {
            return Err(BundleError::SizeMismatch(member.path));
        }
        if member.mode != entry.archived_mode() {
            return Err(BundleError::ModeMismatch(member.path));
        }
        match entry.kind {
            Kind::Dir => {
                sink.dir(entry)?;
                stats.dirs += 1;
            }
            Kind::Symlink => {
                // The manifest's own check ties the digest to this target.
                if entry.symlink_target.as_deref() != Some(member.link.as_str()) {
                    return Err(BundleError::LinkMismatch(member.path));
                }
                sink.symlink(entry)?;
                stats.symlinks += 1;
            }
            Kind::File => {
                let mut file = sink.file(entry)?;
                let mut hasher = Sha256::new();
                source.content(entry.size, |bytes| {
                    hasher.update(bytes);
                    match &mut file {
                        Some(file) => file
                            .write_all(bytes)
                            .map_err(|source| write_error(entry, source)),
                        None => Ok(()),
                    }
                })?;
                if entry.digest.as_deref() != Some(hex::encode(hasher.finalize()).as_str()) {
                    return Err(BundleError::DigestMismatch(member.path));
                }
                sink.finish(entry, file)?;
                stats.files += 1;
                stats.content_bytes += entry.size;
            }
        }
    }
    if let Some(at) = seen.iter().position(|seen| !seen) {
        return Err(BundleError::MissingMember(included[at].path.clone()));
    }
    sink.end()?;
    stats.archive_bytes = source.taken;
    Ok(stats)
}

fn write_error(entry: &Entry, source: io::Error) -> BundleError {
    BundleError::Write {
        path: entry.path.clone(),
        source,
    }
}

/// The archive as a row of blocks.
struct Source<R> {
    reader: BufReader<R>,
    taken: u64,
}

impl<R: Read> Source<R> {
    fn fill(&mut self) -> Result<&[u8], BundleError> {
        loop {
            // Borrowed again below: a loop that returns what it borrows is more than the borrow checker follows.
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BundleError::Read(error)),
            }
        }
        Ok(self.reader.buffer())
    }

    fn take(&mut self, count: usize) {
        self.reader.consume(count);
        self.taken += count as u64;
    }

    /// Passes on the next `size` bytes in pieces.
    fn pass(
        &mut self,
        size: u64,
        mut to: impl FnMut(&[u8]) -> Result<(), BundleError>,
    ) -> Result<(), BundleError> {
        let mut left = size;
        while left > 0 {
            let piece = self.fill()?;
            if piece.is_empty() {
                return Err(BundleError::Truncated);
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            to(&piece[..count])?;
            self.take(count);
            left -= count as u64;
        }
        Ok(())
    }

    /// Content of `size` bytes and the zeros that fill its last block.
    fn content(
        &mut self,
        size: u64,
        to: impl FnMut(&[u8]) -> Result<(), BundleError>,
    ) -> Result<(), BundleError> {
        self.pass(size, to)?;
        self.pass(padding(size), |bytes| {
            match bytes.iter().all(|byte| *byte == 0) {
                true => Ok(()),
                false => Err(BundleError::MalformedHeader(
                    "content is not padded with zeros",
                )),
            }
        })
    }

    fn block(&mut self) -> Result<[u8; BLOCK], BundleError> {
        let mut block = [0; BLOCK];
        let mut at = 0;
        self.pass(BLOCK as u64, |bytes| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
            Ok(())
        })?;
        Ok(block)
    }

    /// The rest must be zeros, and not many.
    fn end(&mut self) -> Result<(), BundleError> {
        let limit = self.taken + MAX_END_BYTES;
        loop {
            let piece = self.fill()?;
            if piece.is_empty() {
                return Ok(());
            }
            let count = piece.len();
            if piece.iter().any(|byte| *byte != 0) {
                return Err(BundleError::TrailingData);
            }
            self.take(count);
            if self.taken > limit {
                return Err(BundleError::TrailingData);
            }
        }
    }
}

/// A member's header, pax records applied.
struct Member {
    /// Without the slash at a directory's end.
    path: String,
    kind: Kind,
    mode: u32,
    size: u64,
    link: String,
}

impl Member {
    /// The next member, or none once the end mark and all after it is read.
    fn read(source: &mut Source<impl Read>) -> Result<Option<Self>, BundleError> {
        use BundleError::MalformedHeader;
        let mut records: Option<Records> = None;
        loop {
            let block = source.block()?;
            if block == [0; BLOCK] {
                if records.is_some() {
                    return Err(MalformedHeader("pax records without a member"));
                }
                if source.block()? != [0; BLOCK] {
                    return Err(MalformedHeader("a single zero block"));
                }
                source.end()?;
                return Ok(None);
            }
            check_sum(&block)?;
            let kind = match block[156] {
                b'0' | 0 => Kind::File,
                b'2' => Kind::Symlink,
                b'5' => Kind::Dir,
                b'x' => {
                    check_magic(&block)?;
                    if records.is_some() {
                        return Err(MalformedHeader("pax records twice"));
                    }
                    records = Some(Records::read(source, number(&block[124..136])?)?);
                    continue;
                }
                other => return Err(BundleError::UnsupportedType(other)),
            };
            check_magic(&block)?;
            let records = records.unwrap_or_default();
            let mut path = match records.path {
                Some(path) => path,
                None => {
                    let name = field_text(&block[..NAME_BYTES])?;
                    match field_text(&block[345..500])? {
                        "" => name.to_owned(),
                        prefix => format!("{prefix}/{name}"),
                    }
                }
            };
            if path.ends_with('/') {
                if kind != Kind::Dir {
                    return Err(MalformedHeader(
                        "a slash at the end of a path that is no directory",
                    ));
                }
                path.pop();
            }
            let link = match records.link {
                Some(link) => link,
                None => field_text(&block[157..257])?.to_owned(),
            };
            if kind != Kind::Symlink && !link.is_empty() {
                return Err(MalformedHeader("a link name on what is no link"));
            }
            let size = match records.size {
                Some(size) => size,
                None => number(&block[124..136])?,
            };
            if kind != Kind::File && size != 0 {
                return Err(MalformedHeader("content in what is no file"));
            }
            if size > MAX_TOTAL_BYTES {
                return Err(BundleError::TooLarge("a file"));
            }
            let mode = u32::try_from(number(&block[100..108])?)
                .map_err(|_| MalformedHeader("mode out of range"))?;
            return Ok(Some(Self {
                path,
                kind,
                mode: mode & 0o777,
                size,
                link,
            }));
        }
    }
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), BundleError> {
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                u64::from(b' ')
            } else {
                u64::from(*byte)
            }
        })
        .sum();
    match number(&block[148..156]) {
        Ok(stored) if stored == sum => Ok(()),
        _ => Err(BundleError::MalformedHeader("checksum does not agree")),
    }
}

fn check_magic(block: &[u8; BLOCK]) -> Result<(), BundleError> {
    match &block[257..265] {
        b"ustar\x0000" => Ok(()),
        _ => Err(BundleError::MalformedHeader("not a posix ustar header")),
    }
}

/// Octal digits up to a NUL or space. The binary form for large numbers is refused: pax records are for those.
fn number(field: &[u8]) -> Result<u64, BundleError> {
    let end = field
        .iter()
        .position(|byte| matches!(byte, 0 | b' '))
        .unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    let plain = digits.iter().all(|byte| matches!(byte, b'0'..=b'7'))
        && rest.iter().all(|byte| matches!(byte, 0 | b' '));
    if !plain {
        return Err(BundleError::MalformedHeader("not an octal number"));
    }
    // Twelve digits at most, so this fits.
    Ok(digits
        .iter()
        .fold(0, |value, digit| value * 8 + u64::from(digit - b'0')))
}

fn field_text(field: &[u8]) -> Result<&str, BundleError> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    std::str::from_utf8(&field[..end])
        .map_err(|_| BundleError::MalformedHeader("text is not utf-8"))
}

/// The pax records this reader acts on. Times, owners and comments pass unread, as nothing is done with them.
#[derive(Default)]
struct Records {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Records {
    fn read(source: &mut Source<impl Read>, size: u64) -> Result<Self, BundleError> {
        if size > MAX_PAX_BYTES {
            return Err(BundleError::TooLarge("a pax header"));
        }
        let mut bytes = Vec::new();
        source.content(size, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Self::parse(&bytes)
    }

    fn parse(mut rest: &[u8]) -> Result<Self, BundleError> {
        let malformed = || BundleError::MalformedHeader("malformed pax record");
        let mut records = Self::default();
        while !rest.is_empty() {
            // `<length> <key>=<value>\n`, the length counting all of it.
            let space = rest
                .iter()
                .take(8)
                .position(|byte| *byte == b' ')
                .ok_or_else(malformed)?;
            let digits = std::str::from_utf8(&rest[..space]).map_err(|_| malformed())?;
            let length: usize = digits.parse().map_err(|_| malformed())?;
            if length <= space + 1
                || length > rest.len()
                || !digits.bytes().all(|byte| byte.is_ascii_digit())
            {
                return Err(malformed());
            }
            let (record, after) = rest.split_at(length);
            rest = after;
            let record = record[space + 1..]
                .strip_suffix(b"\n")
                .ok_or_else(malformed)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(malformed)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.starts_with(b"GNU.sparse") {
                return Err(BundleError::UnsupportedType(b'S'));
            }
            let text = || match std::str::from_utf8(value) {
                Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
                _ => Err(malformed()),
            };
            let twice = match key {
                b"path" => records.path.replace(text()?).is_some(),
                b"linkpath" => records.link.replace(text()?).is_some(),
                b"size" => {
                    let digits = text()?;
                    let plain =
                        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                    let size = if plain { digits.parse().ok() } else { None };
                    records.size.replace(size.ok_or_else(malformed)?).is_some()
                }
                _ => false,
            };
            if twice {
                return Err(BundleError::MalformedHeader("pax record twice"));
            }
        }
        Ok(records)
    }
}

/// Where checked members go.
trait Sink<'m> {
    fn dir(&mut self, entry: &'m Entry) -> Result<(), BundleError>;
    fn symlink(&mut self, entry: &'m Entry) -> Result<(), BundleError>;
    fn file(&mut self, entry: &'m Entry) -> Result<Option<File>, BundleError>;
    fn finish(&mut self, entry: &'m Entry, file: Option<File>) -> Result<(), BundleError>;
    fn end(&mut self) -> Result<(), BundleError>;
}

struct Discard;

impl<'m> Sink<'m> for Discard {
    fn dir(&mut self, _: &'m Entry) -> Result<(), BundleError> {
        Ok(())
    }
    fn symlink(&mut self, _: &'m Entry) -> Result<(), BundleError> {
        Ok(())
    }
    fn file(&mut self, _: &'m Entry) -> Result<Option<File>, BundleError> {
        Ok(None)
    }
    fn finish(&mut self, _: &'m Entry, _: Option<File>) -> Result<(), BundleError> {
        Ok(())
    }
    fn end(&mut self) -> Result<(), BundleError> {
        Ok(())
    }
}

/// Mode of directories the manifest does not name.
const IMPLIED_DIR_MODE: u32 = 0o755;

struct Unpack<'r, 'm> {
    root: BorrowedFd<'r>,
    /// The directories from the root to where the last member went.
    open: Vec<(&'m str, OwnedFd)>,
    /// The mode every directory gets in the end; until then only this process gets in.
    made: BTreeMap<&'m str, u32>,
    links: Vec<&'m Entry>,
}

impl<'m> Unpack<'_, 'm> {
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
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.archived_mode()))
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
                .and_then(|dir| rustix::fs::fchmod(dir, Mode::from_raw_mode(mode)));
            result.map_err(|error| BundleError::Write {
                path: path.to_owned(),
                source: error.into(),
            })?;
        }
        Ok(())
    }
}

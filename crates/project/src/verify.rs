//! Checking, and unpacking, an uploaded archive against its manifest.
//!
//! Both come from outside. The archive is read once, member by member, with memory for the manifest and little else;
//! whatever is not exactly what the manifest announces ends the reading with an error that has a stable
//! [`BundleError::reason`]. The reader knows ustar headers and pax records and refuses all else. The digest of a bundle
//! is not a hash of the archive: what counts is that every member is one of the included entries, that each of those
//! is there once, and that its content has the announced digest.

mod tar;
mod unpack;

use crate::manifest::{Entry, Kind, Manifest, ManifestError, leaves_root};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use tar::{Member, Source};
use unpack::Unpack;

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
    run(reader, manifest, &mut Unpack::below(root.as_fd()))
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
    let mut source = Source::new(reader);
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

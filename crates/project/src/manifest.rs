//! The manifest of a bundle: every path the walk saw, what was decided about it, and the digest over what travels.
//!
//! The client makes it ([`crate::bundle`]); the server gets it from anyone, so [`Manifest::validate`] comes before any
//! other use there.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::cmp::Ordering;
use std::fmt;

/// Most bytes of included files in a bundle: 8 GiB.
pub const MAX_TOTAL_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Most included files and symlinks in a bundle.
pub const MAX_FILES: u64 = 100_000;
/// Most entries of a manifest a server takes, included or not.
pub const MAX_ENTRIES: usize = 400_000;
/// Longest path and symlink target a server takes, in bytes; Linux takes no longer one.
pub const MAX_PATH_BYTES: usize = 4095;
/// Most segments of a path a server takes; extraction holds one descriptor for each.
pub const MAX_DEPTH: usize = 128;
/// What every manifest says in `materialization_path`, whatever the config's `workdir`.
pub const MATERIALIZATION_PATH: &str = "/workspace/project";
/// The only archive format there is.
pub const ARCHIVE_FORMAT: &str = "tar";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link, never followed.
    Symlink,
}

impl Kind {
    /// The spelling in manifests and in what the bundle digest is taken over.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::File => "file",
            Self::Symlink => "symlink",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One path of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the project, `/` between segments.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Whether it travels.
    pub included: bool,
    /// Why, for people.
    pub reason: String,
    /// Bytes of a file, also of one left out; 0 for others.
    #[serde(default)]
    pub size: u64,
    /// Permission bits with set-id and sticky bits, at most 0o7777.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// SHA-256, lower-case hex, of an included file's content or an included symlink's target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where a symlink points, also one left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

impl Entry {
    /// The permission bits its member of the archive has: those of `mode` without set-id and sticky bits, and a usual
    /// value where there is no mode or it is 0.
    pub fn archived_mode(&self) -> u32 {
        let usual = match self.kind {
            Kind::Dir => 0o755,
            Kind::File => 0o644,
            Kind::Symlink => 0o777,
        };
        self.mode.filter(|mode| *mode != 0).unwrap_or(usual) & 0o777
    }
}

/// What the upload of a version is checked against. Field names are those on the wire; unknown ones are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`Manifest::derive_bundle_digest`].
    pub bundle_digest: String,
    /// See [`crate::AgentConfig::config_digest`].
    pub config_digest: String,
    /// [`ARCHIVE_FORMAT`].
    pub archive_format: String,
    /// Bytes of the included files.
    pub total_size: u64,
    /// Number of included files and symlinks.
    pub file_count: u64,
    /// When it was made: UTC, RFC 3339. Not part of any digest.
    pub generated_at: String,
    /// [`MATERIALIZATION_PATH`].
    pub materialization_path: String,
    /// The config's `bundle.include`.
    pub include_patterns: Vec<String>,
    /// The config's `bundle.exclude`.
    pub exclude_patterns: Vec<String>,
    /// The default rules in force when it was made.
    pub default_exclude_patterns: Vec<String>,
    /// In the order of the walk, which is the order of the archive.
    pub entries: Vec<Entry>,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// `archive_format` is not `tar`.
    #[error("archive format must be tar")]
    Format,
    /// A digest is not 64 lower-case hex digits; carries the field or the path.
    #[error("{0}: not a sha-256 digest")]
    NotADigest(String),
    /// More than [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// More than [`MAX_FILES`].
    #[error("more than {MAX_FILES} files and symlinks")]
    TooManyFiles,
    /// More than [`MAX_TOTAL_BYTES`].
    #[error("files exceed {MAX_TOTAL_BYTES} bytes")]
    TooLarge,
    /// `total_size` or `file_count` is not what the entries add up to; carries the field.
    #[error("{0} does not agree with the entries")]
    WrongSum(&'static str),
    /// A path leads outside the project, or would if backslashes were slashes.
    #[error("path leaves the project: {0:?}")]
    PathEscapes(String),
    /// A path is empty, too long, too deep, or has an empty or `.` segment or a NUL.
    #[error("not a plain relative path: {0:?}")]
    BadPath(String),
    /// Two entries have one path.
    #[error("path appears twice: {0:?}")]
    DuplicatePath(String),
    /// An entry lies below one that is no directory.
    #[error("path lies below a file or symlink: {0:?}")]
    BelowNonDirectory(String),
    /// A symlink's target is absolute or leads outside the project.
    #[error("symlink leaves the project: {0:?}")]
    LinkEscapes(String),
    /// A field is missing, out of range, or does not belong to the kind of entry.
    #[error("{path:?}: {problem}")]
    BadEntry {
        /// The entry.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// `bundle_digest` is not what the entries give.
    #[error("bundle digest does not agree with the entries")]
    DigestMismatch,
}

impl ManifestError {
    /// A stable word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Format => "manifest_format",
            Self::NotADigest(_) => "manifest_bad_digest",
            Self::TooManyEntries => "manifest_too_many_entries",
            Self::TooManyFiles => "manifest_too_many_files",
            Self::TooLarge => "manifest_too_large",
            Self::WrongSum(_) => "manifest_wrong_sum",
            Self::PathEscapes(_) => "manifest_path_escapes",
            Self::BadPath(_) => "manifest_bad_path",
            Self::DuplicatePath(_) => "manifest_duplicate_path",
            Self::BelowNonDirectory(_) => "manifest_below_non_directory",
            Self::LinkEscapes(_) => "manifest_link_escapes",
            Self::BadEntry { .. } => "manifest_bad_entry",
            Self::DigestMismatch => "manifest_digest_mismatch",
        }
    }
}

impl Manifest {
    /// The entries that travel, in order.
    pub fn included(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.included)
    }

    /// The bundle digest, SHA-256 in lower-case hex, over `config_digest` and the included entries sorted by path.
    /// It covers path, kind, mode, size and digest of each, and is no hash of the archive.
    pub fn derive_bundle_digest(&self) -> String {
        let mut included: Vec<&Entry> = self.included().collect();
        included.sort_by(|a, b| a.path.cmp(&b.path));
        let mut hasher = Sha256::new();
        hasher.update(format!("config:{}\n", self.config_digest));
        for entry in included {
            let numbers = format!(
                "\0{}\0{}\0{}\0",
                entry.kind,
                entry.mode.unwrap_or(0),
                entry.size
            );
            hasher.update(&entry.path);
            hasher.update(numbers);
            hasher.update(entry.digest.as_deref().unwrap_or_default());
            hasher.update("\n");
        }
        hex::encode(hasher.finalize())
    }

    /// Checks a manifest from outside: limits, paths, links, the fields of each kind, sums and digests. After this the
    /// entries form a tree: paths are unique, plain and relative, and only directories have anything below them.
    ///
    /// Links are checked by their text. A link through another link can still lead out of the tree once it is on disk,
    /// so whoever reads an extracted bundle must not follow links out of it.
    ///
    /// # Errors
    /// The first problem found.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.archive_format != ARCHIVE_FORMAT {
            return Err(ManifestError::Format);
        }
        for (field, digest) in [
            ("bundle_digest", &self.bundle_digest),
            ("config_digest", &self.config_digest),
        ] {
            if !is_digest(digest) {
                return Err(ManifestError::NotADigest(field.to_owned()));
            }
        }
        if self.entries.len() > MAX_ENTRIES {
            return Err(ManifestError::TooManyEntries);
        }
        let (mut total_size, mut file_count) = (0u64, 0u64);
        for entry in &self.entries {
            check_path(&entry.path)?;
            check_fields(entry)?;
            if entry.included {
                file_count += u64::from(entry.kind != Kind::Dir);
                total_size = total_size.saturating_add(entry.size);
            }
            if file_count > MAX_FILES {
                return Err(ManifestError::TooManyFiles);
            }
            if total_size > MAX_TOTAL_BYTES {
                return Err(ManifestError::TooLarge);
            }
        }
        check_tree(&self.entries)?;
        if self.total_size != total_size {
            return Err(ManifestError::WrongSum("total_size"));
        }
        if self.file_count != file_count {
            return Err(ManifestError::WrongSum("file_count"));
        }
        if self.derive_bundle_digest() != self.bundle_digest {
            return Err(ManifestError::DigestMismatch);
        }
        Ok(())
    }
}

/// Paths are unique, and only directories have entries below them. Looking up every parent of every entry would cost
/// a hostile manifest's depth times its length; sorted, whatever lies below a path comes right after it.
fn check_tree(entries: &[Entry]) -> Result<(), ManifestError> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| by_segment(&a.path, &b.path));
    for pair in sorted.windows(2) {
        let (above, entry) = (pair[0], pair[1]);
        let Some(rest) = entry.path.strip_prefix(&above.path) else {
            continue;
        };
        if rest.is_empty() {
            return Err(ManifestError::DuplicatePath(entry.path.clone()));
        }
        if rest.starts_with('/') && above.kind != Kind::Dir {
            return Err(ManifestError::BelowNonDirectory(entry.path.clone()));
        }
    }
    Ok(())
}

/// Orders paths so that `/` comes before every other byte; a NUL, which would come earlier, is in no path.
fn by_segment(a: &str, b: &str) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    match a.bytes().zip(b.bytes()).find(|(a, b)| a != b) {
        Some((a, b)) => rank(&a).cmp(&rank(&b)),
        None => a.len().cmp(&b.len()),
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path, once backslashes count as slashes too, is absolute or steps up anywhere.
pub(crate) fn leaves_root(path: &str) -> bool {
    path.starts_with(['/', '\\']) || path.split(['/', '\\']).any(|segment| segment == "..")
}

fn check_path(path: &str) -> Result<(), ManifestError> {
    if leaves_root(path) {
        return Err(ManifestError::PathEscapes(path.to_owned()));
    }
    let plain = path.len() <= MAX_PATH_BYTES
        && !path.contains('\0')
        && path.split('/').count() <= MAX_DEPTH
        && path.split('/').all(|segment| !matches!(segment, "" | "."));
    if plain {
        Ok(())
    } else {
        Err(ManifestError::BadPath(path.to_owned()))
    }
}

fn check_fields(entry: &Entry) -> Result<(), ManifestError> {
    let bad = |problem| {
        Err(ManifestError::BadEntry {
            path: entry.path.clone(),
            problem,
        })
    };
    if entry.mode.is_some_and(|mode| mode > 0o7777) {
        return bad("mode is more than permission bits");
    }
    if entry.kind != Kind::File && entry.size != 0 {
        return bad("only files have a size");
    }
    if entry.kind != Kind::Symlink && entry.symlink_target.is_some() {
        return bad("only symlinks have a target");
    }
    if entry.kind == Kind::Symlink {
        let target = entry.symlink_target.as_deref().unwrap_or_default();
        if target.len() > MAX_PATH_BYTES || target.contains('\0') {
            return bad("target is no path");
        }
        match check_link(&entry.path, target) {
            Ok(()) => {}
            Err(LinkProblem::Empty) => return bad("symlink has no target"),
            Err(LinkProblem::Absolute | LinkProblem::Escapes) => {
                return Err(ManifestError::LinkEscapes(entry.path.clone()));
            }
        }
    }
    let Some(digest) = &entry.digest else {
        let needed = entry.included && entry.kind != Kind::Dir;
        return if needed {
            bad("digest is missing")
        } else {
            Ok(())
        };
    };
    if entry.kind == Kind::Dir {
        return bad("directories have no digest");
    }
    if !is_digest(digest) {
        return Err(ManifestError::NotADigest(entry.path.clone()));
    }
    let target = entry.symlink_target.as_deref().unwrap_or_default();
    if entry.kind == Kind::Symlink && *digest != hex::encode(Sha256::digest(target)) {
        return bad("digest is not that of the target");
    }
    Ok(())
}

/// What is wrong with the target of a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkProblem {
    Empty,
    Absolute,
    Escapes,
}

/// Checks, by the text alone, that a symlink at `path` points into the project. It may point at nothing.
pub(crate) fn check_link(path: &str, target: &str) -> Result<(), LinkProblem> {
    if target.is_empty() {
        return Err(LinkProblem::Empty);
    }
    if target.starts_with(['/', '\\']) {
        return Err(LinkProblem::Absolute);
    }
    let mut depth = path.matches('/').count();
    for segment in target.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." if depth == 0 => return Err(LinkProblem::Escapes),
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

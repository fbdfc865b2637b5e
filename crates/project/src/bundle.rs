//! Which files of a project travel, and what they are: walk, decide, hash.
//!
//! Each directory's entries are taken in code-point order of their names, and a directory left out is not looked into,
//! unless it was only not asked for: an include pattern may name something inside. The decision on a path is the first
//! that applies of: not matched by `bundle.include`, the default rules, `bundle.exclude`, `.nullspaceignore`,
//! `.gitignore` (both at the root only), included. All this is the published client's, digest for digest.

use crate::config::AgentConfig;
use crate::manifest::{
    ARCHIVE_FORMAT, Entry, Kind, LinkProblem, MATERIALIZATION_PATH, MAX_FILES, MAX_TOTAL_BYTES,
    Manifest, check_link,
};
use crate::pattern::{PatternError, Patterns};
use crate::text;
use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Patterns left out of every bundle. They cannot be taken back by a project's own patterns.
pub const DEFAULT_EXCLUDE_PATTERNS: [&str; 20] = [
    ".git/",
    ".venv/",
    "venv/",
    "node_modules/",
    ".local/",
    "dist/",
    "build/",
    "__pycache__/",
    "*.pyc",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".cache/",
    ".env",
    ".env.*",
    "!.env.example",
    "*.pem",
    "*.key",
    "id_rsa",
    "id_ed25519",
];

/// Buffer for reading a file; large enough that system calls do not show, small enough to stay in cache.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;

/// Why a project cannot be bundled.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The project directory is missing or something else.
    #[error("project directory does not exist: {0}")]
    NotAProject(String),
    /// A pattern of the config or of an ignore file makes no sense.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// An ignore file is not UTF-8.
    #[error("{0}: not utf-8")]
    NotText(String),
    /// A file name is not UTF-8, so no manifest can hold it.
    #[error("file name is not utf-8: {0}")]
    NameNotText(String),
    /// A symlink's target is empty.
    #[error("agent bundle symlink {0} is missing a target")]
    LinkEmpty(String),
    /// A symlink's target is absolute; also refused for a symlink that is left out.
    #[error("agent bundle symlink {0} points to an absolute target")]
    LinkAbsolute(String),
    /// A symlink's target is outside the project; also refused for a symlink that is left out.
    #[error("agent bundle symlink {0} escapes the project")]
    LinkEscapes(String),
    /// A fifo, socket or device; also refused when it is left out.
    #[error("agent bundles do not support special file {0}")]
    SpecialFile(String),
    /// More than [`MAX_TOTAL_BYTES`].
    #[error("agent bundle exceeds max_total_bytes: {size} > {limit}")]
    TooLarge {
        /// Bytes so far.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// More than [`MAX_FILES`].
    #[error("agent bundle exceeds max_file_count: {count} > {limit}")]
    TooManyFiles {
        /// Files and symlinks so far.
        count: u64,
        /// Files and symlinks allowed.
        limit: u64,
    },
    /// A file is not what it was when the walk saw it. Trying again is all there is to do.
    #[error("{0} changed while the bundle was being made")]
    Changed(String),
    /// A path could not be read.
    #[error("could not read {path}")]
    Read {
        /// Relative to the project.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The archive could not be handed on.
    #[error("could not write the archive")]
    Write(#[source] io::Error),
}

/// A project, walked and hashed, ready to be archived.
#[derive(Debug)]
pub struct Bundle {
    pub(crate) root: PathBuf,
    pub(crate) manifest: Manifest,
    /// One per entry: how an included file looked when the walk saw it.
    pub(crate) stamps: Vec<Option<Stamp>>,
}

impl Bundle {
    /// Walks and hashes the project at `root`. Reads every included file once, with one thread per processor, up to four.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(root: &Path, config: &AgentConfig) -> Result<Self, BuildError> {
        Self::build_within(root, config, MAX_TOTAL_BYTES, MAX_FILES)
    }

    fn build_within(
        root: &Path,
        config: &AgentConfig,
        max_bytes: u64,
        max_files: u64,
    ) -> Result<Self, BuildError> {
        if !root.is_dir() {
            return Err(BuildError::NotAProject(text::shown_path(root)));
        }
        let mut walk = Walk {
            root,
            layers: Layers::read(root, config)?,
            entries: Vec::new(),
            stamps: Vec::new(),
            total_size: 0,
            file_count: 0,
            max_bytes,
            max_files,
        };
        walk.directory("")?;
        let Walk {
            mut entries,
            stamps,
            total_size,
            file_count,
            ..
        } = walk;
        hash(root, &mut entries, &stamps)?;
        let mut manifest = Manifest {
            bundle_digest: String::new(),
            config_digest: config.config_digest(),
            archive_format: ARCHIVE_FORMAT.to_owned(),
            total_size,
            file_count,
            generated_at: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
                .to_string(),
            materialization_path: MATERIALIZATION_PATH.to_owned(),
            include_patterns: config.bundle.include.clone(),
            exclude_patterns: config.bundle.exclude.clone(),
            default_exclude_patterns: DEFAULT_EXCLUDE_PATTERNS.map(str::to_owned).to_vec(),
            entries,
        };
        manifest.bundle_digest = manifest.derive_bundle_digest();
        Ok(Self {
            root: root.to_path_buf(),
            manifest,
            stamps,
        })
    }

    /// What goes with the upload.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// The layers a path goes through, in order.
struct Layers {
    /// None: everything is asked for.
    include: Option<Patterns>,
    exclude: Vec<(Patterns, &'static str)>,
}

/// Reason of a path that was not asked for. A directory with this reason is looked into all the same.
pub const NOT_INCLUDED: &str = "not matched by bundle.include";

impl Layers {
    fn read(root: &Path, config: &AgentConfig) -> Result<Self, BuildError> {
        let own = |patterns: &[String]| Patterns::new(patterns.iter().map(String::as_str));
        let include = &config.bundle.include;
        let all = include.is_empty()
            || include
                .iter()
                .any(|pattern| pattern == "." || pattern == "./");
        let mut exclude = vec![
            (
                Patterns::new(DEFAULT_EXCLUDE_PATTERNS)?,
                "excluded by default agent bundle rules",
            ),
            (own(&config.bundle.exclude)?, "excluded by bundle.exclude"),
        ];
        for (name, reason) in [
            (".nullspaceignore", "ignored by .nullspaceignore"),
            (".gitignore", "ignored by .gitignore"),
        ] {
            let path = root.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|source| BuildError::Read {
                    path: name.to_owned(),
                    source,
                })?;
                let text =
                    String::from_utf8(bytes).map_err(|_| BuildError::NotText(name.to_owned()))?;
                exclude.push((Patterns::new(text::lines(&text))?, reason));
            }
        }
        Ok(Self {
            include: if all { None } else { Some(own(include)?) },
            exclude,
        })
    }

    /// Why the path stays behind, if it does.
    fn left_out(&self, path: &str, is_dir: bool) -> Option<&'static str> {
        if self
            .include
            .as_ref()
            .is_some_and(|include| !include.matches(path, is_dir))
        {
            return Some(NOT_INCLUDED);
        }
        self.exclude
            .iter()
            .find(|(patterns, _)| patterns.matches(path, is_dir))
            .map(|(_, reason)| *reason)
    }
}

struct Walk<'a> {
    root: &'a Path,
    layers: Layers,
    entries: Vec<Entry>,
    stamps: Vec<Option<Stamp>>,
    total_size: u64,
    file_count: u64,
    max_bytes: u64,
    max_files: u64,
}

impl Walk<'_> {
    /// Takes the directory at `path`, relative to the root and empty for the root itself.
    fn directory(&mut self, path: &str) -> Result<(), BuildError> {
        let read = |source| BuildError::Read {
            path: if path.is_empty() { "." } else { path }.to_owned(),
            source,
        };
        let mut names = Vec::new();
        for child in std::fs::read_dir(self.root.join(path)).map_err(read)? {
            let name = child.map_err(read)?.file_name();
            // UTF-8 sorts by code point.
            names.push(name.into_string().map_err(|name| {
                BuildError::NameNotText(Path::new(path).join(name).to_string_lossy().into_owned())
            })?);
        }
        names.sort_unstable();
        for name in names {
            let child = if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            };
            if self.entry(&child)? {
                self.directory(&child)?;
            }
        }
        Ok(())
    }

    /// Records one path; true if it is a directory to look into.
    fn entry(&mut self, path: &str) -> Result<bool, BuildError> {
        let full = self.root.join(path);
        let read = |source| BuildError::Read {
            path: path.to_owned(),
            source,
        };
        let metadata = full.symlink_metadata().map_err(read)?;
        let file_type = metadata.file_type();
        let kind = if file_type.is_dir() {
            Kind::Dir
        } else if file_type.is_symlink() {
            Kind::Symlink
        } else if file_type.is_file() {
            Kind::File
        } else {
            return Err(BuildError::SpecialFile(path.to_owned()));
        };
        let left_out = self.layers.left_out(path, kind == Kind::Dir);
        let mut entry = Entry {
            path: path.to_owned(),
            kind,
            included: left_out.is_none(),
            reason: left_out.unwrap_or("included").to_owned(),
            size: if kind == Kind::File {
                metadata.len()
            } else {
                0
            },
            mode: Some(metadata.mode() & 0o7777),
            digest: None,
            symlink_target: None,
        };
        if kind == Kind::Symlink {
            let target = std::fs::read_link(&full).map_err(read)?;
            let target = target
                .into_os_string()
                .into_string()
                .map_err(|_| BuildError::NameNotText(format!("target of {path}")))?;
            match check_link(path, &target) {
                Ok(()) => {}
                Err(LinkProblem::Empty) => return Err(BuildError::LinkEmpty(path.to_owned())),
                Err(LinkProblem::Absolute) => {
                    return Err(BuildError::LinkAbsolute(path.to_owned()));
                }
                Err(LinkProblem::Escapes) => return Err(BuildError::LinkEscapes(path.to_owned())),
            }
            if entry.included {
                entry.digest = Some(hex::encode(Sha256::digest(&target)));
            }
            entry.symlink_target = Some(target);
        }
        if entry.included {
            self.file_count += u64::from(kind != Kind::Dir);
            self.total_size += entry.size;
            if self.total_size > self.max_bytes {
                return Err(BuildError::TooLarge {
                    size: self.total_size,
                    limit: self.max_bytes,
                });
            }
            if self.file_count > self.max_files {
                return Err(BuildError::TooManyFiles {
                    count: self.file_count,
                    limit: self.max_files,
                });
            }
        }
        self.stamps
            .push((entry.included && kind == Kind::File).then(|| Stamp::of(&metadata)));
        self.entries.push(entry);
        Ok(kind == Kind::Dir && left_out.is_none_or(|reason| reason == NOT_INCLUDED))
    }
}

/// What tells a file from a changed one without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Moves with every write and cannot be set back.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Reads the file at `path` through `take`, one buffer at a time, and makes sure it is still what the walk saw.
pub(crate) fn read_file(
    root: &Path,
    path: &str,
    stamp: &Stamp,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let read = |source| BuildError::Read {
        path: path.to_owned(),
        source,
    };
    let changed = || BuildError::Changed(path.to_owned());
    let same =
        |file: &File| Ok::<_, BuildError>(Stamp::of(&file.metadata().map_err(read)?) == *stamp);
    // Not blocking: a fifo may have taken the file's place.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = match rustix::fs::open(root.join(path), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Err(changed()),
        Err(error) => return Err(read(error.into())),
    };
    if !same(&file)? {
        return Err(changed());
    }
    let mut left = stamp.size;
    while left > 0 {
        let want = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        match file.read(&mut buffer[..want]) {
            Ok(0) => return Err(changed()),
            Ok(count) => {
                take(&buffer[..count])?;
                left -= count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read(error)),
        }
    }
    if same(&file)? { Ok(()) } else { Err(changed()) }
}

/// Fills in the digests of the files that have a stamp.
fn hash(root: &Path, entries: &mut [Entry], stamps: &[Option<Stamp>]) -> Result<(), BuildError> {
    let work: Vec<(usize, &Stamp)> = stamps
        .iter()
        .enumerate()
        .filter_map(|(index, stamp)| Some((index, stamp.as_ref()?)))
        .collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let shared: &[Entry] = entries;
    let worker = || {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut digests = Vec::new();
        while let Some((index, stamp)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let mut hasher = Sha256::new();
            let result = read_file(root, &shared[*index].path, stamp, &mut buffer, |bytes| {
                hasher.update(bytes);
                Ok(())
            });
            if let Err(error) = result {
                failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
            digests.push((*index, hex::encode(hasher.finalize())));
        }
        Ok(digests)
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4)
        .min(work.len().div_ceil(8));
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        results.push(worker());
        for other in others {
            match other.join() {
                Ok(result) => results.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    for result in results {
        for (index, digest) in result? {
            entries[index].digest = Some(digest);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_what_is_included() {
        let project = tempfile::tempdir().expect("a directory");
        for name in ["a", "b", "c.pyc"] {
            std::fs::write(project.path().join(name), "12345").expect("a file");
        }
        let config = AgentConfig::default();
        assert!(Bundle::build_within(project.path(), &config, 10, 2).is_ok());
        let error = Bundle::build_within(project.path(), &config, 9, 2).expect_err("too large");
        assert_eq!(
            error.to_string(),
            "agent bundle exceeds max_total_bytes: 10 > 9"
        );
        let error = Bundle::build_within(project.path(), &config, 10, 1).expect_err("too many");
        assert_eq!(
            error.to_string(),
            "agent bundle exceeds max_file_count: 2 > 1"
        );
    }
}

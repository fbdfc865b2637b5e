//! A machine's state on disk: what an engine wrote, and how one knows that all of it is there.
//!
//! The digest is that of a description with a line for each file, sorted by path: what kind it is, whom it belongs to,
//! what it holds. So one digest covers memory and the writable layer, and a file that was cut, flipped, added or
//! removed shows.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fmt::Write as _,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::mpsc,
};

use serde::{Deserialize, Serialize};

use crate::EngineError;

/// The file that says what a checkpoint is. Written last: without it there is no checkpoint.
const RECORD: &str = "checkpoint.json";
/// What it is called until all else is on disk.
const DRAFT: &str = "checkpoint.json.new";
/// The most bytes of it that are read.
const MAX_RECORD: u64 = 64 << 10;
/// Read at once while a file is hashed, in bytes.
const PIECE: usize = 4 << 20;
/// Pieces that are read before they are hashed.
const AHEAD: usize = 2;
/// From so many bytes on, what was read is hashed by several threads.
const SHARED: usize = 1 << 20;
/// The first line: what a newer program changes when it describes files in another way.
const FORMAT: &str = "nullspace checkpoint 2";
/// Attributes that say what an overlay makes of a file, and what a machine set.
const XATTR_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user."];

/// What a machine's state is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The machine goes on from it, later: it is ended at the moment that was kept.
    Hibernate,
    /// Others are made of it, whenever; the machine goes on.
    Snapshot,
    /// Others are made of it now, by whoever had it written; the machine goes on. It is not to outlast that: it is neither put on
    /// the disk for good nor has it a digest, which takes as long as the writing.
    Fork,
}

/// A finished checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The engine that wrote it, by name; no other one can read it.
    pub engine: String,
    /// What of the engine must be the same to read it: a version, in the engine's own words.
    pub format: String,
    /// Bytes on disk; 0 where it has no digest.
    pub bytes: u64,
    /// Of everything in it but this record: 64 hex digits, BLAKE3, which is several times as fast here as SHA-256 and as
    /// hard to fool. None for [`Purpose::Fork`].
    pub digest: Option<String>,
}

/// What a file holds, found out while it was written.
#[derive(Clone, Copy, Debug)]
pub struct FileDigest {
    bytes: u64,
    digest: blake3::Hash,
}

/// Takes a file's digest piece by piece.
#[derive(Default)]
pub struct FileHasher {
    bytes: u64,
    hasher: blake3::Hasher,
}

impl FileHasher {
    /// The next bytes of the file.
    pub fn update(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        self.hasher.update(piece);
    }

    /// Of all bytes so far.
    #[must_use]
    pub fn finish(&self) -> FileDigest {
        FileDigest {
            bytes: self.bytes,
            digest: self.hasher.finalize(),
        }
    }
}

impl std::fmt::Debug for FileHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileHasher")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Describes a directory that holds all of a checkpoint but its record. Blocks while it reads all of it.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn of(directory: &Path, engine: &str, format: &str) -> io::Result<Self> {
        Self::knowing(directory, engine, format, &HashMap::new())
    }

    /// The same, but files directly in the directory whose digests are known already, because they were taken while
    /// the files were written, are not read again.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn knowing(
        directory: &Path,
        engine: &str,
        format: &str,
        known: &HashMap<&str, FileDigest>,
    ) -> io::Result<Self> {
        let (digest, bytes) = describe(directory, known)?;
        Ok(Self {
            engine: engine.to_owned(),
            format: format.to_owned(),
            bytes,
            digest: Some(digest),
        })
    }

    /// Describes one for [`Purpose::Fork`].
    #[must_use]
    pub fn passing(engine: &str, format: &str) -> Self {
        Self {
            engine: engine.to_owned(),
            format: format.to_owned(),
            bytes: 0,
            digest: None,
        }
    }

    /// Proves that the rest of a checkpoint's directory is what was written. Blocks while it reads all of it. Of one without a
    /// digest there is nothing to prove: a caller that kept one knows better, and compares.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`].
    pub fn prove(&self, directory: &Path) -> Result<(), EngineError> {
        let Some(wanted) = &self.digest else {
            return Ok(());
        };
        match describe(directory, &HashMap::new()) {
            Ok((digest, _)) if digest == *wanted => Ok(()),
            Ok(_) => Err(EngineError::Checkpoint(
                "its files are not what was written".into(),
            )),
            Err(error) => Err(EngineError::Checkpoint(format!(
                "it cannot be read: {error}"
            ))),
        }
    }

    /// The record in a checkpoint's directory; `None` when there is none that can be read, and so no checkpoint.
    #[must_use]
    pub fn read(directory: &Path) -> Option<Self> {
        let path = directory.join(RECORD);
        let length = fs::symlink_metadata(&path).ok()?.len();
        if length > MAX_RECORD {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Puts the record into a directory that holds all else. With a digest it does so durably: what else is there must be on
    /// disk already.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        if self.digest.is_none() {
            return fs::write(directory.join(RECORD), serde_json::to_vec(self)?);
        }
        self.draft(directory)?;
        Self::publish(directory)
    }

    /// The first half of that, which need not wait until all else is on disk: the record under another name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn draft(&self, directory: &Path) -> io::Result<()> {
        let draft = directory.join(DRAFT);
        fs::write(&draft, serde_json::to_vec(self)?)?;
        File::open(draft)?.sync_all()
    }

    /// The second half.
    ///
    /// # Errors
    /// What the file system says.
    pub fn publish(directory: &Path) -> io::Result<()> {
        fs::rename(directory.join(DRAFT), directory.join(RECORD))?;
        File::open(directory)?.sync_all()
    }
}

/// Reads all that is in a directory but the record: its digest and how many bytes the files have. Blocks meanwhile.
///
/// # Errors
/// When something cannot be read.
fn describe(directory: &Path, known: &HashMap<&str, FileDigest>) -> io::Result<(String, u64)> {
    let mut text = format!("{FORMAT}\n");
    let mut bytes = 0;
    let mut buffer = vec![0; PIECE];
    let mut left = vec![PathBuf::new()];
    while let Some(inner) = left.pop() {
        let at = directory.join(&inner);
        let metadata = fs::symlink_metadata(&at)?;
        let known = inner.to_str().and_then(|inner| known.get(inner));
        line(&mut text, &at, &inner, &metadata, known, &mut buffer)?;
        if metadata.is_dir() {
            let mut names = fs::read_dir(&at)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            // Taken from the end.
            names.sort_by(|a, b| b.cmp(a));
            let names = names.iter().map(|name| inner.join(name));
            left.extend(names.filter(|name| name != Path::new(RECORD)));
        } else {
            bytes += metadata.len();
        }
    }
    Ok((blake3::hash(text.as_bytes()).to_hex().to_string(), bytes))
}

fn line(
    text: &mut String,
    at: &Path,
    inner: &Path,
    metadata: &Metadata,
    known: Option<&FileDigest>,
    buffer: &mut [u8],
) -> io::Result<()> {
    let kind = metadata.file_type();
    let (kind, content) = if kind.is_dir() {
        ('d', String::new())
    } else if kind.is_file() {
        let (bytes, digest) = match known {
            Some(known) => (known.bytes, known.digest),
            None => (metadata.len(), hash(at, buffer)?),
        };
        ('f', format!("{bytes} {digest}"))
    } else if kind.is_symlink() {
        ('l', hex::encode(fs::read_link(at)?.as_os_str().as_bytes()))
    } else if kind.is_char_device() || kind.is_block_device() {
        ('c', metadata.rdev().to_string())
    } else {
        // A pipe or a socket: it holds nothing.
        ('p', String::new())
    };
    let _ = write!(
        text,
        "{} {kind} {:o} {} {} {content}",
        hex::encode(inner.as_os_str().as_bytes()),
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
    );
    for (name, value) in attributes(at)? {
        let _ = write!(
            text,
            " {}={}",
            hex::encode(name.to_bytes()),
            hex::encode(value)
        );
    }
    text.push('\n');
    Ok(())
}

/// What is more than fits into the buffer is read by a thread of its own, and hashed by as many as there are processors. Not by
/// mapping the file: a disk that fails would end this process.
fn hash(path: &Path, buffer: &mut [u8]) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut take = |piece: &[u8]| {
        match piece.len() >= SHARED {
            true => hasher.update_rayon(piece),
            false => hasher.update(piece),
        };
    };
    let length = fill(&mut file, buffer)?;
    take(&buffer[..length]);
    if length < buffer.len() {
        return Ok(hasher.finalize());
    }
    std::thread::scope(|scope| {
        let (give, given) = mpsc::channel();
        let (give_back, given_back) = mpsc::channel();
        for _ in 0..AHEAD {
            let _ = give_back.send(vec![0; PIECE]);
        }
        scope.spawn(move || {
            // Until the end, or until nobody wants more.
            while let Ok(mut piece) = given_back.recv() {
                let read = fill(&mut file, &mut piece);
                let is_last = !matches!(read, Ok(PIECE));
                if give.send(read.map(|length| (piece, length))).is_err() || is_last {
                    return;
                }
            }
        });
        for read in given {
            let (piece, length) = read?;
            take(&piece[..length]);
            let _ = give_back.send(piece);
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(hasher.finalize())
}

/// Reads until the buffer is full, or the file is at its end.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The attributes that count, sorted.
fn attributes(path: &Path) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        if !XATTR_PREFIXES
            .iter()
            .any(|p| name.to_bytes().starts_with(p))
        {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn there_is_a_checkpoint_once_its_record_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
        fs::write(dir.path().join(RECORD), r#"{"engine":"gvi"#).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
        let checkpoint = Checkpoint {
            engine: "gvisor".into(),
            format: "1".into(),
            bytes: 5,
            digest: Some("00".repeat(32)),
        };
        checkpoint.write(dir.path()).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), Some(checkpoint));
        let long = vec![b' '; MAX_RECORD as usize + 1];
        fs::write(dir.path().join(RECORD), long).unwrap();
        assert_eq!(Checkpoint::read(dir.path()), None);
    }

    #[test]
    fn every_change_shows() {
        let home = tempfile::tempdir().unwrap();
        let at = home.path().join("checkpoint");
        fs::create_dir_all(at.join("layer/a")).unwrap();
        fs::write(at.join("memory"), vec![7; 3 << 20]).unwrap();
        fs::write(at.join("layer/a/file"), "text").unwrap();
        symlink("/etc/passwd", at.join("layer/link")).unwrap();
        let made = Checkpoint::of(&at, "gvisor", "1").unwrap();
        assert_eq!(made.digest.as_ref().map(String::len), Some(64));
        assert!(made.bytes >= (3 << 20) + 4, "{made:?}");
        made.write(&at).unwrap();
        made.prove(&at).unwrap();

        let flip = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let damaged = |what: &str| {
            let refused = made.prove(&at);
            assert!(matches!(refused, Err(EngineError::Checkpoint(_))), "{what}");
        };
        flip(&at.join("memory"));
        damaged("one bit");
        flip(&at.join("memory"));
        made.prove(&at).unwrap();
        fs::set_permissions(at.join("layer/a/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        damaged("other rights");
        fs::set_permissions(at.join("layer/a/file"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(at.join("layer/new"), "").unwrap();
        damaged("one more file");
        fs::remove_file(at.join("layer/new")).unwrap();
        fs::remove_file(at.join("layer/link")).unwrap();
        damaged("one file less");
        symlink("/etc/shadow", at.join("layer/link")).unwrap();
        damaged("another link");
        fs::remove_dir_all(&at).unwrap();
        damaged("nothing");
    }
}

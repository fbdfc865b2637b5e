//! The parts of an image in a file: a layout or an archive, seen as parts with names.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::OFlags,
};
use sha2::{Digest, Sha256};

use crate::{
    beneath,
    error::{ImageError, LayerError, shown},
    layer::with_decompressor,
    limits::{Allowance, Limits},
    manifest::Part,
    store::Layers,
    tar::{Kind, Members},
};

/// Links in an archive that are followed from one name to the next.
const MAX_LINKS: usize = 4;
/// Parts of an archive that is not a root file system.
const MAX_PARTS: u64 = 10_000;

/// Parts with names.
pub(super) enum Parts {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        parts: HashMap<Vec<u8>, Place>,
    },
}

/// Where a part of an archive is.
pub(super) enum Place {
    Bytes {
        start: u64,
        length: u64,
    },
    /// Under another name.
    Link(Vec<u8>),
}

impl Parts {
    pub(super) fn open(path: &Path, limits: &Limits, layers: &Layers) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::file("open", path))?;
        let metadata = file.metadata().map_err(ImageError::file("read", path))?;
        if metadata.is_dir() {
            return Ok(Self::Directory(file.into()));
        }
        let file = plain(file, limits, layers).map_err(of_archive)?;
        let parts = places(&file, limits).map_err(of_archive)?;
        Ok(Self::Archive {
            file: Arc::new(file),
            parts,
        })
    }

    pub(super) fn open_part(&self, name: &str) -> Result<Box<dyn Read + Send>, ImageError> {
        match self {
            Self::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let opened = beneath::open(directory.as_fd(), name.as_bytes(), flags);
                let file = File::from(opened.map_err(|_| missing(name))?);
                if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                    return Err(missing(name));
                }
                Ok(Box::new(file))
            }
            Self::Archive { file, parts } => {
                let mut at = plain_name(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match parts.get(&at) {
                        Some(Place::Bytes { start, length }) => {
                            return Ok(Box::new(Window {
                                file: Arc::clone(file),
                                at: *start,
                                left: *length,
                            }));
                        }
                        Some(Place::Link(to)) => at.clone_from(to),
                        None => break,
                    }
                }
                Err(missing(name))
            }
        }
    }

    /// A small part, whole.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.open_part(name)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| bad(name, e))?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::TooLarge {
                what: shown(name),
                limit,
            });
        }
        Ok(bytes)
    }

    /// A small part that is named by its digest.
    pub(super) fn blob(&self, part: &Part, what: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = self.read(&blob_name(&part.digest), part.size)?;
        let found = hex::encode(Sha256::digest(&bytes));
        if found != part.digest {
            return Err(ImageError::Digest {
                what: what.to_owned(),
                expected: format!("sha256:{}", part.digest),
                found: format!("sha256:{found}"),
            });
        }
        Ok(bytes)
    }
}

/// The archive without compression: itself, or a temporary file that has no name.
fn plain(mut file: File, limits: &Limits, layers: &Layers) -> Result<File, LayerError> {
    let mut start = [0; 262];
    let read = file.read_at(&mut start, 0).map_err(LayerError::Read)?;
    if read == start.len() && &start[257..] == b"ustar" {
        return Ok(file);
    }
    file.seek(SeekFrom::Start(0)).map_err(LayerError::Read)?;
    let mut out = layers
        .scratch_file()
        .map_err(LayerError::write("make", b"a temporary file"))?;
    let compressed = file.metadata().map_err(LayerError::Read)?.len();
    let allowed = limits
        .unpacked_bytes
        .min(compressed.saturating_mul(limits.ratio) + crate::limits::FREE_OF_RATIO);
    let copied = with_decompressor(&mut BufReader::new(file), |archive| {
        io::copy(&mut archive.take(allowed + 1), &mut out).map_err(LayerError::read)
    })?;
    if copied > allowed {
        return Err(LayerError::Limit {
            what: "bytes",
            limit: allowed,
        });
    }
    Ok(out)
}

/// Where everything in an archive is.
fn places(file: &File, limits: &Limits) -> Result<HashMap<Vec<u8>, Place>, LayerError> {
    let limits = Limits {
        entries: MAX_PARTS,
        ..limits.clone()
    };
    let allowance = Allowance::new(&limits);
    let mut file = file.try_clone().map_err(LayerError::Read)?;
    file.seek(SeekFrom::Start(0)).map_err(LayerError::Read)?;
    let length = file.metadata().map_err(LayerError::Read)?.len();
    let mut members = Members::new(file, &allowance);
    let mut places = HashMap::new();
    while let Some(member) = members.next()? {
        let name = plain_name(&member.name);
        let place = match member.kind {
            Kind::File => {
                let start = members.position().map_err(LayerError::Read)?;
                if start.saturating_add(member.size) > length {
                    return Err(LayerError::CutShort);
                }
                members.leap()?;
                Place::Bytes {
                    start,
                    length: member.size,
                }
            }
            // Older versions of docker write equal layers once.
            Kind::Symlink => {
                let mut to = match name.iter().rposition(|byte| *byte == b'/') {
                    Some(at) => name[..at].to_vec(),
                    None => Vec::new(),
                };
                to.push(b'/');
                to.extend_from_slice(&member.link);
                Place::Link(plain_name(&to))
            }
            Kind::HardLink => Place::Link(plain_name(&member.link)),
            Kind::Directory | Kind::Fifo | Kind::Device => continue,
        };
        places.insert(name, place);
    }
    Ok(places)
}

/// A name without what leads nowhere; `..` goes up by names, and not beyond the first.
pub(super) fn plain_name(name: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in name.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    segments.join(&b'/')
}

/// A part of a file.
struct Window {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

pub(super) fn blob_name(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

pub(super) fn bad(what: &str, error: impl std::fmt::Display) -> ImageError {
    ImageError::Malformed {
        what: what.to_owned(),
        why: shown(error.to_string()),
    }
}

fn missing(part: &str) -> ImageError {
    ImageError::Malformed {
        what: "the image".into(),
        why: format!("it has no part {:?}", shown(part)),
    }
}

pub(super) fn of_archive(source: LayerError) -> ImageError {
    ImageError::Malformed {
        what: "the archive".into(),
        why: source.to_string(),
    }
}

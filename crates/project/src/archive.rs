//! The archive of a bundle: an uncompressed tar, byte for byte the published client's.
//!
//! POSIX pax over ustar, the included entries in the order of the walk, everything that varies between machines
//! (owners, times) fixed. Written as a stream; its length is known before, for `Content-Length`.

use crate::bundle::{BUFFER_BYTES, BuildError, Bundle, read_file};
use crate::manifest::{Entry, Kind, Manifest};
use std::io::{BufWriter, Write};

/// Headers and content come in blocks of this many bytes.
pub(crate) const BLOCK: usize = 512;
/// The whole archive is padded to a multiple of this many bytes.
const RECORD: u64 = 10_240;
/// Bytes of the name and link name fields of a header.
pub(crate) const NAME_BYTES: usize = 100;
/// From this size on a file's size does not fit its header field.
const MAX_FIELD_SIZE: u64 = 1 << 33;

impl Bundle {
    /// Exact length in bytes of what [`Bundle::write_archive`] writes.
    pub fn archive_len(&self) -> u64 {
        self.manifest.archive_len()
    }

    /// Writes the archive to `out`, in pieces of up to 128 KiB, and flushes it.
    ///
    /// # Errors
    /// [`BuildError::Changed`] when a file is no longer what was hashed; what was written until then is no archive.
    /// [`BuildError::Read`] and [`BuildError::Write`] as the system says.
    pub fn write_archive(&self, out: impl Write) -> Result<(), BuildError> {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut written = 0;
        for (entry, stamp) in self.manifest.entries.iter().zip(&self.stamps) {
            if !entry.included {
                continue;
            }
            let head = head(entry);
            out.write_all(&head).map_err(BuildError::Write)?;
            written += head.len() as u64;
            if let Some(stamp) = stamp {
                read_file(&self.root, &entry.path, stamp, &mut buffer, |bytes| {
                    out.write_all(bytes).map_err(BuildError::Write)
                })?;
                out.write_all(&[0; BLOCK][..padding(entry.size) as usize])
                    .map_err(BuildError::Write)?;
                written += entry.size + padding(entry.size);
            }
        }
        let end = vec![0; (finished(written) - written) as usize];
        out.write_all(&end).map_err(BuildError::Write)?;
        out.flush().map_err(BuildError::Write)
    }
}

impl Manifest {
    /// Exact length in bytes of the archive of the included entries, as [`Bundle::write_archive`] writes it. For a
    /// manifest from outside, only after [`Manifest::validate`].
    pub fn archive_len(&self) -> u64 {
        let members = self.included().map(|entry| {
            let extra = extended(entry).len() as u64;
            let extra = if extra == 0 {
                0
            } else {
                BLOCK as u64 + extra + padding(extra)
            };
            extra + BLOCK as u64 + entry.size + padding(entry.size)
        });
        finished(members.sum())
    }
}

/// Bytes of zeros after content of `size` bytes.
pub(crate) fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// Length of an archive whose members take `members` bytes.
fn finished(members: u64) -> u64 {
    (members + 2 * BLOCK as u64).next_multiple_of(RECORD)
}

/// All that comes before the content of an entry.
fn head(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 * BLOCK);
    let extended = extended(entry);
    if !extended.is_empty() {
        let fields = Fields {
            name: "././@PaxHeader",
            link: "",
            mode: 0,
            size: extended.len() as u64,
            kind: b'x',
            owner: b"",
        };
        out.extend_from_slice(&fields.header());
        out.extend_from_slice(&extended);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let fields = Fields {
        name: &member_name(entry),
        link: entry.symlink_target.as_deref().unwrap_or_default(),
        mode: entry.archived_mode(),
        size: if entry.size < MAX_FIELD_SIZE {
            entry.size
        } else {
            0
        },
        kind: match entry.kind {
            Kind::File => b'0',
            Kind::Symlink => b'2',
            Kind::Dir => b'5',
        },
        owner: b"root",
    };
    out.extend_from_slice(&fields.header());
    out
}

fn member_name(entry: &Entry) -> std::borrow::Cow<'_, str> {
    if entry.kind == Kind::Dir {
        format!("{}/", entry.path).into()
    } else {
        entry.path.as_str().into()
    }
}

/// The pax records for what the header cannot hold; empty for most entries.
fn extended(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    let fits = |text: &str| text.is_ascii() && text.len() <= NAME_BYTES;
    let name = member_name(entry);
    if !fits(&name) {
        push_record(&mut out, "path", &name);
    }
    if let Some(target) = entry
        .symlink_target
        .as_deref()
        .filter(|target| !fits(target))
    {
        push_record(&mut out, "linkpath", target);
    }
    if entry.size >= MAX_FIELD_SIZE {
        push_record(&mut out, "size", &entry.size.to_string());
    }
    out
}

/// A record starts with its own length, which includes the digits it is written with.
fn push_record(out: &mut Vec<u8>, key: &str, value: &str) {
    let bare = key.len() + value.len() + 3;
    let mut length = bare;
    while bare + length.to_string().len() != length {
        length = bare + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
}

/// What differs between the headers of an archive.
struct Fields<'a> {
    name: &'a str,
    link: &'a str,
    mode: u32,
    size: u64,
    kind: u8,
    owner: &'static [u8],
}

impl Fields<'_> {
    fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        put_text(&mut block[..NAME_BYTES], self.name);
        put(&mut block[100..], format!("{:07o}", self.mode).as_bytes());
        put(&mut block[108..], b"0000000");
        put(&mut block[116..], b"0000000");
        put(&mut block[124..], format!("{:011o}", self.size).as_bytes());
        put(&mut block[136..], b"00000000000");
        // The checksum is taken with spaces in its place.
        put(&mut block[148..], b"        ");
        block[156] = self.kind;
        put_text(&mut block[157..257], self.link);
        put(&mut block[257..], b"ustar\x0000");
        put(&mut block[265..], self.owner);
        put(&mut block[297..], self.owner);
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block[148..], format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

fn put(field: &mut [u8], bytes: &[u8]) {
    field[..bytes.len()].copy_from_slice(bytes);
}

/// Text cut to the field, a question mark for what is not ASCII; the whole is in a pax record then.
fn put_text(field: &mut [u8], text: &str) {
    for (place, c) in field.iter_mut().zip(text.chars()) {
        *place = u8::try_from(c).ok().filter(u8::is_ascii).unwrap_or(b'?');
    }
}

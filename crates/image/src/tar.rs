//! Reading a tar archive member by member, as the archives in images are written: ustar, GNU and pax headers.
//!
//! The `tar` crate knows the fields of a header. It is not used to walk the archive: it reads names of any length into
//! memory, and splits pax records at line ends, which values of extended attributes may hold.

use std::io::{self, Read, Seek};

use tar::Header;

use crate::{
    error::{LayerError, shown},
    limits::Allowance,
};

const BLOCK: u64 = 512;
/// Longest pax header; extended attributes are in there.
const MAX_PAX: u64 = 1 << 20;
/// Most extended attributes of one member.
const MAX_XATTRS: usize = 64;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    Fifo,
    /// A character or block device.
    Device,
}

/// A time as the kernel takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// One member, with what extended headers said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    /// The target of a link; empty for others.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes of content; not zero for files only.
    pub(crate) size: u64,
    /// Permission bits, with the set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Walks the members of an archive. Reading from it reads the content of the last one.
pub(crate) struct Members<'a, R> {
    input: R,
    /// Content of the last member that was not read yet.
    content: u64,
    /// Zeros after that.
    padding: u64,
    /// Headers so far.
    headers: u64,
    allowance: &'a Allowance,
}

/// What extended headers say about the member that follows.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a, R: Read> Members<'a, R> {
    /// An archive whose headers and names are within what is allowed.
    pub(crate) fn new(input: R, allowance: &'a Allowance) -> Self {
        Self {
            input,
            content: 0,
            padding: 0,
            headers: 0,
            allowance,
        }
    }

    /// Headers so far, those that only extend others included.
    pub(crate) fn headers(&self) -> u64 {
        self.headers
    }

    /// The next member; none at the end of the archive. What was not read of the one before is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, LayerError> {
        let (mut pax, mut gnu) = (Extended::default(), Extended::default());
        let mut extended = false;
        loop {
            self.pass(self.content)?;
            self.pass_padding()?;
            (self.content, self.padding) = (0, 0);
            let mut block = [0; BLOCK as usize];
            if !self.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
                return if extended {
                    Err(LayerError::malformed("it ends after an extended header"))
                } else {
                    Ok(None)
                };
            }
            self.headers += 1;
            self.allowance.headers(1)?;
            if !sum_is_right(&block) {
                return Err(LayerError::malformed("the checksum of a header is wrong"));
            }
            let size = number(&block[124..136])
                .and_then(|n| u64::try_from(n).ok())
                .ok_or(LayerError::malformed("a size is no number"))?;
            match block[156] {
                b'x' => {
                    let records = self.extension(size, MAX_PAX)?;
                    parse_pax(&records, &mut pax)?;
                    extended = true;
                }
                // Defaults for all that follows. The tools that make images write comments there, those that read
                // images pass over it.
                b'g' => drop(self.extension(size, MAX_PAX)?),
                b'L' => {
                    let name = self.extension(size, self.max_name())?;
                    gnu.name = Some(until_nul(&name).to_vec());
                    extended = true;
                }
                b'K' => {
                    let link = self.extension(size, self.max_name())?;
                    gnu.link = Some(until_nul(&link).to_vec());
                    extended = true;
                }
                flag => return self.member(&block, flag, size, pax, gnu).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        block: &[u8; BLOCK as usize],
        flag: u8,
        size: u64,
        pax: Extended,
        gnu: Extended,
    ) -> Result<Member, LayerError> {
        let header = Header::from_byte_slice(block);
        let name = (pax.name)
            .or(gnu.name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || {
            (pax.link)
                .or(gnu.link)
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default()
        };
        let (kind, link) = match flag {
            // Archives older than ustar mark directories so.
            0 | b'0' if name.ends_with(b"/") => (Kind::Directory, Vec::new()),
            0 | b'0' | b'7' => (Kind::File, Vec::new()),
            b'1' => (Kind::HardLink, link()),
            b'2' => (Kind::Symlink, link()),
            b'3' | b'4' => (Kind::Device, Vec::new()),
            b'5' => (Kind::Directory, Vec::new()),
            b'6' => (Kind::Fifo, Vec::new()),
            other => {
                return Err(LayerError::Unsupported {
                    name: shown(&name),
                    what: match other {
                        b'S' => "a sparse file".into(),
                        other => format!("a member of type {:?}", char::from(other)),
                    },
                });
            }
        };
        // Only files have content, whatever the field says; as Go's reader has it, which all image tools use.
        if kind == Kind::File {
            self.content = pax.size.unwrap_or(size);
            self.padding = (BLOCK - self.content % BLOCK) % BLOCK;
        }
        let bad = |what| LayerError::malformed(what);
        let id = |from_pax: Option<u64>, field: &[u8]| {
            let id = match from_pax {
                Some(id) => Some(id),
                None => number(field).and_then(|id| u64::try_from(id).ok()),
            };
            // The last one is no owner: to the kernel it says "as it was".
            id.and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX)
        };
        Ok(Member {
            kind,
            link,
            size: self.content,
            mode: number(&block[100..108]).ok_or(bad("a mode is no number"))? as u32 & 0o7777,
            uid: id(pax.uid, &block[108..116]).ok_or(bad("an owner is no number in range"))?,
            gid: id(pax.gid, &block[116..124]).ok_or(bad("a group is no number in range"))?,
            mtime: pax.mtime.unwrap_or(Time {
                seconds: number(&block[136..148]).unwrap_or(0),
                nanos: 0,
            }),
            xattrs: pax.xattrs,
            name,
        })
    }

    /// The content of a header that extends others, at most `limit` bytes.
    fn extension(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, LayerError> {
        if size > limit {
            return Err(LayerError::Limit {
                what: "bytes of an extended header",
                limit,
            });
        }
        let mut bytes = vec![0; size as usize];
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        if size > 0 && !self.fill(&mut bytes)? {
            return Err(LayerError::CutShort);
        }
        Ok(bytes)
    }

    /// A name, and the zero that ends it.
    fn max_name(&self) -> u64 {
        self.allowance.limits.path_bytes as u64 + 1
    }

    /// Fills the buffer; false if the archive is at its end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(LayerError::CutShort),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(LayerError::read(e)),
            }
        }
        Ok(true)
    }

    fn pass(&mut self, bytes: u64) -> Result<(), LayerError> {
        let passed = io::copy(&mut (&mut self.input).take(bytes), &mut io::sink());
        match passed {
            Ok(passed) if passed == bytes => Ok(()),
            Ok(_) => Err(LayerError::CutShort),
            Err(e) => Err(LayerError::read(e)),
        }
    }

    /// What fills up the block. It may be missing where the archive ends: there are tools for images that do not end one
    /// properly (umoci 0.4), and Go's reader takes what they make.
    fn pass_padding(&mut self) -> Result<(), LayerError> {
        io::copy(&mut (&mut self.input).take(self.padding), &mut io::sink())
            .map(drop)
            .map_err(LayerError::read)
    }

    /// A part of the last member's content; empty at its end.
    pub(crate) fn content(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let most = self.content.min(buffer.len() as u64) as usize;
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(LayerError::CutShort),
                Ok(n) => {
                    self.content -= n as u64;
                    return Ok(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(LayerError::read(e)),
            }
        }
    }

    /// The input, at wherever reading has come to.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }
}

/// Old writers summed signed bytes.
fn sum_is_right(block: &[u8; BLOCK as usize]) -> bool {
    let Some(said) = number(&block[148..156]) else {
        return false;
    };
    let blanked = |i: usize, byte: u8| {
        if (148..156).contains(&i) { b' ' } else { byte }
    };
    let bytes = || block.iter().enumerate().map(|(i, b)| blanked(i, *b));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
    said == unsigned || said == signed
}

/// A number of a header: octal digits, or base 256 if the first bit is set. Blank is zero.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Two's complement of what is left of the first byte.
        let start = if first & 0x40 != 0 {
            i64::from(first | 0x80) - 256
        } else {
            i64::from(first & 0x7f)
        };
        return rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?;
    let text = text.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().try_fold(0_i64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Records of `LENGTH KEY=VALUE\n`, the length that of the whole record.
fn parse_pax(mut rest: &[u8], into: &mut Extended) -> Result<(), LayerError> {
    let bad = || LayerError::malformed("a pax record is not understood");
    while !rest.is_empty() {
        let space = rest.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let length = decimal(&rest[..space]).ok_or_else(bad)?;
        let length = usize::try_from(length).map_err(|_| bad())?;
        let record = rest.get(space + 1..length).ok_or_else(bad)?;
        let (b'\n', record) = record.split_last().ok_or_else(bad)? else {
            return Err(bad());
        };
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        rest = &rest[length..];
        match key {
            // Nothing in place of a value takes back what was said.
            b"path" => into.name = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => into.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => into.size = Some(decimal(value).ok_or_else(bad)?),
            b"uid" => into.uid = Some(decimal(value).ok_or_else(bad)?),
            b"gid" => into.gid = Some(decimal(value).ok_or_else(bad)?),
            b"mtime" => into.mtime = Some(time(value).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err(LayerError::Unsupported {
                    name: into.name.as_deref().map(shown).unwrap_or_default(),
                    what: "a sparse file".into(),
                });
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if into.xattrs.len() == MAX_XATTRS {
                        return Err(LayerError::Limit {
                            what: "extended attributes of a file",
                            limit: MAX_XATTRS as u64,
                        });
                    }
                    into.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds since 1970, perhaps below zero, perhaps with a fraction.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = match dot {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |i: usize| fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    let nanos = (0..9).fold(0, |sum, i| sum * 10 + digit(i));
    Some(match (negative, nanos) {
        (false, nanos) => Time { seconds, nanos },
        (true, 0) => Time {
            seconds: -seconds,
            nanos: 0,
        },
        // The kernel counts the fraction forwards.
        (true, nanos) => Time {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

impl Members<'_, std::fs::File> {
    /// Where the content of the last member begins in the file.
    pub(crate) fn position(&mut self) -> io::Result<u64> {
        self.input.stream_position()
    }

    /// Goes over the content of the last member without reading it.
    pub(crate) fn leap(&mut self) -> Result<(), LayerError> {
        let bytes = i64::try_from(self.content + self.padding)
            .map_err(|_| LayerError::malformed("a size is no number"))?;
        (self.content, self.padding) = (0, 0);
        self.input.seek_relative(bytes).map_err(LayerError::Read)
    }
}

//! Reading a hostile tar: ustar headers and pax records, everything else refused, every size bounded.

use super::{BundleError, MAX_END_BYTES, MAX_PAX_BYTES};
use crate::archive::{BLOCK, NAME_BYTES, padding};
use crate::bundle::BUFFER_BYTES;
use crate::manifest::{Kind, MAX_TOTAL_BYTES};
use std::io::{self, BufRead, BufReader, Read};

/// The archive as a row of blocks.
pub(super) struct Source<R> {
    reader: BufReader<R>,
    /// Bytes read so far.
    pub(super) taken: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader: BufReader::with_capacity(BUFFER_BYTES, reader),
            taken: 0,
        }
    }

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
    pub(super) fn content(
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
pub(super) struct Member {
    /// Without the slash at a directory's end.
    pub(super) path: String,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) link: String,
}

impl Member {
    /// The next member, or none once the end mark and all after it is read.
    pub(super) fn read(source: &mut Source<impl Read>) -> Result<Option<Self>, BundleError> {
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

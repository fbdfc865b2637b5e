//! The bytes of SFTP: packets, and what they are made of.

use bytes::{Buf, Bytes, BytesMut};

/// The longest packet, as OpenSSH has it.
pub(super) const MAX_PACKET: usize = 256 << 10;
/// The most file content in one: room is left for what stands around it.
pub(super) const MAX_CONTENT: usize = MAX_PACKET - 1024;

/// Types of packets.
pub(super) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const REALPATH: u8 = 16;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 200;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

/// The bytes are no request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Takes the next whole packet off, without its length.
pub(super) fn packet(buffer: &mut BytesMut) -> Result<Option<Bytes>, Malformed> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if length == 0 || length > MAX_PACKET {
        return Err(Malformed);
    }
    if buffer.len() < 4 + length {
        buffer.reserve(4 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// What is left of a packet.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.take(4)?.get_u32())
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.take(8)?.get_u64())
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.u32()?;
        let has = |flag: u32| flags & flag != 0;
        let mut attributes = Attributes::default();
        if has(Attributes::SIZE) {
            attributes.size = Some(self.u64()?);
        }
        if has(Attributes::OWNER) {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if has(Attributes::MODE) {
            attributes.mode = Some(self.u32()?);
        }
        if has(Attributes::TIMES) {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if has(Attributes::EXTENDED) {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

/// What is told of a file, or is to become of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Last read, last changed.
    pub(super) times: Option<(u32, u32)>,
}

impl Attributes {
    const SIZE: u32 = 1;
    const OWNER: u32 = 2;
    const MODE: u32 = 4;
    const TIMES: u32 = 8;
    const EXTENDED: u32 = 0x8000_0000;
}

/// A packet that is being written behind others. Its length is put in when it is done.
pub(super) struct Packet<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Packet<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>, kind: u8) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, kind]);
        Self { out, start }
    }

    pub(super) fn answer(out: &'a mut Vec<u8>, kind: u8, id: u32) -> Self {
        Self::new(out, kind).u32(id)
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.out.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.out.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn bytes(self, value: &[u8]) -> Self {
        let packet = self.u32(value.len() as u32);
        packet.out.extend_from_slice(value);
        packet
    }

    pub(super) fn attributes(self, attributes: &Attributes) -> Self {
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(attributes.size.is_some(), Attributes::SIZE)
            | flag(attributes.owner.is_some(), Attributes::OWNER)
            | flag(attributes.mode.is_some(), Attributes::MODE)
            | flag(attributes.times.is_some(), Attributes::TIMES);
        let mut packet = self.u32(flags);
        if let Some(size) = attributes.size {
            packet = packet.u64(size);
        }
        if let Some((user, group)) = attributes.owner {
            packet = packet.u32(user).u32(group);
        }
        if let Some(mode) = attributes.mode {
            packet = packet.u32(mode);
        }
        if let Some((read, changed)) = attributes.times {
            packet = packet.u32(read).u32(changed);
        }
        packet
    }

    /// Lets `fill` write up to `count` bytes of content; takes the packet back when it writes none.
    pub(super) fn content<E>(
        self,
        count: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<()>, E> {
        let at = self.out.len();
        self.out.resize(at + 4 + count, 0);
        match fill(&mut self.out[at + 4..]) {
            Ok(0) if count > 0 => {
                self.out.truncate(self.start);
                std::mem::forget(self);
                Ok(None)
            }
            Ok(filled) => {
                self.out.truncate(at + 4 + filled);
                self.out[at..at + 4].copy_from_slice(&(filled as u32).to_be_bytes());
                Ok(Some(()))
            }
            Err(error) => {
                self.out.truncate(self.start);
                std::mem::forget(self);
                Err(error)
            }
        }
    }
}

impl Drop for Packet<'_> {
    fn drop(&mut self) {
        let length = (self.out.len() - self.start - 4) as u32;
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_whole() {
        let mut out = Vec::new();
        drop(Packet::answer(&mut out, kind::STATUS, 7).bytes(b"x"));
        drop(Packet::new(&mut out, kind::VERSION).u32(3));
        let mut buffer = BytesMut::from(&out[..]);
        let rest = buffer.split_off(6);
        assert_eq!(packet(&mut buffer), Ok(None));
        buffer.unsplit(rest);
        let first = packet(&mut buffer).unwrap().unwrap();
        let mut reader = Reader(&first);
        assert_eq!(reader.u8(), Ok(kind::STATUS));
        assert_eq!(reader.u32(), Ok(7));
        assert_eq!(reader.bytes(), Ok(&b"x"[..]));
        assert_eq!(reader.u8(), Err(Malformed));
        assert_eq!(packet(&mut buffer).unwrap().unwrap()[..], [2, 0, 0, 0, 3]);
        assert_eq!(packet(&mut buffer), Ok(None));
        let mut long = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert_eq!(packet(&mut long), Err(Malformed));
    }

    #[test]
    fn attributes_come_back_as_they_went() {
        let attributes = Attributes {
            size: Some(1 << 40),
            owner: Some((1, 2)),
            mode: Some(0o100_644),
            times: Some((3, 4)),
        };
        for attributes in [attributes, Attributes::default()] {
            let mut out = Vec::new();
            drop(Packet::new(&mut out, kind::ATTRS).attributes(&attributes));
            assert_eq!(Reader(&out[5..]).attributes(), Ok(attributes));
        }
        assert_eq!(Reader(&[0, 0, 0, 1, 0]).attributes(), Err(Malformed));
    }
}

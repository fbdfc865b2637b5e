//! Process output as a byte sequence: one frame after another inside an HTTP/2 body.
//!
//! ```text
//! kind u8 | offset u64 BE | length u32 BE | payload
//! ```
//! `offset` counts the output bytes of both streams that came before this frame's payload, so a reader
//! that stopped after N bytes goes on with `from=N`. The golden bytes in the tests are part of the
//! protocol.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The largest payload a frame may have, in bytes.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// Bytes of a frame before its payload.
pub const HEADER: usize = 1 + 8 + 4;

/// One step of a process's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// It runs, with this id.
    Started(u32),
    /// Bytes it wrote to standard output, the first at this offset.
    Stdout(u64, Bytes),
    /// Bytes it wrote to standard error, the first at this offset.
    Stderr(u64, Bytes),
    /// It ended; nothing follows.
    Exit {
        /// Exit code; 128 + N after signal N.
        code: i32,
        /// Whether its time limit ended it.
        timed_out: bool,
        /// Output bytes in all, also those that were not kept.
        total: u64,
    },
}

/// What comes before so many bytes of output in their frame: whoever reads output leaves room for it, and has the frame
/// without a copy.
#[must_use]
pub fn output_header(stderr: bool, offset: u64, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let mut fields = &mut header[..];
    fields.put_u8(if stderr { 2 } else { 1 });
    fields.put_u64(offset);
    fields.put_u32(length as u32);
    header
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut head = |kind: u8, offset: u64, len: usize| {
            out.reserve(HEADER + len);
            out.put_u8(kind);
            out.put_u64(offset);
            out.put_u32(len as u32);
        };
        match self {
            Self::Started(pid) => {
                head(0, 0, 4);
                out.put_u32(*pid);
            }
            Self::Stdout(offset, data) => {
                head(1, *offset, data.len());
                out.put_slice(data);
            }
            Self::Stderr(offset, data) => {
                head(2, *offset, data.len());
                out.put_slice(data);
            }
            Self::Exit {
                code,
                timed_out,
                total,
            } => {
                head(3, *total, 5);
                out.put_i32(*code);
                out.put_u8(u8::from(*timed_out));
            }
        }
    }
}

/// A peer sent bytes that are no frames.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The kind byte is not known.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The payload is longer than [`MAX_PAYLOAD`] or of the wrong length for its kind.
    #[error("frame of kind {kind} has a payload of {length} bytes")]
    Length {
        /// Frame kind.
        kind: u8,
        /// Length given.
        length: usize,
    },
}

/// Whether `buffer` begins with a whole frame.
///
/// # Errors
/// As [`decode`].
pub fn is_whole(buffer: &[u8]) -> Result<bool, FrameError> {
    Ok(head(buffer)?.is_some_and(|(_, _, length)| buffer.len() >= HEADER + length))
}

/// Kind, offset and length of the payload, once they are there.
fn head(buffer: &[u8]) -> Result<Option<(u8, u64, usize)>, FrameError> {
    let Some(mut head) = buffer.get(..HEADER) else {
        return Ok(None);
    };
    let (kind, offset) = (head.get_u8(), head.get_u64());
    let length = head.get_u32() as usize;
    let fits = match kind {
        0 => length == 4,
        1 | 2 => length <= MAX_PAYLOAD,
        3 => length == 5,
        other => return Err(FrameError::Kind(other)),
    };
    match fits {
        true => Ok(Some((kind, offset, length))),
        false => Err(FrameError::Length { kind, length }),
    }
}

/// Takes the next whole frame off `buffer`; `None` when more bytes are needed. The payload is not copied.
///
/// # Errors
/// [`FrameError`] when the bytes cannot be a frame; the stream is then of no use any more.
pub fn decode(buffer: &mut Bytes) -> Result<Option<Frame>, FrameError> {
    let Some((kind, offset, length)) = head(buffer)? else {
        return Ok(None);
    };
    if buffer.len() < HEADER + length {
        return Ok(None);
    }
    buffer.advance(HEADER);
    let mut payload = buffer.split_to(length);
    Ok(Some(match kind {
        0 => Frame::Started(payload.get_u32()),
        1 => Frame::Stdout(offset, payload),
        2 => Frame::Stderr(offset, payload),
        _ => Frame::Exit {
            code: payload.get_i32(),
            timed_out: payload.get_u8() != 0,
            total: offset,
        },
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let mut out = BytesMut::new();
        Frame::Started(7).encode(&mut out);
        Frame::Stderr(3, Bytes::from_static(b"hi")).encode(&mut out);
        Frame::Exit {
            code: -1,
            timed_out: true,
            total: 5,
        }
        .encode(&mut out);
        assert_eq!(
            out[..],
            [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 7, //
                2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, b'h', b'i', //
                3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 5, 255, 255, 255, 255, 1,
            ]
        );
        assert_eq!(out[17..30], output_header(true, 3, 2));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(data in proptest::collection::vec(any::<u8>(), 0..2000), cut in 0usize..4000) {
            let frames = [Frame::Started(1), Frame::Stdout(9, data.clone().into()), Frame::Exit { code: 3, timed_out: false, total: 9 }];
            let mut wire = BytesMut::new();
            for frame in &frames { frame.encode(&mut wire); }
            let mut rest = wire.freeze();
            let mut begun = rest.split_to(cut.min(rest.len()));
            let mut seen = Vec::new();
            while let Some(frame) = decode(&mut begun).unwrap() { seen.push(frame); }
            let mut rest = Bytes::from([begun, rest].concat());
            while let Some(frame) = decode(&mut rest).unwrap() { seen.push(frame); }
            prop_assert_eq!(&seen[..], &frames[..]);
        }

        #[test]
        fn hostile_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = Bytes::from(data);
            while let Ok(Some(_)) = decode(&mut buffer) {}
        }
    }
}

//! Output on its way from bytes to the text of a message.

use bytes::{Buf, Bytes};
use serde::Serialize;

use crate::app::process::whole_characters;

/// Bytes before a message in its frame, at most.
const HEAD: usize = 10;

/// A message as a text frame of the WebSocket (RFC 6455, section 5.2). It is written where it is sent from: a copy of all
/// that is told would be a good part of what a gigabyte costs.
pub(crate) struct TextFrame {
    /// Room for the head, as much of it as is needed at its end; then the message.
    bytes: Vec<u8>,
    start: usize,
}

impl TextFrame {
    /// Room for so many bytes of message, which `write` appends to what it is given.
    fn new(size: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(HEAD + size);
        bytes.resize(HEAD, 0);
        write(&mut bytes);
        let length = bytes.len() - HEAD;
        let mut put = |head: &[u8]| {
            let start = HEAD - head.len();
            bytes[start..HEAD].copy_from_slice(head);
            start
        };
        // Whole and text; the shortest form of the length.
        let start = match (u8::try_from(length), u16::try_from(length)) {
            (Ok(length @ ..126), _) => put(&[0x81, length]),
            (_, Ok(length)) => put(&[&[0x81, 126], &length.to_be_bytes()[..]].concat()),
            _ => put(&[&[0x81, 127], &(length as u64).to_be_bytes()[..]].concat()),
        };
        Self { bytes, start }
    }

    /// As JSON; `None` for what JSON cannot say, which no message is.
    pub(crate) fn of(message: &impl Serialize) -> Option<Self> {
        let mut written = Ok(());
        let frame = Self::new(256, |bytes| {
            written = serde_json::to_writer(bytes, message);
        });
        written.ok().map(|()| frame)
    }

    /// An [`nullspace_api::socket::ServerMessage::ExecStdout`] or `ExecStderr`. All of a flood of output goes through here: the general way to
    /// JSON looks at each byte by itself, and was the largest part of what a gigabyte cost.
    pub(super) fn output(
        id: &str,
        pid: u32,
        stderr: bool,
        data: &str,
        data_base64: Option<&str>,
    ) -> Self {
        let kind = if stderr { "exec_stderr" } else { "exec_stdout" };
        let size = data.len() + data.len() / 16 + data_base64.map_or(0, str::len) + id.len() + 128;
        Self::new(size, |bytes| {
            let mut field = |name: &str, value: &str| {
                bytes.extend_from_slice(name.as_bytes());
                json_escape_simd::escape_into(value, bytes);
            };
            field("{\"type\":", kind);
            field(",\"id\":", id);
            field(&format!(",\"pid\":{pid},\"data\":"), data);
            if let Some(encoded) = data_base64 {
                field(",\"data_base64\":", encoded);
            }
            bytes.push(b'}');
        })
    }
}

/// What goes over the connection.
impl From<TextFrame> for Bytes {
    fn from(frame: TextFrame) -> Self {
        let mut bytes = Self::from(frame.bytes);
        bytes.advance(frame.start);
        bytes
    }
}

/// One stream of bytes on its way to text: half a character waits for its other half.
#[derive(Default)]
pub(super) struct Text {
    half: Vec<u8>,
}

impl Text {
    /// Whether nothing waits.
    pub(super) fn is_whole(&self) -> bool {
        self.half.is_empty()
    }

    /// What waits, at the end.
    pub(super) fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.half)
    }

    /// The bytes that are there now, up to the end of a character.
    pub(super) fn take(&mut self, data: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.half);
        bytes.extend_from_slice(data);
        self.half = bytes.split_off(whole_characters(&bytes));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use nullspace_api::socket::ServerMessage;
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::{FrameHeader, coding};

    use super::*;

    /// As a client reads it.
    fn message(frame: TextFrame) -> String {
        let sent = Bytes::from(frame);
        let mut bytes = std::io::Cursor::new(&sent);
        let parsed = FrameHeader::parse(&mut bytes).expect("a head");
        let (head, length) = parsed.expect("a whole head");
        assert!(head.is_final && head.mask.is_none());
        assert_eq!(head.opcode, coding::OpCode::Data(coding::Data::Text));
        let text = &sent[bytes.position() as usize..];
        assert_eq!(text.len() as u64, length);
        String::from_utf8(text.to_vec()).expect("text")
    }

    proptest! {
        #[test]
        fn output_is_the_message(data in any::<String>(), id in any::<String>(), encoded in any::<Option<String>>(), stderr in any::<bool>()) {
            let frame = TextFrame::output(&id, 7, stderr, &data, encoded.as_deref());
            let text = message(frame);
            let (id, data, data_base64) = (id.into(), data.into(), encoded.map(Into::into));
            let message = match stderr {
                false => ServerMessage::ExecStdout { id, pid: 7, data, data_base64 },
                true => ServerMessage::ExecStderr { id, pid: 7, data, data_base64 },
            };
            prop_assert_eq!(serde_json::from_str::<ServerMessage<'_>>(&text).ok(), Some(message));
        }

        #[test]
        fn a_frame_of_any_length_is_read_as_what_it_is(length in prop_oneof![0usize..300, 65_000usize..66_000]) {
            let text = "x".repeat(length);
            let frame = TextFrame::new(0, |bytes| bytes.extend_from_slice(text.as_bytes()));
            prop_assert_eq!(message(frame), text);
        }

        #[test]
        fn bytes_stay_in_order_and_characters_whole(
            text in "[a\u{e9}\u{20ac}\u{1f980}]{0,40}",
            cuts in proptest::collection::vec(0usize..160, 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut held = Text::default();
            let mut whole = String::new();
            for piece in cuts.windows(2) {
                let taken = held.take(&bytes[piece[0]..piece[1]]);
                prop_assert!(std::str::from_utf8(&taken).is_ok());
                whole.push_str(&String::from_utf8_lossy(&taken));
            }
            prop_assert_eq!(whole, text);
            prop_assert!(held.half.is_empty());
        }
    }
}

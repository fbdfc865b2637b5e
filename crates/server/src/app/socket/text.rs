//! Output on its way from bytes to the text of a message.

use crate::app::process::whole_characters;

/// An [`nullspace_api::socket::ServerMessage::ExecStdout`] or `ExecStderr` as JSON. All of a flood of output goes through here:
/// the general way to JSON looks at each byte by itself, and was the largest part of what a gigabyte cost.
pub(super) fn output(
    id: &str,
    pid: u32,
    stderr: bool,
    data: &str,
    data_base64: Option<&str>,
) -> Result<String, std::string::FromUtf8Error> {
    let kind = if stderr { "exec_stderr" } else { "exec_stdout" };
    let size = data.len() + data.len() / 16 + data_base64.map_or(0, str::len) + id.len() + 128;
    let mut text = Vec::with_capacity(size);
    let mut field = |name: &str, value: &str| {
        text.extend_from_slice(name.as_bytes());
        json_escape_simd::escape_into(value, &mut text);
    };
    field("{\"type\":", kind);
    field(",\"id\":", id);
    field(&format!(",\"pid\":{pid},\"data\":"), data);
    if let Some(encoded) = data_base64 {
        field(",\"data_base64\":", encoded);
    }
    text.push(b'}');
    String::from_utf8(text)
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

    use super::*;

    proptest! {
        #[test]
        fn output_is_the_message(data in any::<String>(), id in any::<String>(), encoded in any::<Option<String>>(), stderr in any::<bool>()) {
            let text = output(&id, 7, stderr, &data, encoded.as_deref()).unwrap_or_default();
            let (id, data, data_base64) = (id.into(), data.into(), encoded.map(Into::into));
            let message = match stderr {
                false => ServerMessage::ExecStdout { id, pid: 7, data, data_base64 },
                true => ServerMessage::ExecStderr { id, pid: 7, data, data_base64 },
            };
            prop_assert_eq!(serde_json::from_str::<ServerMessage<'_>>(&text).ok(), Some(message));
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

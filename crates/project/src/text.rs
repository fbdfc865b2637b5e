//! Text handling where the published client leans on Python's rules and a byte of difference changes a digest.

use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Component, Path};

/// White space as `str.strip` sees it: Unicode white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `text` without white space around it.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text` without white space at its end.
pub(crate) fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// The lines of a text file, split where `str.splitlines` splits: more places than `str::lines`.
pub(crate) fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(|c| {
        matches!(
            c,
            '\n' | '\r'
                | '\x0b'
                | '\x0c'
                | '\x1c'
                | '\x1d'
                | '\x1e'
                | '\u{85}'
                | '\u{2028}'
                | '\u{2029}'
        )
    }) {
        lines.push(&rest[..at]);
        let width = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// A path as messages show it: `.` segments and doubled slashes dropped, `.` when nothing is left.
pub(crate) fn shown_path(path: &Path) -> String {
    let kept: std::path::PathBuf = path
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .collect();
    if kept.as_os_str().is_empty() {
        ".".to_owned()
    } else {
        kept.display().to_string()
    }
}

/// A string between quotes the way Python's `repr` chooses and escapes them.
pub(crate) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || (0x7f..=0xa0).contains(&(c as u32)) => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Appends `text` as a JSON string in ASCII: everything outside printable ASCII is escaped, as UTF-16 units.
fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

/// `value` as the one text its digest is taken over: keys in code-point order at every level, no spaces, ASCII only.
pub(crate) fn canonical_json(value: &Value) -> String {
    fn push(out: &mut String, value: &Value) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
            Value::String(text) => push_json_string(out, text),
            Value::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    push(out, item);
                }
                out.push(']');
            }
            Value::Object(fields) => {
                // The map's own order depends on a feature another crate may switch on.
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by_key(|(key, _)| *key);
                out.push('{');
                for (index, (key, item)) in fields.into_iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    push_json_string(out, key);
                    out.push(':');
                    push(out, item);
                }
                out.push('}');
            }
        }
    }
    let mut out = String::new();
    push(&mut out, value);
    out
}

/// `text` as a TOML basic string in ASCII.
pub(crate) fn toml_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            // TOML has no surrogate pairs, so what does not fit four digits takes eight.
            c if (c as u32) > 0xffff => {
                let _ = write!(out, "\\U{:08X}", c as u32);
            }
            c => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_json_is_sorted_tight_ascii() {
        let value = json!({"b": [1, true, null], "a": "é😀\u{7f}\"\\\n\u{1}", "B": {}});
        assert_eq!(
            canonical_json(&value),
            "{\"B\":{},\"a\":\"\\u00e9\\ud83d\\ude00\\u007f\\\"\\\\\\n\\u0001\",\"b\":[1,true,null]}"
        );
    }

    #[test]
    fn lines_split_where_python_splits() {
        assert_eq!(
            lines("a\r\nb\rc\n\nd\u{2028}e\x0c"),
            ["a", "b", "c", "", "d", "e"]
        );
        assert_eq!(lines(""), Vec::<&str>::new());
    }

    #[test]
    fn quotes_follow_the_content() {
        assert_eq!(quoted("batch"), "'batch'");
        assert_eq!(quoted("it's"), "\"it's\"");
        assert_eq!(quoted("'\""), "'\\'\"'");
        assert_eq!(quoted("a\nb\x01"), "'a\\nb\\x01'");
    }

    #[test]
    fn shown_paths_are_plain() {
        assert_eq!(shown_path(Path::new("./a/./b.toml")), "a/b.toml");
        assert_eq!(shown_path(Path::new(".")), ".");
        assert_eq!(shown_path(Path::new("/x//y")), "/x/y");
    }
}

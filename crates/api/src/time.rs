//! Times: microseconds since 1970 inside, RFC 3339 with `Z` on the wire.

use jiff::Timestamp;

/// Now, in microseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

/// As the wire writes it: `2026-01-31T12:00:00.123456Z`.
#[must_use]
pub fn rfc3339(microseconds: i64) -> String {
    Timestamp::from_microsecond(microseconds)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_string()
}

/// Reads an RFC 3339 time; `None` when it is none.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    text.trim()
        .parse::<Timestamp>()
        .ok()
        .map(|t| t.as_microsecond())
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_and_back() {
        let text = super::rfc3339(1_700_000_000_123_456);
        assert_eq!(text, "2023-11-14T22:13:20.123456Z");
        assert_eq!(super::parse(&text), Some(1_700_000_000_123_456));
        assert_eq!(super::parse("yesterday"), None);
    }
}

//! Host names: the one place that reads them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// The longest name, in characters.
const MAX_NAME: usize = 253;
/// The longest part between two dots.
const MAX_LABEL: usize = 63;

/// A host name: lower case, without the final dot, as it is asked for in DNS (international names as `xn--`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // A name of this many characters in another script is longer still when it is written out.
        let shown: String = text.chars().take(80).collect();
        let bad = |why: &str| Invalid(format!("{shown:?} {why}"));
        if text.len() > 4 * MAX_NAME {
            return Err(bad("is too long for a host name"));
        }
        let ascii = match text.is_ascii() {
            true => text.to_ascii_lowercase(),
            false => {
                idna::domain_to_ascii(text).map_err(|_| bad("is no international host name"))?
            }
        };
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(bad("is no host name: 1 to 253 characters"));
        }
        let label_ok = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if !name.split('.').all(label_ok) {
            return Err(bad(
                "is no host name such as example.com or *.example.com: no scheme, port or path",
            ));
        }
        // What some programs take for an address must not be a name here.
        let last = name.rsplit('.').next().unwrap_or_default();
        if last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x") {
            return Err(bad(
                "ends as an address does; addresses go into allow_cidrs and deny_cidrs",
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// Which names a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// `example.com`: this one.
    Exact(Name),
    /// `*.example.com`: all below it, not itself.
    Below(Name),
    /// `*`: all.
    Any,
}

impl Pattern {
    /// Whether it is about the name: how specific it is then, to be compared with others'.
    pub(crate) fn fits(&self, name: &Name) -> Option<(usize, bool)> {
        match self {
            Self::Any => Some((0, false)),
            Self::Exact(wanted) => (wanted == name).then_some((wanted.0.len() + 1, true)),
            Self::Below(above) => {
                let below = name.0.strip_suffix(&above.0)?.strip_suffix('.')?;
                (!below.is_empty()).then_some((above.0.len() + 1, false))
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Some(above) = text.strip_prefix("*.") {
            return above.parse().map(Self::Below);
        }
        text.parse().map(Self::Exact)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

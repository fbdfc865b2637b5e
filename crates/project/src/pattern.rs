//! Ignore patterns, as the published client reads them.
//!
//! They are gitignore patterns with two differences that decide which files travel, and which the usual crates follow
//! git on: a pattern that matches a path itself outranks every pattern that only matches a directory above it, and a
//! path is looked at on its own, so `*.py` finds files in directories that no pattern matches. Hence patterns are
//! translated here, to expressions that match in time linear in the path whatever the pattern.

use crate::text;
use regex::{Regex, RegexSet};

/// A pattern that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid ignore pattern: {pattern}")]
pub struct PatternError {
    /// The pattern, as written.
    pub pattern: String,
}

/// An ordered list of patterns, one layer of the decision.
#[derive(Debug)]
pub(crate) struct Patterns {
    rules: Vec<Rule>,
    /// All rules at once: most paths match none, and one scan says so.
    any: RegexSet,
}

#[derive(Debug)]
struct Rule {
    /// `!pattern`: takes back what others matched.
    negated: bool,
    /// Group 1 takes part when the match is a directory, of or above the path.
    expression: Regex,
}

impl Patterns {
    /// Reads one pattern per item. Blank ones, comments and those with a broken range match nothing.
    pub(crate) fn new<'a>(
        patterns: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PatternError> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let error = || PatternError {
                pattern: pattern.to_owned(),
            };
            if let Some((negated, expression)) = translate(pattern).map_err(|Unreadable| error())? {
                rules.push(Rule {
                    negated,
                    expression: Regex::new(&expression).map_err(|_| error())?,
                });
            }
        }
        let any =
            RegexSet::new(rules.iter().map(|rule| rule.expression.as_str())).map_err(|_| {
                PatternError {
                    pattern: "too many patterns".to_owned(),
                }
            })?;
        Ok(Self { rules, any })
    }

    /// Whether the path, relative and with `/` between segments, is matched. A directory is tried with and without a
    /// slash at its end.
    pub(crate) fn matches(&self, path: &str, is_dir: bool) -> bool {
        self.matches_text(path) || (is_dir && self.matches_text(&format!("{path}/")))
    }

    fn matches_text(&self, path: &str) -> bool {
        let mut above = None;
        for index in self.any.matches(path).iter().rev() {
            let rule = &self.rules[index];
            let by_directory = rule
                .expression
                .captures(path)
                .is_some_and(|found| found.get(1).is_some());
            if !by_directory {
                return !rule.negated;
            }
            above.get_or_insert(!rule.negated);
        }
        above.unwrap_or(false)
    }
}

/// The pattern makes no sense at all.
struct Unreadable;

const DIRECTORY: &str = "(/)";

/// An expression for the pattern and whether it is negated, or none if it matches nothing.
fn translate(pattern: &str) -> Result<Option<(bool, String)>, Unreadable> {
    // An escaped space at the end stays, and with it all white space.
    let pattern = if pattern.ends_with("\\ ") {
        pattern
    } else {
        text::strip_end(pattern)
    };
    if pattern.is_empty() || pattern.starts_with('#') || pattern == "/" {
        return Ok(None);
    }
    let (negated, pattern) = match pattern.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, pattern),
    };
    let only_directories = pattern.ends_with('/');
    let mut segments: Vec<&str> = pattern.split('/').collect();

    if segments[0].is_empty() {
        // A slash at the start anchors the pattern and is no segment.
        segments.remove(0);
    } else if (segments.len() == 1 || (segments.len() == 2 && segments[1].is_empty()))
        && segments[0] != "**"
    {
        // A single name is looked for at any depth.
        segments.insert(0, "**");
    }
    match segments.last_mut() {
        None => return Err(Unreadable),
        Some(last) if last.is_empty() => *last = "**",
        Some(_) => {}
    }
    segments.dedup_by(|a, b| *a == "**" && *b == "**");

    let whole = match segments[..] {
        ["**"] | ["**", "*", "**"] if only_directories => Some(DIRECTORY),
        ["**", "*", "**"] => Some("/"),
        ["**"] | ["**", "*"] => Some("."),
        _ => None,
    };
    if let Some(whole) = whole {
        return Ok(Some((negated, whole.to_owned())));
    }

    let mut out = String::new();
    let mut slash = false;
    let last = segments.len() - 1;
    for (index, segment) in segments.iter().enumerate() {
        if *segment == "**" {
            if index == 0 {
                out.push_str("^(?:.+/)?");
            } else if index < last {
                out.push_str("(?:/.+)?");
                slash = true;
            } else {
                out.push_str(if only_directories { DIRECTORY } else { "/" });
            }
            continue;
        }
        if index == 0 {
            out.push('^');
        }
        if slash {
            out.push('/');
        }
        if *segment == "*" {
            out.push_str("[^/]+");
        } else if !push_segment(&mut out, segment)? {
            return Ok(None);
        }
        if index == last {
            // The end of a text is also just before a line break that ends it.
            out.push_str("(?:(/)|\\n?$)");
        }
        slash = true;
    }
    Ok(Some((negated, out)))
}

/// Appends one segment of a pattern. False if a range in it has no end, which voids the pattern.
fn push_segment(out: &mut String, segment: &str) -> Result<bool, Unreadable> {
    let chars: Vec<char> = segment.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        match c {
            '\\' => {
                let escaped = chars.get(at).ok_or(Unreadable)?;
                at += 1;
                push_literal(out, *escaped);
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => {
                let negated = matches!(chars.get(at), Some('!' | '^'));
                let start = at + usize::from(negated);
                // A bracket right at the start is one of the characters.
                let scan = start + usize::from(chars.get(start) == Some(&']'));
                let Some(length) = chars.iter().skip(scan).position(|c| *c == ']') else {
                    return Ok(false);
                };
                let end = scan + length;
                push_class(out, negated, &chars[start..end])?;
                at = end + 1;
            }
            c => push_literal(out, c),
        }
    }
    Ok(true)
}

/// Appends a character class. Backslashes in it are plain characters.
fn push_class(out: &mut String, negated: bool, members: &[char]) -> Result<(), Unreadable> {
    out.push_str(if negated { "[^" } else { "[" });
    let mut at = 0;
    while at < members.len() {
        let low = members[at];
        let high = match members.get(at + 1..at + 3) {
            Some(['-', high]) => {
                at += 3;
                *high
            }
            _ => {
                at += 1;
                low
            }
        };
        if high < low {
            return Err(Unreadable);
        }
        out.push_str(&format!("\\x{{{:x}}}-\\x{{{:x}}}", low as u32, high as u32));
    }
    out.push(']');
    Ok(())
}

fn push_literal(out: &mut String, c: char) {
    out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Patterns, path (a slash at its end makes it a directory), matched.
    const TABLE: &[(&[&str], &str, bool)] = &[
        (&["src"], "src/", true),
        (&["src"], "a/src/b/c", true),
        (&["src"], "src2", false),
        (&["./src"], "src/", false),
        (&["*.py"], "a/b/c.py", true),
        (&["*.py"], "a/", false),
        (&["/a.txt"], "a.txt", true),
        (&["/a.txt"], "b/a.txt", false),
        (&["a/b"], "a/b/c", true),
        (&["a/b"], "x/a/b", false),
        (&["build/"], "build", false),
        (&["build/"], "build/", true),
        (&["build/"], "x/build/y", true),
        (&["a/**/b"], "a/b", true),
        (&["a/**/b"], "a/x/y/b", true),
        (&["a/**"], "a/", true),
        (&["a/**"], "a", false),
        (&["**/x"], "p/q/x", true),
        (&["*"], "anything", true),
        (&["*", "!*.md"], "a.md", false),
        (&["*", "!*.md"], "d/a.md", false),
        // The name itself outranks a directory above it, whatever the order.
        (&["!keep.txt", "dir/"], "dir/keep.txt", false),
        (&["dir/", "!keep.txt"], "dir/keep.txt", false),
        (&["*.txt", "!dir/"], "dir/a.txt", true),
        // A directory named without its slash stays matched although `foo/` takes it back.
        (&["foo", "!foo/"], "foo/", true),
        (&["\\#a"], "#a", true),
        (&["#a"], "#a", false),
        (&["\\!a"], "!a", true),
        (&["a "], "a", true),
        (&["a\\ "], "a ", true),
        (&["[ab]x"], "bx", true),
        (&["[!ab]x"], "bx", false),
        (&["[^ab]x"], "cx", true),
        (&["[]]x"], "]x", true),
        (&["[a-c]x"], "bx", true),
        (&["[a"], "[a", false),
        (&["[[:alpha:]]"], ":]", true),
        (&["a?c"], "abc", true),
        (&["a?c"], "a/c", false),
        (&["/"], "a", false),
        (&["A"], "a", false),
        (&["**/"], "a", false),
        (&["**/"], "a/b", true),
        (&[".env.*", "!.env.example"], ".env.example", false),
        (&[".env.*", "!.env.example"], ".env.local", true),
    ];

    #[test]
    fn table() {
        for (patterns, path, expected) in TABLE {
            let set = Patterns::new(patterns.iter().copied()).expect("readable patterns");
            let (name, is_dir) = path
                .strip_suffix('/')
                .map_or((*path, false), |name| (name, true));
            assert_eq!(
                set.matches(name, is_dir),
                *expected,
                "{patterns:?} on {path}"
            );
        }
    }

    #[test]
    fn unreadable_patterns_are_errors() {
        for pattern in ["!", "a\\", "[z-a]"] {
            assert!(Patterns::new([pattern]).is_err(), "{pattern}");
        }
    }
}

//! Words of an instruction: quotes, escapes, variables.
//!
//! Whoever writes a Dockerfile can have a few lines stand for any amount of text (`ENV A=$A$A`, again and again), so what
//! comes of a word is bounded here, and what comes of all of them where they are put in.

/// The longest that a word becomes, or a file that is written in the Dockerfile, in bytes.
const LONGEST: usize = 1 << 20;
/// How deep variables may be in the words of others: `${A:-${B:-…}}`.
const DEEPEST: usize = 16;

/// The most that the words of a build, or of one of its stages, come to together, in bytes.
pub(in crate::app::template) const MOST: usize = 16 << 20;

fn fits(out: &str) -> Result<(), String> {
    match out.len() > LONGEST {
        true => Err(format!("it comes to over {LONGEST} bytes")),
        false => Ok(()),
    }
}

/// Splits at spaces outside quotes; quotes and escapes stay, for [`expand`].
pub(super) fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => {
                word.push(c);
                if let Some(next) = chars.next() {
                    word.push(next);
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// A text that [`expand`] gives back as it is, but for variables.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '"' | '\'') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A text that [`expand`] gives back as it is.
pub(super) fn literal(text: &str) -> String {
    escaped(text).replace('$', "\\$")
}

/// Takes quotes and escapes away and puts in what variables have; one that is not set is empty.
///
/// # Errors
/// What is wrong, in words.
pub(in crate::app::template) fn expand(
    text: &str,
    look_up: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    expand_at(text, look_up, 0)
}

fn expand_at(
    text: &str,
    look_up: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    if depth > DEEPEST {
        return Err(format!("variables are over {DEEPEST} deep in each other"));
    }
    let mut out = String::new();
    let mut quote = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (Some('\''), c) => out.push(c),
            (_, '\\') => {
                let Some(next) = rest.chars().next() else {
                    out.push('\\');
                    break;
                };
                rest = &rest[next.len_utf8()..];
                if quote == Some('"') && !matches!(next, '"' | '$' | '\\') {
                    out.push('\\');
                }
                out.push(next);
            }
            (_, '$') => rest = variable(rest, look_up, depth, &mut out)?,
            (_, c) => out.push(c),
        }
    }
    fits(&out)?;
    match quote {
        Some(open) => Err(format!("a quote {open} is not closed")),
        None => Ok(out),
    }
}

/// Puts in what variables have and leaves the rest as it is, but for `\$`.
///
/// # Errors
/// What is wrong, in words.
pub(in crate::app::template) fn expand_plain(
    text: &str,
    look_up: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        out.push_str(&rest[..at]);
        let c = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        match c {
            b'\\' => match rest.strip_prefix('$') {
                Some(after) => {
                    out.push('$');
                    rest = after;
                }
                None => out.push('\\'),
            },
            _ => rest = variable(rest, look_up, 0, &mut out)?,
        }
    }
    out.push_str(rest);
    fits(&out)?;
    Ok(out)
}

/// Reads a variable behind its `$`; answers what follows.
fn variable<'a>(
    rest: &'a str,
    look_up: &dyn Fn(&str) -> Option<String>,
    depth: usize,
    out: &mut String,
) -> Result<&'a str, String> {
    // What was put in before.
    fits(out)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let Some(inner) = rest.strip_prefix('{') else {
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            out.push('$');
            return Ok(rest);
        }
        out.push_str(&look_up(&rest[..end]).unwrap_or_default());
        return Ok(&rest[end..]);
    };
    let end = inner.find(|c| !is_name(c)).unwrap_or(inner.len());
    let (name, after) = inner.split_at(end);
    if name.is_empty() {
        return Err("${…} names no variable".into());
    }
    if let Some(after) = after.strip_prefix('}') {
        out.push_str(&look_up(name).unwrap_or_default());
        return Ok(after);
    }
    // The word may have variables in braces of its own.
    let mut open = 1;
    let close = after.char_indices().find(|(at, c)| {
        match c {
            '{' if after[..*at].ends_with('$') => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        open == 0
    });
    let Some((close, _)) = close else {
        return Err(format!("${{{name}… is not closed"));
    };
    let (modifier, after) = (&after[..close], &after[close + 1..]);
    let value = look_up(name);
    let (is_set, operator) = match modifier.strip_prefix(':') {
        Some(operator) => (
            value.as_ref().is_some_and(|value| !value.is_empty()),
            operator,
        ),
        None => (value.is_some(), modifier),
    };
    let kind = operator.chars().next();
    let word = operator.get(1..).unwrap_or_default();
    match kind {
        Some('-') if is_set => out.push_str(&value.unwrap_or_default()),
        Some('-') => out.push_str(&expand_at(word, look_up, depth + 1)?),
        Some('+') if is_set => out.push_str(&expand_at(word, look_up, depth + 1)?),
        Some('+') => {}
        Some('?') if is_set => out.push_str(&value.unwrap_or_default()),
        Some('?') => return Err(format!("{name}: {}", expand_at(word, look_up, depth + 1)?)),
        _ => {
            return Err(format!(
                "${{{name}{modifier}}}: is not known here, only :-, :+ and :?"
            ));
        }
    }
    Ok(after)
}

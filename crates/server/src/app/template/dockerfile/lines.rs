//! From text to instructions: comments, continued lines, here-documents.

use super::Wrong;

/// An instruction as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, counted from 1.
    pub(super) number: u32,
    /// In capitals.
    pub(super) keyword: String,
    /// What follows, on one line.
    pub(super) rest: String,
    /// What follows below.
    pub(super) documents: Vec<Document>,
}

/// A here-document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    /// Its delimiter.
    pub(super) name: String,
    /// With the last line's end.
    pub(super) content: String,
    /// Whether variables in it are replaced.
    pub(super) expands: bool,
}

/// Reads all instructions.
pub(super) fn read(text: &str) -> Result<Vec<Line>, Wrong> {
    let text = text.trim_start_matches('\u{feff}');
    let mut escape = '\\';
    let mut is_top = true;
    let mut lines = text.lines().zip(1u32..).peekable();
    let mut found = Vec::new();
    while let Some((line, number)) = lines.next() {
        let trimmed = line.trim();
        if trimmed.is_empty() {
            is_top = false;
            continue;
        }
        if let Some(comment) = trimmed.strip_prefix('#') {
            if let Some((name, value)) = comment.split_once('=').filter(|_| is_top) {
                match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
                    ("escape", "`") => escape = '`',
                    ("escape", "\\") | ("syntax" | "check", _) => {}
                    ("escape", other) => {
                        return Err(Wrong::at(
                            number,
                            format!("escape={other}: must be \\ or `"),
                        ));
                    }
                    _ => is_top = false,
                }
            } else {
                is_top = false;
            }
            continue;
        }
        is_top = false;
        let mut whole = String::new();
        let mut next = Some(line);
        while let Some(line) = next.take() {
            let end = line.trim_end();
            match end.strip_suffix(escape) {
                Some(begun) => {
                    whole.push_str(begun);
                    // Comments and empty lines in between do not end it.
                    while let Some((line, _)) = lines.peek() {
                        let trimmed = line.trim();
                        if trimmed.is_empty() || trimmed.starts_with('#') {
                            lines.next();
                        } else {
                            next = lines.next().map(|(line, _)| line);
                            break;
                        }
                    }
                }
                None => whole.push_str(line),
            }
        }
        let whole = whole.trim();
        let (keyword, rest) = match whole.split_once(char::is_whitespace) {
            Some((keyword, rest)) => (keyword, rest.trim()),
            None => (whole, ""),
        };
        let mut line = Line {
            number,
            keyword: keyword.to_ascii_uppercase(),
            rest: rest.to_owned(),
            documents: Vec::new(),
        };
        if matches!(line.keyword.as_str(), "RUN" | "COPY" | "ADD") {
            for (name, expands, strips) in documents(rest) {
                let mut content = String::new();
                loop {
                    let Some((text, _)) = lines.next() else {
                        return Err(Wrong::at(
                            number,
                            format!("the here-document {name} has no end"),
                        ));
                    };
                    let text = match strips {
                        true => text.trim_start_matches('\t'),
                        false => text,
                    };
                    if text == name {
                        break;
                    }
                    content.push_str(text);
                    content.push('\n');
                }
                line.documents.push(Document {
                    name,
                    content,
                    expands,
                });
            }
        }
        found.push(line);
    }
    Ok(found)
}

/// The here-documents that a line begins: name, whether variables are replaced, whether tabs at the beginning are
/// dropped.
fn documents(rest: &str) -> Vec<(String, bool, bool)> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut at = 0;
    let bytes = rest.as_bytes();
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            // `<<<` is something else.
            None if bytes[at..].starts_with(b"<<<") => at += 2,
            None if bytes[at..].starts_with(b"<<") => {
                let mut word = &rest[at + 2..];
                let strips = word.starts_with('-');
                word = word.strip_prefix('-').unwrap_or(word);
                let (expands, name) = match word.chars().next() {
                    Some(open @ ('"' | '\'')) => {
                        let inner = &word[1..];
                        (false, inner.split(open).next().unwrap_or_default())
                    }
                    _ => {
                        let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
                        let end = word.find(|c| !is_name(c)).unwrap_or(word.len());
                        (true, &word[..end])
                    }
                };
                if !name.is_empty() {
                    found.push((name.to_owned(), expands, strips));
                }
                at += 1;
            }
            None => {}
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here_documents_stand_among_any_letters() {
        let found = documents("cat 'é <<no' ü <<A <<-\"B b\" <<<no é");
        let names: Vec<_> = found.iter().map(|(n, e, s)| (n.as_str(), *e, *s)).collect();
        assert_eq!(names, [("A", true, false), ("B b", false, true)]);
    }
}

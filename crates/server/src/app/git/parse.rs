//! What git prints for programs, read. Pure; whatever comes is an answer or [`Garbled`], never a panic.

use nullspace_api::git::{GitChangedFile, GitCommit, GitStatus};

use crate::app::exec::lossy;

/// It is not what git prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// Fields of a commit, each with a NUL behind it.
pub(super) const COMMIT_FORMAT: &str = "--format=tformat:%H%x00%an%x00%ae%x00%aI%x00%B";
/// Of [`COMMIT_FORMAT`]; the last one's NUL is the one that `-z` puts between commits.
const COMMIT_FIELDS: usize = 5;

/// `git status --porcelain=v2 --branch -z`: records with a NUL behind each. Names are bytes, and hold anything else.
pub(super) fn status(output: &[u8]) -> Result<GitStatus, Garbled> {
    let mut status = GitStatus::default();
    let mut records = output
        .split_inclusive(|b| *b == 0)
        .map(|record| record.strip_suffix(b"\0").ok_or(Garbled));
    while let Some(record) = records.next() {
        let record = record?;
        let (kind, rest) = record.split_at_checked(2).ok_or(Garbled)?;
        match kind {
            b"# " => header(rest, &mut status)?,
            // XY, submodule, three modes, two objects.
            b"1 " => status.changed.push(changed(rest, 6, None)?),
            // The same and how similar; the old name is a record of its own.
            b"2 " => {
                let original = records.next().ok_or(Garbled)??;
                status.changed.push(changed(rest, 7, Some(original))?);
            }
            // XY, submodule, four modes, three objects.
            b"u " => status.changed.push(changed(rest, 8, None)?),
            b"? " if !rest.is_empty() => status.changed.push(GitChangedFile {
                path: text(rest),
                status: "??".into(),
                unstaged: true,
                ..GitChangedFile::default()
            }),
            // Ignored files are not asked for.
            b"! " => {}
            _ => return Err(Garbled),
        }
    }
    status.clean = status.changed.is_empty();
    Ok(status)
}

fn header(line: &[u8], status: &mut GitStatus) -> Result<(), Garbled> {
    if let Some(name) = line.strip_prefix(b"branch.head ") {
        status.detached = name == b"(detached)";
        status.branch = (!status.detached).then(|| text(name));
    } else if let Some(counts) = line.strip_prefix(b"branch.ab ") {
        let counts = std::str::from_utf8(counts).map_err(|_| Garbled)?;
        let (ahead, behind) = counts.split_once(' ').ok_or(Garbled)?;
        let number = |text: &str, sign| text.strip_prefix(sign)?.parse().ok();
        status.ahead = Some(number(ahead, '+').ok_or(Garbled)?);
        status.behind = Some(number(behind, '-').ok_or(Garbled)?);
    }
    // Newer versions have more headers.
    Ok(())
}

/// A record of a path behind `fields` further fields.
fn changed(rest: &[u8], fields: usize, original: Option<&[u8]>) -> Result<GitChangedFile, Garbled> {
    let mut parts = rest.splitn(fields + 2, |b| *b == b' ');
    let code = parts.next().ok_or(Garbled)?;
    let path = parts
        .last()
        .filter(|path| !path.is_empty())
        .ok_or(Garbled)?;
    if rest.iter().filter(|b| **b == b' ').count() < fields + 1 {
        return Err(Garbled);
    }
    let &[index, tree] = code else {
        return Err(Garbled);
    };
    if !code.iter().all(|b| b.is_ascii_uppercase() || *b == b'.') {
        return Err(Garbled);
    }
    Ok(GitChangedFile {
        path: text(path),
        status: text(code),
        staged: index != b'.',
        unstaged: tree != b'.',
        original_path: original.map(text),
    })
}

/// `git log -z` with [`COMMIT_FORMAT`].
pub(super) fn log(output: &[u8]) -> Result<Vec<GitCommit>, Garbled> {
    let Some(output) = output.strip_suffix(b"\0") else {
        return if output.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Garbled)
        };
    };
    let fields: Vec<&[u8]> = output.split(|b| *b == 0).collect();
    let (commits, []) = fields.as_chunks::<COMMIT_FIELDS>() else {
        return Err(Garbled);
    };
    let commit = |&[sha, name, email, date, message]: &[&[u8]; COMMIT_FIELDS]| {
        let is_sha = matches!(sha.len(), 40 | 64) && sha.iter().all(u8::is_ascii_hexdigit);
        is_sha.then(|| GitCommit {
            sha: text(sha),
            author_name: text(name),
            author_email: text(email),
            date: text(date),
            message: text(message).trim_end_matches('\n').to_owned(),
        })
    };
    commits
        .iter()
        .map(commit)
        .collect::<Option<_>>()
        .ok_or(Garbled)
}

fn text(bytes: &[u8]) -> String {
    lossy(bytes.to_vec())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODES: &str = "N... 100644 100644 100644";
    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn a_status_of_every_kind() {
        let output = format!(
            "# branch.oid {SHA}\0# branch.head topic/x\0# branch.upstream origin/topic/x\0# branch.ab +2 -3\0\
             # stash 1\0\
             1 .M {MODES} {SHA} {SHA} a b\nc\0\
             1 A. {MODES} {SHA} {SHA} new\0\
             2 R. {MODES} {SHA} {SHA} R100 to here\0from\nthere\0\
             u UU N... 100644 100644 100644 100644 {SHA} {SHA} {SHA} both\0\
             ? left/\0"
        );
        let mut output = output.into_bytes();
        output.extend_from_slice(b"? \xff\xfe\0! ignored\0");
        let status = status(&output).unwrap();
        assert_eq!(status.branch.as_deref(), Some("topic/x"));
        assert_eq!((status.ahead, status.behind), (Some(2), Some(3)));
        assert!(!status.detached && !status.clean);
        let seen: Vec<_> = status
            .changed
            .iter()
            .map(|f| {
                (
                    &*f.path,
                    &*f.status,
                    f.staged,
                    f.unstaged,
                    f.original_path.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("a b\nc", ".M", false, true, None),
                ("new", "A.", true, false, None),
                ("to here", "R.", true, false, Some("from\nthere")),
                ("both", "UU", true, true, None),
                ("left/", "??", false, true, None),
                ("\u{fffd}\u{fffd}", "??", false, true, None),
            ]
        );
    }

    #[test]
    fn a_status_without_a_branch_or_a_commit() {
        let detached = status(format!("# branch.oid {SHA}\0# branch.head (detached)\0").as_bytes());
        let detached = detached.unwrap();
        assert!(detached.detached && detached.clean && detached.branch.is_none());
        let empty = status(b"# branch.oid (initial)\0# branch.head main\0").unwrap();
        assert_eq!(empty.branch.as_deref(), Some("main"));
        assert!(empty.clean && empty.ahead.is_none());
        assert!(status(b"").unwrap().clean);
    }

    #[test]
    fn what_is_cut_off_is_no_status() {
        for cut in [
            "1 .M",
            "1 .M N... 100644 100644 100644 a b\0",
            "2 R. N... 100644 100644 100644 a b R100 to\0",
            "? \0",
            "x\0",
            "# branch.ab 1\0",
            "? no end",
        ] {
            assert_eq!(status(cut.as_bytes()), Err(Garbled), "{cut:?}");
        }
    }

    #[test]
    fn commits() {
        let one = format!("{SHA}\0A\u{301}\0a@x\02026-01-02T03:04:05+06:00\0title\n\nbody\n\0");
        let found = log(format!("{one}{one}").as_bytes()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].message, "title\n\nbody");
        assert_eq!(log(b""), Ok(Vec::new()));
        for cut in [
            &one[..one.len() - 1],
            "a\0b\0c\0",
            "not\0a\0name\0of\0one\0",
        ] {
            assert_eq!(log(cut.as_bytes()), Err(Garbled), "{cut:?}");
        }
    }

    /// A name as a file system allows it.
    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1_u8..=255, 1..40)
    }

    proptest! {
        #[test]
        fn anything_is_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = status(&bytes);
            let _ = log(&bytes);
        }

        /// Names come back as they are, and none makes two of one record.
        #[test]
        fn names_of_any_bytes(names in prop::collection::vec((name(), name()), 0..8)) {
            let mut output = Vec::new();
            for (new, old) in &names {
                output.extend_from_slice(format!("2 RM {MODES} {SHA} {SHA} R090 ").as_bytes());
                output.extend_from_slice(new);
                output.push(0);
                output.extend_from_slice(old);
                output.push(0);
                output.extend_from_slice(b"? ");
                output.extend_from_slice(new);
                output.push(0);
            }
            let status = status(&output).unwrap();
            prop_assert_eq!(status.changed.len(), names.len() * 2);
            for ((new, old), pair) in names.iter().zip(status.changed.chunks(2)) {
                prop_assert_eq!(&pair[0].path, &text(new));
                prop_assert_eq!(pair[0].original_path.as_ref(), Some(&text(old)));
                prop_assert_eq!(&pair[1].path, &text(new));
            }
        }
    }
}

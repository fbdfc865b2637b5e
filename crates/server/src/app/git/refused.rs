//! Why git would not: from its messages to a code and what to do. The messages are those of the C locale.
//!
//! A remote can make git print lines of its own, which begin with `remote: `; those decide nothing.

use nullspace_api::error::code;
use serde_json::json;

use super::{
    access::{Access, UNTRIED},
    run::{Ended, unavailable},
};
use crate::{
    app::exec::lossy,
    error::{Error, Kind},
};

/// The longest message for people, in bytes.
const MAX_MESSAGE: usize = 600;
/// What is told of git's own words, in bytes.
const MAX_DETAILS: usize = 4 << 10;

/// What git says, what it means, and what to do. The first that fits.
const TABLE: &[(&[&str], Kind, &str, &str)] = &[
    (
        &["No space left on device", "Disk quota exceeded"],
        Kind::Storage,
        code::INSUFFICIENT_STORAGE,
        "make room in the machine",
    ),
    (
        &["detected dubious ownership"],
        Kind::Forbidden,
        code::GIT_NOT_TRUSTED,
        "give the directory to root, or run: git config --global --add safe.directory PATH",
    ),
    (
        &["' not allowed"],
        Kind::Invalid,
        code::INVALID_REQUEST,
        "use an address of http(s), ssh, git, or a path; with auth, one that it opens",
    ),
    (
        &[
            "HOST IDENTIFICATION HAS CHANGED",
            "Host key verification failed",
        ],
        Kind::Conflict,
        code::GIT_HOST_KEY_CONFLICT,
        "if the host has a new key, remove the old one in the machine: ssh-keygen -R HOST; \
         one that is not known is believed when auth is given",
    ),
    (
        &[
            "Authentication failed",
            "could not read Username",
            "could not read Password",
            "Permission denied (",
            "returned error: 401",
            "returned error: 403",
            "Too many authentication failures",
        ],
        Kind::Forbidden,
        code::GIT_AUTH_FAILED,
        "give auth that the remote accepts; it is told to the remote's own host alone",
    ),
    (
        &[
            "Remote branch ",
            "couldn't find remote ref",
            "error: src refspec",
        ],
        Kind::NotFound,
        code::GIT_REF_NOT_FOUND,
        "see what there is: git ls-remote",
    ),
    (
        &[
            "does not appear to be a git repository",
            "No such remote",
            "returned error: 404",
            "fatal: repository '",
            "Repository not found",
        ],
        Kind::NotFound,
        code::GIT_REMOTE_NOT_FOUND,
        "check the address; many servers say this of a private repository when auth is missing",
    ),
    (
        &["not a git repository"],
        Kind::Conflict,
        code::GIT_NOT_A_REPOSITORY,
        "clone into it, or give the path of a repository",
    ),
    (
        &[
            "There is no tracking information",
            "but did not specify",
            "has no upstream branch",
        ],
        Kind::Conflict,
        code::GIT_NO_UPSTREAM,
        "give branch; for a push, set_upstream too",
    ),
    (
        &["not currently on a branch"],
        Kind::Conflict,
        code::GIT_NO_UPSTREAM,
        "check out a branch first",
    ),
    (
        &[
            "[rejected]",
            "[remote rejected]",
            "failed to push some refs",
        ],
        Kind::Conflict,
        code::GIT_PUSH_CONFLICT,
        "pull first, then push again; a server's own rule is told in details",
    ),
    (
        &["divergent branches", "Not possible to fast-forward"],
        Kind::Conflict,
        code::GIT_DIVERGED_CONFLICT,
        "say how: git config pull.rebase false (merge) or true (rebase), then pull again",
    ),
    (
        &[
            "would be overwritten by",
            "commit your changes or stash them",
            "uncommitted changes",
        ],
        Kind::Conflict,
        code::GIT_DIRTY_CONFLICT,
        "commit what changed, or put it away: git stash",
    ),
    (
        &[
            "CONFLICT (",
            "Automatic merge failed",
            "unmerged files",
            "have not concluded your merge",
            "could not apply",
            "you need to resolve your current index",
        ],
        Kind::Conflict,
        code::GIT_MERGE_CONFLICT,
        "edit the files with marks, add and commit them; or give up: git merge --abort",
    ),
    (
        &["already exists", "checked out at", "used by worktree"],
        Kind::Conflict,
        code::GIT_EXISTS_CONFLICT,
        "use another name; to delete the current branch, check out another first",
    ),
    (
        &["is not fully merged"],
        Kind::Conflict,
        code::GIT_UNMERGED_CONFLICT,
        "merge it first, or delete it with force",
    ),
    (
        &[
            ".lock': File exists",
            "cannot lock ref",
            "Another git process seems",
        ],
        Kind::Conflict,
        code::GIT_LOCKED_CONFLICT,
        "try again when the other git is done; if there is none, remove the lock file that is named",
    ),
    (
        &["did not match any files"],
        Kind::NotFound,
        code::GIT_PATH_NOT_FOUND,
        "give paths from the directory that path names",
    ),
    (
        &[
            "invalid reference",
            "did not match any file(s) known to git",
            "unknown revision",
            "not a valid object name",
            "' not found",
            "not a commit",
        ],
        Kind::NotFound,
        code::GIT_REF_NOT_FOUND,
        "see the branches: git branch --all",
    ),
    (
        &[
            "nothing to commit",
            "nothing added to commit",
            "no changes added to commit",
        ],
        Kind::Conflict,
        code::GIT_NOTHING_TO_COMMIT,
        "change something, or stage it with add_all or files",
    ),
    (
        &[
            "tell me who you are",
            "unable to auto-detect email",
            "empty ident name",
            "no email was given",
        ],
        Kind::Conflict,
        code::GIT_IDENTITY_UNKNOWN,
        "give author_name and author_email, or configure user.name and user.email",
    ),
    (
        &["not a valid branch name", "bad config variable"],
        Kind::Invalid,
        code::INVALID_REQUEST,
        "see git check-ref-format for what a name may be",
    ),
    (
        &[
            "Could not resolve host",
            "ailed to connect",
            "ouldn't connect",
            "onnection refused",
            "onnection timed out",
            "onnection reset",
            "onnection closed",
            "unreachable",
            "No route to host",
            "unable to access",
            "unable to connect",
            "early EOF",
            "hung up",
            "Could not read from remote repository",
        ],
        Kind::Conflict,
        code::GIT_REMOTE_UNREACHABLE,
        "check the address, and that the machine may reach it",
    ),
];

/// What a git that ended with an exit code other than 0 means.
pub(super) fn refused(what: &str, ended: &Ended, access: &Access) -> Error {
    let stdout = access.scrub(&lossy(last(&ended.stdout, MAX_DETAILS).to_vec()));
    if let Some(error) = untried(ended) {
        return error;
    }
    if ended.stderr.contains("cannot run ssh") {
        return unavailable("ssh");
    }
    let said = |line: &&str| !line.trim().is_empty() && !line.starts_with("remote: ");
    let text: Vec<&str> = ended
        .stderr
        .lines()
        .chain(stdout.lines())
        .filter(said)
        .collect();
    let means = |word: &&str| text.iter().any(|line| line.contains(word));
    let found = TABLE.iter().find(|(words, ..)| words.iter().any(&means));
    let (kind, code, action) = match found {
        Some(&(_, kind, code, action)) => (kind, code, Some(action)),
        None => (Kind::Conflict, code::GIT_FAILED, None),
    };
    let reason = reason(&text);
    let message = match reason.is_empty() {
        true => format!("{what} failed with exit code {}", ended.code),
        false => format!("{what}: {reason}"),
    };
    let whole = match ended.stderr.trim() {
        "" => stdout.trim().to_owned(),
        stderr => stderr.to_owned(),
    };
    let whole = lossy(last(whole.as_bytes(), MAX_DETAILS).to_vec());
    let error = Error::new(kind, code, message)
        .with_details(json!({"exit_code": ended.code, "output": whole}));
    match action {
        Some(action) => error.with_action(action),
        None => error,
    }
}

/// Why it did not come to git at all.
fn untried(ended: &Ended) -> Option<Error> {
    if ended.code != UNTRIED {
        return None;
    }
    let mut lines = ended.stderr.lines();
    let said = lines.find_map(|line| line.strip_prefix("nullspace: "))?;
    Some(match said {
        "key refused" => Error::invalid("auth.private_key: the machine's OpenSSH does not read it")
            .with_action("convert it: ssh-keygen -p -f KEY"),
        missing => unavailable(missing.strip_prefix("no ").unwrap_or("ssh")),
    })
}

/// The lines that say why, as one.
fn reason(lines: &[&str]) -> String {
    let is_reason = |line: &&&str| {
        ["fatal: ", "error: ", " ! [", "CONFLICT ", "ssh: "]
            .iter()
            .any(|start| line.starts_with(start))
            || line.contains("Permission denied (")
    };
    let mut found: Vec<&str> = lines.iter().filter(is_reason).copied().collect();
    if found.is_empty() {
        found.extend(lines.last());
    }
    let bare = |line: &str| {
        let line = line.trim();
        let line = ["fatal: ", "error: "]
            .iter()
            .find_map(|start| line.strip_prefix(start))
            .unwrap_or(line);
        line.trim_end_matches('.').to_owned()
    };
    let mut text = found.into_iter().map(bare).collect::<Vec<_>>().join("; ");
    let mut end = text.len().min(MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn last(bytes: &[u8], most: usize) -> &[u8] {
    &bytes[bytes.len().saturating_sub(most)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(stderr: &str) -> &'static str {
        let ended = Ended {
            code: 128,
            stdout: Vec::new(),
            stderr: stderr.to_owned(),
        };
        refused("git x", &ended, &Access::Own).code
    }

    #[test]
    fn a_remote_does_not_decide_what_its_refusal_means() {
        let lines = "remote: fatal: Authentication failed\nremote: nothing to commit\n ! [remote rejected] a -> a (hook)\n";
        assert_eq!(code_of(lines), code::GIT_PUSH_CONFLICT);
    }

    #[test]
    fn no_repository_here_and_none_there() {
        assert_eq!(
            code_of("fatal: not a git repository (or any of the parent directories): .git"),
            code::GIT_NOT_A_REPOSITORY
        );
        assert_eq!(
            code_of(
                "fatal: 'origin' does not appear to be a git repository\nfatal: Could not read from remote repository."
            ),
            code::GIT_REMOTE_NOT_FOUND
        );
    }

    #[test]
    fn what_is_not_known_is_told_as_it_is() {
        let ended = Ended {
            code: 128,
            stdout: Vec::new(),
            stderr: "Cloning\nfatal: the moon is full.\n".into(),
        };
        let error = refused("git clone", &ended, &Access::Own);
        assert_eq!(error.message, "git clone: the moon is full");
        assert_eq!(error.code, code::GIT_FAILED);
        let silent = Ended {
            stderr: String::new(),
            ..ended
        };
        let error = refused("git clone", &silent, &Access::Own);
        assert_eq!(error.message, "git clone failed with exit code 128");
    }
}

//! Git repositories in a machine.
//!
//! Codes that begin with `git_` say what git would not do; see [`crate::error::code`].

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// What a private repository is opened with. It is used for one operation, and kept nowhere.
#[derive(Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GitAuth {
    /// For `http://` and `https://`. Given to the host of the remote alone.
    Https {
        /// A user's name; for some services the token.
        username: String,
        /// A password or a token.
        password: String,
    },
    /// For `ssh://` and `user@host:path`.
    Ssh {
        /// A private key of OpenSSH, as text.
        private_key: String,
        /// What opens the key, if it is encrypted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        passphrase: Option<String>,
    },
}

/// [`GitAuth`] as it comes.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Given {
    Https {
        username: String,
        password: String,
    },
    Ssh {
        private_key: String,
        #[serde(default)]
        passphrase: Option<String>,
    },
}

impl<'de> Deserialize<'de> for GitAuth {
    /// The error says nothing of what was given: it could be the secret.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = serde_json::Value::deserialize(deserializer)?;
        match Given::deserialize(given) {
            Ok(Given::Https { username, password }) => Ok(Self::Https { username, password }),
            Ok(Given::Ssh {
                private_key,
                passphrase,
            }) => Ok(Self::Ssh {
                private_key,
                passphrase,
            }),
            Err(_) => Err(serde::de::Error::custom(
                "must be {kind: \"https\", username, password} or {kind: \"ssh\", private_key, passphrase?}, all text",
            )),
        }
    }
}

impl fmt::Debug for GitAuth {
    /// Without what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Https { .. } => "Https(…)",
            Self::Ssh { .. } => "Ssh(…)",
        })
    }
}

/// `POST /v1/machines/{id}/git/clone`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitCloneRequest {
    /// `https://`, `http://`, `ssh://`, `git://`, `file://`, `user@host:path`, or an absolute path in the machine.
    pub url: String,
    /// Absolute; must not exist or be empty. `/workspace` may hold the platform's own folder.
    pub path: String,
    /// A branch or tag; the remote's own choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Only so many commits of history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// For a private repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<GitAuth>,
}

/// Answer to [`GitCloneRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCloneResponse {
    /// Where the repository is.
    pub path: String,
}

/// Query of `GET …/git/status` and `GET …/git/branch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct GitQuery {
    /// The repository or a directory in it, absolute.
    pub path: String,
}

/// Query of `GET …/git/log`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct GitLogQuery {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// 50 when absent; 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Answer to `GET …/git/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitStatus {
    /// The current branch, also one without a commit yet; absent when a commit is checked out by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Whether a commit is checked out by itself.
    pub detached: bool,
    /// Whether nothing changed and nothing is untracked.
    pub clean: bool,
    /// Commits that the upstream branch lacks; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// Commits that only the upstream branch has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// What changed, in git's order.
    pub changed: Vec<GitChangedFile>,
}

/// One path that is not as the last commit has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitChangedFile {
    /// From the top of the repository; bytes that are no UTF-8 are replaced. A directory of untracked files ends with `/`.
    pub path: String,
    /// Git's two characters: of the index, of the work tree. `.` for unchanged, `??` for untracked.
    pub status: String,
    /// Whether the index differs from the commit.
    pub staged: bool,
    /// Whether the work tree differs from the index.
    pub unstaged: bool,
    /// What it was called before, of one that was renamed or copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_path: Option<String>,
}

/// Answer to `GET …/git/log`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitLog {
    /// None of a repository without a commit.
    pub commits: Vec<GitCommit>,
}

/// One commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCommit {
    /// Its whole name.
    pub sha: String,
    /// Who wrote it.
    pub author_name: String,
    /// Who wrote it.
    pub author_email: String,
    /// When it was written: ISO 8601 with its author's offset.
    pub date: String,
    /// The whole message, without the newline at its end.
    pub message: String,
}

/// Answer to `GET …/git/branch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitBranches {
    /// The current one, also one without a commit yet; absent when a commit is checked out by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// All local ones, by name.
    pub branches: Vec<String>,
}

/// What is done with a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GitBranchAction {
    /// Made from the current commit, and checked out.
    #[default]
    Create,
    /// Removed.
    Delete,
}

/// `POST …/git/branch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitBranchRequest {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// The branch.
    pub name: String,
    /// What to do with it.
    #[serde(default)]
    pub action: GitBranchAction,
    /// Delete it even when commits are lost with it.
    #[serde(default)]
    pub force: bool,
}

/// `POST …/git/checkout`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitCheckoutRequest {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// A branch, a tag or a commit.
    pub r#ref: String,
    /// Make the branch first, from the current commit.
    #[serde(default)]
    pub create: bool,
}

/// `POST …/git/add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitAddRequest {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// Git's patterns of files, from `path`; all changes when empty.
    #[serde(default)]
    pub files: Vec<String>,
}

/// `POST …/git/commit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitCommitRequest {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// At most 64 KiB.
    pub message: String,
    /// Stage all changes first.
    #[serde(default)]
    pub add_all: bool,
    /// Stage these first; what is staged already is committed too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
    /// Author and committer, with `author_email`; what the machine's git is configured with when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_name: Option<String>,
    /// With `author_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author_email: Option<String>,
}

/// Answer to [`GitCommitRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitCommitResponse {
    /// The new commit's name.
    pub sha: String,
}

/// `POST …/git/pull` and `POST …/git/push`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GitSyncRequest {
    /// The repository or a directory in it, absolute.
    pub path: String,
    /// The name of a remote.
    #[serde(default = "origin")]
    pub remote: String,
    /// A branch; what git is configured with when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Make what is pushed to the upstream (push only); without `branch` it is the current one.
    #[serde(default)]
    pub set_upstream: bool,
    /// For a private repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<GitAuth>,
}

fn origin() -> String {
    "origin".to_owned()
}

/// Answer to [`GitSyncRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitSyncResponse {
    /// What git said, as text.
    pub summary: String,
}

/// It was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitOk {
    /// True.
    pub ok: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_a_repository_does_not_show_itself() {
        let auth = [
            GitAuth::Https {
                username: "me".into(),
                password: "hunter2".into(),
            },
            GitAuth::Ssh {
                private_key: "hunter2".into(),
                passphrase: Some("hunter2".into()),
            },
        ];
        for auth in auth {
            let shown = format!("{auth:?}");
            assert!(
                !shown.contains("hunter2") && !shown.contains("me"),
                "{shown}"
            );
        }
    }

    #[test]
    fn the_published_bodies_are_understood() {
        let pull: GitSyncRequest = serde_json::from_str(
            r#"{"path": "/workspace", "auth": {"kind": "ssh", "private_key": "k"}}"#,
        )
        .expect("a pull");
        assert_eq!(pull.remote, "origin");
        let branch: GitBranchRequest =
            serde_json::from_str(r#"{"path": "/w", "name": "b"}"#).expect("a branch");
        assert_eq!(branch.action, GitBranchAction::Create);
        let wrong = r#"{"path": "/w", "auth": {"kind": "https", "username": "u", "password": "p", "x": 1}}"#;
        assert!(serde_json::from_str::<GitSyncRequest>(wrong).is_err());
        for wrong in [
            r#"{"path": "/w", "auth": "hunter2"}"#,
            r#"{"path": "/w", "auth": {"kind": "hunter2"}}"#,
            r#"{"path": "/w", "auth": {"kind": "https", "username": "u", "password": ["hunter2"]}}"#,
        ] {
            let error = serde_json::from_str::<GitSyncRequest>(wrong).expect_err("no auth");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}

//! Searching and replacing in files. The names are the published clients': `find` looks into files, `search` at their
//! names.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `POST …/files/find` and `/search`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// A directory; everything beneath it is looked at. For `find` also one file.
    pub path: String,
    /// For `find` a regular expression that a line matches somewhere (Rust's syntax: no look-around, no
    /// back-references). For `search` a glob: `*` and `?` stop at `/`, `**` does not, `[a-z]` and `{a,b}` are known. A
    /// glob with a `/` is held against the path below `path` (against the whole path if it begins with one), any other
    /// against the name alone.
    pub pattern: String,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One line that matches. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchMatch {
    /// Absolute path of the file.
    pub file: String,
    /// Counted from 1.
    pub line: u64,
    /// The line, without its end; cut after 8 KiB. What is no UTF-8 is replaced.
    pub content: String,
}

/// `POST …/files/replace`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRequest {
    /// Which files; at most 10,000, each at most 64 MiB.
    pub files: Vec<String>,
    /// A regular expression; `^` and `$` are the ends of lines.
    pub pattern: String,
    /// What comes in its place: `$1` and `${name}` are groups, `$$` is a dollar sign.
    pub replacement: String,
    /// Count only.
    #[serde(default)]
    pub dry_run: bool,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What was replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplaceResponse {
    /// As asked for.
    pub dry_run: bool,
    /// Matches in all files.
    pub replacements: u64,
    /// Files with a match.
    pub files_modified: u64,
    /// Files without one.
    pub files_skipped: u64,
    /// Files that hold a NUL byte; they are left as they are.
    pub binary_files_skipped: u64,
}

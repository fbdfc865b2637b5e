//! Bodies of searching and replacing in files: `POST /files/find`, `/files/search`, `/files/replace`.

use serde::{Deserialize, Serialize};

/// What to look for beneath a path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchRequest {
    /// A directory, or for contents also one file.
    pub path: String,
    /// A regular expression (contents) or a glob (names).
    pub pattern: String,
    /// Act as this user of the machine; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute paths that are left out with everything beneath them.
    #[serde(default)]
    pub except: Vec<String>,
}

/// One line that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchMatch {
    /// Absolute path of the file.
    pub file: String,
    /// Counted from 1.
    pub line: u64,
    /// The line without its end; what is no UTF-8 is replaced, and a long line is cut.
    pub content: String,
}

/// Replace in these files whatever matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceRequest {
    /// Which.
    pub files: Vec<String>,
    /// A regular expression; `^` and `$` are the ends of lines.
    pub pattern: String,
    /// `$1` and `${name}` are groups, `$$` is a dollar sign.
    pub replacement: String,
    /// Count only.
    #[serde(default)]
    pub dry_run: bool,
    /// Act as this user of the machine; root when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// What was replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Matches in all files.
    pub replacements: u64,
    /// Files with a match.
    pub files_modified: u64,
    /// Files without one.
    pub files_skipped: u64,
    /// Files that hold a NUL byte; they are left as they are.
    pub binary_files_skipped: u64,
}

//! Uploads in parts: a staged file beside its target takes the parts, in any order, and is published whole.
//!
//! ```text
//!  POST /uploads/stage ──▶ PUT /uploads/part (each, any order, any number of times) ──▶ POST /uploads/publish
//!                                                                                 └──▶ POST /uploads/discard
//! ```
//! The guest keeps no record of them: the host names the staged file every time.

use serde::{Deserialize, Serialize};

/// Make room for an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRequest {
    /// Names the staged file; letters, digits and `_`.
    pub name: String,
    /// Where it goes in the end.
    pub target: Target,
    /// All its bytes. They are reserved.
    pub length: u64,
}

/// Where an upload goes and what becomes of what is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Absolute, or relative to the machine's default directory (or the user's home).
    pub path: String,
    /// Act as this user of the machine; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// What comes.
    pub kind: UploadKind,
    /// What becomes of what is there.
    pub conflict: Conflict,
}

/// What is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadKind {
    /// One file.
    File,
    /// A directory as an uncompressed tar.
    DirectoryTar,
}

/// What becomes of what is at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// A file is replaced; a directory keeps what is not in the archive.
    Merge,
    /// It is swapped for what comes.
    Replace,
    /// It stays, and the upload is refused.
    Error,
}

/// Where the parts go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// The staged file, absolute.
    pub staging: String,
    /// The target, absolute.
    pub target: String,
}

/// Query of `PUT /uploads/part`; the body is the part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartQuery {
    /// From [`Staged`].
    pub staging: String,
    /// Act as this user.
    #[serde(default)]
    pub user: Option<String>,
    /// Where in the file it begins.
    pub offset: u64,
    /// Its bytes; not one more is written.
    pub length: u64,
}

/// Check what was staged and put it in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// From [`Staged`].
    pub staging: String,
    /// As it was staged.
    pub target: Target,
    /// All its bytes.
    pub length: u64,
    /// SHA-256 of all bytes, lower-case hex; not checked when absent.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// What is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Bytes of the files.
    pub bytes: u64,
    /// Files and links.
    pub files: u64,
}

/// What came of a publish. A refusal is an answer: the host decides what it means to its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublishOutcome {
    /// It is in its place.
    Published(Published),
    /// Nothing was changed.
    Refused {
        /// Why, for programs.
        reason: RefusedReason,
        /// Why, for people.
        message: String,
        /// The entry of the archive or the path that it is about.
        path: Option<String>,
    },
}

/// Why a staged upload was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedReason {
    /// The bytes are not those that were announced.
    WholeChecksumMismatch,
    /// Something is at the target that may not be replaced.
    TargetConflict,
    /// An entry's name is absolute, leads out, or is there twice.
    DirectoryExtractInvalidPath,
    /// A link leads out of the directory.
    DirectoryExtractInvalidSymlink,
    /// An entry is no file, directory or symbolic link; or the archive is none.
    DirectoryExtractUnsupportedEntry,
}

/// Forget a staged upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiscardRequest {
    /// From [`Staged`].
    pub staging: String,
}

//! Files of a machine.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::upload::ArchiveFormat;

/// One file system object. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// Last path segment.
    pub name: String,
    /// Absolute.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Bytes; 0 for everything but files.
    pub size: u64,
    /// `file`, `dir`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Permission bits: `"0644"`.
    pub mode: String,
    /// The same.
    pub permissions: String,
    /// Owner's name.
    pub owner: String,
    /// Group's name.
    pub group: String,
    /// RFC 3339.
    pub modified_time: String,
    /// Where a link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// How file contents travel in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// As text.
    #[default]
    #[serde(alias = "utf-8")]
    Utf8,
    /// Any bytes.
    Base64,
}

/// Query of `GET …/files`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListFilesQuery {
    /// The directory; `/` when absent.
    pub path: Option<String>,
    /// Levels; direct children when absent.
    pub depth: Option<u32>,
    /// Act as this user of the machine.
    pub user: Option<String>,
}

/// Query of `…/file`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// Which file; needed unless there is a `grant`.
    pub path: Option<String>,
    /// Act as this user of the machine.
    pub user: Option<String>,
    /// `tar`: a directory as an uncompressed tar of names relative to it.
    pub archive_format: Option<ArchiveFormat>,
    /// The token of a signed URL. It says which path, and stands in for an API key.
    pub grant: Option<String>,
}

/// `POST …/files/download-url`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DownloadUrlRequest {
    /// A file, or with `archive_format` a directory.
    pub path: String,
    /// `tar`, for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<ArchiveFormat>,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A URL that works for an hour without an API key, for one path. Published clients refuse any other field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedUrlResponse {
    /// Absolute.
    pub url: String,
    /// The token that is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// `POST …/files/exists`, `/info`, `/mkdir`, `/remove`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRequest {
    /// Which.
    pub path: String,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `POST …/files/read`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadFileRequest {
    /// Which.
    pub path: String,
    /// Text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Answer to [`ReadFileRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReadFileResponse {
    /// In the encoding asked for.
    pub content: String,
    /// The encoding asked for.
    pub encoding: Encoding,
    /// Bytes of the file.
    pub size: u64,
}

/// `POST …/files/write`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteFileRequest {
    /// Which; parents are made.
    pub path: String,
    /// In `encoding`.
    pub content: String,
    /// Text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `POST …/files/rename`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameFileRequest {
    /// From.
    pub old_path: String,
    /// To.
    pub new_path: String,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `POST …/files/permissions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PermissionsRequest {
    /// Which.
    pub path: String,
    /// Octal digits: `"0755"`.
    pub permissions: String,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Answer to `POST …/files/exists`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExistsResponse {
    /// Whether there is something at the path.
    pub exists: bool,
}

/// The `manifest` part of `POST …/files/batch-write`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchManifest {
    /// What is written, in this order.
    pub files: Vec<BatchFile>,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One file of a [`BatchManifest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchFile {
    /// Where it goes.
    pub path: String,
    /// The part that holds its bytes.
    pub field: String,
}

/// Answer to a batch write; in the manifest's order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchResponse {
    /// One for each file.
    pub results: Vec<BatchResult>,
}

/// What became of one file of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // A list of these is nearly all successes.
pub enum BatchResult {
    /// It is there.
    Success {
        /// As the manifest says it.
        path: String,
        /// What is there now.
        info: FileInfo,
    },
    /// It is not.
    Error {
        /// As the manifest says it.
        path: String,
        /// Why.
        error: String,
    },
}

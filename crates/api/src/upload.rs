//! Uploads in parts, for files and directories of any size.
//!
//! ```text
//!  POST …/uploads ──▶ PUT …/uploads/{id}/parts/{n} (any order, several at once, again after an error)
//!                         └──▶ POST …/uploads/{id}/complete          GET …/uploads/{id}: where it stands
//!                                                                    DELETE …/uploads/{id}: give it up
//! ```
//! A part that was acknowledged stays, whatever happens to the client, the connection or the server. The target changes
//! at completion alone, at once.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Header of `GET …/uploads/{id}`: the parts that are there, as `0-11,13`; perhaps not all of them. The body has no room for
/// it: published clients refuse any field that they do not know.
pub const PARTS_HEADER: &str = "x-nullspace-upload-parts";

/// What is uploaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadKind {
    /// One file.
    File,
    /// A directory as an uncompressed tar of directories, files and symbolic links that stay inside.
    DirectoryTar,
}

/// What the client reads it from; the server only tells it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A file that can be read again.
    RestartableFile,
    /// A stream that was put on disk first.
    SpooledStream,
    /// A directory, as a tar.
    DirectoryArchive,
}

/// What becomes of what is at the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// A file is replaced; a directory keeps what is not in the archive.
    #[default]
    Merge,
    /// It is swapped for what comes.
    Replace,
    /// It stays, and the upload is refused.
    Error,
}

/// The only checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChecksumAlgorithm {
    /// SHA-256, in lower-case hex.
    #[default]
    Sha256,
}

/// The only archive format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFormat {
    /// Uncompressed.
    #[default]
    Tar,
}

/// Where an upload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadStatus {
    /// No part is there.
    Created,
    /// Some parts are there.
    Uploading,
    /// All parts are there.
    Staged,
    /// It is being put in its place.
    Completing,
    /// It is in its place.
    Completed,
    /// It was given up.
    Aborted,
    /// Nobody completed it in time.
    Expired,
    /// It cannot be completed: its bytes or its archive were wrong.
    Failed,
}

impl UploadStatus {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Uploading => "uploading",
            Self::Staged => "staged",
            Self::Completing => "completing",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// From how it is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Created,
            Self::Uploading,
            Self::Staged,
            Self::Completing,
            Self::Completed,
            Self::Aborted,
            Self::Expired,
            Self::Failed,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}

/// `POST …/uploads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUploadRequest {
    /// What comes.
    pub kind: UploadKind,
    /// What it is read from.
    pub source_kind: SourceKind,
    /// Where it goes: absolute, or relative to the machine's working directory (or the user's home).
    pub target_path: String,
    /// All its bytes; at most 64 GiB.
    pub content_length: u64,
    /// `merge` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
    /// `tar`, for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<ArchiveFormat>,
    /// `sha256` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum_algorithm: Option<ChecksumAlgorithm>,
    /// SHA-256 of all bytes; here or at completion, or not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
    /// Taken and not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
    /// Act as this user of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Where an upload stands. Published clients refuse any other field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadSession {
    /// Its id.
    pub upload_id: String,
    /// What comes.
    pub kind: UploadKind,
    /// What it is read from.
    pub source_kind: SourceKind,
    /// Absolute.
    pub target_path: String,
    /// All its bytes.
    pub content_length: u64,
    /// Bytes of the parts that are there.
    pub accepted_bytes: u64,
    /// Bytes that are kept free for it in the machine.
    pub reserved_staging_bytes: u64,
    /// Bytes of each part but the last.
    pub part_size: u64,
    /// How many; 0 for nothing.
    pub part_count: u32,
    /// The lowest that is missing; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_part: Option<u32>,
    /// How many may be on the way at once.
    pub max_concurrency: u32,
    /// Where it stands.
    pub status: UploadStatus,
    /// What becomes of what is at the target.
    pub conflict: Conflict,
    /// `tar`, for a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<ArchiveFormat>,
    /// `sha256`.
    pub checksum_algorithm: ChecksumAlgorithm,
    /// As announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
    /// The user of the machine that it is made as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What is allowed.
    pub limits: UploadLimits,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadLimits {
    /// Bytes of one upload.
    pub max_upload_bytes: u64,
    /// Bytes of one part.
    pub max_part_bytes: u64,
    /// Parts on the way at once.
    pub max_concurrency: u32,
    /// Bytes of all uploads of a machine that are not over, under `/v1/machines`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_staging_quota_bytes: Option<u64>,
    /// The same under `/v1/sandboxes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_staging_quota_bytes: Option<u64>,
    /// The same of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging_quota_bytes: Option<u64>,
}

/// Answer to [`CreateUploadRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateUploadResponse {
    /// The upload.
    pub session: UploadSession,
}

/// `POST …/uploads/{id}/complete`; may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteUploadRequest {
    /// SHA-256 of all bytes, in lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
}

/// Answer to [`CompleteUploadRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompleteUploadResponse {
    /// The upload.
    pub session: UploadSession,
    /// Bytes of the files.
    pub published_bytes: u64,
    /// Files and links.
    pub published_file_count: u64,
}

/// Why an upload was refused: `error_detail` of an error with the code `file_upload_error`. Published clients refuse any
/// other field and any other reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadFailure {
    /// For programs.
    pub reason: UploadFailureReason,
    /// For people.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Which upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_id: Option<String>,
    /// Names this request in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The path that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The part that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_number: Option<u32>,
}

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadFailureReason {
    /// No room in the machine, or over the quota of unfinished uploads.
    InsufficientStagingSpace,
    /// Over the largest upload.
    SizeLimitExceeded,
    /// The part's bytes are not those that were announced.
    InvalidPartChecksum,
    /// All bytes together are not those that were announced.
    WholeChecksumMismatch,
    /// There is no such part.
    PartOutOfRange,
    /// The part has too many or too few bytes.
    PartSizeMismatch,
    /// Not all parts are there.
    MissingParts,
    /// It was given up.
    UploadAborted,
    /// It was not completed in time.
    UploadExpired,
    /// It is in its place already.
    UploadAlreadyCompleted,
    /// Something is at the target that may not be replaced.
    TargetConflict,
    /// An entry of the archive is absolute, leads out, is reserved or there twice.
    DirectoryExtractInvalidPath,
    /// A link of the archive leads out.
    DirectoryExtractInvalidSymlink,
    /// An entry of the archive is no file, directory or symbolic link.
    DirectoryExtractUnsupportedEntry,
}

//! Uploads in parts.
//!
//! ```text
//!  created ──▶ uploading ──▶ staged ──▶ completing ──▶ completed
//!     └───────────┴────────────┴───▶ aborted, expired     └──▶ staged (it may be tried again) or failed
//! ```
//! The record says which parts are there; their bytes are in a file of the machine, beside the target. A part counts once
//! its bytes are in that file and their checksum was right. The target changes at completion alone, by a rename.

mod part;

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use nullspace_api::{
    error::code,
    id, time,
    upload::{
        ArchiveFormat, ChecksumAlgorithm, CompleteUploadResponse, Conflict, CreateUploadRequest,
        SourceKind, UploadFailure, UploadFailureReason as Reason, UploadKind, UploadLimits,
        UploadSession, UploadStatus as Status,
    },
};
use nullspace_protocol::{
    self as protocol, DiscardRequest, ErrorKind, PublishOutcome, PublishRequest, Published,
    RefusedReason, StageRequest,
};
use nullspace_store::{
    idempotency::{self, Claim},
    upload::{self as rows, UploadRow},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::RwLock;

pub use part::{Part, put_part};

use super::{
    App, AppState, agent,
    file::{Files, file_error},
    machine, volume,
};
use crate::error::{Error, Kind, Result};

/// The largest upload.
const MAX_UPLOAD: u64 = 64 << 30;
/// Bytes of a part, unless that made too many.
const PART: u64 = 8 << 20;
/// The most parts.
const MAX_PARTS: u64 = 4096;
/// Parts on the way at once. More do not make it faster: the machine has one disk.
const MAX_CONCURRENCY: u32 = 4;
/// Bytes of all uploads of one machine that are not over.
const STAGING_QUOTA: u64 = 64 << 30;
/// Uploads of one machine that are not over.
const MAX_OPEN: u64 = 64;
/// Stretches of parts that a client is told.
const MAX_RANGES: usize = 256;
/// How long an upload may take, in microseconds: a day.
const LIFETIME: i64 = 24 * 3600 * 1_000_000;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// What is under way. Parts of one upload share its gate; completing and giving up have it alone.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    gates: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    parts: Mutex<HashMap<(String, u32), Lock>>,
}

impl Uploads {
    fn gate(&self, id: &str) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        gates.entry(id.to_owned()).or_default().clone()
    }

    fn part(&self, id: &str, part: u32) -> Lock {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.retain(|_, part| Arc::strong_count(part) > 1);
        parts.entry((id.to_owned(), part)).or_default().clone()
    }
}

/// Begins an upload.
///
/// # Errors
/// Those of [`Files::open`]; `invalid_request`, `permission_denied`, `idempotency_conflict`, `capacity_exceeded`;
/// `file_upload_error` with `size_limit_exceeded`, `insufficient_staging_space` or `target_conflict`.
pub async fn create(
    app: &AppState,
    machine_id: &str,
    request: CreateUploadRequest,
    claim: Option<Claim>,
) -> Result<UploadSession> {
    let files = Files::open(app, machine_id, request.user.clone()).await?;
    files.require_workspace("uploads in parts")?;
    let row = plan(machine_id, &files, &request)?;
    let room = files.make_room(row.content_length).await;
    drop(room.map_err(|error| over_quota(error, None))?);
    let (id, replay) = record(app, row.clone(), claim).await?;
    // An earlier request may have been cut off before the machine had the file.
    let row = match replay {
        true => find(app, machine_id, &id).await?,
        false => row,
    };
    if row.staging.is_some() || status(&row) != Status::Created {
        return Ok(session(&row));
    }
    match stage(&files, &row).await {
        Ok(staged) => {
            let upload = id.clone();
            app.store
                .write(move |tx| rows::staged(tx, &upload, &staged.staging, &staged.target))
                .await?;
        }
        Err(error) => {
            let upload = id.clone();
            app.store
                .write(move |tx| {
                    idempotency::release(tx, &upload)?;
                    rows::remove(tx, &upload)
                })
                .await?;
            return Err(error);
        }
    }
    Ok(session(&find(app, machine_id, &id).await?))
}

fn plan(machine_id: &str, files: &Files, request: &CreateUploadRequest) -> Result<UploadRow> {
    let length = request.content_length;
    if length > MAX_UPLOAD {
        let message = format!("content_length: an upload has at most {MAX_UPLOAD} bytes");
        return Err(refused(Reason::SizeLimitExceeded, message, None));
    }
    let target_path = files.check(request.target_path.clone())?;
    match (request.kind, request.archive_format) {
        (UploadKind::DirectoryTar, None) => {
            return Err(Error::invalid(
                "archive_format: must be tar for a directory",
            ));
        }
        (UploadKind::File, Some(_)) => {
            return Err(Error::invalid("archive_format: a file has none"));
        }
        _ => {}
    }
    let whole_sha256 = request.whole_checksum_sha256.as_deref();
    let whole_sha256 = whole_sha256
        .map(|sum| digest("whole_checksum_sha256", sum))
        .transpose()?;
    // Whole MiB, as few parts as allowed.
    let part_size = length
        .div_ceil(MAX_PARTS)
        .next_multiple_of(1 << 20)
        .max(PART);
    let part_count = u32::try_from(length.div_ceil(part_size)).unwrap_or(u32::MAX);
    let now = time::now();
    let status = match part_count {
        // Of nothing everything is there.
        0 => Status::Staged,
        _ => Status::Created,
    };
    Ok(UploadRow {
        id: id::new(id::UPLOAD),
        machine_id: machine_id.to_owned(),
        user: files.user.clone(),
        kind: word(&request.kind),
        source_kind: word(&request.source_kind),
        target_path,
        content_length: length,
        part_size,
        part_count,
        conflict: word(&request.conflict.unwrap_or_default()),
        whole_sha256,
        status: status.as_str().to_owned(),
        created_at: now,
        updated_at: now,
        expires_at: now + LIFETIME,
        ..UploadRow::default()
    })
}

/// A checksum as it is written: 64 lower-case hex digits.
fn digest(field: &str, text: &str) -> Result<String> {
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(is_hex) {
        return Ok(text.to_owned());
    }
    Err(Error::invalid(format!(
        "{field}: must be a SHA-256 in lower-case hex"
    )))
}

/// Records an upload, or finds the one that an earlier request recorded.
async fn record(app: &App, row: UploadRow, claim: Option<Claim>) -> Result<(String, bool)> {
    app.store
        .write(move |tx| {
            if let Some(earlier) = agent::claim(tx, claim.as_ref(), &row.id, row.created_at)? {
                return Ok((earlier, true));
            }
            let (open, bytes) = rows::open_of(tx, &row.machine_id)?;
            if open >= MAX_OPEN {
                return Err(Error::new(
                    Kind::Limit,
                    code::CAPACITY_EXCEEDED,
                    format!("the machine has {MAX_OPEN} uploads under way"),
                )
                .with_action("complete them, or give them up with DELETE …/uploads/{id}"));
            }
            if bytes + row.content_length > STAGING_QUOTA {
                let message = format!(
                    "the machine's uploads have {bytes} bytes already, of at most {STAGING_QUOTA}"
                );
                return Err(refused(Reason::InsufficientStagingSpace, message, None));
            }
            rows::insert(tx, &row)?;
            Ok((row.id, false))
        })
        .await
}

async fn stage(files: &Files, row: &UploadRow) -> Result<protocol::Staged> {
    let request = StageRequest {
        name: row.id.clone(),
        target: target(row),
        length: row.content_length,
    };
    match files.guest.stage_upload(&request).await {
        Ok(staged) => Ok(staged),
        Err(error) => Err(match error.kind() {
            Some(ErrorKind::NoSpace) => {
                refused(Reason::InsufficientStagingSpace, error.to_string(), None)
            }
            Some(ErrorKind::Exists) => refused(Reason::TargetConflict, error.to_string(), None),
            _ => file_error(error),
        }),
    }
}

fn target(row: &UploadRow) -> protocol::Target {
    protocol::Target {
        path: row.target_path.clone(),
        user: row.user.clone(),
        kind: match parse(&row.kind) {
            Some(UploadKind::DirectoryTar) => protocol::UploadKind::DirectoryTar,
            _ => protocol::UploadKind::File,
        },
        conflict: match parse(&row.conflict) {
            Some(Conflict::Replace) => protocol::Conflict::Replace,
            Some(Conflict::Error) => protocol::Conflict::Error,
            _ => protocol::Conflict::Merge,
        },
    }
}

/// The parts that are there, as [`nullspace_api::upload::PARTS_HEADER`] says them.
///
/// # Errors
/// Those of the store.
pub async fn parts(app: &App, id: String) -> Result<String> {
    let parts = app.store.read(move |db| rows::parts(db, &id)).await?;
    let mut text = String::new();
    // Each is at most ten characters; a client sends again what is not told.
    for range in parts.chunk_by(|a, b| a + 1 == *b).take(MAX_RANGES) {
        let (first, last) = (range[0], range[range.len() - 1]);
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{first}-{last}");
    }
    Ok(text)
}

/// Where an upload stands.
///
/// # Errors
/// `not_found`, `machine_not_found`.
pub async fn get(app: &App, machine_id: &str, id: &str) -> Result<UploadSession> {
    Ok(session(&find(app, machine_id, id).await?))
}

async fn find(app: &App, machine_id: &str, id: &str) -> Result<UploadRow> {
    let (machine_id, upload) = (machine_id.to_owned(), id.to_owned());
    let found = {
        let machine_id = machine_id.clone();
        app.store
            .read(move |db| rows::get(db, &machine_id, &upload))
            .await?
    };
    match found {
        Some(row) => Ok(row),
        None => {
            let whose = match is_volume(&machine_id) {
                true => volume::get(app, &machine_id).await.map(|_| "volume")?,
                false => machine::get(app, &machine_id).await.map(|_| "machine")?,
            };
            Err(Error::not_found(
                code::NOT_FOUND,
                format!("no upload {id} in this {whose}"),
            ))
        }
    }
}

fn status(row: &UploadRow) -> Status {
    Status::parse(&row.status).unwrap_or(Status::Failed)
}

fn is_volume(id: &str) -> bool {
    id.starts_with(id::VOLUME)
}

/// Refuses what an upload that is over cannot do any more.
fn check_open(row: &UploadRow) -> Result<()> {
    let id = &row.id;
    let (reason, message) = match status(row) {
        Status::Created | Status::Uploading | Status::Staged | Status::Completing => return Ok(()),
        Status::Completed => (Reason::UploadAlreadyCompleted, "was completed already"),
        Status::Aborted => (Reason::UploadAborted, "was given up"),
        Status::Expired => (Reason::UploadExpired, "was not completed in time"),
        Status::Failed => (Reason::UploadAborted, "failed and cannot go on"),
    };
    Err(refused(reason, format!("upload {id} {message}"), Some(id)))
}

/// Checks everything and puts it in its place. Asked again it answers the same.
///
/// # Errors
/// `not_found`, those of [`Files::open`], `permission_denied`; `file_upload_error` with `missing_parts`,
/// `whole_checksum_mismatch`, `target_conflict`, `insufficient_staging_space`, or one of the archive's reasons.
pub async fn complete(
    app: &AppState,
    machine_id: &str,
    id: &str,
    sha256: Option<String>,
) -> Result<CompleteUploadResponse> {
    let sha256 = sha256
        .map(|sum| digest("whole_checksum_sha256", &sum))
        .transpose()?;
    let (app, machine_id, id) = (app.clone(), machine_id.to_owned(), id.to_owned());
    let tracker = app.tasks.clone();
    // Not dropped with a client that goes away: what was begun is recorded.
    let done = tracker.spawn(async move {
        let gate = app.uploads.gate(&id);
        let _alone = gate.write().await;
        let row = find(&app, &machine_id, &id).await?;
        if status(&row) == Status::Completed {
            return Ok(completed(&row));
        }
        check_open(&row)?;
        publish(&app, &row, sha256).await?;
        Ok(completed(&find(&app, &machine_id, &id).await?))
    });
    done.await
        .unwrap_or_else(|error| Err(Error::internal(format!("completing an upload: {error}"))))
}

fn completed(row: &UploadRow) -> CompleteUploadResponse {
    CompleteUploadResponse {
        session: session(row),
        published_bytes: row.published_bytes.unwrap_or_default(),
        published_file_count: row.published_files.unwrap_or_default(),
    }
}

async fn publish(app: &App, row: &UploadRow, sha256: Option<String>) -> Result<()> {
    let id = &row.id;
    if row.next_part < row.part_count {
        let message = format!(
            "part {} of {} is missing, and maybe others",
            row.next_part, row.part_count
        );
        return Err(refused(Reason::MissingParts, message, Some(id)));
    }
    let sha256 = match (&row.whole_sha256, sha256) {
        (Some(announced), Some(now)) if *announced != now => {
            let message = format!("the upload was begun with the SHA-256 {announced}, not {now}");
            return Err(refused(Reason::WholeChecksumMismatch, message, Some(id)));
        }
        (announced, now) => now.or_else(|| announced.clone()),
    };
    let files = Files::open(app, &row.machine_id, row.user.clone()).await?;
    let staging = match &row.staging {
        Some(staging) => staging.clone(),
        None => stage(&files, row).await?.staging,
    };
    // An archive is unpacked beside its bytes.
    let bytes = match parse(&row.kind) {
        Some(UploadKind::DirectoryTar) => row.content_length,
        _ => 0,
    };
    let _alone = (files.make_room(bytes).await).map_err(|error| over_quota(error, Some(id)))?;
    set_status(app, id, Status::Completing).await?;
    let request = PublishRequest {
        staging,
        target: target(row),
        length: row.content_length,
        sha256,
    };
    let outcome = files.guest.publish_upload(&request).await;
    let published = match outcome {
        Ok(PublishOutcome::Published(published)) => published,
        Ok(PublishOutcome::Refused {
            reason,
            message,
            path,
        }) => {
            let (reason, next) = meaning(reason);
            set_status(app, id, next).await?;
            if next == Status::Failed {
                clear(app, row).await?;
            }
            return Err(refusal(reason, message, Some(id), path, None));
        }
        // It was put in its place before this server, or the one before it, could write that down.
        Err(error)
            if error.kind() == Some(ErrorKind::NotFound)
                && status(row) == Status::Completing
                && parse(&row.kind) == Some(UploadKind::File) =>
        {
            Published {
                bytes: row.content_length,
                files: 1,
            }
        }
        Err(error) => {
            // It may be tried again.
            set_status(app, id, Status::Staged).await?;
            return Err(match error.kind() {
                Some(ErrorKind::NoSpace) => refused(
                    Reason::InsufficientStagingSpace,
                    error.to_string(),
                    Some(id),
                ),
                _ => file_error(error),
            });
        }
    };
    let id = id.clone();
    app.store
        .write(move |tx| rows::completed(tx, &id, published.bytes, published.files, time::now()))
        .await?;
    Ok(())
}

/// What the guest's reason is called, and what becomes of the upload.
fn meaning(reason: RefusedReason) -> (Reason, Status) {
    match reason {
        RefusedReason::WholeChecksumMismatch => (Reason::WholeChecksumMismatch, Status::Failed),
        // What is in the way can be removed.
        RefusedReason::TargetConflict => (Reason::TargetConflict, Status::Staged),
        RefusedReason::DirectoryExtractInvalidPath => {
            (Reason::DirectoryExtractInvalidPath, Status::Failed)
        }
        RefusedReason::DirectoryExtractInvalidSymlink => {
            (Reason::DirectoryExtractInvalidSymlink, Status::Failed)
        }
        RefusedReason::DirectoryExtractUnsupportedEntry => {
            (Reason::DirectoryExtractUnsupportedEntry, Status::Failed)
        }
    }
}

async fn set_status(app: &App, id: &str, status: Status) -> Result<()> {
    let id = id.to_owned();
    app.store
        .write(move |tx| rows::set_status(tx, &id, status.as_str(), time::now()).map(drop))
        .await?;
    Ok(())
}

/// Gives an upload up. One that is over already stays as it is.
///
/// # Errors
/// `not_found`; `file_upload_error` with `upload_already_completed`.
pub async fn abort(app: &App, machine_id: &str, id: &str) -> Result<()> {
    let gate = app.uploads.gate(id);
    let _alone = gate.write().await;
    let row = find(app, machine_id, id).await?;
    if status(&row) == Status::Completed {
        return check_open(&row);
    }
    set_status(app, id, Status::Aborted).await?;
    clear(app, &row).await
}

/// Removes the staged file of an upload that is over. What fails now is done by [`sweep`].
async fn clear(app: &App, row: &UploadRow) -> Result<()> {
    let gone = match Files::open(app, &row.machine_id, None).await {
        Ok(files) => {
            let staging = match &row.staging {
                Some(staging) => Some(staging.clone()),
                // Whether the machine ever had the file is not known: it says which one it would be.
                None => {
                    let nothing = UploadRow {
                        content_length: 0,
                        ..row.clone()
                    };
                    stage(&files, &nothing).await.ok().map(|at| at.staging)
                }
            };
            match staging {
                Some(staging) => {
                    let request = DiscardRequest { staging };
                    files.guest.discard_upload(&request).await.is_ok()
                }
                None => true,
            }
        }
        // Gone with its volume.
        Err(error) if is_volume(&row.machine_id) => error.code == code::NOT_FOUND,
        // Gone with its machine, unless that only sleeps.
        Err(error) => {
            error.code == code::MACHINE_NOT_FOUND || {
                let machine = machine::get(app, &row.machine_id).await;
                machine.is_ok_and(|machine| machine.ended_at.is_some())
            }
        }
    };
    if gone {
        let id = row.id.clone();
        app.store.write(move |tx| rows::cleared(tx, &id)).await?;
    }
    Ok(())
}

/// Gives up what nobody completed in time, and removes what is left of uploads that are over. Called now and then.
///
/// # Errors
/// When the record cannot be written.
pub async fn sweep(app: &App) -> Result<()> {
    let now = time::now();
    app.store
        .write(move |tx| {
            rows::expire(tx, now)?;
            rows::forget_before(tx, now - LIFETIME)
        })
        .await?;
    for row in app.store.read(rows::left).await? {
        clear(app, &row).await?;
    }
    Ok(())
}

/// An upload as the wire shows it; the spelling of the quota is the edge's.
fn session(row: &UploadRow) -> UploadSession {
    let kind = parse(&row.kind).unwrap_or(UploadKind::File);
    let is_open = check_open(row).is_ok();
    UploadSession {
        upload_id: row.id.clone(),
        kind,
        source_kind: parse(&row.source_kind).unwrap_or(SourceKind::RestartableFile),
        target_path: row.target_path.clone(),
        content_length: row.content_length,
        accepted_bytes: row.accepted_bytes,
        reserved_staging_bytes: if is_open { row.content_length } else { 0 },
        part_size: row.part_size,
        part_count: row.part_count,
        next_part: (row.next_part < row.part_count).then_some(row.next_part),
        max_concurrency: MAX_CONCURRENCY,
        status: status(row),
        conflict: parse(&row.conflict).unwrap_or_default(),
        archive_format: (kind == UploadKind::DirectoryTar).then_some(ArchiveFormat::Tar),
        checksum_algorithm: ChecksumAlgorithm::Sha256,
        whole_checksum_sha256: row.whole_sha256.clone(),
        user: row.user.clone(),
        limits: UploadLimits {
            max_upload_bytes: MAX_UPLOAD,
            max_part_bytes: row.part_size,
            max_concurrency: MAX_CONCURRENCY,
            machine_staging_quota_bytes: (!is_volume(&row.machine_id)).then_some(STAGING_QUOTA),
            sandbox_staging_quota_bytes: None,
            staging_quota_bytes: is_volume(&row.machine_id).then_some(STAGING_QUOTA),
        },
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        expires_at: time::rfc3339(row.expires_at),
    }
}

/// A volume that has no room for an upload, in the words of uploads.
fn over_quota(error: Error, upload_id: Option<&str>) -> Error {
    match error.code {
        code::VOLUME_QUOTA_EXCEEDED => {
            refused(Reason::InsufficientStagingSpace, error.message, upload_id)
        }
        _ => error,
    }
}

/// A refusal with its reason.
fn refused(reason: Reason, message: impl Into<String>, upload_id: Option<&str>) -> Error {
    refusal(reason, message.into(), upload_id, None, None)
}

fn refusal(
    reason: Reason,
    message: String,
    upload_id: Option<&str>,
    path: Option<String>,
    part_number: Option<u32>,
) -> Error {
    let kind = match reason {
        Reason::InsufficientStagingSpace => Kind::Storage,
        Reason::SizeLimitExceeded => Kind::TooLarge,
        Reason::UploadAborted | Reason::UploadExpired => Kind::Gone,
        Reason::UploadAlreadyCompleted | Reason::TargetConflict | Reason::MissingParts => {
            Kind::Conflict
        }
        _ => Kind::Invalid,
    };
    let failure = UploadFailure {
        reason,
        message: message.clone(),
        retryable: matches!(reason, Reason::InvalidPartChecksum | Reason::MissingParts),
        upload_id: upload_id.map(str::to_owned),
        request_id: None,
        path,
        part_number,
    };
    Error::new(kind, code::FILE_UPLOAD_ERROR, message)
        .with_details(serde_json::to_value(failure).unwrap_or_default())
}

/// The wire's word for a value without fields.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn parse<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::from(word)).ok()
}

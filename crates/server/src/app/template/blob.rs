//! Files of build contexts: announced, sent once, kept by digest for a week after somebody last asked for them.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_api::{
    error::code,
    id,
    template::{BlobDescriptor, EntryType, PreflightResult},
    time,
};
use nullspace_store::{
    StoreError,
    template_layer::{self as rows, BlobRow},
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::{
    app::{App, Caller, agent},
    error::{Error, Kind, Result},
};

/// Files and directories of one build.
pub(super) const MAX_FILES: usize = 100_000;
/// The most bytes of one file.
pub(super) const MAX_SIZE: u64 = 8 << 30;
/// How long a blob stays that nobody asks for, in microseconds.
const RETENTION: i64 = 7 * 24 * 3600 * 1_000_000;

fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("template-blobs")
}

/// Where the bytes of a blob are.
pub(super) fn path(data_dir: &Path, id: &str) -> PathBuf {
    root(data_dir).join(id)
}

/// Checks a place in a build context: relative, plain segments.
pub(super) fn check_path(path: &str) -> Result<()> {
    let is_plain = !path.is_empty()
        && path.len() <= 4096
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    match is_plain {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "build_context: {path:?} is not a relative path without `.` and `..`"
        ))),
    }
}

/// What of a context has to be sent.
///
/// # Errors
/// `file_upload_error` for entries that cannot be.
pub async fn preflight(
    app: &App,
    caller: &Caller,
    files: Vec<BlobDescriptor>,
) -> Result<Vec<PreflightResult>> {
    let refuse = |error: Error| refused("preflight", &error.message);
    if files.len() > MAX_FILES {
        let message = format!("the build context has over {MAX_FILES} files and directories");
        return Err(refused("preflight", &message));
    }
    let mut seen = HashSet::new();
    for file in &files {
        check_path(&file.path).map_err(refuse)?;
        if !seen.insert(&file.path) {
            let message = format!("{:?} is in the build context twice", file.path);
            return Err(refused("preflight", &message));
        }
        if file.mode.as_ref().is_some_and(|mode| mode.bits().is_none()) {
            let message = format!("{:?}: mode: must be octal digits up to 7777", file.path);
            return Err(refused("preflight", &message));
        }
        if file.entry_type == EntryType::File {
            let is_digest = (file.sha256.as_ref())
                .is_some_and(|digest| digest.len() == 64 && hex::decode(digest).is_ok());
            if !is_digest || file.size_bytes.is_none_or(|size| size > MAX_SIZE) {
                let message = format!(
                    "{:?}: a file needs sha256, 64 hex digits, and size_bytes, at most {MAX_SIZE}",
                    file.path
                );
                return Err(refused("preflight", &message));
            }
        }
    }
    let (data_dir, tenant_id) = (app.data_dir.clone(), caller.tenant_id());
    let results = app
        .store
        .write(move |tx| {
            let now = time::now();
            let mut results = Vec::with_capacity(files.len());
            for file in files {
                let mut result = PreflightResult {
                    path: file.path,
                    entry_type: file.entry_type,
                    missing: false,
                    blob_id: None,
                    mode: file.mode,
                };
                if let (EntryType::File, Some(sha256), Some(size_bytes)) =
                    (file.entry_type, file.sha256, file.size_bytes)
                {
                    let sha256 = sha256.to_ascii_lowercase();
                    let known = match file.force_upload {
                        true => None,
                        false => rows::blob_of(tx, &tenant_id, &sha256, size_bytes)?,
                    };
                    let row = match known {
                        Some(mut row) => {
                            rows::touch_blob(tx, &row.id, false, now)?;
                            row.is_stored &= path(&data_dir, &row.id).is_file();
                            row
                        }
                        None => {
                            let row = BlobRow {
                                id: id::new(id::TEMPLATE_BLOB),
                                tenant_id: tenant_id.clone(),
                                sha256,
                                size_bytes,
                                is_stored: false,
                                is_shared: !file.force_upload,
                                used_at: now,
                            };
                            rows::insert_blob(tx, &row)?;
                            row
                        }
                    };
                    result.missing = !row.is_stored;
                    result.blob_id = Some(row.id);
                }
                results.push(result);
            }
            Ok::<_, StoreError>(results)
        })
        .await?;
    Ok(results)
}

/// A blob that a tenant announced.
///
/// # Errors
/// `template_blob_not_found`.
pub(super) async fn get(app: &App, tenant_id: &str, blob_id: &str) -> Result<BlobRow> {
    find(app, blob_id)
        .await?
        .filter(|row| row.tenant_id == tenant_id)
        .ok_or_else(|| no_blob(blob_id))
}

async fn find(app: &App, blob_id: &str) -> Result<Option<BlobRow>> {
    let wanted = blob_id.to_owned();
    Ok(app.store.read(move |db| rows::blob(db, &wanted)).await?)
}

/// No blob of that id.
pub(crate) fn no_blob(id: &str) -> Error {
    Error::not_found(
        code::TEMPLATE_BLOB_NOT_FOUND,
        format!("no blob {:?}", id.chars().take(64).collect::<String>()),
    )
    .with_action("ask /v1/templates/blobs/preflight again")
}

/// Takes the bytes of a blob. The same again are fine.
///
/// # Errors
/// `template_blob_not_found`; `file_upload_error` for other bytes than were announced; `insufficient_storage`.
pub async fn put(
    app: &App,
    blob_id: &str,
    data: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<()> {
    let row = find(app, blob_id).await?.ok_or_else(|| no_blob(blob_id))?;
    let incoming = root(&app.data_dir).join(format!(".incoming-{}", id::new("")));
    let received = receive(&incoming, &row, data).await;
    let target = path(&app.data_dir, &row.id);
    let kept = match received {
        Ok(()) => {
            agent::blocking({
                let incoming = incoming.clone();
                move || fs::rename(&incoming, &target).map_err(|e| storing(&e))
            })
            .await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        let _ = tokio::fs::remove_file(&incoming).await;
        return Err(error);
    }
    let id = row.id;
    app.store
        .write(move |tx| rows::touch_blob(tx, &id, true, time::now()))
        .await?;
    Ok(())
}

async fn receive(
    incoming: &Path,
    row: &BlobRow,
    data: impl Stream<Item = io::Result<Bytes>> + Send,
) -> Result<()> {
    let mut data = std::pin::pin!(data);
    let mut file = tokio::fs::File::create(incoming)
        .await
        .map_err(|e| storing(&e))?;
    let (mut digest, mut size) = (Sha256::new(), 0);
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|_| refused("blob_upload", "the upload was cut off"))?;
        size += piece.len() as u64;
        if size > row.size_bytes {
            break;
        }
        digest.update(&piece);
        file.write_all(&piece).await.map_err(|e| storing(&e))?;
    }
    if size != row.size_bytes {
        let message = format!(
            "blob {} has {} bytes, other than announced",
            row.id, row.size_bytes
        );
        return Err(refused("blob_upload", &message));
    }
    let found = hex::encode(digest.finalize());
    if found != row.sha256 {
        let message = format!(
            "the bytes sent for blob {} have the SHA-256 {found}, not {}",
            row.id, row.sha256
        );
        return Err(refused("blob_upload", &message));
    }
    file.sync_all().await.map_err(|e| storing(&e))
}

/// Keeps bytes that came inside a request; answers the blob that they are.
pub(super) async fn store(app: &App, caller: &Caller, bytes: Vec<u8>) -> Result<BlobRow> {
    let descriptor = BlobDescriptor {
        path: "inline".into(),
        entry_type: EntryType::File,
        mode: None,
        sha256: Some(hex::encode(Sha256::digest(&bytes))),
        size_bytes: Some(bytes.len() as u64),
        force_upload: false,
    };
    let result = preflight(app, caller, vec![descriptor]).await?;
    let blob_id = result.into_iter().find_map(|result| result.blob_id);
    let blob_id = blob_id.unwrap_or_default();
    let row = get(app, &caller.tenant.id, &blob_id).await?;
    if !row.is_stored || !path(&app.data_dir, &row.id).is_file() {
        let piece = Ok(Bytes::from(bytes));
        put(app, &blob_id, futures_util::stream::iter([piece])).await?;
    }
    get(app, &caller.tenant.id, &blob_id).await
}

/// Removes what nobody asked for in a while, and at start-up what is not whole.
///
/// # Errors
/// When the record or the disk cannot be used.
pub async fn sweep(app: &App, is_start: bool) -> Result<()> {
    let root = root(&app.data_dir);
    if is_start {
        agent::blocking({
            let root = root.clone();
            move || {
                let clean = || {
                    fs::create_dir_all(&root)?;
                    for entry in fs::read_dir(&root)? {
                        let entry = entry?;
                        if entry.file_name().to_string_lossy().starts_with('.') {
                            fs::remove_file(entry.path())?;
                        }
                    }
                    Ok::<_, io::Error>(())
                };
                clean().map_err(|e| storing(&e))
            }
        })
        .await?;
    }
    let before = time::now() - RETENTION;
    let unused = app
        .store
        .read(move |db| rows::blobs_unused_since(db, before))
        .await?;
    for blob in unused {
        let id = blob.id.clone();
        let removed = app
            .store
            .write(move |tx| rows::remove_blob(tx, &id, before))
            .await?;
        if removed {
            match tokio::fs::remove_file(path(&app.data_dir, &blob.id)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(storing(&error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn storing(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            Kind::Storage,
            code::INSUFFICIENT_STORAGE,
            "the server's disk is full",
        ),
        _ => Error::internal(format!("keeping files of a build: {error}")),
    }
}

/// A file of a context that is not taken: in the words that clients look for.
pub(super) fn refused(phase: &str, message: &str) -> Error {
    Error::new(Kind::Invalid, code::FILE_UPLOAD_ERROR, message).with_details(serde_json::json!({
        "code": code::FILE_UPLOAD_ERROR,
        "message": message,
        "phase": phase,
        "retryable": phase == "blob_upload",
        "suggested_action": match phase {
            "preflight" => "correct the build context and build again",
            _ => "send the file again",
        },
        "details": {"reason": phase},
    }))
}

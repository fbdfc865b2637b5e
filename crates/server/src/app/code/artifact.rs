//! Files that came out of code: pictures, pages and documents among its results, and what it wrote into
//! `/workspace/artifacts`.
//!
//! The bytes are kept here, not in the machine: what was announced with a digest stays what it was, also when the machine
//! is gone. A file is written first and recorded then; one that is not on record is removed at start. Each machine has
//! room for so many; the oldest make way.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use nullspace_api::{
    code::{ArtifactKind, CodeArtifact, ListArtifactsQuery},
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_protocol::ReadQuery;
use nullspace_store::code::{self as rows, ArtifactRow};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    app::{App, agent, machine},
    error::{Error, Kind, Result},
};

/// The largest one, in bytes.
const MAX_SIZE: usize = 32 << 20;
/// How many a machine has room for, and how many bytes together.
const MAX_COUNT: u64 = 500;
const MAX_BYTES: u64 = 512 << 20;
/// How long they are kept, in microseconds.
const LIFETIME: i64 = 7 * 24 * 3600 * 1_000_000;
/// The longest path or MIME type.
const MAX_TEXT: usize = 4096;
const MAX_MIME: usize = 127;
/// What of a result is an artifact: its MIME type, the end of its name, whether it comes in base64.
const TYPES: [(&str, &str, bool); 9] = [
    ("image/png", "png", true),
    ("image/jpeg", "jpg", true),
    ("image/gif", "gif", true),
    ("image/webp", "webp", true),
    ("image/svg+xml", "svg", false),
    ("text/html", "html", false),
    ("application/pdf", "pdf", true),
    ("text/markdown", "md", false),
    ("text/latex", "tex", false),
];

/// Where an artifact comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) id: String,
    pub(crate) machine_id: String,
    pub(crate) context_id: String,
    pub(crate) execution_count: Option<u64>,
    pub(crate) run: Option<String>,
}

/// The id of a run's `n`th artifact.
pub(crate) fn id_in_run(run: &str, n: u32) -> String {
    let digest = Sha256::digest(format!("{run} {n}"));
    format!("{}{}", id::CODE_ARTIFACT, &hex::encode(digest)[..20])
}

fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("code")
}

/// What of a result is an artifact, with its bytes.
pub(crate) fn files_of(data: &Map<String, Value>) -> Vec<(String, Vec<u8>)> {
    TYPES
        .iter()
        .filter_map(|(kind, _, encoded)| {
            let text = data.get(*kind)?.as_str()?;
            let bytes = match encoded {
                // Encoders break lines.
                true => STANDARD.decode(text.replace(['\n', '\r'], "")).ok()?,
                false => text.as_bytes().to_vec(),
            };
            Some(((*kind).to_owned(), bytes))
        })
        .collect()
}

/// Takes a file that the machine says is one. `None` when it is gone already.
pub(crate) async fn take_file(
    app: &App,
    origin: &Origin,
    path: String,
    size: u64,
    mime_type: String,
) -> Result<Option<CodeArtifact>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/+-._".contains(c);
    if path.len() > MAX_TEXT || mime_type.len() > MAX_MIME || !mime_type.chars().all(plain) {
        return Err(Error::invalid("its name or type is too long"));
    }
    if size > MAX_SIZE as u64 {
        return Err(too_large(&path));
    }
    if let Some(known) = known(app, origin).await? {
        return Ok(Some(info(known)));
    }
    let guest = machine::own_guest(app, &origin.machine_id).await?;
    let query = ReadQuery {
        path: path.clone(),
        length: Some(MAX_SIZE as u64 + 1),
        ..ReadQuery::default()
    };
    let mut bytes = Vec::new();
    let (_, mut stream) = match guest.read(&query).await {
        Ok(read) => read,
        Err(error) if error.kind().is_some() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    while let Some(piece) = stream.next().await {
        bytes
            .extend_from_slice(&piece.map_err(|e| Error::invalid(format!("reading {path}: {e}")))?);
        if bytes.len() > MAX_SIZE {
            return Err(too_large(&path));
        }
    }
    keep(app, origin, mime_type, Some(path), bytes)
        .await
        .map(Some)
}

fn too_large(path: &str) -> Error {
    Error::invalid(format!("{path} is over {} MiB", MAX_SIZE >> 20))
}

async fn known(app: &App, origin: &Origin) -> Result<Option<ArtifactRow>> {
    let (machine_id, id) = (origin.machine_id.clone(), origin.id.clone());
    Ok(app
        .store
        .read(move |db| rows::artifact(db, &machine_id, &id))
        .await?)
}

/// Keeps one.
pub(crate) async fn keep(
    app: &App,
    origin: &Origin,
    mime_type: String,
    path: Option<String>,
    bytes: Vec<u8>,
) -> Result<CodeArtifact> {
    if let Some(known) = known(app, origin).await? {
        return Ok(info(known));
    }
    let now = time::now();
    let name = match &path {
        Some(path) => path.rsplit('/').next().unwrap_or("file").to_owned(),
        None => {
            let end = TYPES.iter().find(|(kind, ..)| *kind == mime_type);
            let count = origin.execution_count.unwrap_or_default();
            format!("result-{count}.{}", end.map_or("bin", |(_, end, _)| *end))
        }
    };
    let mut metadata = Map::new();
    metadata.extend(path.map(|path| ("path".to_owned(), path.into())));
    metadata.extend(
        origin
            .run
            .clone()
            .map(|run| ("run_id".to_owned(), run.into())),
    );
    let row = ArtifactRow {
        seq: 0,
        id: origin.id.clone(),
        machine_id: origin.machine_id.clone(),
        context_id: origin.context_id.clone(),
        execution_count: origin.execution_count,
        kind: ArtifactKind::of(&mime_type).as_str().to_owned(),
        mime_type,
        name,
        size_bytes: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(&bytes)),
        created_at: now,
        expires_at: now.saturating_add(LIFETIME),
        metadata: (!metadata.is_empty()).then(|| Value::Object(metadata).to_string()),
    };
    let target = root(&app.data_dir).join(&row.id);
    agent::blocking(move || {
        let write = || {
            let fresh = target.with_extension("incoming");
            fs::write(&fresh, &bytes)?;
            fs::File::open(&fresh)?.sync_all()?;
            fs::rename(&fresh, &target)
        };
        write().map_err(unwritable)
    })
    .await?;
    let recording = row.clone();
    let old = app
        .store
        .write(move |tx| {
            rows::insert_artifact(tx, &recording)?;
            rows::trim_artifacts(tx, &recording.machine_id, MAX_COUNT, MAX_BYTES)
        })
        .await?;
    discard(app, old).await?;
    Ok(info(row))
}

fn unwritable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(
            Kind::Storage,
            code::INSUFFICIENT_STORAGE,
            "the server's disk is full",
        ),
        _ => Error::internal(format!("keeping a code artifact: {error}")),
    }
}

/// Artifacts of a machine, newest first, also of one that ended.
///
/// # Errors
/// `machine_not_found`, `invalid_request`.
pub async fn list(
    app: &App,
    machine_id: &str,
    query: ListArtifactsQuery,
) -> Result<CursorPage<CodeArtifact>> {
    machine::get(app, machine_id).await?;
    let limit = agent::limit(query.limit)?;
    let filter = rows::ArtifactFilter {
        machine_id: machine_id.to_owned(),
        context_id: query.context_id.filter(|id| !id.is_empty()),
        execution_count: query.execution_count,
        kind: agent::word("kind", query.kind, &["image", "html", "document", "file"])?,
        before: agent::cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let mut rows = app
        .store
        .read(move |db| rows::artifacts(db, &filter))
        .await?;
    let next_cursor = agent::cut(&mut rows, limit, |row| row.seq);
    Ok(CursorPage {
        items: rows.into_iter().map(info).collect(),
        next_cursor,
    })
}

/// One.
///
/// # Errors
/// `machine_not_found`, `not_found`.
pub async fn get(app: &App, machine_id: &str, id: &str) -> Result<CodeArtifact> {
    machine::get(app, machine_id).await?;
    let (machine, wanted) = (machine_id.to_owned(), id.to_owned());
    let row = app
        .store
        .read(move |db| rows::artifact(db, &machine, &wanted))
        .await?;
    row.map(info).ok_or_else(|| none(id))
}

/// One with its bytes.
///
/// # Errors
/// `machine_not_found`, `not_found`.
pub async fn read(app: &App, machine_id: &str, id: &str) -> Result<(CodeArtifact, Vec<u8>)> {
    let artifact = get(app, machine_id, id).await?;
    let path = root(&app.data_dir).join(&artifact.id);
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok((artifact, bytes)),
        // It made way meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(none(id)),
        Err(error) => Err(Error::internal(format!(
            "reading {}: {error}",
            path.display()
        ))),
    }
}

/// Removes one.
///
/// # Errors
/// `machine_not_found`, `not_found`.
pub async fn delete(app: &App, machine_id: &str, id: &str) -> Result<()> {
    machine::get(app, machine_id).await?;
    let (machine, wanted) = (machine_id.to_owned(), id.to_owned());
    let removed = app
        .store
        .write(move |tx| rows::remove_artifact(tx, &machine, &wanted))
        .await?;
    if !removed {
        return Err(none(id));
    }
    discard(app, vec![id.to_owned()]).await
}

fn none(id: &str) -> Error {
    Error::not_found(
        code::NOT_FOUND,
        format!("no code artifact {id:?} of this machine"),
    )
}

/// Removes the bytes of artifacts that are off the record.
async fn discard(app: &App, ids: Vec<String>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let root = root(&app.data_dir);
    agent::blocking(move || {
        for id in ids {
            match fs::remove_file(root.join(&id)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(Error::internal(format!("removing artifact {id}: {error}")));
                }
            }
        }
        Ok(())
    })
    .await
}

/// Removes those that are over their time.
pub(super) async fn sweep(app: &App) -> Result<()> {
    let old = app
        .store
        .write(|tx| rows::forget_artifacts(tx, time::now()))
        .await?;
    discard(app, old).await
}

/// Makes the directory, and removes what is not on record. Called once, before any request.
pub(super) async fn clean(app: &App) -> Result<()> {
    let known = app.store.read(rows::artifact_ids).await?;
    let root = root(&app.data_dir);
    agent::blocking(move || {
        let known: std::collections::HashSet<String> = known.into_iter().collect();
        let clean = || {
            fs::create_dir_all(&root)?;
            for entry in fs::read_dir(&root)? {
                let entry = entry?;
                if !known.contains(&*entry.file_name().to_string_lossy()) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok::<_, io::Error>(())
        };
        clean().map_err(|e| Error::internal(format!("preparing {}: {e}", root.display())))
    })
    .await
}

fn info(row: ArtifactRow) -> CodeArtifact {
    CodeArtifact {
        kind: ArtifactKind::parse(&row.kind).unwrap_or(ArtifactKind::File),
        preview_url: Some(format!(
            "/v1/machines/{}/code/artifacts/{}/preview",
            row.machine_id, row.id
        )),
        download_url: Some(format!(
            "/v1/machines/{}/code/artifacts/{}/download",
            row.machine_id, row.id
        )),
        id: row.id,
        context_id: row.context_id,
        execution_count: row.execution_count,
        mime_type: row.mime_type,
        name: row.name,
        size_bytes: row.size_bytes,
        sha256: row.sha256,
        created_at: time::rfc3339(row.created_at),
        expires_at: Some(time::rfc3339(row.expires_at)),
        metadata: row
            .metadata
            .and_then(|text| serde_json::from_str(&text).ok()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn results_have_files() {
        let data = serde_json::json!({"text/plain": "x", "image/png": "aGk=\n", "text/html": "<b>", "image/jpeg": "!", "image/gif": 3});
        let files = files_of(data.as_object().unwrap());
        assert_eq!(
            files,
            [
                ("image/png".to_owned(), b"hi".to_vec()),
                ("text/html".to_owned(), b"<b>".to_vec())
            ]
        );
    }

    #[test]
    fn a_run_has_the_same_artifacts_each_time_it_is_followed() {
        assert_eq!(id_in_run("crun_1", 1), id_in_run("crun_1", 1));
        assert_ne!(id_in_run("crun_1", 1), id_in_run("crun_1", 2));
        assert_eq!(id_in_run("crun_1", 1).len(), 25);
    }
}

//! `POST …/files/batch-write`: many files in one form, streamed one after the other.

use std::{collections::HashMap, io, time::Duration};

use axum::{
    extract::{FromRequest, Multipart, Request, State, multipart::Field},
    response::{IntoResponse, Response},
};
use nullspace_api::{
    ErrorBody,
    file::{BatchManifest, BatchResponse, BatchResult, FileInfo},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path, parse, slow};
use crate::{
    app::{AppState, file::Files},
    error::{Error, Result},
};

/// The largest manifest.
const MANIFEST_LIMIT: usize = 1 << 20;
/// How long a client may be silent in the middle of a part.
const IDLE: Duration = Duration::from_secs(60);

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(batch_write))
}

/// Write many files. The part `manifest` comes first and names the parts that follow; one file that
/// fails does not stop the others.
#[utoipa::path(post, path = "/{id}/files/batch-write", tag = "files", params(("id" = String, Path)),
    request_body(content = BatchManifest, content_type = "multipart/form-data"),
    responses((status = 200, body = BatchResponse), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn batch_write(
    State(app): State<AppState>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response> {
    let broken = |e: axum::extract::multipart::MultipartError| {
        Error::invalid(format!("form: {}", e.body_text()))
    };
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|e| Error::invalid(format!("form: {}", e.body_text())))?;
    let first = form
        .next_field()
        .await
        .map_err(broken)?
        .filter(|field| field.name() == Some("manifest"))
        .ok_or_else(|| Error::invalid("form: the first part must be `manifest`"))?;
    let manifest: BatchManifest = parse(&collect(first).await?)
        .map_err(|e| Error::invalid(format!("manifest: {}", e.message)))?;
    let files = Files::open(&app, &id, manifest.user.clone()).await?;
    let places: HashMap<&str, usize> = manifest
        .files
        .iter()
        .enumerate()
        .map(|(place, file)| (file.field.as_str(), place))
        .collect();
    if places.len() != manifest.files.len() {
        return Err(Error::invalid("manifest: files: a part is named twice"));
    }
    let mut results: Vec<Option<Result<FileInfo>>> = vec![None; manifest.files.len()];
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let place = field.name().and_then(|name| places.get(name)).copied();
        // A part that nobody asked for is read over.
        let Some(place) = place else { continue };
        let path = manifest.files[place].path.clone();
        results[place] = Some(pump(&files, path, field).await);
    }
    let results = manifest
        .files
        .into_iter()
        .zip(results)
        .map(|(file, result)| match result {
            Some(Ok(info)) => BatchResult::Success {
                path: file.path,
                info,
            },
            Some(Err(error)) => BatchResult::Error {
                path: file.path,
                error: error.message,
            },
            None => BatchResult::Error {
                path: file.path,
                error: format!("the part {} is missing", file.field),
            },
        })
        .collect();
    Ok(Json(BatchResponse { results }).into_response())
}

async fn collect(mut field: Field<'_>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(IDLE, field.chunk()).await {
            Err(_) => return Err(slow()),
            Ok(Err(error)) => return Err(Error::invalid(format!("form: {}", error.body_text()))),
            Ok(Ok(None)) => return Ok(bytes),
            Ok(Ok(Some(chunk))) if bytes.len() + chunk.len() > MANIFEST_LIMIT => {
                return Err(Error::invalid(format!(
                    "manifest: over {} bytes",
                    MANIFEST_LIMIT.min(bytes.len() + chunk.len())
                )));
            }
            Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
        }
    }
}

/// Streams one part of a form into a file. The part borrows the form, so its bytes go through a channel.
pub(super) async fn pump(files: &Files, path: String, mut field: Field<'_>) -> Result<FileInfo> {
    let (sender, receiver) = mpsc::channel::<io::Result<axum::body::Bytes>>(4);
    let read = async move {
        loop {
            let (item, failure) = match tokio::time::timeout(IDLE, field.chunk()).await {
                Ok(Ok(Some(chunk))) => (Ok(chunk), None),
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => {
                    let error = Error::invalid(format!("form: {}", error.body_text()));
                    (Err(io::ErrorKind::InvalidData.into()), Some(error))
                }
                Err(_) => (Err(io::ErrorKind::TimedOut.into()), Some(slow())),
            };
            // A writer that gave up says why itself.
            if sender.send(item).await.is_err() || failure.is_some() {
                return failure;
            }
        }
    };
    let (written, failure) = tokio::join!(files.write(path, ReceiverStream::new(receiver)), read);
    match failure {
        Some(error) => Err(error),
        None => written,
    }
}

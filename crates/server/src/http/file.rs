//! `…/files` (JSON) and `…/file` (raw bytes).

use axum::{
    Extension,
    body::Body,
    extract::{FromRequest, Multipart, Request, State},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, StatusCode, header};
use nullspace_api::{
    ErrorBody, Noun,
    error::code,
    file::{
        DownloadUrlRequest, Encoding, ExistsResponse, FileInfo, FileQuery, ListFilesQuery,
        PathRequest, PermissionsRequest, ReadFileRequest, ReadFileResponse, RenameFileRequest,
        SignedUrlResponse, WriteFileRequest,
    },
    id,
    upload::ArchiveFormat,
};
use nullspace_protocol::ByteStream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    batch::pump,
    body::{self, Range},
    extract::{Json, JsonBody, Path, Query, is_content_type},
};
use crate::{
    app::{
        App, AppState,
        file::{self, Files},
        file_grant::{Action, FileGrant},
    },
    error::{Error, Kind, Result},
};

/// The largest body of a JSON write.
const WRITE_LIMIT: usize = 64 << 20;
/// Bytes of a kept file read at once.
const CHUNK: usize = 256 << 10;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_files))
        .routes(routes!(read_file))
        .routes(routes!(write_file))
        .routes(routes!(file_exists))
        .routes(routes!(file_info))
        .routes(routes!(make_directory))
        .routes(routes!(remove_file))
        .routes(routes!(rename_file))
        .routes(routes!(set_permissions))
        .routes(routes!(download_file, put_file, post_file))
        .routes(routes!(download_url))
        .routes(routes!(upload_url))
}

/// List a directory; links are listed, not followed. Kept directories of a machine that is gone are listed too.
#[utoipa::path(get, path = "/{id}/files", tag = "files", params(("id" = String, Path), ListFilesQuery),
    responses((status = 200, body = Vec<FileInfo>), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn list_files(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<ListFilesQuery>,
) -> Result<Json<Vec<FileInfo>>> {
    let path = query.path.unwrap_or_else(|| "/".into());
    let depth = query.depth.unwrap_or(1);
    match Files::open(&app, &id, query.user).await {
        Ok(files) => files.list(path, depth).await,
        Err(error) if is_gone(&error) => file::kept_list(&app, &id, &path, depth).await,
        Err(error) => Err(error),
    }
    .map(Json)
}

/// Read a file as text or base64.
#[utoipa::path(post, path = "/{id}/files/read", tag = "files", params(("id" = String, Path)), request_body = ReadFileRequest,
    responses((status = 200, body = ReadFileResponse), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn read_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<ReadFileRequest>,
) -> Result<Json<ReadFileResponse>> {
    let files = Files::open(&app, &id, request.user).await?;
    let encoding = request.encoding.unwrap_or_default();
    let (content, size) = files.content(request.path, encoding).await?;
    Ok(Json(ReadFileResponse {
        content,
        encoding,
        size,
    }))
}

/// Write a file from text or base64; parents are made.
#[utoipa::path(post, path = "/{id}/files/write", tag = "files", params(("id" = String, Path)), request_body = WriteFileRequest,
    responses((status = 200, body = FileInfo), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 413, body = ErrorBody)))]
async fn write_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<WriteFileRequest, WRITE_LIMIT>,
) -> Result<Json<FileInfo>> {
    let bytes = match request.encoding.unwrap_or_default() {
        Encoding::Utf8 => request.content.into_bytes(),
        Encoding::Base64 => base64::engine::general_purpose::STANDARD
            .decode(request.content)
            .map_err(|e| Error::invalid(format!("content: not base64: {e}")))?,
    };
    let files = Files::open(&app, &id, request.user).await?;
    files
        .write_bytes(request.path, bytes.into())
        .await
        .map(Json)
}

/// Whether there is something at a path.
#[utoipa::path(post, path = "/{id}/files/exists", tag = "files", params(("id" = String, Path)), request_body = PathRequest,
    responses((status = 200, body = ExistsResponse), (status = 403, body = ErrorBody)))]
async fn file_exists(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PathRequest>,
) -> Result<Json<ExistsResponse>> {
    let files = Files::open(&app, &id, request.user).await?;
    let exists = files.exists(request.path).await?;
    Ok(Json(ExistsResponse { exists }))
}

/// What is at a path; links are not followed. Kept files of a machine that is gone are found too.
#[utoipa::path(post, path = "/{id}/files/info", tag = "files", params(("id" = String, Path)), request_body = PathRequest,
    responses((status = 200, body = FileInfo), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn file_info(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PathRequest>,
) -> Result<Json<FileInfo>> {
    match Files::open(&app, &id, request.user).await {
        Ok(files) => files.info(request.path).await,
        Err(error) if is_gone(&error) => file::kept_info(&app, &id, &request.path).await,
        Err(error) => Err(error),
    }
    .map(Json)
}

/// Make a directory and its parents; one that exists is fine.
#[utoipa::path(post, path = "/{id}/files/mkdir", tag = "files", params(("id" = String, Path)), request_body = PathRequest,
    responses((status = 204), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn make_directory(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PathRequest>,
) -> Result<StatusCode> {
    let files = Files::open(&app, &id, request.user).await?;
    files.mkdir(request.path).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a file or a whole directory.
#[utoipa::path(post, path = "/{id}/files/remove", tag = "files", params(("id" = String, Path)), request_body = PathRequest,
    responses((status = 204), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn remove_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PathRequest>,
) -> Result<StatusCode> {
    let files = Files::open(&app, &id, request.user).await?;
    files.remove(request.path).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Move a file or directory.
#[utoipa::path(post, path = "/{id}/files/rename", tag = "files", params(("id" = String, Path)), request_body = RenameFileRequest,
    responses((status = 200, body = FileInfo), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn rename_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<RenameFileRequest>,
) -> Result<Json<FileInfo>> {
    let files = Files::open(&app, &id, request.user).await?;
    files
        .rename(request.old_path, request.new_path)
        .await
        .map(Json)
}

/// Set permission bits.
#[utoipa::path(post, path = "/{id}/files/permissions", tag = "files", params(("id" = String, Path)), request_body = PermissionsRequest,
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn set_permissions(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<PermissionsRequest>,
) -> Result<StatusCode> {
    let files = Files::open(&app, &id, request.user).await?;
    files
        .permissions(request.path, &request.permissions)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Download a file, or a byte range of it, or a directory as an archive. Kept files of a machine that is gone are served
/// too.
#[utoipa::path(get, path = "/{id}/file", tag = "files",
    params(("id" = String, Path), FileQuery, ("Range" = Option<String>, Header, description = "`bytes=0-99`")),
    responses((status = 200, content_type = "application/octet-stream"), (status = 206, content_type = "application/octet-stream"),
        (status = 403, body = ErrorBody), (status = 404, body = ErrorBody), (status = 416, body = ErrorBody)))]
async fn download_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let query = allowed(&app, &id, query, Action::Download)?;
    let wanted = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok());
    let files = match Files::open(&app, &id, query.user).await {
        Ok(files) => files,
        Err(error) if is_gone(&error) => return kept(&app, &id, &query.path, wanted).await,
        Err(error) => return Err(error),
    };
    if query.archive.is_some() {
        let archive = files.archive(query.path).await?;
        let kind = [(header::CONTENT_TYPE, "application/x-tar")];
        return Ok((kind, Body::from_stream(archive)).into_response());
    }
    let Some(wanted) = wanted else {
        let (info, bytes) = files.read(query.path, 0, None).await?;
        return Ok(whole(info.size, bytes));
    };
    let size = files.size(query.path.clone()).await?;
    match body::range(wanted, size) {
        Range::Whole => {
            let (info, bytes) = files.read(query.path, 0, None).await?;
            Ok(whole(info.size, bytes))
        }
        Range::Part { start, end } => {
            let (_, bytes) = files.read(query.path, start, Some(end - start + 1)).await?;
            Ok(part(start, end, size, bytes))
        }
        Range::Unsatisfiable => Err(unsatisfiable(size)),
    }
}

/// What a request for `…/file` may do.
struct Allowed {
    path: String,
    user: Option<String>,
    archive: Option<ArchiveFormat>,
}

/// Whether a request brings the token of a signed URL of a file.
pub(super) fn has_grant(request: &Request) -> bool {
    let (uri, mut parts) = (request.uri(), request.uri().path().split('/').skip(1));
    let is_file = parts.next() == Some("v1")
        && matches!(parts.next(), Some("machines" | "sandboxes" | "volumes"))
        && parts.next().is_some()
        && parts.eq(["file"]);
    let query = uri.query().unwrap_or_default();
    is_file && query.split('&').any(|field| field.starts_with("grant="))
}

/// The path of the query, or of its token.
fn allowed(app: &App, id: &str, query: FileQuery, action: Action) -> Result<Allowed> {
    if let Some(token) = query.grant {
        let grant = FileGrant::check(&app.seal, &token, id, action)?;
        return Ok(Allowed {
            path: grant.path,
            user: grant.user,
            archive: grant.archive,
        });
    }
    let path = query
        .path
        .ok_or_else(|| Error::invalid("query: path is needed"))?;
    Ok(Allowed {
        path,
        user: query.user,
        archive: query.archive_format,
    })
}

/// Make a URL at which a file, or a directory as an archive, can be downloaded for an hour without an API key.
#[utoipa::path(post, path = "/{id}/files/download-url", tag = "files", params(("id" = String, Path)), request_body = DownloadUrlRequest,
    responses((status = 200, body = SignedUrlResponse), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn download_url(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<DownloadUrlRequest>,
) -> Result<Json<SignedUrlResponse>> {
    let files = Files::open(&app, &id, request.user.clone()).await?;
    let path = files
        .downloadable(request.path, request.archive_format.is_some())
        .await?;
    let mut grant = FileGrant::new(&id, path, request.user, Action::Download);
    grant.archive = request.archive_format;
    Ok(Json(signed_url(&app, &headers, noun, &grant)))
}

/// Make a URL to which a file can be uploaded for an hour without an API key: as the raw body of a PUT, or as the part
/// `file` of a form.
#[utoipa::path(post, path = "/{id}/files/upload-url", tag = "files", params(("id" = String, Path)), request_body = PathRequest,
    responses((status = 200, body = SignedUrlResponse), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn upload_url(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(request): Json<PathRequest>,
) -> Result<Json<SignedUrlResponse>> {
    let files = Files::open(&app, &id, request.user.clone()).await?;
    // Whether there is such a user, and the path may be asked about.
    files.exists(request.path.clone()).await?;
    let grant = FileGrant::new(&id, request.path, request.user, Action::Upload);
    Ok(Json(signed_url(&app, &headers, noun, &grant)))
}

/// The URL as this client reaches the server.
fn signed_url(app: &App, headers: &HeaderMap, noun: Noun, grant: &FileGrant) -> SignedUrlResponse {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let scheme = match text(HeaderName::from_static("x-forwarded-proto")) {
        Some("https") => "https",
        _ => "http",
    };
    let plain = |host: &&str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._[]:".contains(c);
        !host.is_empty() && host.chars().all(is_plain)
    };
    let host = text(header::HOST).filter(plain).unwrap_or("127.0.0.1");
    let token = grant.token(&app.seal);
    let prefix = match noun {
        _ if grant.machine.starts_with(id::VOLUME) => "volumes",
        Noun::Sandbox => "sandboxes",
        Noun::Machine => "machines",
    };
    SignedUrlResponse {
        url: format!(
            "{scheme}://{host}/v1/{prefix}/{}/file?grant={token}",
            grant.machine
        ),
        token: Some(token),
    }
}

/// Whether the machine itself cannot be asked: kept files may have what is wanted.
fn is_gone(error: &Error) -> bool {
    matches!(
        error.code,
        code::MACHINE_NOT_FOUND | code::MACHINE_NOT_READY
    )
}

async fn kept(app: &AppState, id: &str, path: &str, wanted: Option<&str>) -> Result<Response> {
    let kept = file::kept(app, id, path).await?;
    let mut file = kept.file;
    match wanted.map_or(Range::Whole, |wanted| body::range(wanted, kept.size)) {
        Range::Whole => Ok(whole(kept.size, reader(file.take(kept.size)))),
        Range::Part { start, end } => {
            file.seek(std::io::SeekFrom::Start(start))
                .await
                .map_err(|e| Error::internal(format!("reading a kept file: {e}")))?;
            Ok(part(
                start,
                end,
                kept.size,
                reader(file.take(end - start + 1)),
            ))
        }
        Range::Unsatisfiable => Err(unsatisfiable(kept.size)),
    }
}

fn reader(file: tokio::io::Take<tokio::fs::File>) -> ByteStream {
    tokio_util::io::ReaderStream::with_capacity(file, CHUNK).boxed()
}

fn unsatisfiable(size: u64) -> Error {
    Error::new(
        Kind::Range,
        code::INVALID_REQUEST,
        format!("range: the file has {size} bytes"),
    )
}

fn whole(size: u64, bytes: ByteStream) -> Response {
    (
        [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (header::CONTENT_LENGTH, size.to_string()),
        ],
        exactly(size, bytes),
    )
        .into_response()
}

fn part(start: u64, end: u64, size: u64, bytes: ByteStream) -> Response {
    let length = end - start + 1;
    (
        StatusCode::PARTIAL_CONTENT,
        [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}")),
        ],
        exactly(length, bytes),
    )
        .into_response()
}

/// A file may grow or shrink while it is read: what was announced is what is sent, or the answer breaks
/// off visibly.
fn exactly(size: u64, bytes: ByteStream) -> Body {
    let stream = futures_util::stream::unfold((bytes, size), |(mut bytes, left)| async move {
        if left == 0 {
            return None;
        }
        match bytes.next().await? {
            Ok(mut chunk) => {
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - chunk.len() as u64;
                Some((Ok(chunk), (bytes, left)))
            }
            Err(error) => Some((Err(error), (bytes, 0))),
        }
    });
    Body::from_stream(stream)
}

/// Upload a file as the raw body; it appears whole or not at all.
#[utoipa::path(put, path = "/{id}/file", tag = "files", params(("id" = String, Path), FileQuery),
    request_body(content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
async fn put_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<StatusCode> {
    let query = allowed(&app, &id, query, Action::Upload)?;
    let files = Files::open(&app, &id, query.user).await?;
    files
        .write(query.path, body::stream(request.into_body()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Upload a file as the part `file` of a form, or as the raw body.
#[utoipa::path(post, path = "/{id}/file", tag = "files", params(("id" = String, Path), FileQuery),
    request_body(content_type = "multipart/form-data"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody)))]
async fn post_file(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<StatusCode> {
    let query = allowed(&app, &id, query, Action::Upload)?;
    let files = Files::open(&app, &id, query.user).await?;
    if !is_content_type(request.headers(), "multipart/form-data") {
        files
            .write(query.path, body::stream(request.into_body()))
            .await?;
        return Ok(StatusCode::NO_CONTENT);
    }
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|e| Error::invalid(format!("form: {}", e.body_text())))?;
    loop {
        let field = form
            .next_field()
            .await
            .map_err(|e| Error::invalid(format!("form: {}", e.body_text())))?;
        match field {
            Some(field) if field.name() == Some("file") => {
                pump(&files, query.path, field).await?;
                return Ok(StatusCode::NO_CONTENT);
            }
            Some(_) => {}
            None => return Err(Error::invalid("form: the part `file` is missing")),
        }
    }
}

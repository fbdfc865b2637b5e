//! `…/uploads`: files and directories in parts.

use axum::{
    Extension,
    extract::{Request, State},
    response::IntoResponse,
};
use http::{HeaderMap, StatusCode, header};
use nullspace_api::{
    ErrorBody, Noun,
    upload::{
        CompleteUploadRequest, CompleteUploadResponse, CreateUploadRequest, CreateUploadResponse,
        PARTS_HEADER, UploadSession,
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body,
    extract::{Json, Path, claim, parse, read_body},
};
use crate::{
    app::{
        AppState, Caller,
        upload::{self, Part},
    },
    error::{Error, Result},
};

/// The largest body of a completion.
const COMPLETE_LIMIT: usize = 64 << 10;

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create_upload))
        .routes(routes!(get_upload, abort_upload))
        .routes(routes!(put_part))
        .routes(routes!(complete_upload))
}

/// The quota in the words of the route.
fn spell(mut session: UploadSession, noun: Noun) -> UploadSession {
    let limits = &mut session.limits;
    if noun == Noun::Sandbox {
        limits.sandbox_staging_quota_bytes = limits.machine_staging_quota_bytes.take();
    }
    session
}

/// Begin an upload in parts. Its bytes are reserved in the machine; it is given up after a day.
#[utoipa::path(post, path = "/{id}/uploads", tag = "uploads", params(("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header)), request_body = CreateUploadRequest,
    responses((status = 201, body = CreateUploadResponse), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn create_upload(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Extension(noun): Extension<Noun>,
    headers: HeaderMap,
    Json(request): Json<CreateUploadRequest>,
) -> Result<(StatusCode, Json<CreateUploadResponse>)> {
    let claim = claim(&headers, &caller, format!("POST {id}/uploads"), &request)?;
    let session = upload::create(&app, &id, request, claim).await?;
    let session = spell(session, noun);
    Ok((StatusCode::CREATED, Json(CreateUploadResponse { session })))
}

/// Where an upload stands; `next_part` is the lowest part that is missing, the header `x-nullspace-upload-parts` has those
/// that are there.
#[utoipa::path(get, path = "/{id}/uploads/{upload_id}", tag = "uploads",
    params(("id" = String, Path), ("upload_id" = String, Path)),
    responses((status = 200, body = UploadSession), (status = 404, body = ErrorBody)))]
async fn get_upload(
    State(app): State<AppState>,
    Path((id, upload_id)): Path<(String, String)>,
    Extension(noun): Extension<Noun>,
) -> Result<impl IntoResponse> {
    let session = upload::get(&app, &id, &upload_id).await?;
    let parts = upload::parts(&app, upload_id).await?;
    Ok(([(PARTS_HEADER, parts)], Json(spell(session, noun))))
}

/// Give an upload up; what was sent is removed.
#[utoipa::path(delete, path = "/{id}/uploads/{upload_id}", tag = "uploads",
    params(("id" = String, Path), ("upload_id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn abort_upload(
    State(app): State<AppState>,
    Path((id, upload_id)): Path<(String, String)>,
) -> Result<StatusCode> {
    upload::abort(&app, &id, &upload_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Send a part; one that is there already is fine. It stays once this has answered.
#[utoipa::path(put, path = "/{id}/uploads/{upload_id}/parts/{part}", tag = "uploads",
    params(("id" = String, Path), ("upload_id" = String, Path), ("part" = u32, Path, description = "Counted from 0"),
        ("x-nullspace-part-sha256" = String, Header, description = "SHA-256 of this part, lower-case hex")),
    request_body(content_type = "application/octet-stream"),
    responses((status = 200, body = UploadSession), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 410, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn put_part(
    State(app): State<AppState>,
    Path((id, upload_id, number)): Path<(String, String, u32)>,
    Extension(noun): Extension<Noun>,
    headers: HeaderMap,
    request: Request,
) -> Result<Json<UploadSession>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let sha256 = text("x-nullspace-part-sha256")
        .ok_or_else(|| Error::invalid("the header x-nullspace-part-sha256 is needed"))?;
    let part = Part {
        number,
        sha256: sha256.to_owned(),
        length: text(header::CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok()),
    };
    let data = body::stream(request.into_body());
    let session = upload::put_part(&app, &id, &upload_id, part, data).await?;
    Ok(Json(spell(session, noun)))
}

/// Put an upload in its place: everything is checked, then the target changes at once. Asked again it answers the same.
#[utoipa::path(post, path = "/{id}/uploads/{upload_id}/complete", tag = "uploads",
    params(("id" = String, Path), ("upload_id" = String, Path)), request_body = CompleteUploadRequest,
    responses((status = 200, body = CompleteUploadResponse), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 410, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn complete_upload(
    State(app): State<AppState>,
    Path((id, upload_id)): Path<(String, String)>,
    Extension(noun): Extension<Noun>,
    request: Request,
) -> Result<Json<CompleteUploadResponse>> {
    let bytes = read_body(request.into_body(), COMPLETE_LIMIT).await?;
    let request: CompleteUploadRequest = match bytes.trim_ascii().is_empty() {
        true => CompleteUploadRequest::default(),
        false => parse(&bytes)?,
    };
    let sha256 = request.whole_checksum_sha256;
    let mut done = upload::complete(&app, &id, &upload_id, sha256).await?;
    done.session = spell(done.session, noun);
    Ok(Json(done))
}

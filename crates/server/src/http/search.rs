//! `POST …/files/find`, `/search` and `/replace`.

use axum::extract::State;
use nullspace_api::{
    ErrorBody,
    search::{ReplaceRequest, ReplaceResponse, SearchMatch, SearchRequest},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::extract::{Json, Path};
use crate::{
    app::{AppState, file::Files},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(find_in_files))
        .routes(routes!(search_files))
        .routes(routes!(replace_in_files))
}

/// Search contents: the lines beneath a path that match a regular expression, sorted by file and line.
///
/// Binary files and what may not be read are passed over; links are not followed. Over 100,000 lines are refused.
#[utoipa::path(post, path = "/{id}/files/find", tag = "files", params(("id" = String, Path)), request_body = SearchRequest,
    responses((status = 200, body = Vec<SearchMatch>), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn find_in_files(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<SearchRequest>,
) -> Result<Json<Vec<SearchMatch>>> {
    let files = Files::open(&app, &id, request.user.clone()).await?;
    files.find(request).await.map(Json)
}

/// Search names: the paths beneath a directory that match a glob, sorted. Over 200,000 are refused.
#[utoipa::path(post, path = "/{id}/files/search", tag = "files", params(("id" = String, Path)), request_body = SearchRequest,
    responses((status = 200, body = Vec<String>), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn search_files(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<SearchRequest>,
) -> Result<Json<Vec<String>>> {
    let files = Files::open(&app, &id, request.user.clone()).await?;
    files.search(request).await.map(Json)
}

/// Replace what matches a regular expression in files, each whole or not at all.
///
/// Files that hold a NUL byte are left as they are. When one of the files cannot be replaced in, none is.
#[utoipa::path(post, path = "/{id}/files/replace", tag = "files", params(("id" = String, Path)), request_body = ReplaceRequest,
    responses((status = 200, body = ReplaceResponse), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn replace_in_files(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Json(request): Json<ReplaceRequest>,
) -> Result<Json<ReplaceResponse>> {
    let files = Files::open(&app, &id, request.user.clone()).await?;
    files.replace(request).await.map(Json)
}

//! `…/git/…`.

use std::time::Duration;

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use nullspace_api::{
    ErrorBody, Noun,
    git::{
        GitAddRequest, GitBranchRequest, GitBranches, GitCheckoutRequest, GitCloneRequest,
        GitCloneResponse, GitCommitRequest, GitCommitResponse, GitLog, GitLogQuery, GitOk,
        GitQuery, GitStatus, GitSyncRequest, GitSyncResponse,
    },
};
use serde::Serialize;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    error,
    extract::{Json, Path, Query},
    trickle::{self, Ending},
};
use crate::{
    app::{AppState, git},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(git_clone))
        .routes(routes!(git_status))
        .routes(routes!(git_log))
        .routes(routes!(git_branch_list, git_branch))
        .routes(routes!(git_checkout))
        .routes(routes!(git_add))
        .routes(routes!(git_commit))
        .routes(routes!(git_pull))
        .routes(routes!(git_push))
}

/// Waits for the result. If that takes longer than some seconds, the answer is 200 and begins with spaces; what goes wrong
/// then is told in the body as an error is, and the connection breaks off.
async fn answer<T: Serialize + Send + 'static>(
    app: &AppState,
    noun: Noun,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<Response> {
    let patience = Duration::from_millis(app.config.exec_patience_ms);
    let mut work = Box::pin(work);
    if let Ok(done) = tokio::time::timeout(patience, &mut work).await {
        return Ok(Json(done?).into_response());
    }
    Ok(trickle::answer(Box::pin(async move {
        match work.await.map(|done| serde_json::to_vec(&done)) {
            Ok(Ok(body)) => Ending::Whole(body),
            Ok(Err(_)) => Ending::Broken(Vec::new()),
            Err(error) => Ending::Broken(error::late(error, noun)),
        }
    })))
}

/// Clone a repository.
///
/// Like all calls here that take longer than some seconds it is then answered with 200 and a body that begins with
/// spaces, so that clients keep waiting; if it fails after that, the body is an error and breaks off.
#[utoipa::path(post, path = "/{id}/git/clone", tag = "git", operation_id = "git_clone",
    params(("id" = String, Path)), request_body = GitCloneRequest,
    responses((status = 200, body = GitCloneResponse),
        (status = 400, body = ErrorBody), (status = 403, body = ErrorBody, description = "`git_auth_failed`"),
        (status = 404, body = ErrorBody, description = "`git_remote_not_found`, `git_ref_not_found`, `machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`git_exists_conflict`, `git_remote_unreachable`, and other `git_` codes"),
        (status = 504, body = ErrorBody, description = "`exec_timeout`")))]
async fn git_clone(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitCloneRequest>,
) -> Result<Response> {
    answer(&app, noun, git::clone(app.clone(), id, request)).await
}

/// What changed since the last commit.
#[utoipa::path(get, path = "/{id}/git/status", tag = "git", operation_id = "git_status",
    params(("id" = String, Path), GitQuery),
    responses((status = 200, body = GitStatus), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`git_not_a_repository`"), (status = 413, body = ErrorBody)))]
async fn git_status(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Query(query): Query<GitQuery>,
) -> Result<Response> {
    answer(&app, noun, git::status(app.clone(), id, query.path)).await
}

/// The newest commits.
#[utoipa::path(get, path = "/{id}/git/log", tag = "git", operation_id = "git_log",
    params(("id" = String, Path), GitLogQuery),
    responses((status = 200, body = GitLog), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`git_not_a_repository`"), (status = 413, body = ErrorBody)))]
async fn git_log(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Query(query): Query<GitLogQuery>,
) -> Result<Response> {
    let log = git::log(app.clone(), id, query.path, query.limit);
    let log = async { log.await.map(|commits| GitLog { commits }) };
    answer(&app, noun, log).await
}

/// The local branches.
#[utoipa::path(get, path = "/{id}/git/branch", tag = "git", operation_id = "git_branch_list",
    params(("id" = String, Path), GitQuery),
    responses((status = 200, body = GitBranches), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`git_not_a_repository`")))]
async fn git_branch_list(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Query(query): Query<GitQuery>,
) -> Result<Response> {
    answer(&app, noun, git::branches(app.clone(), id, query.path)).await
}

/// Make a branch and check it out, or delete one.
#[utoipa::path(post, path = "/{id}/git/branch", tag = "git", operation_id = "git_branch",
    params(("id" = String, Path)), request_body = GitBranchRequest,
    responses((status = 200, body = GitOk), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`git_ref_not_found`"),
        (status = 409, body = ErrorBody, description = "`git_exists_conflict`, `git_unmerged_conflict`")))]
async fn git_branch(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitBranchRequest>,
) -> Result<Response> {
    answer(&app, noun, ok(git::branch(app.clone(), id, request))).await
}

/// Check out a branch, a tag or a commit.
#[utoipa::path(post, path = "/{id}/git/checkout", tag = "git", operation_id = "git_checkout",
    params(("id" = String, Path)), request_body = GitCheckoutRequest,
    responses((status = 200, body = GitOk), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`git_ref_not_found`"),
        (status = 409, body = ErrorBody, description = "`git_dirty_conflict`")))]
async fn git_checkout(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitCheckoutRequest>,
) -> Result<Response> {
    answer(&app, noun, ok(git::checkout(app.clone(), id, request))).await
}

/// Stage files for the next commit.
#[utoipa::path(post, path = "/{id}/git/add", tag = "git", operation_id = "git_add",
    params(("id" = String, Path)), request_body = GitAddRequest,
    responses((status = 200, body = GitOk), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`git_path_not_found`"), (status = 409, body = ErrorBody)))]
async fn git_add(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitAddRequest>,
) -> Result<Response> {
    answer(&app, noun, ok(git::add(app.clone(), id, request))).await
}

/// Commit what is staged.
#[utoipa::path(post, path = "/{id}/git/commit", tag = "git", operation_id = "git_commit",
    params(("id" = String, Path)), request_body = GitCommitRequest,
    responses((status = 200, body = GitCommitResponse), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`git_path_not_found`"),
        (status = 409, body = ErrorBody, description = "`git_nothing_to_commit`, `git_identity_unknown`")))]
async fn git_commit(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitCommitRequest>,
) -> Result<Response> {
    let commit = git::commit(app.clone(), id, request);
    let commit = async { commit.await.map(|sha| GitCommitResponse { sha }) };
    answer(&app, noun, commit).await
}

/// Fetch from a remote, and bring the current branch up to it.
#[utoipa::path(post, path = "/{id}/git/pull", tag = "git", operation_id = "git_pull",
    params(("id" = String, Path)), request_body = GitSyncRequest,
    responses((status = 200, body = GitSyncResponse), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "`git_auth_failed`"), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`git_merge_conflict`, `git_diverged_conflict`, `git_dirty_conflict`, …"),
        (status = 504, body = ErrorBody, description = "`exec_timeout`")))]
async fn git_pull(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitSyncRequest>,
) -> Result<Response> {
    answer(&app, noun, summary(git::pull(app.clone(), id, request))).await
}

/// Push commits to a remote.
#[utoipa::path(post, path = "/{id}/git/push", tag = "git", operation_id = "git_push",
    params(("id" = String, Path)), request_body = GitSyncRequest,
    responses((status = 200, body = GitSyncResponse), (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "`git_auth_failed`"), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`git_push_conflict`, `git_no_upstream`, …"),
        (status = 504, body = ErrorBody, description = "`exec_timeout`")))]
async fn git_push(
    State(app): State<AppState>,
    Extension(noun): Extension<Noun>,
    Path(id): Path<String>,
    Json(request): Json<GitSyncRequest>,
) -> Result<Response> {
    answer(&app, noun, summary(git::push(app.clone(), id, request))).await
}

async fn ok(work: impl Future<Output = Result<()>>) -> Result<GitOk> {
    work.await.map(|()| GitOk { ok: true })
}

async fn summary(work: impl Future<Output = Result<String>>) -> Result<GitSyncResponse> {
    work.await.map(|summary| GitSyncResponse { summary })
}

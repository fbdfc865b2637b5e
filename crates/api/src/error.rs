//! The body of every answer that is not a success, and the codes that clients test.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{template_build::BuildFailure, upload::UploadFailure};

/// Error codes. Clients decide by these words, not by the HTTP status.
pub mod code {
    /// The request is malformed or asks for something impossible.
    pub const INVALID_REQUEST: &str = "invalid_request";
    /// `fields=` names a field that does not exist.
    pub const INVALID_FIELDS: &str = "invalid_fields";
    /// No key, or one that is not known.
    pub const UNAUTHORIZED: &str = "unauthorized";
    /// A link or token is over its time.
    pub const TOKEN_EXPIRED: &str = "token_expired";
    /// The key or the machine's own permissions refuse it.
    pub const PERMISSION_DENIED: &str = "permission_denied";
    /// More requests than the tenant may make; `Retry-After` says when to go on.
    pub const RATE_LIMIT_EXCEEDED: &str = "rate_limit_exceeded";
    /// More than the tenant may have.
    pub const QUOTA_EXCEEDED: &str = "quota_exceeded";
    /// No tenant of that id or name.
    pub const TENANT_NOT_FOUND: &str = "tenant_not_found";
    /// The name is taken, or the tenant still has something.
    pub const TENANT_CONFLICT: &str = "tenant_conflict";
    /// No API key of that id.
    pub const KEY_NOT_FOUND: &str = "key_not_found";
    /// No such route, file, process or other thing without a code of its own.
    pub const NOT_FOUND: &str = "not_found";
    /// The route exists, the method does not.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// No such machine (`sandbox_not_found` under `/v1/sandboxes`).
    pub const MACHINE_NOT_FOUND: &str = "machine_not_found";
    /// The machine is not running (`sandbox_not_ready` under `/v1/sandboxes`).
    pub const MACHINE_NOT_READY: &str = "machine_not_ready";
    /// No such snapshot.
    pub const SNAPSHOT_NOT_FOUND: &str = "snapshot_not_found";
    /// A machine, or one that is being made, needs the snapshot (409).
    pub const SNAPSHOT_IN_USE: &str = "snapshot_in_use";
    /// No machine can be made of the snapshot: it is not whole, was changed, or is another engine's (409).
    pub const INCOMPATIBLE_SNAPSHOT: &str = "incompatible_snapshot";
    /// No such webhook.
    pub const WEBHOOK_NOT_FOUND: &str = "webhook_not_found";
    /// The webhook has no such delivery.
    pub const WEBHOOK_DELIVERY_NOT_FOUND: &str = "webhook_delivery_not_found";
    /// No such template.
    pub const TEMPLATE_NOT_FOUND: &str = "template_not_found";
    /// The template is being made; ask again.
    pub const TEMPLATE_NOT_READY: &str = "template_not_ready";
    /// Another template has the name, or somebody keeps it.
    pub const TEMPLATE_NAME_CONFLICT: &str = "template_name_conflict";
    /// No such build of a template.
    pub const TEMPLATE_BUILD_NOT_FOUND: &str = "template_build_not_found";
    /// The build is not ready, so no tag can mean it.
    pub const TEMPLATE_BUILD_CONFLICT: &str = "template_build_conflict";
    /// The template has no such tag.
    pub const TEMPLATE_TAG_NOT_FOUND: &str = "template_tag_not_found";
    /// The template has no such alias.
    pub const TEMPLATE_ALIAS_NOT_FOUND: &str = "template_alias_not_found";
    /// No such claim, or it is over its time.
    pub const TEMPLATE_NAME_CLAIM_NOT_FOUND: &str = "template_name_claim_not_found";
    /// No such namespace.
    pub const TEMPLATE_NAMESPACE_NOT_FOUND: &str = "template_namespace_not_found";
    /// No such blob of a build context.
    pub const TEMPLATE_BLOB_NOT_FOUND: &str = "template_blob_not_found";
    /// The idempotency key was used with another body.
    pub const IDEMPOTENCY_CONFLICT: &str = "idempotency_conflict";
    /// The first request with this idempotency key is still under way.
    pub const TRANSITION_IN_PROGRESS: &str = "transition_in_progress";
    /// Something is there already.
    pub const CONFLICT: &str = "conflict";
    /// A limit of this installation is reached.
    pub const CAPACITY_EXCEEDED: &str = "capacity_exceeded";
    /// No host could take the machine.
    pub const NO_ELIGIBLE_RUNTIME_HOST: &str = "no_eligible_runtime_host";
    /// A warm instance was required and there is none.
    pub const WARM_POOL_UNAVAILABLE: &str = "warm_pool_unavailable";
    /// No such warm pool.
    pub const WARM_POOL_NOT_FOUND: &str = "warm_pool_not_found";
    /// A warm instance was required of a pool that makes other machines, or the pool is in no state for that.
    pub const WARM_POOL_CONFLICT: &str = "warm_pool_conflict";
    /// The command's time limit ended it.
    pub const EXEC_TIMEOUT: &str = "exec_timeout";
    /// The machine could not run the command at all.
    pub const EXEC_FAILED: &str = "exec_failed";
    /// A file operation failed in the machine.
    pub const FILE_ERROR: &str = "file_error";
    /// An upload in parts failed; `error_detail.reason` says why.
    pub const FILE_UPLOAD_ERROR: &str = "file_upload_error";
    /// Machines have the volume.
    pub const VOLUME_BUSY: &str = "volume_busy";
    /// A volume cannot be mounted at that path, or that part of it.
    pub const VOLUME_INVALID_MOUNT_PATH: &str = "volume_invalid_mount_path";
    /// Two volumes at one path, or one inside the other.
    pub const VOLUME_OVERLAPPING_MOUNTS: &str = "volume_overlapping_mounts";
    /// Too many volumes.
    pub const VOLUME_LIMIT_EXCEEDED: &str = "volume_limit_exceeded";
    /// The volume has all that it may have.
    pub const VOLUME_QUOTA_EXCEEDED: &str = "volume_quota_exceeded";
    /// The volume's files cannot be reached now.
    pub const VOLUME_BACKEND_UNAVAILABLE: &str = "volume_backend_unavailable";
    /// The machine's engine cannot do that with volumes.
    pub const VOLUME_BACKEND_CAPABILITY_UNSUPPORTED: &str = "volume_backend_capability_unsupported";
    /// The request body is too large.
    pub const BODY_TOO_LARGE: &str = "body_too_large";
    /// The client took too long.
    pub const TIMEOUT: &str = "timeout";
    /// No such Agent Deployment.
    pub const AGENT_DEPLOYMENT_NOT_FOUND: &str = "agent_deployment_not_found";
    /// Another deployment that is not deleted has the name.
    pub const AGENT_DEPLOYMENT_NAME_CONFLICT: &str = "agent_deployment_name_conflict";
    /// A job call on a service deployment, or the other way round.
    pub const AGENT_MODE_CONFLICT: &str = "agent_mode_conflict";
    /// No such version.
    pub const AGENT_VERSION_NOT_FOUND: &str = "agent_version_not_found";
    /// No such run.
    pub const AGENT_RUN_NOT_FOUND: &str = "agent_run_not_found";
    /// No such service instance.
    pub const AGENT_SERVICE_NOT_FOUND: &str = "agent_service_not_found";
    /// The run left nothing of that name.
    pub const AGENT_OUTPUT_NOT_FOUND: &str = "agent_output_not_found";
    /// A bundle's digest is not what its parts give; `details.reason` says which.
    pub const BUNDLE_DIGEST_MISMATCH: &str = "bundle_digest_mismatch";
    /// A manifest or an archive breaks a rule; `details.reason` says which.
    pub const BUNDLE_INVALID: &str = "bundle_invalid";
    /// The version has another bundle.
    pub const BUNDLE_CONFLICT: &str = "bundle_conflict";
    /// The install command of a version failed while its artifact was built.
    pub const BUILD_ERROR: &str = "build_error";
    /// A preview needs a token, and none was sent.
    pub const EDGE_TOKEN_MISSING: &str = "edge_token_missing";
    /// The token of a preview is over its time.
    pub const EDGE_TOKEN_EXPIRED: &str = "edge_token_expired";
    /// It is none of this server's.
    pub const EDGE_TOKEN_INVALID: &str = "edge_token_invalid";
    /// It is for another machine, port or kind of traffic.
    pub const EDGE_TOKEN_SCOPE_MISMATCH: &str = "edge_token_scope_mismatch";
    /// The token's grant is not known any more.
    pub const PREVIEW_GRANT_INVALID: &str = "preview_grant_invalid";
    /// The token's grant was revoked.
    pub const PREVIEW_GRANT_REVOKED: &str = "preview_grant_revoked";
    /// No such grant.
    pub const PREVIEW_GRANT_NOT_FOUND: &str = "preview_grant_not_found";
    /// A URL for proxies was opened without the token in its header.
    pub const PREVIEW_PROXY_TOKEN_MISSING: &str = "preview_proxy_token_missing";
    /// A proxy's token is over its time.
    pub const PREVIEW_PROXY_TOKEN_EXPIRED: &str = "preview_proxy_token_expired";
    /// It is none of this server's, or its grant is not known any more.
    pub const PREVIEW_PROXY_TOKEN_INVALID: &str = "preview_proxy_token_invalid";
    /// Its grant was revoked.
    pub const PREVIEW_PROXY_TOKEN_REVOKED: &str = "preview_proxy_token_revoked";
    /// It is for another machine, port or kind of traffic.
    pub const PREVIEW_PROXY_TOKEN_SCOPE_MISMATCH: &str = "preview_proxy_token_scope_mismatch";
    /// Nothing answers on a previewed port; in the answer to a readiness check.
    pub const PREVIEW_SERVICE_NOT_READY: &str = "preview_service_not_ready";
    /// There is no git in the machine, or no `ssh` for what needs one.
    pub const GIT_UNAVAILABLE: &str = "git_unavailable";
    /// The directory is in no repository.
    pub const GIT_NOT_A_REPOSITORY: &str = "git_not_a_repository";
    /// Git does not trust a repository that belongs to another user of the machine.
    pub const GIT_NOT_TRUSTED: &str = "git_not_trusted";
    /// The remote wants a credential, or another one.
    pub const GIT_AUTH_FAILED: &str = "git_auth_failed";
    /// No remote of that name, or no repository where it points.
    pub const GIT_REMOTE_NOT_FOUND: &str = "git_remote_not_found";
    /// The remote cannot be reached.
    pub const GIT_REMOTE_UNREACHABLE: &str = "git_remote_unreachable";
    /// The remote's SSH host key is not the one that the machine knows.
    pub const GIT_HOST_KEY_CONFLICT: &str = "git_host_key_conflict";
    /// No branch, tag or commit of that name.
    pub const GIT_REF_NOT_FOUND: &str = "git_ref_not_found";
    /// A pattern that no file has.
    pub const GIT_PATH_NOT_FOUND: &str = "git_path_not_found";
    /// The remote has commits that the local branch lacks, or refuses the change.
    pub const GIT_PUSH_CONFLICT: &str = "git_push_conflict";
    /// Both sides have commits and git was not told how to bring them together.
    pub const GIT_DIVERGED_CONFLICT: &str = "git_diverged_conflict";
    /// Both sides changed the same lines; the work tree has the marks.
    pub const GIT_MERGE_CONFLICT: &str = "git_merge_conflict";
    /// Changes that are not committed would be lost.
    pub const GIT_DIRTY_CONFLICT: &str = "git_dirty_conflict";
    /// What is to be made is there already, or in use.
    pub const GIT_EXISTS_CONFLICT: &str = "git_exists_conflict";
    /// A branch has commits that no other has.
    pub const GIT_UNMERGED_CONFLICT: &str = "git_unmerged_conflict";
    /// Another git works on the repository.
    pub const GIT_LOCKED_CONFLICT: &str = "git_locked_conflict";
    /// The current branch has no upstream, or there is no current branch.
    pub const GIT_NO_UPSTREAM: &str = "git_no_upstream";
    /// There is nothing to commit.
    pub const GIT_NOTHING_TO_COMMIT: &str = "git_nothing_to_commit";
    /// Git does not know who commits.
    pub const GIT_IDENTITY_UNKNOWN: &str = "git_identity_unknown";
    /// Git would not do it for another reason, which the message has.
    pub const GIT_FAILED: &str = "git_failed";
    /// The disk is full.
    pub const INSUFFICIENT_STORAGE: &str = "insufficient_storage";
    /// Not part of this server yet.
    pub const NOT_IMPLEMENTED: &str = "not_implemented";
    /// The server is going down.
    pub const SHUTTING_DOWN: &str = "shutting_down";
    /// The record could not be written or read.
    pub const DATABASE_ERROR: &str = "database_error";
    /// A fault of the server.
    pub const INTERNAL_ERROR: &str = "internal_error";
}

/// The flat error body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// For people: what went wrong, lower-case, without a full stop.
    pub error: String,
    /// For programs: one of the words of [`code`].
    pub code: String,
    /// Names this request in the server's log; also in the `x-request-id` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Whether the same request may succeed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggested_action: Option<String>,
    /// More facts, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
    /// Why an upload in parts, or a file of a build, was not taken, with the code `file_upload_error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
}

/// More about an error, in the form that its area has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ErrorDetail {
    /// Of an upload in parts.
    Upload(UploadFailure),
    /// Of a build of a template.
    Build(Box<BuildFailure>),
}

impl ErrorDetail {
    /// Says which request it is about.
    pub fn set_request_id(&mut self, id: &str) {
        match self {
            Self::Upload(failure) => failure.request_id = Some(id.to_owned()),
            Self::Build(failure) => failure.request_id = Some(id.to_owned()),
        }
    }
}

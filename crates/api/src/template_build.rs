//! Builds of templates: what is asked, where one stands, what it says.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::machine::Isolation;
use crate::template::{
    EntryType, Mode, OciMetadata, Readiness, RuntimeDefaults, TemplateInfo, Visibility, is_false,
};

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A build, `POST /v1/templates/builds`. Exactly one of `base_image` and `dockerfile`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildRequest {
    /// The template's name: one segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name, if `name` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Tags that mean this build once it is ready; `default` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// A template, an image of a registry, or one in the build context: `archive:PATH[:NAME]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
    /// What is done to it, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<BuildStep>>,
    /// The text of a Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// Where it was; only told back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile_path: Option<String>,
    /// Values for `ARG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_args: Option<BTreeMap<String, String>>,
    /// The stage that is wanted; the last when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_target: Option<String>,
    /// The files that steps copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_context: Option<BuildContext>,
    /// Variables while it is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_envs: Option<BTreeMap<String, String>>,
    /// Runs in every machine from its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// What machines have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_config: Option<RuntimeConfig>,
    /// For a base image that is not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_auth: Option<RegistryAuth>,
    /// The same for several registries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Vec<NamedRegistryAuth>>,
    /// For steps alone: in no layer, log or record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_secrets: Option<Vec<BuildSecret>>,
    /// The machines that build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_config: Option<BuildConfig>,
    /// `native` or `buildkit`; only told back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_backend: Option<BuildBackend>,
    /// Do everything again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub skip_cache: bool,
    /// Of a reserved name; its holder may build without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_token: Option<String>,
}

/// How the client calls the way in which a template is built. This server has one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildBackend {
    /// Steps.
    Native,
    /// A Dockerfile.
    Buildkit,
}

/// A step of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum BuildStep {
    /// Debian packages.
    AptInstall {
        /// At least one.
        packages: Vec<String>,
    },
    /// Python packages.
    PipInstall {
        /// At least one.
        packages: Vec<String>,
        /// `false` for the user's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        g: Option<bool>,
    },
    /// Node packages.
    NpmInstall {
        /// At least one.
        packages: Vec<String>,
        /// `true` for the whole system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        g: Option<bool>,
    },
    /// Node packages, with Bun.
    BunInstall {
        /// At least one.
        packages: Vec<String>,
        /// `true` for the whole system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        g: Option<bool>,
    },
    /// A shell command.
    Run {
        /// Which.
        command: String,
        /// Whom it runs as.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
    },
    /// Where later steps, and machines, start.
    Workdir {
        /// Made if it is not there.
        path: String,
    },
    /// Whom later steps, and machines, run as.
    User {
        /// A name or number, with a group after a colon.
        user: String,
    },
    /// Files of the context.
    Copy(CopyItem),
    /// Files of the context, to several places.
    CopyItems {
        /// At least one.
        items: Vec<CopyItem>,
    },
    /// A repository.
    GitClone {
        /// From where.
        url: String,
        /// To where.
        path: String,
        /// Which branch or tag.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        branch: Option<String>,
        /// How many commits of its history.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        depth: Option<u32>,
    },
    /// Remove something.
    Remove {
        /// What.
        path: String,
        /// A directory, with what is in it.
        #[serde(default)]
        recursive: bool,
        /// It need not be there.
        #[serde(default)]
        force: bool,
    },
    /// Move something.
    Rename {
        /// From.
        src: String,
        /// To.
        dst: String,
        /// Whether something may be there.
        #[serde(default)]
        force: bool,
    },
    /// Make a directory and its parents.
    MakeDir {
        /// Which.
        path: String,
        /// Its permission bits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<Mode>,
    },
    /// Make a symbolic link.
    MakeSymlink {
        /// Where it leads.
        target: String,
        /// Where it is.
        path: String,
    },
    /// Later steps are done again.
    SkipCache {},
}

/// Files of the context and where they go. A directory means what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyItem {
    /// Paths in the context.
    pub sources: Vec<String>,
    /// A file, or a directory if it ends with `/` or there are several sources.
    pub dst: String,
    /// Whom they belong to: a name or number, with a group after a colon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Permission bits of all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The layer is made again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force_upload: bool,
}

/// The files that steps may copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildContext {
    /// Parents before children.
    pub files: Vec<ContextFile>,
}

/// A file or directory of the context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// Relative, without `.` and `..`.
    pub path: String,
    /// What it is.
    pub entry_type: EntryType,
    /// Permission bits; `0644`, or `0755` of a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Its bytes, sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<String>,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_base64: Option<String>,
}

/// What machines of the template have unless they ask for something else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Where they start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// Their variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_envs: Option<BTreeMap<String, String>>,
    /// When a machine counts as ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    /// What keeps its machines apart from the host, unless they ask for something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// The machines that build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildConfig {
    /// Whole CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Whether steps reach the internet; they do when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// MiB that must be free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
}

/// How a registry knows who asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegistryAuth {
    /// A name and a password or token.
    Basic {
        /// The name.
        username: Secret,
        /// The password.
        password: Secret,
    },
    /// Google's registry.
    GcpArtifactRegistry {
        /// The key of a service account: an object, or its text.
        service_account_json: SecretJson,
    },
    /// Amazon's registry.
    AwsEcr {
        /// The key's id.
        access_key_id: Secret,
        /// The key.
        secret_access_key: Secret,
        /// `eu-central-1`.
        region: String,
        /// Of a temporary key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_token: Option<Secret>,
    },
}

/// JSON that is never printed.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct SecretJson(pub Value);

impl fmt::Debug for SecretJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretJson")
    }
}

/// [`RegistryAuth`] of one registry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedRegistryAuth {
    /// Its host, with the port if it has one.
    pub registry: String,
    /// How it knows.
    pub auth: RegistryAuth,
}

/// A value that steps can read while they run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildSecret {
    /// 1 to 128 of `[A-Za-z0-9._-]`.
    pub id: String,
    /// The value.
    pub value: Secret,
    /// Where the client had it from: `value`, `env` or `file`. Not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Where a build stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BuildStatus {
    /// For its turn.
    Waiting,
    /// At work.
    Building,
    /// The template is there.
    Ready,
    /// It failed.
    Error,
    /// Somebody stopped it.
    Cancelled,
}

impl BuildStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [
        Self::Waiting,
        Self::Building,
        Self::Ready,
        Self::Error,
        Self::Cancelled,
    ];

    /// The word on the wire and in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }

    /// Whether it stays as it is.
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Ready | Self::Error | Self::Cancelled)
    }
}

/// An image that a build fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaseImage {
    /// What was asked for.
    pub reference: String,
    /// What that was: `sha256:…` of its manifest.
    pub digest: String,
}

/// A build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Build {
    /// Its id.
    pub build_id: String,
    /// What it is a build of.
    pub template_id: String,
    /// The template's name.
    pub name: String,
    /// The tags that mean it, or will.
    pub tags: Vec<String>,
    /// Where it stands.
    pub status: BuildStatus,
    /// As asked, or by the source.
    pub build_backend: BuildBackend,
    /// `declarative`, `dockerfile`, `oci_import` or `template_base`.
    pub source_type: String,
    /// The images that it was made over or copied from, as they were then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub base_images: Vec<BaseImage>,
    /// SHA-256 of what was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// SHA-256 of the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_digest: Option<String>,
    /// SHA-256 of the Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile_digest: Option<String>,
    /// `api`, or `retry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// When it was asked for.
    pub created_at: String,
    /// When it changed last.
    pub updated_at: String,
    /// When it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<String>,
    /// When its turn came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// How long that took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// In what it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_phase: Option<String>,
    /// The machines that build.
    pub build_config: BuildConfig,
    /// What did not have to be done.
    pub cache_summary: CacheSummary,
    /// Whether its layers are there.
    pub artifact_availability: Availability,
    /// Whether a tag can be made to mean it.
    pub promotability: Promotability,
    /// What its machines have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<RuntimeDefaults>,
    /// What came from an image or a Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_metadata: Option<OciMetadata>,
    /// What was made.
    pub artifact_ids: Vec<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<BuildFailure>,
    /// The build that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of_build_id: Option<String>,
    /// The first of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_build_id: Option<String>,
    /// When somebody wanted it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<String>,
    /// Who did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancellation_reason: Option<String>,
    /// `namespace/name`.
    pub canonical_ref: String,
    /// The namespace.
    pub namespace_slug: String,
    /// Who may use the template.
    pub visibility: Visibility,
}

/// What a build found, made and passed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheSummary {
    /// The whole template was there.
    pub final_artifact_hits: u32,
    /// It was not.
    pub final_artifact_misses: u32,
    /// It was not looked for.
    pub final_artifact_bypasses: u32,
    /// It was kept.
    pub final_artifact_stores: u32,
    /// Layers that were there.
    pub layer_hits: u32,
    /// Layers that were not.
    pub layer_misses: u32,
    /// Layers that were not looked for.
    pub layer_bypasses: u32,
    /// Layers that were kept.
    pub layer_stores: u32,
    /// Files that were there.
    pub file_blob_hits: u32,
    /// Files that were not.
    pub file_blob_misses: u32,
    /// Files that were sent all the same.
    pub file_blob_bypasses: u32,
    /// Files that were kept.
    pub file_blob_stores: u32,
}

/// Whether the layers of a build are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Availability {
    /// `available`, `publishing`, `unavailable` or `failed`.
    pub status: String,
    /// Why they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a tag can be made to mean a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Promotability {
    /// `promotable`, `not_ready` or `unavailable`.
    pub status: String,
    /// The same as a word of yes or no.
    pub promotable: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why a build failed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildFailure {
    /// `build_error`, `file_upload_error` or `internal_error`.
    pub code: String,
    /// For people.
    pub message: String,
    /// `auth`, `preflight`, `blob_upload`, `prepare`, `build_step`, `readiness`, `snapshot`, `finalize` or `interrupted`.
    pub phase: String,
    /// Whether the same build may succeed later.
    pub retryable: bool,
    /// What to do about it.
    pub suggested_action: String,
    /// The step, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_index: Option<u32>,
    /// Which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// The request, of failures before a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// `reason`, and more by reason: `command`, `exit_code`, `path`, `line`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub details: Option<Value>,
}

/// Something that a build says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildLogEntry {
    /// The build.
    pub build_id: String,
    /// The template.
    pub template_id: String,
    /// Its number, from 0 on without holes.
    pub offset: u64,
    /// When.
    pub timestamp: String,
    /// `start`, `message`, `cache`, `retry`, `warning`, `error`, `cancelled` or `end`.
    pub kind: String,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// For people.
    pub message: String,
    /// In what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The step, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_index: Option<u32>,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u32>,
    /// `file_blob`, `layer` or `final_artifact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_kind: Option<String>,
    /// `hit`, `miss`, `stored` or `bypass`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_status: Option<String>,
    /// Why it was passed by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_reason: Option<String>,
    /// What.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_subject: Option<String>,
    /// With `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<BuildFailure>,
    /// With `end`: the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<TemplateInfo>>,
    /// With `end`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_metadata: Option<Box<ResultMetadata>>,
}

/// What a finished build has besides its template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResultMetadata {
    /// What its machines have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<RuntimeDefaults>,
    /// What came from an image or a Dockerfile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_metadata: Option<OciMetadata>,
}

/// A build and what it said since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildSnapshot {
    /// Where it stands.
    pub build: Build,
    /// What it said from the offset on, at most a page.
    pub entries: Vec<BuildLogEntry>,
    /// The offset to ask for next.
    pub next_offset: u64,
}

/// Query of `GET /v1/templates/builds/{build_id}`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams,
)]
#[serde(deny_unknown_fields)]
pub struct BuildQuery {
    /// The first entry wanted; 0 when absent.
    #[serde(default)]
    pub offset: Option<u64>,
}

/// Query of `GET /v1/templates/builds/{build_id}/logs`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams,
)]
#[serde(deny_unknown_fields)]
pub struct BuildLogsQuery {
    /// Go on until the build ends.
    #[serde(default)]
    pub follow: Option<bool>,
    /// The first entry wanted; 0 when absent.
    #[serde(default)]
    pub offset: Option<u64>,
    /// Another word for `offset`.
    #[serde(default)]
    pub cursor: Option<u64>,
}

/// Query of `GET /v1/templates/refs/{ref}/builds`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ListBuildsQuery {
    /// Only with this status.
    #[serde(default)]
    pub status: Option<String>,
    /// Only of this way.
    #[serde(default)]
    pub backend: Option<String>,
    /// Only of this source.
    #[serde(default)]
    pub source_type: Option<String>,
    /// 1 to 200; 50 when absent.
    #[serde(default)]
    pub limit: Option<u32>,
    /// From the page before.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A page of builds, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildPage {
    /// The builds.
    pub builds: Vec<Build>,
    /// For the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `POST /v1/templates/builds/{build_id}/cancel`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelBuildRequest {
    /// Told back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `POST /v1/templates/builds/{build_id}/retry`. Secrets are not kept, so they have to be sent again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryBuildRequest {
    /// Other tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// As in [`BuildRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_auth: Option<RegistryAuth>,
    /// As in [`BuildRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_auth: Option<Vec<NamedRegistryAuth>>,
    /// As in [`BuildRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_secrets: Option<Vec<BuildSecret>>,
}

/// `POST /v1/templates/builds/{build_id}/promote`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PromoteBuildRequest {
    /// The tag that is to mean the build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Several of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
}

/// What is wrong with a build before it is begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidationError {
    /// `invalid_request` or another code.
    pub code: String,
    /// For people.
    pub message: String,
    /// In what it would fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
}

/// The answer of `POST /v1/templates/validate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValidateResponse {
    /// Whether it could be begun.
    pub valid: bool,
    /// Why not.
    pub errors: Vec<ValidationError>,
    /// What may not be what was meant.
    pub warnings: Vec<String>,
}

/// The answer of `POST /v1/templates/plan`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanResponse {
    /// As in [`Build`].
    pub build_backend: BuildBackend,
    /// As in [`Build`].
    pub source_type: String,
    /// As in [`Build`].
    pub source_digest: String,
    /// The files, in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_manifest: Option<ContextManifest>,
    /// As in [`Build`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dockerfile_digest: Option<String>,
    /// What would be done.
    pub build_plan: BuildPlan,
    /// What may not be what was meant.
    pub warnings: Vec<String>,
    /// Whether the base image is said to need credentials.
    pub requires_base_image_auth: bool,
}

/// The files of a build, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextManifest {
    /// Names it.
    pub context_manifest_id: String,
    /// SHA-256 of all of it.
    pub context_digest: String,
    /// Files and directories.
    pub file_count: u64,
}

/// What a build would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BuildPlan {
    /// What it starts from.
    pub base_template: String,
    /// Commands, in order.
    pub run_steps: Vec<String>,
    /// Everything, in order: objects with one key, the kind.
    #[schema(value_type = Vec<Object>)]
    pub build_steps: Vec<Value>,
    /// Variables while it is built: names with the values hidden.
    pub build_envs: BTreeMap<String, String>,
    /// Variables that an instruction sets, as pairs.
    pub env_assignments: Vec<(String, String)>,
    /// Instructions that are kept to be shown only.
    pub ignored_instructions: Vec<String>,
    /// What runs in every machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// Whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Where they start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// When a machine counts as ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

//! Templates: what machines start from, by name, tag and build.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The namespace of everything that is made on this installation.
pub const NAMESPACE: &str = "default";
/// The namespace of the built-in templates.
pub const BUILTIN_NAMESPACE: &str = "nullspace";
/// The tag of a template whose reference names none.
pub const DEFAULT_TAG: &str = "default";

/// Who may use a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Visibility {
    /// Whoever it belongs to.
    #[default]
    Private,
    /// Everybody on this installation.
    Public,
}

impl Visibility {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Public => "public",
        }
    }
}

/// What machines of a template have unless they ask for something else. Values of variables are never shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RuntimeDefaults {
    /// Names of variables.
    pub default_env_keys: Vec<String>,
    /// Runs in every machine from its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// Whom commands run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Where commands start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// When a machine counts as ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// When a machine counts as ready: asked again and again until it is, or the time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Readiness {
    /// Something listens on a port.
    Tcp {
        /// Which; 1 to 65535.
        port: u16,
        /// When it is given up, in seconds; 1 to 600.
        #[serde(default = "thirty")]
        timeout_secs: u64,
        /// Pause between two looks, in milliseconds; 10 to 60000.
        #[serde(default = "half")]
        interval_ms: u64,
        /// Pause before the first look, in seconds; at most 600.
        #[serde(default)]
        startup_grace_secs: u64,
    },
    /// A page on a port answers with a success.
    Http {
        /// Which; 1 to 65535.
        port: u16,
        /// The page.
        #[serde(default = "slash")]
        path: String,
        /// As for `tcp`.
        #[serde(default = "thirty")]
        timeout_secs: u64,
        /// As for `tcp`.
        #[serde(default = "half")]
        interval_ms: u64,
        /// As for `tcp`.
        #[serde(default)]
        startup_grace_secs: u64,
    },
    /// A shell command ends with 0.
    Command {
        /// Which.
        command: String,
        /// As for `tcp`.
        #[serde(default = "thirty")]
        timeout_secs: u64,
        /// As for `tcp`.
        #[serde(default = "half")]
        interval_ms: u64,
        /// As for `tcp`.
        #[serde(default)]
        startup_grace_secs: u64,
    },
    /// A while has passed.
    Timeout {
        /// How long, in milliseconds; at most 600000.
        timeout_ms: u64,
    },
}

/// How a [`Readiness`] is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// When it is given up, in seconds.
    pub timeout_secs: u64,
    /// Pause between two looks, in milliseconds.
    pub interval_ms: u64,
    /// Pause before the first look, in seconds.
    pub startup_grace_secs: u64,
}

impl Readiness {
    /// How it is looked for; `None` for a while that passes.
    #[must_use]
    pub fn pace(&self) -> Option<Pace> {
        match *self {
            Self::Tcp {
                timeout_secs,
                interval_ms,
                startup_grace_secs,
                ..
            }
            | Self::Http {
                timeout_secs,
                interval_ms,
                startup_grace_secs,
                ..
            }
            | Self::Command {
                timeout_secs,
                interval_ms,
                startup_grace_secs,
                ..
            } => Some(Pace {
                timeout_secs,
                interval_ms,
                startup_grace_secs,
            }),
            Self::Timeout { .. } => None,
        }
    }
}

fn thirty() -> u64 {
    30
}

fn half() -> u64 {
    500
}

fn slash() -> String {
    "/".into()
}

/// A template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateInfo {
    /// Its id.
    pub id: String,
    /// Its name, without the namespace.
    pub name: String,
    /// For people; empty when nobody said anything.
    pub description: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// The tag that a reference without one means, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_tag: Option<String>,
    /// Whether it came with the program.
    pub builtin: bool,
    /// `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_ref: Option<String>,
    /// The namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_slug: Option<String>,
    /// Who may use it.
    pub visibility: Visibility,
    /// What its machines have, by the build that the reference means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<RuntimeDefaults>,
    /// When it was made; absent for built-in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// The fields that `fields=` may name.
pub const TEMPLATE_FIELDS: [&str; 11] = [
    "id",
    "name",
    "description",
    "tags",
    "default_tag",
    "builtin",
    "canonical_ref",
    "namespace_slug",
    "visibility",
    "runtime_defaults",
    "created_at",
];

/// Query of `GET /v1/templates` and of one template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct TemplateQuery {
    /// Only these fields, separated by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
}

/// A tag of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateTag {
    /// The tag.
    pub tag: String,
    /// The build it means.
    pub build_id: String,
    /// When it came to mean that.
    pub created_at: String,
}

/// `POST /v1/templates/refs/{ref}/tags`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignTagsRequest {
    /// At least one.
    pub tags: Vec<String>,
}

/// `PATCH /v1/templates/refs/{ref}/visibility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetVisibilityRequest {
    /// Who may use it from now on.
    pub visibility: Visibility,
}

/// `POST /v1/templates/refs/{ref}/rename`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameTemplateRequest {
    /// One segment. The old name goes on to lead here.
    pub new_name: String,
}

/// A name that a template had before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateAlias {
    /// `namespace/name`.
    pub alias_ref: String,
    /// Since when it is one.
    pub created_at: String,
}

/// `POST /v1/templates/claims`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimNameRequest {
    /// The name, in the default namespace.
    pub template_ref: String,
}

/// A name that is kept for whoever asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateNameClaim {
    /// Gives it back.
    pub claim_token: String,
    /// `namespace/name`.
    pub canonical_ref: String,
    /// When it is given back by itself.
    pub expires_at: String,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateNamespace {
    /// Its name.
    pub slug: String,
    /// `system`, `user` or `deployment`.
    pub kind: String,
    /// Whether names without a namespace are looked for in it.
    pub is_default: bool,
}

/// A file or directory that a client is about to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobDescriptor {
    /// Its place in the build context.
    pub path: String,
    /// `file` or `dir`.
    pub entry_type: EntryType,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// SHA-256 of its bytes in hex; of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// How many they are; of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Send it even if it is there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force_upload: bool,
}

/// What an entry of a build context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryType {
    /// A file.
    File,
    /// A directory.
    Dir,
}

/// Permission bits: octal digits, or a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Mode {
    /// `"0755"`.
    Text(String),
    /// 493.
    Number(u32),
}

impl Mode {
    /// The bits, if they are at most `0o7777`.
    #[must_use]
    pub fn bits(&self) -> Option<u32> {
        let bits = match self {
            Self::Number(bits) => *bits,
            Self::Text(text) => u32::from_str_radix(text, 8).ok()?,
        };
        (bits <= 0o7777).then_some(bits)
    }
}

/// `POST /v1/templates/blobs/preflight`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreflightRequest {
    /// The build context.
    pub files: Vec<BlobDescriptor>,
}

/// Whether an entry has to be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreflightResult {
    /// As asked.
    pub path: String,
    /// As asked.
    pub entry_type: EntryType,
    /// Whether its bytes have to be sent.
    pub missing: bool,
    /// Where they go; of files. Equal bytes have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<String>,
    /// As asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// The answer to [`PreflightRequest`]: one result for each entry, in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreflightResponse {
    /// The results.
    pub files: Vec<PreflightResult>,
}

/// Labels, ports, volumes and a health check that came from an image or a Dockerfile: kept to be shown, not acted on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OciMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `8080/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths.
    pub volumes: Vec<String>,
    /// The health check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<OciHealthcheck>,
    /// What the image of a registry or an archive would run, first part. It is not run: see `start_cmd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The rest of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
}

/// A health check as images have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OciHealthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    pub test: Vec<String>,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ns: Option<i64>,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ns: Option<i64>,
    /// Nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ns: Option<i64>,
    /// How often in a row it may fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

//! The agent config: what `nullspace.agent.toml` may say, and the same on the wire.
//!
//! The client reads the file with these rules and sends the result; the server reads the wire form with the very same
//! rules, because a client may be anyone. Rules, texts and the order problems are reported in are those of the
//! published client 0.1.9, so a project that deploys with one deploys with the other.

mod parse;
mod render;

use crate::node::Node;
use crate::text;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fmt;

pub(crate) use parse::{Completeness, toml_node};

/// The file a project keeps its config in, at its root.
pub const CONFIG_FILENAME: &str = "nullspace.agent.toml";
/// Template of a config that names none.
pub const DEFAULT_TEMPLATE: &str = "base";
/// Working directory, inside the machine, of a config that names none.
pub const DEFAULT_WORKDIR: &str = "/workspace/project";

/// Why a config was refused. The text names the field; [`ConfigError::field`] gives it alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML; the parser's words.
    #[error("invalid TOML: {0}")]
    Toml(String),
    /// The wire form is not an object.
    #[error("config must be a TOML table")]
    NotAConfig,
    /// A key no config has, as a dotted path. Of several, the first in code-point order.
    #[error("unknown agent config key: {0}")]
    UnknownKey(String),
    /// A key that must be given was not: `name` or `entrypoint`.
    #[error("{0} is required")]
    Required(&'static str),
    /// A section is something other than a table.
    #[error("{0} must be a table")]
    NotATable(&'static str),
    /// A string is empty after trimming, or not a string.
    #[error("{0} must be a non-empty string")]
    NotAString(String),
    /// A list of strings is not a list.
    #[error("{0} must be a list of strings")]
    NotAList(String),
    /// A flag is not true or false.
    #[error("{0} must be a boolean")]
    NotABoolean(String),
    /// A number is zero, negative, fractional or no number.
    #[error("{0} must be a positive integer")]
    NotAPositiveInteger(String),
    /// `mode` is none of the known ones; carries it lower-cased.
    #[error("mode must be one of interactive, job, service, triggered, worker, workspace; got {}", text::quoted(.0))]
    UnknownMode(String),
    /// `workdir` is relative.
    #[error("workdir must be an absolute sandbox path")]
    RelativeWorkdir,
    /// `service.port` is above 65535.
    #[error("service.port must be between 1 and 65535")]
    PortOutOfRange,
    /// A service has no port.
    #[error("service.port is required when mode is service")]
    PortRequired,
    /// An output names the root of the file system.
    #[error("{0} must point to a file or directory")]
    OutputIsRoot(String),
    /// An output path has a segment that means another directory.
    #[error("{0} must not contain empty, '.', or '..' segments")]
    OutputSegments(String),
    /// On the wire only: an entry of `env` carries a value, or is padded. Values are never stored.
    #[error("{0} must be an environment variable name without '=' or surrounding white space")]
    NotAnEnvName(String),
}

impl ConfigError {
    /// The dotted path of the field at fault, when it is one field.
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Toml(_) | Self::NotAConfig => None,
            Self::UnknownKey(path)
            | Self::NotAString(path)
            | Self::NotAList(path)
            | Self::NotABoolean(path)
            | Self::NotAPositiveInteger(path)
            | Self::OutputIsRoot(path)
            | Self::OutputSegments(path)
            | Self::NotAnEnvName(path) => Some(path),
            Self::Required(path) | Self::NotATable(path) => Some(path),
            Self::UnknownMode(_) => Some("mode"),
            Self::RelativeWorkdir => Some("workdir"),
            Self::PortOutOfRange | Self::PortRequired => Some("service.port"),
        }
    }
}

/// How an agent is deployed. All six parse; only [`Mode::Job`] and [`Mode::Service`] can be deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Reserved.
    Interactive,
    /// Runs to completion; outputs are published when it exits.
    Job,
    /// Listens on a port until stopped.
    Service,
    /// Reserved.
    Triggered,
    /// Reserved.
    Worker,
    /// Reserved.
    Workspace,
}

impl Mode {
    /// The spelling in files and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Job => "job",
            Self::Service => "service",
            Self::Triggered => "triggered",
            Self::Worker => "worker",
            Self::Workspace => "workspace",
        }
    }

    /// Whether `deploy` and `dev` take it; the others are reserved.
    pub fn is_deployable(self) -> bool {
        matches!(self, Self::Job | Self::Service)
    }

    fn parse(lower: &str) -> Option<Self> {
        [
            Self::Interactive,
            Self::Job,
            Self::Service,
            Self::Triggered,
            Self::Worker,
            Self::Workspace,
        ]
        .into_iter()
        .find(|mode| mode.as_str() == lower)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names, never values, of the environment variables an agent reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EnvSpec {
    /// A run without one of these is refused by the client.
    pub required: Vec<String>,
    /// Passed on when the caller has them.
    pub optional: Vec<String>,
}

/// Which project files travel, as gitignore patterns; see [`crate::bundle`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BundleSpec {
    /// Never empty: an empty list reads as `["."]`, everything.
    pub include: Vec<String>,
    /// Left out on top of the default rules.
    pub exclude: Vec<String>,
}

impl Default for BundleSpec {
    fn default() -> Self {
        Self {
            include: vec![".".to_owned()],
            exclude: Vec::new(),
        }
    }
}

/// Size of the machine an agent runs in; absent means the platform's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Virtual CPUs, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// Memory in MiB, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Disk in MiB, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u64>,
    /// Longest a run may take, in seconds, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// What the machine of an agent may do; absent means the platform's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Permissions {
    /// Reach the internet at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internet_access: Option<bool>,
    /// A service may have a public URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<bool>,
    /// Requests to that URL need no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Destinations always allowed. Any non-empty string here; the network layer reads them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_out: Vec<String>,
    /// Destinations always refused, as `allow_out`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny_out: Vec<String>,
    /// Mount volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<bool>,
    /// Use a desktop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desktop: Option<bool>,
    /// Open terminals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<bool>,
    /// Debug access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub debug: Option<bool>,
    /// Keep the machine of a failed run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_on_failure: Option<bool>,
    /// Cap on `resources.vcpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_vcpus: Option<u64>,
    /// Cap on `resources.memory_mb`, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// Cap on `resources.disk_mb`, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk_mb: Option<u64>,
    /// Cap on `resources.timeout_seconds`, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_timeout_seconds: Option<u64>,
}

/// How to tell that a service is up. The type is not checked here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// For instance `http` or `tcp`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Path to ask for, for `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds until the service counts as failed, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
}

/// Where a service listens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServiceSpec {
    /// 1 to 65535; required in mode service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Present, possibly empty, when the table was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// Keeping failed machines for a look inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DebugSpec {
    /// Keep the machine of a failed run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_on_failure: Option<bool>,
    /// For how long, in seconds, at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_seconds: Option<u64>,
}

/// Files and directories published when a job ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OutputSpec {
    /// Absolute, or relative to `workdir`; no empty, `.` or `..` segment, one trailing `/` allowed.
    pub paths: Vec<String>,
}

/// A complete agent config. Serialises as the published client prints it: every section present, unset leaves left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentConfig {
    /// Deployment name. Absent only in what detection or a file alone found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Default `job`.
    pub mode: Mode,
    /// Default [`DEFAULT_TEMPLATE`].
    pub template: String,
    /// Absolute path inside the machine; default [`DEFAULT_WORKDIR`].
    pub workdir: String,
    /// Shell command run before the entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install: Option<String>,
    /// Shell command the agent is. Absent only in what detection or a file alone found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// `[env]`
    pub env: EnvSpec,
    /// `[bundle]`; not on the wire, there it is the manifest's patterns.
    pub bundle: BundleSpec,
    /// `[resources]`
    pub resources: Resources,
    /// `[permissions]`
    pub permissions: Permissions,
    /// `[service]`
    pub service: ServiceSpec,
    /// `[debug]`
    pub debug: DebugSpec,
    /// `[outputs]`
    pub outputs: OutputSpec,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: None,
            mode: Mode::Job,
            template: DEFAULT_TEMPLATE.to_owned(),
            workdir: DEFAULT_WORKDIR.to_owned(),
            install: None,
            entrypoint: None,
            env: EnvSpec::default(),
            bundle: BundleSpec::default(),
            resources: Resources::default(),
            permissions: Permissions::default(),
            service: ServiceSpec::default(),
            debug: DebugSpec::default(),
            outputs: OutputSpec::default(),
        }
    }
}

impl AgentConfig {
    /// Reads a whole config from TOML text, name and entrypoint included.
    ///
    /// # Errors
    /// The first problem in the order: TOML, unknown top-level keys, then the sections in the order of the fields of
    /// this type, then the port of a service.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::parse(&toml_node(text)?, Completeness::Full)
    }

    /// Reads the wire form, as the server does. `bundle` may be absent; null reads as absent.
    ///
    /// # Errors
    /// As [`AgentConfig::from_toml`], and entries of `env` that are not bare names.
    pub fn from_wire(value: &Value) -> Result<Self, ConfigError> {
        let node = Node::from(value);
        let config = Self::parse(&node, Completeness::Full)?;
        for key in ["required", "optional"] {
            if let Some(Node::List(names)) = node.get("env").and_then(|env| env.get(key)) {
                for (index, name) in names.iter().enumerate() {
                    let bare = matches!(name, Node::Str(name) if text::strip(name) == name && !name.contains('='));
                    if !bare {
                        return Err(ConfigError::NotAnEnvName(format!("env.{key}[{index}]")));
                    }
                }
            }
        }
        Ok(config)
    }

    /// The wire form: without `bundle`, `install` null when there is none.
    pub fn to_wire(&self) -> Value {
        let mut value = self.full_dict();
        if let Value::Object(fields) = &mut value {
            fields.remove("bundle");
            fields.entry("install").or_insert(Value::Null);
        }
        value
    }

    /// The whole config as one object; absent name, install and entrypoint are left out. Its digest is
    /// [`AgentConfig::config_digest`].
    pub fn full_dict(&self) -> Value {
        // Strings, integers and flags under string keys: nothing in it can fail to become a value.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// SHA-256, in lower-case hex, of [`AgentConfig::full_dict`] as JSON with sorted keys, no spaces and ASCII only.
    /// The server derives it from the wire config and the manifest's patterns.
    pub fn config_digest(&self) -> String {
        hex::encode(Sha256::digest(text::canonical_json(&self.full_dict())))
    }
}

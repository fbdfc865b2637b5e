//! What a build was asked for: checked, and in the form that is kept for a retry, without secrets.

use std::collections::{BTreeMap, HashSet};

use nullspace_api::{
    template::{Pace, Readiness},
    template_build::{
        BuildBackend, BuildConfig, BuildRequest, BuildSecret, NamedRegistryAuth, RegistryAuth,
    },
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{archive, context, dockerfile, program::Program, reference};
use crate::{
    app::{App, isolation, machine},
    error::{Error, Result},
};

/// The longest Dockerfile, in bytes.
const MAX_DOCKERFILE: usize = 1 << 20;
/// Steps of one build.
const MAX_STEPS: usize = 500;
/// Secrets of one build, and the bytes of one.
const MAX_SECRETS: usize = 64;
const MAX_SECRET: usize = 512 << 10;
/// The longest that a readiness check may take, in seconds.
const MAX_READY_SECS: u64 = 600;
/// The registry of images whose names have none.
const DOCKER: &str = "docker.io";
/// The tag of a build that names none.
const DEFAULT_TAG: &str = nullspace_api::template::DEFAULT_TAG;

/// What is kept of a build, sealed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Definition {
    /// Without secrets and credentials.
    pub(super) request: BuildRequest,
    /// Which secrets there were.
    pub(super) secret_ids: Vec<String>,
    /// Whether there were credentials for the base image.
    pub(super) had_auth: bool,
    /// For which registries there were more.
    pub(super) registries: Vec<String>,
}

/// What of a build is in memory alone.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    /// For steps.
    pub(super) values: Vec<BuildSecret>,
    /// For the base image.
    pub(super) auth: Option<RegistryAuth>,
    /// For registries.
    pub(super) registries: Vec<NamedRegistryAuth>,
}

impl Secrets {
    /// Takes what is secret out of a request.
    pub(super) fn take(request: &mut BuildRequest) -> Self {
        Self {
            values: request.build_secrets.take().unwrap_or_default(),
            auth: request.base_image_auth.take(),
            registries: request.registry_auth.take().unwrap_or_default(),
        }
    }

    /// What must be in nothing that a build says.
    pub(super) fn hidden(&self) -> Vec<&str> {
        let auths = (self.registries.iter().map(|named| &named.auth)).chain(&self.auth);
        let of_auth = auths.filter_map(|auth| match auth {
            RegistryAuth::Basic { password, .. } => Some(password.0.as_str()),
            RegistryAuth::GcpArtifactRegistry {
                service_account_json,
            } => match &service_account_json.0 {
                serde_json::Value::String(text) => Some(text.as_str()),
                object => object["private_key"].as_str(),
            },
            RegistryAuth::AwsEcr { .. } => None,
        });
        let values = self.values.iter().map(|secret| secret.value.0.as_str());
        values.chain(of_auth).collect()
    }

    /// Checks them.
    ///
    /// # Errors
    /// `invalid_request`, `not_implemented` for Amazon's form; no value is in it.
    pub(super) fn check(&self) -> Result<()> {
        let named = (self.registries.iter()).map(|named| ("registry_auth", &named.auth));
        for (field, auth) in named.chain(self.auth.iter().map(|auth| ("base_image_auth", auth))) {
            if matches!(auth, RegistryAuth::AwsEcr { .. }) {
                return Err(Error::not_implemented(format!(
                    "{field} of kind aws_ecr, asking Amazon for a password"
                ))
                .with_action(
                    "get one with `aws ecr get-login-password` and send it as kind basic, user name AWS",
                ));
            }
        }
        let mut seen = HashSet::new();
        for named in &self.registries {
            let name = registry_name(&named.registry);
            let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
            if name.is_empty() || name.len() > 255 || !name.chars().all(plain) {
                return Err(Error::invalid(
                    "registry_auth: a registry is HOST or HOST:PORT, such as ghcr.io",
                ));
            }
            if !seen.insert(name) {
                return Err(Error::invalid(format!(
                    "registry_auth: {:?} is there twice",
                    named.registry
                )));
            }
        }
        if self.values.len() > MAX_SECRETS {
            return Err(Error::invalid(format!("build_secrets: over {MAX_SECRETS}")));
        }
        let mut seen = HashSet::new();
        for secret in &self.values {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if secret.id.is_empty()
                || secret.id.len() > 128
                || matches!(secret.id.as_str(), "." | "..")
                || !secret.id.chars().all(plain)
            {
                return Err(Error::invalid(
                    "build_secrets: an id must be 1 to 128 letters, digits, `.`, `_` and `-`",
                ));
            }
            if !seen.insert(&secret.id) {
                return Err(Error::invalid(format!(
                    "build_secrets: {:?} is there twice",
                    secret.id
                )));
            }
            if secret.value.0.len() > MAX_SECRET {
                return Err(Error::invalid(format!(
                    "build_secrets: {:?} has over {MAX_SECRET} bytes",
                    secret.id
                )));
            }
        }
        Ok(())
    }
}

impl Definition {
    /// What is kept of a request whose secrets were taken out.
    pub(super) fn new(request: BuildRequest, secrets: &Secrets) -> Self {
        Self {
            request,
            secret_ids: secrets.values.iter().map(|s| s.id.clone()).collect(),
            had_auth: secrets.auth.is_some(),
            registries: (secrets.registries.iter())
                .map(|auth| auth.registry.clone())
                .collect(),
        }
    }

    /// Whether secrets sent again are all that there were.
    ///
    /// # Errors
    /// `invalid_request` with what is missing.
    pub(super) fn check_again(&self, secrets: &Secrets) -> Result<()> {
        let sent: HashSet<&str> = secrets.values.iter().map(|s| s.id.as_str()).collect();
        let missing: Vec<&str> = (self.secret_ids.iter())
            .map(String::as_str)
            .filter(|id| !sent.contains(id))
            .collect();
        if !missing.is_empty() {
            return Err(Error::invalid(format!(
                "build_secrets: the build had the secrets {}, which are not stored",
                missing.join(", ")
            ))
            .with_action("send them again with the retry"));
        }
        if self.had_auth && secrets.auth.is_none() {
            return Err(Error::invalid(
                "base_image_auth: the build had credentials for its base image, which are not stored",
            )
            .with_action("send them again with the retry"));
        }
        let sent: HashSet<&str> = (secrets.registries.iter())
            .map(|auth| auth.registry.as_str())
            .collect();
        if let Some(missing) = self.registries.iter().find(|r| !sent.contains(r.as_str())) {
            return Err(Error::invalid(format!(
                "registry_auth: the build had credentials for {missing}, which are not stored"
            ))
            .with_action("send them again with the retry"));
        }
        Ok(())
    }
}

/// The name and the tags that a request asks for.
///
/// # Errors
/// `invalid_request`.
pub(super) fn identity(request: &BuildRequest) -> Result<(Option<String>, Vec<String>)> {
    let name = request.name.clone().or_else(|| request.alias.clone());
    if let Some(name) = &name {
        reference::check_name(name)?;
    }
    let tags = match &request.tags {
        None => vec![DEFAULT_TAG.to_owned()],
        Some(tags) if tags.is_empty() => {
            return Err(Error::invalid("tags: at least one is needed"));
        }
        Some(tags) => tags.clone(),
    };
    tags.iter().try_for_each(|tag| reference::check_tag(tag))?;
    Ok((name, tags))
}

/// Checks a request whose secrets were taken out, and says what the build does.
///
/// # Errors
/// `invalid_request` with the field, or the line of the Dockerfile.
pub(super) fn compile(app: &App, request: &BuildRequest) -> Result<Program> {
    let program = match (&request.base_image, &request.dockerfile) {
        (None, None) => {
            return Err(Error::invalid(
                "base_image or dockerfile: one of the two is needed",
            ));
        }
        (Some(_), Some(_)) => {
            return Err(Error::invalid(
                "base_image and dockerfile: only one of the two is possible",
            ));
        }
        (Some(base), None) => {
            check_base(base)?;
            if request.build_target.is_some() || request.build_args.is_some() {
                return Err(Error::invalid(
                    "build_target and build_args: only with a dockerfile",
                ));
            }
            Program::of_steps(base, request.steps.as_deref().unwrap_or_default())?
        }
        (None, Some(text)) => {
            if request.steps.is_some() {
                return Err(Error::invalid("steps: not with a dockerfile"));
            }
            if request.build_backend == Some(BuildBackend::Native) {
                return Err(Error::invalid(
                    "build_backend: native is for steps, a dockerfile is built as buildkit does",
                ));
            }
            if text.len() > MAX_DOCKERFILE {
                return Err(Error::invalid(format!(
                    "dockerfile: over {MAX_DOCKERFILE} bytes"
                )));
            }
            let args = request.build_args.clone().unwrap_or_default();
            dockerfile::compile(text, &args, request.build_target.as_deref())?
        }
    };
    let count: usize = program.stages.iter().map(|s| s.instructions.len()).sum();
    if count > MAX_STEPS {
        return Err(Error::invalid(format!(
            "the build has over {MAX_STEPS} steps"
        )));
    }
    if let Some(context) = &request.build_context {
        context::check(context)?;
    }
    if let Some(envs) = &request.build_envs {
        machine::check_envs(envs)?;
    }
    if let Some(command) = &request.start_cmd
        && (command.trim().is_empty() || command.contains('\0'))
    {
        return Err(Error::invalid("start_cmd: must be a command"));
    }
    if let Some(runtime) = &request.runtime_config {
        if let Some(envs) = &runtime.default_envs {
            machine::check_envs(envs)?;
        }
        if let Some(workdir) = &runtime.default_workdir {
            machine::check_cwd(workdir)
                .map_err(|error| error.with_message_prefix("runtime_config.default_workdir: "))?;
        }
        if runtime
            .default_user
            .as_ref()
            .is_some_and(|user| user.is_empty())
        {
            return Err(Error::invalid(
                "runtime_config.default_user: must not be empty",
            ));
        }
        if let Some(readiness) = &runtime.readiness {
            check_readiness(readiness)?;
        }
        isolation::engine(app, runtime.isolation)
            .map_err(|error| error.with_message_prefix("runtime_config."))?;
    }
    check_config(app, request.build_config.as_ref())?;
    Ok(program)
}

pub(super) fn check_base(base: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    // A path of the build context may have more.
    let plain = |c: char| plain(c) || (archive::is_one(base) && !c.is_control());
    match !base.is_empty() && base.len() <= 512 && base.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "base_image: {:?} is neither an image nor a template",
            base.chars().take(128).collect::<String>()
        ))),
    }
}

fn check_config(app: &App, config: Option<&BuildConfig>) -> Result<()> {
    let Some(config) = config else {
        return Ok(());
    };
    if config
        .vcpus
        .is_some_and(|count| count == 0 || count > app.config.max_vcpus)
    {
        return Err(Error::invalid(format!(
            "build_config.vcpus: must be 1 to {}",
            app.config.max_vcpus
        )));
    }
    if (config.memory_mib).is_some_and(|mib| mib < 32 || mib > app.config.max_memory_mb) {
        return Err(Error::invalid(format!(
            "build_config.memory_mib: must be 32 to {}",
            app.config.max_memory_mb
        )));
    }
    if config.disk_mb == Some(0) {
        return Err(Error::invalid("build_config.disk_mb: must be at least 1"));
    }
    Ok(())
}

fn check_readiness(readiness: &Readiness) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid(format!("runtime_config.readiness.{why}")));
    let times = |pace: Pace| {
        if pace.timeout_secs == 0 || pace.timeout_secs > MAX_READY_SECS {
            return bad("timeout_secs: must be 1 to 600");
        }
        if !(10..=60_000).contains(&pace.interval_ms) {
            return bad("interval_ms: must be 10 to 60000");
        }
        if pace.startup_grace_secs > MAX_READY_SECS {
            return bad("startup_grace_secs: must be at most 600");
        }
        Ok(())
    };
    match readiness {
        Readiness::Tcp { port: 0, .. } | Readiness::Http { port: 0, .. } => {
            bad("port: must be 1 to 65535")
        }
        Readiness::Http { path, .. }
            if !path.starts_with('/') || path.contains(['\r', '\n', ' ', '\0']) =>
        {
            bad("path: must begin with `/` and have no spaces")
        }
        Readiness::Command { command, .. } if command.is_empty() || command.contains('\0') => {
            bad("command: must be a command")
        }
        Readiness::Timeout { timeout_ms } if *timeout_ms > MAX_READY_SECS * 1000 => {
            bad("timeout_ms: must be at most 600000")
        }
        _ => readiness.pace().map_or(Ok(()), times),
    }
}

/// The registry that an image is in: what is before the first slash, if that can be a host.
pub(super) fn registry_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => {
            registry_name(first)
        }
        _ => DOCKER.to_owned(),
    }
}

/// One name of a registry for the several that tools write: Docker's own is known by more than one.
pub(super) fn registry_name(text: &str) -> String {
    let host = (text.strip_prefix("https://")).unwrap_or(text);
    let host = host.split('/').next().unwrap_or(host).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER.to_owned(),
        _ => host,
    }
}

/// Over what was asked, without secrets.
pub(super) fn digest(request: &BuildRequest, context: Option<&str>) -> String {
    let counted = (
        &request.base_image,
        &request.steps,
        &request.dockerfile,
        &request.build_args,
        &request.build_target,
        &request.start_cmd,
        context,
    );
    hex::encode(Sha256::digest(
        serde_json::to_vec(&counted).unwrap_or_default(),
    ))
}

/// The digest of a Dockerfile.
pub(super) fn dockerfile_digest(request: &BuildRequest) -> Option<String> {
    let text = request.dockerfile.as_ref()?;
    Some(hex::encode(Sha256::digest(text)))
}

/// The variables of steps: values of the request over those that a client says for machines.
pub(super) fn build_envs(request: &BuildRequest) -> BTreeMap<String, String> {
    let mut envs = BTreeMap::new();
    if let Some(runtime) = &request.runtime_config {
        envs.extend(runtime.default_envs.clone().unwrap_or_default());
    }
    envs.extend(request.build_envs.clone().unwrap_or_default());
    envs
}

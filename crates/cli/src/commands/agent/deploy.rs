//! `nullspace agent deploy`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nullspace_api::agent::{BuildSummary, CreateDeploymentRequest, Deployment, LogsQuery};
use nullspace_client::Client;
use nullspace_client::agents::{CreateVersion, Target, Version};
use nullspace_project::{AgentConfig, BuildError, Bundle, Detection, LoadError, Manifest, load};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::follow::{Seen, follow};
use crate::input;
use crate::ui::{Ui, tame};

/// Bundle a local project and upload it as a new version of its deployment, which is made if there is none.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent deploy .
  nullspace agent deploy my-agent --dry-run     what would be uploaded, and what is left out
  nullspace agent deploy . --name review --metadata team=platform

Left out of every bundle: .git, .env, virtual environments, node_modules, caches, private keys;
also what [bundle] exclude, .nullspaceignore and .gitignore name.")]
pub(crate) struct Args {
    /// The project.
    #[arg(value_name = "DIR", conflicts_with = "project_dir")]
    dir: Option<PathBuf>,
    /// The same.
    #[arg(long, value_name = "DIR")]
    project_dir: Option<PathBuf>,
    /// Use this file instead of DIR/nullspace.agent.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Deploy under another name.
    #[arg(long)]
    name: Option<String>,
    /// For people; kept when the deployment is made.
    #[arg(long)]
    description: Option<String>,
    /// One entry of metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// All metadata as a JSON object; single entries go over it.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
    /// Neither use nor keep the result of the install step.
    #[arg(long, conflicts_with = "rebuild")]
    no_cache: bool,
    /// Run the install step now and keep its result.
    #[arg(long)]
    rebuild: bool,
    /// Show what would be uploaded; nothing is sent.
    #[arg(long)]
    dry_run: bool,
}

/// A project that is ready to be uploaded.
pub(crate) struct Prepared {
    config: AgentConfig,
    detection: Detection,
    bundle: Arc<Bundle>,
    policy: &'static str,
    inputs: CacheInputs,
}

/// What the server has after an upload.
pub(crate) struct Deployed {
    pub(crate) deployment: Deployment,
    pub(crate) version: Version,
}

/// What the install cache is keyed by.
#[derive(Clone, Debug, Serialize)]
struct CacheInputs {
    template: String,
    workdir: String,
    install: Option<String>,
    entrypoint: Option<String>,
    package_manager: Option<String>,
    lockfiles: Vec<String>,
    lockfile_digests: Vec<LockfileDigest>,
}

#[derive(Clone, Debug, Serialize)]
struct LockfileDigest {
    path: String,
    digest: String,
}

/// The cache as it is told before the server said anything.
#[derive(Serialize)]
struct LocalCache<'a> {
    enabled: bool,
    policy: &'a str,
    status: &'a str,
    reason: Option<&'a str>,
    artifact_ready: bool,
    install_runs_per_invocation: bool,
    inputs: &'a CacheInputs,
}

/// The cache as the server tells it.
#[derive(Serialize)]
struct ServerCache<'a> {
    enabled: bool,
    policy: &'a str,
    status: &'a str,
    reason: Option<&'a str>,
    build_id: Option<&'a str>,
    cache_key_digest: Option<&'a str>,
    artifact_id: Option<&'a str>,
    artifact_ready: bool,
    install_runs_per_invocation: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'a BuildSummary>,
    inputs: &'a CacheInputs,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Cache<'a> {
    Local(LocalCache<'a>),
    Server(ServerCache<'a>),
}

#[derive(Serialize)]
struct DryRun<'a> {
    dry_run: bool,
    config: &'a AgentConfig,
    detection: &'a Detection,
    bundle: &'a Manifest,
    cache: Cache<'a>,
    warnings: Vec<&'a str>,
}

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    deployment: &'a Deployment,
    version: &'a Version,
    bundle: &'a Manifest,
    cache: Cache<'a>,
    warnings: Vec<&'a str>,
}

const INSTALL_WARNING: &str = "the next run executes the install step, as there is no ready build artifact; its result \
     is kept for later runs unless --no-cache was given; --rebuild makes it at deploy";

impl Cache<'_> {
    fn status(&self) -> (&str, &str) {
        match self {
            Self::Local(cache) => (cache.status, cache.policy),
            Self::Server(cache) => (cache.status, cache.policy),
        }
    }

    fn warnings(&self) -> Vec<&'static str> {
        let runs = match self {
            Self::Local(cache) => cache.install_runs_per_invocation,
            Self::Server(cache) => cache.install_runs_per_invocation,
        };
        if runs {
            vec![INSTALL_WARNING]
        } else {
            Vec::new()
        }
    }
}

impl Prepared {
    /// Reads the config of the project at `root`, changes it, and hashes what it bundles.
    pub(crate) fn read(
        ui: Ui,
        root: &Path,
        file: Option<&Path>,
        policy: &'static str,
        change: impl FnOnce(&mut AgentConfig),
    ) -> Result<Self, CliError> {
        let (mut config, detection) = load(root, file).map_err(|error| config_error(&error))?;
        change(&mut config);
        let spinner = ui.spinner("Reading the project");
        let bundle = Bundle::build(root, &config).map_err(|error| bundle_error(&error));
        spinner.finish_and_clear();
        let bundle = bundle?;
        let inputs = CacheInputs::of(&config, bundle.manifest());
        Ok(Self {
            config,
            detection,
            bundle: Arc::new(bundle),
            policy,
            inputs,
        })
    }

    fn name(&self) -> &str {
        self.config.name.as_deref().unwrap_or_default()
    }

    /// What can be said about the cache without a server.
    fn local_cache(&self) -> Cache<'_> {
        let install = self.config.install.is_some();
        let (enabled, status, reason) = match (self.policy, install) {
            ("no_cache", _) => (false, "disabled", Some("cache_policy_no_cache")),
            (_, false) => (false, "disabled", Some("no_install_command")),
            _ => (true, "cache_miss", None),
        };
        Cache::Local(LocalCache {
            enabled,
            policy: self.policy,
            status,
            reason,
            artifact_ready: false,
            install_runs_per_invocation: install && self.policy != "rebuild",
            inputs: &self.inputs,
        })
    }

    fn cache<'a>(&'a self, version: &'a Version) -> Cache<'a> {
        let Some(summary) = &version.cache_summary else {
            return self.local_cache();
        };
        Cache::Server(ServerCache {
            enabled: summary.enabled,
            policy: &summary.policy,
            status: &summary.status,
            reason: summary.reason.as_deref(),
            build_id: summary.build_id.as_deref(),
            cache_key_digest: summary.cache_key_digest.as_deref(),
            artifact_id: summary.artifact_id.as_deref(),
            artifact_ready: summary.artifact_ready,
            install_runs_per_invocation: self.config.install.is_some() && !summary.artifact_ready,
            build: version.build_summary.as_ref(),
            inputs: &self.inputs,
        })
    }

    /// Uploads it as a new version of its deployment.
    pub(crate) async fn upload(
        &self,
        ui: Ui,
        client: &Client,
        description: Option<&str>,
        metadata: Option<Map<String, Value>>,
    ) -> Result<Deployed, CliError> {
        if let Some(error) = reserved_mode(&self.config) {
            return Err(error);
        }
        let deployment = match client.find_deployment(self.name()).await? {
            Some(deployment) => deployment,
            None => {
                let request = CreateDeploymentRequest {
                    name: self.name().to_owned(),
                    mode: self.config.mode.as_str().to_owned(),
                    description: description.map(str::to_owned),
                    metadata,
                };
                match client.create_deployment(&request).await {
                    // Somebody else has just made it.
                    Err(error) if error.code() == "agent_deployment_name_conflict" => client
                        .find_deployment(self.name())
                        .await?
                        .ok_or_else(|| CliError::from(error))?,
                    made => made?,
                }
            }
        };
        let manifest = self.bundle.manifest();
        let wire = self.config.to_wire();
        let request = CreateVersion {
            bundle_digest: &manifest.bundle_digest,
            bundle_manifest: manifest,
            config: &wire,
            cache_policy: self.policy,
        };
        let version = client.create_version(&deployment.id, &request).await?;
        let length = self.bundle.archive_len();
        let bar = ui.byte_bar("Uploading", Some(length));
        let uploading = client.upload_bundle(&version, &manifest.bundle_digest, length, || {
            bar.set_position(0);
            archive(Arc::clone(&self.bundle), bar.clone())
        });
        let uploaded = if self.policy == "rebuild" && !ui.json {
            let (mut uploading, mut showing) = (
                std::pin::pin!(uploading),
                std::pin::pin!(show_build(ui, client, &version, &bar)),
            );
            tokio::select! {
                uploaded = &mut uploading => {
                    let build = uploaded.as_ref().ok().and_then(|version| version.cache_summary.as_ref());
                    if build.is_some_and(|cache| cache.build_id.is_some()) {
                        // What a quick one printed is all in its log by now.
                        let _ = tokio::time::timeout(LAST_LINES, showing).await;
                    }
                    uploaded
                }
                () = &mut showing => uploading.await,
            }
        } else {
            uploading.await
        };
        bar.finish_and_clear();
        let version = wait_until_built(ui, client, uploaded?).await?;
        if version.status == "failed" {
            let reason = version
                .failure_reason
                .as_deref()
                .unwrap_or("the server gave no reason");
            return Err(CliError::new(
                "build_error",
                format!("version {} failed: {reason}", version.id),
            )
            .hint("Correct the install step and deploy again."));
        }
        Ok(Deployed {
            deployment,
            version,
        })
    }
}

/// Pause between looks at a build.
const BUILD_POLL: Duration = Duration::from_millis(500);

/// How long what a build printed is waited for once the build is over.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Shows what the build of a version prints, until its end.
async fn show_build(ui: Ui, client: &Client, version: &Version, bar: &indicatif::ProgressBar) {
    let build = loop {
        tokio::time::sleep(BUILD_POLL).await;
        let now = client
            .get_version(&version.deployment_id, &version.id)
            .await;
        let cache = now.ok().and_then(|version| version.cache_summary);
        if let Some(build) = cache.and_then(|cache| cache.build_id) {
            break build;
        }
    };
    bar.finish_and_clear();
    ui.dim(format!("Building {build}"));
    // A build that cannot be followed is a build all the same: its end is in the answer.
    let _ = follow(
        client,
        &version.deployment_id,
        &Target::Run(build),
        LogsQuery::default(),
        BUILD_POLL,
        &mut |seen| {
            if let Seen::Line(event) = seen {
                ui.dim(tame(&event.message));
            }
            Ok(())
        },
    )
    .await;
}

impl CacheInputs {
    fn of(config: &AgentConfig, manifest: &Manifest) -> Self {
        let mut locks: Vec<_> = manifest
            .included()
            .filter_map(|entry| {
                let name = entry.path.rsplit('/').next().unwrap_or_default();
                Some((
                    entry.path.clone(),
                    package_manager_of(name)?,
                    entry.digest.clone()?,
                ))
            })
            .collect();
        locks.sort();
        let first_word = || {
            config
                .install
                .as_deref()
                .and_then(|install| install.split_whitespace().next())
        };
        let package_manager = locks
            .first()
            .map(|(_, manager, _)| *manager)
            .or_else(first_word)
            .map(str::to_owned);
        Self {
            template: config.template.clone(),
            workdir: config.workdir.clone(),
            install: config.install.clone(),
            entrypoint: config.entrypoint.clone(),
            package_manager,
            lockfiles: locks.iter().map(|(path, ..)| path.clone()).collect(),
            lockfile_digests: locks
                .into_iter()
                .map(|(path, _, digest)| LockfileDigest { path, digest })
                .collect(),
        }
    }
}

/// Who writes a lock file of this name.
fn package_manager_of(lockfile: &str) -> Option<&'static str> {
    Some(match lockfile {
        "Cargo.lock" => "cargo",
        "Pipfile.lock" => "pipenv",
        "go.sum" => "go",
        "package-lock.json" => "npm",
        "pnpm-lock.yaml" => "pnpm",
        "poetry.lock" => "poetry",
        "requirements.txt" => "pip",
        "uv.lock" => "uv",
        "yarn.lock" => "yarn",
        _ => return None,
    })
}

/// The archive as a stream; made by a thread of its own, a few pieces ahead of the network.
pub(super) fn archive(
    bundle: Arc<Bundle>,
    bar: indicatif::ProgressBar,
) -> ReceiverStream<Result<Bytes, std::io::Error>> {
    let (sender, receiver) = mpsc::channel(8);
    std::thread::spawn(move || {
        let out = Pieces {
            sender: sender.clone(),
            bar,
        };
        match bundle.write_archive(out) {
            Ok(()) => {}
            // Nobody reads any more, so nobody wants to know.
            Err(BuildError::Write(_)) => {}
            Err(error) => drop(sender.blocking_send(Err(std::io::Error::other(error.to_string())))),
        }
    });
    ReceiverStream::new(receiver)
}

struct Pieces {
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    bar: indicatif::ProgressBar,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.sender
            .blocking_send(piece)
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        self.bar.inc(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits while the server makes an artifact of the version.
async fn wait_until_built(
    ui: Ui,
    client: &Client,
    mut version: Version,
) -> Result<Version, CliError> {
    if version.status != "building" {
        return Ok(version);
    }
    let spinner = ui.spinner("Running the install step");
    while version.status == "building" {
        tokio::time::sleep(Duration::from_secs(1)).await;
        version = client
            .get_version(&version.deployment_id, &version.id)
            .await?;
    }
    spinner.finish_and_clear();
    Ok(version)
}

pub(super) fn config_error(error: &LoadError) -> CliError {
    CliError::usage(error.to_string()).hint(format!(
        "Correct {}, or write a new one with `nullspace agent init`.",
        nullspace_project::CONFIG_FILENAME
    ))
}

/// A mode that only parses.
pub(super) fn reserved_mode(config: &AgentConfig) -> Option<CliError> {
    let mode = config.mode;
    (!mode.is_deployable()).then(|| {
        CliError::usage(format!(
            "mode {:?} is reserved and cannot be deployed yet",
            mode.as_str()
        ))
        .hint("Use mode = \"job\" or mode = \"service\".")
    })
}

pub(super) fn bundle_error(error: &BuildError) -> CliError {
    use std::error::Error as _;
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    CliError::usage(message)
        .hint("Leave the path out with [bundle] exclude or .nullspaceignore, or correct it.")
}

pub(crate) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let policy = match (args.no_cache, args.rebuild) {
        (true, _) => "no_cache",
        (_, true) => "rebuild",
        _ => "auto",
    };
    let metadata = input::metadata(&args.metadata, args.metadata_json.as_deref())?;
    let root = args
        .dir
        .as_deref()
        .or(args.project_dir.as_deref())
        .unwrap_or(Path::new("."));
    let prepared = Prepared::read(ui, root, args.config.as_deref(), policy, |config| {
        if let Some(name) = &args.name {
            config.name = Some(name.clone());
        }
    })?;
    if args.dry_run {
        return dry_run(&prepared, ui);
    }
    let client = app.client()?;
    let Deployed {
        deployment,
        version,
    } = prepared
        .upload(ui, &client, args.description.as_deref(), metadata)
        .await?;
    let cache = prepared.cache(&version);
    let warnings = cache.warnings();
    let manifest = prepared.bundle.manifest();
    if ui.json {
        ui.json(&Report {
            dry_run: false,
            deployment: &deployment,
            version: &version,
            bundle: manifest,
            cache,
            warnings,
        })?;
        return Ok(0);
    }
    ui.line(format!("Deployed {} ({})", deployment.name, deployment.id));
    ui.line(format!("Version: {} ({})", version.id, version.status));
    ui.line(format!("Bundle digest: {}", manifest.bundle_digest));
    let (status, policy) = cache.status();
    ui.line(format!("Cache: {status} ({policy})"));
    if let Some(build) = version
        .cache_summary
        .as_ref()
        .and_then(|cache| cache.build_id.as_deref())
    {
        ui.line(format!("Build: {build}"));
    }
    for warning in warnings {
        ui.warn(warning);
    }
    let name = &deployment.name;
    ui.dim(if deployment.mode == "job" {
        format!("Next: nullspace agent run {name} --follow")
    } else {
        format!("Next: nullspace agent url {name} (starts it), nullspace agent restart {name} (if it runs)")
    });
    Ok(0)
}

fn dry_run(prepared: &Prepared, ui: Ui) -> Outcome {
    let cache = prepared.local_cache();
    let warnings = cache.warnings();
    let manifest = prepared.bundle.manifest();
    let config = &prepared.config;
    if ui.json {
        ui.json(&DryRun {
            dry_run: true,
            config,
            detection: &prepared.detection,
            bundle: manifest,
            cache,
            warnings,
        })?;
        return Ok(0);
    }
    ui.line(format!("Agent: {}", prepared.name()));
    ui.line(format!("Mode: {}", config.mode.as_str()));
    ui.line(format!(
        "Entrypoint: {}",
        config.entrypoint.as_deref().unwrap_or("-")
    ));
    ui.line(format!(
        "Install: {}",
        config.install.as_deref().unwrap_or("-")
    ));
    let (status, policy) = cache.status();
    ui.line(format!("Cache: {status} ({policy})"));
    for warning in warnings {
        ui.warn(warning);
    }
    ui.line(format!("Bundle digest: {}", manifest.bundle_digest));
    ui.line(format!("Config digest: {}", manifest.config_digest));
    ui.line(format!("Included files: {}", manifest.file_count));
    ui.line(format!("Total bytes: {}", manifest.total_size));
    for entry in &manifest.entries {
        let sign = if entry.included { '+' } else { '-' };
        ui.line(format!(
            "{sign} {} [{}] {}",
            entry.path,
            entry.kind.as_str(),
            entry.reason
        ));
    }
    Ok(0)
}

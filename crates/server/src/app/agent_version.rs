//! Versions: a config and a bundle, both by digest. Called by `http::agent_version`.
//!
//! A version is recorded first (`created`); its bundle follows and makes it `ready`, the one that runs when
//! none is named.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::body::Bytes;
use futures_util::Stream;
use nullspace_api::{
    agent::{BuildSummary, CacheSummary, CreateVersionRequest, ListQuery, Version},
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_lifecycle::run::{self as lifecycle, State};
use nullspace_project::{AgentConfig, Manifest, ManifestError, config::BundleSpec};
use nullspace_store::{
    StoreError, Tx,
    agent_artifact::ArtifactRow,
    agent_deployment as deployments,
    agent_log::Log,
    agent_run::{self as runs, RunRow},
    agent_version::{self as rows, VersionRow},
    idempotency::Claim,
};
use serde_json::{Value, json, value::RawValue};

use super::{
    App, AppState,
    agent::{self, Recorded},
    agent_artifact, agent_config, agent_deployment, agent_log, agent_task, bundle,
};
use crate::error::{Error, Kind, Result};

/// What may be asked of the install cache.
const POLICIES: [&str; 3] = ["auto", "no_cache", "rebuild"];

/// How long an upload waits for the build that it asked for; clients give up after 300 s without an answer.
const BUILD_PATIENCE: Duration = Duration::from_secs(280);
/// Pause before something that must happen is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A new version whose parts agree with each other.
struct Checked {
    config: AgentConfig,
    policy: String,
    manifest: Box<RawValue>,
    manifest_head: String,
    digest: String,
}

/// Records a version.
///
/// # Errors
/// `invalid_request` with the field, `bundle_digest_mismatch`, `bundle_invalid`, `agent_mode_conflict`,
/// `template_not_found`, `not_implemented`, `idempotency_conflict`.
pub async fn create(
    app: &AppState,
    reference: &agent::Reference,
    request: CreateVersionRequest,
    claim: Option<Claim>,
) -> Result<Version> {
    let wanted = reference.to_owned();
    let deployment = app
        .store
        .read(move |db| agent::find_live(db, &wanted))
        .await?;
    let shared = app.clone();
    // A manifest of tens of megabytes is looked at elsewhere than where requests are served.
    let checked = agent::blocking(move || check(&shared, request)).await?;
    agent::require_mode(&deployment, checked.config.mode.as_str())?;
    let template = &checked.config.template;
    let found = app.templates.find(&deployment.tenant_id, template);
    if let Err(error) = found {
        // One that is being made will be there when the first run wants it.
        if error.code == code::TEMPLATE_NOT_FOUND {
            return Err(error);
        }
    }
    let now = time::now();
    let row = VersionRow {
        seq: 0,
        id: id::new(id::VERSION),
        deployment_id: deployment.id.clone(),
        tenant_id: deployment.tenant_id.clone(),
        number: 0,
        bundle: bundle::name(&checked.digest, &checked.config.workdir),
        bundle_digest: checked.digest,
        config: checked.config.to_wire().to_string(),
        manifest_head: checked.manifest_head,
        status: "created".into(),
        cache_policy: checked.policy,
        failure_reason: None,
        created_at: now,
        ready_at: None,
        build_id: None,
        deleted_at: None,
    };
    let manifest = checked.manifest.clone();
    let recorded = app
        .store
        .write(move |tx| {
            if let Some(id) = agent::claim(tx, claim.as_ref(), &row.id, now)? {
                return Ok(Recorded::Replay(id));
            }
            let of = agent::Reference::by_id(&row.tenant_id, &row.deployment_id);
            let mut deployment = agent::find_live(tx, &of)?;
            deployment.versions += 1;
            deployment.updated_at = now;
            deployments::update(tx, &deployment)?;
            let row = VersionRow {
                number: deployment.versions,
                ..row
            };
            rows::insert(tx, &row, manifest.get())?;
            Ok::<_, Error>(Recorded::New(row))
        })
        .await?;
    match recorded {
        Recorded::New(row) => {
            let cache = cache(app, std::slice::from_ref(&row)).await?;
            info(&row, checked.manifest, cache.into_iter().next())
        }
        Recorded::Replay(id) => get(app, reference, &id).await,
    }
}

fn check(app: &App, request: CreateVersionRequest) -> Result<Checked> {
    let digest = request.bundle_digest;
    if digest.len() != 64
        || !digest
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(Error::invalid(
            "bundle_digest: must be 64 lower-case hex digits",
        ));
    }
    let policy = agent::word("cache_policy", request.cache_policy, &POLICIES)?
        .unwrap_or_else(|| "auto".into());
    let mut config = agent_config::read(app, &request.config)?;
    let manifest: Manifest = serde_json::from_str(request.bundle_manifest.get())
        .map_err(|e| Error::invalid(format!("bundle_manifest: {}", without_position(&e))))?;
    manifest.validate().map_err(|e| refused_manifest(&e))?;
    let mismatch = |reason: &'static str, message: &str| {
        Err(
            Error::new(Kind::Invalid, code::BUNDLE_DIGEST_MISMATCH, message)
                .with_details(json!({"reason": reason})),
        )
    };
    if manifest.bundle_digest != digest {
        return mismatch(
            "bundle_digest",
            "bundle_digest: is not the digest of the manifest",
        );
    }
    config.bundle = BundleSpec {
        include: manifest.include_patterns.clone(),
        exclude: manifest.exclude_patterns.clone(),
    };
    if config.config_digest() != manifest.config_digest {
        return mismatch(
            "config_digest",
            "bundle_manifest.config_digest: is not the digest of the config",
        );
    }
    Ok(Checked {
        manifest_head: head(&request.bundle_manifest)?,
        manifest: request.bundle_manifest,
        config,
        policy,
        digest,
    })
}

fn refused_manifest(error: &ManifestError) -> Error {
    let code = match error {
        ManifestError::DigestMismatch => code::BUNDLE_DIGEST_MISMATCH,
        _ => code::BUNDLE_INVALID,
    };
    Error::new(Kind::Invalid, code, format!("bundle_manifest: {error}"))
        .with_details(json!({"reason": error.reason()}))
}

/// The place in the text is of no use once the field is named.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ")
        .map_or(text.as_str(), |at| &text[..at])
        .to_owned()
}

/// The manifest without its entries, for lists.
fn head(manifest: &RawValue) -> Result<String> {
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(manifest.get())
        .map_err(|e| Error::invalid(format!("bundle_manifest: {}", without_position(&e))))?;
    fields.remove("entries");
    serde_json::to_string(&fields)
        .map_err(|e| Error::internal(format!("writing a manifest as JSON: {e}")))
}

/// No version of that id.
pub(super) fn no_version(id: &str) -> Error {
    Error::not_found(
        code::AGENT_VERSION_NOT_FOUND,
        format!("no agent version {id:?}"),
    )
}

/// One version of a deployment with its whole manifest.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_version_not_found`.
pub async fn get(app: &App, reference: &agent::Reference, version_id: &str) -> Result<Version> {
    let (reference, version_id) = (reference.to_owned(), version_id.to_owned());
    let (row, manifest) = app
        .store
        .read(move |db| {
            let deployment = agent::find(db, &reference)?;
            let row = rows::get(db, &version_id)?
                .filter(|row| row.deployment_id == deployment.id && row.deleted_at.is_none())
                .ok_or_else(|| no_version(&version_id))?;
            let manifest = rows::manifest(db, &version_id)?;
            Ok::<_, Error>((row, manifest))
        })
        .await?;
    let cache = cache(app, std::slice::from_ref(&row)).await?;
    let manifest = raw(manifest.unwrap_or_else(|| "{}".into()))?;
    info(&row, manifest, cache.into_iter().next())
}

/// Deletes a version. Its bundle is removed by garbage collection.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_version_not_found`, `conflict` for the active version and for one that a run or
/// a service has.
pub async fn delete(app: &App, reference: &agent::Reference, version_id: &str) -> Result<()> {
    let (reference, version_id) = (reference.to_owned(), version_id.to_owned());
    app.store
        .write(move |tx| {
            let deployment = agent::find_live(tx, &reference)?;
            let row = rows::get(tx, &version_id)?
                .filter(|row| row.deployment_id == deployment.id && row.deleted_at.is_none())
                .ok_or_else(|| no_version(&version_id))?;
            if deployment.active_version_id.as_ref() == Some(&row.id) {
                return Err(Error::conflict(
                    code::CONFLICT,
                    format!("version {version_id} is the active one"),
                )
                .with_action("make another version the active one first"));
            }
            if rows::is_in_use(tx, &row.id)? {
                return Err(Error::conflict(
                    code::CONFLICT,
                    format!("a run or a service has version {version_id}"),
                )
                .with_action("wait for it to end, cancel it, or stop it"));
            }
            rows::update(
                tx,
                &VersionRow {
                    deleted_at: Some(time::now()),
                    ..row
                },
            )?;
            Ok::<_, Error>(())
        })
        .await
}

/// A page of versions, newest first, their manifests without entries.
///
/// # Errors
/// `agent_deployment_not_found`, `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    reference: &agent::Reference,
    query: ListQuery,
) -> Result<CursorPage<Version>> {
    let limit = agent::limit(query.limit)?;
    let statuses = ["created", "building", "ready", "failed", "superseded"];
    let mut filter = rows::Filter {
        deployment_id: String::new(),
        status: agent::word("status", query.status, &statuses)?,
        before: agent::cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let reference = reference.to_owned();
    let mut rows = app
        .store
        .read(move |db| {
            filter.deployment_id = agent::find(db, &reference)?.id;
            Ok::<_, Error>(rows::list(db, &filter)?)
        })
        .await?;
    let next_cursor = agent::cut(&mut rows, limit, |row| row.seq);
    let cache = cache(app, &rows).await?;
    Ok(CursorPage {
        items: rows
            .iter()
            .zip(cache)
            .map(|(row, cache)| info(row, raw(row.manifest_head.clone())?, Some(cache)))
            .collect::<Result<_>>()?,
        next_cursor,
    })
}

/// What an upload says about itself.
#[derive(Clone, Debug)]
pub struct Upload {
    /// `X-Nullspace-Bundle-Digest`.
    pub digest: Option<String>,
    /// `Content-Length`.
    pub length: Option<u64>,
}

/// Takes a version's bundle: checks and unpacks it while it arrives, then makes the version ready and the
/// active one, in one transaction. The same bundle once more is fine.
///
/// # Errors
/// `agent_version_not_found`, `bundle_conflict`, `bundle_digest_mismatch`, `bundle_invalid`,
/// `body_too_large`, `insufficient_storage`, `idempotency_conflict`.
pub async fn upload<S>(
    app: &AppState,
    reference: &agent::Reference,
    version_id: &str,
    upload: Upload,
    claim: Option<Claim>,
    body: S,
) -> Result<Version>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let mut body = body;
    let result = take(app, reference, version_id, upload, claim, &mut body).await;
    if result.is_err() {
        // Who is still sending reads no answer: take the rest, within reason.
        bundle::drain(&mut body).await;
    }
    result
}

async fn take<S>(
    app: &AppState,
    reference: &agent::Reference,
    version_id: &str,
    upload: Upload,
    claim: Option<Claim>,
    body: &mut S,
) -> Result<Version>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let (wanted, id) = (reference.to_owned(), version_id.to_owned());
    let (deployment, row, manifest) = app
        .store
        .read(move |db| {
            let deployment = agent::find_live(db, &wanted)?;
            let row = rows::get(db, &id)?
                .filter(|row| row.deployment_id == deployment.id && row.deleted_at.is_none())
                .ok_or_else(|| no_version(&id))?;
            let manifest = rows::manifest(db, &id)?.unwrap_or_default();
            Ok::<_, Error>((deployment, row, manifest))
        })
        .await?;
    let digest = upload.digest.ok_or_else(|| {
        Error::invalid("x-nullspace-bundle-digest: the header with the bundle's digest is needed")
    })?;
    if digest != row.bundle_digest {
        return Err(if row.status == "created" {
            Error::new(
                Kind::Invalid,
                code::BUNDLE_DIGEST_MISMATCH,
                "x-nullspace-bundle-digest: is not the digest of this version",
            )
            .with_details(json!({"reason": "bundle_digest"}))
        } else {
            Error::conflict(
                code::BUNDLE_CONFLICT,
                "this version has another bundle already; deploy a new version",
            )
        });
    }
    let config = prepared(app, version_id).await?;
    let manifest = agent::blocking(move || {
        serde_json::from_str::<Manifest>(&manifest)
            .map_err(|e| Error::internal(format!("reading a kept manifest: {e}")))
    })
    .await?;
    bundle::receive(
        &app.data_dir,
        &row.bundle,
        &config.config.workdir,
        manifest,
        upload.length,
        body,
    )
    .await?;
    let wants_build = row.cache_policy == "rebuild"
        && config
            .config
            .install
            .as_ref()
            .is_some_and(|line| !line.trim().is_empty());
    let id = row.id.clone();
    let version = app
        .store
        .write(move |tx| {
            let now = time::now();
            agent::claim(tx, claim.as_ref(), &id, now)?;
            let version = rows::get(tx, &id)?.ok_or_else(|| no_version(&id))?;
            if version.status == "created" && !wants_build {
                make_ready(tx, version.clone())?;
            }
            Ok::<_, Error>(version)
        })
        .await?;
    if wants_build {
        build(app, version).await?;
    }
    let version = get(app, reference, version_id).await?;
    if version.status == "failed" {
        let reason = version.failure_reason.unwrap_or_default();
        return Err(Error::new(
            Kind::Invalid,
            code::BUILD_ERROR,
            format!("the version was not made ready: {reason}"),
        )
        .with_action(format!(
            "its log says more: nullspace agent logs {} --run {}",
            deployment.name,
            version
                .build_summary
                .map(|build| build.build_id)
                .unwrap_or_default()
        )));
    }
    Ok(version)
}

/// What a run needs of its version.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Whose it is.
    pub(super) tenant_id: String,
    pub(super) id: String,
    pub(super) config: AgentConfig,
    /// Name of the bundle's tree.
    pub(super) bundle: String,
    /// Whether the result of its install is kept and used again.
    pub(super) uses_cache: bool,
}

/// Reads a version for a run.
pub(super) async fn prepared(app: &App, version_id: &str) -> Result<Arc<Prepared>> {
    let id = version_id.to_owned();
    let row = app
        .store
        .read(move |db| rows::get(db, &id)?.ok_or_else(|| no_version(&id)))
        .await?;
    prepare(&row).map(Arc::new)
}

/// The same from a row that was read already.
pub(super) fn prepare(row: &VersionRow) -> Result<Prepared> {
    Ok(Prepared {
        id: row.id.clone(),
        tenant_id: row.tenant_id.clone(),
        config: AgentConfig::from_wire(&value(&row.config)?)
            .map_err(|e| Error::internal(format!("reading a kept config: {e}")))?,
        bundle: row.bundle.clone(),
        uses_cache: row.cache_policy != "no_cache",
    })
}

fn value(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::internal(format!("reading kept JSON: {e}")))
}

fn raw(text: String) -> Result<Box<RawValue>> {
    RawValue::from_string(text).map_err(|e| Error::internal(format!("reading kept JSON: {e}")))
}

/// A recorded version as the wire shows it.
fn info(row: &VersionRow, manifest: Box<RawValue>, cache: Option<Cache>) -> Result<Version> {
    let config = value(&row.config)?;
    let text = |field: &str| config[field].as_str().unwrap_or_default().to_owned();
    let install_command = config["install"].as_str().map(str::to_owned);
    Ok(Version {
        id: row.id.clone(),
        deployment_id: row.deployment_id.clone(),
        version_number: u64::try_from(row.number).unwrap_or_default(),
        bundle_digest: row.bundle_digest.clone(),
        bundle_manifest: manifest,
        template: text("template"),
        workdir: text("workdir"),
        entrypoint_command: text("entrypoint"),
        env_spec: config["env"].clone(),
        resource_config: config["resources"].clone(),
        debug_config: config["debug"].clone(),
        service_port: config["service"]["port"]
            .as_u64()
            .and_then(|p| p.try_into().ok()),
        readiness_config: Some(config["service"]["readiness"].clone()).filter(|v| !v.is_null()),
        status: row.status.clone(),
        cache_policy: row.cache_policy.clone(),
        cache_summary: cache
            .as_ref()
            .map(|cache| cache_summary(row, install_command.is_some(), cache)),
        build_summary: cache.and_then(|cache| build_summary(row, cache)),
        failure_reason: row.failure_reason.clone(),
        created_at: time::rfc3339(row.created_at),
        ready_at: row.ready_at.map(time::rfc3339),
        install_command,
        config,
    })
}

/// What the install cache has for a version.
struct Cache {
    key: Option<String>,
    artifact: Option<ArtifactRow>,
    build: Option<RunRow>,
    is_building: bool,
}

/// What a version's artifact is found by, if it may have one and its template is ready.
pub(super) fn cache_key(app: &App, row: &VersionRow) -> Option<String> {
    let version = prepare(row).ok()?;
    let install = version.config.install.clone()?;
    let template = (app.templates.find(&row.tenant_id, &version.config.template)).ok()?;
    (version.uses_cache && !install.trim().is_empty())
        .then(|| agent_artifact::key(&template, &version, &install))
}

/// Looks versions up in the install cache.
async fn cache(app: &App, rows: &[VersionRow]) -> Result<Vec<Cache>> {
    let keys: Vec<Option<String>> = rows.iter().map(|row| cache_key(app, row)).collect();
    let artifacts = agent_artifact::newest(app, keys.clone()).await?;
    let ids: Vec<Option<String>> = rows.iter().map(|row| row.build_id.clone()).collect();
    let builds = app
        .store
        .read(move |db| {
            ids.into_iter()
                .map(|id| match id {
                    Some(id) => runs::get(db, &id),
                    None => Ok(None),
                })
                .collect::<Result<Vec<_>, StoreError>>()
        })
        .await?;
    let found = keys.into_iter().zip(artifacts).zip(builds);
    Ok(found
        .map(|((key, artifact), build)| Cache {
            is_building: key.as_ref().is_some_and(|key| app.agents.building.has(key)),
            key,
            artifact,
            build,
        })
        .collect())
}

fn cache_summary(row: &VersionRow, installs: bool, cache: &Cache) -> CacheSummary {
    let is_rebuilt = row.cache_policy == "rebuild";
    let (status, reason) = match (row.cache_policy.as_str(), installs) {
        ("no_cache", _) => ("bypassed", Some("cache_policy_no_cache")),
        (_, false) => ("disabled", Some("no_install_command")),
        _ if row.status == "building" => ("building", None),
        _ if is_rebuilt && row.status == "failed" => ("failed", Some("build_failed")),
        _ if is_rebuilt && row.status == "created" => ("cache_miss", Some("build_not_started")),
        _ if cache.artifact.is_some() && is_rebuilt => ("ready", None),
        _ if cache.artifact.is_some() => ("cache_hit", None),
        _ if cache.is_building => ("building", None),
        _ => ("cache_miss", Some("no_ready_artifact")),
    };
    let artifact_ready = matches!(status, "ready" | "cache_hit");
    CacheSummary {
        enabled: !matches!(status, "bypassed" | "disabled"),
        policy: row.cache_policy.clone(),
        status: status.into(),
        artifact_ready,
        reason: reason.map(str::to_owned),
        build_id: row.build_id.clone(),
        cache_key_digest: cache.key.as_ref().map(|key| format!("sha256:{key}")),
        artifact_id: cache
            .artifact
            .as_ref()
            .filter(|_| artifact_ready)
            .map(|artifact| artifact.id.clone()),
        updated_at: Some(time::rfc3339(
            cache
                .artifact
                .as_ref()
                .map_or(row.created_at, |artifact| artifact.created_at),
        )),
    }
}

fn build_summary(row: &VersionRow, cache: Cache) -> Option<BuildSummary> {
    let build = cache.build?;
    let status = match State::parse(&build.status)? {
        State::Queued => "queued",
        State::Starting | State::Installing | State::Running => "building",
        State::Succeeded if cache.artifact.is_some() => "ready",
        // Its artifact had to make room.
        State::Succeeded => "expired",
        State::Failed | State::Cancelled | State::TimedOut => "failed",
    };
    let artifact = cache.artifact.filter(|_| status == "ready");
    Some(BuildSummary {
        build_id: build.id,
        status: status.into(),
        artifact_ready: artifact.is_some(),
        artifact_id: artifact.as_ref().map(|artifact| artifact.id.clone()),
        size_bytes: artifact.map(|artifact| artifact.size_bytes),
        failure_reason: build.failure_reason.or(row.failure_reason.clone()),
        started_at: Some(time::rfc3339(build.created_at)),
        completed_at: build.completed_at.map(time::rfc3339),
    })
}

/// Has a version's artifact made, and waits for that for a while.
async fn build(app: &AppState, version: VersionRow) -> Result<()> {
    let now = time::now();
    let prepared = prepare(&version)?;
    let run = RunRow {
        id: id::new(id::BUILD),
        deployment_id: version.deployment_id.clone(),
        version_id: version.id.clone(),
        is_build: true,
        status: State::Queued.as_str().into(),
        input: "{}".into(),
        log_count: 1,
        created_at: now,
        updated_at: now,
        ..RunRow::default()
    };
    let version_id = version.id.clone();
    let recorded = app
        .store
        .write(move |tx| {
            // Another upload of the same bundle may have come first.
            let fresh = rows::get(tx, &version.id)?.ok_or_else(|| no_version(&version.id))?;
            if fresh.status != "created" {
                return Ok::<_, Error>(None);
            }
            let seq = runs::insert(tx, &run)?;
            let message = format!("build of version {}", fresh.number);
            let event = agent_log::news(lifecycle::QUEUED, message, None, false);
            nullspace_store::agent_log::append(tx, Log::Run(seq), 0, &[event])?;
            rows::update(
                tx,
                &VersionRow {
                    status: "building".into(),
                    build_id: Some(run.id.clone()),
                    ..fresh
                },
            )?;
            Ok(Some(RunRow { seq, ..run }))
        })
        .await?;
    let build_id = match recorded {
        Some(run) => {
            let id = run.id.clone();
            agent_task::start(app, run, prepared.into(), BTreeMap::new());
            Some(id)
        }
        None => {
            let row = app.store.read(move |db| rows::get(db, &version_id)).await?;
            row.and_then(|row| row.build_id)
        }
    };
    if let Some(live) = build_id.and_then(|id| app.agents.get(&id)) {
        let mut log = live.log.subscribe();
        // Only the task itself is to keep the other end open.
        drop(live);
        let ended = async { while log.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(BUILD_PATIENCE, ended).await;
    }
    Ok(())
}

/// What the end of a build means for its version. Called by the build's task, which goes on trying.
pub(super) async fn settle(app: &App, build: &RunRow) {
    loop {
        let build = build.clone();
        let settled = app
            .store
            .write(move |tx| {
                let Some(mut version) = rows::get(tx, &build.version_id)? else {
                    return Ok(());
                };
                if version.status != "building" {
                    return Ok(());
                }
                if build.status == State::Succeeded.as_str() {
                    return make_ready(tx, version);
                }
                version.status = "failed".into();
                version.failure_reason = build.failure_reason;
                rows::update(tx, &version)?;
                Ok::<_, Error>(())
            })
            .await;
        match settled {
            Ok(()) => return,
            Err(error) if error.kind == Kind::NotFound => return,
            Err(error) => {
                tracing::error!(context = ?error.context, "the end of a build could not be recorded; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Settles the builds that ended when the server did.
pub(super) async fn settle_builds(app: &App) -> Result<()> {
    let ended = app
        .store
        .read(|db| {
            let building = rows::building(db)?.into_iter();
            building
                .filter_map(|version| runs::get(db, version.build_id.as_deref()?).transpose())
                .filter(|build| !matches!(build, Ok(build) if build.completed_at.is_none()))
                .collect::<Result<Vec<_>, StoreError>>()
        })
        .await?;
    for build in ended {
        settle(app, &build).await;
    }
    Ok(())
}

/// Makes a version the one that runs when none is named.
fn make_ready(tx: &Tx<'_>, mut version: VersionRow) -> Result<()> {
    let now = time::now();
    let of = agent::Reference::by_id(&version.tenant_id, &version.deployment_id);
    let mut deployment = agent::find_live(tx, &of)?;
    version.status = "ready".into();
    version.ready_at = Some(now);
    rows::update(tx, &version)?;
    agent_deployment::activate(tx, &mut deployment, &version.id)?;
    deployment.updated_at = now;
    deployments::update(tx, &deployment)?;
    Ok(())
}

//! Builds of templates: begun, followed, stopped, done again, told about.
//!
//! ```text
//!  begin ──▶ waiting ──▶ building ──▶ ready
//!               │           ├──▶ error       (also a server that ends: phase `interrupted`)
//!               └───────────┴──▶ cancelled
//! ```
//! The record comes first: a build that was answered is found again, with everything it was heard to say.

mod inspect;
mod told;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nullspace_api::{
    error::code,
    id, page,
    template::{TemplateInfo, Visibility},
    template_build::{
        Availability, Build, BuildBackend, BuildFailure, BuildLogEntry, BuildPage, BuildRequest,
        BuildSnapshot, BuildStatus, CacheSummary, ListBuildsQuery, Promotability,
        PromoteBuildRequest, RetryBuildRequest,
    },
    time,
};
use nullspace_store::{
    StoreError,
    rusqlite::Connection,
    template::{self as templates, TemplateRow},
    template_build::{self as rows, BuildRow},
};
use serde_json::json;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::{
    artifact::Artifact,
    context::{self, Context},
    definition::{self, Definition, Secrets},
    named,
    reference::{self, Reference},
    source,
    worker::{self, Job},
};
use crate::{
    app::{App, AppState, Caller},
    error::{Error, Result},
};

pub use inspect::{plan, validate};
pub use told::{Follower, follow, snapshot};

/// How long a cancellation is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a build of a deleted template is remembered, in microseconds.
const RETENTION: i64 = 7 * 24 * 3600 * 1_000_000;
/// Said of a build whose server ended.
const INTERRUPTED: &str = "the server ended while the template was built";

/// The builds at work.
#[derive(Debug, Default)]
pub(super) struct Builds {
    live: Mutex<HashMap<String, Arc<Live>>>,
    turns: std::sync::OnceLock<Arc<Semaphore>>,
}

impl Builds {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: &str) -> Option<Arc<Live>> {
        self.lock().get(id).cloned()
    }

    pub(super) fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Who may build now.
    pub(super) fn turns(&self, app: &App) -> Arc<Semaphore> {
        let turns = || Arc::new(Semaphore::new(app.config.template_builds.max(1)));
        self.turns.get_or_init(turns).clone()
    }
}

/// What others hold of a build at work.
#[derive(Debug)]
pub(super) struct Live {
    /// How many entries its log has; closed when it is over.
    told: watch::Receiver<u64>,
    pub(super) cancel: CancellationToken,
    /// Who wanted it stopped, and why.
    pub(super) cancelled: Mutex<Option<Cancelled>>,
}

/// Who wanted a build stopped.
#[derive(Clone, Debug)]
pub(super) struct Cancelled {
    pub(super) at: i64,
    pub(super) by: String,
    pub(super) reason: Option<String>,
}

fn owner(id: &str) -> String {
    format!("template build {id}")
}

/// What a build that is ready made.
pub(super) fn artifact(app: &App, row: &BuildRow) -> Option<Artifact> {
    let sealed = row.artifact.as_ref()?;
    let plain = app.seal.open_sealed(&owner(&row.id), sealed)?;
    serde_json::from_slice(&plain).ok()
}

pub(super) fn seal_artifact(app: &App, id: &str, artifact: &Artifact) -> Result<Vec<u8>> {
    seal(app, id, artifact)
}

fn seal(app: &App, id: &str, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let plain = serde_json::to_vec(value)
        .map_err(|e| Error::internal(format!("writing a build as JSON: {e}")))?;
    app.seal
        .seal(&owner(id), &plain)
        .map_err(|e| Error::internal(format!("sealing a build: {e}")))
}

fn definition(app: &App, row: &BuildRow) -> Result<Definition> {
    app.seal
        .open_sealed(&owner(&row.id), &row.definition)
        .and_then(|plain| serde_json::from_slice(&plain).ok())
        .ok_or_else(|| Error::internal("the definition of a build cannot be opened"))
}

/// Begins a build.
///
/// # Errors
/// `invalid_request`, `template_name_conflict`, `file_upload_error`, `template_blob_not_found`.
pub async fn begin(app: &AppState, mut request: BuildRequest, caller: &Caller) -> Result<Build> {
    let secrets = Secrets::take(&mut request);
    start(app, request, secrets, caller, None).await
}

async fn start(
    app: &AppState,
    mut request: BuildRequest,
    secrets: Secrets,
    caller: &Caller,
    repeats: Option<&Build>,
) -> Result<Build> {
    secrets.check()?;
    let (name, tags) = definition::identity(&request)?;
    let program = definition::compile(app, &request)?;
    if let Some(files) = &mut request.build_context {
        context::admit(app, caller, files).await?;
    }
    let files = match &request.build_context {
        Some(files) => Context::open(app, &caller.tenant.id, files).await?,
        None => Context::default(),
    };
    let context_digest = request.build_context.is_some().then(|| files.digest());
    let (source_type, backend) = kind(app, &caller.tenant.id, &request).await;
    let claim_token = request.claim_token.take();
    let name = name.unwrap_or_else(|| id::new("template-"));
    let now = time::now();
    let build_id = id::new(id::TEMPLATE_BUILD);
    let view = Build {
        build_id: build_id.clone(),
        template_id: String::new(),
        name: name.clone(),
        tags,
        status: BuildStatus::Waiting,
        build_backend: backend,
        source_type: source_type.to_owned(),
        base_images: Vec::new(),
        source_digest: Some(definition::digest(&request, context_digest.as_deref())),
        context_digest,
        dockerfile_digest: definition::dockerfile_digest(&request),
        triggered_by: Some(if repeats.is_some() { "retry" } else { "api" }.into()),
        created_at: time::rfc3339(now),
        updated_at: time::rfc3339(now),
        queued_at: Some(time::rfc3339(now)),
        started_at: None,
        finished_at: None,
        duration_ms: None,
        failure_phase: None,
        build_config: request.build_config.clone().unwrap_or_default(),
        cache_summary: CacheSummary {
            file_blob_hits: u32::try_from(files.len()).unwrap_or(u32::MAX),
            ..CacheSummary::default()
        },
        artifact_availability: availability(BuildStatus::Waiting),
        promotability: promotability(BuildStatus::Waiting),
        runtime_defaults: None,
        oci_metadata: None,
        artifact_ids: Vec::new(),
        error: None,
        error_detail: None,
        retry_of_build_id: repeats.map(|build| build.build_id.clone()),
        original_build_id: repeats.map(|build| {
            let root = build.original_build_id.clone();
            root.unwrap_or_else(|| build.build_id.clone())
        }),
        cancel_requested_at: None,
        cancel_requested_by: None,
        cancellation_reason: None,
        canonical_ref: String::new(),
        namespace_slug: String::new(),
        visibility: Visibility::Private,
    };
    let mut row = BuildRow {
        id: build_id.clone(),
        name: name.clone(),
        tenant_id: caller.tenant_id(),
        key_id: caller.key_id.to_string(),
        status: BuildStatus::Waiting.as_str().into(),
        backend: word(&backend),
        source_type: source_type.to_owned(),
        definition: seal(app, &build_id, &Definition::new(request.clone(), &secrets))?,
        layers: "[]".into(),
        created_at: now,
        updated_at: now,
        ..BuildRow::default()
    };
    row.view = text(&view)?;
    let mut recording = row.clone();
    let (template, recorded) = app
        .store
        .write(move |tx| {
            let template = match templates::by_name(tx, &recording.tenant_id, &name)? {
                Some(template) if template.name != name => {
                    return Err(named::taken(&name).with_action(format!(
                        "it is an old name of {}: build that, or remove the alias",
                        template.name
                    )));
                }
                Some(template) => template,
                None => {
                    let token = claim_token.as_deref();
                    let (tenant_id, key_id) = (&recording.tenant_id, &recording.key_id);
                    named::check_free(tx, tenant_id, &name, key_id, token, now)?;
                    let template = TemplateRow {
                        id: id::new(id::TEMPLATE),
                        tenant_id: recording.tenant_id.clone(),
                        name,
                        visibility: Visibility::Private.as_str().into(),
                        created_at: now,
                    };
                    templates::insert(tx, &template)?;
                    template
                }
            };
            recording.template_id.clone_from(&template.id);
            recording.seq = rows::insert(tx, &recording)?;
            Ok((template, recording))
        })
        .await?;
    row = recorded;
    let (told, followed) = watch::channel(0);
    let live = Arc::new(Live {
        told: followed,
        cancel: CancellationToken::new(),
        cancelled: Mutex::default(),
    });
    app.templates
        .builds
        .lock()
        .insert(row.id.clone(), live.clone());
    let shown = shown(app, &row, Some(&template))?;
    let job = Job {
        request,
        program,
        secrets,
        context: files,
    };
    app.tasks
        .spawn(worker::run(app.clone(), job, row, live, told));
    Ok(shown)
}

/// What a build starts from, in the words of the wire.
async fn kind(
    app: &AppState,
    tenant_id: &str,
    request: &BuildRequest,
) -> (&'static str, BuildBackend) {
    let native = request.build_backend.unwrap_or(BuildBackend::Native);
    if request.dockerfile.is_some() {
        return ("dockerfile", BuildBackend::Buildkit);
    }
    let does_something =
        request.steps.is_some() || request.build_envs.is_some() || request.start_cmd.is_some();
    if does_something {
        return ("declarative", native);
    }
    let base = request.base_image.as_deref().unwrap_or_default();
    let is_template = match Reference::parse(base) {
        Ok(reference) if reference.builtin().is_some() => true,
        _ => matches!(source::template(app, tenant_id, base).await, Ok(Some(_))),
    };
    match is_template {
        true => ("template_base", native),
        false => ("oci_import", native),
    }
}

fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

pub(super) fn text(view: &Build) -> Result<String> {
    serde_json::to_string(view).map_err(|e| Error::internal(format!("writing a build: {e}")))
}

/// The record of a build as the wire has it.
pub(super) fn view(row: &BuildRow) -> Result<Build> {
    serde_json::from_str(&row.view)
        .map_err(|e| Error::internal(format!("the record of build {} is broken: {e}", row.id)))
}

fn shown(app: &App, row: &BuildRow, template: Option<&TemplateRow>) -> Result<Build> {
    let status = BuildStatus::parse(&row.status).unwrap_or(BuildStatus::Error);
    let name = template.map_or(&row.name, |template| &template.name);
    let mut view = view(row)?;
    if row.deleted_at.is_some() && status == BuildStatus::Ready {
        view.artifact_availability = Availability {
            status: "unavailable".into(),
            reason: Some("the template was deleted".into()),
        };
        view.promotability = Promotability {
            status: "unavailable".into(),
            promotable: false,
            reason: Some("the template was deleted".into()),
        };
    } else {
        view.artifact_availability = availability(status);
        view.promotability = promotability(status);
    }
    view.template_id.clone_from(&row.template_id);
    view.name.clone_from(name);
    view.status = status;
    view.updated_at = time::rfc3339(row.updated_at);
    view.canonical_ref = named::canonical(app, &row.tenant_id, name);
    view.namespace_slug = named::namespace_of(app, &row.tenant_id);
    view.visibility = template.map_or(Visibility::Private, named::visibility);
    Ok(view)
}

fn availability(status: BuildStatus) -> Availability {
    let word = match status {
        BuildStatus::Ready => "available",
        BuildStatus::Waiting | BuildStatus::Building => "publishing",
        BuildStatus::Error => "failed",
        BuildStatus::Cancelled => "unavailable",
    };
    Availability {
        status: word.into(),
        reason: None,
    }
}

fn promotability(status: BuildStatus) -> Promotability {
    let promotable = status == BuildStatus::Ready;
    Promotability {
        status: match status {
            BuildStatus::Ready => "promotable",
            BuildStatus::Waiting | BuildStatus::Building => "not_ready",
            BuildStatus::Error | BuildStatus::Cancelled => "unavailable",
        }
        .into(),
        promotable,
        reason: (!promotable).then(|| format!("the build is {}", status.as_str())),
    }
}

pub(crate) fn no_build(id: &str) -> Error {
    let shown: String = id.chars().take(64).collect();
    Error::not_found(
        code::TEMPLATE_BUILD_NOT_FOUND,
        format!("no build {shown:?}"),
    )
}

fn read(db: &Connection, id: &str) -> Result<Option<(BuildRow, Option<TemplateRow>)>, StoreError> {
    let Some(row) = rows::get(db, id)? else {
        return Ok(None);
    };
    let template = templates::get(db, &row.template_id)?;
    Ok(Some((row, template)))
}

async fn find(app: &App, id: &str) -> Result<(BuildRow, Option<TemplateRow>)> {
    let wanted = id.to_owned();
    app.store
        .read(move |db| read(db, &wanted))
        .await?
        .ok_or_else(|| no_build(id))
}

/// Builds of a template, newest first.
///
/// # Errors
/// `invalid_request`, `template_not_found`.
pub async fn list(
    app: &App,
    tenant_id: &str,
    text: &str,
    query: ListBuildsQuery,
) -> Result<BuildPage> {
    let limit = query.limit.unwrap_or(page::DEFAULT_LIMIT);
    if limit == 0 || limit > page::MAX_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {}",
            page::MAX_LIMIT
        )));
    }
    let word = |name: &str, value: Option<String>, known: &[&str]| match value {
        Some(value) if !value.is_empty() && !known.contains(&value.as_str()) => Err(
            Error::invalid(format!("{name}: must be one of {}", known.join(", "))),
        ),
        value => Ok(value.filter(|value| !value.is_empty())),
    };
    let statuses = BuildStatus::ALL.map(BuildStatus::as_str);
    let sources = ["declarative", "dockerfile", "oci_import", "template_base"];
    let before = match query.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Some(
            cursor
                .strip_prefix('b')
                .and_then(|digits| i64::from_str_radix(digits, 16).ok())
                .ok_or_else(|| Error::invalid("cursor: not a cursor of this server"))?,
        ),
    };
    let mut filter = rows::Filter {
        template_id: String::new(),
        status: word("status", query.status, &statuses)?,
        backend: word("backend", query.backend, &["native", "buildkit"])?,
        source_type: word("source_type", query.source_type, &sources)?,
        before,
        limit: limit + 1,
    };
    let reference = Reference::parse(text)?;
    if reference.builtin().is_some() {
        return Ok(BuildPage {
            builds: Vec::new(),
            next_cursor: None,
        });
    }
    let tenant_id = tenant_id.to_owned();
    let found = app
        .store
        .read(move |db| {
            // How another's was built is not shown.
            let found = named::find_in(db, &tenant_id, &reference, true)?;
            let Some(found) = found.filter(|found| found.template.tenant_id == tenant_id) else {
                return Ok(None);
            };
            filter.template_id.clone_from(&found.template.id);
            Ok::<_, StoreError>(Some((found.template, rows::list(db, &filter)?)))
        })
        .await?;
    let (template, mut found) = found.ok_or_else(|| reference::not_found(text))?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next_cursor = (found.last())
        .filter(|_| more)
        .map(|last| format!("b{:x}", last.seq));
    let builds = found.iter().map(|row| shown(app, row, Some(&template)));
    Ok(BuildPage {
        builds: builds.collect::<Result<_>>()?,
        next_cursor,
    })
}

/// Stops a build; one that is over stays as it is. Answers where it stands once it stopped, or in some seconds.
///
/// # Errors
/// `invalid_request`, `template_build_not_found`.
pub async fn cancel(
    app: &App,
    id: &str,
    reason: Option<String>,
    key_id: &str,
) -> Result<BuildSnapshot> {
    if reason.as_ref().is_some_and(|reason| reason.len() > 1024) {
        return Err(Error::invalid("reason: over 1024 bytes"));
    }
    find(app, id).await?;
    if let Some(live) = app.templates.builds.get(id) {
        let asked = Cancelled {
            at: time::now(),
            by: key_id.to_owned(),
            reason,
        };
        {
            let mut cancelled = (live.cancelled.lock()).unwrap_or_else(PoisonError::into_inner);
            cancelled.get_or_insert(asked);
        }
        // The worker writes it down before it does anything about it.
        live.cancel.cancel();
        let mut told = live.told.clone();
        let over = async { while told.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(PATIENCE, over).await;
    }
    snapshot(app, id, 0).await
}

/// Does a build again, as it was asked for.
///
/// # Errors
/// `template_build_not_found`, `template_build_conflict` while it is at work, `invalid_request` without the secrets that
/// it had, and those of [`begin`].
pub async fn retry(
    app: &AppState,
    id: &str,
    again: RetryBuildRequest,
    caller: &Caller,
) -> Result<Build> {
    let (row, template) = find(app, id).await?;
    let status = BuildStatus::parse(&row.status).unwrap_or(BuildStatus::Error);
    if !status.has_ended() {
        return Err(Error::conflict(
            code::TEMPLATE_BUILD_CONFLICT,
            format!("build {id} is {}", status.as_str()),
        )
        .with_action("cancel it, or wait for it"));
    }
    let definition = definition(app, &row)?;
    let secrets = Secrets {
        values: again.build_secrets.unwrap_or_default(),
        auth: again.base_image_auth,
        registries: again.registry_auth.unwrap_or_default(),
    };
    definition.check_again(&secrets)?;
    let parent = shown(app, &row, template.as_ref())?;
    let mut request = definition.request;
    // It may have been renamed since.
    request.name = Some(parent.name.clone());
    request.alias = None;
    if again.tags.is_some() {
        request.tags = again.tags;
    }
    start(app, request, secrets, caller, Some(&parent)).await
}

/// Makes a tag mean a build.
///
/// # Errors
/// `invalid_request`, `template_build_not_found`, `template_build_conflict` for one that is not ready.
pub async fn promote(app: &App, id: &str, request: PromoteBuildRequest) -> Result<TemplateInfo> {
    let tags: Vec<String> = (request.tag.into_iter())
        .chain(request.tags.unwrap_or_default())
        .collect();
    let (row, _) = find(app, id).await?;
    if row.status != BuildStatus::Ready.as_str() || row.deleted_at.is_some() {
        let what = match row.deleted_at {
            Some(_) => "of a template that was deleted",
            None => &row.status,
        };
        return Err(Error::conflict(
            code::TEMPLATE_BUILD_CONFLICT,
            format!("build {id} is {what}"),
        )
        .with_action("only a build that is ready can be promoted"));
    }
    named::set_tags(app, &row, tags).await
}

/// Records builds that a server before this one did not finish as what they are. Called once, before any request.
///
/// # Errors
/// When the record cannot be written.
pub(super) async fn interrupt(app: &App) -> Result<()> {
    for mut row in app.store.read(rows::unfinished).await? {
        let now = time::now();
        let failure = interrupted(&row.id);
        let mut view = view(&row)?;
        view.error = Some(failure.message.clone());
        view.failure_phase = Some(failure.phase.clone());
        view.error_detail = Some(failure.clone());
        view.finished_at = Some(time::rfc3339(now));
        row.view = text(&view)?;
        row.status = BuildStatus::Error.as_str().into();
        row.updated_at = now;
        let entry = BuildLogEntry {
            kind: "error".into(),
            level: "error".into(),
            message: failure.message.clone(),
            phase: Some(failure.phase.clone()),
            error_detail: Some(failure),
            ..BuildLogEntry::default()
        };
        let entry = serde_json::to_string(&entry).unwrap_or_default();
        tracing::warn!(build = row.id, "a build was interrupted");
        app.store
            .write(move |tx| {
                rows::append(tx, row.seq, row.entries, &[(now, entry)])?;
                row.entries += 1;
                rows::update(tx, &row)
            })
            .await?;
    }
    Ok(())
}

/// Why a build ended whose server did.
pub(super) fn interrupted(build_id: &str) -> BuildFailure {
    BuildFailure {
        code: code::BUILD_ERROR.into(),
        message: INTERRUPTED.into(),
        phase: "interrupted".into(),
        retryable: true,
        suggested_action: "retry the build; layers that were finished are used again".into(),
        build_id: Some(build_id.to_owned()),
        details: Some(json!({"reason": "server_ended"})),
        ..BuildFailure::default()
    }
}

/// Forgets builds of deleted templates.
pub(super) async fn forget_old(app: &App) -> Result<()> {
    let before = time::now() - RETENTION;
    app.store
        .write(move |tx| rows::forget_deleted_before(tx, before))
        .await?;
    Ok(())
}

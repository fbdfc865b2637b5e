//! Templates that machines start from: looked up in memory, made in the background, built from what callers say.
//!
//! ```text
//!  find ──▶ built in (made by this program) ── or ──▶ named (built here): what a tag means, or a build by its id
//!  build ──▶ definition ──▶ program ──▶ worker: a machine per step, what it wrote is a layer ──▶ artifact ──▶ named
//! ```

mod archive;
mod artifact;
pub mod blob;
pub mod build;
mod context;
mod definition;
mod derived;
mod dockerfile;
pub mod gc;
mod image;
mod journal;
mod layer;
pub mod named;
mod program;
pub(super) mod ready;
mod reference;
mod source;
mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use nullspace_api::error::code;
use nullspace_templates::{Layer, Progress, Templates};

use crate::error::{Error, Kind, Result};

use reference::{Reference, Which};

/// Where the templates come from.
#[derive(Clone)]
pub enum Source {
    /// The built-in ones.
    Builtin {
        /// Shared between data directories.
        cache_dir: Option<PathBuf>,
        /// Make `base` if it is not there.
        make_base: bool,
        /// Told what the making of `base` does, from a thread of its own.
        progress: Arc<dyn Fn(Progress) + Send + Sync>,
    },
    /// These, ready.
    Fixed(Vec<Layer>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin {
                cache_dir,
                make_base,
                ..
            } => f
                .debug_struct("Builtin")
                .field("cache_dir", cache_dir)
                .field("make_base", make_base)
                .finish_non_exhaustive(),
            Self::Fixed(layers) => f.debug_tuple("Fixed").field(layers).finish(),
        }
    }
}

/// The templates that are ready, and why `base` is not.
#[derive(Debug, Default)]
pub struct Registry {
    ready: RwLock<BTreeMap<String, Arc<Layer>>>,
    /// What is being made, by name, with what it is doing.
    pending: Mutex<BTreeMap<String, String>>,
    /// Where templates can be made at first demand.
    builtin: OnceLock<Templates>,
    making: derived::Making,
    /// What tags of templates mean that were built here.
    named: RwLock<named::Index>,
    /// Held from reading what `named` is made of until that is said, and while a build that is in it already is recorded:
    /// neither may be undone by what was read before the other.
    naming: tokio::sync::Mutex<()>,
    /// Builds that somebody named, by tenant and reference.
    exact: RwLock<HashMap<(String, String), Arc<Layer>>>,
    /// Whom commands in machines run as, by machine, where that is not root.
    users: RwLock<HashMap<String, String>>,
    builds: build::Builds,
    held: layer::Held,
    fetcher: OnceLock<image::Fetcher>,
}

impl Registry {
    /// The template that a reference of a tenant means. One that names a build has to be asked for with [`ensure`] before.
    ///
    /// # Errors
    /// `template_not_ready` while it is made, `template_not_found` otherwise.
    pub fn find(&self, tenant_id: &str, text: &str) -> Result<Arc<Layer>> {
        let reference = Reference::parse(text)?;
        if let Some(name) = reference.builtin() {
            return self.find_builtin(name);
        }
        let found = match &reference.which {
            Which::Build(_) => {
                let exact = self.exact.read().unwrap_or_else(PoisonError::into_inner);
                exact.get(&(tenant_id.to_owned(), text.to_owned())).cloned()
            }
            _ => {
                let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
                named::look_up(&named, tenant_id, &reference)
            }
        };
        found.ok_or_else(|| reference::not_found(text))
    }

    /// A built-in template.
    ///
    /// # Errors
    /// As [`Registry::find`].
    pub(super) fn find_builtin(&self, name: &str) -> Result<Arc<Layer>> {
        let ready = self.ready.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = ready.get(name) {
            return Ok(layer.clone());
        }
        drop(ready);
        if let Some(why) = self.why_not(name) {
            let host = "use the template `host` meanwhile, or wait";
            return Err(Error::new(
                Kind::Unavailable,
                code::TEMPLATE_NOT_READY,
                format!("template {name} is not ready: {why}"),
            )
            .with_action(host)
            .with_retry_after(5));
        }
        if derived::recipe(name).is_some() && self.builtin.get().is_some() {
            return Err(Error::new(
                Kind::Unavailable,
                code::TEMPLATE_NOT_READY,
                format!("template {name} is made when the first machine asks for it"),
            )
            .with_retry_after(5));
        }
        Err(Error::not_found(
            code::TEMPLATE_NOT_FOUND,
            format!("no template {name:?}"),
        ))
    }

    /// Why a known template is not ready.
    #[must_use]
    pub fn why_not(&self, name: &str) -> Option<String> {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// Whether it is ready.
    #[must_use]
    pub fn is_ready(&self, name: &str) -> bool {
        let ready = self.ready.read().unwrap_or_else(PoisonError::into_inner);
        ready.contains_key(name)
    }

    /// The names of the templates that are ready.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let ready = self.ready.read().unwrap_or_else(PoisonError::into_inner);
        ready.keys().cloned().collect()
    }

    /// Offers a template from now on.
    pub fn add(&self, layer: Layer) {
        self.set_pending(&layer.name, None);
        self.ready
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(layer.name.clone(), Arc::new(layer));
    }

    /// Whom commands in a machine run as, if not as root.
    #[must_use]
    pub fn user(&self, machine_id: &str) -> Option<String> {
        let users = self.users.read().unwrap_or_else(PoisonError::into_inner);
        users.get(machine_id).cloned()
    }

    pub(super) fn set_user(&self, machine_id: &str, user: Option<String>) {
        let mut users = self.users.write().unwrap_or_else(PoisonError::into_inner);
        match user {
            Some(user) => users.insert(machine_id.to_owned(), user),
            None => users.remove(machine_id),
        };
    }

    /// What tags mean from now on, ahead of the record.
    fn add_named(&self, places: &[String], tags: &[String], new: &named::Named) {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        for place in places {
            for tag in tags {
                named.insert(format!("{place}:{tag}"), new.clone());
            }
        }
    }

    fn set_named(&self, index: named::Index) {
        *self.named.write().unwrap_or_else(PoisonError::into_inner) = index;
        // What is not there any more must not be found by what was found before.
        let mut exact = self.exact.write().unwrap_or_else(PoisonError::into_inner);
        exact.clear();
    }

    fn set_pending(&self, name: &str, why: Option<String>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => pending.insert(name.to_owned(), why),
            None => pending.remove(name),
        };
    }
}

/// Sees to it that a template is there that is made at first demand, or that is named by a build; others are left as they
/// are.
///
/// # Errors
/// `transition_in_progress` while it is being made, `template_not_ready` with the reason when it could not be,
/// `template_not_found`, and those of the template below.
pub async fn ensure(app: &super::AppState, tenant_id: &str, text: &str) -> Result<()> {
    let reference = Reference::parse(text)?;
    if let Some(name) = reference.builtin() {
        return derived::ensure(app, name).await;
    }
    if !matches!(reference.which, Which::Build(_)) {
        return Ok(());
    }
    let (artifact, name) = named::exact(app, tenant_id, text).await?;
    let layer = Arc::new(artifact.layer(&app.data_dir, &name));
    let mut exact = (app.templates.exact.write()).unwrap_or_else(PoisonError::into_inner);
    if exact.len() >= EXACT {
        exact.clear();
    }
    exact.insert((tenant_id.to_owned(), text.to_owned()), layer);
    Ok(())
}

/// Whether machines that start from what has this digest have to get ready before they run.
///
/// # Errors
/// When the record cannot be read.
pub(super) async fn gets_ready(app: &super::App, digest: &str) -> Result<bool> {
    let digest = digest.to_owned();
    let build = (app.store)
        .read(move |db| nullspace_store::template_build::by_digest(db, &digest))
        .await?;
    let artifact = build.and_then(|row| build::artifact(app, &row));
    Ok(artifact
        .is_some_and(|artifact| artifact.start_cmd.is_some() || artifact.readiness.is_some()))
}

/// What a reference means at this moment.
#[derive(Clone, Debug)]
pub(super) struct Meaning {
    pub(super) layer: Arc<Layer>,
    /// A reference that means the same for ever; a built-in template has only its name.
    pub(super) exact: String,
    pub(super) build_id: Option<String>,
}

/// What a reference means at this moment.
///
/// # Errors
/// Those of [`ensure`] and of [`Registry::find`].
pub(super) async fn meaning(app: &super::AppState, tenant_id: &str, text: &str) -> Result<Meaning> {
    let reference = Reference::parse(text)?;
    if let Some(name) = reference.builtin() {
        derived::ensure(app, name).await?;
        return Ok(Meaning {
            layer: app.templates.find_builtin(name)?,
            exact: text.to_owned(),
            build_id: None,
        });
    }
    let (artifact, name, template_id, build_id) = named::meaning(app, tenant_id, text).await?;
    Ok(Meaning {
        layer: Arc::new(artifact.layer(&app.data_dir, &name)),
        exact: format!("{template_id}:{build_id}"),
        build_id: Some(build_id),
    })
}

/// A reference with a tag in place of what it says about builds; `None` if it names a build or another tag.
pub(super) fn with_tag(text: &str, tag: &str) -> Result<Option<String>> {
    reference::check_tag(tag)?;
    let reference = Reference::parse(text)?;
    Ok(match &reference.which {
        Which::Default => Some(format!("{text}:{tag}")),
        Which::Tag(said) if said == tag => Some(text.to_owned()),
        Which::Tag(_) | Which::Build(_) => None,
    })
}

/// The tag that a reference names.
pub(super) fn tag_of(text: &str) -> Result<Option<String>> {
    Ok(match Reference::parse(text)?.which {
        Which::Tag(tag) => Some(tag),
        Which::Default | Which::Build(_) => None,
    })
}

/// References by build that are remembered.
const EXACT: usize = 1024;

/// Ends what a server before this one did with templates, and reads what there is. Called once, before any request.
///
/// # Errors
/// When the record or the disk cannot be used.
pub async fn restore(app: &super::AppState) -> Result<()> {
    derived::clean(app).await?;
    build::interrupt(app).await?;
    blob::sweep(app, true).await?;
    layer::clean(app).await?;
    image::open(app).await?;
    let users = (app.store)
        .read(nullspace_store::template::machine_users)
        .await?;
    for (machine, user) in users {
        app.templates.set_user(&machine, Some(user));
    }
    named::refresh(app).await
}

/// Forgets what is over its time. Called now and then.
///
/// # Errors
/// When the record or the disk cannot be used.
pub async fn forget_old(app: &super::AppState) -> Result<()> {
    blob::sweep(app, false).await?;
    layer::make_room(app).await?;
    {
        let mut users = (app.templates.users.write()).unwrap_or_else(PoisonError::into_inner);
        users.retain(|machine, _| app.machines.get(machine).is_some());
    }
    build::forget_old(app).await
}

/// Fills the registry; what takes long goes on in a thread that ends with the process.
///
/// # Errors
/// When the template directories cannot be used.
pub async fn start(app: &super::AppState, source: Source) -> Result<()> {
    let (cache_dir, make_base, progress) = match source {
        Source::Fixed(layers) => {
            for layer in layers {
                app.templates.add(layer);
            }
            return Ok(());
        }
        Source::Builtin {
            cache_dir,
            make_base,
            progress,
        } => (cache_dir, make_base, progress),
    };
    let app = app.clone();
    let open = move || -> Result<()> {
        let fail = |e: nullspace_templates::TemplateError| {
            let hint = e.hint();
            let error = Error::internal(crate::error::chain(&e));
            match hint {
                Some(hint) => error.with_action(hint),
                None => error,
            }
        };
        let templates = Templates::open(&app.data_dir, cache_dir.as_deref()).map_err(fail)?;
        let _ = app.templates.builtin.set(templates.clone());
        match templates.host() {
            Ok(layer) => app.templates.add(layer),
            Err(error) => {
                let reason = crate::error::chain(&error);
                tracing::warn!(reason, "the host template is not available");
                app.templates.set_pending("host", Some(reason));
            }
        }
        if let Some(layer) = templates.base_ready() {
            app.templates.add(layer);
            return Ok(());
        }
        if !make_base {
            let why = "it was never made and this server is told not to make it";
            app.templates.set_pending("base", Some(why.into()));
            return Ok(());
        }
        app.templates
            .set_pending("base", Some("it is being made".into()));
        std::thread::Builder::new()
            .name("make-base".into())
            .spawn(move || make_base_template(&app, &templates, &*progress))
            .map_err(|e| Error::internal(format!("starting a thread: {e}")))?;
        Ok(())
    };
    tokio::task::spawn_blocking(open)
        .await
        .map_err(|e| Error::internal(format!("opening the templates: {e}")))?
}

fn make_base_template(app: &super::App, templates: &Templates, progress: &dyn Fn(Progress)) {
    match templates.ensure_base(progress) {
        Ok(layer) => {
            tracing::info!(digest = layer.digest, "template base is ready");
            app.templates.add(layer);
        }
        Err(error) => {
            let mut reason = crate::error::chain(&error);
            tracing::error!(reason, "template base could not be made");
            if let Some(hint) = error.hint() {
                reason = format!("{reason}; {hint}");
            }
            app.templates.set_pending("base", Some(reason));
        }
    }
}

//! Templates that machines start from: looked up in memory, made in the background.

mod derived;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock},
};

use nullspace_api::error::code;
use nullspace_templates::{Layer, Progress, Templates};

use crate::error::{Error, Kind, Result};

pub use derived::{clean, ensure};

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
}

impl Registry {
    /// The template of that name.
    ///
    /// # Errors
    /// `template_not_ready` while it is made, `template_not_found` otherwise.
    pub fn find(&self, name: &str) -> Result<Arc<Layer>> {
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

    fn set_pending(&self, name: &str, why: Option<String>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => pending.insert(name.to_owned(), why),
            None => pending.remove(name),
        };
    }
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

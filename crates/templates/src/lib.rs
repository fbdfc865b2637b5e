//! The built-in templates: what a machine's file system starts from.
//!
//! - `base`: a small Debian with Python, Node, git and what else agent projects expect, made once from
//!   the archives that the host itself uses, then kept by digest ([`Templates::ensure_base`]).
//! - `host`: this host's own `/usr`, read-only, on a skeleton of our own; ready at once
//!   ([`Templates::host`]).
//!
//! - `code-interpreter`: `base` and a layer with Jupyter kernels, made in a machine at first demand ([`derived`]).
//!
//! A template is a [`Layer`]: read-only trees and binds that an engine builds machines on. The server
//! calls this crate from blocking threads; nothing here is asynchronous.

// A test that cannot go on should say where it stopped.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod base;
pub mod derived;
mod error;
mod host;
mod kept;
mod progress;
mod settings;
mod sources;
mod tree;

use std::path::{Path, PathBuf};

pub use error::TemplateError;
pub use kept::Record;
pub use progress::{Phase, Progress, without_credentials};
pub use settings::OWN_SOURCES;

use base::Plan;
use kept::{Kept, Lock};
use nullspace_api::{machine::Isolation, template::Readiness};
use settings::HostSettings;

/// Where finished layers are shared between the data directories of one host, unless told otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/cache/nullspace";

/// The working directory of commands in a machine.
const WORKSPACE: &str = "/workspace";

/// A template, ready for machines to be built on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The template's name: `base`, `host` or `code-interpreter`.
    pub name: String,
    /// What it is: 64 hex digits (SHA-256). Equal digests are equal templates. The `host` template's
    /// digest covers its skeleton and the host's release, not every file in `/usr`.
    pub digest: String,
    /// Finished, immutable trees, topmost first.
    pub lower: Vec<PathBuf>,
    /// Where commands start: `/workspace`.
    pub default_cwd: String,
    /// Environment of every command unless it sets the name itself.
    pub env: Vec<(String, String)>,
    /// Host paths shown inside.
    pub binds: Vec<Bind>,
    /// What machines do besides.
    pub runtime: Runtime,
}

/// What the machines of a template do that its files do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Whom commands run as; root when absent.
    pub user: Option<String>,
    /// Runs from the machine's start.
    pub start_cmd: Option<String>,
    /// When the machine counts as ready.
    pub readiness: Option<Readiness>,
    /// What keeps the machine apart from the host, unless it asks for something else.
    pub isolation: Option<Isolation>,
}

/// A host path that a template shows inside a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside the machine; it exists in the layer.
    pub target: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// The built-in templates of one data directory.
///
/// Any number of these may be open on the same directories, in one process or several: builds are
/// serialised, and the second uses what the first made.
#[derive(Clone, Debug)]
pub struct Templates {
    data: Kept,
    /// Where `base` is built and kept: the shared cache, or the data directory.
    shared: Kept,
    host: HostSettings,
}

impl Templates {
    /// Opens the templates of `data_dir`, makes the directories they need and removes what a killed
    /// build left there. With `cache_dir`, `base` is kept in it for other data directories to use
    /// ([`DEFAULT_CACHE_DIR`]), and this one refers to it by path.
    ///
    /// # Errors
    /// If the directories cannot be made or cleaned.
    pub fn open(data_dir: &Path, cache_dir: Option<&Path>) -> Result<Self, TemplateError> {
        let data = Kept::open(data_dir)?;
        let shared = cache_dir.map_or_else(|| Ok(data.clone()), Kept::open)?;
        for kept in [&data, &shared] {
            for kind in ["base", "host", derived::CODE_INTERPRETER.name] {
                // Somebody else's lock means somebody is building: what is there is not left over.
                if let Some(lock) = kept.lock(kind, false)? {
                    kept.sweep(kind, &lock)?;
                }
            }
        }
        Ok(Self {
            data,
            shared,
            host: HostSettings::of_this_host(),
        })
    }

    /// The `base` template if it has been made. Reads two small files.
    ///
    /// It is also found in the shared cache, where another data directory may have put it.
    #[must_use]
    pub fn base_ready(&self) -> Option<Layer> {
        self.base_record().map(|record| base_layer(&record))
    }

    /// The record of the `base` template if it has been made.
    #[must_use]
    pub fn base_record(&self) -> Option<Record> {
        // A host that lost its apt configuration can still use the layer it has.
        let suite = self
            .host
            .suite_and_sources()
            .map_or_else(|_| self.host.suite(), |(suite, _)| suite);
        let recipe = base::recipe_digest(&suite);
        [
            self.data.record("base"),
            self.shared.record(&shared_name(&recipe)),
        ]
        .into_iter()
        .flatten()
        .find(|record| record.recipe_digest == recipe)
    }

    /// The `base` template, made now if need be: that takes minutes and downloads about 150 MB. If
    /// another process is making it, waits for that one.
    ///
    /// `progress` is called from this thread, for every line that the build prints. If this process
    /// dies, so does the build, and nothing of it counts as made.
    ///
    /// # Errors
    /// If the host names no Debian archive, a tool is missing, the caller is not root, or a step of the
    /// build fails; see [`TemplateError::hint`].
    pub fn ensure_base(&self, progress: &dyn Fn(Progress)) -> Result<Layer, TemplateError> {
        let record = match self.base_record() {
            Some(record) => record,
            None => self.make_base(progress)?,
        };
        if self.data.record("base").as_ref() != Some(&record) {
            self.data.write_record("base", &record)?;
        }
        Ok(base_layer(&record))
    }

    fn make_base(&self, progress: &dyn Fn(Progress)) -> Result<Record, TemplateError> {
        let lock = lock_or_wait(&self.shared, "base", progress)?;
        if let Some(record) = self.base_record() {
            return Ok(record);
        }
        self.shared.sweep("base", &lock)?;
        let plan = Plan::new(self.host.clone())?;
        let building = self.shared.building("base", &lock)?;
        let built = plan.build(&building, &lock, progress)?;
        progress(Progress {
            phase: Phase::Keeping,
            fraction: None,
            line: String::new(),
        });
        let recipe_digest = base::recipe_digest(&plan.suite);
        let record = Record {
            name: "base".into(),
            path: self.shared.keep(&built.root, &built.digest)?,
            digest: built.digest,
            built_at: jiff::Timestamp::now().to_string(),
            suite: plan.suite,
            packages_digest: built.packages_digest,
            size_bytes: built.size_bytes,
            recipe_digest,
        };
        self.shared
            .write_record(&shared_name(&record.recipe_digest), &record)?;
        Ok(record)
    }

    /// The `host` template: this host's `/usr`, read-only, on a skeleton with none of the host's own
    /// settings. Made at the first call and whenever the host's release or certificates changed; takes
    /// milliseconds otherwise.
    ///
    /// `/usr` is shown as it is: what the host installs or removes later shows in running machines.
    ///
    /// # Errors
    /// If the host does not keep its programs under `/usr`, or a file operation fails.
    pub fn host(&self) -> Result<Layer, TemplateError> {
        let skeleton = host::Skeleton::of(Path::new("/"))?;
        let digest = skeleton.digest();
        let place = match self.data.layer(&digest).filter(|place| place.is_dir()) {
            Some(place) => place,
            None => {
                let lock = lock_or_wait(&self.data, "host", &|_| {})?;
                self.data.sweep("host", &lock)?;
                let building = self.data.building("host", &lock)?;
                let root = building.path().join("root");
                skeleton.write(&root)?;
                self.data.keep(&root, &digest)?
            }
        };
        Ok(Layer {
            name: "host".into(),
            digest,
            lower: vec![place],
            default_cwd: WORKSPACE.into(),
            env: environment(),
            binds: vec![Bind {
                source: "/usr".into(),
                target: "/usr".into(),
                read_only: true,
            }],
            runtime: Runtime::default(),
        })
    }

    /// The tree of the layer with that digest, whatever template it was made for: what was started from
    /// it may outlive the template's present form. None if it is not kept here.
    #[must_use]
    pub fn layer(&self, digest: &str) -> Option<PathBuf> {
        [&self.data, &self.shared]
            .iter()
            .filter_map(|kept| kept.layer(digest))
            .find(|path| path.is_dir())
    }

    /// Hashes the `base` layer again and compares: takes a second or so for each gigabyte.
    ///
    /// # Errors
    /// [`TemplateError::Altered`] if a file, mode or owner changed since it was made.
    pub fn verify_base(&self) -> Result<(), TemplateError> {
        let Some(record) = self.base_record() else {
            return Ok(());
        };
        let tree = tree::digest(&record.path, &|_| {})
            .map_err(TemplateError::file("cannot hash the tree at", &record.path))?;
        let found = base::layer_digest(&record.recipe_digest, &tree.digest);
        if found == record.digest {
            Ok(())
        } else {
            Err(TemplateError::Altered {
                digest: record.digest,
                found,
            })
        }
    }
}

fn lock_or_wait(
    kept: &Kept,
    kind: &str,
    progress: &dyn Fn(Progress),
) -> Result<Lock, TemplateError> {
    if let Some(lock) = kept.lock(kind, false)? {
        return Ok(lock);
    }
    progress(Progress {
        phase: Phase::Waiting,
        fraction: None,
        line: "another process is making it".into(),
    });
    loop {
        if let Some(lock) = kept.lock(kind, true)? {
            return Ok(lock);
        }
    }
}

/// Records in the shared cache are one for each recipe: two versions of the program do not undo each
/// other's work.
fn shared_name(recipe_digest: &str) -> String {
    format!("base-{}", &recipe_digest[..16])
}

fn base_layer(record: &Record) -> Layer {
    Layer {
        name: record.name.clone(),
        digest: record.digest.clone(),
        lower: vec![record.path.clone()],
        default_cwd: WORKSPACE.into(),
        env: environment(),
        binds: Vec::new(),
        runtime: Runtime::default(),
    }
}

fn environment() -> Vec<(String, String)> {
    [
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", "/root"),
        ("LANG", "C.UTF-8"),
        ("DEBIAN_FRONTEND", "noninteractive"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// Writes a new file that only its owner can read.
fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

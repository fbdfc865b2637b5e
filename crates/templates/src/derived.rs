//! Templates that are made in a machine of another template: what a script wrote there is one more layer.
//!
//! ```text
//!  begin ──▶ Ready                                        somebody made it before
//!        └─▶ Build: a machine runs the script, its writable layer becomes `target` ──finish──▶ Ready
//! ```
//! This crate makes no machines; the server does between the two. The rules of [`crate::kept`] hold: a build that ends
//! at any instant leaves nothing that counts as made.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::{
    Layer, Record, TemplateError, Templates, base,
    kept::{Building, Kept, Lock},
    lock_or_wait,
    tree::{self, Root},
};

/// What a machine leaves that no machine needs to begin with.
const LEFT_OUT: [&str; 6] = [
    "tmp",
    "var/tmp",
    "run",
    "root/.cache",
    "root/.npm",
    "workspace",
];

/// How a template is made from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The template's name.
    pub name: &'static str,
    /// Goes up when the recipe changes in a way that its script does not show.
    pub version: u32,
    /// What root runs, with `/bin/sh -e`, in a machine of the template below.
    pub script: &'static str,
}

/// `code-interpreter`: Jupyter kernels for Python and for JavaScript, and what people expect next to them.
///
/// The kernels' packages are the system's own, so that `pip install` in a cell, in a command and in a terminal is one
/// and the same. What speaks to the kernels has an environment of its own: no cell can break it by an install.
pub const CODE_INTERPRETER: Recipe = Recipe {
    name: "code-interpreter",
    version: 1,
    script: r#"
export UV_NO_PROGRESS=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
if [ -n "$PIP_INDEX_URL" ]; then export UV_DEFAULT_INDEX="$PIP_INDEX_URL"; fi
if [ -n "$PIP_EXTRA_INDEX_URL" ]; then export UV_INDEX="$PIP_EXTRA_INDEX_URL"; fi
uv pip install --system 'ipykernel>=7,<8' 'numpy>=2,<3' 'pandas>=2,<4' 'matplotlib>=3.9,<4'
uv venv --python /usr/bin/python3 /opt/nullspace/code
uv pip install --python /opt/nullspace/code/bin/python 'jupyter_client>=8,<9' 'deno>=2,<3'
ln -s /opt/nullspace/code/bin/deno /usr/local/bin/deno
/usr/bin/python3 -c 'import ipykernel, numpy, pandas, matplotlib.pyplot'
/opt/nullspace/code/bin/python -c 'import jupyter_client'
deno --version
"#,
};

/// Whether a template has to be made.
#[derive(Debug)]
pub enum Begun {
    /// It is there.
    Ready(Layer),
    /// It is to be made; nobody else makes it as long as this is held.
    Build(Build),
}

/// The right to make a template.
#[derive(Debug)]
pub struct Build {
    recipe: Recipe,
    base: Layer,
    data: Kept,
    shared: Kept,
    building: Building,
    // After `building`: what is unfinished goes before anybody else may begin.
    _locks: Vec<Lock>,
}

impl Templates {
    /// The template if it was made over this `base`. Reads two small files.
    #[must_use]
    pub fn derived_ready(&self, recipe: &Recipe, base: &Layer) -> Option<Layer> {
        let name = record_name(recipe, base);
        let wanted = recipe_digest(recipe, base);
        [&self.data, &self.shared]
            .iter()
            .filter_map(|kept| kept.record(&name))
            .find(|record| record.recipe_digest == wanted)
            .map(|record| layer(&record, base))
    }

    /// The template, or the right to make it. If another process makes it, waits for that one.
    ///
    /// # Errors
    /// When the directories cannot be used.
    pub fn begin_derived(&self, recipe: &Recipe, base: &Layer) -> Result<Begun, TemplateError> {
        if let Some(layer) = self.derived_ready(recipe, base) {
            return Ok(Begun::Ready(layer));
        }
        let mut locks = vec![lock_or_wait(&self.shared, recipe.name, &|_| {})?];
        if self.data.layers() != self.shared.layers() {
            locks.push(lock_or_wait(&self.data, recipe.name, &|_| {})?);
        }
        if let Some(layer) = self.derived_ready(recipe, base) {
            return Ok(Begun::Ready(layer));
        }
        let lock = &locks[locks.len() - 1];
        self.data.sweep(recipe.name, lock)?;
        Ok(Begun::Build(Build {
            recipe: *recipe,
            base: base.clone(),
            data: self.data.clone(),
            shared: self.shared.clone(),
            building: self.data.building(recipe.name, lock)?,
            _locks: locks,
        }))
    }

    /// How the build reaches package indexes: proxies, and the host's pip settings as `PIP_*`. May hold credentials.
    #[must_use]
    pub fn build_env(&self) -> std::collections::BTreeMap<String, String> {
        self.host.build_env()
    }
}

impl Build {
    /// Where the machine's writable layer is to be put: not there yet, in the data directory.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.building.path().join("root")
    }

    /// Makes what is at [`Build::target`] the template. Takes seconds: every file is read once.
    ///
    /// # Errors
    /// When a file operation fails; nothing counts as made then.
    pub fn finish(self) -> Result<Layer, TemplateError> {
        let root = self.target();
        let left_out = || {
            let tree = Root::open(&root)?;
            LEFT_OUT.iter().try_for_each(|path| tree.remove(path))
        };
        left_out().map_err(TemplateError::file("cannot finish the tree at", &root))?;
        let tree = tree::digest(&root, &|_| {})
            .map_err(TemplateError::file("cannot hash the tree at", &root))?;
        let recipe_digest = recipe_digest(&self.recipe, &self.base);
        let digest = base::layer_digest(&recipe_digest, &tree.digest);
        let record = |path| Record {
            name: self.recipe.name.into(),
            digest: digest.clone(),
            path,
            built_at: jiff::Timestamp::now().to_string(),
            suite: String::new(),
            packages_digest: String::new(),
            size_bytes: tree.size_bytes,
            recipe_digest: recipe_digest.clone(),
        };
        let name = record_name(&self.recipe, &self.base);
        // A cache on another file system cannot take it over: then it stays with this data directory.
        let (kept, path) = match self.shared.keep(&root, &digest) {
            Ok(path) => (&self.shared, path),
            Err(_) => (&self.data, self.data.keep(&root, &digest)?),
        };
        let record = record(path);
        kept.write_record(&name, &record)?;
        Ok(layer(&record, &self.base))
    }
}

/// What the template is made from. The versions that the index has today are not part of it.
fn recipe_digest(recipe: &Recipe, base: &Layer) -> String {
    let mut hash = Sha256::new();
    let version = recipe.version.to_string();
    for part in [recipe.name, &version, recipe.script, &base.digest] {
        hash.update(format!("{}:{part}", part.len()));
    }
    hex::encode(hash.finalize())
}

fn record_name(recipe: &Recipe, base: &Layer) -> String {
    format!("{}-{}", recipe.name, &recipe_digest(recipe, base)[..16])
}

fn layer(record: &Record, base: &Layer) -> Layer {
    Layer {
        name: record.name.clone(),
        digest: record.digest.clone(),
        lower: std::iter::once(record.path.clone())
            .chain(base.lower.iter().cloned())
            .collect(),
        ..base.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const RECIPE: Recipe = Recipe {
        name: "test",
        version: 1,
        script: "true",
    };

    fn base() -> Layer {
        Layer {
            name: "base".into(),
            digest: "a".repeat(64),
            lower: vec!["/base".into()],
            default_cwd: "/workspace".into(),
            env: Vec::new(),
            binds: Vec::new(),
            runtime: crate::Runtime::default(),
        }
    }

    fn begin(templates: &Templates) -> Build {
        match templates.begin_derived(&RECIPE, &base()).unwrap() {
            Begun::Build(build) => build,
            Begun::Ready(layer) => panic!("ready: {layer:?}"),
        }
    }

    #[test]
    fn what_one_data_directory_made_another_uses() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let open = |n: usize| Templates::open(dirs[n].path(), Some(dirs[2].path())).unwrap();
        let build = begin(&open(0));
        fs::create_dir_all(build.target().join("tmp/x")).unwrap();
        fs::write(build.target().join("made"), "it").unwrap();
        let made = build.finish().unwrap();
        assert_eq!(made.name, "test");
        assert_eq!(made.lower[1..], base().lower);
        assert!(made.lower[0].join("made").exists() && !made.lower[0].join("tmp").exists());
        assert_eq!(open(1).derived_ready(&RECIPE, &base()), Some(made));
        let other = Recipe {
            script: "false",
            ..RECIPE
        };
        assert_eq!(open(1).derived_ready(&other, &base()), None);
        let other = Layer {
            digest: "b".repeat(64),
            ..base()
        };
        assert_eq!(open(1).derived_ready(&RECIPE, &other), None);
    }

    #[test]
    fn a_build_that_is_not_finished_leaves_nothing_and_the_next_one_may_begin() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::open(dir.path(), None).unwrap();
        let build = begin(&templates);
        fs::create_dir(build.target()).unwrap();
        let place = build.building.path().to_owned();
        drop(build);
        assert!(!place.exists());
        assert_eq!(templates.derived_ready(&RECIPE, &base()), None);
        // As after a kill: nobody dropped it.
        let build = begin(&templates);
        let left = build.building.path().to_owned();
        fs::create_dir(build.target()).unwrap();
        std::mem::forget(build.building);
        drop(build._locks);
        let next = begin(&templates);
        assert!(!left.exists());
        drop(next);
    }
}

//! What a finished build is: trees, and what machines do besides. Kept sealed, since variables may be secrets.

use std::path::{Path, PathBuf};

use nullspace_api::{
    machine::Isolation,
    template::{OciMetadata, Readiness, RuntimeDefaults},
};
use nullspace_templates::{Bind, Layer, Runtime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::layer;

/// See the module's docs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Artifact {
    /// The digest of what is below the layers of steps, an image's own included.
    pub(super) base: String,
    /// The trees of that, topmost first.
    pub(super) lower: Vec<PathBuf>,
    /// Host paths that it shows: source, target, whether writes are refused.
    pub(super) binds: Vec<(PathBuf, PathBuf, bool)>,
    /// Ids of layers of steps, and below them of an image, topmost first.
    pub(super) layers: Vec<String>,
    /// Variables, in the order in which they were set.
    pub(super) env: Vec<(String, String)>,
    /// Where commands start.
    pub(super) cwd: String,
    /// Whom they run as.
    pub(super) user: Option<String>,
    /// Runs in every machine.
    pub(super) start_cmd: Option<String>,
    /// When a machine counts as ready.
    pub(super) readiness: Option<Readiness>,
    /// What keeps a machine apart from the host, unless it asks for something else.
    #[serde(default)]
    pub(super) isolation: Option<Isolation>,
    /// Kept to be shown.
    pub(super) oci: OciMetadata,
}

impl Artifact {
    /// What a template is.
    #[must_use]
    pub(super) fn of(layer: &Layer) -> Self {
        Self {
            base: layer.digest.clone(),
            lower: layer.lower.clone(),
            binds: (layer.binds.iter())
                .map(|bind| (bind.source.clone(), bind.target.clone(), bind.read_only))
                .collect(),
            env: layer.env.clone(),
            cwd: layer.default_cwd.clone(),
            user: layer.runtime.user.clone(),
            isolation: layer.runtime.isolation,
            ..Self::default()
        }
    }

    /// The same as machines are made from, under a name.
    #[must_use]
    pub(super) fn layer(&self, data_dir: &Path, name: &str) -> Layer {
        let own = self.layers.iter().map(|id| layer::path(data_dir, id));
        Layer {
            name: name.to_owned(),
            digest: self.digest(),
            lower: own.chain(self.lower.iter().cloned()).collect(),
            default_cwd: self.cwd.clone(),
            env: self.env.clone(),
            binds: (self.binds.iter())
                .map(|(source, target, read_only)| Bind {
                    source: source.clone(),
                    target: target.clone(),
                    read_only: *read_only,
                })
                .collect(),
            runtime: Runtime {
                user: self.user.clone(),
                start_cmd: self.start_cmd.clone(),
                readiness: self.readiness.clone(),
                isolation: self.isolation,
            },
        }
    }

    /// Over its files and everything else.
    #[must_use]
    pub(super) fn digest(&self) -> String {
        // Where trees are does not count, which they are does.
        let counted = (
            &self.base,
            &self.layers,
            &self.env,
            &self.cwd,
            &self.user,
            &self.start_cmd,
            &self.readiness,
        );
        let mut text = serde_json::to_vec(&counted).unwrap_or_default();
        // One without a word about it is what it was before there was one.
        if let Some(isolation) = self.isolation {
            text.extend(isolation.as_str().bytes());
        }
        hex::encode(Sha256::digest(text))
    }

    /// The digest of the files alone: what the key of the next layer begins with.
    #[must_use]
    pub(super) fn files(&self) -> String {
        match self.layers.first() {
            // An id of a step's is never used twice, so the topmost stands for all below.
            Some(id) if !layer::is_of_image(id) => id.clone(),
            _ => self.base.clone(),
        }
    }

    /// How many trees a machine has of it.
    #[must_use]
    pub(super) fn depth(&self) -> usize {
        self.layers.len() + self.lower.len()
    }

    /// What machines have unless they ask for something else.
    #[must_use]
    pub(super) fn defaults(&self) -> RuntimeDefaults {
        RuntimeDefaults {
            default_env_keys: self.env.iter().map(|(name, _)| name.clone()).collect(),
            start_cmd: self.start_cmd.clone(),
            default_user: self.user.clone(),
            default_workdir: Some(self.cwd.clone()),
            readiness: self.readiness.clone(),
        }
    }

    /// Sets a variable; one that is there keeps its place.
    pub(super) fn set_env(&mut self, name: &str, value: String) {
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.env.push((name.to_owned(), value)),
        }
    }
}

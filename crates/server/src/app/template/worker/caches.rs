//! Directories that a step has for itself: bound into its machine, in no layer, gone with the step.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use nullspace_engine::Bind;

use crate::{
    app::{
        agent, agent_artifact, bundle,
        template::{layer, program::CacheUse},
    },
    error::{Error, Result},
};

/// Removed when dropped; the machine has to be gone by then, or what it writes goes nowhere.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// Nothing where a step has none.
    root: Option<PathBuf>,
    targets: Vec<PathBuf>,
}

impl Caches {
    /// Makes them.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn make(data_dir: &Path, wanted: &[CacheUse]) -> Result<Self> {
        let mut caches = Self::default();
        if wanted.is_empty() {
            return Ok(caches);
        }
        // Whatever has such a name is removed at the next start.
        let id = uuid::Uuid::new_v4().simple();
        let root = layer::root(data_dir).join(format!(".incoming-{id}.caches"));
        let mut work = || {
            fs::create_dir(&root)?;
            // Who looks from outside of a machine is not to go in.
            fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
            caches.root = Some(root.clone());
            for (number, usage) in wanted.iter().enumerate() {
                let at = root.join(number.to_string());
                fs::create_dir(&at)?;
                chown(&at, Some(usage.uid), Some(usage.gid))?;
                fs::set_permissions(&at, fs::Permissions::from_mode(usage.mode))?;
                caches.targets.push(PathBuf::from(&usage.target));
            }
            Ok::<_, io::Error>(())
        };
        work().map_err(|e| Error::internal(format!("making the caches of a step: {e}")))?;
        Ok(caches)
    }

    /// As a machine has them.
    pub(super) fn binds(&self) -> Vec<Bind> {
        let root = self.root.iter();
        root.flat_map(|root| {
            (self.targets.iter().enumerate()).map(|(number, target)| Bind {
                source: root.join(number.to_string()),
                beneath: None,
                target: target.clone(),
                read_only: false,
            })
        })
        .collect()
    }

    /// Bytes on disk; 0 while that cannot be told.
    pub(super) async fn size(&self) -> u64 {
        let Some(root) = self.root.clone() else {
            return 0;
        };
        let measure = move || Ok(agent_artifact::size(&root).unwrap_or_default());
        agent::blocking(measure).await.unwrap_or_default()
    }
}

impl Drop for Caches {
    fn drop(&mut self) {
        if let Some(root) = &self.root
            && let Err(error) = bundle::remove_tree(root)
        {
            tracing::warn!(path = %root.display(), %error, "the caches of a step could not be removed");
        }
    }
}

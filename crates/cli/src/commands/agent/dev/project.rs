//! The project as it is on disk now: its config, and what would be bundled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nullspace_project::{AgentConfig, BuildError, Bundle, load};

use super::super::deploy::{bundle_error, config_error};
use crate::error::CliError;

/// How often a project is read again that changes while it is read.
const ATTEMPTS: u32 = 10;
/// Pause before that.
const PAUSE: Duration = Duration::from_millis(200);

/// See the module's docs.
pub(super) struct Project {
    pub(super) root: PathBuf,
    pub(super) file: Option<PathBuf>,
    pub(super) config: AgentConfig,
    pub(super) bundle: Arc<Bundle>,
}

impl Project {
    /// Reads all of it.
    pub(super) async fn read(root: PathBuf, file: Option<PathBuf>) -> Result<Self, CliError> {
        let mut attempt = 1;
        loop {
            let (at, config) = (root.clone(), file.clone());
            // Walking and hashing would hold up the output of the program.
            let read = tokio::task::spawn_blocking(move || {
                let (config, _) =
                    load(&at, config.as_deref()).map_err(|error| Err(config_error(&error)))?;
                let bundle = Bundle::build(&at, &config).map_err(Ok)?;
                Ok((config, bundle))
            });
            let read = read
                .await
                .map_err(|error| CliError::new("internal_error", error.to_string()))?;
            match read {
                Ok((config, bundle)) => {
                    return Ok(Self {
                        root,
                        file,
                        config,
                        bundle: Arc::new(bundle),
                    });
                }
                Err(Ok(BuildError::Changed(_))) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Ok(error)) => return Err(bundle_error(&error)),
                Err(Err(error)) => return Err(error),
            }
        }
    }

    /// The same project, read anew.
    pub(super) async fn again(&self) -> Result<Self, CliError> {
        Self::read(self.root.clone(), self.file.clone()).await
    }

    /// Becomes what it is now, in the machine that was made for what it was.
    pub(super) fn take(&mut self, now: Self) {
        let workdir = std::mem::take(&mut self.config.workdir);
        *self = now;
        self.config.workdir = workdir;
    }

    /// Whether the machine would have to be another one.
    pub(super) fn needs_other_machine(&self, now: &Self) -> bool {
        let (old, new) = (&self.config, &now.config);
        old.template != new.template
            || old.mode != new.mode
            || old.workdir != new.workdir
            || old.env != new.env
            || old.resources != new.resources
            || old.permissions != new.permissions
    }
}

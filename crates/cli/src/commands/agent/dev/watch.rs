//! When the project may have changed.
//!
//! Only directories that the bundle's walk looks into are watched, each on its own: a tree of dependencies has more of
//! them than a system lets anyone watch. What changed, and whether it counts, is found by reading the project again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use nullspace_project::{Entry, Kind};
use tokio::sync::mpsc;

use super::project::Project;
use crate::error::CliError;

/// How long nothing may happen before changes are looked at: an editor writes several files, `git` many.
const QUIET: Duration = Duration::from_millis(300);
/// Looked at after this long even if it never gets quiet.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module's docs.
pub(super) struct Watch {
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<()>,
    watched: BTreeSet<PathBuf>,
    /// Something may have changed before it was watched.
    unsure: bool,
}

impl Watch {
    pub(super) fn of(project: &Project) -> Result<Self, CliError> {
        let (sender, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the project is no change. An error may hide one.
            let counts = event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_)));
            if !counts {
                // Nobody listens any more when the program ends.
                let _ = sender.send(());
            }
        })
        .map_err(|error| failed(&error))?;
        let mut watch = Self {
            watcher,
            events,
            watched: BTreeSet::new(),
            unsure: true,
        };
        watch.follow(project)?;
        watch.unsure = true;
        Ok(watch)
    }

    /// Watches what there is now.
    pub(super) fn follow(&mut self, project: &Project) -> Result<(), CliError> {
        let mut wanted = directories(&project.root, &project.bundle.manifest().entries);
        if let Some(parent) = project.file.as_deref().and_then(Path::parent) {
            wanted.insert(if parent.as_os_str().is_empty() {
                PathBuf::from(".")
            } else {
                parent.to_owned()
            });
        }
        for gone in self.watched.difference(&wanted) {
            // Mostly it is gone indeed, and its watch with it.
            let _ = self.watcher.unwatch(gone);
        }
        for dir in &wanted {
            // One that was made again has the old name and no watch, so none is skipped.
            match self.watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => self.unsure |= !self.watched.contains(dir),
                Err(error) if dir.exists() => return Err(failed(&error)),
                // It went meanwhile, which is an event of its parent.
                Err(_) => {}
            }
        }
        self.watched = wanted;
        Ok(())
    }

    /// Waits until something may have changed, and then until it is quiet.
    pub(super) async fn changed(&mut self) {
        if !self.unsure {
            // The sender lives in the watcher, so there is always one.
            self.events.recv().await;
            // Who gives up on this wait asks again, and the event is gone.
            self.unsure = true;
        }
        let quiet = async {
            while let Ok(Some(())) = tokio::time::timeout(QUIET, self.events.recv()).await {}
        };
        let _ = tokio::time::timeout(PATIENCE, quiet).await;
        self.unsure = false;
    }
}

fn failed(error: &notify::Error) -> CliError {
    CliError::new(
        "local_error",
        format!("cannot watch the project for changes: {error}"),
    )
    .hint("Run it without watching: --once.")
}

/// The directories that the walk looks into: those that are bundled, and those that may hold something that is.
fn directories(root: &Path, entries: &[Entry]) -> BTreeSet<PathBuf> {
    let below = entries
        .iter()
        .filter(|entry| entry.kind == Kind::Dir)
        .filter(|entry| entry.included || entry.reason == nullspace_project::bundle::NOT_INCLUDED)
        .map(|entry| root.join(&entry.path));
    std::iter::once(root.to_owned()).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nullspace_project::{AgentConfig, Bundle};

    #[test]
    fn what_is_left_out_is_not_watched() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        for path in ["src/deep", "node_modules/a", ".git", "ignored", "other"] {
            std::fs::create_dir_all(root.join(path)).expect("made");
        }
        std::fs::write(root.join(".gitignore"), "ignored/\n").expect("written");
        let watched = |include: &[&str]| {
            let mut config = AgentConfig::default();
            config.bundle.include = include.iter().map(|&pattern| pattern.to_owned()).collect();
            let bundle = Bundle::build(root, &config).expect("a bundle");
            let dirs = directories(root, &bundle.manifest().entries);
            dirs.iter()
                .map(|dir| dir.strip_prefix(root).expect("below").display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(watched(&["."]), ["", "other", "src", "src/deep"]);
        // A pattern may name something in a directory that it does not name itself.
        assert!(watched(&["*.py"]).contains(&"src/deep".to_owned()));
    }
}

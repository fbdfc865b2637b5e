//! The install cache: what install commands wrote, kept as layers of machines.
//!
//! ```text
//!  run ──key──▶ place ──▶ Ready: its layer goes under the machine
//!                    ├──▶ Build: install in a machine of its own ──keep──▶ artifacts/<id> ──▶ record ──▶ Ready
//!                    └──▶ Wait: somebody else builds it
//! ```
//! An artifact is found by everything that it depends on. A failed install leaves nothing. Called by the tasks of runs
//! and by garbage collection.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nullspace_api::{id, time};
use nullspace_store::{
    StoreError,
    agent_artifact::{self as rows, ArtifactRow},
};
use nullspace_templates::Layer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{App, AppState, agent, agent_config, agent_version::Prepared, bundle, machine, tenant};
use crate::error::{Error, Result};

/// What an install leaves that no run needs.
const LEFT_OUT: [&str; 5] = ["tmp", "var/tmp", "run", "root/.cache", "root/.npm/_cacache"];
/// Changes when the same key must mean another layer.
const FORMAT: &str = "1";

/// The artifacts that are being made, by key.
#[derive(Debug, Default)]
pub(super) struct Building(Mutex<HashMap<String, watch::Receiver<()>>>);

impl Building {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody makes the artifact of that key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.lock().contains_key(key)
    }
}

/// What is to be done for a run that needs an artifact.
#[derive(Debug)]
pub(super) enum Place {
    /// It is there, and stays there for the run.
    Ready(ArtifactRow),
    /// The run makes it.
    Build(Keeper),
    /// Another run makes it: look again when this changes.
    Wait(watch::Receiver<()>),
}

/// The right to make an artifact, given back when dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    app: AppState,
    key: String,
    _waited_for: watch::Sender<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.app.agents.building.lock().remove(&self.key);
    }
}

fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("artifacts")
}

/// Where the layer of an artifact is.
pub(super) fn path(data_dir: &Path, id: &str) -> PathBuf {
    root(data_dir).join(id)
}

/// The digest of everything that the result of an install depends on, in hex.
pub(super) fn key(template: &Layer, version: &Prepared, install: &str) -> String {
    let mut digest = Sha256::new();
    // What an install leaves is nobody else's: it ran with what its tenant may reach.
    let owner = Some(&*version.tenant_id).filter(|id| *id != tenant::DEFAULT);
    for part in owner.into_iter().chain([
        FORMAT,
        &template.digest,
        &version.bundle,
        install,
        agent_config::trimmed(&version.config.workdir),
        std::env::consts::ARCH,
    ]) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

/// Makes the directory of artifacts, and removes what is not, or not surely, whole. Called once, before any run.
pub(super) async fn clean(app: &App) -> Result<()> {
    agent::kept(app.store.write(rows::forget_unsynced).await)?;
    let known = all(app).await?;
    let root = root(&app.data_dir);
    agent::blocking(move || {
        let clean = || {
            fs::create_dir_all(&root)?;
            for entry in fs::read_dir(&root)? {
                let entry = entry?;
                let name = entry.file_name();
                if !known.iter().any(|(row, _)| *row.id == *name) {
                    bundle::remove_tree(&entry.path())?;
                }
            }
            Ok::<_, io::Error>(())
        };
        clean().map_err(|e| Error::internal(format!("preparing {}: {e}", root.display())))
    })
    .await
}

/// Finds an artifact for a run, or the right to make it. With `fresh` one that is there already does not count.
pub(super) async fn place(app: &AppState, key: &str, run_seq: i64, fresh: bool) -> Result<Place> {
    let keeper = {
        let mut building = app.agents.building.lock();
        if let Some(wait) = building.get(key) {
            return Ok(Place::Wait(wait.clone()));
        }
        let (waited_for, wait) = watch::channel(());
        building.insert(key.to_owned(), wait);
        Keeper {
            app: app.clone(),
            key: key.to_owned(),
            _waited_for: waited_for,
        }
    };
    if fresh {
        return Ok(Place::Build(keeper));
    }
    let wanted = key.to_owned();
    let found = agent::kept(
        app.store
            .write(move |tx| rows::take(tx, &wanted, run_seq, time::now()))
            .await,
    )?;
    Ok(match found {
        Some(row) => Place::Ready(row),
        None => Place::Build(keeper),
    })
}

impl Keeper {
    /// Ends the machine in which the install was done and makes what it wrote an artifact.
    ///
    /// # Errors
    /// When that fails; the machine is gone all the same.
    pub(super) async fn keep(self, machine_id: &str) -> Result<ArtifactRow> {
        let app = self.app.clone();
        let id = id::new(id::ARTIFACT);
        let target = path(&app.data_dir, &id);
        let incoming = root(&app.data_dir).join(format!(".incoming-{id}"));
        machine::keep(&app, machine_id, incoming.clone()).await?;
        let size_bytes = agent::blocking({
            let target = target.clone();
            move || {
                let settle = || {
                    for path in LEFT_OUT {
                        remove_beneath(&incoming, path)?;
                    }
                    let size = size(&incoming)?;
                    fs::rename(&incoming, &target)?;
                    Ok::<_, io::Error>(size)
                };
                settle().map_err(|e| {
                    let _ = bundle::remove_tree(&incoming);
                    Error::internal(format!("keeping an artifact: {e}"))
                })
            }
        })
        .await?;
        let now = time::now();
        let row = ArtifactRow {
            id,
            key: self.key.clone(),
            size_bytes,
            created_at: now,
            used_at: now,
        };
        let recording = row.clone();
        agent::kept(
            app.store
                .write(move |tx| rows::insert(tx, &recording))
                .await,
        )?;
        // Nobody waits for the disk: an artifact that did not reach it is forgotten at the next start.
        let id = row.id.clone();
        app.tasks.clone().spawn(async move {
            if let Err(error) = settle(&app, id, target).await {
                tracing::warn!(context = ?error.context, "an artifact is not on the disk for sure");
            }
        });
        Ok(row)
    }
}

/// Sees an artifact to the disk, and makes room.
async fn settle(app: &App, id: String, target: PathBuf) -> Result<()> {
    agent::blocking(move || {
        let sync = || rustix::fs::syncfs(fs::File::open(&target)?).map_err(io::Error::from);
        sync().map_err(|e| Error::internal(format!("syncing an artifact: {e}")))
    })
    .await?;
    agent::kept(app.store.write(move |tx| rows::synced(tx, &id)).await)?;
    make_room(app).await
}

/// Removes artifacts that were not used for longest until the rest is within its limit; never one that is needed.
async fn make_room(app: &App) -> Result<()> {
    let limit = app.config.agent_cache_mb << 20;
    let all = all(app).await?;
    let mut total: u64 = all.iter().map(|(row, _)| row.size_bytes).sum();
    for (row, is_needed) in all {
        if total <= limit {
            break;
        }
        if !is_needed && remove(app, &row.id).await? {
            tracing::info!(
                artifact = row.id,
                size = row.size_bytes,
                "removed an artifact to make room"
            );
            total = total.saturating_sub(row.size_bytes);
        }
    }
    Ok(())
}

/// Removes an artifact, unless something needs it. Answers whether it did.
pub(super) async fn remove(app: &App, id: &str) -> Result<bool> {
    let wanted = id.to_owned();
    let removed = agent::kept(app.store.write(move |tx| rows::remove(tx, &wanted)).await)?;
    if removed {
        let path = path(&app.data_dir, id);
        agent::blocking(move || {
            bundle::remove_tree(&path)
                .map_err(|e| Error::internal(format!("removing {}: {e}", path.display())))
        })
        .await?;
    }
    Ok(removed)
}

/// Removes a path of a layer; what a machine wrote may have put a link anywhere, so none is followed.
fn remove_beneath(layer: &Path, path: &str) -> io::Result<()> {
    let mut at = layer.to_owned();
    for part in path.split('/') {
        at.push(part);
        match fs::symlink_metadata(&at) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    bundle::remove_tree(&at)
}

/// Bytes on disk of a tree.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut total = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            total += size(&entry?.path())?;
        }
    }
    Ok(total)
}

/// Every artifact, and whether something needs it.
pub(super) async fn all(app: &App) -> Result<Vec<(ArtifactRow, bool)>> {
    agent::kept(app.store.read(rows::all).await)
}

/// The newest artifacts of these keys, where there are any.
pub(super) async fn newest(
    app: &App,
    keys: Vec<Option<String>>,
) -> Result<Vec<Option<ArtifactRow>>> {
    let find = move |db: &nullspace_store::rusqlite::Connection| {
        keys.iter()
            .map(|key| match key {
                Some(key) => rows::newest(db, key),
                None => Ok(None),
            })
            .collect::<Result<Vec<_>, StoreError>>()
    };
    agent::kept(app.store.read(find).await)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_removed_and_no_link_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (layer, outside) = (directory.path().join("l"), directory.path().join("o"));
        fs::create_dir_all(layer.join("root/.cache/pip")).unwrap();
        fs::create_dir_all(layer.join("var")).unwrap();
        fs::create_dir_all(outside.join("tmp")).unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("tmp")).unwrap();
        fs::remove_dir(layer.join("var")).unwrap();
        std::os::unix::fs::symlink(&outside, layer.join("var")).unwrap();
        for path in LEFT_OUT {
            remove_beneath(&layer, path).unwrap();
        }
        assert!(layer.join("root").exists() && !layer.join("root/.cache").exists());
        assert!(outside.join("tmp").exists());
    }

    #[test]
    fn sizes_are_those_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), vec![1; 100_000]).unwrap();
        let size = size(directory.path()).unwrap();
        assert!((100_000..200_000).contains(&size), "{size}");
    }
}

//! Layers that steps of builds wrote: found by everything they depend on, kept for as long as something needs them. Those
//! of images (see [`image`]) are kept beside them, by the same rules.
//!
//! ```text
//!  key ──take──▶ there it is
//!           └──▶ a machine runs the step ──keep──▶ template-layers/.incoming-<id> ──rename──▶ <id> ──▶ record
//! ```
//! A layer that is recorded but may not have reached the disk when the host lost power is forgotten at the next start;
//! a build is ready only after its layers did.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nullspace_api::{id, time};
use nullspace_store::{
    StoreError, template_build as builds,
    template_layer::{self as rows, LayerRow},
};
use sha2::{Digest, Sha256};

use super::image;
use crate::{
    app::{App, agent, agent_artifact, bundle, machine, tenant},
    error::{Error, Result},
};

/// Layers that builds at work have, by build: nobody removes them. Looked at and changed in the writer's turn alone, so
/// that none is found by one while another removes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<HashSet<(String, String)>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hold(&self, build: &str, layer: &str) {
        self.lock().insert((build.to_owned(), layer.to_owned()));
    }

    pub(super) fn has(&self, layer: &str) -> bool {
        self.lock().iter().any(|(_, held)| held == layer)
    }

    /// The build is over, and on record.
    pub(super) fn release(&self, build: &str) {
        self.lock().retain(|(holder, _)| holder != build);
    }
}

/// Changes when the same key must mean another layer.
const FORMAT: &str = "1";

pub(super) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("template-layers")
}

/// Where the layers of images are.
pub(super) fn image_root(data_dir: &Path) -> PathBuf {
    data_dir.join("image-layers")
}

/// Whether it is a layer of an image, whose id is the digest of its content, and not one that a step wrote.
#[must_use]
pub(super) fn is_of_image(id: &str) -> bool {
    !id.starts_with(id::TEMPLATE_LAYER)
}

/// Where the tree of a layer is.
#[must_use]
pub(super) fn path(data_dir: &Path, id: &str) -> PathBuf {
    match is_of_image(id) {
        true => image_root(data_dir).join(id),
        false => root(data_dir).join(id),
    }
}

/// The digest of what a layer depends on, in hex.
#[must_use]
pub(super) fn key(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in [FORMAT, std::env::consts::ARCH].iter().chain(parts) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

/// The key of what a step of a tenant's build leaves: it may have reached what others would not have, and so is nobody else's. Layers
/// of images are what their digests say, whoever fetched them.
#[must_use]
pub(super) fn key_of_step(tenant_id: &str, key: &str) -> String {
    match tenant_id {
        tenant::DEFAULT => key.to_owned(),
        _ => format!("{tenant_id}/{key}"),
    }
}

/// The newest layer of a key for a build, if its tree is there.
pub(super) async fn take(app: &App, build: &str, key: String) -> Result<Option<LayerRow>> {
    let (held, build) = (app.templates.held.clone(), build.to_owned());
    let found = app
        .store
        .write(move |tx| {
            let found = rows::take(tx, &key, time::now())?;
            if let Some(row) = &found {
                held.hold(&build, &row.id);
            }
            Ok::<_, StoreError>(found)
        })
        .await?;
    Ok(found.filter(|row| path(&app.data_dir, &row.id).is_dir()))
}

/// Ends a machine and makes what was written in it a layer.
pub(super) async fn keep(
    app: &App,
    build: &str,
    machine_id: &str,
    key: String,
) -> Result<LayerRow> {
    let id = id::new(id::TEMPLATE_LAYER);
    let incoming = root(&app.data_dir).join(format!(".incoming-{id}"));
    machine::keep(app, machine_id, incoming.clone()).await?;
    adopt(app, build, id, key, incoming).await
}

/// Makes a finished tree a layer.
async fn adopt(
    app: &App,
    build: &str,
    id: String,
    key: String,
    incoming: PathBuf,
) -> Result<LayerRow> {
    let target = path(&app.data_dir, &id);
    let size_bytes = agent::blocking(move || {
        let settle = || {
            let size = agent_artifact::size(&incoming)?;
            fs::rename(&incoming, &target)?;
            Ok::<_, io::Error>(size)
        };
        settle().map_err(|e| {
            let _ = bundle::remove_tree(&incoming);
            Error::internal(format!("keeping a layer: {e}"))
        })
    })
    .await?;
    let now = time::now();
    let row = LayerRow {
        id,
        key,
        size_bytes,
        created_at: now,
        used_at: now,
        is_synced: false,
    };
    let recording = row.clone();
    let (held, build) = (app.templates.held.clone(), build.to_owned());
    app.store
        .write(move |tx| {
            rows::insert(tx, &recording)?;
            held.hold(&build, &recording.id);
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(row)
}

/// Sees layers to the disk.
pub(super) async fn settle(app: &App, ids: Vec<String>) -> Result<()> {
    let root = root(&app.data_dir);
    agent::blocking(move || {
        let sync = || rustix::fs::syncfs(fs::File::open(&root)?).map_err(io::Error::from);
        sync().map_err(|e| Error::internal(format!("syncing layers: {e}")))
    })
    .await?;
    app.store.write(move |tx| rows::synced(tx, &ids)).await?;
    Ok(())
}

/// One layer with everything that `lower` (topmost first) shows together: machines have room for a limited number.
pub(super) async fn flatten(
    app: &App,
    build: &str,
    key: String,
    lower: Vec<PathBuf>,
) -> Result<LayerRow> {
    let id = id::new(id::TEMPLATE_LAYER);
    let incoming = root(&app.data_dir).join(format!(".incoming-{id}"));
    let scratch = root(&app.data_dir).join(format!(".incoming-{id}.view"));
    let link = || {
        fs::create_dir(&incoming)?;
        fs::create_dir_all(scratch.join("view"))?;
        for (n, layer) in lower.iter().enumerate() {
            // The kernel takes a limited number of characters, so the layers have short names.
            std::os::unix::fs::symlink(layer, scratch.join(n.to_string()))?;
        }
        Ok::<_, io::Error>(())
    };
    link().map_err(|e| Error::internal(format!("preparing layers: {e}")))?;
    let names: Vec<String> = (0..lower.len()).map(|n| n.to_string()).collect();
    // In a mount namespace of its own, so that nothing is left of it whatever happens.
    let script = "cd \"$1\" && mount -t overlay overlay -o \"ro,redirect_dir=follow,lowerdir=$3\" view && \
                  cp -a --reflink=auto view/. \"$2\"";
    let copied = tokio::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&scratch)
        .arg(&incoming)
        .arg(names.join(":"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let failed = match copied {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Some(error.to_string()),
    };
    let _ = bundle::remove_tree(&scratch);
    if let Some(reason) = failed {
        let _ = bundle::remove_tree(&incoming);
        return Err(Error::internal(format!(
            "making one layer of many: {reason}"
        )));
    }
    adopt(app, build, id, key, incoming).await
}

/// Makes the directory, and removes what is not, or not surely, whole. Called once, before any build.
pub(super) async fn clean(app: &App) -> Result<()> {
    app.store.write(rows::forget_unsynced).await?;
    let known: HashSet<String> = all(app).await?.into_iter().map(|row| row.id).collect();
    let root = root(&app.data_dir);
    agent::blocking(move || {
        let clean = || {
            fs::create_dir_all(&root)?;
            for entry in fs::read_dir(&root)? {
                let entry = entry?;
                if !known.contains(&*entry.file_name().to_string_lossy()) {
                    bundle::remove_tree(&entry.path())?;
                }
            }
            Ok::<_, io::Error>(())
        };
        clean().map_err(|e| Error::internal(format!("preparing {}: {e}", root.display())))
    })
    .await
}

/// Every layer, the one that was not used for longest first.
pub(super) async fn all(app: &App) -> Result<Vec<LayerRow>> {
    Ok(app.store.read(rows::all).await?)
}

/// The layers that something needs: a template that is there, a build at work, or a machine.
pub(super) fn needed(
    db: &nullspace_store::rusqlite::Connection,
) -> Result<HashSet<String>, StoreError> {
    let mut needed = HashSet::new();
    for build in builds::needed(db)? {
        let layers: Vec<String> =
            serde_json::from_str(&build.layers).map_err(|_| StoreError::Corrupt {
                what: "layers of a build",
                value: build.id,
            })?;
        needed.extend(layers);
    }
    Ok(needed)
}

/// Removes a layer, unless something needs it. Answers whether it did.
pub(super) async fn remove(app: &App, id: &str) -> Result<bool> {
    if is_of_image(id) {
        return image::remove(app, id, forget(app, id)).await;
    }
    if !forget(app, id).await? {
        return Ok(false);
    }
    let path = path(&app.data_dir, id);
    agent::blocking(move || {
        bundle::remove_tree(&path)
            .map_err(|e| Error::internal(format!("removing {}: {e}", path.display())))
    })
    .await?;
    Ok(true)
}

/// Takes a layer off the record, unless something needs it. Answers whether it did.
async fn forget(app: &App, id: &str) -> Result<bool> {
    let (wanted, held) = (id.to_owned(), app.templates.held.clone());
    let is_forgotten = app
        .store
        .write(move |tx| {
            let is_needed = held.has(&wanted) || needed(tx)?.contains(&wanted);
            // Who comes second finds none, and has nothing to remove.
            Ok::<_, StoreError>(!is_needed && rows::remove(tx, &wanted)?)
        })
        .await?;
    Ok(is_forgotten)
}

/// Removes layers that were not used for longest and that nothing needs, until the rest is within its limit.
pub(super) async fn make_room(app: &App) -> Result<()> {
    let limit = app.config.template_cache_mb << 20;
    image::note(app).await?;
    let needed = app.store.read(needed).await?;
    let unneeded: Vec<LayerRow> = (all(app).await?.into_iter())
        .filter(|row| !needed.contains(&row.id))
        .collect();
    let mut total: u64 = unneeded.iter().map(|row| row.size_bytes).sum();
    for row in unneeded {
        if total <= limit {
            break;
        }
        if remove(app, &row.id).await? {
            tracing::info!(
                layer = row.id,
                size = row.size_bytes,
                "removed a layer to make room"
            );
            total = total.saturating_sub(row.size_bytes);
        }
    }
    Ok(())
}

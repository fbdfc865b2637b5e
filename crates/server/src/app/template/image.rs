//! Images that templates are built over: fetched from registries or read from files, their layers kept like those of
//! steps.
//!
//! ```text
//!  pull ──▶ image-layers/<digest> (whole, or not there) ──note──▶ record ──hold──▶ the build's
//! ```
//! A layer is on the disk before it is on record. What a server left that was killed between the two is noted by the
//! next; so every layer counts for the cache's limit, and none is kept for good without anybody needing it.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use nullspace_api::time;
use nullspace_image::{
    Credentials, Image, ImageError, Images, Limits, Listener, Progress, Registries,
};
use nullspace_store::{
    StoreError,
    template_layer::{self as rows, LayerRow},
};
use tokio::sync::RwLock;

use super::{archive::Archive, layer};
use crate::{
    app::{App, AppState, agent},
    error::{Error, Result},
};

/// What the key of an image's layer begins with. It is never looked for: images find their layers by name.
const KEY: &str = "image";

/// What fetches images.
#[derive(Debug)]
pub(super) struct Fetcher {
    images: Images,
    /// Shared by those who fetch, so that nobody removes a layer that an image was just found to have.
    using: Arc<RwLock<()>>,
}

/// Where the layers are.
fn root(app: &App) -> PathBuf {
    layer::image_root(&app.data_dir)
}

/// Makes the directory, and removes what is half made. Called once, before any build.
pub(super) async fn open(app: &AppState) -> Result<()> {
    let registries = Registries {
        insecure: app.config.insecure_registries.clone(),
        mirrors: app.config.registry_mirrors.clone(),
        authorities: app.config.registry_authorities.clone(),
    };
    let directory = root(app);
    let images = agent::blocking(move || {
        Images::open(&directory, registries, Limits::default())
            .map_err(|error| Error::internal(crate::error::chain(&error)))
    })
    .await?;
    let fetcher = Fetcher {
        images,
        using: Arc::default(),
    };
    let _ = app.templates.fetcher.set(fetcher);
    note(app).await
}

fn fetcher(app: &App) -> Result<&Fetcher> {
    (app.templates.fetcher.get())
        .ok_or_else(|| Error::internal("images were asked for before the server started"))
}

/// An image for a build, which holds its layers from then on.
pub(super) async fn pull(
    app: &App,
    build: &str,
    reference: &str,
    credentials: &Credentials,
    listener: Listener<'_>,
) -> Result<Result<Image, ImageError>> {
    let fetcher = fetcher(app)?;
    let _using = fetcher.using.read().await;
    let pulled = fetcher.images.pull(reference, credentials, listener).await;
    // Also those of an image that could not be fetched whole.
    note(app).await?;
    if let Ok(image) = &pulled {
        hold(app, build, image).await?;
    }
    Ok(pulled)
}

/// The same from a file of the build context. What was begun goes on when nobody waits for it any more, to the end of the
/// image at the longest.
pub(super) async fn read(
    app: &App,
    build: &str,
    archive: Archive,
    listener: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<Result<Image, ImageError>> {
    let fetcher = fetcher(app)?;
    let using = fetcher.using.clone().read_owned().await;
    let images = fetcher.images.clone();
    let (read, _using) = agent::blocking(move || {
        let read = archive.read(&images, &listener);
        Ok((read, using))
    })
    .await?;
    note(app).await?;
    if let Ok(image) = &read {
        hold(app, build, image).await?;
    }
    Ok(read)
}

/// The layers are the build's.
async fn hold(app: &App, build: &str, image: &Image) -> Result<()> {
    let ids: Vec<String> = (image.layers.iter())
        .map(|tree| tree.digest.clone())
        .collect();
    let (held, build) = (app.templates.held.clone(), build.to_owned());
    app.store
        .write(move |tx| {
            rows::used(tx, &ids, time::now())?;
            for id in &ids {
                held.hold(&build, id);
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}

/// Puts layers on record that are there, and takes those off that are not.
pub(super) async fn note(app: &App) -> Result<()> {
    let known: HashSet<String> = (layer::all(app).await?.into_iter())
        .map(|row| row.id)
        .filter(|id| layer::is_of_image(id))
        .collect();
    let images = fetcher(app)?.images.clone();
    let now = time::now();
    let (new, gone) = agent::blocking(move || {
        let failed = |error: ImageError| Error::internal(crate::error::chain(&error));
        let there = images.layers().all().map_err(failed)?;
        let mut gone = known.clone();
        let mut new = Vec::new();
        for tree in there {
            gone.remove(&tree.digest);
            if known.contains(&tree.digest) {
                continue;
            }
            new.push(LayerRow {
                key: layer::key(&[KEY, &tree.digest]),
                size_bytes: crate::app::agent_artifact::size(&tree.path).unwrap_or_default(),
                id: tree.digest,
                created_at: now,
                used_at: now,
                is_synced: true,
            });
        }
        // One that another fetched since is not gone, whatever was listed.
        gone.retain(|digest| images.layers().get(digest).is_none());
        Ok((new, gone))
    })
    .await?;
    if new.is_empty() && gone.is_empty() {
        return Ok(());
    }
    app.store
        .write(move |tx| {
            for row in &new {
                rows::note(tx, row)?;
            }
            for id in &gone {
                rows::remove(tx, id)?;
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}

/// Removes a layer's tree after `forget` took it off the record, which answers whether it did. Nothing is removed while
/// somebody fetches an image.
pub(super) async fn remove(
    app: &App,
    digest: &str,
    forget: impl Future<Output = Result<bool>>,
) -> Result<bool> {
    let fetcher = fetcher(app)?;
    let Ok(_alone) = fetcher.using.try_write() else {
        return Ok(false);
    };
    if !forget.await? {
        return Ok(false);
    }
    let (images, digest) = (fetcher.images.clone(), digest.to_owned());
    agent::blocking(move || {
        (images.layers().remove(&digest))
            .map_err(|error| Error::internal(crate::error::chain(&error)))
    })
    .await?;
    Ok(true)
}

/// What stands for the files of an image: which layers it has, in their order.
pub(super) fn files(layers: &[String]) -> String {
    let parts: Vec<&str> = std::iter::once(KEY)
        .chain(layers.iter().map(String::as_str))
        .collect();
    layer::key(&parts)
}

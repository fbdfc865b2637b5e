//! How much volumes have, and whether there is room for more.
//!
//! A volume that has a file system of its own is asked; any other one is walked (`nullspace_sys::tree`, which follows no link).
//! That is done behind everybody's back for those that were written to, and before each write through the API to one with limits.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_api::{error::code, time};
use nullspace_store::volume::{self as rows, VolumeRow};
use nullspace_sys::{
    image,
    tree::{Usage, usage},
};

use super::{Open, backend, blocking, directory};
use crate::{
    app::{App, AppState},
    error::{Error, Kind, Result},
};

/// How old a number may be that somebody asks for, in microseconds.
const FRESH: i64 = 1_000_000;
/// How long they wait for a newer one.
const PATIENCE: Duration = Duration::from_secs(2);
/// How old a number of a volume is, at least, that is counted again behind everybody's back, in microseconds.
const OLD: i64 = 30 * 1_000_000;

/// Counts a volume again if what is known may be old.
pub(super) async fn refresh(app: &AppState, row: &VolumeRow) {
    // Machines do not say that they write; requests do.
    let may_be_old = row.counted_at.is_none_or(|at| time::now() - at > FRESH);
    let may_be_written = row.attachments > 0 || row.counted_at.is_none();
    if !(app.volumes.is_written(&row.id) || (may_be_old && may_be_written)) {
        return;
    }
    let (app, id) = (app.clone(), row.id.clone());
    // It goes on when nobody waits any more.
    let counting = tokio::spawn(async move { count(&app, &id).await });
    let _ = tokio::time::timeout(PATIENCE, counting).await;
}

/// Counts those that were written to.
pub(super) async fn reconcile(app: &AppState) -> Result<()> {
    let mut ids: HashSet<String> = app.volumes.written().into_iter().collect();
    ids.extend(app.store.read(rows::written).await?);
    for id in ids {
        let wanted = id.clone();
        let row = app.store.read(move |db| rows::get(db, &wanted)).await?;
        let is_old = |at: i64| time::now() - at > OLD;
        match row {
            None => app.volumes.forget(&id),
            Some(row) if row.counted_at.is_none_or(is_old) => {
                // One whose file system is damaged keeps no other from being counted.
                if let Err(error) = count(app, &id).await {
                    tracing::warn!(volume = id, context = ?error.context, "a volume could not be counted");
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}

async fn count(app: &App, id: &str) -> Result<()> {
    // Whatever is written from here on is counted another time.
    app.volumes.counted(id);
    let Usage { bytes, names } = measure(directory(app).join(id)).await?;
    let id = id.to_owned();
    app.store
        .write(move |tx| rows::counted(tx, &id, bytes, names, time::now()))
        .await?;
    Ok(())
}

async fn measure(directory: PathBuf) -> Result<Usage> {
    blocking(move || match image::mount(&directory)? {
        Some(mounted) => image::usage(&mounted),
        None => Ok(usage(&directory, &AtomicU64::new(0))),
    })
    .await
    .map_err(|error| backend("counting", error))
}

/// What a volume may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    bytes: Option<u64>,
    files: Option<u64>,
}

impl Limits {
    /// Those of a volume, if it has any.
    pub(crate) fn of(row: &VolumeRow) -> Option<Self> {
        let limits = Self {
            bytes: row.max_size_bytes,
            files: row.max_file_count,
        };
        (limits.bytes.is_some() || limits.files.is_some()).then_some(limits)
    }

    /// Makes a file system of that size for a volume. Blocks.
    pub(super) fn make_image(self, directory: &Path) -> io::Result<()> {
        let all = || {
            let disk = rustix::fs::statvfs(directory)?;
            Ok::<_, io::Error>(disk.f_blocks.saturating_mul(disk.f_frsize))
        };
        let bytes = self.bytes.map_or_else(all, Ok)?;
        image::make(directory, bytes, self.files)
    }
}

/// Bytes that may still come.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    left: u64,
    is_over: Arc<AtomicBool>,
}

impl Room {
    /// Breaks a stream off that has more.
    pub(crate) fn bound<S>(
        &self,
        data: S,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static + use<S>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let (mut left, is_over) = (self.left, self.is_over.clone());
        data.map(move |piece| {
            let piece = piece?;
            match left.checked_sub(piece.len() as u64) {
                Some(rest) => {
                    left = rest;
                    Ok(piece)
                }
                None => {
                    is_over.store(true, Ordering::Relaxed);
                    Err(std::io::Error::other("over the volume's limit"))
                }
            }
        })
    }

    /// What the failure of such a stream was.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match self.is_over.load(Ordering::Relaxed) {
            true => full("the file has more bytes than the volume has room for"),
            false => error,
        }
    }
}

/// Whether there is room for so many bytes (one more file, in any case) in a volume now.
///
/// # Errors
/// `volume_quota_exceeded`.
pub(crate) async fn room(open: &Open, limits: Limits, bytes: u64) -> Result<Room> {
    let has = measure(open.directory.clone()).await?;
    if let Some(most) = limits.files
        && has.names >= most
    {
        return Err(full(format!(
            "the volume has {} files, directories and links, of at most {most}",
            has.names
        )));
    }
    let left = limits.bytes.unwrap_or(u64::MAX).saturating_sub(has.bytes);
    if left == 0 || bytes > left {
        return Err(full(format!(
            "the volume has {} bytes, of at most {}",
            has.bytes,
            limits.bytes.unwrap_or(u64::MAX)
        )));
    }
    Ok(Room {
        left,
        is_over: Arc::default(),
    })
}

fn full(message: impl Into<String>) -> Error {
    Error::new(Kind::Storage, code::VOLUME_QUOTA_EXCEEDED, message)
        .with_action("remove files from the volume")
}

//! Volumes: directories that outlive machines.
//!
//! ```text
//!  create ──▶ directory ──▶ record                 delete ──▶ record `deleting` ──▶ rmdir ──▶ forget
//!  files, uploads, watches ──▶ keeper (keeper.rs)  mounts ──▶ the machine's owner (mount.rs)
//!  counting, limits (count.rs)
//! ```
//! `volumes/<id>` is the volume itself; one with limits has an image beside it (`nullspace_sys::image`) where that can be had. What
//! is in it is hostile, and nothing here opens a path in it: that is the keeper's (`nullspace-keeper`) and, for mounts, the engine's.

mod count;
mod keeper;
pub mod mount;

use std::{
    collections::HashSet,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nullspace_api::{
    error::code,
    id, time,
    volume::{
        AttachmentState, CreateVolumeRequest, QuotaEnforcement, VolumeAttachment, VolumeInfo,
        VolumeStatus,
    },
};
use nullspace_store::volume::{self as rows, AttachmentRow, VolumeRow};
use nullspace_sys::image;

use super::{
    App, AppState, Caller,
    tenant::{self, Adding},
};
use crate::error::{Error, Kind, Result};

pub(crate) use self::{
    count::{Limits, Room, room},
    keeper::{Open, State},
};

/// How the record calls one that can be used.
const AVAILABLE: &str = "available";
/// One whose directory is being removed.
const DELETING: &str = "deleting";
/// The longest name.
const MAX_NAME: usize = 128;
/// How often idle keepers are let go of and volumes are counted.
const TICK: Duration = Duration::from_secs(15);

/// Where volumes are.
fn directory(app: &App) -> PathBuf {
    app.data_dir.join("volumes")
}

fn of(app: &App, id: &str) -> PathBuf {
    directory(app).join(id)
}

pub(crate) fn no_volume(reference: &str) -> Error {
    Error::not_found(code::NOT_FOUND, format!("no volume {reference}"))
}

fn backend(step: &str, error: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Unavailable,
        code::VOLUME_BACKEND_UNAVAILABLE,
        "the volume's files cannot be reached",
    )
    .with_context(format!("{step}: {error}"))
    .with_retry_after(1)
}

/// Makes a volume.
///
/// # Errors
/// `invalid_request`, `conflict` (the name is taken), `volume_limit_exceeded`, `volume_backend_unavailable`.
pub async fn create(
    app: &AppState,
    request: CreateVolumeRequest,
    caller: &Caller,
) -> Result<VolumeInfo> {
    check_name(&request.name)?;
    for (field, limit) in [
        ("max_size_bytes", request.max_size_bytes),
        ("max_file_count", request.max_file_count),
    ] {
        if limit == Some(0) {
            return Err(Error::invalid(format!("{field}: must be at least 1")));
        }
    }
    let set = |limit: u64| (limit > 0).then_some(limit);
    let row = VolumeRow {
        id: id::new(id::VOLUME),
        tenant_id: caller.tenant_id(),
        name: request.name,
        state: AVAILABLE.to_owned(),
        max_size_bytes: request
            .max_size_bytes
            .or(set(app.config.volume_max_mb.saturating_mul(1 << 20))),
        max_file_count: request.max_file_count.or(set(app.config.volume_max_files)),
        key_id: Some(caller.key_id.to_string()),
        created_at: time::now(),
        ..VolumeRow::default()
    };
    let at = of(app, &row.id);
    let limits = Limits::of(&row).filter(|_| app.engine.capabilities().images);
    // First, because a volume on record is there. One that is not on record is removed at the next start.
    blocking({
        let at = at.clone();
        move || make(&at, limits)
    })
    .await
    .map_err(|error| backend("making the directory", error))?;
    let (recording, most) = (row.clone(), app.config.max_volumes);
    let recorded = app
        .store
        .write(move |tx| {
            if rows::count(tx)? >= most {
                return Err(Error::new(
                    Kind::Limit,
                    code::VOLUME_LIMIT_EXCEEDED,
                    format!("there are {most} volumes, the most this server allows"),
                )
                .with_action("delete volumes that are no longer needed, or raise max_volumes"));
            }
            if !rows::insert(tx, &recording)? {
                return Err(Error::conflict(
                    code::CONFLICT,
                    format!("there is a volume {} already", recording.name),
                )
                .with_action(
                    "choose another name, or get that one with GET /v1/volumes/by-name/…",
                ));
            }
            tenant::within(tx, &recording.tenant_id, Adding::Disk)
        })
        .await;
    if let Err(error) = recorded {
        let _ = std::fs::remove_file(image::beside(&at));
        let _ = std::fs::remove_dir(&at);
        return Err(error);
    }
    Ok(info(app, &row))
}

/// A directory of the machines' root, that is there after a power cut; with an image if there are limits and that can be had.
fn make(at: &Path, limits: Option<Limits>) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o755).create(at)?;
    if let Some(limits) = limits
        && let Err(error) = limits.make_image(at)
    {
        tracing::warn!(path = %at.display(), %error, "a volume gets no file system of its own: its limits are counted");
    }
    match at.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let is_good = name.len() <= MAX_NAME
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.starts_with(id::VOLUME);
    if is_good {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "name: must be 1 to {MAX_NAME} of letters, digits, `.`, `_` and `-`, begin with a letter or digit, and not with {}",
        id::VOLUME
    )))
}

/// One volume, by id.
///
/// # Errors
/// `not_found`.
pub async fn get(app: &App, id: &str) -> Result<VolumeRow> {
    let wanted = id.to_owned();
    let found = app.store.read(move |db| rows::get(db, &wanted)).await?;
    found
        .filter(|row| row.state == AVAILABLE)
        .ok_or_else(|| no_volume(id))
}

/// One volume, by name.
///
/// # Errors
/// `not_found`.
pub async fn by_name(app: &App, tenant_id: &str, name: &str) -> Result<VolumeRow> {
    let (tenant_id, wanted) = (tenant_id.to_owned(), name.to_owned());
    let found = app
        .store
        .read(move |db| rows::by_name(db, &tenant_id, &wanted))
        .await?;
    found
        .filter(|row| row.state == AVAILABLE)
        .ok_or_else(|| no_volume(name))
}

/// A volume of a tenant, by id or name.
///
/// # Errors
/// `not_found`.
pub async fn find(app: &App, tenant_id: &str, reference: &str) -> Result<VolumeRow> {
    match reference.starts_with(id::VOLUME) {
        true => get(app, reference)
            .await
            .and_then(|row| match row.tenant_id == tenant_id {
                true => Ok(row),
                false => Err(no_volume(reference)),
            }),
        false => by_name(app, tenant_id, reference).await,
    }
}

/// The volumes of a tenant, newest first.
///
/// # Errors
/// Those of the store.
pub async fn list(app: &App, tenant_id: &str) -> Result<Vec<VolumeInfo>> {
    let tenant_id = tenant_id.to_owned();
    let found = app.store.read(move |db| rows::list(db, &tenant_id)).await?;
    Ok(found
        .iter()
        .filter(|row| row.state == AVAILABLE)
        .map(|row| info(app, row))
        .collect())
}

/// The same volume with what it has now, if that can be said soon.
pub async fn counted(app: &AppState, row: VolumeRow) -> Result<VolumeInfo> {
    count::refresh(app, &row).await;
    Ok(info(app, &get(app, &row.id).await?))
}

/// Removes a volume that is empty and that no machine has.
///
/// # Errors
/// `not_found`, `volume_busy`, `invalid_request` (it is not empty), `volume_backend_unavailable`.
pub async fn delete(app: &AppState, id: &str) -> Result<()> {
    let (wanted, named) = (id.to_owned(), id.to_owned());
    app.store
        .write(move |tx| {
            let row = rows::get(tx, &wanted)?.ok_or_else(|| no_volume(&wanted))?;
            if row.attachments > 0 {
                return Err(Error::conflict(
                    code::VOLUME_BUSY,
                    format!("volume {} is attached to machines", row.name),
                )
                .with_action("detach it, or delete these machines: GET /v1/volumes/{id}/attachments has them"));
            }
            Ok(rows::set_state(tx, &wanted, DELETING)?)
        })
        .await?;
    app.volumes.forget(&named);
    finish_delete(app, &named).await
}

/// Removes the directory of a volume that is recorded as being deleted; what is not empty stays.
async fn finish_delete(app: &App, id: &str) -> Result<()> {
    let at = of(app, id);
    // It either takes an empty directory away or does nothing: whatever is written at this moment is not lost.
    let removed = blocking(move || {
        image::remove_empty(&at)?;
        std::fs::remove_dir(at)
    })
    .await;
    let wanted = id.to_owned();
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            app.store
                .write(move |tx| rows::set_state(tx, &wanted, AVAILABLE))
                .await?;
            Err(Error::invalid("the volume is not empty")
                .with_action("remove what is in it first: POST /v1/volumes/{id}/files/remove"))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            app.store
                .write(move |tx| rows::set_state(tx, &wanted, AVAILABLE))
                .await?;
            Err(backend("removing the directory", error))
        }
        _ => {
            app.store.write(move |tx| rows::remove(tx, &wanted)).await?;
            Ok(())
        }
    }
}

/// Where a volume is mounted.
///
/// # Errors
/// `not_found`.
pub async fn attachments(app: &App, id: &str) -> Result<Vec<VolumeAttachment>> {
    get(app, id).await?;
    let wanted = id.to_owned();
    let found = app
        .store
        .read(move |db| rows::attachments(db, &wanted))
        .await?;
    Ok(found.iter().map(attachment).collect())
}

/// The files of a volume are about to be worked on.
///
/// # Errors
/// `not_found`, `volume_backend_unavailable`.
pub(super) async fn open(app: &App, id: &str) -> Result<(VolumeRow, std::sync::Arc<Open>)> {
    let row = get(app, id).await?;
    Ok((row, app.volumes.open(id, &of(app, id))))
}

/// A volume as the wire shows it.
fn info(app: &App, row: &VolumeRow) -> VolumeInfo {
    let status = match of(app, &row.id).is_dir() {
        false => VolumeStatus::Error,
        true if row.failed > 0 => VolumeStatus::Degraded,
        true if row.attachments > 0 => VolumeStatus::Attached,
        true => VolumeStatus::Available,
    };
    let enforcement = || match image::beside(&of(app, &row.id)).exists() {
        true => QuotaEnforcement::FileSystem,
        false => QuotaEnforcement::Counted,
    };
    VolumeInfo {
        id: row.id.clone(),
        name: row.name.clone(),
        status,
        used_bytes: row.used_bytes,
        inode_count: row.inode_count,
        mount_count: row.mounts,
        max_size_bytes: row.max_size_bytes,
        max_file_count: row.max_file_count,
        max_mounts: None,
        quota_enforcement: Limits::of(row).map(|_| enforcement()),
        last_reconciled_at: row.counted_at.map(time::rfc3339),
        created_at: time::rfc3339(row.created_at),
    }
}

/// A mount as the wire shows it.
#[must_use]
pub fn attachment(row: &AttachmentRow) -> VolumeAttachment {
    VolumeAttachment {
        id: row.id.clone(),
        volume_id: row.volume_id.clone(),
        machine_id: row.machine_id.clone(),
        sandbox_id: row.machine_id.clone(),
        mount_path: row.mount_path.clone(),
        read_only: row.read_only,
        subpath: row.subpath.clone(),
        state: AttachmentState::parse(&row.state).unwrap_or(AttachmentState::Failed),
        last_error_code: row.error_code.clone(),
        last_error_message: row.error_message.clone(),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
    }
}

/// Carries on after a start: makes the place of volumes, ends what was being deleted, and removes directories that did not
/// become volumes.
///
/// # Errors
/// When the place cannot be made or the record cannot be read.
pub async fn start(app: &AppState) -> Result<()> {
    let place = directory(app);
    let fail = |error: io::Error| Error::internal(format!("the place of volumes: {error}"));
    // Programs in them may have set-user-id bits: nobody else of this host comes near.
    let made = std::fs::DirBuilder::new().mode(0o700).create(&place);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail(error)),
        _ => {}
    }
    let all = app.store.read(rows::all).await?;
    for row in all.iter().filter(|row| row.state == DELETING) {
        // Refused for one that is not empty; that is all there is to say.
        if let Err(error) = finish_delete(app, &row.id).await {
            tracing::info!(volume = row.id, %error, "a volume was not deleted after all");
        }
    }
    let known: HashSet<&str> = all.iter().map(|row| row.id.as_str()).collect();
    for entry in std::fs::read_dir(&place).map_err(fail)?.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| {
            known.contains(name)
                || name
                    .strip_suffix(image::SUFFIX)
                    .is_some_and(|id| known.contains(id))
        }) {
            continue;
        }
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let removed = match is_file {
            true => std::fs::remove_file(entry.path()),
            false => std::fs::remove_dir(entry.path()),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %entry.path().display(), %error, "what is no volume's stays");
        }
    }
    Ok(())
}

/// Lets go of keepers that nobody needs and counts what machines and requests have written, until the server stops.
pub(crate) async fn keep_up(app: AppState) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(TICK) => {}
            () = app.stopping.cancelled() => return,
        }
        app.volumes.let_go();
        if let Err(error) = count::reconcile(&app).await {
            tracing::warn!(context = ?error.context, "volumes could not be counted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "data", "my-data_2.v1", &"x".repeat(128)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a/b",
            ".a",
            "-a",
            "vol_abc",
            "a b",
            "é",
            &"x".repeat(129),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}

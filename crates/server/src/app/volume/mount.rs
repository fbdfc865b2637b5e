//! Volumes in machines: what is asked for is checked here; a machine's owner does it (`machine/owner/volumes.rs`).

use nullspace_api::{error::code, id, machine::VolumeMount, time};
use nullspace_engine::{Bind, EngineError};
use nullspace_lifecycle::machine::State;
use nullspace_protocol::{FileKind, PathRequest};
use nullspace_store::{
    StoreError,
    machine::MachineRow,
    volume::{self as rows, AttachmentRow, VolumeRow},
};
use serde::{Deserialize, Serialize};

use super::{count, of, open};
use crate::{
    app::{
        App, AppState, machine,
        scope::{Access, Area, Need},
    },
    error::{Error, Kind, Result},
};

/// The most volumes of one machine.
const MAX_MOUNTS: usize = 32;
/// The longest path, in bytes.
const MAX_PATH: usize = 4096;
/// What the kernel has in every machine.
const SYSTEM: [&str; 3] = ["/dev", "/proc", "/sys"];

pub(crate) const MOUNTING: &str = "mounting";
pub(crate) const MOUNTED: &str = "mounted";
pub(crate) const PAUSED: &str = "paused";
pub(crate) const REMOUNTING: &str = "remounting";
pub(crate) const RELEASING: &str = "releasing";
pub(crate) const FAILED: &str = "failed";

/// A volume that a machine is to have. It is recorded with a machine's state, for machines that are made of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    volume_id: String,
    volume_name: String,
    mount_path: String,
    read_only: bool,
    subpath: Option<String>,
}

/// What becomes of the volumes of a machine that runs.
#[derive(Debug)]
pub enum Change {
    /// One more.
    Attach(Mount),
    /// Not this one any more.
    Detach(String),
    /// Look whether it is there.
    Check(String),
    /// Take it away and put it back.
    Remount(String),
}

/// Checks the volumes that a new machine is to have. `cwd` is made if it is in one of them.
///
/// # Errors
/// `not_found`, `volume_invalid_mount_path`, `volume_overlapping_mounts`, `volume_limit_exceeded`,
/// `volume_quota_exceeded`, `volume_backend_unavailable`.
pub async fn plan(
    app: &AppState,
    tenant_id: &str,
    wanted: &[VolumeMount],
    cwd: &str,
) -> Result<Vec<Mount>> {
    let mut mounts: Vec<Mount> = Vec::new();
    for wanted in wanted {
        let path = check_path(&wanted.mount_path)?;
        fits(mounts.iter().map(|mount| mount.mount_path.as_str()), &path)?;
        mounts.push(plan_one(app, tenant_id, wanted, path).await?);
    }
    for mount in &mounts {
        if let Some(rest) = beneath(&mount.mount_path, cwd).filter(|rest| !rest.is_empty()) {
            let subpath = mount.subpath.as_deref().unwrap_or_default();
            let path = format!("{subpath}/{rest}");
            directory(app, &mount.volume_id, &path, mount.read_only).await?;
        }
    }
    Ok(mounts)
}

/// What a key has to be for to have a volume mounted.
#[must_use]
pub fn need(wanted: &VolumeMount) -> Need {
    match wanted.read_only.unwrap_or(false) {
        true => Need(Area::Volumes, Access::Read),
        false => Need(Area::Volumes, Access::Write),
    }
}

/// Mounts a volume in a machine that runs.
///
/// # Errors
/// As [`plan`]; `machine_not_found`, `machine_not_ready`, `volume_backend_capability_unsupported`.
pub async fn attach(app: &AppState, id: &str, wanted: &VolumeMount) -> Result<AttachmentRow> {
    let row = machine::get(app, id).await?;
    let path = check_path(&wanted.mount_path)?;
    fits(row.volumes.iter().map(|one| one.mount_path.as_str()), &path)?;
    let mount = plan_one(app, &row.tenant_id, wanted, path).await?;
    machine::change_volume(app, id, Change::Attach(mount)).await
}

async fn plan_one(
    app: &AppState,
    tenant_id: &str,
    wanted: &VolumeMount,
    mount_path: String,
) -> Result<Mount> {
    let volume = super::find(app, tenant_id, wanted.reference.trim()).await?;
    let read_only = wanted.read_only.unwrap_or(false);
    if let Some(limits) = count::Limits::of(&volume).filter(|_| !read_only) {
        let (_, open) = open(app, &volume.id).await?;
        count::room(&open, limits, 0).await.map_err(|error| {
            error.with_action("remove files from the volume, or mount it read-only")
        })?;
    }
    let subpath = check_subpath(wanted.subpath.as_deref())?;
    if let Some(subpath) = &subpath {
        directory(app, &volume.id, subpath, read_only).await?;
    }
    require_directory(app, &volume)?;
    Ok(Mount {
        volume_id: volume.id,
        volume_name: volume.name,
        mount_path,
        read_only,
        subpath,
    })
}

/// The volumes of a machine whose state is copied, as those of another machine.
///
/// # Errors
/// `volume_busy` when one is not where it should be: whether the memory has it mounted is not known then.
pub(crate) async fn kept(app: &App, machine: &MachineRow) -> Result<Vec<Mount>> {
    if let Some(one) = machine.volumes.iter().find(|one| one.state != MOUNTED) {
        return Err(Error::conflict(
            code::VOLUME_BUSY,
            format!(
                "the volume at {} is not mounted: attachment {} is {}",
                one.mount_path, one.id, one.state
            ),
        )
        .with_action("remount or detach it first"));
    }
    let rows = machine.volumes.clone();
    let mounts = app.store.read(move |db| {
        rows.into_iter()
            .map(|row| {
                let volume = rows::get(db, &row.volume_id)?;
                Ok::<_, StoreError>(Mount {
                    volume_name: volume.map(|volume| volume.name).unwrap_or_default(),
                    volume_id: row.volume_id,
                    mount_path: row.mount_path,
                    read_only: row.read_only,
                    subpath: row.subpath,
                })
            })
            .collect::<Result<_, _>>()
    });
    Ok(mounts.await?)
}

/// Checks the volumes of a state for a machine that is made of it with no others named.
///
/// # Errors
/// `not_found` when one is gone; otherwise as [`plan`].
pub(crate) async fn again(app: &AppState, tenant_id: &str, kept: &[Mount]) -> Result<Vec<Mount>> {
    let mut mounts = Vec::with_capacity(kept.len());
    for one in kept {
        let wanted = VolumeMount {
            reference: one.volume_id.clone(),
            mount_path: one.mount_path.clone(),
            read_only: Some(one.read_only),
            subpath: one.subpath.clone(),
        };
        let mount = plan_one(app, tenant_id, &wanted, one.mount_path.clone()).await;
        mounts.push(mount.map_err(|error| {
            match error.code {
                code::NOT_FOUND => error
                    .with_message(format!(
                        "volume {} ({}), which the machine had at {}, is gone",
                        one.volume_name, one.volume_id, one.mount_path
                    ))
                    .with_action(format!("name a volume for {} in volumes", one.mount_path)),
                _ => error,
            }
        })?);
    }
    Ok(mounts)
}

/// Checks that there is a volume wherever a state has one: what its processes see there cannot just go away.
///
/// # Errors
/// `incompatible_snapshot`.
pub(crate) fn covers(kept: &[Mount], wanted: &[Mount]) -> Result<()> {
    let has = |path: &str| wanted.iter().any(|one| one.mount_path == path);
    match kept.iter().find(|one| !has(&one.mount_path)) {
        None => Ok(()),
        Some(one) => Err(Error::conflict(
            code::INCOMPATIBLE_SNAPSHOT,
            format!(
                "the snapshot has volume {} mounted at {}, and volumes has none for that path",
                one.volume_name, one.mount_path
            ),
        )
        .with_action(format!(
            "name that volume or another for {}, or no volumes at all: the machine has those of the snapshot then",
            one.mount_path
        ))),
    }
}

fn require_directory(app: &App, volume: &VolumeRow) -> Result<()> {
    if of(app, &volume.id).is_dir() {
        return Ok(());
    }
    Err(super::backend("opening a volume", "its directory is gone")
        .with_message(format!("the files of volume {} are gone", volume.name)))
}

/// Makes a directory of a volume, unless that is only to be read.
async fn directory(app: &App, volume: &str, path: &str, read_only: bool) -> Result<()> {
    let path = format!("/{}", path.trim_start_matches('/'));
    let request = PathRequest {
        path: path.clone(),
        ..PathRequest::default()
    };
    let (_, open) = open(app, volume).await?;
    let guest = open.guest().await?;
    if !read_only {
        open.write();
        // What is in the way is told by what is there afterwards.
        let _ = guest.mkdir(&request).await;
    }
    match guest.stat(&request).await {
        Ok(found) if found.kind == FileKind::Dir => Ok(()),
        Ok(_) => Err(invalid(format!(
            "subpath: {path} is no directory of the volume"
        ))),
        Err(_) => Err(invalid(format!(
            "subpath: the volume has no directory {path}"
        ))),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, code::VOLUME_INVALID_MOUNT_PATH, message)
}

/// A path at which something can be mounted: absolute, without `.` and `..`. A slash at the end is taken off.
fn check_path(path: &str) -> Result<String> {
    let bare = path.trim_end_matches('/');
    let is_clean = bare.len() <= MAX_PATH
        && bare
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(is_name));
    if !is_clean {
        return Err(invalid(format!(
            "mount_path: {path:?} is not an absolute path without . and .., below the root"
        )));
    }
    if machine::is_reserved("/", bare) {
        let message = format!("mount_path: {} is reserved", machine::RESERVED);
        return Err(invalid(message));
    }
    match SYSTEM.iter().find(|system| beneath(system, bare).is_some()) {
        Some(system) => Err(invalid(format!("mount_path: {system} is the kernel's"))),
        None => Ok(bare.to_owned()),
    }
}

/// A directory of a volume; all of it when nothing is said.
fn check_subpath(path: Option<&str>) -> Result<Option<String>> {
    let Some(path) = path
        .map(|path| path.trim_matches('/'))
        .filter(|path| !path.is_empty())
    else {
        return Ok(None);
    };
    if path.len() <= MAX_PATH && path.split('/').all(is_name) {
        return Ok(Some(path.to_owned()));
    }
    Err(invalid(
        "subpath: must be a path in the volume, without . and ..",
    ))
}

fn is_name(part: &str) -> bool {
    !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains('\0')
}

/// What is left of a path below a directory; nothing if it is elsewhere.
fn beneath<'a>(directory: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(directory)?;
    match rest.strip_prefix('/') {
        Some(rest) => Some(rest),
        None => rest.is_empty().then_some(rest),
    }
}

/// Whether something can be mounted at a path, beside what is mounted already.
pub(crate) fn fits<'a>(there: impl Iterator<Item = &'a str>, path: &str) -> Result<()> {
    let mut count = 0;
    for other in there {
        count += 1;
        if beneath(other, path).is_some() || beneath(path, other).is_some() {
            return Err(Error::new(
                Kind::Invalid,
                code::VOLUME_OVERLAPPING_MOUNTS,
                format!("mount_path: {path} and {other} are one inside the other"),
            ));
        }
    }
    if count >= MAX_MOUNTS {
        return Err(Error::new(
            Kind::Limit,
            code::VOLUME_LIMIT_EXCEEDED,
            format!("a machine has at most {MAX_MOUNTS} volumes"),
        ));
    }
    Ok(())
}

/// A mount that is about to be made.
pub(crate) fn row(mount: &Mount, machine: &str, now: i64) -> AttachmentRow {
    AttachmentRow {
        id: id::new(id::ATTACHMENT),
        volume_id: mount.volume_id.clone(),
        machine_id: machine.to_owned(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        subpath: mount.subpath.clone(),
        state: MOUNTING.to_owned(),
        created_at: now,
        updated_at: now,
        ..AttachmentRow::default()
    }
}

/// What the engine is asked for.
pub(crate) fn bind(app: &App, row: &AttachmentRow) -> Bind {
    Bind {
        source: of(app, &row.volume_id),
        beneath: row.subpath.as_ref().map(Into::into),
        target: row.mount_path.clone().into(),
        read_only: row.read_only,
    }
}

/// Makes a machine's mounts what its state says, as the record does it.
pub(crate) fn follow(machine: &mut MachineRow) {
    let born = machine.created_at;
    match State::parse(&machine.state) {
        Some(State::Running) => {
            for one in &mut machine.volumes {
                let is_first = one.state == MOUNTING && one.created_at <= born;
                if one.state == PAUSED || is_first {
                    one.state = MOUNTED.to_owned();
                    one.updated_at = time::now();
                }
            }
        }
        Some(State::Paused) => {
            for one in machine
                .volumes
                .iter_mut()
                .filter(|one| one.state == MOUNTED)
            {
                one.state = PAUSED.to_owned();
                one.updated_at = time::now();
            }
        }
        Some(state) if state.has_ended() => machine.volumes.clear(),
        _ => {}
    }
}

/// Why the engine did not mount a volume.
pub(crate) fn refusal(error: EngineError, machine: &str) -> Error {
    match error {
        EngineError::InvalidSpec(why) => invalid(format!("mount_path: {why}")),
        EngineError::NotFound(_) => Error::not_ready(machine, State::Error.as_str()),
        EngineError::Unsupported { .. } => Error::new(
            Kind::NotImplemented,
            code::VOLUME_BACKEND_CAPABILITY_UNSUPPORTED,
            error.to_string(),
        )
        .with_action("give the machine its volumes when it is made"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_where_volumes_can_be() {
        for good in [
            "/data",
            "/data/",
            "/a/b",
            "/workspace",
            "/procedures",
            "/etc/x",
        ] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "//",
            "data",
            "/a/../b",
            "/a//b",
            "/./a",
            "/a/.",
            "/a\0",
            "/workspace/.nullspace",
            "/workspace/.nullspace/x",
            "/proc",
            "/sys/fs",
            "/dev/shm",
        ] {
            let error = check_path(bad).expect_err(bad);
            assert_eq!(error.code, code::VOLUME_INVALID_MOUNT_PATH);
        }
        assert_eq!(
            check_subpath(Some("/a/b/")).unwrap().as_deref(),
            Some("a/b")
        );
        assert_eq!(check_subpath(Some("/")).unwrap(), None);
        for bad in ["..", "a/../b", "a//b", "."] {
            assert!(check_subpath(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_inside_the_other_is_refused() {
        let there = ["/data", "/srv/a"];
        for bad in ["/data", "/data/x", "/srv"] {
            let error = fits(there.into_iter(), bad).expect_err(bad);
            assert_eq!(error.code, code::VOLUME_OVERLAPPING_MOUNTS);
        }
        for good in ["/database", "/srv/b", "/d"] {
            assert!(fits(there.into_iter(), good).is_ok(), "{good}");
        }
    }
}

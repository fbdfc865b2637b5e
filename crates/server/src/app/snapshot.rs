//! Machines' states that are kept: of those that sleep, of those that others are made of, and of those that branch.
//!
//! ```text
//!  hibernate, resume ──▶ the machine's owner (`machine/owner/state.rs`)
//!  create            ──▶ the owner keeps a copy ──▶ any number of machines made of it
//!  fork              ──▶ the owner keeps a copy ──▶ one machine made of it ──▶ the copy is forgotten
//! ```
//! What is on disk lies in `snapshots/<id>/`, for root alone: it holds the machine's memory, and so whatever secrets
//! its programs have.

mod shape;
mod uses;

use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc};

use nullspace_api::{
    Noun,
    error::code,
    id,
    machine::VolumeMount,
    snapshot::{ListSnapshotsQuery, SnapshotInfo},
    time,
};
use nullspace_engine::{Checkpoint, EngineError, MachineSpec};
use nullspace_lifecycle::machine::{Actor, Event};
use nullspace_store::{
    StoreError,
    event::{self as event_rows, NewEvent},
    idempotency::{self, Claim},
    machine::{self as machine_rows, MachineRow},
    snapshot::{self as rows, SnapshotRow},
};
use serde_json::{Map, Value, json};

pub(crate) use self::{
    shape::{Shape, shape},
    uses::Uses,
};
use super::{App, AppState, Caller, egress, event, machine, volume::mount};
use crate::error::{Error, Result};

/// What a state is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The machine it is of goes on from it.
    Hibernate,
    /// Machines are made of it.
    Snapshot,
    /// One machine is made of it at once.
    Fork,
}

impl Kind {
    /// The word in the record.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Hibernate => "hibernate",
            Self::Snapshot => "snapshot",
            Self::Fork => "fork",
        }
    }

    /// The word in events.
    const fn operation(self) -> &'static str {
        match self {
            Self::Hibernate => "hibernate",
            Self::Snapshot => "snapshot_created",
            Self::Fork => "fork",
        }
    }

    /// What an engine must be able to do, as a verb phrase.
    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Hibernate => "hibernate machines",
            Self::Snapshot => "keep the memory of machines (snapshots)",
            Self::Fork => "fork machines",
        }
    }
}

/// A copy of a machine's state that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) kind: Kind,
    /// The machine that will be made of it.
    pub(crate) child: Option<String>,
    pub(crate) by: By,
    pub(crate) claim: Option<Claim>,
}

/// Who asked, and how that one spells a machine.
#[derive(Clone, Debug, Default)]
pub struct By {
    /// The key; none for the platform itself.
    pub key_id: Option<String>,
    /// The word.
    pub noun: Noun,
}

impl Wanted {
    /// An event of the machine's whose state it is.
    pub(crate) fn event(
        &self,
        row: &MachineRow,
        snapshot_id: &str,
        status: &'static str,
    ) -> NewEvent {
        let event = Event {
            operation: self.kind.operation(),
            status,
            actor: match status {
                "requested" => Actor::User,
                _ => Actor::System,
            },
            reason: None,
        };
        let mut record = event::record(row, &event, self.by.key_id.as_deref(), time::now());
        match self.kind {
            Kind::Fork => {
                record.source_machine_id = Some(row.id.clone());
                record.target_machine_id.clone_from(&self.child);
            }
            _ => record.snapshot_id = Some(snapshot_id.to_owned()),
        }
        record
    }
}

/// A copy that was kept.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// It is new.
    New(Box<SnapshotRow>),
    /// The same request made this before.
    Replay(String),
}

/// Where a state is on disk.
pub(crate) fn directory(app: &App, id: &str) -> PathBuf {
    app.data_dir.join("snapshots").join(id)
}

/// Removes what is on disk of one that is not on record any more, behind the scenes.
pub(crate) fn remove_files(app: &AppState, id: &str) {
    let path = directory(app, id);
    app.tasks.spawn_blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(path = %path.display(), %error, "the files of a snapshot could not be removed");
        }
        _ => {}
    });
}

/// What of a state an answer says besides its size: how long it lasts.
pub(crate) fn lasting(in_place: bool) -> Value {
    if in_place {
        json!({"memory": "on_host", "lasts": "until_host_restart"})
    } else {
        json!({"memory": "on_disk", "lasts": "until_deleted"})
    }
}

/// Puts what an engine wrote into the record.
pub(crate) fn describe(row: &mut SnapshotRow, kept: &Checkpoint) {
    row.size_bytes = kept.bytes;
    row.digest.clone_from(&kept.digest);
}

/// The refusal of what an engine does not have.
pub(crate) fn cannot(engine: &str, what: &str) -> Error {
    Error::new(
        crate::error::Kind::NotImplemented,
        code::NOT_IMPLEMENTED,
        format!("the {engine} engine cannot {what}"),
    )
    .with_action("that takes an engine that keeps memory: install runsc on the server, and make the machine with isolation gvisor")
}

/// Where a state is, when what is there is what is on record.
pub(crate) fn whole(app: &App, row: &SnapshotRow) -> Result<PathBuf> {
    let path = directory(app, &row.id);
    let what = match Checkpoint::read(&path) {
        Some(kept) if kept.digest == row.digest => return Ok(path),
        Some(_) => "what is on disk is not what was kept",
        None => "it is not on disk any more, or not whole",
    };
    Err(EngineError::Checkpoint(format!("{}: {what}", row.id)).into())
}

/// Records that a copy is whole.
pub(crate) async fn record_ready(
    app: &App,
    machine: &MachineRow,
    wanted: &Wanted,
    snapshot: &SnapshotRow,
) -> Result<()> {
    // The fork of a machine is done when there is another one.
    let event =
        (wanted.kind != Kind::Fork).then(|| wanted.event(machine, &snapshot.id, "succeeded"));
    let snapshot = snapshot.clone();
    app.store
        .write(move |tx| {
            rows::put(tx, &snapshot)?;
            if let Some(event) = &event {
                event_rows::append(tx, event)?;
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    Ok(())
}

/// Records that a copy came to nothing. A record that cannot be written is made right at the next start.
pub(crate) async fn record_failed(
    app: &AppState,
    machine: &MachineRow,
    wanted: &Wanted,
    snapshot: &SnapshotRow,
    error: &Error,
) {
    let mut event = wanted.event(machine, &snapshot.id, "failed");
    event.error_code = Some(error.code.to_owned());
    event.error_message = Some(error.message.clone());
    forget(app, snapshot, Some(event), wanted.child.as_deref()).await;
}

/// Forgets a state, with the event that says why, and the idempotency keys that led to it.
async fn forget(
    app: &AppState,
    snapshot: &SnapshotRow,
    event: Option<NewEvent>,
    child: Option<&str>,
) {
    let (id, subject) = (
        snapshot.id.clone(),
        child.unwrap_or(&snapshot.id).to_owned(),
    );
    let failed = event.as_ref().is_some_and(|event| event.status == "failed");
    let written = app
        .store
        .write(move |tx| {
            rows::delete(tx, &id)?;
            if failed {
                idempotency::release(tx, &subject)?;
            }
            if let Some(event) = &event {
                event_rows::append(tx, event)?;
            }
            Ok::<_, StoreError>(())
        })
        .await;
    match written {
        Ok(()) => remove_files(app, &snapshot.id),
        Err(error) => {
            tracing::error!(snapshot = snapshot.id, %error, "a snapshot could not be forgotten; the next start does it");
        }
    }
}

/// Stops a machine and keeps its memory. Answers when nothing of it runs and its state is safe.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`, `not_implemented` (the engine cannot), `insufficient_storage` (the machine
/// runs on), `conflict` (it backs a run).
pub async fn hibernate(app: &App, id: &str, by: By) -> Result<SnapshotInfo> {
    let noun = by.noun;
    machine::ask(app, id, |reply| machine::owner::Message::Hibernate {
        by,
        reply,
    })
    .await
    .map(|row| info(&row, noun))
}

/// Lets a paused machine go on, which may be named by what it goes on from. One that runs is fine.
///
/// # Errors
/// `machine_not_found`, `snapshot_not_found`, `conflict` (a snapshot that machines are made of),
/// `incompatible_snapshot`, `capacity_exceeded`, and those of the engine: it stays paused then.
pub async fn resume(app: &App, id: &str, key_id: &str) -> Result<Arc<MachineRow>> {
    let machine_id = if id.starts_with(id::SNAPSHOT) {
        let row = get_row(app, id).await?;
        if row.kind != Kind::Hibernate.as_str() {
            return Err(Error::conflict(
                code::CONFLICT,
                format!("{id} is a snapshot that machines are made of"),
            )
            .with_action("create a machine with snapshot_id"));
        }
        row.machine_id
    } else {
        id.to_owned()
    };
    let key_id = Some(key_id.to_owned());
    machine::ask(app, &machine_id, |reply| machine::owner::Message::Resume {
        key_id,
        reply,
    })
    .await
}

/// Keeps a running machine's state, for machines that are made of it later. The machine goes on.
///
/// # Errors
/// As [`hibernate`], and `idempotency_conflict`, `volume_busy` (a volume of it is not in its place).
pub async fn create(
    app: &App,
    machine_id: &str,
    by: By,
    claim: Option<Claim>,
) -> Result<SnapshotInfo> {
    let noun = by.noun;
    let wanted = Wanted {
        kind: Kind::Snapshot,
        child: None,
        by,
        claim,
    };
    match keep(app, machine_id, wanted).await? {
        Kept::New(row) => Ok(info(&row, noun)),
        Kept::Replay(id) => {
            let row = get_row(app, &id).await?;
            if row.is_ready {
                return Ok(info(&row, noun));
            }
            Err(machine::under_way())
        }
    }
}

/// Makes another machine that goes on from where this one is, which goes on too. Both have the same volumes.
///
/// # Errors
/// As [`create`], and `capacity_exceeded`, `volume_quota_exceeded`.
pub async fn fork(
    app: &AppState,
    machine_id: &str,
    by: By,
    claim: Option<Claim>,
) -> Result<Arc<MachineRow>> {
    let source = machine::get(app, machine_id).await?;
    let child = id::new(id::MACHINE);
    let wanted = Wanted {
        kind: Kind::Fork,
        child: Some(child.clone()),
        by,
        claim,
    };
    app.machines.room(app.config.max_machines)?;
    // The caller may go away; what was begun is ended in either way.
    let (app, id) = (app.clone(), machine_id.to_owned());
    let branch = async move {
        let snapshot = match keep(&app, &id, wanted.clone()).await? {
            Kept::New(row) => row,
            Kept::Replay(child) => return machine::replay(&app, &child).await,
        };
        let mut row = machine::blank(
            &child,
            &source.tenant_id,
            source.timeout_ms,
            wanted.by.key_id.clone(),
        );
        row.timeout_action.clone_from(&source.timeout_action);
        row.auto_resume = source.auto_resume;
        row.metadata.clone_from(&source.metadata);
        let made = make_of(&app, &snapshot, row, &[], None).await;
        let mut event = wanted.event(&source, &snapshot.id, "succeeded");
        if let Err(error) = &made {
            event.status = "failed";
            event.error_code = Some(error.code.to_owned());
            event.error_message = Some(error.message.clone());
        }
        forget(&app, &snapshot, Some(event), Some(&child)).await;
        made
    };
    tokio::spawn(branch)
        .await
        .map_err(|e| Error::internal(format!("a fork ended early: {e}")))?
}

/// Makes a machine of a snapshot: the row says what of it is its own. It has the snapshot's volumes if none are named.
///
/// # Errors
/// `snapshot_not_found`, `conflict` (that of a paused machine), `incompatible_snapshot`, `not_found` (a volume is gone),
/// and those of [`machine::create`] and [`mount::plan`].
pub(crate) async fn make(
    app: &AppState,
    snapshot_id: &str,
    row: MachineRow,
    volumes: &[VolumeMount],
    claim: Option<Claim>,
) -> Result<Arc<MachineRow>> {
    let snapshot = get_row(app, snapshot_id).await?;
    if snapshot.tenant_id != row.tenant_id {
        return Err(not_found(snapshot_id));
    }
    if snapshot.kind != Kind::Snapshot.as_str() {
        return Err(Error::conflict(
            code::CONFLICT,
            format!(
                "{snapshot_id} is what machine {} goes on from",
                snapshot.machine_id
            ),
        )
        .with_action("resume that machine; to make several, keep a snapshot of it while it runs"));
    }
    make_of(app, &snapshot, row, volumes, claim).await
}

async fn make_of(
    app: &AppState,
    snapshot: &SnapshotRow,
    mut row: MachineRow,
    volumes: &[VolumeMount],
    claim: Option<Claim>,
) -> Result<Arc<MachineRow>> {
    let use_ = app.snapshots.begin(&snapshot.id);
    let from = whole(app, snapshot)?;
    let shape = shape(snapshot)?;
    let mounts = match volumes {
        [] => mount::again(app, &row.tenant_id, &shape.volumes).await?,
        named => {
            let mounts = mount::plan(app, &row.tenant_id, named, &shape.spec.cwd).await?;
            mount::covers(&shape.volumes, &mounts)?;
            mounts
        }
    };
    row.volumes = mounts
        .iter()
        .map(|mount| mount::row(mount, &row.id, row.created_at))
        .collect();
    let user = shape.user.clone();
    let spec = shape.put(&mut row);
    egress::record(&mut row, &spec.egress);
    let spec = MachineSpec {
        hostname: row.id.replace('_', "-"),
        id: row.id.clone(),
        ..spec
    };
    let made = machine::create_from(app, row, spec, from, user, claim).await;
    drop(use_);
    made
}

async fn keep(app: &App, machine_id: &str, wanted: Wanted) -> Result<Kept> {
    machine::ask(app, machine_id, |reply| {
        machine::owner::Message::Checkpoint {
            wanted: Box::new(wanted),
            reply,
        }
    })
    .await
}

/// Snapshots, newest first: those of one machine, those with this metadata.
///
/// # Errors
/// `invalid_request` for a query that means nothing.
pub async fn list(
    app: &App,
    query: &ListSnapshotsQuery,
    caller: &Caller,
) -> Result<Vec<SnapshotInfo>> {
    let wanted: Map<String, Value> = match query.metadata.as_deref() {
        None | Some("") => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => fields,
            _ => return Err(Error::invalid("metadata: must be a JSON object")),
        },
    };
    let machine_id = query.machine_id().map(str::to_owned);
    let tenant_id = caller.tenant_id();
    let rows = app
        .store
        .read(move |db| rows::list(db, &tenant_id, machine_id.as_deref()))
        .await?;
    Ok(rows
        .iter()
        .filter(|row| row.is_ready && row.kind != Kind::Fork.as_str())
        .map(|row| info(row, spelled(app, row, &caller.key_id)))
        .filter(|info| wanted.iter().all(|(k, v)| info.metadata.get(k) == Some(v)))
        .collect())
}

/// One snapshot.
///
/// # Errors
/// `snapshot_not_found`.
pub async fn get(app: &App, id: &str, key_id: &str) -> Result<SnapshotInfo> {
    let row = get_row(app, id).await?;
    Ok(info(&row, spelled(app, &row, key_id)))
}

/// How a key spells the machine of a snapshot.
fn spelled(app: &App, row: &SnapshotRow, key_id: &str) -> Noun {
    let last = app.spelling.of(key_id);
    last.unwrap_or_else(|| Noun::parse(&row.noun))
}

async fn get_row(app: &App, id: &str) -> Result<SnapshotRow> {
    let wanted = id.to_owned();
    app.store
        .read(move |db| rows::get(db, &wanted))
        .await?
        .filter(|row| row.is_ready)
        .ok_or_else(|| not_found(id))
}

/// No snapshot of that id.
pub(crate) fn not_found(id: &str) -> Error {
    Error::not_found(code::SNAPSHOT_NOT_FOUND, format!("no snapshot {id}"))
}

/// Deletes one.
///
/// # Errors
/// `snapshot_not_found`, `snapshot_in_use`.
pub async fn delete(app: &AppState, id: &str) -> Result<()> {
    let row = get_row(app, id).await?;
    let needed = if row.kind == Kind::Hibernate.as_str() {
        Some(format!("machine {} goes on from it", row.machine_id))
    } else if app.snapshots.contain(id) {
        Some("a machine is being made of it".to_owned())
    } else {
        None
    };
    if let Some(why) = needed {
        return Err(Error::conflict(
            code::SNAPSHOT_IN_USE,
            format!("snapshot {id} is needed: {why}"),
        )
        .with_action("resume or delete the machine; a machine that is being made is made soon"));
    }
    let wanted = id.to_owned();
    app.store.write(move |tx| rows::delete(tx, &wanted)).await?;
    remove_files(app, id);
    Ok(())
}

/// Makes the place for states on disk.
///
/// # Errors
/// What the file system says.
pub(crate) fn open(app: &App) -> Result<()> {
    let path = app.data_dir.join("snapshots");
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::internal(
            format!("making {}: {error}", path.display()),
        )),
        _ => Ok(()),
    }
}

/// At start-up, once machines are adopted: removes what was begun and not finished, from the record and from the disk.
///
/// # Errors
/// When the record or the directory cannot be read or written.
pub(crate) async fn sweep(app: &App) -> Result<()> {
    let all = app.store.read(rows::all).await?;
    let (kept, left): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|row| row.is_ready && row.kind != Kind::Fork.as_str());
    if !left.is_empty() {
        tracing::info!(
            count = left.len(),
            "removing snapshots that were not finished"
        );
        app.store
            .write(move |tx| {
                for row in &left {
                    rows::delete(tx, &row.id)?;
                    // What did not come to be can be asked for again with the same key.
                    let subject = row.child_id.as_ref().unwrap_or(&row.id);
                    if machine_rows::get(tx, subject)?.is_none() {
                        idempotency::release(tx, subject)?;
                    }
                }
                Ok::<_, StoreError>(())
            })
            .await?;
    }
    let path = app.data_dir.join("snapshots");
    let failed = |error: std::io::Error| Error::internal(format!("{}: {error}", path.display()));
    for entry in fs::read_dir(&path).map_err(failed)?.flatten() {
        let name = entry.file_name();
        if !kept.iter().any(|row| name.to_str() == Some(&row.id)) {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// As the wire shows it.
fn info(row: &SnapshotRow, noun: Noun) -> SnapshotInfo {
    let machine = Some(row.machine_id.clone());
    let (machine_id, sandbox_id) = match noun {
        Noun::Machine => (machine, None),
        Noun::Sandbox => (None, machine),
    };
    SnapshotInfo {
        id: row.id.clone(),
        machine_id,
        sandbox_id,
        size_bytes: row.size_bytes,
        created_at: time::rfc3339(row.created_at),
        metadata: serde_json::from_str(&row.metadata).unwrap_or_default(),
    }
}

//! Start-up and mishaps: bringing the record and what is alive together.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt;
use nullspace_api::time;
use nullspace_engine::{Checkpoint, ExitReason, MachineExit};
use nullspace_lifecycle::machine::{self as lifecycle, Input, Loss, State};
use nullspace_protocol::GuestClient;
use nullspace_store::{
    machine::{self as rows, MachineRow},
    snapshot::{self as snapshots, SnapshotRow},
};
use tokio::sync::broadcast::error::RecvError;

use super::owner::{self, Change};
use crate::{
    app::{AppState, pool, snapshot, template},
    error::Result,
};

/// Machines that are looked at together.
const TOGETHER: usize = 32;
/// How long the guest of a machine that was being created may take to answer.
const HELLO: Duration = Duration::from_secs(2);

/// Compares the record with what the engine keeps alive. Afterwards every machine that lives has an
/// owner, every other is recorded as what it is, and nothing lives without a record.
///
/// # Errors
/// When the record or the engine cannot be read.
pub async fn adopt(app: &AppState) -> Result<()> {
    let rows = app.store.read(rows::unfinished).await?;
    // Before there are owners, who say it themselves.
    let untold = app.store.read(rows::destroyed_untold).await?;
    let alive: HashSet<String> = app.engine.list().await?.into_iter().map(|m| m.id).collect();
    let pooled = pool::adopt(app, &alive).await?;
    let known: HashSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    let count = rows.len();
    let mut kept = hibernated(app).await?;
    let adopted: Vec<Result<()>> = futures_util::stream::iter(rows)
        .map(|row| {
            let alive = alive.contains(&row.id);
            let snapshot = kept.remove(&row.id);
            let is_in_doubt = pooled.in_doubt.contains(&row.id);
            async move {
                match is_in_doubt {
                    true => adopt_handed_out(app, row, alive).await,
                    false => adopt_one(app, row, alive, snapshot).await,
                }
            }
        })
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    adopted.into_iter().collect::<Result<()>>()?;
    let strays: Vec<&String> = alive
        .difference(&known)
        .filter(|id| !pooled.waiting.contains(*id))
        .collect();
    let mut left = HashSet::new();
    for id in &strays {
        if !end_stray(app, id).await? {
            left.insert(id.as_str());
        }
    }
    // The server before this one came to its end between ending a machine and saying so.
    for row in untold.iter().filter(|row| !left.contains(row.id.as_str())) {
        owner::ended(app, row);
    }
    tracing::info!(
        recorded = count,
        alive = alive.len(),
        strays = strays.len(),
        "compared the record with the engine"
    );
    Ok(())
}

/// `snapshot` is what it is kept as, or is being kept as.
async fn adopt_one(
    app: &AppState,
    row: MachineRow,
    alive: bool,
    snapshot: Option<SnapshotRow>,
) -> Result<()> {
    let state = State::parse(&row.state).unwrap_or(State::Error);
    match state {
        State::Paused => adopt_paused(app, row, alive, snapshot).await,
        State::Running => match snapshot.filter(|snapshot| !snapshot.is_ready) {
            Some(snapshot) => adopt_half_kept(app, row, alive, snapshot).await,
            None => settle(app, row, alive, Change::None).await,
        },
        // One that was being created counts only if its guest answers. One that had to get ready does not: whether its
        // start command was begun is known to nobody, and it cannot be begun twice.
        State::Creating => {
            let alive = alive
                && !template::gets_ready(app, &row.layer_digest).await?
                && answers(app, &row.id).await;
            settle(app, row, alive, Change::None).await
        }
        State::Destroyed | State::Error => Ok(()),
    }
}

/// A pool was handing it out when the server died. It is recorded as running, and is so only if it has what is its own,
/// which it got last and which nobody else knows any more.
async fn adopt_handed_out(app: &AppState, mut row: MachineRow, alive: bool) -> Result<()> {
    let guest = match alive {
        true => hello(app, &row.id).await,
        false => None,
    };
    if guest.is_some_and(|guest| guest.hello().has_own_defaults) {
        owner::handed_out(app, &row);
        return settle(app, row, true, Change::None).await;
    }
    // It never ran, and nobody was told of it.
    row.state = State::Creating.as_str().to_owned();
    row.started_at = None;
    row.timeout_at = None;
    settle(app, row, false, Change::None).await
}

/// Records what became of a machine, and gives it an owner if it lives.
async fn settle(app: &AppState, row: MachineRow, alive: bool, change: Change) -> Result<()> {
    let input = if alive { Input::Alive } else { Input::Gone };
    continue_with(app, row, input, change).await
}

async fn continue_with(
    app: &AppState,
    mut row: MachineRow,
    input: Input,
    change: Change,
) -> Result<()> {
    let state = State::parse(&row.state).unwrap_or(State::Error);
    let Ok(step) = lifecycle::step(state, input) else {
        tracing::error!(
            machine = row.id,
            state = row.state,
            "a machine is in a state that this version cannot continue"
        );
        return Ok(());
    };
    let mut next = owner::stepped(&row, &step, time::now());
    if let (State::Paused, Change::Put(snapshot)) = (step.state, &change) {
        next.snapshot_id = Some(snapshot.id.clone());
    }
    // What the machine does not need any more is removed from the disk by the sweep that follows.
    let change = match (&row.snapshot_id, &next.snapshot_id) {
        (Some(left), None) => Change::Forget(left.clone()),
        _ => change,
    };
    if next != row || !step.events.is_empty() {
        row = next;
        owner::record_step(&app.store, &row, &step, None, None, change).await?;
    }
    if step.state.has_ended() {
        if let Err(error) = app.engine.destroy(&row.id).await {
            tracing::error!(machine = row.id, %error, "what is left of a machine could not be ended");
        }
        return Ok(());
    }
    // A lowered limit must not end machines that live: those that are there always have a place.
    let alive = step.state == State::Running;
    let place = alive
        .then(|| app.machines.reserve(usize::MAX))
        .transpose()?;
    owner::spawn(app, row, place, owner::Start::Adopt);
    Ok(())
}

/// A machine that is recorded as paused stays so; the server may have died while it was woken.
async fn adopt_paused(
    app: &AppState,
    row: MachineRow,
    alive: bool,
    snapshot: Option<SnapshotRow>,
) -> Result<()> {
    let Some(snapshot) = snapshot else {
        return settle(app, row, false, Change::None).await;
    };
    if snapshot.in_place {
        if !alive {
            return settle(app, row, false, Change::None).await;
        }
        // Its memory is in place, whether it stands still or was let go a moment before it was recorded.
        if let Err(error) = app.engine.pause(&row.id).await {
            tracing::error!(machine = row.id, %error, "a paused machine does not stand still");
        }
        let place = app.machines.reserve(usize::MAX)?;
        owner::spawn(app, row, Some(place), owner::Start::Adopt);
        return Ok(());
    }
    // It may have done something since: it must not do that again, so it is not taken back.
    if alive && answers(app, &row.id).await {
        return settle(app, row, true, Change::None).await;
    }
    // Also what does not live: an engine may have begun to wake it, and what that left would be in the way.
    if let Err(error) = app.engine.destroy(&row.id).await {
        tracing::error!(machine = row.id, %error, "a machine that was not woken could not be ended");
    }
    owner::spawn(app, row, None, owner::Start::Adopt);
    Ok(())
}

/// The server died while it hibernated the machine: that is ended if all of it was kept, and undone if not.
async fn adopt_half_kept(
    app: &AppState,
    row: MachineRow,
    alive: bool,
    mut snapshot: SnapshotRow,
) -> Result<()> {
    let kept = Checkpoint::read(&snapshot::directory(app, &snapshot.id));
    if alive {
        if snapshot.in_place
            && let Err(error) = app.engine.unpause(&row.id).await
        {
            tracing::error!(machine = row.id, %error, "a machine that was half paused could not be let go");
        }
        let forget = Change::Forget(snapshot.id.clone());
        return continue_with(app, row, Input::HibernateFailed, forget).await;
    }
    match kept {
        Some(kept) if !snapshot.in_place => {
            snapshot::describe(&mut snapshot, &kept);
            snapshot.is_ready = true;
            let put = Change::Put(Box::new(snapshot));
            continue_with(app, row, Input::Hibernated, put).await
        }
        _ => settle(app, row, false, Change::Forget(snapshot.id)).await,
    }
}

/// What machines are hibernated as, or are being hibernated as, by machine.
async fn hibernated(app: &AppState) -> Result<HashMap<String, SnapshotRow>> {
    let all = app.store.read(snapshots::all).await?;
    Ok(all
        .into_iter()
        .filter(|row| row.kind == snapshot::Kind::Hibernate.as_str())
        .map(|row| (row.machine_id.clone(), row))
        .collect())
}

async fn answers(app: &AppState, id: &str) -> bool {
    hello(app, id).await.is_some()
}

/// A connection to a guest that answers soon.
pub(in crate::app) async fn hello(app: &AppState, id: &str) -> Option<GuestClient> {
    let hello = async {
        let io = app.engine.dial(id).await.ok()?;
        GuestClient::connect(io).await.ok()
    };
    tokio::time::timeout(HELLO, hello).await.ok()?
}

/// Ends a machine that lives although the record does not say so: whether it is gone.
async fn end_stray(app: &AppState, id: &str) -> Result<bool> {
    let wanted = id.to_owned();
    let row = app.store.read(move |db| rows::get(db, &wanted)).await?;
    tracing::warn!(
        machine = id,
        recorded = row.is_some(),
        "ending a machine that should not be alive"
    );
    if let Some(row) = row {
        let state = State::parse(&row.state).unwrap_or(State::Error);
        if let Ok(step) = lifecycle::step(state, Input::Alive) {
            owner::record_step(&app.store, &row, &step, None, None, Change::None).await?;
        }
    }
    let ended = app.engine.destroy(id).await;
    if let Err(error) = &ended {
        tracing::error!(machine = id, %error, "a stray machine could not be ended");
    }
    Ok(ended.is_ok())
}

/// Tells owners what the engine reports, until the server stops. Subscribe before [`adopt`], so that
/// nothing that ends in between is missed.
pub async fn watch_exits(app: AppState, mut exits: tokio::sync::broadcast::Receiver<MachineExit>) {
    loop {
        let exit = tokio::select! {
            exit = exits.recv() => exit,
            () = app.stopping.cancelled() => return,
        };
        match exit {
            Ok(MachineExit { id, reason }) => {
                let (loss, detail) = match reason {
                    ExitReason::GuestEnded(detail) => (Loss::GuestEnded, detail),
                    ExitReason::OutOfMemory => {
                        (Loss::OutOfMemory, "the machine ran out of memory".into())
                    }
                    ExitReason::EngineLost => {
                        (Loss::EngineLost, "the engine's helper ended".into())
                    }
                };
                tell(&app, &id, loss, detail).await;
            }
            Err(RecvError::Lagged(_)) => catch_up(&app).await,
            Err(RecvError::Closed) => return,
        }
    }
}

async fn tell(app: &AppState, id: &str, loss: Loss, detail: String) {
    if let Some(handle) = app.machines.get(id) {
        // An owner that is gone has recorded an end already.
        let _ = handle.inbox.send(owner::Message::Ended(loss, detail)).await;
    } else {
        pool::lost(app, id, &detail);
    }
}

/// Reports were missed: whoever runs by the record but not by the engine has ended.
async fn catch_up(app: &AppState) {
    let running: Vec<Arc<super::Handle>> = app
        .machines
        .all()
        .into_iter()
        .filter(|handle| handle.row().state == State::Running.as_str())
        .collect();
    let alive: HashSet<String> = match app.engine.list().await {
        Ok(list) => list.into_iter().map(|m| m.id).collect(),
        Err(error) => {
            tracing::error!(%error, "the engine's machines could not be listed");
            return;
        }
    };
    for id in pool::waiting(app).iter().filter(|id| !alive.contains(*id)) {
        pool::lost(app, id, "found gone after missed reports");
    }
    for handle in running.iter().filter(|h| !alive.contains(&h.id)) {
        let detail = "found gone after missed reports".to_owned();
        tell(app, &handle.id, Loss::GuestEnded, detail).await;
    }
}

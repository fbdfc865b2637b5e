//! Start-up and mishaps: bringing the record and what is alive together.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::StreamExt;
use nullspace_api::time;
use nullspace_engine::{ExitReason, MachineExit};
use nullspace_lifecycle::machine::{self as lifecycle, Input, Loss, State};
use nullspace_protocol::GuestClient;
use nullspace_store::machine::{self as rows, MachineRow};
use tokio::sync::broadcast::error::RecvError;

use super::owner;
use crate::{app::AppState, error::Result};

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
    let known: HashSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    let count = rows.len();
    let adopted: Vec<Result<()>> = futures_util::stream::iter(rows)
        .map(|row| {
            let alive = alive.contains(&row.id);
            adopt_one(app, row, alive)
        })
        .buffer_unordered(TOGETHER)
        .collect()
        .await;
    adopted.into_iter().collect::<Result<()>>()?;
    let strays: Vec<&String> = alive.difference(&known).collect();
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

async fn adopt_one(app: &AppState, mut row: MachineRow, alive: bool) -> Result<()> {
    let state = State::parse(&row.state).unwrap_or(State::Error);
    // One that was being created counts only if its guest answers.
    let alive = alive && (state != State::Creating || answers(app, &row.id).await);
    let input = if alive { Input::Alive } else { Input::Gone };
    let Ok(step) = lifecycle::step(state, input) else {
        tracing::error!(
            machine = row.id,
            state = row.state,
            "a machine is in a state that this version cannot continue"
        );
        return Ok(());
    };
    let next = owner::stepped(&row, &step, time::now());
    if next != row || !step.events.is_empty() {
        row = next;
        owner::record_step(&app.store, &row, &step, None, None).await?;
    }
    if step.state.has_ended() {
        if let Err(error) = app.engine.destroy(&row.id).await {
            tracing::error!(machine = row.id, %error, "what is left of a machine could not be ended");
        }
    } else {
        // A lowered limit must not end machines that live: those that are there always have a place.
        let place = app.machines.reserve(usize::MAX)?;
        owner::spawn(app, row, place, owner::Start::Adopt);
    }
    Ok(())
}

async fn answers(app: &AppState, id: &str) -> bool {
    let hello = async {
        let io = app.engine.dial(id).await.ok()?;
        GuestClient::connect(io).await.ok()
    };
    matches!(tokio::time::timeout(HELLO, hello).await, Ok(Some(_)))
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
            owner::record_step(&app.store, &row, &step, None, None).await?;
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
    for handle in running.iter().filter(|h| !alive.contains(&h.id)) {
        let detail = "found gone after missed reports".to_owned();
        tell(app, &handle.id, Loss::GuestEnded, detail).await;
    }
}

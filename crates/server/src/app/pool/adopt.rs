//! Start-up: pools go on with the machines that the server before this one left ready; what it was about is ended.

use std::collections::HashSet;

use futures_util::StreamExt;
use nullspace_store::pool::{self as rows, InstanceRow};
use tokio_util::sync::CancellationToken;

use super::{Instance, Phase, Pool, make};
use crate::{
    app::{AppState, machine},
    error::Result,
};

/// Machines that are looked at together.
const TOGETHER: usize = 32;

/// The machines that are pools'.
#[derive(Debug, Default)]
pub(in crate::app) struct Adopted {
    /// They have no record among the machines.
    pub(in crate::app) waiting: HashSet<String>,
    /// They have one, and perhaps not yet what is their own.
    pub(in crate::app) in_doubt: HashSet<String>,
}

/// Reads what pools there are, and takes over their machines.
///
/// # Errors
/// When the record cannot be read.
pub(in crate::app) async fn adopt(app: &AppState, alive: &HashSet<String>) -> Result<Adopted> {
    let (pools, instances) = app
        .store
        .read(|db| Ok::<_, nullspace_store::StoreError>((rows::list(db)?, rows::instances(db)?)))
        .await?;
    {
        let mut known = app.pools.lock();
        for row in pools {
            let id = row.id.clone();
            known.insert(
                id,
                Pool {
                    row,
                    ..Pool::default()
                },
            );
        }
    }
    let mut adopted = Adopted::default();
    for row in &instances {
        let id = row.machine_id.clone();
        match row.state.as_str() {
            "handed_out" => false,
            "claimed" => adopted.in_doubt.insert(id),
            _ => adopted.waiting.insert(id),
        };
    }
    futures_util::stream::iter(instances)
        .map(|row| {
            let alive = alive.contains(&row.machine_id);
            adopt_one(app, row, alive)
        })
        .buffer_unordered(TOGETHER)
        .collect::<Vec<Result<()>>>()
        .await
        .into_iter()
        .collect::<Result<()>>()?;
    Ok(adopted)
}

async fn adopt_one(app: &AppState, row: InstanceRow, alive: bool) -> Result<()> {
    let (id, pool_id) = (row.machine_id.clone(), row.pool_id.clone());
    let mut held = None;
    let phase = match row.state.as_str() {
        "claimed" | "handed_out" => Phase::Claimed,
        "ready" if alive => match machine::hello(app, &id).await {
            Some(guest) => {
                // A lowered limit must not end machines that live.
                held = Some((app.machines.reserve(usize::MAX)?, guest));
                Phase::Ready
            }
            None => Phase::Releasing,
        },
        _ => Phase::Releasing,
    };
    if let Some(pool) = app.pools.lock().get_mut(&pool_id) {
        let instance = Instance {
            row,
            phase,
            held,
            stop: CancellationToken::new(),
        };
        pool.instances.insert(id.clone(), instance);
    }
    if phase == Phase::Releasing {
        app.tasks.spawn(make::end(app.clone(), pool_id, id));
    }
    Ok(())
}

//! Making the machines of a pool, and ending those that are not needed. Recorded first, done then: what is cut off is ended
//! by the next server.

use std::time::{Duration, Instant};

use nullspace_api::{pool::DegradedReason, time};
use nullspace_engine::EngineError;
use nullspace_protocol::{DefaultsRequest, GuestClient};
use nullspace_store::pool::{self as rows, InstanceRow};
use tokio_util::sync::CancellationToken;

use super::{Instance, Phase, Pool};
use crate::{
    app::{
        AppState,
        machine::{self, NewMachine, Place},
        template,
        tenant::{self, Adding},
    },
    error::{Error, Result},
};

/// Machines of pools that are made side by side: they are for later, and others wait now.
pub(super) const TOGETHER: usize = 2;
/// How long callers who wait for machines go first.
const COURTESY: Duration = Duration::from_secs(5);
/// How long nobody must have waited.
const MOMENT: Duration = Duration::from_millis(100);
/// How long a guest may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause after a machine that did not get ready; each next is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Pause before one that could not be ended is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Why there is no machine.
enum Failure {
    /// It is not needed any more.
    Stopped,
    /// The server stops; the next one ends what is there.
    Stopping,
    /// Its tenant may not have it.
    OverQuota(String),
    /// The engine has no place for it.
    NoHost(String),
    /// It did not get ready.
    Broken(String),
}

/// Knows a machine that is about to be made.
pub(super) fn put(pool: &mut Pool, row: InstanceRow) -> CancellationToken {
    let stop = CancellationToken::new();
    let instance = Instance {
        phase: Phase::Warming,
        held: None,
        stop: stop.clone(),
        row,
    };
    pool.instances
        .insert(instance.row.machine_id.clone(), instance);
    stop
}

/// Knows that a machine is not needed any more: whether it is for the caller to have it ended.
pub(super) fn let_go(pool: &mut Pool, id: &str) -> bool {
    let Some(one) = pool.instances.get_mut(id) else {
        return false;
    };
    let phase = one.phase;
    if matches!(phase, Phase::Warming | Phase::Ready) {
        one.phase = Phase::Releasing;
        pool.released += 1;
        one.stop.cancel();
    }
    phase == Phase::Ready
}

/// Makes one.
pub(super) async fn run(
    app: AppState,
    row: InstanceRow,
    new: NewMachine,
    place: Place,
    stop: CancellationToken,
) {
    let (id, pool_id) = (row.machine_id.clone(), row.pool_id.clone());
    let made = make(&app, row, new, &stop).await;
    let failure = match made {
        Ok(guest) => match ready(&app, &pool_id, &id, (place, guest)).await {
            true => return,
            false => Failure::Stopped,
        },
        Err(failure) => failure,
    };
    let (reason, text) = match failure {
        Failure::Stopping => return,
        Failure::Stopped => return end(app, pool_id, id).await,
        Failure::OverQuota(text) => (DegradedReason::QuotaExceeded, text),
        Failure::NoHost(text) => (DegradedReason::NoEligibleHosts, text),
        Failure::Broken(text) => (DegradedReason::ArtifactPrewarmFailed, text),
    };
    tracing::warn!(
        pool = pool_id,
        machine = id,
        reason = text,
        "a machine of a warm pool did not get ready"
    );
    if let Some(pool) = app.pools.lock().get_mut(&pool_id) {
        let pause = PAUSE.saturating_mul(1 << pool.failures.min(10));
        pool.failures = pool.failures.saturating_add(1);
        pool.failed_as = Some(reason);
        pool.not_before = Some(Instant::now() + pause.min(MAX_PAUSE));
        if let Some(one) = pool.instances.get_mut(&id) {
            one.phase = Phase::Releasing;
        }
    }
    end(app, pool_id, id).await;
}

async fn make(
    app: &AppState,
    row: InstanceRow,
    new: NewMachine,
    stop: &CancellationToken,
) -> Result<GuestClient, Failure> {
    let turn = async {
        let permit = app.pools.making.acquire().await;
        // Whoever waits for a machine goes first, and has a moment for its first command; unless it waits for this one.
        let is_waited_for = (app.pools.lock().get(&row.pool_id)).is_some_and(|p| p.waiting > 0);
        if !is_waited_for {
            let _ = tokio::time::timeout(COURTESY, app.machines.quiet(MOMENT)).await;
        }
        permit
    };
    let _permit = tokio::select! {
        permit = turn => permit,
        () = stop.cancelled() => return Err(Failure::Stopped),
        () = app.stopping.cancelled() => return Err(Failure::Stopping),
    };
    let id = row.machine_id.clone();
    let (runtime, tenant_id) = (new.runtime.clone(), new.tenant_id.clone());
    let broken = |error: Error| {
        Failure::Broken(match error.context {
            Some(context) => format!("{}: {context}", error.message),
            None => error.message,
        })
    };
    let spec = machine::pooled_spec(app, new, &id).map_err(broken)?;
    app.store
        .write(move |tx| {
            rows::insert_instance(tx, &row)?;
            tenant::within(tx, &tenant_id, Adding::Machine)
        })
        .await
        .map_err(|error: Error| match error.code {
            nullspace_api::error::code::QUOTA_EXCEEDED => Failure::OverQuota(error.message),
            _ => broken(error),
        })?;
    app.engine
        .create(&spec)
        .await
        .map_err(|error| match error {
            EngineError::Capacity(_) | EngineError::Unavailable(_) | EngineError::NoSpace(_) => {
                Failure::NoHost(error.to_string())
            }
            error => Failure::Broken(error.to_string()),
        })?;
    let up = async {
        let guest = connect(app, &id).await.map_err(broken)?;
        // One that cannot be given what is its own later is of no use.
        let told = guest.set_defaults(&DefaultsRequest::default()).await;
        told.map_err(|error| Failure::Broken(error.to_string()))?;
        let up = template::ready::up(&guest, &runtime).await;
        up.map_err(Failure::Broken)?;
        Ok(guest)
    };
    tokio::select! {
        up = up => up,
        () = stop.cancelled() => Err(Failure::Stopped),
        () = app.stopping.cancelled() => Err(Failure::Stopping),
    }
}

/// A connection to the guest of a machine of a pool.
pub(super) async fn connect(app: &AppState, id: &str) -> Result<GuestClient> {
    let connect = async {
        let io = app.engine.dial(id).await?;
        Ok::<_, Error>(GuestClient::connect(io).await?)
    };
    match tokio::time::timeout(ANSWER, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(Error::internal("the guest does not answer")),
    }
}

/// A machine is there: whether it is still needed.
async fn ready(app: &AppState, pool_id: &str, id: &str, held: (Place, GuestClient)) -> bool {
    let (wanted, now) = (id.to_owned(), time::now());
    let recorded = app
        .store
        .write(move |tx| rows::set_ready(tx, &wanted, now))
        .await;
    if !matches!(recorded, Ok(true)) {
        return false;
    }
    {
        let mut pools = app.pools.lock();
        let Some(pool) = pools.get_mut(pool_id) else {
            return false;
        };
        match pool.instances.get_mut(id) {
            Some(one) if one.phase == Phase::Warming => {
                one.phase = Phase::Ready;
                one.row.ready_at = Some(now);
                one.held = Some(held);
            }
            _ => return false,
        }
        pool.failures = 0;
        pool.failed_as = None;
        pool.not_before = None;
    }
    app.pools.poke();
    true
}

/// Ends one that nobody has, whatever it takes.
pub(super) async fn end(app: AppState, pool_id: String, id: String) {
    while let Err(error) = try_end(&app, &id).await {
        tracing::error!(machine = id, context = ?error.context, "a machine of a warm pool could not be ended; trying again");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            // The next server does it.
            () = app.stopping.cancelled() => return,
        }
    }
    if let Some(pool) = app.pools.lock().get_mut(&pool_id) {
        pool.instances.remove(&id);
    }
    app.pools.poke();
}

async fn try_end(app: &AppState, id: &str) -> Result<()> {
    let wanted = id.to_owned();
    app.store
        .write(move |tx| rows::release(tx, &wanted))
        .await?;
    app.engine.destroy(id).await?;
    let wanted = id.to_owned();
    app.store
        .write(move |tx| rows::delete_instance(tx, &wanted))
        .await?;
    Ok(())
}

/// The engine says that a machine ended.
pub(in crate::app) fn lost(app: &AppState, id: &str, detail: &str) {
    let mut found = None;
    for pool in app.pools.lock().values_mut() {
        if pool.instances.contains_key(id) {
            found = let_go(pool, id).then(|| pool.row.id.clone());
        }
    }
    if let Some(pool_id) = found {
        tracing::info!(
            pool = pool_id,
            machine = id,
            detail,
            "a machine of a warm pool ended by itself"
        );
        app.tasks.spawn(end(app.clone(), pool_id, id.to_owned()));
    }
}

/// Whether a machine is a pool's, and not handed out.
pub(in crate::app) fn has(app: &AppState, id: &str) -> bool {
    let pools = app.pools.lock();
    let mut found = pools.values().filter_map(|pool| pool.instances.get(id));
    found.any(|one| one.phase != Phase::Claimed)
}

/// The machines that are ready to be handed out.
pub(in crate::app) fn waiting(app: &AppState) -> Vec<String> {
    let pools = app.pools.lock();
    let all = pools.values().flat_map(|pool| pool.instances.iter());
    all.filter(|(_, one)| one.phase == Phase::Ready)
        .map(|(id, _)| id.clone())
        .collect()
}

//! Handing out machines of pools to those who ask for a machine.

use std::{sync::Arc, time::Duration};

use nullspace_api::{
    error::code,
    machine::{CreateMachineRequest, WarmPoolCheckout, WarmPoolMode},
    pool::{MAX_WAIT_MS, PoolState},
};
use nullspace_protocol::GuestClient;
use nullspace_store::{
    idempotency::{self, Claim, Outcome},
    machine::MachineRow,
    pool::{self as rows, PoolRow},
};
use tokio::time::Instant;

use super::{Phase, keeper, not_found, show};
use crate::{
    app::{
        App, AppState, Caller,
        machine::{self, Created, NewMachine, Pooled},
    },
    error::{Error, Kind, Result},
};

/// Machines of a pool that are tried for one request, should they turn out to be broken.
const TRIES: usize = 3;

/// What a request says of pools.
#[derive(Clone, Debug)]
pub struct Asked {
    mode: WarmPoolMode,
    wait_ms: Option<u64>,
    pool: Option<PoolRow>,
}

/// How a request was served.
enum Source {
    Ready,
    Cold(Option<String>),
    Bypassed,
}

impl Asked {
    fn answer(&self, source: Source) -> WarmPoolCheckout {
        let (word, reason) = match source {
            Source::Ready => ("ready_instance", None),
            Source::Cold(reason) => ("cold_create", reason),
            Source::Bypassed => ("bypassed", None),
        };
        WarmPoolCheckout {
            source: word.to_owned(),
            hit: word == "ready_instance",
            id: self.pool.as_ref().map(|pool| pool.id.clone()),
            mode: self.mode,
            wait_ms: self.wait_ms,
            reason,
        }
    }

    /// Of a machine that is made of a snapshot, which no pool has.
    ///
    /// # Errors
    /// `warm_pool_conflict` when a machine of a pool is required.
    pub fn of_snapshot(&self) -> Result<WarmPoolCheckout> {
        let reason = "no pool has machines that are made of a snapshot";
        match self.mode {
            WarmPoolMode::Require => Err(conflict(reason)),
            WarmPoolMode::Prefer => Ok(self.answer(Source::Cold(Some(reason.to_owned())))),
            WarmPoolMode::Bypass => Ok(self.answer(Source::Bypassed)),
        }
    }
}

fn conflict(reason: &str) -> Error {
    Error::conflict(code::WARM_POOL_CONFLICT, format!("warm_pool: {reason}"))
        .with_action("ask for what the pool makes, or use mode prefer")
}

fn unavailable(reason: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        code::WARM_POOL_UNAVAILABLE,
        format!("warm_pool: {reason}"),
    )
    .with_action("wait longer, scale the pool, or use mode prefer")
    .with_retry_after(1)
}

/// Reads what a request says of pools. What it leaves open about template and size is as the pool has it.
///
/// # Errors
/// `invalid_request`, `warm_pool_not_found`.
pub fn ask(
    app: &App,
    caller: &Caller,
    request: &mut CreateMachineRequest,
) -> Result<Option<Asked>> {
    let Some(wanted) = &request.warm_pool else {
        return Ok(None);
    };
    if let Some(wait_ms) = wanted.wait_ms.filter(|ms| *ms > MAX_WAIT_MS) {
        return Err(Error::invalid(format!(
            "warm_pool.wait_ms: {wait_ms} is over {MAX_WAIT_MS}"
        )));
    }
    let is_bypass = wanted.mode == Some(WarmPoolMode::Bypass);
    let there = wanted.id.as_deref().and_then(|id| app.pools.row(id));
    let is_own = |row: &PoolRow| row.tenant_id == *caller.tenant.id;
    let there = there.filter(|row| row.deleted_at.is_none() && is_own(row));
    let pool = match (wanted.id.as_deref(), there) {
        (_, Some(pool)) => Some(pool),
        _ if is_bypass => None,
        (Some(id), None) => return Err(not_found(id)),
        (None, None) => {
            return Err(Error::invalid(
                "warm_pool.id: is needed, unless mode is bypass",
            ));
        }
    };
    let mode = match (&pool, wanted.mode) {
        (_, Some(mode)) => mode,
        (Some(pool), None) => show::mode(pool),
        (None, None) => WarmPoolMode::default(),
    };
    let wait_ms = wanted.wait_ms;
    if let Some(pool) = &pool
        && request.snapshot_id.is_none()
    {
        let template = pool.resolved.as_ref().unwrap_or(&pool.template_ref);
        request.template.get_or_insert_with(|| template.clone());
        request.vcpus.get_or_insert(pool.vcpus);
        request.memory_mb.get_or_insert(pool.memory_mb);
        if request.disk_mb.is_none() {
            request.disk_mb = pool.disk_mb;
        }
    }
    Ok(Some(Asked {
        mode,
        wait_ms,
        pool,
    }))
}

/// Makes a machine, or hands one out.
///
/// # Errors
/// Those of [`machine::create`]; `warm_pool_unavailable` and `warm_pool_conflict` when one of a pool is required.
pub async fn create_machine(
    app: &AppState,
    new: NewMachine,
    claim: Option<Claim>,
    asked: Option<Asked>,
) -> Result<(Arc<MachineRow>, Option<WarmPoolCheckout>)> {
    let Some(asked) = asked else {
        return Ok((row(machine::create(app, new, claim).await?), None));
    };
    let pool = match (&asked.pool, asked.mode) {
        (Some(pool), WarmPoolMode::Prefer | WarmPoolMode::Require) => pool.id.clone(),
        _ => {
            let made = row(machine::create(app, new, claim).await?);
            return Ok((made, Some(asked.answer(Source::Bypassed))));
        }
    };
    if is_repeated(app, claim.clone()).await? {
        let made = row(machine::create(app, new, claim).await?);
        let source = source_of(app, &made.id).await?;
        return Ok((made, Some(asked.answer(source))));
    }
    let reason = match check_out(app, &pool, &new, &claim, &asked).await? {
        Ok((made, source)) => return Ok((made, Some(asked.answer(source)))),
        Err(reason) => reason,
    };
    let made = row(machine::create(app, new, claim).await?);
    Ok((made, Some(asked.answer(Source::Cold(Some(reason))))))
}

fn row(created: Created) -> Arc<MachineRow> {
    match created {
        Created::New(row) | Created::Replayed(row) => row,
    }
}

/// Whether a request was made before with its key: then it gets what it got, whatever the pool has.
async fn is_repeated(app: &App, claim: Option<Claim>) -> Result<bool> {
    let Some(claim) = claim else { return Ok(false) };
    let found = app
        .store
        .read(move |db| idempotency::look_up(db, &claim, machine::salted))
        .await?;
    Ok(found != Outcome::New)
}

async fn source_of(app: &App, id: &str) -> Result<Source> {
    let wanted = id.to_owned();
    let pool = app
        .store
        .read(move |db| rows::claimed_from(db, &wanted))
        .await?;
    Ok(match pool {
        Some(_) => Source::Ready,
        None => Source::Cold(None),
    })
}

/// Hands out a machine, or says why there is none: that is an error where one is required.
async fn check_out(
    app: &AppState,
    pool: &str,
    new: &NewMachine,
    claim: &Option<Claim>,
    asked: &Asked,
) -> Result<Result<(Arc<MachineRow>, Source), String>> {
    let is_required = asked.mode == WarmPoolMode::Require;
    if let Some(reason) = other(app, pool, new).await? {
        return match is_required {
            true => Err(conflict(&reason)),
            false => Ok(Err(reason)),
        };
    }
    let wait = Duration::from_millis(asked.wait_ms.unwrap_or(0));
    let deadline = Instant::now() + wait;
    let mut reason = String::new();
    for _ in 0..TRIES {
        let pooled = match take(app, pool, new, deadline).await {
            Ok(pooled) => pooled,
            Err(why) => {
                reason = why;
                break;
            }
        };
        let (id, guest) = (pooled.id.clone(), pooled.guest.clone());
        let created = machine::check_out(app, new.clone(), pooled, claim.clone()).await;
        app.pools.wake.notify_one();
        match created {
            Ok(Created::New(row)) => return Ok(Ok((row, Source::Ready))),
            Ok(Created::Replayed(row)) => {
                put_back(app, pool, &id, guest).await?;
                let source = source_of(app, &row.id).await?;
                return Ok(Ok((row, source)));
            }
            Err(error) => {
                put_back(app, pool, &id, guest).await?;
                match error.kind {
                    // The engine cannot give a machine later what it is to have.
                    Kind::NotImplemented => {
                        reason = error.message;
                        break;
                    }
                    kind if kind.is_ours() => {
                        tracing::warn!(pool, machine = id, context = ?error.context, "a machine of a warm pool could not be handed out");
                        reason = error.message;
                    }
                    _ => return Err(error),
                }
            }
        }
    }
    match is_required {
        true => Err(unavailable(&reason)),
        false => Ok(Err(reason)),
    }
}

/// Why no machine of a pool can be what is asked for.
async fn other(app: &AppState, id: &str, new: &NewMachine) -> Result<Option<String>> {
    let mut pool = app.pools.row(id).ok_or_else(|| not_found(id))?;
    if pool.digest.as_ref() != Some(&new.template.digest) {
        // A tag may have moved a moment ago.
        let _alone = app.pools.editing.lock().await;
        keeper::look(app, id).await?;
        pool = app.pools.row(id).ok_or_else(|| not_found(id))?;
    }
    let Some(digest) = &pool.digest else {
        return Ok(None);
    };
    Ok(if *digest != new.template.digest {
        let made = pool.resolved.as_ref().unwrap_or(&pool.template_ref);
        Some(format!(
            "the pool makes machines of {made}, which is not what template {} means",
            new.template.name
        ))
    } else if pool.vcpus != new.vcpus || pool.memory_mb != new.memory_mb {
        Some(format!(
            "the pool makes machines with {} vcpus and {} MiB, not {} and {}",
            pool.vcpus, pool.memory_mb, new.vcpus, new.memory_mb
        ))
    } else if pool.disk_mb != new.disk_mb {
        Some("the pool makes machines with another disk_mb".to_owned())
    } else {
        None
    })
}

/// Counts a request that waits, until dropped.
struct Waiting<'a>(&'a AppState, &'a str);

impl<'a> Waiting<'a> {
    fn new(app: &'a AppState, pool: &'a str) -> Self {
        if let Some(pool) = app.pools.lock().get_mut(pool) {
            pool.waiting += 1;
        }
        app.pools.wake.notify_one();
        Self(app, pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.pools.lock().get_mut(self.1) {
            pool.waiting = pool.waiting.saturating_sub(1);
        }
    }
}

/// Takes a machine that is ready, and waits for one if there is none; or says why there is none.
async fn take(
    app: &AppState,
    pool: &str,
    new: &NewMachine,
    deadline: Instant,
) -> Result<Pooled, String> {
    let mut changed = app.pools.changed.subscribe();
    let mut waiting = None;
    loop {
        changed.mark_unchanged();
        let why = match take_now(app, pool, new) {
            Ok(pooled) => return Ok(pooled),
            Err((why, is_final)) if is_final || Instant::now() >= deadline => return Err(why),
            Err((why, _)) => why,
        };
        waiting.get_or_insert_with(|| Waiting::new(app, pool));
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
            () = app.stopping.cancelled() => return Err(why),
        }
    }
}

/// Takes the machine that has been ready for longest. If there is none, the second says whether waiting is of no use.
fn take_now(app: &App, id: &str, new: &NewMachine) -> Result<Pooled, (String, bool)> {
    let mut pools = app.pools.lock();
    let Some(pool) = pools.get_mut(id) else {
        return Err((format!("no warm pool {id}"), true));
    };
    if pool.state() != PoolState::Enabled {
        return Err((format!("the pool is {}", pool.row.state), true));
    }
    let one = pool
        .instances
        .values_mut()
        .filter(|one| {
            one.phase == Phase::Ready
                && one.row.digest == new.template.digest
                && one.row.vcpus == new.vcpus
                && one.row.memory_mb == new.memory_mb
        })
        .min_by_key(|one| one.row.ready_at);
    if let Some(one) = one
        && let Some((place, guest)) = one.held.take()
    {
        one.phase = Phase::Claimed;
        return Ok(Pooled {
            id: one.row.machine_id.clone(),
            place,
            guest,
        });
    }
    Err(("the pool has no machine ready".to_owned(), false))
}

/// One that was taken, and not handed out, is the pool's again.
async fn put_back(app: &AppState, pool: &str, id: &str, guest: GuestClient) -> Result<()> {
    if matches!(source_of(app, id).await?, Source::Ready) {
        return Ok(());
    }
    let place = app.machines.reserve(usize::MAX)?;
    if let Some(one) = app
        .pools
        .lock()
        .get_mut(pool)
        .and_then(|pool| pool.instances.get_mut(id))
        .filter(|one| one.phase == Phase::Claimed)
    {
        one.phase = Phase::Ready;
        one.held = Some((place, guest));
    }
    app.pools.poke();
    Ok(())
}

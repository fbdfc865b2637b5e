//! Looks after pools: whenever something happened, and every second while there are any.

use std::{sync::Arc, time::Duration};

use nullspace_api::{
    error::code,
    id,
    pool::{DegradedReason, PoolState, VersionPolicy},
    time,
};
use nullspace_store::pool::{InstanceRow, PoolRow};
use nullspace_templates::Layer;

use super::{Phase, decide, make, record, word};
use crate::{
    app::{AppState, machine::NewMachine, template},
    error::{Error, Kind, Result},
};

/// How often pools are looked at when nothing happens: what tags mean may change, and machines grow old.
const PACE: Duration = Duration::from_secs(1);

/// Keeps pools at what they should be, until the server stops.
pub async fn keep_up(app: AppState) {
    loop {
        let ids: Vec<String> = {
            let pools = app.pools.lock();
            let at_work = pools.values().filter(|pool| {
                pool.state() == PoolState::Enabled
                    || pool
                        .instances
                        .values()
                        .any(|one| one.phase != Phase::Claimed)
                    || pool.state() == PoolState::Draining
            });
            at_work.map(|pool| pool.row.id.clone()).collect()
        };
        for id in &ids {
            let _alone = app.pools.editing.lock().await;
            if let Err(error) = look(&app, id).await {
                tracing::warn!(pool = id, %error, context = ?error.context, "a warm pool could not be looked after");
            }
        }
        let pause = async {
            match ids.is_empty() {
                true => std::future::pending().await,
                false => tokio::time::sleep(PACE).await,
            }
        };
        tokio::select! {
            () = app.pools.wake.notified() => {}
            () = pause => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// Finds out what a pool's template means, decides, and begins what is to be done. The caller holds `editing`.
pub(super) async fn look(app: &AppState, id: &str) -> Result<()> {
    let Some(mut row) = app.pools.row(id) else {
        return Ok(());
    };
    let mut layer = None;
    let mut trouble = None;
    if row.state == PoolState::Enabled.as_str() {
        match template::meaning(app, &row.tenant_id, &reference(&row)?).await {
            Ok(meaning) => {
                layer = Some(meaning.layer.clone());
                if follow(&mut row, &meaning) {
                    row.updated_at = time::now();
                    tracing::info!(
                        pool = id,
                        generation = row.generation,
                        "a warm pool's template is another one now"
                    );
                    record(app, row.clone()).await?;
                }
            }
            Err(error) => trouble = Some(why(&error)),
        }
    }
    begin(app, id, layer, trouble);
    let is_empty = {
        let pools = app.pools.lock();
        pools.get(id).is_some_and(|pool| {
            pool.state() == PoolState::Draining
                && pool
                    .instances
                    .values()
                    .all(|one| one.phase == Phase::Claimed)
        })
    };
    if is_empty {
        row.state = PoolState::Disabled.as_str().to_owned();
        row.disabled_at = Some(time::now());
        row.updated_at = time::now();
        record(app, row).await?;
    }
    Ok(())
}

/// Decides what a pool does, and begins it.
fn begin(app: &AppState, id: &str, layer: Option<Arc<Layer>>, trouble: Option<DegradedReason>) {
    let mut makes = Vec::new();
    let mut ended = Vec::new();
    {
        let mut pools = app.pools.lock();
        let Some(pool) = pools.get_mut(id) else {
            return;
        };
        pool.trouble = trouble;
        pool.looked_at = Some(time::now());
        let seen = pool.seen();
        let plan = decide::decide(&pool.wanted(), &seen, time::now());
        pool.released_old = 0;
        for gone in plan.release {
            let is_old = seen.iter().any(|one| one.id == gone && !one.is_current);
            pool.released_old += u32::from(is_old);
            if make::let_go(pool, &gone) {
                ended.push(gone);
            }
        }
        for _ in 0..plan.make {
            let Some(layer) = layer.clone() else { break };
            let Ok(place) = app.machines.reserve(app.config.max_machines) else {
                pool.trouble = Some(DegradedReason::QuotaExceeded);
                break;
            };
            let row = InstanceRow {
                machine_id: id::new(id::MACHINE),
                pool_id: id.to_owned(),
                state: "warming".to_owned(),
                digest: layer.digest.clone(),
                vcpus: pool.row.vcpus,
                memory_mb: pool.row.memory_mb,
                created_at: time::now(),
                ready_at: None,
            };
            let new = NewMachine {
                vcpus: row.vcpus,
                memory_mb: row.memory_mb,
                ..NewMachine::from_template(app, &pool.row.tenant_id, layer)
            };
            let stop = make::put(pool, row.clone());
            makes.push((row, new, place, stop));
        }
    }
    for (row, new, place, stop) in makes {
        app.tasks
            .spawn(make::run(app.clone(), row, new, place, stop));
    }
    for gone in ended {
        app.tasks.spawn(make::end(app.clone(), id.to_owned(), gone));
    }
}

/// What a pool's template is looked up by.
fn reference(row: &PoolRow) -> Result<String> {
    if row.version_policy == word(&VersionPolicy::PinnedBuild) {
        return Ok(row.resolved.as_ref().unwrap_or(&row.template_ref).clone());
    }
    let tag = row.track_tag.as_deref().unwrap_or_default();
    let tagged = template::with_tag(&row.template_ref, tag)?;
    Ok(tagged.unwrap_or_else(|| row.template_ref.clone()))
}

/// Looks up what a pool's reference means, whatever it meant before.
///
/// # Errors
/// `template_not_found`. One that is being made is found out later.
pub(super) async fn resolve_anew(app: &AppState, row: &mut PoolRow) -> Result<()> {
    let reference = reference(&PoolRow {
        resolved: None,
        ..row.clone()
    })?;
    match template::meaning(app, &row.tenant_id, &reference).await {
        Ok(meaning) => {
            follow(row, &meaning);
            Ok(())
        }
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => Err(error),
        Err(_) => {
            row.resolved = None;
            row.build_id = None;
            row.digest = None;
            Ok(())
        }
    }
}

/// Makes a pool be about what its reference means now: whether that is something else than before.
fn follow(row: &mut PoolRow, meaning: &template::Meaning) -> bool {
    if row.resolved.as_ref() == Some(&meaning.exact)
        && row.digest.as_ref() == Some(&meaning.layer.digest)
    {
        return false;
    }
    if row.digest.is_some() {
        row.previous_resolved = row.resolved.take();
        row.previous_build_id = row.build_id.take();
        row.previous_digest = row.digest.take();
    }
    row.resolved = Some(meaning.exact.clone());
    row.build_id.clone_from(&meaning.build_id);
    row.digest = Some(meaning.layer.digest.clone());
    row.generation += 1;
    true
}

fn why(error: &Error) -> DegradedReason {
    match error.code {
        code::TEMPLATE_NOT_FOUND => DegradedReason::TemplateBuildUnavailable,
        _ => DegradedReason::ArtifactNotReady,
    }
}

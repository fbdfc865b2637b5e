//! A pool as the wire shows it.

use nullspace_api::{
    machine::WarmPoolMode,
    pool::{
        DegradedReason, PoolCounts, PoolHealth, PoolInfo, PoolResources, PoolState, RolloutCounts,
        RolloutIdentity, RolloutStatus, VersionPolicy,
    },
    time,
};
use nullspace_store::pool::PoolRow;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Instance, Phase, Pool};
use crate::app::App;

pub(super) fn info(app: &App, pool: &Pool) -> PoolInfo {
    let row = &pool.row;
    let policy = from_word(&row.version_policy).unwrap_or_default();
    let at = |at: Option<i64>| at.map(time::rfc3339);
    PoolInfo {
        id: row.id.clone(),
        name: row.name.clone(),
        template_ref: row.template_ref.clone(),
        state: pool.state(),
        min_ready: row.min_ready,
        max_ready: row.max_ready,
        resources: PoolResources {
            vcpus: row.vcpus,
            memory_mb: row.memory_mb,
            disk_mb: row.disk_mb,
        },
        status: counts(app, pool),
        degraded_reason: reason(pool),
        checkout_policy: mode(row),
        version_policy: policy,
        track_tag: row.track_tag.clone(),
        resolved_template: row.resolved.clone().unwrap_or_default(),
        resolved_template_build_id: row.build_id.clone(),
        runtime_artifact_id: row.digest.clone(),
        rollout_generation: row.generation,
        previous_resolved_template: row.previous_resolved.clone(),
        previous_resolved_template_build_id: row.previous_build_id.clone(),
        previous_runtime_artifact_id: row.previous_digest.clone(),
        rollout_status: rollout(app, pool, policy),
        idle_timeout_seconds: row.idle_timeout_secs,
        stale_after_seconds: row.stale_after_secs,
        labels: object(&row.labels),
        metadata: object(&row.metadata),
        created_at: time::rfc3339(row.created_at),
        updated_at: time::rfc3339(row.updated_at),
        enabled_at: at(row.enabled_at),
        disabled_at: at(row.disabled_at),
        drain_requested_at: at(row.drain_requested_at),
        last_reconciled_at: at(pool.looked_at),
        deleted_at: at(row.deleted_at),
    }
}

/// The mode of requests that name none.
pub(super) fn mode(row: &PoolRow) -> WarmPoolMode {
    from_word(&row.checkout_policy).unwrap_or_default()
}

/// How a pool does, in one word.
pub(super) fn health(info: &PoolInfo) -> PoolHealth {
    match info.state {
        PoolState::Draining => PoolHealth::Draining,
        PoolState::Disabled | PoolState::Deleted => PoolHealth::Unavailable,
        PoolState::Enabled if info.degraded_reason.is_some() => PoolHealth::Degraded,
        PoolState::Enabled if info.status.ready >= info.status.target => PoolHealth::Ready,
        PoolState::Enabled => PoolHealth::Warming,
    }
}

fn reason(pool: &Pool) -> Option<DegradedReason> {
    match pool.state() {
        PoolState::Enabled => pool.trouble.or(pool.failed_as),
        PoolState::Disabled => Some(DegradedReason::ControllerDisabled),
        PoolState::Draining => Some(DegradedReason::DrainActive),
        PoolState::Deleted => None,
    }
}

fn counts(app: &App, pool: &Pool) -> PoolCounts {
    let all = tally(app, pool, |_| true);
    let (wanted, now) = (pool.wanted(), time::now());
    let target = match wanted.is_enabled {
        true => pool.row.min_ready,
        false => 0,
    };
    let seen = pool.seen();
    let expired = seen.iter().filter(|one| one.is_stale(&wanted, now)).count();
    let missing = target.saturating_sub(all.ready + all.warming);
    PoolCounts {
        target,
        ready: all.ready,
        warming: all.warming,
        claimed: all.claimed,
        draining: all.draining,
        failed: all.failed,
        expired: u32::try_from(expired).unwrap_or(u32::MAX),
        unavailable: match reason(pool) {
            Some(_) => missing,
            None => 0,
        },
    }
}

fn rollout(app: &App, pool: &Pool, version_policy: VersionPolicy) -> RolloutStatus {
    let row = &pool.row;
    let current = |one: &Instance| pool.is_current(&one.row);
    let old = tally(app, pool, |one| !current(one));
    let key = row.digest.as_ref().map(|digest| {
        let text = format!("{digest} {} {}", row.vcpus, row.memory_mb);
        let hash = Sha256::digest(text.as_bytes());
        hash.iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    });
    RolloutStatus {
        version_policy,
        track_tag: row.track_tag.clone(),
        rollout_generation: row.generation,
        current_identity: RolloutIdentity {
            template: row.resolved.clone(),
            resolved_template_build_id: row.build_id.clone(),
            runtime_artifact_id: row.digest.clone(),
            warm_profile_key: key.clone(),
            create_fingerprint: key,
        },
        current_counts: tally(app, pool, current),
        observed_pool_counts: tally(app, pool, |_| true),
        old_ready_or_warming: old.ready + old.warming,
        old_ready_or_warming_released_this_tick: pool.released_old,
        updated_at: time::rfc3339(pool.looked_at.unwrap_or(row.updated_at)),
    }
}

fn tally(app: &App, pool: &Pool, which: impl Fn(&Instance) -> bool) -> RolloutCounts {
    let mut counts = RolloutCounts {
        failed: pool.failures,
        released: pool.released,
        ..RolloutCounts::default()
    };
    for one in pool.instances.values().filter(|one| which(one)) {
        match one.phase {
            Phase::Warming => counts.warming += 1,
            Phase::Ready => counts.ready += 1,
            Phase::Releasing => counts.draining += 1,
            Phase::Claimed if app.machines.get(&one.row.machine_id).is_some() => {
                counts.claimed += 1;
            }
            Phase::Claimed => {}
        }
    }
    counts
}

fn from_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(Value::String(word.to_owned())).ok()
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

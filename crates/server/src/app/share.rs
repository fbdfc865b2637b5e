//! Processors, shared by tenant: when they are all busy each tenant whose machines work gets as much as another, however many
//! machines it has.
//!
//! ```text
//!  every 2 s, if machines of two tenants run: who works? ──▶ share of each machine = 100 / machines of its tenant that work
//! ```
//! The kernel shares by machine: each has a group of its own, all beside each other. A level of groups per tenant would say the same
//! to it at once; but machines are prepared before it is known whose they will be, and moving processes costs a wait for all
//! processors. So what is said is said a moment later: a machine that is new has the usual share until then.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{
    App, AppState,
    machine::{self, Handle},
    metrics::{self, Age},
};

/// How often it is looked who works.
const TICK: Duration = Duration::from_secs(2);
/// What a machine has that nothing is said of.
const USUAL: u32 = 100;
/// What is taken for said of machines that were there before this server: an earlier one may have said anything.
const UNKNOWN: u32 = 0;
/// From what load on a machine counts as working, 100 being one processor.
const WORKS: f64 = 5.0;
/// Readings that others took are as good.
const AGE: Age = Age {
    fresh: Duration::from_millis(500),
    old: Duration::from_secs(10),
};

/// Says so until the server stops.
pub(crate) async fn keep_up(app: AppState) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let there = app.machines.all();
    let mut said: HashMap<_, _> = there
        .iter()
        .map(|handle| (handle.id.clone(), UNKNOWN))
        .collect();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = app.stopping.cancelled() => return,
        }
        let mut running = app.machines.all();
        // What sleeps in place keeps its group, and with it what was said; what hibernates comes back in a new one.
        running
            .retain(|handle| [machine::RUNNING, machine::PAUSED].contains(&&*handle.row().state));
        said.retain(|id: &String, _| running.iter().any(|handle| handle.id == *id));
        running.retain(|handle| handle.row().state == machine::RUNNING);
        let wanted = wanted(&app, &running, !said.is_empty()).await;
        for (id, share) in wanted {
            if said.get(&id).copied().unwrap_or(USUAL) == share {
                continue;
            }
            // One that ends at this moment needs none.
            if app.engine.set_share(&id, share).await.is_ok() {
                match share {
                    USUAL => said.remove(&id),
                    share => said.insert(id, share),
                };
            }
        }
    }
}

/// The share that each machine should have. Nothing is measured while all are of one tenant.
async fn wanted(app: &App, running: &[Arc<Handle>], is_said: bool) -> Vec<(String, u32)> {
    let mut tenants: BTreeMap<String, Vec<&Arc<Handle>>> = BTreeMap::new();
    for handle in running {
        let tenant = handle.row().tenant_id.clone();
        tenants.entry(tenant).or_default().push(handle);
    }
    if tenants.len() < 2 {
        let usual = running.iter().map(|handle| (handle.id.clone(), USUAL));
        return if is_said { usual.collect() } else { Vec::new() };
    }
    let mut wanted = Vec::new();
    for handles in tenants.into_values() {
        let mut working = 0;
        for handle in &handles {
            let load = metrics::sample(app, handle, AGE).await;
            working += usize::from(matches!(load, Ok(Some(load)) if load.cpu_percent >= WORKS));
        }
        let share = share(working);
        wanted.extend(handles.iter().map(|handle| (handle.id.clone(), share)));
    }
    wanted
}

/// The share of each machine of a tenant of which so many work.
fn share(working: usize) -> u32 {
    (USUAL / u32::try_from(working.max(1)).unwrap_or(u32::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_work_share_what_one_would_have() {
        let shares = [0, 1, 2, 7, 100, 1000].map(share);
        assert_eq!(shares, [100, 100, 50, 14, 1, 1]);
    }
}

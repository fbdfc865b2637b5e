//! Following the event log: where a stream begins, and what comes next.
//!
//! ```text
//!  subscribe ──▶ a place in the log ──read a stretch──▶ events ──▶ a later place ──▶ … ──▶ wait for a commit
//! ```
//! A stream is a place in the log and a filter, nothing else. The log is on disk and its places are the order of commits,
//! so nothing is missed, nothing comes twice, and a slow reader costs one stretch of memory.

use nullspace_api::event::Subscribe;
use nullspace_store::event::{self as rows, Filter, Stretch};

use super::{
    App, Caller,
    event::{Scope, Words},
};
use crate::error::{Error, Result};

/// Events that come first when nobody says how many.
const DEFAULT_REPLAY: u32 = 100;
/// The most that can be asked for. With `after_event_id` there is no limit: that would be a hole.
const MAX_REPLAY: u32 = 10_000;
/// Places of the log that are looked at in one go.
const SCAN: u32 = 2_000;
/// Events that are handed over in one go.
const HAND_OVER: u32 = 64;

/// Somebody who follows.
#[derive(Debug)]
pub(crate) struct Subscription {
    filter: Filter,
    /// Everything up to here was handed over.
    place: i64,
}

impl Subscription {
    /// Finds where it begins.
    ///
    /// # Errors
    /// `invalid_request`, with the filter named.
    pub(crate) async fn begin(
        app: &App,
        caller: &Caller,
        scope: &Scope,
        said: Subscribe,
    ) -> Result<Self> {
        let limit = said.replay_limit.unwrap_or(DEFAULT_REPLAY);
        if limit > MAX_REPLAY {
            return Err(Error::invalid(format!(
                "replay_limit: must be 0 to {MAX_REPLAY}"
            )));
        }
        let words = Words {
            audience: said.audience,
            machine_id: [said.machine_id, said.sandbox_id],
            snapshot_id: said.snapshot_id,
            operation: said.operation,
            status: said.status,
            ..Words::default()
        };
        let filter = Filter {
            metadata: said.metadata.unwrap_or_default(),
            ..words.filter(caller, scope)?
        };
        let last = app.store.read(rows::last).await?;
        let after = said.after_event_id.filter(|id| !id.is_empty());
        let place = match after {
            _ if said.live_only == Some(true) => last,
            Some(id) => {
                let place = app.store.read(move |db| rows::place_of(db, &id)).await?;
                place.unwrap_or(0)
            }
            None => newest(app, &filter, last, limit).await?,
        };
        Ok(Self { filter, place })
    }

    /// What comes next; call it again while there is more. What was not taken is handed over again.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub(crate) async fn next(&self, app: &App) -> Result<Stretch> {
        let (filter, place) = (self.filter.clone(), self.place);
        Ok(app
            .store
            .read(move |db| rows::after(db, &filter, place, SCAN, HAND_OVER))
            .await?)
    }

    /// A stretch was handed over.
    pub(crate) fn taken(&mut self, end: i64) {
        self.place = end;
    }
}

/// The place before the newest `limit` events.
async fn newest(app: &App, filter: &Filter, last: i64, limit: u32) -> Result<i64> {
    let (mut place, mut missing) = (last, limit);
    while place > 0 && missing > 0 {
        let filter = filter.clone();
        let (found, before) = app
            .store
            .read(move |db| rows::before(db, &filter, place, SCAN, missing))
            .await?;
        missing -= found;
        place = before;
    }
    Ok(place)
}

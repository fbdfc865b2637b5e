//! What a build said, and says.

use std::collections::VecDeque;

use nullspace_api::{
    template_build::{BuildLogEntry, BuildSnapshot},
    time,
};
use nullspace_store::{
    StoreError,
    template_build::{self as rows, BuildRow},
};
use tokio::sync::watch;

use super::{find, no_build, read, shown};
use crate::{
    app::{App, AppState},
    error::Result,
};

/// Entries of one answer.
const PAGE: u32 = 1000;

/// Where a build stands and what it said from an offset on.
///
/// # Errors
/// `template_build_not_found`.
pub async fn snapshot(app: &App, id: &str, offset: u64) -> Result<BuildSnapshot> {
    let wanted = id.to_owned();
    // One read: the state that is told never lags behind the entries.
    let found = app
        .store
        .read(move |db| {
            let Some((row, template)) = read(db, &wanted)? else {
                return Ok(None);
            };
            let log = rows::log(db, row.seq, offset, PAGE)?;
            Ok::<_, StoreError>(Some((row, template, log)))
        })
        .await?;
    let (row, template, log) = found.ok_or_else(|| no_build(id))?;
    let next_offset = log.last().map_or(offset, |(number, _, _)| number + 1);
    let entries = log.into_iter().map(|entry| told(&row, entry));
    Ok(BuildSnapshot {
        build: shown(app, &row, template.as_ref())?,
        entries: entries.collect(),
        next_offset,
    })
}

fn told(row: &BuildRow, (number, at, text): (u64, i64, String)) -> BuildLogEntry {
    let entry: BuildLogEntry = serde_json::from_str(&text).unwrap_or_default();
    BuildLogEntry {
        build_id: row.id.clone(),
        template_id: row.template_id.clone(),
        offset: number,
        timestamp: time::rfc3339(at),
        ..entry
    }
}

/// Follows what a build says.
#[derive(Debug)]
pub struct Follower {
    app: AppState,
    row: BuildRow,
    next: u64,
    waiting: VecDeque<BuildLogEntry>,
    follow: bool,
    told: Option<watch::Receiver<u64>>,
}

/// Begins to follow a build from an offset on; without `follow` only what is there now.
///
/// # Errors
/// `template_build_not_found`.
pub async fn follow(app: &AppState, id: &str, offset: u64, follow: bool) -> Result<Follower> {
    // Before the log is read: what is said in between is not missed.
    let told = app.templates.builds.get(id).map(|live| live.told.clone());
    let (row, _) = find(app, id).await?;
    Ok(Follower {
        app: app.clone(),
        row,
        next: offset,
        waiting: VecDeque::new(),
        follow,
        told,
    })
}

impl Follower {
    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn next(&mut self) -> Result<Option<BuildLogEntry>> {
        loop {
            if let Some(entry) = self.waiting.pop_front() {
                return Ok(Some(entry));
            }
            let (seq, from) = (self.row.seq, self.next);
            let log = self
                .app
                .store
                .read(move |db| rows::log(db, seq, from, PAGE))
                .await?;
            if let Some((last, _, _)) = log.last() {
                self.next = last + 1;
                let entries = log.into_iter().map(|entry| told(&self.row, entry));
                self.waiting.extend(entries);
                continue;
            }
            if !self.follow {
                return Ok(None);
            }
            let Some(told) = &mut self.told else {
                return Ok(None);
            };
            let next = self.next;
            if told.wait_for(|count| *count > next).await.is_err() {
                // It is over: one more look, for what came last.
                self.told = None;
            }
        }
    }
}

//! A machine's time limit, and the word before it.

use std::time::Duration;

use nullspace_api::time;
use nullspace_lifecycle::machine::{Input, State};
use nullspace_store::machine::MachineRow;
use tokio::time::Instant;

use super::Owner;
use crate::app::snapshot::By;

/// How long before the limit it is announced; less for limits under ten minutes.
const NOTICE: Duration = Duration::from_secs(60);
/// Until a machine that could not be hibernated at its limit is tried again. It runs meanwhile.
const AGAIN: Duration = Duration::from_secs(60);

/// When something is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock {
    notice: Option<Instant>,
    limit: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// To say that the limit is near.
    Notice,
    /// The limit.
    Limit,
}

impl Clock {
    /// Counts on what is recorded.
    ///
    /// From here on the host's clock may jump: what counts is the time that passes. A server that starts again has only the
    /// record to go by, and a clock that was set back while it was away must not make a limit longer.
    pub(super) fn set(row: &MachineRow) -> Self {
        let whole = row.timeout_ms.map_or(Duration::MAX, Duration::from_millis);
        let left = row.timeout_at.map(|at| {
            Duration::from_micros(u64::try_from(at - time::now()).unwrap_or(0)).min(whole)
        });
        let now = Instant::now();
        let limit = left.and_then(|left| now.checked_add(left));
        let notice = left
            .and_then(|left| left.checked_sub(NOTICE.min(whole / 10)))
            .and_then(|left| now.checked_add(left));
        Self { notice, limit }
    }

    /// Waits for what is due next; for ever if nothing is.
    pub(super) async fn next(&self) -> Due {
        match (self.notice, self.limit) {
            (Some(at), _) => {
                tokio::time::sleep_until(at).await;
                Due::Notice
            }
            (None, Some(at)) => {
                tokio::time::sleep_until(at).await;
                Due::Limit
            }
            (None, None) => std::future::pending().await,
        }
    }
}

impl Owner {
    /// Does what is due.
    pub(super) async fn time(&mut self, due: Due) {
        match due {
            Due::Notice => {
                self.clock.notice = None;
                // It changes nothing: a record that cannot be written now must not hold up the limit.
                let _ = self.step(Input::TimeLimitNear, None, None).await;
            }
            Due::Limit if self.row.timeout_action == "hibernate" => {
                if let Err(error) = self
                    .hibernate(Input::TimeLimitHibernate, By::default())
                    .await
                    && self.state() == State::Running
                {
                    tracing::error!(machine = self.row.id, code = error.code, context = ?error.context, "a machine could not be hibernated at its time limit; it runs on");
                    self.clock.limit = Instant::now().checked_add(AGAIN);
                }
            }
            Due::Limit => self.must(Input::TimeLimit, None).await,
        }
    }
}

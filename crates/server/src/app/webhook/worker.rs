//! Delivering to one webhook: a task of its own, so that a receiver that hangs holds up nobody else.
//!
//! ```text
//!             ┌── nothing is due: wait for a commit, a time, a change ◀─┐
//!  queue ──▶ the oldest ──POST──▶ 2xx: succeeded ──▶ the next ──────────┤
//!             ▲                   else: again, after a pause ───────────┘ (the later ones wait: order is kept)
//!             └── refused eight times: aside ──▶ the later ones go ahead
//! ```
//! What is due is read from the record each time. How an attempt went and that the next one begins are recorded together,
//! before it does. When the server ends at any point, what was begun is listed as interrupted, and attempted again.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nullspace_api::time;
use nullspace_store::{
    StoreError, Tx,
    event::EventRow,
    webhook::{self as rows, AttemptRow, DeliveryRow},
};
use reqwest::{Client, Url};
use ring::hmac;
use tokio_util::sync::CancellationToken;

use super::{
    address,
    attempt::{self, Letter, Outcome},
    open,
};
use crate::{
    app::{AppState, event},
    error::{Error, Result},
};

/// Deliveries that are read at once.
const BATCH: u32 = 32;
/// Attempts after which a delivery that the receiver refuses goes aside.
const ASIDE_AFTER: u32 = 8;
/// The longest pause between two attempts, in microseconds.
const LONGEST_PAUSE: i64 = 300 * 1_000_000;
/// Pause after the record could not be read or written.
const RETRY: Duration = Duration::from_secs(2);
/// What an attempt's failure is called when nobody knows how it went.
const INTERRUPTED: &str = "interrupted";
/// How long an attempt that is under way goes on when the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// What others hold of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    /// Ends it, with the attempt that is under way.
    pub(super) ended: CancellationToken,
    /// The webhook was changed: it is read again.
    pub(super) changed: Arc<tokio::sync::Notify>,
    /// Deliveries whose last attempt is under way, or over and not recorded yet.
    pub(super) under_way: UnderWay,
}

/// See [`Worker`].
pub(super) type UnderWay = Arc<Mutex<HashSet<i64>>>;

/// Starts delivering to a webhook.
pub(super) fn spawn(app: &AppState, client: Client, id: String) -> Worker {
    let worker = Worker {
        ended: CancellationToken::new(),
        changed: Arc::default(),
        under_way: Arc::default(),
    };
    let task = Task {
        app: app.clone(),
        client,
        id,
        changed: worker.changed.clone(),
        under_way: worker.under_way.clone(),
    };
    let ended = worker.ended.clone();
    app.tasks.spawn(async move {
        let stopping = task.app.stopping.clone();
        let stopped = async {
            stopping.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = task.run() => {}
            () = ended.cancelled() => {}
            () = stopped => {}
        }
    });
    worker
}

struct Task {
    app: AppState,
    client: Client,
    id: String,
    changed: Arc<tokio::sync::Notify>,
    under_way: UnderWay,
}

/// What a worker does next.
enum Next {
    /// There may be more.
    Again,
    Wait {
        /// For how long at most.
        pause: Option<Duration>,
        /// Whether a new event ends the wait.
        news: bool,
    },
}

/// The webhook as it is used.
struct Receiver {
    url: Url,
    key: hmac::Key,
}

impl Task {
    async fn run(self) {
        let mut told = self.app.store.events();
        while !self.app.stopping.is_cancelled() {
            told.mark_unchanged();
            let next = self.turn().await.unwrap_or_else(|error| {
                tracing::warn!(webhook = self.id, context = ?error.context, "deliveries could not be read or recorded; trying again");
                Next::Wait {
                    pause: Some(RETRY),
                    news: false,
                }
            });
            let Next::Wait { pause, news } = next else {
                continue;
            };
            let wait = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.changed.notified() => {}
                changed = told.changed(), if news => if changed.is_err() { return },
                () = self.app.stopping.cancelled() => return,
            }
        }
    }

    /// Does what is due.
    async fn turn(&self) -> Result<Next> {
        self.under_way().clear();
        let (id, now) = (self.id.clone(), time::now());
        let (webhook, next) = self
            .app
            .store
            .read(move |db| {
                let webhook = rows::get(db, &id)?;
                let next = rows::next(db, &id, now, LONGEST_PAUSE, BATCH)?;
                Ok::<_, Error>((webhook, next))
            })
            .await?;
        let Some(webhook) = webhook.filter(|webhook| webhook.enabled) else {
            return Ok(Next::Wait {
                pause: None,
                news: false,
            });
        };
        let until = |at: Option<i64>| at.map(|at| (at - now).clamp(0, LONGEST_PAUSE));
        // A clock that was set back makes nothing wait for longer than the longest pause.
        let is_due = |delivery: &DeliveryRow| {
            delivery
                .next_attempt_at
                .is_none_or(|at| at <= now || at - now > LONGEST_PAUSE)
        };
        let head = next.queued.first();
        let head_is_due = head.is_some_and(|(delivery, _)| is_due(delivery));
        if next.aside.is_empty() && !head_is_due {
            let waits = [
                until(head.and_then(|(delivery, _)| delivery.next_attempt_at)),
                until(next.aside_at),
            ];
            let wait = waits.into_iter().flatten().min();
            return Ok(Next::Wait {
                pause: wait.map(|us| Duration::from_micros(us.max(1).unsigned_abs())),
                // While the oldest waits for its next attempt, a new event changes nothing.
                news: head.is_none(),
            });
        }
        let receiver = Receiver {
            url: address::parse(&webhook.url).map_err(Error::internal)?,
            key: hmac::Key::new(
                hmac::HMAC_SHA256,
                &open(&self.app, &webhook).ok_or_else(|| {
                    Error::internal("keys/seal.key does not open the webhook's secret")
                })?,
            ),
        };
        // One at a time: if it hangs again, the others had their turn in between.
        let aside = next.aside.into_iter().take(1);
        let queued = next.queued.into_iter().filter(|_| head_is_due);
        // Later ones were never attempted, except after a time in which the order was another.
        let queued = queued.take_while(|(delivery, _)| is_due(delivery));
        let mut before = None;
        for (delivery, event) in aside.chain(queued) {
            if self.app.stopping.is_cancelled() {
                break;
            }
            let Some(begun) = self.begin(delivery, before.take()).await? else {
                break;
            };
            let outcome = self.send(&receiver, &begun.delivery, event).await;
            let goes_on = outcome.failure.is_none() || begun.delivery.aside;
            before = Some((begun, outcome));
            if !goes_on {
                break;
            }
        }
        if let Some(over) = before {
            let over = self.finished(over);
            self.app.store.write(move |tx| over.record(tx)).await?;
            self.under_way().clear();
        }
        Ok(Next::Again)
    }

    fn under_way(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that an attempt begins, and how the one before it went. Nothing if it is not to begin.
    async fn begin(
        &self,
        mut delivery: DeliveryRow,
        before: Option<(Begun, Outcome)>,
    ) -> Result<Option<Begun>> {
        let now = time::now();
        delivery.attempt_count += 1;
        delivery.last_attempt_at = Some(now);
        let attempt = AttemptRow {
            id: uuid::Uuid::now_v7().to_string(),
            number: delivery.attempt_count,
            attempted_at: now,
            duration_ms: 0,
            response_status: None,
            error_code: Some(INTERRUPTED.into()),
            error_message: Some("the server ended during this attempt; another one follows".into()),
        };
        let (seq, before) = (delivery.seq, before.map(|over| self.finished(over)));
        let begun = Begun {
            attempt: attempt.id.clone(),
            delivery: delivery.clone(),
        };
        self.under_way().insert(seq);
        let over = before.as_ref().map(|over| over.delivery.seq);
        let may = self
            .app
            .store
            .write(move |tx| {
                if let Some(over) = before {
                    over.record(tx)?;
                }
                rows::begun(tx, &delivery, &attempt)
            })
            .await?;
        let mut under_way = self.under_way();
        if let Some(over) = over {
            under_way.remove(&over);
        }
        if !may {
            under_way.remove(&seq);
        }
        Ok(may.then_some(begun))
    }

    async fn send(&self, receiver: &Receiver, delivery: &DeliveryRow, event: EventRow) -> Outcome {
        let event_id = event.id.clone();
        let letter = Letter {
            url: &receiver.url,
            key: &receiver.key,
            event_id: &event_id,
            delivery_id: &delivery.id,
            body: serde_json::to_vec(&event::info(event)).unwrap_or_default(),
        };
        let private = self.app.config.webhook_private_receivers;
        attempt::send(&self.client, letter, private).await
    }

    /// What is to be recorded of an attempt that is over.
    fn finished(&self, (begun, outcome): (Begun, Outcome)) -> Finished {
        let config = &self.app.config;
        let ended_at = time::now();
        let delivery = after(
            begun.delivery,
            &outcome,
            ended_at,
            micros(config.webhook_retry_pause_ms, 1_000),
            micros(config.webhook_give_up_secs, 1_000_000),
        );
        if delivery.state == "dead_letter" {
            tracing::warn!(
                webhook = self.id,
                delivery = delivery.id,
                "a delivery was given up"
            );
        }
        let (code, message) = outcome.failure.unzip();
        let attempt = AttemptRow {
            id: begun.attempt,
            number: delivery.attempt_count,
            attempted_at: outcome.at,
            duration_ms: outcome.duration_ms,
            response_status: outcome.status,
            error_code: code.map(str::to_owned),
            error_message: message,
        };
        Finished {
            delivery,
            attempt,
            ended_at,
        }
    }
}

/// An attempt that is under way.
struct Begun {
    delivery: DeliveryRow,
    /// Its id.
    attempt: String,
}

/// One that is over.
struct Finished {
    delivery: DeliveryRow,
    attempt: AttemptRow,
    ended_at: i64,
}

impl Finished {
    fn record(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        rows::attempted(tx, &self.delivery, &self.attempt, self.ended_at)
    }
}

fn micros(count: u64, each: i64) -> i64 {
    i64::try_from(count)
        .unwrap_or(i64::MAX)
        .saturating_mul(each)
}

/// A delivery after an attempt that was counted when it began. Times are in microseconds.
fn after(
    mut delivery: DeliveryRow,
    outcome: &Outcome,
    ended: i64,
    first_pause: i64,
    give_up: i64,
) -> DeliveryRow {
    delivery.last_attempt_at = Some(outcome.at);
    delivery.last_response_status = outcome.status;
    delivery.last_error = outcome.failure.as_ref().map(|(_, text)| text.clone());
    delivery.next_attempt_at = None;
    if outcome.failure.is_none() {
        delivery.state = "succeeded".into();
    } else if ended - delivery.created_at > give_up {
        delivery.state = "dead_letter".into();
    } else {
        let doublings = (delivery.attempt_count - 1).min(30);
        let pause = first_pause
            .saturating_mul(1 << doublings)
            .min(LONGEST_PAUSE);
        delivery.next_attempt_at = Some(ended.saturating_add(pause));
        delivery.aside |= delivery.attempt_count >= ASIDE_AFTER && outcome.is_refusal();
    }
    delivery
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn fresh() -> DeliveryRow {
        DeliveryRow {
            seq: 1,
            id: "d".into(),
            webhook_id: "w".into(),
            state: "queued".into(),
            aside: false,
            attempt_count: 0,
            created_at: 0,
            next_attempt_at: None,
            last_attempt_at: None,
            last_response_status: None,
            last_error: None,
        }
    }

    fn failed(at: i64, status: Option<u16>) -> Outcome {
        Outcome {
            at,
            duration_ms: 1,
            status,
            failure: Some(("http_status", "no".into())),
        }
    }

    /// A receiver that answers like this from the first attempt until three days are over.
    fn until_the_end(status: Option<u16>) -> (DeliveryRow, Vec<i64>) {
        let (mut delivery, mut times, mut now) = (fresh(), Vec::new(), 0);
        while delivery.state == "queued" {
            times.push(now);
            let outcome = failed(now, status);
            delivery.attempt_count += 1;
            delivery = after(delivery, &outcome, now, SECOND, 3 * 86_400 * SECOND);
            now = delivery.next_attempt_at.unwrap_or(now);
        }
        (delivery, times)
    }

    #[test]
    fn a_receiver_that_is_down_for_days_is_asked_until_it_is_back() {
        let (delivery, times) = until_the_end(None);
        assert_eq!(delivery.state, "dead_letter");
        assert!(!delivery.aside, "the later ones wait");
        let pauses: Vec<i64> = times.windows(2).map(|w| (w[1] - w[0]) / SECOND).collect();
        assert_eq!(&pauses[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert!(pauses[9..].iter().all(|pause| *pause == 300));
        assert!(*times.last().unwrap() > 3 * 86_400 * SECOND - 301 * SECOND);
        let (delivery, _) = until_the_end(Some(503));
        assert!(!delivery.aside, "a gateway says nothing about the event");
    }

    #[test]
    fn an_event_that_is_refused_lets_others_by() {
        let mut delivery = fresh();
        for number in 1..10 {
            let outcome = failed(0, Some(500));
            delivery.attempt_count += 1;
            delivery = after(delivery, &outcome, 0, SECOND, 86_400 * SECOND);
            assert_eq!(delivery.aside, number >= 8, "{number}");
        }
        let outcome = Outcome {
            failure: None,
            ..failed(0, Some(204))
        };
        let delivery = after(delivery, &outcome, 0, SECOND, 86_400 * SECOND);
        assert_eq!(
            (delivery.state.as_str(), delivery.last_error),
            ("succeeded", None)
        );
    }
}

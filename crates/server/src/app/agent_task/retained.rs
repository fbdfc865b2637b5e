//! Machines that are kept for a look inside: their end is announced, and comes.

use std::time::Duration;

use nullspace_api::{error::code, time};
use nullspace_lifecycle::run::Event;
use nullspace_store::{
    StoreError,
    agent_log::NewLog,
    agent_run::{self as runs, RunRow},
    agent_service as services,
};

use super::advance;
use crate::{
    app::{AppState, agent_log, machine as machines},
    error::{Error, Result},
};

/// How long before its end the log says so; half of the time for a machine that is kept shortly.
const NOTICE: Duration = Duration::from_secs(60);

/// Lets the machine of a run that has ended go: at once, or at the time until which it is kept.
pub(in crate::app) async fn release(app: &AppState, run: &RunRow, machine_id: &str) {
    let now = time::now();
    let left = run
        .retained_until
        .map(|until| u64::try_from((until - now) / 1000).unwrap_or(0));
    let done: Result<()> = match left {
        Some(left) if left > 0 => {
            announce(app, run.clone(), machine_id.to_owned());
            machines::set_time_limit(app, machine_id, Some(left), None, None)
                .await
                .map(drop)
        }
        _ => machines::destroy(app, machine_id, None).await.map(drop),
    };
    if let Err(error) = done {
        let Error { code, context, .. } = error;
        if !matches!(code, code::MACHINE_NOT_READY | code::MACHINE_NOT_FOUND) {
            tracing::warn!(
                machine = machine_id,
                code,
                ?context,
                "the machine of a run could not be let go"
            );
        }
    }
}

/// The event of a machine that is kept.
pub(super) fn kept(machine_id: &str, until: i64) -> NewLog {
    let message = format!(
        "machine {machine_id} is kept until {}",
        time::rfc3339(until)
    );
    news("machine_retained", message)
}

fn news(event_type: &'static str, message: String) -> NewLog {
    let event = Event {
        event_type,
        is_error: false,
        failure_phase: None,
    };
    agent_log::news(event, message, None, true)
}

/// Says in the log, some time before, that a machine that was kept is about to end. Called when it is kept, and by a
/// server that starts again.
pub(in crate::app) fn announce(app: &AppState, run: RunRow, machine_id: String) {
    let (Some(until), Some(ended)) = (run.retained_until, run.completed_at) else {
        return;
    };
    let notice = i64::try_from(NOTICE.as_micros()).unwrap_or(0);
    let at = until - notice.min((until - ended) / 2);
    let Ok(wait) = u64::try_from(at - time::now()) else {
        // It was said by a server before this one.
        return;
    };
    let app = app.clone();
    app.tasks.clone().spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_micros(wait)) => {}
            () = app.stopping.cancelled() => return,
        }
        let lives = app
            .machines
            .get(&machine_id)
            .is_some_and(|handle| handle.row().state == "running");
        if !lives {
            return;
        }
        let message = format!("machine {machine_id} is ended at {}", time::rfc3339(until));
        let event = news("machine_expiring", message);
        let (seq, service) = (run.seq, run.service_id.clone());
        let said = app
            .store
            .write(move |tx| match &service {
                Some(service) => services::take_log(tx, service, &[event], 0),
                None => runs::append_late(tx, seq, &[event]),
            })
            .await;
        match said {
            Ok(count) => {
                let live = run.service_id.and_then(|id| app.agents.services.get(&id));
                if let Some(live) = live {
                    advance(&live.log, count);
                }
            }
            Err(error) => {
                let error: StoreError = error;
                tracing::warn!(machine = machine_id, %error, "an end could not be announced");
            }
        }
    });
}

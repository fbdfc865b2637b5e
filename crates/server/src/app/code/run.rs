//! Runs: executions that nobody has to wait for.
//!
//! ```text
//!  create ──▶ record `queued` ──▶ bridge takes it ──▶ answer
//!                                   └─ a follower: started ──▶ `running`, end ──▶ `succeeded`, `failed`, `cancelled`
//! ```
//! The bridge keeps what a run says until it is on record here, so a server that starts anew follows it from its beginning
//! and misses nothing. One that the machine does not know any more failed, and its record says why.

use std::time::Duration;

use nullspace_api::{
    code::{
        CodeRun, CodeRunStatus, CreateCodeRunRequest, Execution, ExecutionEvent, ListCodeRunsQuery,
    },
    error::code,
    id,
    page::CursorPage,
    time,
};
use nullspace_lifecycle::machine::State;
use nullspace_store::code::{self as rows, ContextRow, RunRow};

use super::{
    bridge::{self, Op, Outcome},
    execution::{End, Running, Step},
};
use crate::{
    app::{App, AppState, agent, machine},
    error::{Error, Result},
};

/// How long a run is remembered, in microseconds.
const LIFETIME: i64 = 7 * 24 * 3600 * 1_000_000;
/// What is kept of what it gave, in bytes; results that come later are left out.
const MAX_EXECUTION: usize = 4 << 20;
/// Pause before a run is looked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// Begins a run. When this answers it is on record and in its context's queue.
///
/// # Errors
/// As [`super::execute`].
pub async fn create(
    app: &AppState,
    machine_id: &str,
    request: CreateCodeRunRequest,
) -> Result<CodeRun> {
    let code = super::checked(request.code, request.envs, request.timeout)?;
    super::running_machine(app, machine_id).await?;
    let context = super::find(app, machine_id, &request.context_id).await?;
    let now = time::now();
    let row = RunRow {
        id: id::new(id::CODE_RUN),
        machine_id: machine_id.to_owned(),
        context_id: context.id.clone(),
        status: CodeRunStatus::Queued.as_str().to_owned(),
        timeout_secs: code.timeout,
        created_at: now,
        expires_at: now.saturating_add(LIFETIME),
        ..RunRow::default()
    };
    let recording = row.clone();
    app.store
        .write(move |tx| rows::insert_run(tx, &recording))
        .await?;
    let run = row.id.clone();
    let handed = super::ask(app, &context, |context| Op::Run { run, context, code }).await;
    if let Err(error) = handed {
        let reason = format!("it did not reach the machine: {}", error.message);
        ended(app, &row.id, CodeRunStatus::Failed, None, Some(reason)).await?;
        return Err(error);
    }
    app.tasks.spawn(follow(app.clone(), row.clone()));
    Ok(info(row))
}

/// One run, also of a machine that ended.
///
/// # Errors
/// `machine_not_found`, `not_found`.
pub async fn get(app: &App, machine_id: &str, id: &str) -> Result<CodeRun> {
    machine::get(app, machine_id).await?;
    stored(app, machine_id, id).await.map(info)
}

async fn stored(app: &App, machine_id: &str, id: &str) -> Result<RunRow> {
    let (machine, wanted) = (machine_id.to_owned(), id.to_owned());
    app.store
        .read(move |db| rows::run(db, &machine, &wanted))
        .await?
        .ok_or_else(|| {
            Error::not_found(
                code::NOT_FOUND,
                format!("no code run {id:?} of this machine"),
            )
        })
}

/// Runs of a machine, newest first.
///
/// # Errors
/// `machine_not_found`, `invalid_request`.
pub async fn list(
    app: &App,
    machine_id: &str,
    query: ListCodeRunsQuery,
) -> Result<CursorPage<CodeRun>> {
    machine::get(app, machine_id).await?;
    let limit = agent::limit(query.limit)?;
    let words = ["queued", "running", "succeeded", "failed", "cancelled"];
    let filter = rows::RunFilter {
        machine_id: machine_id.to_owned(),
        status: agent::word("status", query.status, &words)?,
        context_id: query.context_id.filter(|id| !id.is_empty()),
        before: agent::cursor(query.cursor.as_deref())?,
        limit: limit + 1,
    };
    let mut rows = app.store.read(move |db| rows::runs(db, &filter)).await?;
    let next_cursor = agent::cut(&mut rows, limit, |row| row.seq);
    Ok(CursorPage {
        items: rows.into_iter().map(info).collect(),
        next_cursor,
    })
}

/// Cancels a run: one that waits has ended with that, one that runs is interrupted. One that ended stays as it is.
///
/// # Errors
/// `machine_not_found`, `not_found`, and those of [`machine::guest`].
pub async fn cancel(app: &App, machine_id: &str, id: &str) -> Result<CodeRun> {
    machine::get(app, machine_id).await?;
    let row = stored(app, machine_id, id).await?;
    if CodeRunStatus::parse(&row.status).is_none_or(CodeRunStatus::has_ended) {
        return Ok(info(row));
    }
    let wanted = id.to_owned();
    app.store
        .write(move |tx| rows::run_cancelling(tx, &wanted, time::now()))
        .await?;
    if let Some(mut bridge) = bridge::find(app, machine_id).await? {
        match bridge.ask(&Op::Cancel { run: id.to_owned() }).await {
            Ok(reply) if reply.was.as_deref() == Some("queued") => {
                ended(app, id, CodeRunStatus::Cancelled, None, None).await?;
            }
            Ok(_) => {}
            // Whoever follows it finds that out, too, and says so.
            Err(error) if error.code == code::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
    }
    stored(app, machine_id, id).await.map(info)
}

/// Follows every run that has not ended. Called once, at start.
pub(super) async fn resume_all(app: &AppState) -> Result<()> {
    for row in app.store.read(rows::open_runs).await? {
        app.tasks.spawn(follow(app.clone(), row));
    }
    Ok(())
}

/// Follows a run to its end, whatever happens to the connection; a server that stops leaves it to the next one.
async fn follow(app: AppState, row: RunRow) {
    loop {
        let outcome = tokio::select! {
            outcome = attempt(&app, &row) => outcome,
            () = app.stopping.cancelled() => return,
        };
        match outcome {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(run = row.id, error = error.message, context = ?error.context, "a code run could not be followed; trying again");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

/// Answers whether the run ended.
async fn attempt(app: &AppState, row: &RunRow) -> Result<bool> {
    let fail = |reason: &str| {
        let reason = reason.to_owned();
        async move {
            ended(app, &row.id, CodeRunStatus::Failed, None, Some(reason)).await?;
            Ok(true)
        }
    };
    let state = match machine::get(app, &row.machine_id).await {
        Ok(machine) => State::parse(&machine.state),
        Err(error) if error.code == code::MACHINE_NOT_FOUND => None,
        Err(error) => return Err(error),
    };
    if state.is_none_or(State::has_ended) {
        return fail("the machine ended").await;
    }
    let unknown = "what ran it in the machine ended, or the server did before the machine had it";
    let Some(mut bridge) = bridge::find(app, &row.machine_id).await? else {
        return fail(unknown).await;
    };
    match bridge
        .ask(&Op::Attach {
            run: row.id.clone(),
        })
        .await
    {
        Ok(_) => {}
        Err(error) if error.code == code::NOT_FOUND => return fail(unknown).await,
        Err(error) => return Err(error),
    }
    let context = ContextRow {
        id: row.context_id.clone(),
        machine_id: row.machine_id.clone(),
        ..ContextRow::default()
    };
    let mut running = Running::new(app.clone(), context, Some(row.id.clone()), bridge);
    let mut collected = Collected::default();
    loop {
        match running.next().await {
            Step::Started => {
                let id = row.id.clone();
                app.store
                    .write(move |tx| rows::run_started(tx, &id, time::now()))
                    .await?;
            }
            Step::Event(event) => collected.add(event),
            Step::Ended(End::Lost) => return Ok(false),
            Step::Ended(End::Told(outcome)) => {
                let status = match outcome {
                    Outcome::Ok => CodeRunStatus::Succeeded,
                    Outcome::Error => CodeRunStatus::Failed,
                    Outcome::Cancelled => CodeRunStatus::Cancelled,
                };
                ended(app, &row.id, status, Some(collected.finish()), None).await?;
                // It is on record: the machine need not keep it. If this is lost it goes with the machine.
                if let Ok(Some(mut bridge)) = bridge::find(app, &row.machine_id).await {
                    let _ = bridge
                        .ask(&Op::Forget {
                            run: row.id.clone(),
                        })
                        .await;
                }
                return Ok(true);
            }
        }
    }
}

async fn ended(
    app: &App,
    id: &str,
    status: CodeRunStatus,
    execution: Option<Execution>,
    reason: Option<String>,
) -> Result<()> {
    let id = id.to_owned();
    let execution = execution
        .map(|execution| serde_json::to_string(&execution))
        .transpose()
        .map_err(|e| Error::internal(format!("the result of a code run: {e}")))?;
    app.store
        .write(move |tx| {
            rows::run_ended(
                tx,
                &id,
                status.as_str(),
                execution.as_deref(),
                reason.as_deref(),
                time::now(),
            )
        })
        .await?;
    Ok(())
}

/// What a run gave, as far as there is room for it.
#[derive(Debug, Default)]
struct Collected {
    execution: Execution,
    size: usize,
    left_out: u64,
}

impl Collected {
    fn add(&mut self, event: ExecutionEvent) {
        let size = serde_json::to_vec(&event).map_or(0, |text| text.len());
        let must = matches!(
            event,
            ExecutionEvent::Error(_) | ExecutionEvent::NumberOfExecutions { .. }
        );
        if self.size + size > MAX_EXECUTION && !must {
            self.left_out += 1;
            return;
        }
        self.size += size;
        self.execution.add(event);
    }

    fn finish(mut self) -> Execution {
        if self.left_out > 0 {
            self.execution.logs.stderr.push(format!(
                "\n[nullspace: {} outputs over {} MiB were not kept]\n",
                self.left_out,
                MAX_EXECUTION >> 20
            ));
        }
        self.execution
    }
}

fn info(row: RunRow) -> CodeRun {
    CodeRun {
        id: row.id,
        sandbox_id: row.machine_id.clone(),
        machine_id: row.machine_id,
        context_id: row.context_id,
        status: CodeRunStatus::parse(&row.status).unwrap_or(CodeRunStatus::Failed),
        timeout_secs: row.timeout_secs,
        created_at: time::rfc3339(row.created_at),
        started_at: row.started_at.map(time::rfc3339),
        completed_at: row.completed_at.map(time::rfc3339),
        cancel_requested_at: row.cancel_requested_at.map(time::rfc3339),
        expires_at: time::rfc3339(row.expires_at),
        execution: row
            .execution
            .and_then(|text| serde_json::from_str(&text).ok()),
        failure_reason: row.failure_reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_run_gives_is_bounded() {
        let mut collected = Collected::default();
        for _ in 0..100 {
            collected.add(ExecutionEvent::Stdout {
                text: "x".repeat(64 << 10),
                timestamp: 0,
            });
        }
        collected.add(ExecutionEvent::NumberOfExecutions { execution_count: 7 });
        let kept = collected.finish();
        let size: usize = kept.logs.stdout.iter().map(String::len).sum();
        assert!(size > MAX_EXECUTION / 2 && size <= MAX_EXECUTION, "{size}");
        assert!(kept.logs.stderr[0].contains("not kept") && kept.execution_count == Some(7));
    }
}

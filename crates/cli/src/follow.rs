//! The log of a run or a service as it grows, together with its status.
//!
//! A server that can hold back an empty page until a line comes is asked to; one that cannot answers at once and is
//! asked again after a pause. A server that goes away for a while (an upgrade, a crash) is waited for: the cursor says
//! where to go on, so nothing is lost or shown twice.

use std::time::{Duration, Instant};

use nullspace_api::agent::{LogEvent, LogsQuery, Run};
use nullspace_client::agents::{Service, Target, is_terminal};
use nullspace_client::{Client, Error};

use crate::error::CliError;

/// How long the server may hold back an empty page.
const WAIT: Duration = Duration::from_secs(20);
/// How long a server that went away is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run or a service as it is now.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Run(Box<Run>),
    Service(Box<Service>),
}

impl State {
    pub(crate) fn status(&self) -> &str {
        match self {
            Self::Run(run) => &run.status,
            Self::Service(service) => &service.status,
        }
    }

    /// Until when the machine is kept, if it is.
    pub(crate) fn retained_until(&self) -> Option<&str> {
        match self {
            Self::Run(run) => run.retained_until.as_deref(),
            Self::Service(service) => service.retained_until.as_deref(),
        }
    }
}

/// What was seen while following.
pub(crate) enum Seen<'a> {
    /// A line of the log.
    Line(&'a LogEvent),
    /// Another status than before.
    State(&'a State),
    /// The server does not answer; it is asked again.
    Lost(&'a Error),
}

/// The state of a target.
pub(crate) async fn state(
    client: &Client,
    deployment: &str,
    target: &Target,
) -> Result<State, Error> {
    Ok(match target {
        Target::Run(id) => State::Run(Box::new(client.get_run(deployment, id).await?)),
        Target::Service(id) => State::Service(Box::new(client.get_service(deployment, id).await?)),
    })
}

/// Shows every line from where `query` begins and every change of status, until the target has ended and its log is
/// read to the end. Gives the state at the end.
pub(crate) async fn follow(
    client: &Client,
    deployment: &str,
    target: &Target,
    mut query: LogsQuery,
    poll: Duration,
    show: &mut dyn FnMut(Seen<'_>) -> Result<(), CliError>,
) -> Result<State, CliError> {
    let mut status = String::new();
    let mut lost: Option<Instant> = None;
    let mut ended = false;
    loop {
        // Of a target that has ended nothing more comes, so there is nothing to wait for.
        query.wait_ms = (!ended).then_some(WAIT.as_millis() as u64);
        let asked = Instant::now();
        let page = match client.get_logs(deployment, target, &query).await {
            Ok(page) => page,
            Err(error) => {
                wait_for_server(&mut lost, error, show).await?;
                continue;
            }
        };
        let waited = asked.elapsed();
        for event in &page.events {
            show(Seen::Line(event))?;
        }
        query.tail = None;
        match page.next_cursor.filter(|cursor| !cursor.is_empty()) {
            Some(cursor) => query.cursor = Some(cursor),
            // Without a cursor the only way on is to count.
            None => query.offset = Some(query.offset.unwrap_or(0) + page.events.len() as u64),
        }
        let now = match state(client, deployment, target).await {
            Ok(now) => now,
            Err(error) => {
                wait_for_server(&mut lost, error, show).await?;
                continue;
            }
        };
        lost = None;
        if now.status() != status {
            status = now.status().to_owned();
            show(Seen::State(&now))?;
        }
        if page.events.is_empty() {
            if ended {
                return Ok(now);
            }
            if !is_terminal(&status) && waited < poll {
                tokio::time::sleep(poll - waited).await;
            }
        }
        ended = is_terminal(&status);
    }
}

/// Pauses before another attempt if the server may come back.
async fn wait_for_server(
    lost: &mut Option<Instant>,
    error: Error,
    show: &mut dyn FnMut(Seen<'_>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let may_pass = match &error {
        Error::Transport { .. } => true,
        Error::Api(api) => matches!(api.status, 502..=504) || api.code == "shutting_down",
        _ => false,
    };
    if !may_pass || lost.is_some_and(|since| since.elapsed() > PATIENCE) {
        return Err(error.into());
    }
    // Told once, however long it takes.
    if lost.is_none() {
        show(Seen::Lost(&error))?;
        *lost = Some(Instant::now());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

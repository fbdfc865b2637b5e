//! Logs of runs and services: from bytes to lines, and pages of what is kept.
//!
//! ```text
//!  frames of a process ──▶ Lines: cut at line ends ──▶ events, with how far the output is kept, in one transaction
//! ```
//! What has been read of a line without an end is kept beside the run, so that a server that starts again
//! goes on in the middle of it. Called by the run's task and by `http::agent_run`.

use std::{borrow::Cow, time::Duration};

use nullspace_api::{
    agent::{DEFAULT_LOG_LIMIT, LogEvent, Logs, LogsQuery, MAX_LOG_LIMIT, MAX_WAIT_MS},
    time,
};
use nullspace_lifecycle::run as lifecycle;
use nullspace_store::{
    agent_log::{self as rows, LogRow, NewLog},
    agent_run::{self as runs, RunRow},
    agent_service as services,
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{App, agent, agent_run, agent_service, process::whole_characters};
use crate::error::{Error, Result};

/// The longest line, in bytes; longer ones are cut into several.
pub(super) const MAX_LINE: usize = 16 << 10;
/// The most bytes of lines that are kept together: what is read for one of them.
const MAX_PIECE: usize = 64 << 10;
/// The most output of one run that is kept, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Which of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What belongs to every line of one process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer {
    /// `install` or `entrypoint`.
    pub(super) phase: &'static str,
    /// Its id in the machine.
    pub(super) process_id: u32,
}

/// Takes output of a process: whole lines become events, those of one stream in one piece as far as nothing else comes
/// between them and with the time of the first; the rest waits in the row. All of `events` is output of this process.
pub(super) fn take(
    row: &mut RunRow,
    writer: Writer,
    source: Source,
    data: &[u8],
    events: &mut Vec<NewLog>,
) {
    let mut line = partial(row, source).take().unwrap_or_default();
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', data) {
        let rest = &data[start..end];
        start = end + 1;
        if line.is_empty() && rest.len() <= MAX_LINE {
            push(row, writer, source, rest, true, events);
            continue;
        }
        lengthen(row, writer, source, &mut line, rest, events);
        push(row, writer, source, &line, true, events);
        line.clear();
    }
    lengthen(row, writer, source, &mut line, &data[start..], events);
    *partial(row, source) = Some(line).filter(|line| !line.is_empty());
}

/// Adds to a line whose end has not come; what is too long becomes lines of its own.
fn lengthen(
    row: &mut RunRow,
    writer: Writer,
    source: Source,
    line: &mut Vec<u8>,
    mut rest: &[u8],
    events: &mut Vec<NewLog>,
) {
    while line.len() + rest.len() > MAX_LINE {
        let room = MAX_LINE - line.len();
        line.extend_from_slice(&rest[..room]);
        rest = &rest[room..];
        // Not in the middle of a character, as far as there are characters.
        let tail = line.split_off(whole_characters(line));
        push(row, writer, source, line, false, events);
        *line = tail;
    }
    line.extend_from_slice(rest);
}

/// The process has ended: what waits for the end of its line is a line.
pub(super) fn finish(row: &mut RunRow, writer: Writer, events: &mut Vec<NewLog>) {
    for source in [Source::Stdout, Source::Stderr] {
        if let Some(line) = partial(row, source).take() {
            push(row, writer, source, &line, false, events);
        }
    }
}

fn partial(row: &mut RunRow, source: Source) -> &mut Option<Vec<u8>> {
    match source {
        Source::Stdout => &mut row.partial_stdout,
        Source::Stderr => &mut row.partial_stderr,
    }
}

/// `ended` says whether a line end came after it.
fn push(
    row: &mut RunRow,
    writer: Writer,
    source: Source,
    line: &[u8],
    ended: bool,
    events: &mut Vec<NewLog>,
) {
    // The log of a service drops its oldest lines instead.
    let ends = row.service_id.is_none();
    if ends && row.log_bytes >= MAX_BYTES {
        return;
    }
    row.log_bytes += line.len() as u64 + u64::from(ended);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Almost always it is text, and that is found out several times as fast.
    let text =
        std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed);
    let word = match source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
    };
    match events
        .last_mut()
        .filter(|last| last.source == word && last.message.len() + text.len() < MAX_PIECE)
    {
        Some(piece) => {
            piece.message.push('\n');
            piece.message.push_str(&text);
            piece.lines += 1;
        }
        None => events.push(NewLog {
            at: time::now(),
            level: if source == Source::Stdout {
                "info"
            } else {
                "error"
            },
            event_type: word,
            source: word,
            message: text.into_owned(),
            lines: 1,
            metadata: Some(json!({"phase": writer.phase}).to_string()),
            in_machine: true,
            process_id: Some(writer.process_id),
        }),
    }
    if ends && row.log_bytes >= MAX_BYTES {
        events.push(NewLog {
            at: time::now(),
            level: "warn",
            event_type: "log_truncated",
            source: "system",
            message: format!(
                "the log has {} MiB of output: the rest is not kept",
                MAX_BYTES >> 20
            ),
            lines: 1,
            metadata: None,
            in_machine: true,
            process_id: Some(writer.process_id),
        });
    }
}

/// The event of a step of a run's life.
pub(super) fn news(
    event: lifecycle::Event,
    message: String,
    process_id: Option<u32>,
    in_machine: bool,
) -> NewLog {
    let mut metadata = Map::new();
    if let Some(phase) = event.failure_phase {
        metadata.insert("failure_phase".into(), phase.as_str().into());
    }
    NewLog {
        at: time::now(),
        level: if event.is_error { "error" } else { "info" },
        event_type: event.event_type,
        source: "lifecycle",
        message,
        lines: 1,
        metadata: Some(Value::Object(metadata).to_string()),
        in_machine,
        process_id,
    }
}

/// Where a page begins.
enum From {
    Number(u64),
    Newest(u32),
}

/// Whose log is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// A run's, by its id.
    Run(&'a str),
    /// A service's, by its id.
    Service(&'a str),
}

/// A run or a service, as far as its log is concerned.
struct Subject {
    log: rows::Log,
    count: u64,
    /// The first event that is still there.
    first: u64,
    has_ended: bool,
    deployment_id: String,
    version_id: String,
    run_id: Option<String>,
    service_id: Option<String>,
    machine_id: Option<String>,
}

impl Subject {
    async fn find(app: &App, reference: &agent::Reference, of: Of<'_>) -> Result<Self> {
        match of {
            Of::Run(id) => {
                let run = agent_run::find(app, reference, id).await?;
                Ok(Self {
                    log: rows::Log::Run(run.seq),
                    count: run.log_count,
                    first: 0,
                    has_ended: agent::is_terminal(&run.status),
                    deployment_id: run.deployment_id,
                    version_id: run.version_id,
                    run_id: Some(run.id),
                    service_id: None,
                    machine_id: run.machine_id,
                })
            }
            Of::Service(id) => {
                let (service, run) = agent_service::find(app, reference, id).await?;
                Ok(Self {
                    log: rows::Log::Service(service.seq),
                    count: service.log_count,
                    first: service.log_first,
                    has_ended: service.stopped_at.is_some(),
                    deployment_id: service.deployment_id,
                    version_id: service.version_id,
                    run_id: None,
                    service_id: Some(service.id),
                    machine_id: run.and_then(|run| run.machine_id),
                })
            }
        }
    }

    /// News of how many events there are, while it lives.
    fn news(app: &App, of: Of<'_>) -> Option<watch::Receiver<u64>> {
        match of {
            Of::Run(id) => app.agents.get(id).map(|live| live.log.subscribe()),
            Of::Service(id) => app.agents.services.get(id).map(|live| live.log.subscribe()),
        }
    }
}

/// A page of a log, oldest first. With `wait_ms` an empty page waits for an event, as long as the run or service
/// goes on.
///
/// # Errors
/// `agent_deployment_not_found`, `agent_run_not_found`, `agent_service_not_found`, `invalid_request` for a query that
/// means nothing.
pub async fn page(
    app: &App,
    reference: &agent::Reference,
    of: Of<'_>,
    query: LogsQuery,
) -> Result<Logs> {
    let tail = query.tail.map(|tail| tail.min(MAX_LOG_LIMIT));
    let limit = query.limit.or(tail).unwrap_or(DEFAULT_LOG_LIMIT);
    if tail == Some(0) {
        return Err(Error::invalid("tail: must be at least 1"));
    }
    if limit == 0 || limit > MAX_LOG_LIMIT {
        return Err(Error::invalid(format!(
            "limit: must be 1 to {MAX_LOG_LIMIT}"
        )));
    }
    let wait = query.wait_ms.unwrap_or(0);
    if wait > MAX_WAIT_MS {
        return Err(Error::invalid(format!(
            "wait_ms: must be 0 to {MAX_WAIT_MS}"
        )));
    }
    let cursor = query.cursor.filter(|cursor| !cursor.is_empty());
    let from = match (tail, &cursor) {
        (Some(tail), _) => From::Newest(tail.min(limit)),
        (None, Some(cursor)) => From::Number(number(cursor)?),
        (None, None) => From::Number(query.offset.unwrap_or(0)),
    };
    // Looked up before the record is read: what is written meanwhile is noticed.
    let mut news = Subject::news(app, of);
    let mut subject = Subject::find(app, reference, of).await?;
    let first = |subject: &Subject| match from {
        From::Number(number) => number.max(subject.first),
        From::Newest(count) => subject
            .count
            .saturating_sub(count.into())
            .max(subject.first),
    };
    if let Some(news) = news
        .as_mut()
        .filter(|_| wait > 0 && first(&subject) >= subject.count)
        && !subject.has_ended
    {
        let start = first(&subject);
        let more = news.wait_for(|count| *count > start);
        tokio::select! {
            // The sender is gone when the run has ended: what it wrote last is read below.
            _ = tokio::time::timeout(Duration::from_millis(wait), more) => {}
            () = app.stopping.cancelled() => {}
        }
        subject = Subject::find(app, reference, of).await?;
    }
    let start = first(&subject);
    let log = subject.log;
    let found = agent::kept(
        app.store
            .read(move |db| rows::page(db, log, start, limit))
            .await,
    )?;
    let next_cursor = match found.last() {
        Some(last) => Some(format!("l{:x}", last.number + 1)),
        None => cursor,
    };
    let end = found.last().map_or(start, |last| last.number + 1);
    Ok(Logs {
        has_more: end < subject.count,
        events: found.into_iter().map(|row| event(&subject, row)).collect(),
        offset: start,
        limit,
        next_cursor,
    })
}

/// Reads the cursor of a log: the number of the next event.
fn number(cursor: &str) -> Result<u64> {
    cursor
        .strip_prefix('l')
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .filter(|number| *number <= rows::MAX_EVENTS)
        .ok_or_else(|| Error::invalid("cursor: not a cursor of this server"))
}

/// A kept event as the wire shows it.
fn event(subject: &Subject, row: LogRow) -> LogEvent {
    let mut metadata: Map<String, Value> = row
        .metadata
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    metadata.insert("source".into(), row.source.clone().into());
    LogEvent {
        id: format!(
            "{}-{}",
            subject
                .run_id
                .as_deref()
                .or(subject.service_id.as_deref())
                .unwrap_or_default(),
            row.number
        ),
        deployment_id: subject.deployment_id.clone(),
        version_id: subject.version_id.clone(),
        run_id: subject.run_id.clone(),
        service_instance_id: subject.service_id.clone(),
        sandbox_id: subject.machine_id.clone().filter(|_| row.in_machine),
        process_id: row.process_id,
        source: row.source,
        level: row.level,
        event_type: row.event_type,
        message: row.message,
        metadata,
        created_at: time::rfc3339(row.at),
    }
}

/// Appends events to the log and keeps the run as it is now, in the same transaction, and answers how many events the
/// log has then. The caller has counted the events of a run already; those of a backing are counted here, because two
/// may write to the log of a service.
pub(super) fn keep(
    tx: &nullspace_store::Tx<'_>,
    row: &RunRow,
    events: &[NewLog],
    whole: bool,
) -> Result<u64, nullspace_store::StoreError> {
    let count = match &row.service_id {
        Some(service) => {
            let output = events
                .iter()
                .filter(|event| event.source.starts_with("std"));
            let bytes = output.map(|event| event.message.len() as u64).sum();
            services::take_log(tx, service, events, bytes)?
        }
        None => {
            let from = row.log_count - rows::count(events);
            rows::append(tx, rows::Log::Run(row.seq), from, events)?;
            row.log_count
        }
    };
    if whole {
        runs::update(tx, row)?;
    } else {
        runs::advance(tx, row)?;
    }
    Ok(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WRITER: Writer = Writer {
        phase: "entrypoint",
        process_id: 7,
    };

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut row, mut events) = (RunRow::default(), Vec::new());
        for piece in pieces {
            take(&mut row, WRITER, Source::Stdout, piece, &mut events);
        }
        finish(&mut row, WRITER, &mut events);
        let lines = events.iter().flat_map(NewLog::lines);
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn lines_are_cut_at_their_ends_alone() {
        assert_eq!(
            lines(&[b"a\nb", b"c\r\n", b"\nlast"]),
            ["a", "bc", "", "last"]
        );
        assert_eq!(
            lines(&[
                "\u{e9}".as_bytes().split_at(1).0,
                "\u{e9}".as_bytes().split_at(1).1
            ]),
            ["\u{e9}"]
        );
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn a_line_without_end_is_cut_between_characters() {
        let long = "\u{e9}".repeat(MAX_LINE);
        let cut = lines(&[b"x", long.as_bytes()]);
        assert_eq!(cut.concat(), format!("x{long}"));
        assert!(cut.len() > 1 && cut.iter().all(|line| line.len() <= MAX_LINE));
    }

    #[test]
    fn streams_do_not_mix() {
        let (mut row, mut events) = (RunRow::default(), Vec::new());
        take(&mut row, WRITER, Source::Stdout, b"out", &mut events);
        take(&mut row, WRITER, Source::Stderr, b"err\n", &mut events);
        take(&mut row, WRITER, Source::Stdout, b"put\n", &mut events);
        let told: Vec<_> = events
            .iter()
            .map(|e| (e.source, e.message.as_str()))
            .collect();
        assert_eq!(told, [("stderr", "err"), ("stdout", "output")]);
    }

    #[test]
    fn a_log_has_a_limit_and_says_so_once() {
        let (mut row, mut events) = (RunRow::default(), Vec::new());
        row.log_bytes = MAX_BYTES - 1;
        take(&mut row, WRITER, Source::Stdout, b"a\nb\nc\n", &mut events);
        let told: Vec<_> = events.iter().map(|e| e.event_type).collect();
        assert_eq!(told, ["stdout", "log_truncated"]);
    }

    proptest! {
        #[test]
        fn how_output_is_chopped_up_does_not_matter(
            text in "[a\u{e9}\n]{0,80}",
            cuts in proptest::collection::vec(0usize..100, 0..8),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(lines(&pieces), lines(&[bytes]));
        }
    }
}

//! `nullspace lifecycle …`: events, and who is told of them. Everything is printed as JSON, as the published program does.

mod webhooks;

use std::time::Duration;

use clap::Subcommand;
use nullspace_api::event::{AUDIENCES, ListEventsQuery, OPERATIONS, STATUSES, Subscribe};
use nullspace_client::Error as ClientError;
use tokio::time::Instant;

use crate::app::App;
use crate::error::Outcome;
use crate::input;

/// Pause before a stream that ended is opened again; each next is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Show what happens to machines, and tell others of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List events
    Events(Box<Events>),
    /// Show events as they happen, one JSON object in a line
    Stream(Box<Stream>),
    /// Manage webhooks
    Webhooks(webhooks::Args),
}

/// Which events.
#[derive(Debug, clap::Args)]
struct Which {
    /// Only this operation.
    #[arg(long, value_parser = OPERATIONS, ignore_case = true)]
    operation: Option<String>,
    /// Only this status.
    #[arg(long, value_parser = STATUSES, ignore_case = true)]
    status: Option<String>,
    /// Only about this machine: itself, or as what something was made from or into.
    #[arg(long, alias = "sandbox-id", value_name = "MACHINE")]
    machine_id: Option<String>,
    /// Only about this snapshot.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot_id: Option<String>,
    /// What happens to machines, or what is decided about their traffic: `egress_updated`, `egress_denied`.
    #[arg(long, value_parser = AUDIENCES, default_value = AUDIENCES[0])]
    audience: String,
}

/// List events.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace lifecycle events --limit 20
  nullspace lifecycle events --machine-id mch_123 --order asc
  nullspace lifecycle events --machine-id mch_123 --audience internal
  nullspace lifecycle events --operation create --status failed --from-time 2026-01-31T12:00:00Z")]
struct Events {
    #[command(flatten)]
    which: Which,
    /// Events to skip.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// The most events, up to 200.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Newest or oldest first.
    #[arg(long, value_parser = ["asc", "desc"], ignore_case = true, default_value = "desc")]
    order: String,
    /// Not before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    from_time: Option<String>,
    /// Before this time, RFC 3339.
    #[arg(long, value_name = "TIME")]
    to_time: Option<String>,
    /// Only what was made from this machine.
    #[arg(long, alias = "source-sandbox-id", value_name = "MACHINE")]
    source_machine_id: Option<String>,
    /// Only what was made into this machine.
    #[arg(long, alias = "target-sandbox-id", value_name = "MACHINE")]
    target_machine_id: Option<String>,
}

/// Show events as they happen, one JSON object in a line. A connection that ends is opened again where it was.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace lifecycle stream
  nullspace lifecycle stream --machine-id mch_123 --live-only --max-events 1
  nullspace lifecycle stream --after-event-id 019ab… --metadata-json '{\"team\": \"a\"}'")]
struct Stream {
    #[command(flatten)]
    which: Which,
    /// Only what happens from now on.
    #[arg(long)]
    live_only: bool,
    /// Everything after this event.
    #[arg(long, value_name = "EVENT")]
    after_event_id: Option<String>,
    /// How many of the newest events come first.
    #[arg(long, value_name = "N", default_value_t = 100)]
    replay_limit: u32,
    /// Only with this metadata, a JSON object.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
    /// Stop after this many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_events: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "not a number of seconds".to_owned())
}

pub(crate) async fn run(args: Args, app: &App) -> Outcome {
    match args.command {
        Command::Events(args) => events(*args, app).await,
        Command::Stream(args) => stream(*args, app).await,
        Command::Webhooks(args) => webhooks::run(args, app).await,
    }
}

fn lower(word: Option<String>) -> Option<String> {
    word.map(|word| word.to_ascii_lowercase())
}

async fn events(args: Events, app: &App) -> Outcome {
    let query = ListEventsQuery {
        offset: Some(args.offset),
        limit: Some(args.limit),
        order: Some(args.order.to_ascii_lowercase()),
        operation: lower(args.which.operation),
        status: lower(args.which.status),
        from: args.from_time,
        to: args.to_time,
        audience: Some(args.which.audience),
        machine_id: args.which.machine_id,
        snapshot_id: args.which.snapshot_id,
        source_machine_id: args.source_machine_id,
        target_machine_id: args.target_machine_id,
        ..ListEventsQuery::default()
    };
    app.ui.json(&app.client()?.list_events(&query).await?)?;
    Ok(0)
}

async fn stream(args: Stream, app: &App) -> Outcome {
    let metadata = match &args.metadata_json {
        Some(text) => Some(input::object("--metadata-json", text)?),
        None => None,
    };
    let subscribe = Subscribe {
        audience: Some(args.which.audience),
        machine_id: args.which.machine_id,
        snapshot_id: args.which.snapshot_id,
        operation: lower(args.which.operation),
        status: lower(args.which.status),
        live_only: Some(args.live_only),
        after_event_id: args.after_event_id,
        replay_limit: Some(args.replay_limit),
        metadata,
        ..Subscribe::default()
    };
    let following = follow(app, subscribe, args.max_events);
    match args.timeout {
        Some(limit) => tokio::time::timeout(limit, following)
            .await
            .unwrap_or(Ok(0)),
        None => following.await,
    }
}

/// Prints events until there were enough.
async fn follow(app: &App, mut subscribe: Subscribe, max: Option<u64>) -> Outcome {
    let client = app.client()?;
    let mut count = 0;
    let mut pause = FIRST_PAUSE;
    let mut is_first = true;
    loop {
        let opened = Instant::now();
        let ended = match client.follow_events(subscribe.clone()).await {
            Ok(mut events) => {
                is_first = false;
                loop {
                    match events.next().await {
                        Ok(Some(event)) => {
                            app.ui.json_line(&event)?;
                            count += 1;
                            if max.is_some_and(|max| count >= max) {
                                return Ok(0);
                            }
                            subscribe.after_event_id = Some(event.id);
                            subscribe.live_only = Some(false);
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            Err(error) => Some(error),
        };
        match ended {
            Some(error @ ClientError::Transport { .. }) if is_first => return Err(error.into()),
            Some(ClientError::Transport { .. }) | None => {}
            Some(error) => return Err(error.into()),
        }
        if opened.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

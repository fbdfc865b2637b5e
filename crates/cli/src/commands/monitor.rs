//! `nullspace monitor …`: all machines, as they change and what they use.

use std::time::Duration;

use clap::Subcommand;
use nullspace_api::monitor::ClientMessage;
use serde_json::Value;

use crate::app::App;
use crate::error::{CliError, Outcome};

/// The word for our only subscription.
const ID: &str = "monitor_1";

/// See all machines as they change and what they use.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print what happens as lines of JSON
    Stream(Stream),
}

/// Print what happens as lines of JSON: first all machines that live, then changes as they come and what each uses at
/// each interval.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace monitor stream
  nullspace monitor stream --interval-ms 1000 --include-processes
  nullspace monitor stream --max-events 1          the machines that live now, once

The lines are the messages of the server, by their `type`: monitor_snapshot, monitor_update,
monitor_metrics, monitor_processes, monitor_error.")]
struct Stream {
    /// Milliseconds between two measurements, 250 at least [default: 5000].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    interval_ms: Option<u64>,
    /// Show what runs in each machine too.
    #[arg(long, overrides_with = "no_include_processes")]
    include_processes: bool,
    /// Do not; this is the default.
    #[arg(long)]
    no_include_processes: bool,
    /// Stop after this many lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_events: Option<u64>,
    /// Stop after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "no number".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub(crate) async fn run(args: &Args, app: &App) -> Outcome {
    match &args.command {
        Command::Stream(args) => {
            let stream = stream(args, app);
            match args.timeout {
                // That the time is over is what was asked for.
                Some(limit) => tokio::time::timeout(limit, stream).await.unwrap_or(Ok(0)),
                None => stream.await,
            }
        }
    }
}

async fn stream(args: &Stream, app: &App) -> Outcome {
    let mut monitor = app.client()?.monitor().await?;
    let subscribe = ClientMessage::MonitorSubscribe {
        id: ID.to_owned(),
        interval_ms: args.interval_ms,
        include_processes: Some(args.include_processes),
    };
    monitor.send(&subscribe).await?;
    let mut told = 0;
    while let Some(message) = monitor.next().await? {
        let message = serde_json::to_value(message)
            .map_err(|error| CliError::new("internal_error", error.to_string()))?;
        app.ui.line(one_spelling(message).to_string());
        told += 1;
        if args.max_events.is_some_and(|most| told >= most) {
            return Ok(0);
        }
    }
    Err(
        CliError::new("transport_error", "the server has closed the connection")
            .hint("It may be restarting: ask again."),
    )
}

/// What the server says in the words of both generations of clients is said once.
fn one_spelling(mut message: Value) -> Value {
    if let Value::Object(fields) = &mut message {
        for name in ["sandboxes", "sandbox", "sandbox_id"] {
            fields.remove(name);
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_checked() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "x", "-1", "inf", "1e99", "NaN"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

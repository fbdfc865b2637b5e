//! `nullspace machine metrics`

use crate::app::App;
use crate::error::Outcome;
use crate::ui::time;

/// Show what a machine uses.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine metrics mch_123
  nullspace machine metrics mch_123 --json

100 % is one whole core. Memory is without files that are only kept at hand; disk is what was written
in the machine, and what is free on the host. To see all machines as they go: nullspace monitor stream.")]
pub(super) struct Args {
    /// The machine's id.
    #[arg(value_name = "MACHINE", value_parser = crate::input::named)]
    machine: String,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let samples = app.client()?.metrics(&args.machine).await?;
    if app.ui.json {
        app.ui.json(&samples)?;
        return Ok(0);
    }
    if samples.is_empty() {
        app.ui.note("No metrics.");
    }
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    for sample in samples {
        app.ui.line(format!(
            "[{}]  CPU: {}% / {} cores | Memory: {}/{} MiB | Disk: {}/{} MiB | Network: {} MiB in, {} MiB out",
            time(Some(&sample.timestamp)),
            sample.cpu_percent,
            sample.cpu_count,
            mib(sample.mem_used_bytes),
            mib(sample.mem_total_bytes),
            mib(sample.disk_used_bytes),
            mib(sample.disk_total_bytes),
            mib(sample.network_rx_bytes),
            mib(sample.network_tx_bytes),
        ));
    }
    Ok(0)
}

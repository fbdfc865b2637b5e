//! What a process in the machine writes, shown as it comes.

use std::io::Write as _;
use std::time::Duration;

use nullspace_client::Client;

use crate::error::CliError;
use crate::ui::Ui;

/// The first pause between two looks.
const QUICK: Duration = Duration::from_millis(50);
/// The longest, when nothing comes.
const SLOW: Duration = Duration::from_millis(500);
/// Each look brings all from the start: what is large is looked at more rarely, as if it came at this rate.
const BYTES_PER_MS: usize = 16 << 10;
/// Servers keep no more of a process's output.
const KEPT: usize = 16 << 20;

/// A process, and how much of its output was shown.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) pid: u32,
    stdout: usize,
    stderr: usize,
    told_cut: bool,
}

impl Output {
    pub(super) fn of(pid: u32) -> Self {
        Self {
            pid,
            stdout: 0,
            stderr: 0,
            told_cut: false,
        }
    }

    /// Shows what comes until the process has ended; gives its exit code. Dropped in between, it can be called again.
    pub(super) async fn follow(
        &mut self,
        ui: Ui,
        client: &Client,
        machine: &str,
    ) -> Result<i32, CliError> {
        let mut pause = QUICK;
        loop {
            let logs = client.process_logs(machine, self.pid).await?;
            let news = fresh(&logs.stdout, &mut self.stdout);
            if !news.is_empty() {
                ui.data(news.as_bytes());
                pause = QUICK;
            }
            let news = fresh(&logs.stderr, &mut self.stderr);
            if !news.is_empty() {
                // Not a line of ours: as it is.
                let _ = std::io::stderr().write_all(news.as_bytes());
                pause = QUICK;
            }
            let size = logs.stdout.len() + logs.stderr.len();
            if size >= KEPT && !self.told_cut {
                self.told_cut = true;
                ui.warn(
                    "the program has written more than the server keeps; the rest is not shown",
                );
            }
            if let Some(code) = logs.exit_code {
                return Ok(code);
            }
            let least = Duration::from_millis((size / BYTES_PER_MS) as u64);
            tokio::time::sleep(pause.max(least)).await;
            pause = (pause * 3 / 2).min(SLOW);
        }
    }
}

/// What of `all` was not shown yet.
fn fresh<'a>(all: &'a str, shown: &mut usize) -> &'a str {
    let news = all.get(*shown..).unwrap_or_default();
    *shown = all.len().max(*shown);
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_shown_once() {
        let mut shown = 0;
        assert_eq!(fresh("", &mut shown), "");
        assert_eq!(fresh("aé", &mut shown), "aé");
        assert_eq!(fresh("aé", &mut shown), "");
        assert_eq!(fresh("aéb", &mut shown), "b");
        assert_eq!(fresh("", &mut shown), "");
        assert_eq!(fresh("aébc", &mut shown), "c");
    }
}

//! Waiting until a port answers.

use clap::ValueEnum;
use nullspace_api::preview::{Readiness, ReadinessKind, ReadinessRequest};
use nullspace_client::Client;

use crate::error::CliError;
use crate::ui::Ui;

/// Whether and how a port is waited for.
#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// Wait until the port answers.
    #[arg(long)]
    wait: bool,
    /// How that is checked.
    #[arg(long, value_enum, value_name = "KIND", default_value = "tcp")]
    readiness_kind: KindArg,
    /// What is asked for with --readiness-kind http.
    #[arg(long, value_name = "PATH")]
    readiness_path: Option<String>,
    /// How long to wait; the server waits for 28 seconds at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout_secs: u64,
    /// Pause between two checks, in milliseconds.
    #[arg(long, value_name = "N", default_value_t = 500)]
    interval_ms: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    /// It takes a connection.
    Tcp,
    /// It answers a request with a status below 500.
    Http,
}

impl WaitArgs {
    /// What a wait gives, if one was asked for.
    pub(super) async fn wait(
        &self,
        client: &Client,
        machine: &str,
        port: u16,
    ) -> Result<Option<Readiness>, CliError> {
        if !self.wait {
            return Ok(None);
        }
        let request = ReadinessRequest {
            kind: Some(match self.readiness_kind {
                KindArg::Tcp => ReadinessKind::Tcp,
                KindArg::Http => ReadinessKind::Http,
            }),
            path: self.readiness_path.clone(),
            timeout_secs: Some(self.timeout_secs),
            interval_ms: Some(self.interval_ms),
        };
        let readiness = client.preview_readiness(machine, port, &request).await?;
        Ok(Some(readiness))
    }
}

/// What is wrong with a port that does not answer.
pub(super) fn not_ready(readiness: &Readiness) -> CliError {
    let code = readiness.code.as_deref();
    let what = readiness.error.as_deref();
    let error = CliError::new(
        code.unwrap_or("preview_service_not_ready"),
        what.unwrap_or("the port does not answer"),
    );
    match &readiness.suggested_action {
        Some(action) => error.hint(action),
        None => error,
    }
}

/// A line about it, for people.
pub(super) fn show(ui: Ui, readiness: Option<&Readiness>) {
    let Some(readiness) = readiness else {
        return;
    };
    let word = if readiness.ready {
        "ready"
    } else {
        "not ready"
    };
    ui.line(format!(
        "Readiness: {word} route={} service={}",
        readiness.route_ready, readiness.service_ready
    ));
    if let Some(error) = &readiness.error {
        ui.line(format!("Readiness error: {error}"));
    }
    if let Some(action) = &readiness.suggested_action {
        ui.line(format!("Suggested action: {action}"));
    }
}

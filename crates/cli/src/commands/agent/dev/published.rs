//! The answer that published clients give: run once, collect the output.

use nullspace_api::exec::{ExecRequest, ExecResponse, ExecStarted};
use nullspace_project::Manifest;
use serde::Serialize;

use super::DEFAULT_TIMEOUT;
use super::session::Session;
use crate::commands::machine::exec::exit_code;
use crate::error::{CliError, Outcome};
use crate::ui::Ui;

#[derive(Serialize)]
struct Report<'a> {
    sandbox_id: &'a str,
    bundle: &'a Manifest,
    install: Option<ExecResponse>,
    /// Null when the install step failed.
    run: Option<Ran>,
}

/// The entry point of a job has ended, that of a service runs.
#[derive(Serialize)]
#[serde(untagged)]
enum Ran {
    Ended(ExecResponse),
    Started(ExecStarted),
}

/// Installs, runs, and prints what came of it. Exits as the entry point did, or a failed install step.
pub(super) async fn run(ui: Ui, session: &Session<'_>) -> Outcome {
    let config = &session.project.config;
    let limit = config
        .resources
        .timeout_seconds
        .unwrap_or(DEFAULT_TIMEOUT.as_secs());
    let exec = async |command: &str| -> Result<ExecResponse, CliError> {
        let request = ExecRequest {
            timeout_secs: Some(limit),
            ..session.command(command)
        };
        Ok(session.client.exec(&session.machine, &request).await?)
    };
    let install = match &config.install {
        Some(install) => Some(exec(install).await?),
        None => None,
    };
    let failed = install
        .as_ref()
        .map(|install| install.exit_code)
        .filter(|code| *code != 0);
    let entrypoint = config.entrypoint.as_deref().unwrap_or_default();
    let (run, code) = match failed {
        Some(code) => (None, code),
        None if session.is_service() => {
            let request = session.command(entrypoint);
            let started = session.client.exec_background(&session.machine, &request);
            (Some(Ran::Started(started.await?)), 0)
        }
        None => {
            let ended = exec(entrypoint).await?;
            let code = ended.exit_code;
            (Some(Ran::Ended(ended)), code)
        }
    };
    ui.json(&Report {
        sandbox_id: &session.machine,
        bundle: session.project.bundle.manifest(),
        install,
        run,
    })?;
    Ok(exit_code(code))
}

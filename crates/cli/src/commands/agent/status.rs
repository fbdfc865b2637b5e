//! `nullspace agent status`

use nullspace_api::agent::{Deployment, LogEvent, LogsQuery, Run, TimelineStep};
use nullspace_client::agents::{Service, Target};
use serde::Serialize;

use crate::app::App;
use crate::error::Outcome;
use crate::follow::{State, state};
use crate::reference::{self, TargetArgs};
use crate::ui::{Ui, span, tame, time};

/// Show where a run or a service stands, and if it failed, in which phase and why.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent status report --json
  nullspace agent status my-api --service adsvc_123

Without --run and --service: the latest. Of a run it also shows how long each step took.")]
pub(super) struct Args {
    /// Id or name.
    #[arg(value_name = "DEPLOYMENT", value_parser = crate::input::named)]
    deployment: String,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    deployment: &'a Deployment,
    target_kind: &'a str,
    target: Object<'a>,
    triage: Triage<'a>,
    logs: LogSummary<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Object<'a> {
    Run(&'a Run),
    Service(&'a Service),
}

#[derive(Serialize)]
struct Triage<'a> {
    last_transition_time: Option<&'a str>,
    failure_phase: Option<String>,
    failure_reason: Option<&'a str>,
    sandbox_id: Option<&'a str>,
    process_id: Option<u32>,
    url: Option<String>,
    #[serde(flatten)]
    rest: TriageRest<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum TriageRest<'a> {
    Run {
        exit_code: Option<i32>,
    },
    Service {
        readiness_status: &'a serde_json::Map<String, serde_json::Value>,
        port: u16,
    },
}

#[derive(Serialize)]
struct LogSummary<'a> {
    event_count: usize,
    next_cursor: Option<&'a str>,
    latest_event: Option<&'a LogEvent>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let ui = app.ui;
    let client = app.client()?;
    let deployment = reference::deployment(&client, &args.deployment).await?;
    let target = match args.target.named() {
        Some(target) => target,
        None if deployment.mode == "job" => {
            Target::Run(reference::latest_run(&client, &deployment).await?.id)
        }
        None => Target::Service(reference::latest_service(&client, &deployment).await?.id),
    };
    let state = state(&client, &deployment.id, &target).await?;
    let query = LogsQuery {
        limit: Some(200),
        tail: Some(200),
        ..LogsQuery::default()
    };
    let logs = client.get_logs(&deployment.id, &target, &query).await?;
    let latest = logs.events.last();
    let at_event = latest.map(|event| event.created_at.as_str());
    let (kind, id, triage) = match &state {
        State::Run(run) => {
            let triage = Triage {
                last_transition_time: at_event.or(Some(&run.updated_at)),
                failure_phase: failure_phase(
                    &run.status,
                    run.failure_reason.as_deref(),
                    &logs.events,
                ),
                failure_reason: run.failure_reason.as_deref(),
                sandbox_id: run.sandbox_id.as_deref(),
                process_id: run.process_id,
                url: None,
                rest: TriageRest::Run {
                    exit_code: run.exit_code,
                },
            };
            ("run", &run.id, triage)
        }
        State::Service(service) => {
            let url = client.get_service_url(&deployment.id, &service.id).await?;
            let times = [
                &service.updated_at,
                &service.stopped_at,
                &service.started_at,
                &service.created_at,
            ];
            let triage = Triage {
                last_transition_time: at_event
                    .or_else(|| times.into_iter().find_map(|time| time.as_deref())),
                failure_phase: failure_phase(
                    &service.status,
                    service.failure_reason.as_deref(),
                    &logs.events,
                ),
                failure_reason: service.failure_reason.as_deref(),
                sandbox_id: service.sandbox_id.as_deref(),
                process_id: service.process_id,
                url: url.public_url,
                rest: TriageRest::Service {
                    readiness_status: &service.readiness_status,
                    port: service.port,
                },
            };
            ("service", &service.id, triage)
        }
    };
    if ui.json {
        let target = match &state {
            State::Run(run) => Object::Run(run),
            State::Service(service) => Object::Service(service),
        };
        ui.json(&Report {
            deployment: &deployment,
            target_kind: kind,
            target,
            triage,
            logs: LogSummary {
                event_count: logs.events.len(),
                next_cursor: logs.next_cursor.as_deref(),
                latest_event: latest,
            },
        })?;
        return Ok(0);
    }
    ui.line(format!(
        "{kind} {id} {} status={}",
        time(triage.last_transition_time),
        state.status()
    ));
    // A phase alone may be old news: of a restart that failed, and another that did not.
    if triage.failure_reason.is_some() || triage.failure_phase.is_some() && is_bad(state.status()) {
        let phase = triage.failure_phase.as_deref().unwrap_or("-");
        ui.line(format!(
            "failure: {phase} {}",
            tame(triage.failure_reason.unwrap_or("-"))
        ));
    }
    if let TriageRest::Run {
        exit_code: Some(code),
    } = triage.rest
    {
        ui.line(format!("exit code: {code}"));
    }
    if let Some(machine) = triage.sandbox_id {
        ui.line(format!("machine: {machine}"));
    }
    if let Some(process) = triage.process_id {
        ui.line(format!("process: {process}"));
    }
    if let Some(url) = &triage.url {
        ui.line(format!("url: {url}"));
    }
    match &state {
        State::Run(run) => timeline(ui, &run.timeline),
        State::Service(service) => {
            if let Some(count) = service.restart_count.filter(|count| *count > 0) {
                ui.line(format!("restarts: {count}"));
            }
        }
    }
    if let Some(until) = state.retained_until() {
        ui.line(format!("machine kept until: {}", time(Some(until))));
    }
    Ok(0)
}

/// One line per step: what it is, how long it took, and when it was reached.
fn timeline(ui: Ui, steps: &[TimelineStep]) {
    if steps.is_empty() {
        return;
    }
    ui.line("timeline:");
    for step in steps {
        ui.line(format!(
            "  {:<16} {:>12}  at {}",
            tame(&step.step),
            span(step.duration_ms),
            span(step.elapsed_ms)
        ));
    }
}

/// Whether something is wrong with what has this status.
fn is_bad(status: &str) -> bool {
    matches!(status, "failed" | "timed_out" | "cancelled" | "unhealthy")
}

/// The phase in which a run or a service failed: what the newest telling event says, else what the reason mentions.
fn failure_phase(status: &str, reason: Option<&str>, events: &[LogEvent]) -> Option<String> {
    let failed = is_bad(status);
    let by_reason = || {
        let reason = reason?.to_lowercase();
        ["install", "entrypoint", "readiness", "health", "cancel"]
            .into_iter()
            .find(|word| reason.contains(word))
    };
    for event in events.iter().rev() {
        if let Some(phase) = event
            .metadata
            .get("failure_phase")
            .and_then(serde_json::Value::as_str)
        {
            return Some(phase.to_owned());
        }
        match event.event_type.as_str() {
            "sandbox_cleanup_failed" => return Some("cleanup".to_owned()),
            "service_start_failed" | "service_failed" => {
                let readiness =
                    reason.is_some_and(|reason| reason.to_lowercase().contains("readiness"));
                return Some(if readiness { "readiness" } else { "runtime" }.to_owned());
            }
            "runtime_failed" | "run_failed" => {
                return Some(by_reason().unwrap_or("runtime").to_owned());
            }
            _ => {}
        }
    }
    if !failed {
        return None;
    }
    Some(by_reason().unwrap_or("runtime").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_type: &str, metadata: serde_json::Value) -> LogEvent {
        serde_json::from_value(serde_json::json!({
            "id": "e", "deployment_id": "d", "version_id": "v", "created_at": "", "source": "system", "level": "info", "message": "", "event_type": event_type, "metadata": metadata,
        }))
        .expect("an event")
    }

    #[test]
    fn the_phase_is_what_the_newest_telling_event_says() {
        let none = serde_json::json!({});
        let told = event("x", serde_json::json!({"failure_phase": "bundle"}));
        let failed = event("run_failed", none.clone());
        let line = event("stdout", none.clone());
        let phase = |status, reason, events: &[LogEvent]| failure_phase(status, reason, events);
        assert_eq!(
            phase("failed", Some("Install exited with 1"), &[]).as_deref(),
            Some("install")
        );
        assert_eq!(
            phase("failed", Some("boom"), &[]).as_deref(),
            Some("runtime")
        );
        assert_eq!(phase("succeeded", None, std::slice::from_ref(&line)), None);
        assert_eq!(
            phase("failed", Some("entrypoint"), &[told.clone(), line.clone()]).as_deref(),
            Some("bundle")
        );
        assert_eq!(
            phase("failed", Some("entrypoint"), &[told, failed, line]).as_deref(),
            Some("entrypoint")
        );
        let cleanup = event("sandbox_cleanup_failed", none.clone());
        assert_eq!(
            phase("succeeded", None, &[cleanup]).as_deref(),
            Some("cleanup")
        );
        let service = event("service_failed", none);
        assert_eq!(
            phase("failed", Some("readiness"), std::slice::from_ref(&service)).as_deref(),
            Some("readiness")
        );
        assert_eq!(
            phase("failed", Some("install"), &[service]).as_deref(),
            Some("runtime")
        );
    }
}

//! The checks of a service: whether it is ready, and later whether it still is.

use std::{sync::Arc, time::Duration};

use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nullspace_gateway::Dial;
use nullspace_project::AgentConfig;
use nullspace_protocol::BoxedIo;
use serde_json::{Value, json};

use super::{Heard, ServiceLive};
use crate::app::machine::Port;

/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Until a service is ready in the first place, when its config does not say.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(120);
/// Pauses before the first success, growing from one to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a success.
const HEALTH_PAUSE: Duration = Duration::from_secs(5);

/// How a service shows that it is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// It answers a request for this path with a status of 200 to 399.
    Http(String),
    /// It takes connections.
    Tcp,
    /// It is still there after this time.
    Timeout(Duration),
}

/// The check of a version, and for how long it may fail before that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) check: Check,
    pub(super) deadline: Duration,
    pub(super) port: u16,
}

impl Plan {
    /// What the config of a service asks for; its words were checked when the version was made.
    pub(super) fn of(config: &AgentConfig, port: u16) -> Self {
        let readiness = config.service.readiness.clone().unwrap_or_default();
        let seconds = readiness.timeout_seconds.map(Duration::from_secs);
        let deadline = seconds.unwrap_or(DEFAULT_DEADLINE);
        let path = readiness.path;
        let check = match (readiness.kind.as_deref(), path) {
            (Some("timeout"), _) => Check::Timeout(seconds.unwrap_or(Duration::from_secs(1))),
            (Some("tcp"), _) | (None, None) => Check::Tcp,
            (_, path) => Check::Http(path.unwrap_or_else(|| "/".into())),
        };
        Self {
            deadline: match &check {
                // It passes by then.
                Check::Timeout(wait) => *wait + PATIENCE,
                _ => deadline,
            },
            check,
            port,
        }
    }

    /// As clients see it, with what the last check said.
    pub(super) fn status(&self, result: &Result<(), String>, at: String) -> Value {
        let (kind, path) = match &self.check {
            Check::Http(path) => ("http", Some(path)),
            Check::Tcp => ("tcp", None),
            Check::Timeout(_) => ("timeout", None),
        };
        json!({
            "type": kind,
            "port": self.port,
            "path": path,
            "ready": result.is_ok(),
            "checked_at": at,
            "error": result.as_ref().err(),
        })
    }
}

/// Checks a backing again and again, and tells its supervisor each time, until the task is ended.
pub(super) async fn repeat(plan: Plan, port: Port, run_id: String, service: Arc<ServiceLive>) {
    if let Check::Timeout(wait) = plan.check {
        tokio::time::sleep(wait).await;
        // That the process is there is its own task's to know.
        service.hear(&run_id, Heard::Checked(Ok(())));
        return;
    }
    let mut pause = FIRST_PAUSE;
    let mut was_ready = false;
    // A check that hangs is told of before the time is over.
    let patience = PATIENCE.min(plan.deadline / 2);
    loop {
        let result = once(&plan, &port, patience).await;
        was_ready |= result.is_ok();
        let wait = match (result.is_ok(), was_ready) {
            (true, _) => HEALTH_PAUSE,
            (false, true) => LONGEST_PAUSE,
            (false, false) => {
                let longer = (pause * 3 / 2).min(LONGEST_PAUSE);
                std::mem::replace(&mut pause, longer)
            }
        };
        service.hear(&run_id, Heard::Checked(result));
        tokio::time::sleep(wait).await;
    }
}

async fn once(plan: &Plan, port: &Port, patience: Duration) -> Result<(), String> {
    let check = async {
        let stream = port
            .dial()
            .await
            .map_err(|e| format!("nothing answers on port {}: {e}", plan.port))?;
        match &plan.check {
            Check::Http(path) => ask(stream, plan.port, path).await,
            Check::Tcp | Check::Timeout(_) => Ok(()),
        }
    };
    let within = patience.as_secs_f64();
    match tokio::time::timeout(patience, check).await {
        Ok(result) => result,
        Err(_) => Err(match &plan.check {
            Check::Http(path) => format!("GET {path} has no answer within {within} s"),
            Check::Tcp | Check::Timeout(_) => {
                format!("port {} takes no connection within {within} s", plan.port)
            }
        }),
    }
}

async fn ask(stream: BoxedIo, port: u16, path: &str) -> Result<(), String> {
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{port}"))
        .header(header::USER_AGENT, "nullspace-readiness")
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| format!("path {path:?} cannot be asked for: {e}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    connection.abort();
    let status = answer.map_err(|e| format!("GET {path}: {e}"))?.status();
    if status.is_success() || status.is_redirection() || status == StatusCode::NOT_MODIFIED {
        return Ok(());
    }
    Err(format!("GET {path} answered {status}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_config_asks_for() {
        let plan = |readiness: Value| {
            let config = json!({"name": "n", "entrypoint": "e", "mode": "service",
                "service": {"port": 8000, "readiness": readiness}});
            Plan::of(&AgentConfig::from_wire(&config).unwrap(), 8000)
        };
        let seconds = Duration::from_secs;
        let tcp = plan(json!({}));
        assert_eq!((tcp.check, tcp.deadline), (Check::Tcp, DEFAULT_DEADLINE));
        let http = plan(json!({"type": "http", "timeout_seconds": 7}));
        assert_eq!(
            (http.check, http.deadline),
            (Check::Http("/".into()), seconds(7))
        );
        // A path alone can mean one thing only.
        assert_eq!(
            plan(json!({"path": "/up"})).check,
            Check::Http("/up".into())
        );
        let timeout = plan(json!({"type": "timeout", "timeout_seconds": 3}));
        assert_eq!(timeout.check, Check::Timeout(seconds(3)));
        assert!(timeout.deadline > seconds(3));
    }
}

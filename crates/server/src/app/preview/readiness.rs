//! Whether a port answers.

use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use nullspace_api::{
    error::code,
    preview::{Readiness, ReadinessKind, ReadinessRequest},
    time,
};
use nullspace_gateway::Dial as _;
use nullspace_protocol::BoxedIo;
use tokio::time::Instant;

use super::check_port;
use crate::{
    app::{
        AppState,
        machine::{self, Port},
    },
    error::{Error, Result},
};

/// The longest wait: clients give up after 30 s of silence.
const MAX_WAIT: Duration = Duration::from_secs(28);
/// How long one check may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The shortest pause between two.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// The longest path that is asked for.
const MAX_PATH: usize = 4096;

/// Waits until a port of a running machine answers, for a while. One that does not is no error.
///
/// # Errors
/// `invalid_request`, `machine_not_found`, `machine_not_ready`.
pub async fn readiness(
    app: &AppState,
    machine_id: &str,
    port: u16,
    request: ReadinessRequest,
) -> Result<Readiness> {
    check_port(port)?;
    let kind = request.kind.unwrap_or_default();
    let path = match kind {
        ReadinessKind::Tcp => None,
        ReadinessKind::Http => Some(check_path(request.path)?),
    };
    let wait = Duration::from_secs(request.timeout_secs.unwrap_or(30)).min(MAX_WAIT);
    let pause = Duration::from_millis(request.interval_ms.unwrap_or(500)).max(MIN_PAUSE);
    let Some(handle) = app.machines.get(machine_id) else {
        let row = machine::get(app, machine_id).await?;
        return Err(Error::not_ready(machine_id, &row.state));
    };
    let state = handle.row().state.clone();
    if state != machine::RUNNING {
        return Err(Error::not_ready(machine_id, &state));
    }
    let mut record = handle.watch();
    let target = Port {
        engine: app.engine.clone(),
        machine: handle.clone(),
        port,
    };
    let start = Instant::now();
    // Also one that is asked for without a wait gets its check.
    let end = start + wait.max(Duration::from_secs(1));
    let mut attempts = 0;
    let checking = async {
        loop {
            attempts += 1;
            let patience = PATIENCE.min(end - Instant::now());
            let error = match once(&target, path.as_deref(), patience).await {
                Ok(()) => return None,
                Err(error) => error,
            };
            if start.elapsed() + pause >= wait {
                return Some(error);
            }
            tokio::time::sleep(pause).await;
        }
    };
    let (error, route_ready) = tokio::select! {
        error = checking => (error, true),
        _ = record.wait_for(|row| row.state != machine::RUNNING) => {
            (Some("the machine has ended".to_owned()), false)
        }
    };
    let action = match route_ready {
        true => {
            "start the program, and see that it listens on this port; any address of the machine will do"
        }
        false => "make another machine",
    };
    Ok(Readiness {
        ready: error.is_none(),
        route_ready,
        service_ready: error.is_none(),
        machine_id: machine_id.to_owned(),
        port,
        kind,
        checked_at: time::rfc3339(time::now()),
        elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        attempts,
        path,
        code: error
            .is_some()
            .then(|| code::PREVIEW_SERVICE_NOT_READY.to_owned()),
        suggested_action: error.is_some().then(|| action.to_owned()),
        error,
    })
}

fn check_path(path: Option<String>) -> Result<String> {
    let path = path
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    let is_path = path.len() <= MAX_PATH
        && path.starts_with('/')
        && path.parse::<http::uri::PathAndQuery>().is_ok();
    match is_path {
        true => Ok(path),
        false => Err(Error::invalid(
            "path: must begin with / and be as it stands in a url",
        )),
    }
}

async fn once(port: &Port, path: Option<&str>, patience: Duration) -> Result<(), String> {
    let number = port.port;
    let check = async {
        let stream = port
            .dial()
            .await
            .map_err(|_| format!("nothing listens on port {number}"))?;
        match path {
            Some(path) => ask(stream, number, path).await,
            None => Ok(()),
        }
    };
    let within = patience.as_secs_f64();
    match tokio::time::timeout(patience, check).await {
        Ok(result) => result,
        Err(_) => Err(match path {
            Some(path) => format!("GET {path} on port {number} has no answer within {within:.1} s"),
            None => format!("port {number} takes no connection within {within:.1} s"),
        }),
    }
}

async fn ask(stream: BoxedIo, port: u16, path: &str) -> Result<(), String> {
    let status = status(stream, port, path).await?;
    if status < StatusCode::INTERNAL_SERVER_ERROR {
        return Ok(());
    }
    Err(format!("GET {path} on port {port} answered {status}"))
}

/// What a page answers.
pub(in crate::app) async fn status(
    stream: BoxedIo,
    port: u16,
    path: &str,
) -> Result<StatusCode, String> {
    let request = Request::get(path)
        .header(header::HOST, format!("localhost:{port}"))
        .header(header::USER_AGENT, "nullspace-readiness")
        .header(header::CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|_| format!("path {path:?} cannot be asked for"))?;
    let failed = |_| format!("port {port} does not answer in HTTP");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer.map_err(failed)?.status())
}

//! What a template's machines do before they count as running: their start command, and the wait for it.

use std::time::Duration;

use nullspace_api::template::Readiness;
use nullspace_protocol::{ExecRequest as GuestExec, GuestClient, Retain, frame::Frame};
use nullspace_templates::Runtime;
use tokio::time::Instant;

use crate::app::preview::readiness;

/// How long one look may take.
const LOOK: Duration = Duration::from_secs(5);

/// Starts the start command in a new machine and waits until the machine is ready. How it failed comes back in words.
pub(in crate::app) async fn up(guest: &GuestClient, runtime: &Runtime) -> Result<(), String> {
    let mut started = None;
    if let Some(command) = &runtime.start_cmd {
        let request = GuestExec {
            argv: ["/bin/sh", "-c", command].map(str::to_owned).into(),
            user: runtime.user.clone(),
            retain: Retain::Tail,
            label: Some(command.clone()),
            ..GuestExec::default()
        };
        let pid = guest.spawn(&request).await;
        started = Some(pid.map_err(|error| format!("the start command did not start: {error}"))?);
    }
    let Some(check) = &runtime.readiness else {
        return Ok(());
    };
    if let Readiness::Timeout { timeout_ms } = check {
        tokio::time::sleep(Duration::from_millis(*timeout_ms)).await;
    }
    let Some(pace) = check.pace() else {
        return Ok(());
    };
    let (timeout, interval) = (
        Duration::from_secs(pace.timeout_secs),
        Duration::from_millis(pace.interval_ms),
    );
    let grace = Duration::from_secs(pace.startup_grace_secs);
    let end = Instant::now() + grace + timeout;
    // A look during the time of grace that finds it ready is as good as one after it.
    loop {
        let patience = LOOK.min(end.saturating_duration_since(Instant::now()));
        let why = match tokio::time::timeout(patience, look(guest, runtime, check)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() + interval >= end {
            let command = match started {
                Some(pid) => said(guest, pid).await,
                None => String::new(),
            };
            return Err(format!(
                "not ready after {} s: {why}{command}",
                (grace + timeout).as_secs()
            ));
        }
        tokio::time::sleep(interval).await;
    }
}

async fn look(guest: &GuestClient, runtime: &Runtime, check: &Readiness) -> Result<(), String> {
    match check {
        Readiness::Tcp { port, .. } => match guest.tunnel(*port).await {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("nothing listens on port {port}")),
        },
        Readiness::Http { port, path, .. } => {
            let stream = guest.tunnel(*port).await;
            let stream = stream.map_err(|_| format!("nothing listens on port {port}"))?;
            let status = readiness::status(stream, *port, path).await?;
            match status.is_client_error() || status.is_server_error() {
                true => Err(format!("GET {path} on port {port} answered {status}")),
                false => Ok(()),
            }
        }
        Readiness::Command { command, .. } => {
            let request = GuestExec {
                argv: ["/bin/sh", "-c", command].map(str::to_owned).into(),
                user: runtime.user.clone(),
                timeout_ms: u64::try_from(LOOK.as_millis()).ok(),
                label: Some("readiness".into()),
                ..GuestExec::default()
            };
            let failed = |error: nullspace_protocol::GuestError| error.to_string();
            let mut output = guest.exec(&request).await.map_err(failed)?;
            loop {
                match output.next().await.map_err(failed)? {
                    Some(Frame::Exit { code: 0, .. }) => return Ok(()),
                    Some(Frame::Exit { code, .. }) => {
                        return Err(format!("the readiness command ends with {code}"));
                    }
                    Some(_) => {}
                    None => return Err("the readiness command did not end".into()),
                }
            }
        }
        Readiness::Timeout { .. } => Ok(()),
    }
}

/// Whether the start command has ended, for whoever wonders why nothing is ready.
async fn said(guest: &GuestClient, pid: u32) -> String {
    match guest.process(pid).await {
        Ok(process) if !process.running => match process.exit_code {
            Some(code) => format!("; the start command has ended with {code}"),
            None => "; the start command has ended".into(),
        },
        _ => String::new(),
    }
}

//! Commands: run one and collect what it writes, or start one that goes on by itself.

use std::time::Instant;

use nullspace_api::{
    error::code,
    exec::{ExecRequest, ExecResponse},
};
use nullspace_protocol::{
    ErrorKind, ExecRequest as GuestExec, GuestClient, GuestError, OutputStream, PathRequest,
    Retain, frame::Frame,
};

use tracing::{Instrument, field::Empty};

use super::{App, AppState, machine};
use crate::error::{Error, Kind, Result};

/// Time limit of a command that asks for none.
pub(super) const DEFAULT_TIMEOUT_SECS: u64 = 30;
/// The longest time limit of a command.
const MAX_TIMEOUT_SECS: u64 = 24 * 3600;
/// Bytes of each stream that an answer holds; what comes later is read and dropped.
const MAX_STREAM: usize = 32 << 20;

/// A command that ended.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// For the caller.
    pub response: ExecResponse,
    /// The time limit that ended it, if one did.
    pub timed_out: Option<u64>,
}

/// Runs a foreground command to its end. Dropping the future kills it.
///
/// # Errors
/// `invalid_request` for a bad request or working directory, `exec_failed` when the machine cannot run
/// anything or goes away meanwhile, and those of [`machine::guest`]. All but the last come before anything
/// runs.
pub async fn run(app: AppState, id: String, request: ExecRequest) -> Result<Finished> {
    let begun = Instant::now();
    // Not the command: its words may be secret.
    let span = tracing::debug_span!("exec", machine = id, exit_code = Empty);
    let finished = to_its_end(&app, &id, request)
        .instrument(span.clone())
        .await;
    if let Ok(finished) = &finished {
        app.counts.commands.observe(begun.elapsed());
        span.record("exit_code", finished.response.exit_code);
    }
    finished
}

async fn to_its_end(app: &App, id: &str, request: ExecRequest) -> Result<Finished> {
    let timeout = request.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS);
    let mut exec = GuestExec {
        timeout_ms: Some(millis(timeout)?),
        collect: true,
        ..guest_request(request)?
    };
    let guest = machine::guest(app, id).await?;
    exec.user = user(app, id, &guest)?;
    match guest.exec(&exec).await {
        Ok(stream) => finish(stream, timeout).await,
        Err(GuestError::Lost { reason, .. }) => Err(went_away(reason)),
        Err(error) => Ok(Finished {
            response: not_started(&guest, &exec, error).await?,
            timed_out: None,
        }),
    }
}

/// Starts a background command. Its time limit does not apply: it runs until it ends.
///
/// # Errors
/// As [`run`].
pub async fn spawn(app: &App, id: &str, request: ExecRequest) -> Result<u32> {
    let request = guest_request(request)?;
    let guest = machine::guest(app, id).await?;
    let exec = GuestExec {
        stdin: true,
        user: user(app, id, &guest)?,
        retain: match guest.hello().protocol {
            ..STREAMS => Retain::Head,
            STREAMS.. => Retain::Live,
        },
        ..request
    };
    match guest.spawn(&exec).await {
        Ok(pid) => Ok(pid),
        Err(error) => {
            // Nothing runs, so there is no exit code to give: say what a shell would say.
            let never = not_started(&guest, &exec, error).await?;
            Err(Error::invalid(format!(
                "command: {}",
                never.stderr.trim_end()
            )))
        }
    }
}

/// The first version of the guest protocol with output for several followers, and terminals. Machines outlive the server
/// that made them.
const STREAMS: u32 = 2;

/// Refuses `what` in a machine whose guest is too old for it.
///
/// # Errors
/// `not_implemented`.
pub(super) fn require_streams(guest: &GuestClient, what: &str) -> Result<()> {
    if guest.hello().protocol >= STREAMS {
        return Ok(());
    }
    let what = format!("{what} in a machine that an earlier version made");
    Err(Error::not_implemented(what).with_action("make a new machine"))
}

/// The first version of the guest protocol with commands of other users.
const USERS: u32 = 5;

/// Whom commands in a machine run as, if not as root.
///
/// # Errors
/// `not_implemented` in a machine whose guest would run them as root all the same.
pub(super) fn user(app: &App, id: &str, guest: &GuestClient) -> Result<Option<String>> {
    let user = app.templates.user(id);
    if user.is_none() || guest.hello().protocol >= USERS {
        return Ok(user);
    }
    let what = "commands of another user than root under a launcher that an earlier version began";
    Err(Error::not_implemented(what).with_action("end that launcher, and make a new machine"))
}

/// A command that its caller follows and that outlives the caller.
pub(super) enum Begun {
    /// It runs: its output, from the first frame on.
    Running(OutputStream),
    /// It cannot be run: what a shell would say.
    Never(ExecResponse),
}

/// Starts a command whose output is streamed, for as long as somebody reads, and which goes on without. Without a time
/// limit it runs until it ends.
///
/// # Errors
/// As [`run`].
pub(super) async fn begin(app: &App, id: &str, request: ExecRequest) -> Result<Begun> {
    let timeout_ms = request.timeout_secs.map(millis).transpose()?;
    let mut exec = GuestExec {
        timeout_ms,
        stdin: true,
        retain: Retain::Live,
        ..guest_request(request)?
    };
    let guest = machine::guest(app, id).await?;
    require_streams(&guest, "streamed commands")?;
    exec.user = user(app, id, &guest)?;
    match guest.exec(&exec).await {
        Ok(stream) => Ok(Begun::Running(stream)),
        Err(GuestError::Lost { reason, .. }) => Err(went_away(reason)),
        Err(error) => Ok(Begun::Never(not_started(&guest, &exec, error).await?)),
    }
}

/// A time limit that is one.
fn millis(secs: u64) -> Result<u64> {
    if secs == 0 || secs > MAX_TIMEOUT_SECS {
        return Err(Error::invalid(format!(
            "timeout_secs: must be 1 to {MAX_TIMEOUT_SECS}"
        )));
    }
    Ok(secs * 1000)
}

pub(super) fn guest_request(request: ExecRequest) -> Result<GuestExec> {
    if request.command.is_empty() {
        return Err(Error::invalid("command: must not be empty"));
    }
    let args = request.args.unwrap_or_default();
    let cwd = match request.cwd.filter(|cwd| !cwd.is_empty()) {
        Some(cwd) => Some(machine::check_cwd(&cwd)?),
        None => None,
    };
    let env = request.envs.unwrap_or_default();
    if let Some(name) = env.keys().find(|k| k.is_empty() || k.contains(['=', '\0'])) {
        return Err(Error::invalid(format!(
            "envs: {name:?} cannot be the name of a variable"
        )));
    }
    let nul = request.command.contains('\0')
        || args.iter().any(|a| a.contains('\0'))
        || env.values().any(|v| v.contains('\0'));
    if nul {
        return Err(Error::invalid(
            "command: the command, its arguments and variables must not hold NUL bytes",
        ));
    }
    let shell = request.shell.unwrap_or(false);
    let (argv, label) = if shell {
        let label = request.command.clone();
        let head = ["/bin/sh".into(), "-c".into(), request.command];
        // The word after the script is its `$0`.
        let tail = (!args.is_empty())
            .then(|| std::iter::once("sh".to_owned()).chain(args))
            .into_iter()
            .flatten();
        (head.into_iter().chain(tail).collect(), Some(label))
    } else {
        (std::iter::once(request.command).chain(args).collect(), None)
    };
    Ok(GuestExec {
        argv,
        env,
        cwd,
        label,
        ..GuestExec::default()
    })
}

/// Tells a program that cannot be run (127, 126: a result) from a request that is wrong (an error).
async fn not_started(
    guest: &GuestClient,
    exec: &GuestExec,
    error: GuestError,
) -> Result<ExecResponse> {
    let exit_code = match error.kind() {
        Some(ErrorKind::NotFound) => 127,
        Some(ErrorKind::Permission) => 126,
        // Either the working directory or a file that is no program; only the first is the request's
        // fault.
        Some(ErrorKind::Invalid) if cwd_is_fine(guest, exec.cwd.as_deref()).await => 126,
        Some(ErrorKind::Invalid) => {
            return Err(Error::invalid(format!("cwd: {error}")));
        }
        Some(_) => {
            return Err(Error::new(
                Kind::Machine,
                code::EXEC_FAILED,
                error.to_string(),
            ));
        }
        None => return Err(error.into()),
    };
    Ok(ExecResponse {
        exit_code,
        stderr: format!("{error}\n"),
        ..ExecResponse::default()
    })
}

async fn cwd_is_fine(guest: &GuestClient, cwd: Option<&str>) -> bool {
    let Some(cwd) = cwd else { return true };
    let request = PathRequest {
        path: cwd.to_owned(),
        follow: true,
        ..PathRequest::default()
    };
    matches!(guest.stat(&request).await, Ok(info) if info.kind == nullspace_protocol::FileKind::Dir)
}

/// Collects the output until the command ends.
async fn finish(mut stream: OutputStream, limit: u64) -> Result<Finished> {
    let mut out = Capped::default();
    let mut err = Capped::default();
    let mut pid = None;
    loop {
        match stream.next().await.map_err(|e| went_away(e.to_string()))? {
            Some(Frame::Started(id)) => pid = Some(id),
            Some(Frame::Stdout(_, data)) => out.push(&data),
            Some(Frame::Stderr(_, data)) => err.push(&data),
            Some(Frame::Exit {
                code, timed_out, ..
            }) => {
                return Ok(Finished {
                    response: ExecResponse {
                        // Clients end with this number, and systems keep eight bits of it.
                        exit_code: code & 0xff,
                        stdout: out.text(),
                        stderr: err.text(),
                        pid,
                        truncated: out.dropped || err.dropped,
                    },
                    timed_out: timed_out.then_some(limit),
                });
            }
            None => return Err(went_away("the output ended before the command".into())),
        }
    }
}

pub(super) fn went_away(context: String) -> Error {
    Error::new(
        Kind::Machine,
        code::EXEC_FAILED,
        "the machine went away while the command ran",
    )
    .with_context(context)
}

impl Finished {
    /// The answer to a caller that can still be given an error.
    ///
    /// # Errors
    /// `exec_timeout`.
    pub fn or_timeout(self) -> Result<ExecResponse> {
        match self.timed_out {
            None => Ok(self.response),
            Some(limit) => Err(Error::new(
                Kind::Deadline,
                code::EXEC_TIMEOUT,
                format!("the command was ended at its time limit of {limit} s"),
            )
            .with_action("give a larger timeout_secs, or run it in the background")),
        }
    }

    /// The answer to a caller that was already told that all is well: 124, as `timeout(1)` does.
    #[must_use]
    pub fn or_124(self) -> ExecResponse {
        let mut response = self.response;
        if let Some(limit) = self.timed_out {
            response.exit_code = 124;
            if !response.stderr.is_empty() && !response.stderr.ends_with('\n') {
                response.stderr.push('\n');
            }
            response.stderr.push_str(&format!(
                "nullspace: the command was ended at its time limit of {limit} s\n"
            ));
        }
        response
    }
}

#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
    dropped: bool,
}

impl Capped {
    fn push(&mut self, data: &[u8]) {
        let room = MAX_STREAM - self.bytes.len();
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
        self.dropped |= data.len() > room;
    }

    fn text(&mut self) -> String {
        lossy(std::mem::take(&mut self.bytes))
    }
}

/// Text without a copy when the bytes are text already.
pub(crate) fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shell_scripts_get_their_arguments_from_one_on() {
        let request = ExecRequest {
            command: "echo $1".into(),
            args: Some(vec!["a".into()]),
            shell: Some(true),
            ..ExecRequest::default()
        };
        let exec = guest_request(request).unwrap();
        assert_eq!(exec.argv, ["/bin/sh", "-c", "echo $1", "sh", "a"]);
        assert_eq!(exec.label.as_deref(), Some("echo $1"));
    }

    #[test]
    fn output_over_the_cap_is_dropped_and_said() {
        let mut capped = Capped::default();
        capped.push(&vec![b'x'; MAX_STREAM - 1]);
        assert!(!capped.dropped);
        capped.push(b"yz");
        assert!(capped.dropped && capped.bytes.len() == MAX_STREAM);
    }
}

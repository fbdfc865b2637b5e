//! One git in a machine, from its arguments to how it ended.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use nullspace_api::error::code;
use nullspace_protocol::{
    ErrorKind, ExecRequest as GuestExec, GuestClient, GuestError, frame::Frame,
};

use super::{
    access::{Access, MAX_ASKED},
    refused::refused,
};
use crate::{
    app::exec::{lossy, went_away},
    error::{Error, Kind, Result},
};

/// The most that git may print for an answer.
const MAX_STDOUT: usize = 16 << 20;
/// What is kept of its messages: the end, where the reason stands.
const MAX_STDERR: usize = 64 << 10;
/// How long what uses no network may take.
const LOCAL: Duration = Duration::from_secs(5 * 60);

/// A git to run.
pub(super) struct Git<'a> {
    guest: &'a GuestClient,
    /// The operation, as people call it.
    what: &'static str,
    cwd: String,
    arguments: Vec<String>,
    access: &'a Access,
    limit: Duration,
    writes: bool,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: i32,
    pub(super) stdout: Vec<u8>,
    /// As text, without what was given to open a remote.
    pub(super) stderr: String,
}

impl<'a> Git<'a> {
    /// `git ARGUMENTS` in a directory.
    pub(super) fn new<S: Into<String>>(
        guest: &'a GuestClient,
        what: &'static str,
        cwd: impl Into<String>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            guest,
            what,
            cwd: cwd.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            access: &Access::Own,
            limit: LOCAL,
            writes: true,
        }
    }

    /// One that only looks: it does not wait for another git, and none waits for it.
    #[must_use]
    pub(super) fn reads(mut self) -> Self {
        self.writes = false;
        self
    }

    /// One that opens a remote.
    #[must_use]
    pub(super) fn reaches(mut self, access: &'a Access, limit: Duration) -> Self {
        self.access = access;
        self.limit = limit;
        self
    }

    /// Runs it and refuses an exit code that is not 0. Dropping the future ends it with all that it started.
    ///
    /// # Errors
    /// Those of [`Git::ended`], and what git would not do.
    pub(super) async fn run(self) -> Result<Ended> {
        let (what, access) = (self.what, self.access);
        let ended = self.ended().await?;
        match ended.code {
            0 => Ok(ended),
            _ => Err(refused(what, &ended, access)),
        }
    }

    /// Runs it to its end, however it ends.
    ///
    /// # Errors
    /// `not_found` and `invalid_request` (the directory), `git_unavailable`, `body_too_large` (what it printed),
    /// `exec_timeout`, `exec_failed`.
    pub(super) async fn ended(self) -> Result<Ended> {
        let stream = self.guest.exec(&self.request()).await;
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => return Err(self.not_started(error)),
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut pid = 0;
        let mut asked = 0;
        loop {
            let frame = stream.next().await;
            match frame.map_err(|e| went_away(e.to_string()))? {
                Some(Frame::Started(id)) => {
                    pid = id;
                    if let Access::Key(key) = self.access {
                        self.give(pid, key.expose().to_owned(), true).await;
                    }
                }
                Some(Frame::Stdout(_, data)) => {
                    if stdout.len() + data.len() > MAX_STDOUT {
                        return Err(self.too_much());
                    }
                    stdout.extend_from_slice(&data);
                }
                Some(Frame::Stderr(_, data)) => {
                    stderr.extend_from_slice(&data);
                    if let Access::Password(password) = self.access {
                        while asked < MAX_ASKED && take(&mut stderr, password.marker.as_bytes()) {
                            asked += 1;
                            self.give(pid, password.answer(), false).await;
                        }
                    }
                    let over = stderr.len().saturating_sub(MAX_STDERR);
                    stderr.drain(..over);
                }
                Some(Frame::Exit {
                    timed_out: true, ..
                }) => {
                    return Err(self.timed_out());
                }
                Some(Frame::Exit { code, .. }) => {
                    return Ok(Ended {
                        code: code & 0xff,
                        stdout,
                        stderr: self.access.scrub(&lossy(stderr)),
                    });
                }
                None => return Err(went_away("the output ended before git".into())),
            }
        }
    }

    fn request(&self) -> GuestExec {
        // Nobody is there to be asked, and its messages are to be understood.
        const ENV: [(&str, &str); 9] = [
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", ""),
            ("SSH_ASKPASS", ""),
            ("GIT_EDITOR", ":"),
            ("GIT_SEQUENCE_EDITOR", ":"),
            ("GIT_MERGE_AUTOEDIT", "no"),
            ("GIT_PAGER", "cat"),
            ("LC_ALL", "C"),
            ("LANGUAGE", ""),
        ];
        let locks = ("GIT_OPTIONAL_LOCKS", "0");
        let env: BTreeMap<String, String> = ENV
            .into_iter()
            .chain((!self.writes).then_some(locks))
            .chain(self.access.env())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let secret = !matches!(self.access, Access::Own);
        GuestExec {
            argv: self.access.argv(self.arguments.clone()),
            env,
            cwd: Some(self.cwd.clone()),
            timeout_ms: Some(u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX)),
            // The name of a remote could have been given a password by somebody: lists show the operation alone.
            label: Some(self.what.to_owned()),
            stdin: secret,
            collect: !secret,
            ..GuestExec::default()
        }
    }

    /// Writes to the pipe. One that nobody reads any more belongs to a git that says by itself what is wrong.
    async fn give(&self, pid: u32, text: String, close: bool) {
        let _ = self.guest.stdin(pid, Bytes::from(text), close).await;
    }

    fn not_started(&self, error: GuestError) -> Error {
        match error.kind() {
            Some(ErrorKind::NotFound | ErrorKind::Permission) => unavailable("git"),
            Some(ErrorKind::Invalid) => Error::not_found(code::NOT_FOUND, format!("path: {error}")),
            Some(_) => Error::new(Kind::Machine, code::EXEC_FAILED, error.to_string()),
            None => error.into(),
        }
    }

    fn too_much(&self) -> Error {
        let limit = MAX_STDOUT >> 20;
        Error::new(
            Kind::TooLarge,
            code::BODY_TOO_LARGE,
            format!("{}: git printed more than {limit} MiB", self.what),
        )
        .with_action("run git with exec, its output in a file, and read that; for status, ignore what is generated")
    }

    fn timed_out(&self) -> Error {
        let limit = self.limit.as_secs();
        Error::new(
            Kind::Deadline,
            code::EXEC_TIMEOUT,
            format!("{} was ended at its time limit of {limit} s", self.what),
        )
        .with_action("clone with depth 1, or run git with exec in the background")
    }
}

/// A program that the machine lacks.
pub(super) fn unavailable(program: &str) -> Error {
    Error::conflict(
        code::GIT_UNAVAILABLE,
        format!("the machine has no {program}"),
    )
    .with_action("install it (apt-get install git openssh-client), or use the template `base`")
}

/// Removes the first `marker` there is.
fn take(text: &mut Vec<u8>, marker: &[u8]) -> bool {
    let Some(at) = memchr::memmem::find(text, marker) else {
        return false;
    };
    text.drain(at..at + marker.len());
    true
}

//! The process in a machine that runs its kernels, and how it is spoken to.
//!
//! It is `crates/server/code/bridge.py`, over `jupyter_client`: one for each machine, started at first use, listening on the
//! machine's loopback. A request is a connection: one line of JSON there, one line back, and for some a line for each
//! event after that. Where it listens, and the word that lets in, are the first line of its output, which the guest keeps;
//! so a server that starts anew finds it again.
//!
//! What it says comes from the machine and is hostile: lines are bounded, and each is one of a few shapes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use nullspace_api::error::code;
use nullspace_protocol::{
    BoxedIo, ErrorKind, ExecRequest as GuestExec, GuestClient, GuestError, OutputQuery,
    PathRequest, Retain, WriteQuery, frame::Frame,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    app::{App, exec, machine},
    error::{Error, Kind, Result},
};

/// What lists of processes call it.
const LABEL: &str = "nullspace code";
/// The interpreter that it runs on; a machine that has it can run kernels.
const PROGRAM: &str = "/opt/nullspace/code/bin/python";
/// Where its files are put.
const HOME: &str = "/opt/nullspace/code/lib";
const FILES: [(&str, &str); 3] = [
    ("bridge.py", include_str!("../../../code/bridge.py")),
    ("kernel.py", include_str!("../../../code/kernel.py")),
    ("charts.py", include_str!("../../../code/charts.py")),
];
/// The longest line that it may say, in bytes.
const MAX_LINE: usize = 16 << 20;
/// How long it may take to say where it listens, and to answer; a kernel starts meanwhile.
const START: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(90);
/// How often a bridge that hangs up is asked again, and the pause before.
const ATTEMPTS: u32 = 4;
const AGAIN: Duration = Duration::from_millis(200);
/// Room for one read.
const CHUNK: usize = 64 << 10;

/// Where the bridges of machines are.
#[derive(Debug, Default)]
pub(crate) struct Bridges(Mutex<HashMap<String, Slot>>);

/// Held while somebody looks for the bridge of a machine: it is started once.
type Slot = Arc<tokio::sync::Mutex<Option<Address>>>;

impl Bridges {
    fn slot(&self, machine_id: &str) -> Slot {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(machine_id.to_owned()).or_default().clone()
    }

    /// Forgets those of machines that are gone.
    pub(crate) fn forget(&self, is_gone: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|id, _| !is_gone(id));
    }
}

/// Where one listens: its first line.
#[derive(Clone, PartialEq, Eq, Deserialize)]
struct Address {
    port: u16,
    token: String,
}

impl std::fmt::Debug for Address {
    /// Without the word that lets in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({})", self.port)
    }
}

/// A context as the bridge is told of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) language: String,
    pub(crate) cwd: String,
    pub(crate) instance: Option<String>,
}

/// What is to run.
#[derive(Clone, Serialize)]
pub(crate) struct Code {
    pub(crate) code: String,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) timeout: u64,
}

impl std::fmt::Debug for Code {
    /// Without the code and the variables.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A request.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Op {
    Execute {
        context: Wanted,
        #[serde(flatten)]
        code: Code,
    },
    Run {
        run: String,
        context: Wanted,
        #[serde(flatten)]
        code: Code,
    },
    Attach {
        run: String,
    },
    Cancel {
        run: String,
    },
    Forget {
        run: String,
    },
    Open {
        context: Wanted,
    },
    Close {
        context: Wanted,
    },
    Restart {
        context: Wanted,
    },
    Interrupt {
        context: Wanted,
    },
}

/// A request with the word that lets it in.
#[derive(Serialize)]
struct Request<'a> {
    token: &'a str,
    #[serde(flatten)]
    op: &'a Op,
}

/// The first line of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Reply {
    ok: bool,
    code: String,
    message: String,
    /// Names the process that answered.
    pub(crate) instance: Option<String>,
    /// What a cancelled run was: `queued`, `running`, `ended`.
    pub(crate) was: Option<String>,
}

/// A line after the first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Said {
    Started,
    Stdout {
        text: String,
        timestamp: i64,
    },
    Stderr {
        text: String,
        timestamp: i64,
    },
    Result {
        data: Map<String, Value>,
        chart: Option<Value>,
        main: bool,
    },
    Error {
        name: String,
        value: String,
        traceback: String,
    },
    Count {
        execution_count: u64,
    },
    File {
        path: String,
        size: u64,
        mime_type: String,
    },
    End {
        outcome: Outcome,
    },
}

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    Error,
    Cancelled,
}

/// Takes a whole line off the front of what was read.
fn take_line(buffer: &mut BytesMut, searched: &mut usize) -> Result<Option<BytesMut>, String> {
    match memchr::memchr(b'\n', &buffer[*searched..]) {
        Some(at) => {
            let line = buffer.split_to(*searched + at);
            buffer.advance(1);
            *searched = 0;
            Ok(Some(line))
        }
        None if buffer.len() > MAX_LINE => Err(format!("a line of over {MAX_LINE} bytes")),
        None => {
            *searched = buffer.len();
            Ok(None)
        }
    }
}

fn understand<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|e| format!("a line that means nothing: {e}"))
}

/// One request and its answer.
pub(crate) struct Conversation {
    io: BoxedIo,
    token: String,
    buffer: BytesMut,
    searched: usize,
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").finish_non_exhaustive()
    }
}

impl Conversation {
    fn new(io: BoxedIo, token: String) -> Self {
        Self {
            io,
            token,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// Asks, once.
    ///
    /// # Errors
    /// `exec_failed` when nobody answers or the kernel does not start, `capacity_exceeded` when too much waits,
    /// `not_found` for a run that is not known there.
    pub(crate) async fn ask(&mut self, op: &Op) -> Result<Reply> {
        self.try_ask(op)
            .await?
            .ok_or_else(|| silent("it closed the connection"))
    }

    /// The same; `None` when the other end went away without a word.
    async fn try_ask(&mut self, op: &Op) -> Result<Option<Reply>> {
        let request = Request {
            token: &self.token,
            op,
        };
        let mut line = serde_json::to_vec(&request)
            .map_err(|e| Error::internal(format!("a request to a kernel: {e}")))?;
        line.push(b'\n');
        let answer = async {
            // What it said before it hung up counts more than that it did.
            let _ = self.io.write_all(&line).await;
            self.line().await
        };
        let answered = tokio::time::timeout(ANSWER, answer).await;
        let Some(line) = answered.map_err(|_| silent("it took too long"))?? else {
            return Ok(None);
        };
        let reply: Reply = understand(&line).map_err(|e| silent(&e))?;
        if reply.ok {
            return Ok(Some(reply));
        }
        // It is the machine's word: short, and for the caller as it is.
        let message: String = reply.message.chars().take(1000).collect();
        Err(match reply.code.as_str() {
            "queue_full" => Error::new(Kind::Limit, code::CAPACITY_EXCEEDED, message)
                .with_action("wait until some of them ended, or use another context")
                .with_retry_after(1),
            "no_run" => Error::not_found(code::NOT_FOUND, message),
            _ => Error::new(Kind::Machine, code::EXEC_FAILED, message),
        })
    }

    /// What comes next; `None` when the other end is gone.
    ///
    /// # Errors
    /// `exec_failed` for what is no event. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Said>> {
        match self.line().await? {
            Some(line) => understand(&line).map(Some).map_err(|e| silent(&e)),
            None => Ok(None),
        }
    }

    async fn line(&mut self) -> Result<Option<Bytes>> {
        loop {
            let line = take_line(&mut self.buffer, &mut self.searched).map_err(|e| silent(&e))?;
            if let Some(line) = line {
                return Ok(Some(line.freeze()));
            }
            self.buffer.reserve(CHUNK);
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(silent(&error.to_string())),
            }
        }
    }
}

/// What runs the kernels does not do as it should.
fn silent(context: &str) -> Error {
    Error::new(
        Kind::Machine,
        code::EXEC_FAILED,
        "what runs the machine's kernels does not answer",
    )
    .with_context(context)
}

/// Asks a machine's bridge, which is started if need be. One that is just ending may take a connection and say nothing:
/// nothing of what it was asked goes on then, so the next one is asked.
///
/// # Errors
/// Those of [`connect`] and [`Conversation::ask`].
pub(crate) async fn converse(
    app: &App,
    machine_id: &str,
    op: &Op,
) -> Result<(Conversation, Reply)> {
    for _ in 0..ATTEMPTS {
        let mut conversation = connect(app, machine_id).await?;
        if let Some(reply) = conversation.try_ask(op).await? {
            return Ok((conversation, reply));
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(silent("it closed the connection, each time"))
}

/// A connection to a machine's bridge, which is started if need be.
///
/// # Errors
/// `not_implemented` for a machine without kernels, `exec_failed`, and those of [`machine::guest`].
async fn connect(app: &App, machine_id: &str) -> Result<Conversation> {
    let slot = app.code.bridges.slot(machine_id);
    let mut known = slot.lock().await;
    if let Some(conversation) = reach(app, machine_id, &mut known).await? {
        return Ok(conversation);
    }
    let guest = machine::guest(app, machine_id).await?;
    let address = begin(app, machine_id, &guest).await?;
    let io = machine::own_guest(app, machine_id)
        .await?
        .tunnel(address.port)
        .await
        .map_err(|e| silent(&e.to_string()))?;
    *known = Some(address.clone());
    Ok(Conversation::new(io, address.token))
}

/// The same, if there is one.
///
/// # Errors
/// Those of [`machine::guest`].
pub(crate) async fn find(app: &App, machine_id: &str) -> Result<Option<Conversation>> {
    let slot = app.code.bridges.slot(machine_id);
    let mut known = slot.lock().await;
    reach(app, machine_id, &mut known).await
}

/// Connects to the bridge that is known or can be found.
async fn reach(
    app: &App,
    machine_id: &str,
    known: &mut Option<Address>,
) -> Result<Option<Conversation>> {
    // A connection of its own: what one caller does not read holds up nobody else.
    let guest = machine::own_guest(app, machine_id).await?;
    if let Some(address) = known.as_ref() {
        match guest.tunnel(address.port).await {
            Ok(io) => return Ok(Some(Conversation::new(io, address.token.clone()))),
            Err(error) if error.kind().is_some() => *known = None,
            Err(error) => return Err(error.into()),
        }
    }
    let mut processes = guest.processes().await?;
    processes.retain(|process| process.running && process.command == LABEL);
    for process in processes.iter().rev() {
        let Ok(address) = announced(&guest, process.pid).await else {
            continue;
        };
        if let Ok(io) = guest.tunnel(address.port).await {
            *known = Some(address.clone());
            return Ok(Some(Conversation::new(io, address.token)));
        }
    }
    Ok(None)
}

/// Puts its files into the machine and starts it.
async fn begin(app: &App, machine_id: &str, guest: &GuestClient) -> Result<Address> {
    let program = PathRequest {
        path: PROGRAM.into(),
        follow: true,
        ..PathRequest::default()
    };
    match guest.stat(&program).await {
        Ok(_) => {}
        Err(error) if error.kind() == Some(ErrorKind::NotFound) => {
            let template = &machine::get(app, machine_id).await?.template;
            let what = format!(
                "running code in a machine of the template {template}, which has no kernels"
            );
            return Err(Error::not_implemented(what)
                .with_message(format!("machine {machine_id} cannot run code: its template {template} has no kernels"))
                .with_action("make the machine with the template code-interpreter, or run the code as a command"));
        }
        Err(error) => return Err(error.into()),
    }
    for (name, text) in FILES {
        let query = WriteQuery {
            path: format!("{HOME}/{name}"),
            mode: Some(0o644),
            ..WriteQuery::default()
        };
        let data = futures_util::stream::iter([Ok(Bytes::from_static(text.as_bytes()))]);
        guest.write(&query, data).await?;
    }
    let request = GuestExec {
        argv: vec![PROGRAM.into(), "-I".into(), format!("{HOME}/bridge.py")],
        cwd: Some("/".into()),
        label: Some(LABEL.into()),
        retain: Retain::Head,
        ..GuestExec::default()
    };
    let pid = guest.spawn(&request).await.map_err(not_started)?;
    let told = tokio::time::timeout(START, announced(guest, pid)).await;
    let told = told.unwrap_or_else(|_| Err(silent("it did not say where it listens")));
    if told.is_err() {
        // One that is of no use is not left behind.
        let _ = guest.signal(pid, 9).await;
    }
    told
}

fn not_started(error: GuestError) -> Error {
    Error::new(
        Kind::Machine,
        code::EXEC_FAILED,
        "what runs the machine's kernels could not be started",
    )
    .with_context(error.to_string())
}

/// What a bridge says first.
async fn announced(guest: &GuestClient, pid: u32) -> Result<Address> {
    const MAX: usize = 4096;
    let query = OutputQuery {
        from: 0,
        follow: true,
    };
    let mut output = guest.output(pid, query).await?;
    let (mut line, mut complaint) = (Vec::new(), Vec::new());
    loop {
        match output.next().await? {
            Some(Frame::Stdout(_, data)) => {
                line.extend_from_slice(&data);
                if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    return understand(&line[..end]).map_err(|e| silent(&e));
                }
            }
            Some(Frame::Stderr(_, data)) => {
                complaint.extend_from_slice(&data);
                complaint.truncate(MAX);
            }
            Some(Frame::Started(_)) => {}
            Some(Frame::Exit { .. }) | None => {
                let complaint = exec::lossy(complaint);
                let last = complaint.lines().last().unwrap_or_default();
                return Err(Error::new(
                    Kind::Machine,
                    code::EXEC_FAILED,
                    format!("what runs the machine's kernels ended at once: {last}"),
                ));
            }
        }
        if line.len() > MAX {
            return Err(silent("its first line is too long"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_one_flat_object() {
        let op = Op::Run {
            run: "crun_1".into(),
            context: Wanted {
                id: "ctx_1".into(),
                language: "python3".into(),
                cwd: "/".into(),
                instance: None,
            },
            code: Code {
                code: "1\n2".into(),
                envs: BTreeMap::new(),
                timeout: 5,
            },
        };
        let request = Request {
            token: "t",
            op: &op,
        };
        assert_eq!(
            serde_json::to_value(&request).unwrap(),
            serde_json::json!({"token": "t", "op": "run", "run": "crun_1", "code": "1\n2", "envs": {}, "timeout": 5,
                "context": {"id": "ctx_1", "language": "python3", "cwd": "/", "instance": null}})
        );
        assert!(
            !format!("{op:?}").contains("1\\n2"),
            "no code in debug output"
        );
    }

    #[test]
    fn events_are_read() {
        let said: Said = understand(br#"{"type":"end","outcome":"ok"}"#).unwrap();
        assert_eq!(
            said,
            Said::End {
                outcome: Outcome::Ok
            }
        );
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"type":"end"}"#,
            r#"{"type":"boo"}"#,
            r#"{"type":"count","execution_count":-1}"#,
        ] {
            assert!(understand::<Said>(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!(
            r#"{{"type":"result","main":true,"data":{{"a":{}1{}}}}}"#,
            "[".repeat(5000),
            "]".repeat(5000)
        );
        assert!(understand::<Said>(deep.as_bytes()).is_err());
    }

    proptest! {
        /// However the bytes of lines are cut up, the same lines come out; whatever they are, nothing panics.
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(text in proptest::collection::vec(any::<u8>(), 0..400), cuts in proptest::collection::vec(1..50_usize, 1..40)) {
            let (mut buffer, mut searched, mut lines) = (BytesMut::new(), 0, Vec::new());
            let (mut rest, mut cuts) = (&text[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                buffer.extend_from_slice(piece);
                rest = more;
                while let Some(line) = take_line(&mut buffer, &mut searched).unwrap() {
                    let _ = understand::<Said>(&line);
                    let _ = understand::<Reply>(&line);
                    lines.push(line.to_vec());
                }
            }
            let mut expected: Vec<Vec<u8>> = text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            prop_assert_eq!(expected.pop().unwrap(), buffer.to_vec());
            prop_assert_eq!(expected, lines);
        }

        /// Whatever JSON it says, it is an event or an error.
        #[test]
        fn objects_are_events_or_errors(kind in "started|stdout|result|error|count|file|end|[a-z]{1,5}", key in "[a-z_]{1,12}", value in any::<i64>()) {
            let line = serde_json::json!({"type": kind, key: value}).to_string();
            let _ = understand::<Said>(line.as_bytes());
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused() {
        let mut buffer = BytesMut::zeroed(MAX_LINE + 1);
        assert!(take_line(&mut buffer, &mut 0).is_err());
    }
}

//! One machine's WebSocket: what a client asks for there, each request in a task of its own.
//!
//! ```text
//!  frames in ──take──▶ a task for each request ──▶ frames out (few) ──▶ the connection
//! ```
//! Few frames wait on the way out: a client that reads slowly makes the tasks wait, these the guest, and the guest the
//! process. When the connection ends its tasks are dropped; processes go on.

mod text;
mod watch;

use std::collections::{BTreeMap, HashMap};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use nullspace_api::{
    error::code,
    exec::ExecRequest,
    id,
    pty::PtyInfo,
    socket::{ClientMessage, ServerMessage},
};
use nullspace_protocol::{OutputStream, frame::Frame};
use tokio::{sync::mpsc, task::JoinSet};

use self::text::Text;
pub(crate) use self::text::TextFrame;
use super::{
    AppState,
    exec::{self, Begun},
    machine,
    process::{self, KILL},
    pty::{self, Which},
};
use crate::error::{Error, Kind, Result};

/// Requests of one connection that are under way.
const MAX_TASKS: usize = 1000;
/// Pieces of standard input of one process that wait for it; then the connection waits.
const MAX_INPUTS: usize = 64;
/// The longest `id`, in bytes.
const MAX_ID: usize = 256;

/// One connection.
pub(crate) struct Socket {
    app: AppState,
    machine: String,
    out: mpsc::Sender<TextFrame>,
    tasks: JoinSet<()>,
    inputs: HashMap<u32, mpsc::Sender<Input>>,
    /// The shells of terminals that were typed into.
    shells: HashMap<String, u32>,
}

/// For a process's standard input.
struct Input {
    id: String,
    data: Bytes,
    kind: InputKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InputKind {
    Write,
    /// Close it.
    Close,
    /// A terminal's: that its shell has just ended is told by its own end.
    Typed,
}

impl Socket {
    /// Frames of answers go to `out`.
    pub(crate) fn new(app: AppState, machine: String, out: mpsc::Sender<TextFrame>) -> Self {
        Self {
            app,
            machine,
            out,
            tasks: JoinSet::new(),
            inputs: HashMap::new(),
            shells: HashMap::new(),
        }
    }

    /// Takes a frame. Waits while what it is for has enough to do.
    pub(crate) async fn take(&mut self, text: &str) {
        while self.tasks.try_join_next().is_some() {}
        let message = match serde_json::from_str::<ClientMessage>(text) {
            Ok(message) => message,
            Err(error) => return self.refuse(text, &error).await,
        };
        if message.id().len() > MAX_ID {
            let error = Error::invalid(format!("id: over {MAX_ID} bytes"));
            return self.answers("").refuse(&error).await;
        }
        let answers = self.answers(message.id());
        if self.tasks.len() >= MAX_TASKS {
            let error = Error::new(
                Kind::Limit,
                code::CAPACITY_EXCEEDED,
                format!("{MAX_TASKS} requests of this connection are under way"),
            );
            return answers.refuse(&error).await;
        }
        if self.machine.starts_with(id::VOLUME)
            && !matches!(message, ClientMessage::FileWatch { .. })
        {
            let error = Error::invalid("type: files of a volume can be watched, and nothing else");
            return answers.refuse(&error).await;
        }
        match message {
            ClientMessage::ExecStart {
                command,
                args,
                timeout_secs,
                cwd,
                envs,
                shell,
                ..
            } => {
                let request = ExecRequest {
                    command,
                    args: Some(args),
                    cwd,
                    envs,
                    shell,
                    background: None,
                    timeout_secs: timeout_secs.filter(|secs| *secs != exec::DEFAULT_TIMEOUT_SECS),
                };
                self.tasks.spawn(answers.run(request));
            }
            ClientMessage::ExecConnect { pid, .. } => {
                self.tasks.spawn(answers.attach(pid));
            }
            ClientMessage::ExecStdin { pid, data, .. } => {
                self.input(answers, pid, data.into(), InputKind::Write)
                    .await;
            }
            ClientMessage::ExecStdinClose { pid, .. } => {
                self.input(answers, pid, Bytes::new(), InputKind::Close)
                    .await;
            }
            ClientMessage::ExecKill { pid, .. } => {
                self.tasks.spawn(answers.kill(pid));
            }
            ClientMessage::PtyStart {
                cols,
                rows,
                cwd,
                envs,
                ..
            } => {
                self.tasks.spawn(answers.open((cols, rows), cwd, envs));
            }
            ClientMessage::PtyConnect {
                session_id, pid, ..
            } => {
                self.tasks.spawn(answers.connect(session_id, pid));
            }
            ClientMessage::PtyInput {
                session_id,
                data_base64,
                data,
                ..
            } => {
                if let Err(error) = self.typed(&answers, session_id, data_base64, data).await {
                    answers.refuse(&error).await;
                }
            }
            ClientMessage::FileWatch {
                path,
                user,
                recursive,
                timeout_secs,
                ..
            } => {
                self.tasks
                    .spawn(answers.watch(path, user, recursive, timeout_secs));
            }
            ClientMessage::PtyResize {
                session_id,
                cols,
                rows,
                ..
            } => {
                // Done before anything that is typed after it, and not worth the end of a session when it fails.
                let which = Which::Session(session_id);
                let _ = pty::resize(&self.app, &self.machine, &which, cols, rows).await;
            }
            ClientMessage::PtyKill { session_id, .. } => {
                let which = Which::Session(session_id);
                if let Err(error) = pty::kill(&self.app, &self.machine, &which).await {
                    answers.refuse(&error).await;
                }
            }
        }
    }

    /// Something was typed into a terminal.
    async fn typed(
        &mut self,
        answers: &Answers,
        session: String,
        data_base64: Option<String>,
        data: Option<String>,
    ) -> Result<()> {
        let data = match (data_base64, data) {
            (Some(encoded), None) => BASE64
                .decode(encoded)
                .map_err(|error| Error::invalid(format!("data_base64: {error}")))?,
            (None, Some(text)) => text.into_bytes(),
            _ => return Err(Error::invalid("data_base64 or data: one of them is needed")),
        };
        let pid = match self.shells.get(&session) {
            Some(pid) => *pid,
            None => {
                let which = Which::Session(session.clone());
                let pid = pty::get(&self.app, &self.machine, &which).await?.pid;
                self.shells.insert(session, pid);
                pid
            }
        };
        let answers = answers.clone();
        self.input(answers, pid, data.into(), InputKind::Typed)
            .await;
        Ok(())
    }

    /// Answers to what is no message, with its id if it has one.
    async fn refuse(&self, text: &str, error: &serde_json::Error) {
        let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let id = value["id"].as_str().unwrap_or_default();
        let id: String = id.chars().take(MAX_ID / 4).collect();
        let error = Error::invalid(format!("message: {error}"));
        self.answers(&id).refuse(&error).await;
    }

    fn answers(&self, id: &str) -> Answers {
        Answers {
            app: self.app.clone(),
            machine: self.machine.clone(),
            id: id.to_owned(),
            out: self.out.clone(),
        }
    }

    /// Input of one process is written in the order in which it came.
    async fn input(&mut self, answers: Answers, pid: u32, data: Bytes, kind: InputKind) {
        self.inputs.retain(|_, sender| !sender.is_closed());
        let input = Input {
            id: answers.id.clone(),
            data,
            kind,
        };
        let sender = self.inputs.entry(pid).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(MAX_INPUTS);
            self.tasks.spawn(answers.feed(pid, receiver));
            sender
        });
        let _ = sender.send(input).await;
    }
}

/// Who asked, and the way back.
#[derive(Clone)]
struct Answers {
    app: AppState,
    machine: String,
    id: String,
    out: mpsc::Sender<TextFrame>,
}

impl Answers {
    async fn say(&self, message: &ServerMessage<'_>) {
        // A connection that is gone is noticed by whoever holds it.
        if let Some(frame) = TextFrame::of(message) {
            let _ = self.out.send(frame).await;
        }
    }

    async fn refuse(&self, error: &Error) {
        let told = ServerMessage::Error {
            id: (&self.id).into(),
            code: error.code.into(),
            message: (&error.message).into(),
        };
        self.say(&told).await;
    }

    async fn run(self, request: ExecRequest) {
        let id = &self.id;
        match exec::begin(&self.app, &self.machine, request).await {
            Ok(Begun::Running(stream)) => self.follow(stream, 0).await,
            Ok(Begun::Never(response)) => {
                self.say(&ServerMessage::ExecStarted {
                    id: id.into(),
                    pid: 0,
                })
                .await;
                self.say(&ServerMessage::ExecStderr {
                    id: id.into(),
                    pid: 0,
                    data: (&response.stderr).into(),
                    data_base64: None,
                })
                .await;
                let exit_code = response.exit_code;
                let exit = ServerMessage::ExecExit {
                    id: id.into(),
                    pid: 0,
                    exit_code,
                };
                self.say(&exit).await;
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    async fn attach(self, pid: u32) {
        match process::follow(&self.app, &self.machine, pid).await {
            Ok(stream) => {
                let id = &self.id;
                self.say(&ServerMessage::ExecStarted { id: id.into(), pid })
                    .await;
                self.follow(stream, pid).await;
            }
            Err(error) => self.refuse(&error).await,
        }
    }

    /// Hands over what a process writes until it ends.
    async fn follow(&self, mut stream: OutputStream, mut pid: u32) {
        let id = &self.id;
        let (mut out, mut err) = (Text::default(), Text::default());
        let mut at = 0;
        loop {
            let frame = match stream.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return self.refuse(&exec::went_away(String::new())).await,
                Err(error) => return self.refuse(&exec::went_away(error.to_string())).await,
            };
            if let Frame::Stdout(offset, data) | Frame::Stderr(offset, data) = &frame {
                if let Some(bytes) = offset.checked_sub(at).filter(|bytes| *bytes > 0) {
                    self.say(&ServerMessage::ExecGap {
                        id: id.into(),
                        pid,
                        bytes,
                    })
                    .await;
                }
                at = offset + data.len() as u64;
            }
            match frame {
                Frame::Started(started) => {
                    pid = started;
                    self.say(&ServerMessage::ExecStarted { id: id.into(), pid })
                        .await;
                }
                Frame::Stdout(_, data) => self.output(pid, false, &mut out, &data).await,
                Frame::Stderr(_, data) => self.output(pid, true, &mut err, &data).await,
                Frame::Exit {
                    code,
                    timed_out,
                    total,
                } => {
                    self.rest(pid, false, &mut out).await;
                    self.rest(pid, true, &mut err).await;
                    if let Some(bytes) = total.checked_sub(at).filter(|bytes| *bytes > 0) {
                        self.say(&ServerMessage::ExecGap {
                            id: id.into(),
                            pid,
                            bytes,
                        })
                        .await;
                    }
                    let exit_code = if timed_out { 124 } else { code & 0xff };
                    if timed_out {
                        let data = "nullspace: the command was ended at its time limit\n";
                        self.piece(pid, true, data, None).await;
                    }
                    let exit = ServerMessage::ExecExit {
                        id: id.into(),
                        pid,
                        exit_code,
                    };
                    return self.say(&exit).await;
                }
            }
        }
    }

    async fn output(&self, pid: u32, stderr: bool, text: &mut Text, data: &[u8]) {
        // Most output is text that ends between characters.
        if text.is_whole()
            && let Ok(data) = std::str::from_utf8(data)
        {
            return self.piece(pid, stderr, data, None).await;
        }
        let bytes = text.take(data);
        self.bytes(pid, stderr, &bytes).await;
    }

    async fn rest(&self, pid: u32, stderr: bool, text: &mut Text) {
        let bytes = text.rest();
        self.bytes(pid, stderr, &bytes).await;
    }

    async fn bytes(&self, pid: u32, stderr: bool, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match std::str::from_utf8(bytes) {
            Ok(data) => self.piece(pid, stderr, data, None).await,
            Err(_) => {
                let encoded = BASE64.encode(bytes);
                let data = String::from_utf8_lossy(bytes);
                self.piece(pid, stderr, &data, Some(&encoded)).await;
            }
        }
    }

    async fn piece(&self, pid: u32, stderr: bool, data: &str, data_base64: Option<&str>) {
        let frame = TextFrame::output(&self.id, pid, stderr, data, data_base64);
        let _ = self.out.send(frame).await;
    }

    async fn open(
        self,
        size: (Option<u16>, Option<u16>),
        cwd: Option<String>,
        envs: Option<BTreeMap<String, String>>,
    ) {
        match pty::start(&self.app, &self.machine, size, cwd, envs).await {
            Ok(pty) => self.show(&pty).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    async fn connect(self, session: Option<String>, pid: Option<u32>) {
        let which = match (session, pid) {
            (Some(session), None) => Which::Session(session),
            (None, Some(pid)) => Which::Pid(pid),
            _ => {
                let error = Error::invalid("session_id or pid: one of them is needed");
                return self.refuse(&error).await;
            }
        };
        match pty::get(&self.app, &self.machine, &which).await {
            Ok(pty) => self.show(&pty).await,
            Err(error) => self.refuse(&error).await,
        }
    }

    /// Hands over what a terminal shows until its shell ends.
    async fn show(&self, pty: &PtyInfo) {
        let (id, session_id) = (&self.id, &pty.session_id);
        let mut stream = match process::follow(&self.app, &self.machine, pty.pid).await {
            Ok(stream) => stream,
            Err(error) => return self.refuse(&error).await,
        };
        let started = ServerMessage::PtyStarted {
            id: id.into(),
            session_id: session_id.into(),
            pid: pty.pid,
            cols: pty.cols,
            rows: pty.rows,
        };
        self.say(&started).await;
        let mut is_first = true;
        loop {
            match stream.next().await {
                Ok(Some(Frame::Started(_))) => {}
                Ok(Some(Frame::Stdout(offset, data) | Frame::Stderr(offset, data))) => {
                    // What is kept may begin in the middle of a line, or of a word to the terminal.
                    let whole = match std::mem::take(&mut is_first) && offset > 0 {
                        true => data
                            .iter()
                            .position(|byte| *byte == b'\n')
                            .map_or(0, |at| at + 1),
                        false => 0,
                    };
                    let data = &data[whole..];
                    let shown = ServerMessage::PtyOutput {
                        id: id.into(),
                        session_id: session_id.into(),
                        data_base64: BASE64.encode(data).into(),
                        data: String::from_utf8_lossy(data),
                    };
                    self.say(&shown).await;
                }
                Ok(Some(Frame::Exit { code, .. })) => {
                    let exit_code = code & 0xff;
                    let exited = ServerMessage::PtyExited {
                        id: id.into(),
                        session_id: session_id.into(),
                        exit_code,
                    };
                    return self.say(&exited).await;
                }
                Ok(None) => return self.refuse(&exec::went_away(String::new())).await,
                Err(error) => return self.refuse(&exec::went_away(error.to_string())).await,
            }
        }
    }

    async fn kill(self, pid: u32) {
        let killed = async {
            let guest = machine::guest(&self.app, &self.machine).await?;
            Ok::<_, Error>(guest.signal(pid, KILL).await?)
        };
        if let Err(error) = killed.await {
            self.refuse(&error).await;
        }
    }

    async fn feed(mut self, pid: u32, mut inputs: mpsc::Receiver<Input>) {
        while let Some(input) = inputs.recv().await {
            self.id = input.id;
            let written = match input.kind {
                InputKind::Typed => self.type_on(pid, input.data, &mut inputs).await,
                InputKind::Write | InputKind::Close => {
                    let close = input.kind == InputKind::Close;
                    self.write(pid, input.data, close).await
                }
            };
            match written {
                Err(error) if input.kind != InputKind::Typed || error.kind != Kind::Invalid => {
                    self.refuse(&error).await;
                }
                _ => {}
            }
        }
    }

    async fn write(&self, pid: u32, data: Bytes, close: bool) -> Result<()> {
        let guest = machine::guest(&self.app, &self.machine).await?;
        Ok(guest.stdin(pid, data, close).await?)
    }

    /// Everything that is typed into a terminal from now on goes through one request: one for each key would be a good
    /// part of the time until it shows.
    async fn type_on(
        &self,
        pid: u32,
        first: Bytes,
        inputs: &mut mpsc::Receiver<Input>,
    ) -> Result<()> {
        let guest = machine::guest(&self.app, &self.machine).await?;
        // Ends with the connection only, and this with it.
        let rest = stream::unfold(inputs, |inputs| async {
            let input = inputs.recv().await?;
            Some((input.data, inputs))
        });
        // Not through a channel of its own: a task that wakes itself goes to the end of the queue, and another thread is
        // woken to help.
        let keys = stream::iter([first]).chain(rest);
        Ok(guest.typing(pid, keys.map(Ok)).await?)
    }
}

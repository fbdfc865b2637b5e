//! Session channels: shells, commands and SFTP.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use nullspace_protocol::{
    ExecRequest, GuestClient, Login, OutputStream, SIGNALLED, Terminal, TerminalSize, frame::Frame,
};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, server::Msg};
use tokio::{
    io::AsyncWriteExt,
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    handler::Client,
    stream::{self, Input, Inputs},
};
use crate::error::{Error, Result};

/// Signals and changes of size that wait; what comes beyond that is dropped.
const MAX_CONTROLS: usize = 16;
/// Variables of one session.
const MAX_VARIABLES: usize = 64;
/// The longest value of one.
const MAX_VALUE: usize = 4 << 10;
/// The longest line and the most lines of a terminal.
const MAX_SIZE: u32 = 2000;
/// The one subsystem that there is.
const SFTP: &str = "sftp";
/// The exit code of what never ran.
const NEVER: u32 = 255;

enum Control {
    Size(TerminalSize),
    Signal(i32),
}

/// What is to be run.
enum What {
    Shell,
    Command(String),
    Files,
}

/// What a client said before it asked to run something.
#[derive(Default)]
struct Setting {
    variables: BTreeMap<String, String>,
    terminal: Option<TerminalSize>,
}

/// Whether a variable of the client's is set in the machine: how it writes, not where it finds programs.
pub(super) fn is_welcome(name: &str, value: &str) -> bool {
    let known =
        name == "LANG" || name == "LANGUAGE" || name == "COLORTERM" || name.starts_with("LC_");
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    known && name.len() <= 64 && name.chars().all(plain) && is_value(value)
}

fn is_value(value: &str) -> bool {
    value.len() <= MAX_VALUE && !value.contains('\0')
}

/// Whether it is one that can be run.
pub(super) fn is_subsystem(name: &str) -> bool {
    name == SFTP
}

/// Runs whatever is asked for on a channel, until it ends or the channel is closed.
pub(super) async fn run(client: Arc<Client>, channel: Channel<Msg>, _place: OwnedSemaphorePermit) {
    let (read, write) = channel.split();
    let (inputs, waiting) = mpsc::unbounded_channel();
    let (controls, wanted) = mpsc::channel(MAX_CONTROLS);
    let (start, started) = oneshot::channel();
    let listening = listen(&client, read, start, inputs, controls);
    let working = async {
        let Ok((what, setting)) = started.await else {
            return;
        };
        let ended = work(&client, what, setting, &write, waiting, wanted).await;
        finish(&client, &write, ended).await;
    };
    // What still runs is hung up when its output is not asked for any more.
    tokio::select! {
        () = listening => {}
        () = working => {}
    }
}

/// Takes everything from the library at once, so that it never waits: see [`super::gate`]. Returns when the channel is
/// closed.
async fn listen(
    client: &Client,
    mut read: ChannelReadHalf,
    start: oneshot::Sender<(What, Setting)>,
    inputs: mpsc::UnboundedSender<Input>,
    controls: mpsc::Sender<Control>,
) {
    let mut start = Some(start);
    let mut setting = Setting::default();
    let mut begin = |what, setting: &mut Setting| {
        if let Some(start) = start.take() {
            let _ = start.send((what, std::mem::take(setting)));
        }
    };
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                stream::take(&client.meter, &inputs, data);
            }
            ChannelMsg::Eof => {
                let _ = inputs.send(Input::Eof);
            }
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                ..
            } => {
                setting.terminal = Some(size(col_width, row_height));
                if is_value(&term) && !term.is_empty() {
                    setting.variables.insert("TERM".into(), term);
                }
            }
            ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            } => {
                let room = setting.variables.len() < MAX_VARIABLES;
                if room && is_welcome(&variable_name, &variable_value) {
                    setting.variables.insert(variable_name, variable_value);
                }
            }
            ChannelMsg::RequestShell { .. } => begin(What::Shell, &mut setting),
            ChannelMsg::Exec { command, .. } => {
                let command = String::from_utf8_lossy(&command).into_owned();
                begin(What::Command(command), &mut setting);
            }
            ChannelMsg::RequestSubsystem { name, .. } if is_subsystem(&name) => {
                begin(What::Files, &mut setting);
            }
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                ..
            } => {
                let _ = controls.try_send(Control::Size(size(col_width, row_height)));
            }
            ChannelMsg::Signal { signal } => {
                if let Some(number) = number(&signal) {
                    let _ = controls.try_send(Control::Signal(number));
                }
            }
            ChannelMsg::Close => return,
            _ => {}
        }
    }
}

/// How something ended.
enum Ended {
    Code(i32),
    /// It never ran, or nobody knows.
    Failed(Error),
}

async fn work(
    client: &Client,
    what: What,
    setting: Setting,
    write: &ChannelWriteHalf<Msg>,
    inputs: Inputs,
    controls: mpsc::Receiver<Control>,
) -> Ended {
    let is_terminal = setting.terminal.is_some();
    let command = match what {
        What::Shell => None,
        What::Command(command) => Some(command),
        What::Files => return files(client, write, inputs).await,
    };
    let request = request(client, command, setting);
    let begun = async {
        let guest = client.guest().await?;
        let mut stream = guest.exec(&request).await?;
        match stream.next().await? {
            Some(Frame::Started(pid)) => Ok((guest, stream, pid)),
            _ => Err(Error::internal("a process without an id")),
        }
    };
    let (guest, stream, pid) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return Ended::Failed(error),
    };
    let beside = async {
        tokio::join!(
            feed(&guest, pid, inputs, is_terminal),
            steer(&guest, pid, controls)
        );
        std::future::pending().await
    };
    tokio::select! {
        ended = show(client, stream, write) => match ended {
            Ok(code) => Ended::Code(code),
            Err(error) => Ended::Failed(error),
        },
        never = beside => never,
    }
}

/// Answers SFTP until the client has no more requests.
async fn files(client: &Client, write: &ChannelWriteHalf<Msg>, inputs: Inputs) -> Ended {
    let opening = async {
        let guest = client.guest().await?;
        Ok::<_, Error>(guest.sftp(&client.admission.user).await?)
    };
    match opening.await {
        Ok(io) => {
            stream::carry(client, io, write, inputs, &CancellationToken::new()).await;
            Ended::Code(0)
        }
        Err(error) => Ended::Failed(error),
    }
}

fn request(client: &Client, command: Option<String>, setting: Setting) -> ExecRequest {
    let (theirs, ours) = client.addresses;
    let mut env = setting.variables;
    let (from, to) = (theirs.ip(), ours.ip());
    let (from_port, to_port) = (theirs.port(), ours.port());
    env.insert("SSH_CLIENT".into(), format!("{from} {from_port} {to_port}"));
    env.insert(
        "SSH_CONNECTION".into(),
        format!("{from} {from_port} {to} {to_port}"),
    );
    ExecRequest {
        env,
        stdin: true,
        login: Some(Login {
            user: client.admission.user.clone(),
            command,
        }),
        // Without a name it is not listed among the terminals that live on.
        terminal: setting.terminal.map(|size| Terminal {
            session: String::new(),
            size,
        }),
        ..ExecRequest::default()
    }
}

/// Hands over what a process writes, until it ends: its exit code.
async fn show(
    client: &Client,
    mut stream: OutputStream,
    write: &ChannelWriteHalf<Msg>,
) -> Result<i32> {
    let (mut out, mut err) = (write.make_writer(), write.make_writer_ext(Some(1)));
    loop {
        let written = match stream.next().await? {
            Some(Frame::Started(_)) => Ok(()),
            Some(Frame::Stdout(_, data)) => client.meter.writing(out.write_all(&data)).await,
            Some(Frame::Stderr(_, data)) => client.meter.writing(err.write_all(&data)).await,
            Some(Frame::Exit { code, .. }) => return Ok(code),
            None => {
                return Err(Error::internal(
                    "the output of a process ended before it did",
                ));
            }
        };
        // The connection is gone, and this with it.
        if written.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Hands what comes to a process, which may let it wait.
async fn feed(guest: &GuestClient, pid: u32, mut inputs: Inputs, is_terminal: bool) {
    // Not through a channel of its own: that would wake the task that it is in.
    let typed = futures_util::stream::unfold(&mut inputs, |inputs| async {
        match inputs.recv().await {
            Some(Input::Data(data, _share)) => Some((Ok(data), inputs)),
            Some(Input::Eof) | None => None,
        }
    });
    let typed = guest.typing(pid, typed).await;
    // A terminal has no end that could be told.
    if typed.is_ok() && !is_terminal {
        let _ = guest.stdin(pid, Bytes::new(), true).await;
    }
    // The process does not want any more.
    while inputs.recv().await.is_some() {}
}

async fn steer(guest: &GuestClient, pid: u32, mut controls: mpsc::Receiver<Control>) {
    while let Some(control) = controls.recv().await {
        // One that comes too late, or makes no sense, is no reason to end.
        let _ = match control {
            Control::Size(size) => guest.resize(pid, size).await,
            Control::Signal(number) => guest.signal(pid, number).await,
        };
    }
}

/// Says how it ended, and closes the channel.
async fn finish(client: &Client, write: &ChannelWriteHalf<Msg>, ended: Ended) {
    let code = match ended {
        Ended::Code(code) => code,
        Ended::Failed(error) => {
            tracing::debug!(context = ?error.context, message = error.message, "an ssh session failed");
            let text = format!("nullspace: {}\r\n", error.message);
            let told = write.extended_data_bytes(1, text);
            let _ = client.meter.writing(told).await;
            let _ = write.exit_status(NEVER).await;
            let _ = write.eof().await;
            let _ = write.close().await;
            return;
        }
    };
    match (code & SIGNALLED != 0)
        .then(|| signal(code & 0x7f))
        .flatten()
    {
        Some(signal) => {
            let id = write.id();
            let _ = client
                .handle
                .exit_signal_request(id, signal, false, String::new(), String::new())
                .await;
        }
        None => {
            let _ = write.exit_status((code & 0xff) as u32).await;
        }
    }
    let _ = write.eof().await;
    let _ = write.close().await;
}

fn size(cols: u32, rows: u32) -> TerminalSize {
    let sane = |count: u32, usual: u16| match count {
        0 => usual,
        count => count.min(MAX_SIZE) as u16,
    };
    TerminalSize {
        cols: sane(cols, 80),
        rows: sane(rows, 24),
    }
}

/// The signals that the protocol names, and the few that are sent besides.
const SIGNALS: [(&str, i32); 15] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("ABRT", 6),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("WINCH", 28),
];

fn number(signal: &Sig) -> Option<i32> {
    let name = match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(name) => name,
    };
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

fn signal(number: i32) -> Option<Sig> {
    Some(match number {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        other => Sig::Custom(
            SIGNALS
                .iter()
                .find(|(_, known)| *known == other)?
                .0
                .to_owned(),
        ),
    })
}

//! A machine's WebSocket: a flood of output on its way to a client, and keys on their way to a terminal and back.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::{Value, json};

use super::{
    api::{KEY, Server},
    peers::{Bundle, Live},
    table::{Samples, Table},
};

/// Lines of 100 bytes, 128 MiB of them, where both sides have a folder in memory.
const MAKE: &str = "yes $(printf %099d 7) | head -c 134217700 > /dev/shm/text";
/// Eight times that: 1 GiB.
const PRINT: &str = "for i in 1 2 3 4 5 6 7 8; do cat /dev/shm/text; done";
const LINES: usize = 8 * 1_342_177;
const ROUNDS: usize = 3;
const WARM_UP: usize = 20;

pub(crate) async fn run(
    server: &Server,
    bundle: &Bundle,
    n: usize,
    table: &mut Table,
) -> Result<()> {
    let mut client = server.client().await?;
    let body =
        json!({ "template": "base", "vcpus": 2, "memory_mb": 2048, "timeout_ms": 3_600_000 });
    let info = client
        .call(hyper::Method::POST, "/v1/sandboxes", Some(body))
        .await?;
    let machine = info["id"].as_str().context("no id")?.to_owned();
    let live = bundle.live("crun").context("crun")?;
    let address = server.address.clone();
    flood(&address, &machine, &live, server.pid(), table)?;
    keys(&address, &machine, &live, n, table)?;
    client.delete(&machine).await
}

fn flood(address: &str, machine: &str, live: &Live, serve: u32, table: &mut Table) -> Result<()> {
    let mut socket = Socket::open(address, machine)?;
    socket.shell(MAKE)?;
    while socket.next()?["type"] != "exec_exit" {}
    live.sh(MAKE)?;
    let before = peak(serve)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        socket.shell(PRINT)?;
        let mut lines = 0;
        loop {
            let frame = socket.frame()?;
            if frame.starts_with(b"{\"type\":\"exec_stdout\"") {
                // A line end is the only thing in it that is escaped.
                lines += memchr::memchr_iter(b'\\', frame).count();
            } else if frame.starts_with(b"{\"type\":\"exec_exit\"") {
                break;
            }
        }
        ensure!(lines == LINES, "{lines} of {LINES} lines came");
        let took = start.elapsed();
        let peer = live.sh(PRINT)?;
        if round > 0 {
            ours.push(took);
            theirs.push(peer);
        }
    }
    let theirs = Samples::new(theirs);
    let goal = [("crun exec to a pipe", Some(theirs.p50()), Some(2.0))];
    table.row("1 GiB of output over WebSocket", &Samples::new(ours), &goal);
    let after = peak(serve)?;
    table.note(format!(
        "peak memory of serve: {before} kB before, {after} kB after"
    ));
    Ok(())
}

/// The most memory that a process ever had, in kB.
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kb = line.and_then(|line| line.split_whitespace().next());
    Ok(kb.context("no VmHWM")?.parse()?)
}

/// Letters that the terminal itself shows again.
fn keys(address: &str, machine: &str, live: &Live, n: usize, table: &mut Table) -> Result<()> {
    let mut socket = Socket::open(address, machine)?;
    socket.send(&json!({"type": "pty_start", "id": "t", "cols": 80, "rows": 24}))?;
    let started = socket.next()?;
    let session = started["session_id"].as_str().context("no session")?;
    let typed =
        |text: &str| json!({"type": "pty_input", "id": "t", "session_id": session, "data": text});
    socket.send(&typed("exec cat\r"))?;
    socket.send(&typed("ready\r"))?;
    // Once as it is typed, once as `cat` repeats it.
    let mut shown = String::new();
    while shown.matches("ready").count() < 2 {
        shown.push_str(socket.next()?["data"].as_str().unwrap_or_default());
    }
    let mut peer = live.terminal()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for n in 0..n + WARM_UP {
        // A line is not endless.
        let key = if n % 64 == 63 { "\r" } else { "k" };
        let start = Instant::now();
        socket.send(&typed(key))?;
        socket.next()?;
        let took = start.elapsed();
        let their = peer.key(key.as_bytes())?;
        if n % 64 == 63 {
            // What `cat` repeats.
            std::thread::sleep(Duration::from_millis(20));
            socket.drain()?;
            peer.drain()?;
        } else if n >= WARM_UP {
            ours.push(took);
            theirs.push(their);
        }
    }
    let theirs = Samples::new(theirs);
    table.row("peer: keystroke echo, crun exec -t", &theirs, &[]);
    let goal = [("crun exec -t", Some(theirs.p50()), Some(2.0))];
    table.row("keystroke echo, PTY", &Samples::new(ours), &goal);
    Ok(())
}

/// A client that reads as fast as it can.
struct Socket {
    stream: BufReader<TcpStream>,
    frame: Vec<u8>,
}

impl Socket {
    fn open(address: &str, machine: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "GET /v1/machines/{machine}/ws HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {KEY}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        let mut stream = BufReader::with_capacity(1 << 20, stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        ensure!(line.contains(" 101 "), "{line}");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line)?;
        }
        Ok(Self {
            stream,
            frame: Vec::new(),
        })
    }

    fn send(&mut self, message: &Value) -> Result<()> {
        let text = message.to_string();
        // Masked with zeroes: the text as it is.
        let mut frame = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(length @ ..126) => frame.push(0x80 | length),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(text.len())?.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        Ok(self.stream.get_mut().write_all(&frame)?)
    }

    fn shell(&mut self, line: &str) -> Result<()> {
        self.send(
            &json!({"type": "exec_start", "id": "s", "command": line, "args": [], "shell": true}),
        )
    }

    /// The next frame that is no ping.
    fn frame(&mut self) -> Result<&[u8]> {
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head)?;
            let length = match head[1] {
                126 => {
                    let mut length = [0; 2];
                    self.stream.read_exact(&mut length)?;
                    u16::from_be_bytes(length).into()
                }
                127 => {
                    let mut length = [0; 8];
                    self.stream.read_exact(&mut length)?;
                    u64::from_be_bytes(length)
                }
                length => length.into(),
            };
            self.frame.resize(usize::try_from(length)?, 0);
            self.stream.read_exact(&mut self.frame)?;
            match head[0] & 15 {
                1 => return Ok(&self.frame),
                9 => {}
                other => bail!("a frame of kind {other}"),
            }
        }
    }

    fn next(&mut self) -> Result<Value> {
        Ok(serde_json::from_slice(self.frame()?)?)
    }

    /// Takes what is there.
    fn drain(&mut self) -> Result<()> {
        self.stream
            .get_ref()
            .set_read_timeout(Some(Duration::from_millis(20)))?;
        while self.stream.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
            self.frame()?;
        }
        Ok(self.stream.get_ref().set_read_timeout(None)?)
    }
}

/// A program in a terminal of ours. Ends with its value.
pub(crate) struct Terminal {
    master: File,
    child: Child,
}

impl Terminal {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let peer = File::from(ioctl_tiocgptpeer(&master, flags)?);
        let child = command
            .stdin(peer.try_clone()?)
            .stdout(peer.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut terminal = Self {
            master: master.into(),
            child,
        };
        terminal.master.write_all(b"ready\r")?;
        let (mut shown, mut piece) = (String::new(), [0; 4096]);
        while shown.matches("ready").count() < 2 {
            let n = terminal.master.read(&mut piece)?;
            shown.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        Ok(terminal)
    }

    /// Until a key is shown.
    fn key(&mut self, key: &[u8]) -> Result<Duration> {
        let start = Instant::now();
        self.master.write_all(key)?;
        self.master.read_exact(&mut [0; 1])?;
        Ok(start.elapsed())
    }

    /// Takes what is there.
    fn drain(&mut self) -> Result<()> {
        rustix::io::ioctl_fionbio(&self.master, true)?;
        while self.master.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
        Ok(rustix::io::ioctl_fionbio(&self.master, false)?)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A machine's WebSocket: a flood of output on its way to a client, and keys on their way to a terminal and back.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::json;

use super::{
    api::Server,
    peers::{Bundle, Live},
    socket::Socket,
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
    let mut shown = String::new();
    // A shell that reads lines takes what comes too early for its own.
    while !shown.trim_end().ends_with(['#', '$']) {
        shown.push_str(socket.next()?["data"].as_str().unwrap_or_default());
    }
    socket.send(&typed("exec cat\r"))?;
    std::thread::sleep(Duration::from_millis(300));
    socket.drain()?;
    socket.send(&typed("ready\r"))?;
    // Once as it is typed, once as `cat` repeats it.
    let mut shown = String::new();
    while shown.matches("ready").count() < 2 {
        shown.push_str(socket.next()?["data"].as_str().unwrap_or_default());
    }
    let mut peer = live.terminal()?;
    let ours = |key: &[u8]| {
        let start = Instant::now();
        socket.send(&typed(std::str::from_utf8(key)?))?;
        let took = socket.next().map(|_| start.elapsed())?;
        if key == b"\r" {
            // What `cat` repeats.
            std::thread::sleep(Duration::from_millis(20));
            socket.drain()?;
        }
        Ok(took)
    };
    let (ours, theirs) = by_turns(n, ours, |key| peer.key(key))?;
    let theirs = Samples::new(theirs);
    table.row("peer: keystroke echo, crun exec -t", &theirs, &[]);
    let goal = [("crun exec -t", Some(theirs.p50()), Some(2.0))];
    table.row("keystroke echo, PTY", &Samples::new(ours), &goal);
    Ok(())
}

/// Keys on two sides, one after the other; how long they take to show.
pub(crate) fn by_turns(
    n: usize,
    mut ours: impl FnMut(&[u8]) -> Result<Duration>,
    mut theirs: impl FnMut(&[u8]) -> Result<Duration>,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut our, mut their) = (Vec::new(), Vec::new());
    for n in 0..n + WARM_UP {
        // A line is not endless.
        let is_end = n % 64 == 63;
        let key = if is_end { b"\r" } else { b"k" };
        let took = (ours(key)?, theirs(key)?);
        if !is_end && n >= WARM_UP {
            our.push(took.0);
            their.push(took.1);
        }
    }
    Ok((our, their))
}

/// A program in a terminal of ours. Ends with its value.
pub(crate) struct Terminal {
    master: File,
    child: Child,
}

impl Terminal {
    /// `cat`, or what else repeats its input.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut terminal = Self::open(command)?;
        terminal.repeats()?;
        Ok(terminal)
    }

    /// The same for one that says a word before it listens.
    pub(crate) fn greeted(command: &mut Command, word: &str) -> Result<Self> {
        let mut terminal = Self::open(command)?;
        terminal.shows(word, 1)?;
        terminal.repeats()?;
        Ok(terminal)
    }

    fn open(command: &mut Command) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let peer = File::from(ioctl_tiocgptpeer(&master, flags)?);
        let child = command
            .stdin(peer.try_clone()?)
            .stdout(peer.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            master: master.into(),
            child,
        })
    }

    /// Until it repeats a word: once as it is typed, once by itself.
    fn repeats(&mut self) -> Result<()> {
        self.master.write_all(b"ready\r")?;
        self.shows("ready", 2)?;
        std::thread::sleep(Duration::from_millis(20));
        self.drain()
    }

    fn shows(&mut self, word: &str, times: usize) -> Result<()> {
        let (mut shown, mut piece) = (String::new(), [0; 4096]);
        while shown.matches(word).count() < times {
            let n = self.master.read(&mut piece)?;
            ensure!(n > 0, "it ended: {shown}");
            shown.push_str(&String::from_utf8_lossy(&piece[..n]));
        }
        Ok(())
    }

    /// Until a key is shown.
    pub(crate) fn key(&mut self, key: &[u8]) -> Result<Duration> {
        let start = Instant::now();
        self.master.write_all(key)?;
        self.master.read_exact(&mut [0; 1])?;
        let took = start.elapsed();
        if key == b"\r" {
            // What `cat` repeats.
            std::thread::sleep(Duration::from_millis(20));
            self.drain()?;
        }
        Ok(took)
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

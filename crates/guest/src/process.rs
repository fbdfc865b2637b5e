//! Commands: starting them, reading their output, ending their trees.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use nullspace_protocol::{ErrorKind, ExecRequest, ProcessInfo, SIGNALLED, frame::HEADER};
use nullspace_sys::spawn::Identity;
use rustix::{
    fs::{Gid, Uid},
    process::{Pid, Signal, kill_process, kill_process_group},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::unix::pipe,
    sync::watch,
};

use crate::{
    Guest,
    error::{Error, Result},
    login::Login,
    output::{Exit, Log},
    terminal::Terminal,
    users::Names,
};

/// Ended processes that are remembered; the oldest are forgotten first.
const REMEMBERED: usize = 256;
/// Bytes read from a pipe at once: the kernel's own default pipe size.
const CHUNK: usize = 64 << 10;
/// So many reads that leave nothing of a pipe's room are a flood. It gets a larger pipe and is read in larger pieces, so
/// that the process, this one and the host wait for each other less often.
const FLOOD: u32 = 16;
/// A flood's pipe. The kernel counts pipes for each user: over 64 MiB of them, new ones are small.
const FLOOD_PIPE: usize = 256 << 10;
/// Bytes of a flood that are read at once. As text of a message they stay below the 1 MiB that clients take, whatever
/// they are.
const FLOOD_CHUNK: usize = 128 << 10;
/// The path searched when the environment names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One process that was started through the guest.
pub(crate) struct Process {
    pub(crate) pid: u32,
    command: String,
    pub(crate) log: Log,
    stdin: tokio::sync::Mutex<Option<pipe::Sender>>,
    pub(crate) terminal: Option<Terminal>,
    /// Whether somebody logged in with it.
    is_login: bool,
    /// Set by the reaper; the log's exit follows once the pipes are drained.
    code: watch::Sender<Option<i32>>,
    timed_out: std::sync::atomic::AtomicBool,
}

impl Process {
    pub(crate) fn info(&self) -> ProcessInfo {
        let exit = self.log.exit();
        ProcessInfo {
            pid: self.pid,
            command: self.command.clone(),
            running: exit.is_none(),
            exit_code: exit.map(|e| e.code),
            timed_out: exit.is_some_and(|e| e.timed_out),
            terminal: self.terminal.as_ref().map(Terminal::info),
        }
    }

    /// Sends a signal: 9 to the whole tree, others to the process group.
    pub(crate) fn signal(&self, number: i32) -> Result<()> {
        let Some(signal) = Signal::from_named_raw(number) else {
            return Err(Error::invalid(format!("no signal {number}")));
        };
        // A process that was reaped gives its id back: never signal it.
        if self.code.borrow().is_some() && self.log.exit().is_some() {
            return Ok(());
        }
        if signal == Signal::KILL {
            kill_tree(self.pid);
        } else if let Some(pid) = Pid::from_raw(self.pid as i32) {
            let _ = kill_process_group(pid, signal);
        }
        Ok(())
    }

    /// Whoever had started it is gone.
    pub(crate) fn leave(&self) {
        if self.is_login {
            self.hang_up();
        } else {
            let _ = self.signal(9);
        }
        self.log.abandon();
    }

    /// As the kernel does for a terminal that is closed: whoever runs in the foreground and the shell are told, stopped
    /// ones too. Who does not want to hear goes on.
    fn hang_up(&self) {
        let foreground = self.terminal.as_ref().and_then(Terminal::foreground);
        for group in foreground.into_iter().chain(Pid::from_raw(self.pid as i32)) {
            if self.code.borrow().is_none() {
                let _ = kill_process_group(group, Signal::HUP);
                let _ = kill_process_group(group, Signal::CONT);
            }
        }
        // An input that is being written to is closed by whoever writes.
        if self.terminal.is_none()
            && let Ok(mut stdin) = self.stdin.try_lock()
        {
            *stdin = None;
        }
    }

    /// What became of it, from what the reaper saw.
    fn ended(&self, code: i32) {
        let mask = if self.is_login { !0 } else { !SIGNALLED };
        self.code.send_replace(Some(code & mask));
    }

    /// Writes to standard input and waits until the pipe took it all.
    pub(crate) async fn write_stdin(&self, data: &[u8], close: bool) -> Result<()> {
        let mut stdin = self.stdin.lock().await;
        let Some(pipe) = stdin.as_mut() else {
            return Err(Error::invalid(format!(
                "process {} has no open standard input",
                self.pid
            )));
        };
        let mut code = self.code.subscribe();
        // A process that ended will never read: do not wait for it.
        let written = tokio::select! {
            written = pipe.write_all(data) => written,
            _ = code.wait_for(Option::is_some) => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if close || written.is_err() {
            *stdin = None;
        }
        written
            .map_err(|_| Error::invalid(format!("process {} closed its standard input", self.pid)))
    }
}

/// All processes that were started through the guest, by id.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<BTreeMap<u64, Arc<Process>>>>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process and keeps it. The table stays locked from before the process exists until it is
    /// in the table, so that the reaper cannot see an exit of a process that is not there yet.
    fn insert(&self, start: impl FnOnce() -> io::Result<Arc<Process>>) -> io::Result<Arc<Process>> {
        let mut table = self.lock();
        let process = start()?;
        let order = table.keys().next_back().map_or(0, |last| last + 1);
        table.insert(order, process.clone());
        let ended = table.values().filter(|p| p.log.exit().is_some()).count();
        if ended > REMEMBERED {
            let oldest = table
                .iter()
                .find(|(_, p)| p.log.exit().is_some())
                .map(|(order, _)| *order);
            table.remove(&oldest.unwrap_or_default());
        }
        Ok(process)
    }

    /// The newest process with that id.
    pub(crate) fn get(&self, pid: u32) -> Result<Arc<Process>> {
        self.lock()
            .values()
            .rev()
            .find(|p| p.pid == pid)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("no process {pid} was started here")))
    }

    pub(crate) fn list(&self) -> Vec<ProcessInfo> {
        self.lock().values().map(|p| p.info()).collect()
    }

    /// A child with this id ended.
    pub(crate) fn ended(&self, pid: u32, code: i32) {
        let table = self.lock();
        if let Some(process) = table
            .values()
            .rev()
            .find(|p| p.pid == pid && p.code.borrow().is_none())
        {
            process.ended(code);
        }
    }

    /// Asks about every process that is not known to have ended.
    pub(crate) fn reap_known(&self, status: impl Fn(u32) -> Option<i32>) {
        for process in self.lock().values().filter(|p| p.code.borrow().is_none()) {
            if let Some(code) = status(process.pid) {
                process.ended(code);
            }
        }
    }

    pub(crate) fn kill_all(&self) {
        for process in self.lock().values().filter(|p| p.code.borrow().is_none()) {
            kill_tree(process.pid);
        }
    }
}

/// Starts what was asked for. `attached` output is streamed to one caller, who is waited for.
pub(crate) fn start(
    guest: &Guest,
    mut request: ExecRequest,
    attached: bool,
) -> Result<Arc<Process>> {
    let defaults = guest.defaults();
    let login = match &request.login {
        Some(wanted) => Some(Login::find(guest, wanted)?),
        None => None,
    };
    if let Some(login) = &login {
        login.fill(&mut request);
    }
    if request.argv.is_empty() || request.argv[0].is_empty() {
        return Err(Error::invalid("the command is empty"));
    }
    let wanted = request.user.take().filter(|_| login.is_none());
    let user = match &wanted {
        Some(user) => Some(Names::read(&guest.host_path("/etc")).identity(user)?),
        None => None,
    };
    let mut env = defaults.env.clone();
    if let Some(user) = &user {
        // The machine's own word for its root's home is not theirs.
        env.insert("HOME".to_owned(), user.home.clone());
    }
    env.extend(request.env);
    let cwd = request.cwd.unwrap_or_else(|| defaults.cwd.clone());
    let cwd_path = guest.host_path(&cwd);
    match std::fs::metadata(&cwd_path) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(Error::invalid(format!(
                "working directory {cwd} is not a directory"
            )));
        }
        Err(error) => return Err(Error::invalid(format!("working directory {cwd}: {error}"))),
    }
    let program = match &login {
        Some(login) => PathBuf::from(login.shell()),
        None => find_program(
            &request.argv[0],
            env.get("PATH").map(String::as_str),
            &cwd_path,
        )?,
    };
    let label = request.label.unwrap_or_else(|| request.argv.join(" "));
    let argv = c_strings(request.argv.iter().cloned())?;
    let env = c_strings(
        env.into_iter()
            .map(|(name, value)| format!("{name}={value}")),
    )?;
    let (program_c, cwd_c) = (c_path(&program)?, c_path(&cwd_path)?);

    let wires = match request.terminal {
        Some(wanted) => Wires::terminal(wanted),
        None => Wires::pipes(request.stdin),
    };
    let wires = wires.map_err(|e| Error::io("standard input and output", &e))?;
    let user = match &login {
        Some(login) => login.other_than_root(),
        None => user.as_ref().filter(|user| user.uid != 0 || user.gid != 0),
    };
    if let (Some(user), Some(_)) = (user, &wires.terminal) {
        // It is opened by name, too. Where that is not to be had the three that are open still serve.
        let owner = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        let _ = rustix::fs::fchown(&wires.child[0], Some(owner.0), Some(owner.1));
    }
    let stdio = wires.child.each_ref().map(AsFd::as_fd);
    let process = guest
        .inner
        .processes
        .insert(|| {
            let pid = nullspace_sys::spawn::spawn(&nullspace_sys::spawn::Command {
                program: &program_c,
                argv: &argv,
                env: &env,
                cwd: &cwd_c,
                stdio,
                identity: user.map(|user| Identity {
                    uid: user.uid,
                    gid: user.gid,
                    groups: &user.groups,
                }),
                terminal: wires.terminal.is_some(),
            })?;
            Ok(Arc::new(Process {
                pid: pid as u32,
                command: label,
                log: Log::new(request.retain, attached),
                stdin: tokio::sync::Mutex::new(wires.stdin),
                terminal: wires.terminal,
                is_login: login.is_some(),
                code: watch::Sender::new(None),
                timed_out: false.into(),
            }))
        })
        .map_err(|e| Error::io(&request.argv[0], &e))?;
    drop(wires.child);
    if guest.inner.init {
        // When the machine is out of memory its programs go before its process 1 does. On some hosts process 1
        // cannot be made less likely to be chosen, so they are made more likely.
        let _ = std::fs::write(format!("/proc/{}/oom_score_adj", process.pid), "500");
    }
    tokio::spawn(drive(process.clone(), wires.output, request.timeout_ms));
    Ok(process)
}

/// What a process's standard input, output and error lead to.
struct Wires {
    /// The process's ends.
    child: [OwnedFd; 3],
    stdin: Option<pipe::Sender>,
    output: [Stream; 2],
    terminal: Option<Terminal>,
}

impl Wires {
    fn pipes(stdin: bool) -> io::Result<Self> {
        let pipe =
            || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from);
        let (stdin_read, stdin) = if stdin {
            let (read, write) = pipe()?;
            (read, Some(pipe::Sender::from_owned_fd(write)?))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        Ok(Self {
            child: [stdin_read, out_write, err_write],
            stdin,
            output: [
                Some(Source::new(out_read, false)?),
                Some(Source::new(err_read, true)?),
            ],
            terminal: None,
        })
    }

    /// One end of a terminal is all three of the process's; what is typed and what is shown go through the other.
    fn terminal(wanted: nullspace_protocol::Terminal) -> io::Result<Self> {
        let (terminal, process_end) = Terminal::open(wanted)?;
        let again = |fd: &OwnedFd| fd.try_clone();
        let typed = again(&terminal.master)?;
        rustix::io::ioctl_fionbio(&typed, true)?;
        Ok(Self {
            child: [again(&process_end)?, again(&process_end)?, process_end],
            stdin: Some(pipe::Sender::from_owned_fd_unchecked(typed)?),
            output: [Some(Source::new(again(&terminal.master)?, false)?), None],
            terminal: Some(terminal),
        })
    }
}

/// The end of a pipe, or of a terminal, that output is read from.
struct Source {
    pipe: pipe::Receiver,
    stderr: bool,
    /// Reads that were as large as they could be, one after the other.
    full: u32,
    chunk: usize,
}

impl Source {
    fn new(fd: OwnedFd, stderr: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            // It is what it has to be: the checked constructor asks the kernel five times.
            pipe: pipe::Receiver::from_owned_fd_unchecked(fd)?,
            stderr,
            full: 0,
            chunk: CHUNK,
        })
    }

    fn was_read(&mut self, bytes: usize) {
        self.full = if bytes < CHUNK { 0 } else { self.full + 1 };
        if self.full == FLOOD && self.chunk == CHUNK {
            self.chunk = FLOOD_CHUNK;
            // Where the machine has too many it stays as it is, and a read brings what it brings.
            let _ = rustix::pipe::fcntl_setpipe_size(&self.pipe, FLOOD_PIPE);
        }
    }
}

/// Reads both pipes until the process ended and they are empty, then publishes the exit.
async fn drive(process: Arc<Process>, mut streams: [Stream; 2], timeout_ms: Option<u64>) {
    let mut code = process.code.subscribe();
    let deadline = async {
        match timeout_ms {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
    };
    let mut buffer = BytesMut::with_capacity(CHUNK);
    tokio::pin!(deadline);
    let mut expired = false;
    let exit = loop {
        let [out, err] = &mut streams;
        tokio::select! {
            biased;
            ended = code.wait_for(Option::is_some) => {
                break ended.ok().and_then(|code| *code).unwrap_or(-1);
            }
            () = &mut deadline, if !expired => {
                expired = true;
                process.timed_out.store(true, std::sync::atomic::Ordering::Relaxed);
                kill_tree(process.pid);
            }
            more = ready(&process.log, out) => if !(more && read_some(&process.log, out, &mut buffer)) { *out = None },
            more = ready(&process.log, err) => if !(more && read_some(&process.log, err, &mut buffer)) { *err = None },
        }
    };
    // What the process itself wrote is in the pipes now: take all of it, waiting for room but not for
    // processes it left behind that hold the pipes open.
    for stream in &mut streams {
        while stream.is_some() {
            process.log.wait_for_room().await;
            match drain_once(&process.log, stream, &mut buffer, read_now) {
                Drained::Some => {}
                Drained::Empty => break,
                Drained::Closed => *stream = None,
            }
        }
    }
    *process.stdin.lock().await = None;
    let timed_out = process.timed_out.load(std::sync::atomic::Ordering::Relaxed);
    process.log.finish(Exit {
        code: exit,
        timed_out,
    });
    // Left-behind children must not die of a closed pipe: read on and drop what they write.
    for mut source in streams.into_iter().flatten() {
        tokio::spawn(async move {
            let mut sink = vec![0; 4096];
            while matches!(source.pipe.read(&mut sink).await, Ok(n) if n > 0) {}
        });
    }
}

type Stream = Option<Source>;

/// Waits until there is room in the log and something in the pipe.
async fn ready(log: &Log, stream: &Stream) -> bool {
    match stream {
        Some(source) => {
            log.wait_for_room().await;
            source.pipe.ready(Interest::READABLE).await.is_ok()
        }
        None => std::future::pending().await,
    }
}

enum Drained {
    Some,
    Empty,
    Closed,
}

/// One read; `false` at the end of the stream.
fn read_some(log: &Log, stream: &mut Stream, buffer: &mut BytesMut) -> bool {
    let read = |source: &Source, buffer: &mut BytesMut| {
        source.pipe.try_read_buf(&mut buffer.limit(source.chunk))
    };
    !matches!(drain_once(log, stream, buffer, read), Drained::Closed)
}

/// Reads what is in the pipe at this moment. The runtime may not have heard of it yet, and would say that
/// there is nothing.
fn read_now(source: &Source, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut piece = [std::mem::MaybeUninit::uninit(); 8 << 10];
    let (read, _) = rustix::io::read(&source.pipe, &mut piece)?;
    buffer.extend_from_slice(read);
    Ok(read.len())
}

fn drain_once(
    log: &Log,
    stream: &mut Stream,
    buffer: &mut BytesMut,
    read: impl FnOnce(&Source, &mut BytesMut) -> io::Result<usize>,
) -> Drained {
    let Some(source) = stream else {
        return Drained::Closed;
    };
    buffer.clear();
    buffer.reserve(HEADER + source.chunk);
    buffer.resize(HEADER, 0);
    match read(source, buffer) {
        Ok(0) => Drained::Closed,
        Ok(n) => {
            source.was_read(n);
            // A few bytes must not keep a whole chunk alive.
            if n < CHUNK / 8 {
                log.push(source.stderr, Bytes::copy_from_slice(&buffer[HEADER..]));
            } else {
                log.push_framed(source.stderr, buffer.split());
            }
            Drained::Some
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Drained::Empty,
        Err(_) => Drained::Closed,
    }
}

/// Kills a process, its group, its session and everything below it. All of it is found before any of it is killed:
/// what a process that is dead has started belongs to process 1. Then it is looked for again until none is new, so that
/// a tree that forks while it dies does not get away; what it forks is in a session that is known.
pub(crate) fn kill_tree(root: u32) {
    let mut tree = BTreeSet::from([root]);
    let mut killed = BTreeSet::new();
    for _ in 0..16 {
        let living = processes();
        // A child may be listed before its parent.
        loop {
            let is_new = |&&(pid, parent, session): &&(u32, u32, u32)| {
                !tree.contains(&pid) && (tree.contains(&parent) || tree.contains(&session))
            };
            let new: Vec<u32> = living.iter().filter(is_new).map(|(pid, ..)| *pid).collect();
            if new.is_empty() {
                break;
            }
            tree.extend(new);
        }
        let new: Vec<u32> = tree.difference(&killed).copied().collect();
        if new.is_empty() {
            return;
        }
        if killed.is_empty()
            && let Some(group) = Pid::from_raw(root as i32)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
        for pid in new.iter().filter_map(|pid| Pid::from_raw(*pid as i32)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        killed.extend(new);
    }
}

/// (id, parent, session) of every process that `/proc` shows.
pub(crate) fn processes() -> Vec<(u32, u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name is in brackets and may hold anything; the fields after it are numbers.
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let parent = fields.nth(1)?.parse().ok()?;
            let session = fields.nth(1)?.parse().ok()?;
            Some((pid, parent, session))
        })
        .collect()
}

/// Finds the program as a shell would.
fn find_program(name: &str, path: Option<&str>, cwd: &Path) -> Result<PathBuf> {
    if name.contains('/') {
        return Ok(if name.starts_with('/') {
            PathBuf::from(name)
        } else {
            cwd.join(name)
        });
    }
    let mut refused = false;
    for directory in path
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        .filter(|d| !d.is_empty())
    {
        let candidate = Path::new(directory).join(name);
        if let Ok(meta) = std::fs::metadata(&candidate) {
            if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
                return Ok(candidate);
            }
            refused = true;
        }
    }
    Err(if refused {
        Error::new(ErrorKind::Permission, format!("{name}: not executable"))
    } else {
        Error::not_found(format!("{name}: command not found"))
    })
}

fn c_strings(strings: impl Iterator<Item = String>) -> Result<Vec<CString>> {
    strings
        .map(|s| {
            CString::new(s)
                .map_err(|_| Error::invalid("a NUL byte in an argument or the environment"))
        })
        .collect()
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(OsStr::as_bytes(path.as_os_str()))
        .map_err(|_| Error::invalid("a NUL byte in a path"))
}

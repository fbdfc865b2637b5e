//! The process that answers the machines' name queries: a child of the launcher, so that names go on
//! working while `serve` is down. It ends with the launcher and is started again when it ends.
//!
//! Its standard input is a socket, over which the two speak as `nullspace_engine::egress::control` says.
//! One that does not answer is ended: the next knows all rules before it answers a machine.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command},
    time::{Duration, Instant},
};

use nullspace_engine::egress::{
    Rules,
    control::{self, FromResolver, ToResolver},
};

/// How long to wait before a resolver that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to read, or to answer, before it is ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// What may be on its way to it, in bytes.
const SEND_BUFFER: usize = 32 << 20;

pub(super) struct Resolver {
    command: Vec<String>,
    child: Option<Child>,
    link: Option<UnixStream>,
    buffer: Vec<u8>,
    /// Heard while an answer was waited for.
    heard: Vec<FromResolver>,
    serial: u64,
    started: Instant,
}

impl Resolver {
    /// Starts the program with the address to listen on as its last argument. `None` for an empty command.
    pub(super) fn start(command: &[String], address: Ipv4Addr) -> io::Result<Option<Self>> {
        if command.is_empty() {
            return Ok(None);
        }
        let command = command
            .iter()
            .cloned()
            .chain([format!("{address}:53")])
            .collect();
        let mut resolver = Self {
            command,
            child: None,
            link: None,
            buffer: Vec::new(),
            heard: Vec::new(),
            serial: 0,
            started: Instant::now(),
        };
        resolver.spawn(&[])?;
        Ok(Some(resolver))
    }

    fn spawn(&mut self, policies: &[(Ipv4Addr, &Rules)]) -> io::Result<()> {
        self.end();
        self.started = Instant::now();
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // The rules of all machines fit, so that nobody waits for a program that only starts.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, SEND_BUFFER);
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .stdin(OwnedFd::from(theirs));
        self.child = Some(command.spawn()?);
        // The command holds the other end: without it the end of the child would go unnoticed.
        drop(command);
        self.link = Some(ours);
        for (source, rules) in policies {
            self.send(&policy(0, *source, Some(rules)));
        }
        self.send(&ToResolver::Ready);
        Ok(())
    }

    /// Starts it again if it ended: whether its socket is a new one.
    pub(super) fn keep_alive(&mut self, policies: &[(Ipv4Addr, &Rules)]) -> bool {
        let ended = self.link.is_none()
            || self
                .child
                .as_mut()
                .is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
        ended && self.started.elapsed() > PAUSE && self.spawn(policies).is_ok()
    }

    /// Its socket, to be watched.
    pub(super) fn link(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    /// Everything it said so far.
    pub(super) fn listen(&mut self) -> Vec<FromResolver> {
        self.read();
        std::mem::take(&mut self.heard)
    }

    fn read(&mut self) {
        let mut chunk = [0; 16 << 10];
        while let Some(link) = &mut self.link {
            match link.read(&mut chunk) {
                Ok(length) if length > 0 => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.end(),
            }
        }
        loop {
            match control::take(&mut self.buffer) {
                Ok(Some(message)) => self.heard.push(message),
                Ok(None) => break,
                Err(_) => {
                    self.end();
                    break;
                }
            }
        }
    }

    /// Says what a machine may resolve, and waits until that is so. One that cannot be told is ended, and then nobody
    /// gets an answer until the next one knows.
    pub(super) fn set(&mut self, source: Ipv4Addr, rules: Option<&Rules>) {
        self.serial += 1;
        let wanted = self.serial;
        self.send(&policy(wanted, source, rules));
        let deadline = Instant::now() + PATIENCE;
        while self.link.is_some() {
            self.read();
            let is_it =
                |m: &FromResolver| matches!(m, FromResolver::Done { serial } if *serial == wanted);
            if let Some(at) = self.heard.iter().position(is_it) {
                self.heard.remove(at);
                return;
            }
            if !self.wait(rustix::event::PollFlags::IN, deadline) {
                self.end();
            }
        }
    }

    /// The same for a machine that is gone. Nobody waits for that.
    pub(super) fn forget(&mut self, source: Ipv4Addr) {
        self.send(&policy(0, source, None));
    }

    /// Answers it.
    pub(super) fn send(&mut self, message: &ToResolver) {
        let line = control::line(message);
        let mut rest = line.as_slice();
        let deadline = Instant::now() + PATIENCE;
        while let Some(link) = self.link.as_mut().filter(|_| !rest.is_empty()) {
            match link.write(rest) {
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && self.wait(rustix::event::PollFlags::OUT, deadline) => {}
                Err(_) => self.end(),
            }
        }
    }

    /// Waits for its socket: whether something came of it in time.
    fn wait(&self, what: rustix::event::PollFlags, deadline: Instant) -> bool {
        let Some(link) = &self.link else {
            return false;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut polled = [rustix::event::PollFd::new(link, what)];
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(ready) => ready > 0,
            Err(error) => error == rustix::io::Errno::INTR && !left.is_zero(),
        }
    }

    fn end(&mut self) {
        self.link = None;
        self.buffer.clear();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn policy(serial: u64, source: Ipv4Addr, rules: Option<&Rules>) -> ToResolver {
    ToResolver::Policy {
        serial,
        source,
        rules: rules.cloned().map(Box::new),
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.end();
    }
}

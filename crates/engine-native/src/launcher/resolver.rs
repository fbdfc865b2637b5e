//! The process that answers the machines' name queries: a child of the launcher, so that names go on
//! working while `serve` is down. It ends with the launcher and is started again when it ends.

use std::{
    io,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long to wait before a resolver that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Resolver {
    command: Vec<String>,
    child: Option<Child>,
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
            started: Instant::now(),
        };
        resolver.spawn()?;
        Ok(Some(resolver))
    }

    fn spawn(&mut self) -> io::Result<()> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null());
        self.started = Instant::now();
        self.child = Some(command.spawn()?);
        Ok(())
    }

    /// Starts it again if it ended.
    pub(super) fn keep_alive(&mut self) {
        let ended = self
            .child
            .as_mut()
            .is_none_or(|c| !matches!(c.try_wait(), Ok(None)));
        if ended && self.started.elapsed() > PAUSE {
            let _ = self.spawn();
        }
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

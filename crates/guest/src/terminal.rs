//! Terminals that processes run in.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use nullspace_protocol::TerminalSize;
use rustix::{
    process::Pid,
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
    termios::{Winsize, tcgetpgrp, tcsetwinsize},
};

use crate::error::{Error, Result};

/// One process's terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    session: String,
    /// The end of whoever looks and types.
    pub(crate) master: OwnedFd,
    size: Mutex<TerminalSize>,
}

fn by_name(master: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let name = ptsname(master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(name.as_c_str(), flags, Mode::empty())?)
}

impl Terminal {
    /// A new one, and the end of the process.
    pub(crate) fn open(wanted: nullspace_protocol::Terminal) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let process_end = match ioctl_tiocgptpeer(&master, flags) {
            // Kernels that do not know the call have the other end by its name alone.
            Err(rustix::io::Errno::NOTTY) => by_name(&master)?,
            opened => opened?,
        };
        tcsetwinsize(&master, winsize(wanted.size))?;
        let terminal = Self {
            session: wanted.session,
            master,
            size: Mutex::new(wanted.size),
        };
        Ok((terminal, process_end))
    }

    pub(crate) fn info(&self) -> nullspace_protocol::Terminal {
        nullspace_protocol::Terminal {
            session: self.session.clone(),
            size: *self.size.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The group of processes that reads what is typed.
    pub(crate) fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(&self.master).ok()
    }

    /// The kernel tells whoever runs in the foreground.
    pub(crate) fn resize(&self, size: TerminalSize) -> Result<()> {
        tcsetwinsize(&self.master, winsize(size))
            .map_err(|e| Error::io("resizing a terminal", &e.into()))?;
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = size;
        Ok(())
    }
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

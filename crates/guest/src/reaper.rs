//! Waiting for children.
//!
//! As process 1 the guest inherits every orphan of the machine, so it waits for *any* child; elsewhere it
//! waits only for the ones it started, because the others belong to somebody else in the same process.

use std::io;

use nullspace_protocol::SIGNALLED;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::process::Table;

/// Starts the task that turns SIGCHLD into exits of the processes in the table.
pub(crate) fn start(table: Table, init: bool) -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    tokio::spawn(async move {
        while children.recv().await.is_some() {
            if init {
                reap_any(&table);
            } else {
                table.reap_known(|pid| status_of(Some(pid)));
            }
        }
    });
    Ok(())
}

fn reap_any(table: &Table) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if let Some(code) = exit_code(status) {
            table.ended(pid.as_raw_nonzero().get() as u32, code);
        }
    }
}

fn status_of(pid: Option<u32>) -> Option<i32> {
    let pid = Pid::from_raw(pid? as i32)?;
    match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => exit_code(status),
        _ => None,
    }
}

/// The shell's convention, 128 + N after signal N, with a mark that it was one.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status.exit_status().or_else(|| {
        status
            .terminating_signal()
            .map(|signal| SIGNALLED | (128 + signal))
    })
}

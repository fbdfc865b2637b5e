//! A checkpoint that a kernel reads while it is being proven.
//!
//! ```text
//!  runsc:  starts a kernel ─▶ reads the state ─▶ opens the table … blocked … ─▶ reads it, and the pages ─▶ machine goes on
//!  here:   reads all of it for its digest ───────────────────────────▶ proven ─▶ writes the table
//! ```
//! The table says which page goes where. Without it there is no memory, so nothing of the machine runs before it is known that all
//! of the checkpoint is what was written. It goes through a named pipe in a directory that looks like the checkpoint otherwise.
//! If this process dies, the pipe has no writer: `runsc` reads nothing and gives up, or waits until the next process here has
//! taken the directory away ([`sweep`]).

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use crate::checkpoint::{PAGES, STATE, TABLE};

/// What the directories' names begin with.
const PREFIX: &str = "restore-";

/// That directory; dropping it takes it away, and lets go whoever waits at the pipe.
#[derive(Debug)]
pub(crate) struct Gate(PathBuf);

impl Gate {
    /// Makes it in `run`, for one machine.
    pub(crate) fn new(run: &Path, id: &str, checkpoint: &Path) -> io::Result<Self> {
        let gate = Self(run.join(format!("{PREFIX}{id}")));
        fs::create_dir(&gate.0)?;
        let checkpoint = fs::canonicalize(checkpoint)?;
        for name in [STATE, PAGES] {
            symlink(checkpoint.join(name), gate.0.join(name))?;
        }
        mknodat(CWD, gate.pipe(), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        Ok(gate)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    pub(crate) fn pipe(&self) -> PathBuf {
        self.0.join(TABLE)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Writes the checkpoint's table into the pipe, when somebody reads there and it is proven; if it never is, the reader gets nothing. Blocks.
pub(crate) fn feed(pipe: &Path, checkpoint: &Path, proven: Receiver<()>) -> io::Result<()> {
    let mut pipe = OpenOptions::new().write(true).open(pipe)?;
    if proven.recv().is_ok() {
        io::copy(&mut File::open(checkpoint.join(TABLE))?, &mut pipe)?;
    }
    Ok(())
}

/// Takes away what an earlier process left. Those that wait there read nothing.
pub(crate) fn sweep(run: &Path) -> io::Result<()> {
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove(&entry.path());
        }
    }
    Ok(())
}

fn remove(directory: &Path) {
    let pipe = directory.join(TABLE);
    let passing = directory.join("gone");
    // First out of the way of those who come later, then open at both ends for those who are there.
    if fs::rename(&pipe, &passing).is_ok() {
        let open = |end| rustix::fs::open(&passing, end | OFlags::NONBLOCK, Mode::empty());
        drop((open(OFlags::RDONLY), open(OFlags::WRONLY)));
    }
    if let Err(error) = fs::remove_dir_all(directory) {
        tracing::warn!(%error, "a directory for a checkpoint stays");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{io::Read, sync::mpsc::channel, thread};

    use super::*;

    fn checkpoint() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let from = home.path().join("kept");
        fs::create_dir(&from).unwrap();
        for name in [STATE, PAGES, TABLE] {
            fs::write(from.join(name), name.repeat(20_000)).unwrap();
        }
        (home, from)
    }

    /// What is read at a gate, and what the checkpoint's table is.
    fn passed(is_proven: bool) -> (Vec<u8>, Vec<u8>) {
        let (home, from) = checkpoint();
        let gate = Gate::new(home.path(), "m", &from).unwrap();
        for name in [STATE, PAGES] {
            let seen = fs::read(gate.directory().join(name)).unwrap();
            assert_eq!(seen, fs::read(from.join(name)).unwrap());
        }
        let (pipe, from) = (&gate.pipe(), &from);
        let (proven, told) = channel();
        let mut read = Vec::new();
        thread::scope(|scope| {
            let fed = scope.spawn(move || feed(pipe, from, told));
            let mut reader = File::open(pipe).unwrap();
            if is_proven {
                proven.send(()).unwrap();
            }
            drop(proven);
            reader.read_to_end(&mut read).unwrap();
            fed.join().unwrap().unwrap();
        });
        drop(gate);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
        (read, fs::read(from.join(TABLE)).unwrap())
    }

    #[test]
    fn the_table_is_read_once_it_is_proven() {
        let (read, table) = passed(true);
        assert_eq!(read, table);
        assert_eq!(passed(false).0, b"");
    }

    #[test]
    fn nobody_waits_at_a_gate_that_is_gone() {
        let (home, from) = checkpoint();
        let gate = Gate::new(home.path(), "m", &from).unwrap();
        let pipe = gate.pipe();
        let (proven, told) = channel();
        let (pipe, from) = (&pipe, &from);
        thread::scope(|scope| {
            let fed = scope.spawn(move || feed(pipe, from, told));
            drop(proven);
            drop(gate);
            // Whether it had opened the pipe or not.
            let _ = fed.join().unwrap();
        });
        // As after a process that died.
        let gate = std::mem::ManuallyDrop::new(Gate::new(home.path(), "m", from).unwrap());
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut table = Vec::new();
                File::open(gate.pipe())
                    .and_then(|mut pipe| pipe.read_to_end(&mut table))
                    .unwrap_or(0)
            });
            sweep(home.path()).unwrap();
            assert_eq!(reader.join().unwrap(), 0);
        });
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}

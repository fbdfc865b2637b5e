//! A file system for the data directory alone, which can be full for a moment.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{fs::FallocateFlags, io::Errno};

/// What the room is taken in: the largest piece, and the smallest, which is a block.
const PIECES: (u64, u64) = (64 << 20, 4 << 10);
/// How often it is tried to unmount it, and the pause between.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// An ext4 in a sparse file, mounted until this is dropped.
pub(crate) struct Disk {
    image: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// One of so many MiB in this directory.
    pub(crate) fn make(place: &Path, mb: u64) -> Result<Self> {
        let disk = Self {
            image: place.join("disk.image"),
            root: place.join("disk"),
        };
        File::create(&disk.image)?.set_len(mb << 20)?;
        std::fs::create_dir(&disk.root)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&disk.image))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([&disk.image, &disk.root]))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What it is in.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Begins to fill it.
    pub(crate) fn filler(&self) -> io::Result<Filler> {
        let path = self.root.join("filler");
        Ok(Filler {
            file: File::create(&path)?,
            path,
            length: 0,
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What was ended a moment ago may have files open still.
        for _ in 0..ATTEMPTS {
            if run(Command::new("umount").arg(&self.root)).is_ok() {
                return;
            }
            // It is not there if it could not be mounted.
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            let is_there = |line: &str| line.split(' ').nth(1).map(Path::new) == Some(&*self.root);
            if !mounts.lines().any(is_there) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.root)) {
            println!("{error:#}");
        }
    }
}

/// A file that takes what room there is, until it is dropped.
pub(crate) struct Filler {
    file: File,
    path: PathBuf,
    length: u64,
}

impl Filler {
    /// Takes all that is left.
    pub(crate) fn grow(&mut self) -> io::Result<()> {
        let (mut piece, least) = PIECES;
        loop {
            let flags = FallocateFlags::empty();
            match rustix::fs::fallocate(&self.file, flags, self.length, piece) {
                Ok(()) => self.length += piece,
                Err(Errno::NOSPC) if piece > least => piece /= 2,
                Err(Errno::NOSPC) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // Its blocks are free once the file is closed too, which is next.
        if let Err(error) = std::fs::remove_file(&self.path) {
            println!("{}: {error}", self.path.display());
        }
    }
}

/// Runs a program that must succeed.
fn run(command: &mut Command) -> Result<()> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

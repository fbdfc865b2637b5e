//! What a machine wrote, seen from outside: where it is, copies of it, a layer for others.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nullspace_sys::image;

use crate::launcher::RANGE;

/// In a machine's directory: the layer that it writes to.
pub(crate) const FILES: &str = "fs";
/// In there: what was written, and what the overlay needs to work.
pub(crate) const UPPER: &str = "upper";
pub(crate) const WORK: &str = "work";

/// The file system that a machine's writable layer has for itself; `None` if it has none. Blocks.
///
/// # Errors
/// Those of [`image::mount`].
pub(crate) fn disk(machine: &Path) -> io::Result<Option<OwnedFd>> {
    image::mount(&machine.join(FILES))
}

/// Makes the writable layer of an ended machine `target`, with owners as the machine saw them and without what
/// the launcher had put there. It is moved, or copied if it has a file system of its own. Whiteouts and the overlay's own marks stay: a lower layer has them too.
///
/// Nothing runs in the machine any more, and no link is followed.
pub(crate) fn keep(machine: &Path, target: &Path) -> io::Result<()> {
    if let Some(disk) = disk(machine)? {
        copy_from(&disk, target)?;
        return tidy(target);
    }
    let upper = machine.join(FILES).join(UPPER);
    tidy(&upper)?;
    fs::rename(&upper, target)
}

fn tidy(upper: &Path) -> io::Result<()> {
    // The layer's root belongs to the machine's root.
    let first = fs::symlink_metadata(upper)?.uid();
    // Says this machine's name.
    let _ = fs::remove_file(upper.join("etc/hosts"));
    let _ = fs::remove_dir(upper.join("etc"));
    let _ = fs::remove_dir(upper.join("tmp/.nullspace"));
    shift(upper, first)
}

/// Copies what a machine wrote so far, as [`copy`] does.
///
/// # Errors
/// Those of [`copy`] and [`image::mount`].
pub fn copy_written(machine: &Path, to: &Path) -> io::Result<()> {
    match disk(machine)? {
        Some(disk) => copy_from(&disk, to),
        None => copy(&machine.join(FILES).join(UPPER), to),
    }
}

/// The disk is mounted nowhere: its only name is the descriptor's, in this process.
fn copy_from(disk: &OwnedFd, to: &Path) -> io::Result<()> {
    let inside = PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd())).join(UPPER);
    run_cp(Path::new("."), &std::path::absolute(to)?, Some(&inside))
}

/// Copies a layer with everything that belongs to it: owners, rights, attributes, links, whiteouts. Files share their
/// blocks where the file system has that.
///
/// `cp` knows all of it, and does no more than is asked for; one that finds anything missing fails.
///
/// # Errors
/// What `cp` complained about. What there is of the target then is of no use.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    run_cp(from, to, None)
}

fn run_cp(from: &Path, to: &Path, directory: Option<&Path>) -> io::Result<()> {
    let mut command = Command::new("cp");
    command
        .args(["--archive", "--reflink=auto", "--no-target-directory", "--"])
        .args([from, to])
        // A machine may stand still meanwhile: nothing is read that is of no use.
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    if let Some(directory) = directory {
        // Entered before the descriptors that its path goes through are closed.
        command.current_dir(directory);
    }
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first = text.lines().next().unwrap_or("it said nothing");
    Err(io::Error::other(format!("cp: {first}")))
}

fn shift(path: &Path, first: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let own = |id: u32| id.checked_sub(first).filter(|inside| *inside < RANGE);
    let (uid, gid) = (own(metadata.uid()), own(metadata.gid()));
    // A file with several names was done under another of them; whiteouts are the host's.
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::lchown(path, uid, gid)?;
        // Changing the owner takes these bits away.
        if metadata.mode() & 0o6000 != 0 && metadata.is_file() {
            fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            shift(&entry?.path(), first)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn owners_become_those_that_the_machine_saw() {
        let directory = tempfile::tempdir().unwrap();
        let machine = directory.path().join("m");
        let upper = machine.join("fs/upper");
        fs::create_dir_all(upper.join("etc")).unwrap();
        fs::create_dir_all(upper.join("opt/a")).unwrap();
        fs::write(upper.join("etc/hosts"), "127.0.0.1 mch-1").unwrap();
        fs::write(upper.join("opt/a/tool"), "x").unwrap();
        fs::hard_link(upper.join("opt/a/tool"), upper.join("opt/a/same")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", upper.join("opt/link")).unwrap();
        let first = 5 << 16;
        let chown = |path: &str, id: u32| {
            std::os::unix::fs::lchown(upper.join(path), Some(id), Some(id)).unwrap();
        };
        for path in ["", "etc", "etc/hosts", "opt", "opt/a", "opt/link"] {
            chown(path, first);
        }
        chown("opt/a/tool", first + 1000);
        fs::set_permissions(upper.join("opt/a/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        let before = fs::metadata("/etc/passwd").unwrap().uid();
        let target = directory.path().join("layer");
        keep(&machine, &target).unwrap();
        assert!(!target.join("etc").exists() && !upper.exists());
        let owner = |path: &str| fs::symlink_metadata(target.join(path)).unwrap().uid();
        assert_eq!((owner(""), owner("opt/a"), owner("opt/link")), (0, 0, 0));
        let tool = fs::metadata(target.join("opt/a/same")).unwrap();
        assert_eq!((tool.uid(), tool.mode() & 0o7777), (1000, 0o4755));
        assert_eq!(fs::metadata("/etc/passwd").unwrap().uid(), before);
    }
}

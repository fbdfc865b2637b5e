//! The process that takes down what ended machines leave.
//!
//! Unmounting and removing cgroups waits for grace periods and locks of the kernel: nobody who asked for
//! anything should. The launcher holds an ended machine's mount namespace open, so that its last process does
//! not have to take the mounts down on its way out, and hands it over to this child, which lets go of it.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nullspace_sys::{
    image::Passing,
    namespace::{self, Fork},
};
use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Pid, WaitOptions, waitpid},
};

use super::cgroup;

/// Room for the paths of one machine's groups.
const MESSAGE: usize = 16 << 10;
/// How long a process that was killed may take to leave its groups, in steps of [`STEP`].
const STEPS: u32 = 2_000;
const STEP: Duration = Duration::from_millis(5);

/// In a message: the first descriptors are a disk's.
const WITH_DISK: &str = "disk";

/// What holds things of a machine that is gone.
pub(super) struct Remains {
    /// Its mount namespace.
    pub(super) mounts: Option<File>,
    /// The file system of what it wrote, if that has one of its own and nobody wants it.
    pub(super) disk: Option<Passing>,
}

pub(super) struct Undertaker {
    socket: OwnedFd,
    pid: Option<Pid>,
}

impl Undertaker {
    pub(super) fn start() -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        match namespace::fork()? {
            Fork::Child => {
                drop(ours);
                // Not with the launcher: it ends when there is nothing left to be told, and then by itself.
                let _ = namespace::close_all_from(3, &[theirs.as_fd()]);
                namespace::set_name("nullspace tidy");
                work(&theirs);
                namespace::exit_now(0)
            }
            Fork::Parent(pid) => Ok(Self {
                socket: ours,
                pid: Pid::from_raw(pid),
            }),
        }
    }

    /// Hands over what is left of a machine: its groups, and the directory that was prepared for it, if it
    /// did not come to be one. If that fails, what can be done at once is done here.
    pub(super) fn take(&self, remains: Remains, groups: &[PathBuf], directory: &Path) {
        let Remains { mounts, disk } = &remains;
        let text = [
            Path::new(if disk.is_some() { WITH_DISK } else { "" }),
            directory,
        ]
        .into_iter()
        .chain(groups.iter().map(PathBuf::as_path))
        .map(|path| path.as_os_str().as_bytes())
        .collect::<Vec<_>>()
        .join(&0);
        let disk = disk
            .iter()
            .flat_map(|disk| [disk.mounted.as_fd(), disk.file.as_fd()]);
        let fds: Vec<_> = disk.chain(mounts.iter().map(AsFd::as_fd)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let parts = [IoSlice::new(&text)];
        // A full queue means that hundreds wait already: then waiting is right.
        if sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).is_err() {
            drop(remains);
            cgroup::remove(groups);
        }
    }

    /// Lets it finish what it has, and waits for that.
    pub(super) fn finish(self) {
        drop(self.socket);
        let _ = waitpid(self.pid, WaitOptions::empty());
    }
}

fn work(socket: &OwnedFd) {
    let mut buffer = vec![0; MESSAGE];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut buffer)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let length = match received {
            Ok(message) if message.bytes > 0 => message.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            _ => return,
        };
        let mut paths = buffer[..length]
            .split(|byte| *byte == 0)
            .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())));
        let has_disk = paths
            .next()
            .is_some_and(|said| said == Path::new(WITH_DISK));
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                if has_disk && let Some(disk) = Passing::from_parts(&mut fds) {
                    let _ = disk.abandon();
                }
                // The last holder of the namespace: this is where the kernel takes the mounts down.
                fds.for_each(drop);
            }
        }
        if let Some(directory) = paths.next() {
            // Not there any more when it became a machine's.
            let _ = std::fs::remove_dir_all(directory);
        }
        let groups: Vec<PathBuf> = paths.collect();
        for _ in 0..STEPS {
            if cgroup::remove(&groups) {
                break;
            }
            std::thread::sleep(STEP);
        }
    }
}

//! Directories of the host that a machine is shown: a mount of their own each, made here and moved to its target.
//!
//! ```text
//!  source ──(beneath it, through no link)──▶ detached mount: the machine's ids, read-only, nosuid, nodev
//!                                                └──(in the machine's mounts, beneath its root, through no link)──▶ target
//! ```
//! Machines with a kernel of their own have mounts that nobody here can reach. There it goes in two steps:
//! ```text
//!  source ──▶ detached mount ──▶ `shown/<name>` in the keeper's mounts, which are shared with the machine's file server
//!                                     └──(the guest, asked by the engine: beneath its root, through no link)──▶ target
//! ```
//! The launcher keeps a descriptor of each mount. A machine can rename what is above a target, so that the path does not
//! lead there any more; by its descriptor the mount is found wherever it is.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nullspace_engine::{Bind, MAX_BINDS};
use nullspace_sys::{
    image,
    mount::{Attributes, clone_tree, set_attributes},
    namespace::{self, Fork},
};
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::UnmountFlags,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Pid, WaitOptions, waitpid},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    inside::{Root, attach as attach_tree},
    keeper,
    slot::Slot,
};
use sha2::{Digest, Sha256};

use crate::wire::Refusal;

/// What a machine is shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) bind: Bind,
    tree: OwnedFd,
}

impl Shown {
    pub(super) fn new(bind: Bind, tree: OwnedFd) -> Self {
        Self { bind, tree }
    }
}

/// A mount of what a bind shows, attached nowhere yet, and whether it is a directory.
/// `users` is the machine's user namespace, if it has host ids of its own.
pub(super) fn tree(bind: &Bind, users: Option<BorrowedFd<'_>>) -> io::Result<(OwnedFd, bool)> {
    let attributes = Attributes {
        read_only: bind.read_only,
        no_suid: true,
        no_dev: true,
        id_map: users,
        ..Attributes::default()
    };
    match (image::mount(&bind.source)?, &bind.beneath) {
        (None, beneath) => {
            let path = OFlags::PATH | OFlags::CLOEXEC;
            let mut source = rustix::fs::open(&bind.source, path, Mode::empty())?;
            if let Some(beneath) = beneath {
                source = open_beneath(&source, beneath)?;
            }
            let stat = rustix::fs::fstat(&source)?;
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            Ok((clone_tree(source.as_fd(), c"", attributes)?, is_dir))
        }
        (Some(mounted), None) => {
            set_attributes(&mounted, attributes)?;
            Ok((mounted, true))
        }
        (Some(mounted), Some(beneath)) => {
            // Only of a mount that is attached a part can be had on its own: for a moment, in this process's own mounts.
            attach_tree(&mounted, &bind.source)?;
            let part = open_beneath(&mounted, beneath)
                .and_then(|part| clone_tree(part.as_fd(), c"", attributes));
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            rustix::mount::unmount(&bind.source, flags)?;
            Ok((part?, true))
        }
    }
}

/// Whoever has the source mounted may swap what is in it for a link at any moment.
fn open_beneath(source: &OwnedFd, beneath: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    Ok(rustix::fs::openat2(
        source,
        beneath,
        flags,
        Mode::empty(),
        resolve,
    )?)
}

/// Shows a directory in a machine that runs.
pub(super) fn attach(
    slot: &Slot,
    range: usize,
    users: BorrowedFd<'_>,
    bind: &Bind,
) -> Result<Shown, Refusal> {
    let (tree, is_dir) =
        tree(bind, Some(users)).map_err(|error| refusal("open the source", &error))?;
    if !is_dir {
        return Err(Refusal::Invalid("the source is no directory".into()));
    }
    let target = bind.target.display().to_string();
    let first_id = super::slot::first_id(range);
    in_mounts_of(slot, || {
        let root = Root::open(Path::new("/"), first_id)?;
        root.mount(&tree, &target, true)
    })
    .map_err(|error| refusal("mount at the target", &error))?;
    Ok(Shown::new(bind.clone(), tree))
}

/// Where in [`keeper::SHOWN`] a machine with a kernel of its own finds what is shown at a target. It is the same when it
/// goes on from a checkpoint, where its kernel looks for it again.
pub(crate) fn name(target: &Path) -> String {
    hex::encode(&Sha256::digest(target.as_os_str().as_encoded_bytes())[..8])
}

/// Shows a directory to the file server of a machine that runs, with a kernel of its own.
pub(super) fn offer(slot: &Slot, scratch: &Path, bind: &Bind) -> Result<Shown, Refusal> {
    let (tree, is_dir) = tree(bind, None).map_err(|error| refusal("open the source", &error))?;
    if !is_dir {
        return Err(Refusal::Invalid("the source is no directory".into()));
    }
    in_mounts_of(slot, || put(&tree, true, scratch, &bind.target))
        .map_err(|error| Refusal::step("mount for the machine's file server", error))?;
    Ok(Shown::new(bind.clone(), tree))
}

/// Mounts a tree where a machine's file server sees it. In the keeper's mounts.
pub(super) fn put(tree: &OwnedFd, is_dir: bool, scratch: &Path, target: &Path) -> io::Result<()> {
    let at = scratch.join(keeper::SHOWN).join(name(target));
    // It may be there still: the machine was shown something at this target before.
    let made = match is_dir {
        true => fs::create_dir(&at),
        false => fs::File::create_new(&at).map(drop),
    };
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    attach_tree(tree, &at)
}

/// Takes it away; what is open in it stays open.
pub(super) fn detach(slot: &Slot, shown: &Shown) -> Result<(), Refusal> {
    let done = in_mounts_of(slot, || {
        rustix::process::fchdir(&shown.tree)?;
        Ok(rustix::mount::unmount(".", UnmountFlags::DETACH)?)
    });
    match done {
        // It is no mount any more: the machine cannot do that, but then there is nothing to take away.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Ok(()),
        done => done.map_err(|error| Refusal::step("take the mount away", error)),
    }
}

/// How the name of a step of a machine's making begins that failed because of what was asked for.
pub(super) const ASKED_FOR: &str = "asked for: ";

/// A step of a machine's making that failed.
pub(super) fn failed(step: String, error: io::Error) -> (String, io::Error) {
    match fault(&error) {
        Some(fault) => (format!("{ASKED_FOR}{step}: {fault}"), error),
        None => (step, error),
    }
}

fn refusal(step: &str, error: &io::Error) -> Refusal {
    match fault(error) {
        Some(fault) => Refusal::Invalid(format!("{step}: {fault}")),
        None => Refusal::step(step, error),
    }
}

/// What is wrong with a path, if the failure is the path's.
fn fault(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::NOENT => Some("there is no such directory"),
        Errno::NOTDIR => Some("it is no directory"),
        Errno::LOOP => Some("it leads through a link"),
        Errno::XDEV => Some("it leads out"),
        Errno::ROFS => Some("the machine has it read-only"),
        _ => None,
    }
}

/// Does something among a machine's mounts, in a child: the launcher itself never leaves its own.
fn in_mounts_of(slot: &Slot, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mounts = slot
        .mounts()
        .ok_or_else(|| io::Error::other("the machine is gone"))?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    match namespace::fork()? {
        Fork::Child => {
            rustix::process::umask(Mode::from_raw_mode(0o022));
            let done = move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))
                .map_err(io::Error::from)
                .and_then(|()| work());
            let code = match done {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            let _ = theirs.write_all(&code.to_be_bytes());
            namespace::exit_now(0)
        }
        Fork::Parent(pid) => {
            drop(theirs);
            let mut code = [0; 4];
            let heard = ours.read_exact(&mut code);
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
            heard?;
            match i32::from_be_bytes(code) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Says a byte, with the mounts that a machine was made with: those of its binds and the parts of what
/// [`super::writable::mount`] answers.
pub(super) fn send(control: &UnixStream, byte: u8, trees: &[OwnedFd]) -> io::Result<()> {
    let trees: Vec<BorrowedFd<'_>> = trees.iter().map(AsFd::as_fd).collect();
    let rights = SendAncillaryMessage::ScmRights(&trees);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !trees.is_empty() {
        ancillary.push(rights);
    }
    let byte = [byte];
    sendmsg(
        control,
        &[IoSlice::new(&byte)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Reads what a machine's process 1 says, and takes its mounts.
pub(super) fn receive(control: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_BINDS + 2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let read = recvmsg(
        control,
        &mut [IoSliceMut::new(chunk)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let trees = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(trees) => Some(trees),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((read.bytes, trees))
}

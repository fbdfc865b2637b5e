//! A directory's own file system, in a file beside it, so that there is an end to what can be in the directory.
//!
//! ```text
//!  volumes/v          an empty directory
//!  volumes/v.image    ext4, as large as what may be in it takes; only what is in it takes room on the host's disk
//! ```
//! It is not mounted for everybody. Whoever needs it makes a mount of its own, attached nowhere, over one block device that all
//! of them share; the device goes with the last of these mounts. So nothing is left by whom, and however, a process ends.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, SeekFrom},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create,
        fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
    },
};

use crate::{
    check,
    loop_device::{self, LoopDevice},
    tree::Usage,
};

/// What the image's name has after the directory's.
pub const SUFFIX: &str = ".image";
/// What makes one; in each Debian's base.
const MKFS: &str = "mkfs.ext4";
/// Bytes of a block, of an inode, and of what one group of blocks holds.
const BLOCK: u64 = 4096;
const INODE: u64 = 256;
const GROUP: u64 = 128 << 20;
/// Bytes of the journal: a 64th of what may be in it, within these.
const JOURNAL: (u64, u64) = (4 << 20, 64 << 20);
/// Bytes that there is room for in any case: a smaller one gets no journal.
const SMALLEST: u64 = 4 << 20;
/// Bytes for each file where there is no limit to their number: in a volume, in what a machine writes.
const PER_NAME: u64 = 16 << 10;
const PER_PASSING_NAME: u64 = 8 << 10;
/// Files that there is room for in any case.
const FEWEST: u64 = 64;
/// Inodes that the file system has for itself; the directory itself is one of them.
const RESERVED: u64 = 10;
/// Bytes that are sooner written to the disk in vain than thrown away.
const LITTLE: u64 = 8 << 20;
/// Sizes of which an empty image is kept to be copied. One takes about 120 kB.
const KEPT_SIZES: usize = 16;

/// Where a directory's image is, if it has one.
#[must_use]
pub fn beside(directory: &Path) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// Makes an image beside a directory: empty, and with room for so many bytes and names, or a few more. Durable when this
/// returns; on error there is none. Blocks.
///
/// # Errors
/// What the file system or the program that makes it says, and where it cannot be mounted.
pub fn make(directory: &Path, bytes: u64, names: Option<u64>) -> io::Result<()> {
    let image = beside(directory);
    let mut passing = image.clone().into_os_string();
    passing.push(".new");
    let passing = PathBuf::from(passing);
    let made =
        write(&passing, bytes, names, Life::Lasting).and_then(|()| fs::rename(&passing, &image));
    if made.is_err() {
        let _ = fs::remove_file(&passing);
        return made;
    }
    match image.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// What a file system is to outlive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// A crash of the host: it has a journal, and copies of what describes it.
    Lasting,
    /// Nothing: what there is of it is in few places, so that it is quickly copied and quickly removed.
    Passing,
}

/// Makes an image's file, which is durable afterwards if it is to last.
fn write(image: &Path, bytes: u64, names: Option<u64>, life: Life) -> io::Result<()> {
    let bytes = bytes.max(SMALLEST);
    let per_name = match life {
        Life::Lasting => PER_NAME,
        Life::Passing => PER_PASSING_NAME,
    };
    let names = names.unwrap_or(bytes / per_name).max(FEWEST) + RESERVED;
    let names = u32::try_from(names).map_err(|_| io::Error::other("too many files"))?;
    let journal = match life {
        Life::Lasting => (bytes / 64).clamp(JOURNAL.0, JOURNAL.1),
        Life::Passing => 0,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(image)?;
    file.set_len(size(bytes, names.into(), journal))?;
    let mut mkfs = Command::new(MKFS);
    mkfs.args(["-q", "-F", "-m", "0", "-e", "remount-ro"])
        .args(["-b", &BLOCK.to_string(), "-I", &INODE.to_string()])
        .args(["-N", &names.to_string()]);
    // There is nothing to be cleared in a file without content, now or later.
    match life {
        Life::Lasting => mkfs
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
            .args(["-J", &format!("size={}", journal >> 20)])
            .args(["-O", "^resize_inode"]),
        Life::Passing => mkfs
            .arg("-E")
            .arg("lazy_itable_init=1,nodiscard,num_backup_sb=0")
            .args(["-O", "^resize_inode,^has_journal,sparse_super2", "-G", "1"]),
    };
    let output = mkfs
        .arg("--")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().last().unwrap_or("it gave no reason");
        return Err(io::Error::other(format!("{MKFS}: {said}")));
    }
    if life == Life::Passing {
        return Ok(());
    }
    let mounted = mount_file(image)?;
    rustix::fs::unlinkat(&mounted, "lost+found", AtFlags::REMOVEDIR)?;
    rustix::fs::syncfs(root(&mounted)?)?;
    drop(mounted);
    file.sync_all()
}

/// How large a file system is in which so many bytes find room.
fn size(bytes: u64, names: u64, journal: u64) -> u64 {
    let content = bytes.next_multiple_of(BLOCK) + journal + names * INODE + (1 << 20);
    let groups = content / GROUP + 1;
    // Two bitmaps for each group, a block for what is rounded up in it, and copies of all groups' descriptors in two dozen of them.
    content + groups * (3 * BLOCK + 24 * 64) + 24 * BLOCK
}

/// A mount of what is in a directory's image, attached nowhere; `None` if the directory has no image. Blocks for some milliseconds.
///
/// # Errors
/// What the kernel says: of who may not mount, of a host without such devices, of an image that is damaged.
pub fn mount(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let image = beside(directory);
    match mount_file(&image) {
        // Not for want of a device.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !image.exists() => Ok(None),
        mounted => mounted.map(Some),
    }
}

/// An image of what is of no use once nobody has it mounted.
#[derive(Debug)]
pub struct Passing {
    /// A mount of it.
    pub mounted: OwnedFd,
    /// What it is in.
    pub file: File,
}

impl Passing {
    /// Makes one beside a directory, and a mount of it that is attached nowhere. An empty one of each size that was asked for is kept
    /// in `kept`, up to a number: copies of these are made in no time. On error there is none. Blocks.
    ///
    /// # Errors
    /// Those of [`make`].
    pub fn make(directory: &Path, bytes: u64, kept: &Path) -> io::Result<Self> {
        let image = beside(directory);
        let made = copy_or_write(&image, bytes, kept).and_then(|file| {
            let device = loop_device::over_new(&file)?;
            let mounted = mount_device(&device, &["nobarrier"])?;
            Ok(Self { mounted, file })
        });
        if made.is_err() {
            let _ = fs::remove_file(&image);
        }
        made
    }

    /// What it is sent to another process as.
    #[must_use]
    pub fn into_parts(self) -> [OwnedFd; 2] {
        [self.mounted, self.file.into()]
    }

    /// What was sent, if all of it is there.
    pub fn from_parts(mut parts: impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let (mounted, file) = (parts.next()?, parts.next()?.into());
        Some(Self { mounted, file })
    }

    /// Lets go of it. What was not written yet is thrown away if it is much: the host's disk would be busy with what is removed there
    /// at once. Then the kernel says so in its log; what is little is written.
    ///
    /// # Errors
    /// What the kernel says when it is asked. It is let go of all the same.
    pub fn abandon(self) -> io::Result<()> {
        let there = self.file.metadata()?.blocks() * 512;
        match usage(&self.mounted)?.bytes > there + LITTLE {
            true => shut_down(&self.mounted),
            false => Ok(()),
        }
    }
}

fn copy_or_write(image: &Path, bytes: u64, kept: &Path) -> io::Result<File> {
    let of_this_size = kept.join(bytes.to_string());
    match File::open(&of_this_size) {
        Ok(empty) => return copy(&empty, image),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    write(image, bytes, None, Life::Passing)?;
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    if fs::read_dir(kept)?.count() < KEPT_SIZES {
        // Several may do this at once: each beside its own image first.
        let mut passing = image.as_os_str().to_owned();
        passing.push(".kept");
        let copied = copy(&file, passing.as_ref());
        copied.and_then(|_| fs::rename(&passing, &of_this_size))?;
    }
    Ok(file)
}

/// Copies what there is of a file, and leaves out what there is not.
fn copy(from: &File, to: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to)?;
    let length = from.metadata()?.len();
    file.set_len(length)?;
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing more.
            Err(Errno::NXIO) => return Ok(file),
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        let mut piece = vec![0; usize::try_from(at - begin).map_err(io::Error::other)?];
        from.read_exact_at(&mut piece, begin)?;
        file.write_all_at(&piece, begin)?;
    }
}

/// Has what was not written yet thrown away, and nothing written any more.
fn shut_down(mounted: &OwnedFd) -> io::Result<()> {
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    let without_writing: u32 = 2;
    let root = root(mounted)?;
    // SAFETY: a live descriptor, and a number that the kernel only reads.
    check(unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const without_writing) })?;
    Ok(())
}

fn mount_file(image: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(image)?;
    // Until it is mounted: then the device is found by who comes next. Not on what the device is made over, which it keeps open.
    let lock = File::open(image)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let device = loop_device::over(&file, image)?;
    mount_device(&device, &[])
}

fn mount_device(device: &LoopDevice, options: &[&str]) -> io::Result<OwnedFd> {
    let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", &*device.path.to_string_lossy())?;
    // What is removed takes no room on the host's disk any more.
    for option in ["discard", "noinit_itable"].iter().chain(options) {
        fsconfig_set_flag(context.as_fd(), *option)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// How much is in it, as the file system itself counts. Takes no longer for much than for little.
///
/// # Errors
/// fstatvfs(3)'s.
pub fn usage(mounted: impl AsFd) -> io::Result<Usage> {
    let stat = rustix::fs::fstatvfs(mounted)?;
    let blocks = stat.f_blocks.saturating_sub(stat.f_bfree);
    Ok(Usage {
        // The directory itself takes a block.
        bytes: (blocks * stat.f_frsize).saturating_sub(BLOCK),
        names: (stat.f_files - stat.f_ffree.min(stat.f_files)).saturating_sub(RESERVED),
    })
}

/// Removes a directory's image if there is nothing in it. Whoever writes at this moment either keeps it from being removed or is
/// told that it is read-only. Blocks.
///
/// # Errors
/// `DirectoryNotEmpty`; `ResourceBusy` while somebody has a file in it open for writing.
pub fn remove_empty(directory: &Path) -> io::Result<()> {
    let Some(mounted) = mount(directory)? else {
        return Ok(());
    };
    set_read_only(&mounted, true)?;
    let removed = match is_empty(&mounted) {
        Ok(true) => fs::remove_file(beside(directory)),
        Ok(false) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
        Err(error) => Err(error),
    };
    if removed.is_err() {
        set_read_only(&mounted, false)?;
    }
    removed
}

fn set_read_only(mounted: &OwnedFd, on: bool) -> io::Result<()> {
    let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
    let context = fspick(mounted, "", flags)?;
    fsconfig_set_flag(context.as_fd(), if on { "ro" } else { "rw" })?;
    Ok(fsconfig_reconfigure(context.as_fd())?)
}

fn root(mounted: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mounted, ".", flags, Mode::empty())?)
}

fn is_empty(mounted: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::new(root(mounted)?)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    const LIMIT: u64 = 8 << 20;

    /// `None` where none can be made, which is said.
    fn volume() -> Option<(tempfile::TempDir, PathBuf)> {
        if !Path::new("/dev/loop-control").exists() {
            println!("skipped: this host has no loop devices");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let volume = home.path().join(format!("v{}", std::process::id()));
        fs::create_dir(&volume).unwrap();
        Some((home, volume))
    }

    fn create(mounted: &OwnedFd, name: &str) -> rustix::io::Result<File> {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(mounted, name, flags, Mode::from_raw_mode(0o644)).map(File::from)
    }

    fn devices(volume: &Path) -> usize {
        let name = beside(volume);
        let entries = fs::read_dir("/sys/block").unwrap().flatten();
        let backing =
            entries.filter_map(|entry| fs::read(entry.path().join("loop/backing_file")).ok());
        backing
            .filter(|path| path.starts_with(name.as_os_str().as_encoded_bytes()))
            .count()
    }

    #[test]
    fn there_is_an_end_to_what_can_be_in_it() {
        let Some((_home, volume)) = volume() else {
            return;
        };
        assert!(mount(&volume).unwrap().is_none());
        make(&volume, LIMIT, Some(100)).unwrap();
        let one = mount(&volume).unwrap().unwrap();
        assert_eq!(usage(&one).unwrap(), Usage::default());
        let mut large = create(&one, "large").unwrap();
        let mut written = 0;
        let refused = loop {
            match large.write(&[7; 1 << 16]) {
                Ok(length) => written += length as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        assert!((LIMIT..LIMIT + (2 << 20)).contains(&written), "{written}");
        large.sync_all().unwrap();
        // All see the same, and what they see is counted.
        let two = mount(&volume).unwrap().unwrap();
        let seen = rustix::fs::statat(&two, "large", AtFlags::empty()).unwrap();
        assert_eq!(seen.st_size as u64, written);
        let used = usage(&two).unwrap();
        assert_eq!(used.names, 1);
        assert!(
            (written..written + (1 << 20)).contains(&used.bytes),
            "{used:?}"
        );
        assert_eq!(devices(&volume), 1);
        // What is removed makes room, and takes none on the host's disk.
        let taken =
            || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(beside(&volume)).unwrap());
        let before = taken();
        drop(large);
        rustix::fs::unlinkat(&two, "large", AtFlags::empty()).unwrap();
        rustix::fs::syncfs(root(&two).unwrap()).unwrap();
        assert_eq!(usage(&one).unwrap().bytes, 0);
        let begun = std::time::Instant::now();
        // The file system tells the disk when it has time.
        while taken() + LIMIT / 512 / 2 > before {
            assert!(begun.elapsed().as_secs() < 60, "{before} {}", taken());
            std::thread::yield_now();
        }
        let mut names = 0;
        while create(&one, &names.to_string()).is_ok() {
            names += 1;
        }
        assert_eq!(create(&one, "more").unwrap_err(), Errno::NOSPC);
        assert!((100..200).contains(&names), "{names}");
        drop((one, two));
        assert_eq!(devices(&volume), 0);
        let again = mount(&volume).unwrap().unwrap();
        assert_eq!(usage(&again).unwrap().names, names);
    }

    #[test]
    fn only_an_empty_one_is_removed() {
        let Some((home, volume)) = volume() else {
            return;
        };
        remove_empty(&volume).unwrap();
        make(&volume, LIMIT, None).unwrap();
        let mounted = mount(&volume).unwrap().unwrap();
        let open = create(&mounted, "file").unwrap();
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(kind(remove_empty(&volume)), io::ErrorKind::ResourceBusy);
        drop(open);
        assert_eq!(
            kind(remove_empty(&volume)),
            io::ErrorKind::DirectoryNotEmpty
        );
        // It can be written to again.
        rustix::fs::unlinkat(&mounted, "file", AtFlags::empty()).unwrap();
        remove_empty(&volume).unwrap();
        assert!(mount(&volume).unwrap().is_none());
        assert_eq!(create(&mounted, "late").unwrap_err(), Errno::ROFS);
        drop(mounted);
        assert_eq!(devices(&volume), 0);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_passes_is_a_copy_and_never_written_back() {
        let Some((home, volume)) = volume() else {
            return;
        };
        let kept = home.path().join("kept");
        fs::create_dir(&kept).unwrap();
        let one = Passing::make(&volume, 4 * LIMIT, &kept).unwrap();
        create(&one.mounted, "first").unwrap();
        let other = home.path().join("other");
        fs::create_dir(&other).unwrap();
        let two = Passing::make(&other, 4 * LIMIT, &kept).unwrap();
        assert_eq!(
            create(&two.mounted, "first")
                .unwrap()
                .metadata()
                .unwrap()
                .len(),
            0
        );
        rustix::fs::unlinkat(&two.mounted, "lost+found", AtFlags::REMOVEDIR).unwrap();
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
        // Another is found by who only knows where it is.
        let same = mount(&volume).unwrap().unwrap();
        assert_eq!(usage(&same).unwrap().names, 2);
        assert_eq!(devices(&volume), 1);
        drop(same);
        let blocks =
            || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(beside(&volume)).unwrap());
        let before = blocks();
        let mut large = create(&one.mounted, "large").unwrap();
        large.write_all(&[7; 2 * LIMIT as usize]).unwrap();
        drop(large);
        one.abandon().unwrap();
        two.abandon().unwrap();
        assert!(blocks() < before + 64, "{before} {}", blocks());
        assert_eq!(devices(&volume) + devices(&other), 0);
        // There cannot be two.
        assert!(Passing::make(&other, LIMIT, &home.path().join("no")).is_err());
    }

    #[test]
    fn what_cannot_be_made_leaves_nothing() {
        let Some((home, volume)) = volume() else {
            return;
        };
        assert!(make(&volume, LIMIT, Some(u64::from(u32::MAX))).is_err());
        assert!(make(&home.path().join("no/such"), LIMIT, None).is_err());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_is_made_whatever_its_size() {
        for n in 0..8 {
            let bytes = [1, 1 << 20, 3 << 30, 5 << 40][n / 2];
            let Some((home, volume)) = volume() else {
                return;
            };
            let mounted = if n % 2 == 0 {
                make(&volume, bytes, None).unwrap();
                mount(&volume).unwrap().unwrap()
            } else {
                Passing::make(&volume, bytes, home.path()).unwrap().mounted
            };
            let stat = rustix::fs::fstatvfs(&mounted).unwrap();
            let room = stat.f_bfree * stat.f_frsize;
            let least = bytes.max(SMALLEST);
            assert!(room >= least, "{bytes}: {room}");
            assert!(room <= least + least / 50 + (2 << 20), "{bytes}: {room}");
        }
    }
}

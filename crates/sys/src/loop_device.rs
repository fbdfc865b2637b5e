//! Block devices over files, which go by themselves when nobody has them any more.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use crate::check;

/// How often another free device is asked for when somebody else was quicker.
const ATTEMPTS: u32 = 64;

/// A device, for as long as this is open, or it is mounted.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    /// Where it is.
    pub(crate) path: PathBuf,
    device: File,
}

/// The kernel's `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// The kernel's `struct loop_config`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NO_INFO: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// The device over a file, which is made if there is none. Two over one file would destroy what is in it: callers hold a lock on it
/// meanwhile.
///
/// # Errors
/// The kernel's: `ENOENT` and `EPERM` where there are no such devices, `EACCES` and `EPERM` for who may not.
pub(crate) fn over(file: &File, name: &Path) -> io::Result<LoopDevice> {
    match find(file, name)? {
        Some(found) => Ok(found),
        None => over_new(file),
    }
}

/// The device that is over a file already.
fn find(file: &File, name: &Path) -> io::Result<Option<LoopDevice>> {
    let wanted = file.metadata()?;
    let last_two = |path: &Path| {
        let mut parts = path.components().rev();
        let mut next = || parts.next().map(|part| part.as_os_str().to_owned());
        (next(), next())
    };
    let (name, parent) = last_two(name);
    let name = name.unwrap_or_default();
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let backing = entry.path().join("loop/backing_file");
        let Ok(backing) = fs::read(backing) else {
            continue;
        };
        // The path may be one of another mount namespace's. Its last parts are the same in all, if they are there; it may be said
        // that the file is gone.
        let (its_name, its_parent) =
            last_two(Path::new(OsStr::from_bytes(backing.trim_ascii_end())));
        let is_like_it = its_name
            .is_some_and(|its| its.as_encoded_bytes().starts_with(name.as_encoded_bytes()))
            && its_parent.is_none_or(|its| its == "/" || Some(its) == parent);
        if !is_like_it {
            continue;
        }
        // Open, it stays what it is.
        let Ok(found) = open(Path::new("/dev").join(entry.file_name())) else {
            continue;
        };
        let is_it = status(&found.device)
            .is_ok_and(|info| (info.device, info.inode) == (wanted.dev(), wanted.ino()));
        if is_it {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A device over a file that has none, which is the caller's to know.
///
/// # Errors
/// Those of [`over`].
pub(crate) fn over_new(file: &File) -> io::Result<LoopDevice> {
    const GET_FREE: libc::c_ulong = 0x4c82;
    const CONFIGURE: libc::c_ulong = 0x4c0a;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..ATTEMPTS {
        // SAFETY: a live descriptor and a request without an argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) })?;
        let free = open(format!("/dev/loop{number}").into())?;
        let config = Config {
            file: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 4096,
            info: Info {
                // What is written is in the file's cache once, not twice.
                flags: AUTOCLEAR | DIRECT_IO,
                ..NO_INFO
            },
            reserved: [0; 8],
        };
        // SAFETY: live descriptors, and a struct laid out as the kernel's, which only reads it.
        let configured =
            check(unsafe { libc::ioctl(free.device.as_raw_fd(), CONFIGURE, &raw const config) });
        match configured {
            Ok(_) => return Ok(free),
            // Somebody else took it.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

fn open(path: PathBuf) -> io::Result<LoopDevice> {
    let device = OpenOptions::new().read(true).write(true).open(&path)?;
    if !device.metadata()?.file_type().is_block_device() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(LoopDevice { path, device })
}

fn status(device: &File) -> io::Result<Info> {
    const GET_STATUS: libc::c_ulong = 0x4c05;
    let mut info = NO_INFO;
    // SAFETY: a live descriptor, and a struct laid out as the kernel's, which fills it in.
    check(unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS, &raw mut info) })?;
    Ok(info)
}

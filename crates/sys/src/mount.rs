//! Mounts that belong to nobody's path: clones of trees with their own id map.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::check;

/// How a cloned tree differs from its source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// Refuse writes.
    pub read_only: bool,
    /// Ignore set-user-id bits.
    pub no_suid: bool,
    /// Ignore device nodes.
    pub no_dev: bool,
    /// Refuse to run programs.
    pub no_exec: bool,
    /// Show owners through this user namespace's map: on-disk id 0 is the namespace's root.
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Clones the mount at `path` (relative to `dir`), without what is mounted below it now or later, as a mount that is
/// attached nowhere yet.
///
/// # Errors
/// open_tree(2)'s and mount_setattr(2)'s: `EINVAL` for a file system without id maps.
pub fn clone_tree(
    dir: BorrowedFd<'_>,
    path: &CStr,
    attributes: Attributes<'_>,
) -> io::Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: a live descriptor, a NUL-terminated path, plain flags; the result is a new descriptor that
    // nothing else owns.
    let tree = unsafe {
        let fd = check(libc::syscall(
            libc::SYS_open_tree,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
        ))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    set_attributes(&tree, attributes)?;
    Ok(tree)
}

/// Sets them for a mount that is attached nowhere yet and that nobody else has.
///
/// # Errors
/// mount_setattr(2)'s: `EINVAL` for a file system without id maps.
pub fn set_attributes(tree: &OwnedFd, attributes: Attributes<'_>) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    const RDONLY: u64 = 0x1;
    const NOSUID: u64 = 0x2;
    const NODEV: u64 = 0x4;
    const NOEXEC: u64 = 0x8;
    const IDMAP: u64 = 0x0010_0000;
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    let attr = MountAttr {
        set: bit(attributes.read_only, RDONLY)
            | bit(attributes.no_suid, NOSUID)
            | bit(attributes.no_dev, NODEV)
            | bit(attributes.no_exec, NOEXEC)
            | bit(attributes.id_map.is_some(), IDMAP),
        clear: 0,
        // What the host mounts in the source later is no matter of whoever has the clone.
        propagation: libc::MS_PRIVATE,
        userns: attributes.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: a live descriptor, an empty NUL-terminated path, and a struct of the size given, laid out as
    // the kernel's `struct mount_attr`.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

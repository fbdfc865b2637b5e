//! Owners, times and extended attributes, as members have them and the kernel takes them.

use rustix::{
    fd::BorrowedFd,
    fs::{Gid, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    beneath,
    error::LayerError,
    tar::{Member, Time},
};

pub(super) fn owner(id: u32) -> Option<Uid> {
    Some(Uid::from_raw(id))
}

pub(super) fn group(id: u32) -> Option<Gid> {
    Some(Gid::from_raw(id))
}

pub(super) fn times(time: Time) -> Timestamps {
    let spec = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    };
    Timestamps {
        last_access: spec,
        last_modification: spec,
    }
}

pub(super) fn set_xattrs(file: BorrowedFd<'_>, member: &Member) -> Result<(), LayerError> {
    for (name, value) in &member.xattrs {
        let users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !users && name != b"security.capability" {
            continue;
        }
        match rustix::fs::fsetxattr(file, beneath::name(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // What users keep there is never needed to run a program, and not every file system has room for it.
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) if users => {}
            // The kernel does not understand it: it would not grant anything either.
            Err(Errno::INVAL) => {}
            Err(e) => {
                return Err(LayerError::write(
                    "set an extended attribute of",
                    &member.name,
                )(e));
            }
        }
    }
    Ok(())
}

//! What the guest answers when it cannot do something.

use std::io;

use nullspace_protocol::{ErrorBody, ErrorKind};
use rustix::io::Errno;

/// A refusal on its way to the host.
#[derive(Debug)]
pub(crate) struct Error(pub(crate) ErrorBody);

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(ErrorBody {
            kind,
            message: message.into(),
        })
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// From what the system said about `subject` (a path or a program).
    pub(crate) fn io(subject: &str, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let kind = match errno {
            Some(Errno::NOENT) => ErrorKind::NotFound,
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::Permission,
            Some(Errno::EXIST | Errno::NOTEMPTY) => ErrorKind::Exists,
            Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => ErrorKind::Exhausted,
            Some(
                Errno::NOTDIR
                // Something is mounted there.
                | Errno::BUSY
                | Errno::ISDIR
                | Errno::INVAL
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::XDEV
                | Errno::NOEXEC
                | Errno::TOOBIG,
            ) => ErrorKind::Invalid,
            _ => match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::InvalidInput => ErrorKind::Invalid,
                _ => ErrorKind::Io,
            },
        };
        Self::new(kind, format!("{subject}: {error}"))
    }
}

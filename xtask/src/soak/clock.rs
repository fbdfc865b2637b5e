//! Another clock for the server under test, by libfaketime, as in `tests/system/clock.rs`: what time of day it is can be set,
//! what time has passed (CLOCK_MONOTONIC) cannot.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

/// Where Debian has it.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A clock that is moved by writing to a file.
pub(crate) struct Clock {
    file: PathBuf,
}

impl Clock {
    /// `None`, and the reason on standard output, when there is no library for it.
    pub(crate) fn make(place: &Path) -> io::Result<Option<Self>> {
        if !Path::new(LIBRARY).exists() {
            println!("no clock jumps: {LIBRARY} is not there (Debian's faketime)");
            return Ok(None);
        }
        let clock = Self {
            file: place.join("clock"),
        };
        clock.jump(0)?;
        Ok(Some(clock))
    }

    /// Sets it to so many seconds from what it is here.
    pub(crate) fn jump(&self, seconds: i64) -> io::Result<()> {
        // The server reads the file whenever it asks for the time: it must not find half of it.
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}"))?;
        std::fs::rename(new, &self.file)
    }

    /// What the server has in its environment for it.
    pub(crate) fn variables(&self) -> [(&'static str, &OsStr); 7] {
        let one = OsStr::new("1");
        [
            ("LD_PRELOAD", OsStr::new(LIBRARY)),
            ("FAKETIME_TIMESTAMP_FILE", self.file.as_os_str()),
            ("FAKETIME_NO_CACHE", one),
            ("FAKETIME_DONT_FAKE_MONOTONIC", one),
            ("DONT_FAKE_MONOTONIC", one),
            ("FAKETIME_DISABLE_SHM", one),
            ("NO_FAKE_STAT", one),
        ]
    }
}

//! Ports of this host for one test's server. Tests run side by side, also those of several programs: each takes a range
//! that no other has, below the default one.

use std::{
    ops::RangeInclusive,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Ports of one range.
const COUNT: u16 = 50;
const ALL: RangeInclusive<u16> = 10_000..=19_999;

/// A range, for as long as this is there.
pub struct Ports {
    pub first: u16,
    pub last: u16,
    /// The kernel gives a name to one alone, and takes it back when its owner ends, however that happens.
    _name: UnixListener,
}

impl Ports {
    pub fn take() -> Self {
        let ranges = (ALL.end() - ALL.start() + 1) / COUNT;
        for number in 0..ranges {
            let name = format!("nullspace-test-ports-{number}");
            let name = SocketAddr::from_abstract_name(name).unwrap();
            if let Ok(_name) = UnixListener::bind_addr(&name) {
                let first = ALL.start() + number * COUNT;
                let last = first + COUNT - 1;
                return Self { first, last, _name };
            }
        }
        panic!("{ranges} tests have all ports");
    }
}

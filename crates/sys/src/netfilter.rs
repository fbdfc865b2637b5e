//! The few nf_tables requests that are too frequent for a program of their own: putting addresses into a set and
//! taking them out, and reading a set of counters. And forgetting connections, for which there is no program at hand.
//!
//! Chains and sets themselves come from `nft`, whose text people can read.

mod connections;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use crate::{check, netlink::Message};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;

/// `NFPROTO_INET`, and none.
const INET: u8 = 1;
const UNSPECIFIED: u8 = 0;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_EXPRESSIONS: u16 = 11;
const DATA_VALUE: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;

/// The longest answer that is read at once.
const ANSWER: usize = 64 << 10;

/// A socket to the kernel's packet filter.
#[derive(Debug)]
pub struct Netfilter {
    socket: OwnedFd,
    sequence: u32,
}

/// One element of a set of counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The element, each part padded to four bytes.
    pub key: Vec<u8>,
    /// Packets counted.
    pub packets: u64,
}

impl Netfilter {
    /// Opens a socket in the network namespace that the thread is in.
    ///
    /// # Errors
    /// socket(2)'s.
    pub fn open() -> io::Result<Self> {
        // SAFETY: plain numbers; the result is a new descriptor that nothing else owns.
        let socket = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let fd = check(libc::socket(
                libc::AF_NETLINK,
                kind,
                libc::NETLINK_NETFILTER,
            ))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        // A kernel that does not answer must not hold up its caller for ever.
        let limit = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        // SAFETY: a live descriptor and a live struct of the length given.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const limit).cast(),
                size_of::<libc::timeval>() as u32,
            )
        })?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Puts addresses into a set of IPv4 addresses of an `inet` table, all or none. Those that are in it stay.
    ///
    /// # Errors
    /// The kernel's, for a set that is full or not there.
    pub fn add_addresses(
        &mut self,
        table: &str,
        set: &str,
        addresses: &[Ipv4Addr],
    ) -> io::Result<()> {
        self.change(NEW_ELEMENT, NLM_F_CREATE, table, set, addresses)
    }

    /// Takes addresses out of a set, all or none.
    ///
    /// # Errors
    /// The kernel's, also for one that is not in it.
    pub fn delete_addresses(
        &mut self,
        table: &str,
        set: &str,
        addresses: &[Ipv4Addr],
    ) -> io::Result<()> {
        self.change(DELETE_ELEMENT, 0, table, set, addresses)
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        table: &str,
        set: &str,
        addresses: &[Ipv4Addr],
    ) -> io::Result<()> {
        if addresses.is_empty() {
            return Ok(());
        }
        let wanted = self.next();
        let mut bytes = Vec::new();
        request(&mut bytes, BATCH_BEGIN, 0, wanted, UNSPECIFIED, |_| ());
        let flags = flags | NLM_F_ACK;
        request(&mut bytes, kind, flags, wanted, INET, |m| {
            m.string(LIST_TABLE, table);
            m.string(LIST_SET, set);
            m.nest(LIST_ELEMENTS, |m| {
                for address in addresses {
                    m.nest(LIST_ELEMENT, |m| {
                        m.nest(ELEMENT_KEY, |m| m.attribute(DATA_VALUE, &address.octets()));
                    });
                }
            });
        });
        request(&mut bytes, BATCH_END, 0, wanted, UNSPECIFIED, |_| ());
        self.send(&bytes)?;
        loop {
            for message in messages(&self.receive()?) {
                if message.sequence == wanted && message.kind == libc::NLMSG_ERROR as u16 {
                    return result(message.body);
                }
            }
        }
    }

    /// Every element of a set whose elements have counters.
    ///
    /// # Errors
    /// The kernel's, for a set that is not there.
    pub fn counted(&mut self, table: &str, set: &str) -> io::Result<Vec<Counted>> {
        let wanted = self.next();
        let mut bytes = Vec::new();
        request(&mut bytes, GET_ELEMENT, NLM_F_DUMP, wanted, INET, |m| {
            m.string(LIST_TABLE, table);
            m.string(LIST_SET, set);
        });
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            for message in messages(&self.receive()?) {
                if message.sequence != wanted {
                    continue;
                }
                if message.kind == NEW_ELEMENT {
                    // Behind the header of the packet filter's own.
                    read_elements(message.body.get(4..).unwrap_or_default(), &mut found);
                } else if message.kind == libc::NLMSG_ERROR as u16 {
                    result(message.body)?;
                } else if message.kind == libc::NLMSG_DONE as u16 {
                    return Ok(found);
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: a live descriptor and a live slice.
        check(unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
            )
        } as i64)?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; ANSWER];
        // SAFETY: a live descriptor and a live buffer of the length given.
        let length = check(unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        } as i64)?;
        buffer.truncate(length as usize);
        Ok(buffer)
    }
}

/// Appends one request: netlink's header, the packet filter's, attributes.
fn request(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    fill: impl FnOnce(&mut Message<'_>),
) {
    let start = bytes.len();
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    let resource = match kind {
        BATCH_BEGIN | BATCH_END => SUBSYSTEM,
        _ => 0,
    };
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    fill(&mut Message { bytes });
    let length = (bytes.len() - start) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

struct Answer<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram.
fn messages(mut bytes: &[u8]) -> Vec<Answer<'_>> {
    let mut found = Vec::new();
    while bytes.len() >= 16 {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let length = (word(0) as usize).clamp(16, bytes.len());
        found.push(Answer {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            sequence: word(8),
            body: &bytes[16..length],
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// What an acknowledgement says.
fn result(body: &[u8]) -> io::Result<()> {
    let code = body
        .first_chunk::<4>()
        .map_or(libc::EBADMSG, |code| -i32::from_ne_bytes(*code));
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The attributes in these bytes: kind and value.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([bytes[0], bytes[1]])).clamp(4, bytes.len());
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        found.push((kind, &bytes[4..length]));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes)
        .into_iter()
        .find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn read_elements(bytes: &[u8], found: &mut Vec<Counted>) {
    let Some(elements) = attribute(bytes, LIST_ELEMENTS) else {
        return;
    };
    for (_, element) in attributes(elements) {
        let Some(key) = attribute(element, ELEMENT_KEY).and_then(|key| attribute(key, DATA_VALUE))
        else {
            continue;
        };
        // One expression stands alone, several in a list.
        let alone = attribute(element, ELEMENT_EXPRESSION);
        let list = attribute(element, ELEMENT_EXPRESSIONS).unwrap_or_default();
        let expressions = alone
            .into_iter()
            .chain(attributes(list).into_iter().map(|(_, value)| value));
        let packets = expressions
            .filter(|e| attribute(e, EXPRESSION_NAME) == Some(b"counter\0"))
            .filter_map(|e| attribute(attribute(e, EXPRESSION_DATA)?, COUNTER_PACKETS))
            .find_map(|value| value.first_chunk::<8>())
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        found.push(Counted {
            key: key.to_vec(),
            packets,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_cut_short_are_read() {
        let mut whole = Vec::new();
        request(&mut whole, NEW_ELEMENT, 0, 7, INET, |m| {
            m.string(LIST_TABLE, "t");
            m.nest(LIST_ELEMENTS, |m| {
                m.nest(LIST_ELEMENT, |m| {
                    m.nest(ELEMENT_KEY, |m| m.attribute(DATA_VALUE, &[1, 2, 3, 4]));
                    m.nest(ELEMENT_EXPRESSION, |m| {
                        m.string(EXPRESSION_NAME, "counter");
                        m.nest(EXPRESSION_DATA, |m| {
                            m.attribute(COUNTER_PACKETS, &9u64.to_be_bytes());
                        });
                    });
                });
            });
        });
        let read = |bytes: &[u8]| {
            let mut found = Vec::new();
            for message in messages(bytes) {
                read_elements(message.body.get(4..).unwrap_or_default(), &mut found);
            }
            found
        };
        let all = Counted {
            key: vec![1, 2, 3, 4],
            packets: 9,
        };
        assert_eq!(read(&whole), [all]);
        for cut in 0..whole.len() {
            let _ = read(&whole[..cut]);
        }
    }
}

//! The connections that the kernel follows, for taking out those of an address that gets another owner: packets of the
//! other end would be led to whoever has the address next.

use std::{io, net::Ipv4Addr};

use super::{NLM_F_ACK, NLM_F_DUMP, Netfilter, attribute, messages, request, result};

const SUBSYSTEM: u16 = 1;
const CONNECTION: u16 = SUBSYSTEM << 8;
const GET_CONNECTION: u16 = SUBSYSTEM << 8 | 1;
const DELETE_CONNECTION: u16 = SUBSYSTEM << 8 | 2;

const FAMILY: u8 = libc::AF_INET as u8;
const NESTED: u16 = 1 << 15;
/// As its first packet had it.
const ORIGINAL: u16 = 1;
const ID: u16 = 12;
const ADDRESSES: u16 = 1;
const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;

/// What names a connection, as the kernel wrote it.
struct Named {
    original: Vec<u8>,
    id: Vec<u8>,
}

impl Netfilter {
    /// Forgets every connection from or to these addresses, first and last: how many there were.
    ///
    /// # Errors
    /// The kernel's; `EOPNOTSUPP` or `EINVAL` from one that shows nobody its connections.
    pub fn forget_connections(&mut self, first: Ipv4Addr, last: Ipv4Addr) -> io::Result<usize> {
        self.forget_all(first, last, &[SOURCE, DESTINATION])
    }

    /// Forgets every connection that was made from this address: how many there were.
    ///
    /// # Errors
    /// As for [`Netfilter::forget_connections`].
    pub fn forget_connections_from(&mut self, address: Ipv4Addr) -> io::Result<usize> {
        self.forget_all(address, address, &[SOURCE])
    }

    fn forget_all(&mut self, first: Ipv4Addr, last: Ipv4Addr, ends: &[u16]) -> io::Result<usize> {
        let found = self.connections(first, last, ends)?;
        for connection in &found {
            match self.forget(connection) {
                // It ended in between.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(found.len())
    }

    fn connections(
        &mut self,
        first: Ipv4Addr,
        last: Ipv4Addr,
        ends: &[u16],
    ) -> io::Result<Vec<Named>> {
        let wanted = self.next();
        let mut bytes = Vec::new();
        request(
            &mut bytes,
            GET_CONNECTION,
            NLM_F_DUMP,
            wanted,
            FAMILY,
            |_| (),
        );
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            for message in messages(&self.receive()?) {
                if message.sequence != wanted {
                    continue;
                }
                if message.kind == CONNECTION {
                    // Behind the header of the packet filter's own.
                    let body = message.body.get(4..).unwrap_or_default();
                    found.extend(read(body, first, last, ends));
                } else if message.kind == libc::NLMSG_ERROR as u16 {
                    result(message.body)?;
                } else if message.kind == libc::NLMSG_DONE as u16 {
                    return Ok(found);
                }
            }
        }
    }

    fn forget(&mut self, connection: &Named) -> io::Result<()> {
        let wanted = self.next();
        let mut bytes = Vec::new();
        request(
            &mut bytes,
            DELETE_CONNECTION,
            NLM_F_ACK,
            wanted,
            FAMILY,
            |m| {
                m.attribute(ORIGINAL | NESTED, &connection.original);
                m.attribute(ID, &connection.id);
            },
        );
        self.send(&bytes)?;
        loop {
            for message in messages(&self.receive()?) {
                if message.sequence == wanted && message.kind == libc::NLMSG_ERROR as u16 {
                    return result(message.body);
                }
            }
        }
    }
}

/// A connection, if one of these ends has one of these addresses.
fn read(body: &[u8], first: Ipv4Addr, last: Ipv4Addr, ends: &[u16]) -> Option<Named> {
    let original = attribute(body, ORIGINAL)?;
    let addresses = attribute(original, ADDRESSES)?;
    let is_theirs = |end: u16| {
        attribute(addresses, end)
            .and_then(|octets| octets.first_chunk::<4>())
            .is_some_and(|octets| (first..=last).contains(&Ipv4Addr::from(*octets)))
    };
    ends.iter().any(|end| is_theirs(*end)).then(|| Named {
        original: original.to_vec(),
        id: attribute(body, ID).unwrap_or_default().to_vec(),
    })
}

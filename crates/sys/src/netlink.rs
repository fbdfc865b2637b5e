//! The few rtnetlink requests that give a machine its network.
//!
//! A [`Batch`] collects requests and sends them in one go; the kernel answers each. Only IPv4, because
//! machines have nothing else.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::check;

/// A socket to the kernel's routing part, in the network namespace that the thread is in when it is made.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

/// Requests that go out together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Name of each request, for its error.
    steps: Vec<&'static str>,
}

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const NESTED: u16 = 0x8000;

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// socket(2)'s.
    pub fn open() -> io::Result<Self> {
        // SAFETY: plain numbers; the result is a new descriptor that nothing else owns.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let fd = check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE))?;
            Ok(Self(OwnedFd::from_raw_fd(fd as i32)))
        }
    }

    /// The index of an interface in the socket's own network namespace, wherever the caller is by now.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub fn index_of(&self, name: &str) -> io::Result<u32> {
        // SAFETY: a struct of plain numbers for which all zeros is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        // SAFETY: a live descriptor and a live struct whose name ends with a NUL; the kernel fills in the
        // index, which is the member read afterwards.
        unsafe {
            check(libc::ioctl(
                self.0.as_raw_fd(),
                libc::SIOCGIFINDEX,
                &raw mut request,
            ))?;
            Ok(request.ifr_ifru.ifru_ifindex as u32)
        }
    }

    /// Sends the batch and waits for every answer. Requests after a failed one are still carried out.
    ///
    /// # Errors
    /// The first failure, with the step's name.
    pub fn send(&self, batch: &Batch) -> io::Result<()> {
        // SAFETY: a live descriptor and a live slice.
        check(unsafe {
            libc::send(
                self.0.as_raw_fd(),
                batch.bytes.as_ptr().cast(),
                batch.bytes.len(),
                0,
            )
        } as i64)?;
        let mut first = Ok(());
        let mut answered = 0;
        let mut buffer = vec![0u8; 16 << 10];
        while answered < batch.steps.len() {
            // SAFETY: a live descriptor and a live buffer of the length given.
            let n = check(unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            } as i64)? as usize;
            let mut rest = &buffer[..n];
            while rest.len() >= 20 {
                let word = |at: usize| {
                    u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])
                };
                let (length, sequence, code) =
                    (word(0) as usize, word(8) as usize, word(16) as i32);
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                if kind == libc::NLMSG_ERROR as u16 {
                    answered += 1;
                    if code != 0 && first.is_ok() {
                        let step = batch.steps.get(sequence).copied().unwrap_or("request");
                        let error = io::Error::from_raw_os_error(-code);
                        first = Err(io::Error::new(error.kind(), format!("{step}: {error}")));
                    }
                }
                rest = rest
                    .get(length.max(16).next_multiple_of(4)..)
                    .unwrap_or_default();
            }
        }
        first
    }
}

impl Batch {
    /// A pair of linked interfaces: `host` here, in an interface group of the caller's choice, and `eth0` in
    /// the other network namespace.
    pub fn add_veth(&mut self, host: &str, group: u32, peer_namespace: BorrowedFd<'_>) {
        self.request(
            "make veth pair",
            libc::RTM_NEWLINK,
            NLM_F_CREATE | NLM_F_EXCL,
            |m| {
                m.interface(0, 0, 0);
                m.string(IFLA_IFNAME, host);
                m.attribute(IFLA_GROUP, &group.to_ne_bytes());
                m.nest(IFLA_LINKINFO, |m| {
                    m.string(IFLA_INFO_KIND, "veth");
                    m.nest(IFLA_INFO_DATA, |m| {
                        m.nest(VETH_INFO_PEER, |m| {
                            m.interface(0, 0, 0);
                            m.string(IFLA_IFNAME, "eth0");
                            m.attribute(
                                IFLA_NET_NS_FD,
                                &(peer_namespace.as_raw_fd() as u32).to_ne_bytes(),
                            );
                        });
                    });
                });
            },
        );
    }

    /// Removes every interface of a group, and what they are paired with. Fails if there is none, and refuses
    /// group 0, which holds all that nobody put elsewhere.
    pub fn delete_group(&mut self, group: u32) {
        self.request("delete interfaces", libc::RTM_DELLINK, 0, |m| {
            m.interface(0, 0, 0);
            if group != 0 {
                m.attribute(IFLA_GROUP, &group.to_ne_bytes());
            }
        });
    }

    /// Keeps the kernel from giving an interface an IPv6 address of its own making.
    pub fn no_ipv6_address(&mut self, index: u32) {
        const IFLA_AF_SPEC: u16 = 26;
        const ADDR_GEN_MODE: u16 = 8;
        const NONE: u8 = 1;
        self.request("no IPv6 address", libc::RTM_NEWLINK, 0, |m| {
            m.interface(index, 0, 0);
            m.nest(IFLA_AF_SPEC, |m| {
                m.nest(libc::AF_INET6 as u16, |m| {
                    m.attribute(ADDR_GEN_MODE, &[NONE])
                });
            });
        });
    }

    /// Switches an interface on.
    pub fn set_up(&mut self, index: u32) {
        let up = libc::IFF_UP as u32;
        self.request("switch interface on", libc::RTM_NEWLINK, 0, |m| {
            m.interface(index, up, up)
        });
    }

    /// Switches an interface off.
    pub fn set_down(&mut self, index: u32) {
        let up = libc::IFF_UP as u32;
        self.request("switch interface off", libc::RTM_NEWLINK, 0, |m| {
            m.interface(index, 0, up)
        });
    }

    /// Gives an interface one address with nothing beside it (`/32`).
    pub fn add_address(&mut self, index: u32, address: Ipv4Addr) {
        self.request(
            "add address",
            libc::RTM_NEWADDR,
            NLM_F_CREATE | NLM_F_REPLACE,
            |m| {
                m.bytes.extend_from_slice(&[libc::AF_INET as u8, 32, 0, 0]);
                m.bytes.extend_from_slice(&index.to_ne_bytes());
                m.attribute(2, &address.octets()); // IFA_LOCAL
                m.attribute(1, &address.octets()); // IFA_ADDRESS
            },
        );
    }

    /// Takes such an address away again.
    pub fn delete_address(&mut self, index: u32, address: Ipv4Addr) {
        self.request("delete address", libc::RTM_DELADDR, 0, |m| {
            m.bytes.extend_from_slice(&[libc::AF_INET as u8, 32, 0, 0]);
            m.bytes.extend_from_slice(&index.to_ne_bytes());
            m.attribute(2, &address.octets());
        });
    }

    /// Sends one address straight out of an interface.
    pub fn add_host_route(&mut self, index: u32, to: Ipv4Addr) {
        self.route("add host route", 32, libc::RT_SCOPE_LINK, |m| {
            m.attribute(1, &to.octets()); // RTA_DST
            m.attribute(4, &index.to_ne_bytes()); // RTA_OIF
        });
    }

    /// Sends everything else to a gateway.
    pub fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) {
        self.route("add default route", 0, libc::RT_SCOPE_UNIVERSE, |m| {
            m.attribute(5, &gateway.octets()); // RTA_GATEWAY
            m.attribute(4, &index.to_ne_bytes());
        });
    }

    fn route(
        &mut self,
        step: &'static str,
        prefix: u8,
        scope: u8,
        fill: impl FnOnce(&mut Message<'_>),
    ) {
        self.request(
            step,
            libc::RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_REPLACE,
            |m| {
                // family, dst_len, src_len, tos, table, protocol (static), scope, type (unicast), flags
                m.bytes
                    .extend_from_slice(&[libc::AF_INET as u8, prefix, 0, 0]);
                m.bytes
                    .extend_from_slice(&[libc::RT_TABLE_MAIN, 4, scope, libc::RTN_UNICAST]);
                m.bytes.extend_from_slice(&0u32.to_ne_bytes());
                fill(m);
            },
        );
    }

    fn request(
        &mut self,
        step: &'static str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Message<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = self.steps.len() as u32;
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        fill(&mut Message {
            bytes: &mut self.bytes,
        });
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.steps.push(step);
    }
}

pub(crate) struct Message<'a> {
    pub(crate) bytes: &'a mut Vec<u8>,
}

impl Message<'_> {
    /// `struct ifinfomsg`.
    fn interface(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes.extend_from_slice(&[0, 0, 0, 0]);
        self.bytes.extend_from_slice(&index.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&change.to_ne_bytes());
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.bytes
            .extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let mut value = value.as_bytes().to_vec();
        value.push(0);
        self.attribute(kind, &value);
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(&mut Message { bytes: self.bytes });
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }
}

//! The machines' network: one point-to-point link each, NAT out, nothing in but the server's own connections.
//!
//! ```text
//!  machine eth0 10.x.y.z/32 ──veth── nv<instance>… host ──masquerade──▶ the internet
//!                                         │
//!              gateway 10.x.y.1 on the loopback: names only (port 53), everything else refused
//! ```
//! The packet filter is one nftables table per launcher. It names interfaces by prefix, so that making a
//! machine does not touch it. What machines with rules may reach is in `egress.rs`; it hangs on three maps here.

use std::{
    fs, io,
    io::Write,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nullspace_sys::{
    namespace,
    netfilter::Netfilter,
    netlink::{Batch, Netlink},
};
use rustix::fd::AsFd;

/// On the sockets through which the server reaches machines: nobody else's get through.
pub(crate) const MARK: u32 = 0x6e73;
/// Prefix of every interface that any launcher makes on the host.
const PREFIX: &str = "nv";
/// Addresses of one launcher: a /20, of which the first is the gateway's.
const SUBNET_BITS: u32 = 12;
/// Where subnets are taken from: 10.128.0.0/9 holds 2,048 of them.
const POOL: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const POOL_SUBNETS: u32 = 1 << (23 - SUBNET_BITS);

pub(super) struct Network {
    instance: String,
    subnet: u32,
    netlink: Netlink,
    /// Remembers the gateway's address for a launcher that comes after a killed one.
    note: PathBuf,
    /// Interface names are never used twice: the kernel takes a while to give a name back.
    made: u32,
    next_address: u32,
    /// From now on addresses come that others had.
    is_round: bool,
}

/// A machine's link to the host.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// The host's end.
    pub(super) name: String,
    group: u32,
    pub(super) address: Ipv4Addr,
    gateway: Ipv4Addr,
}

impl Network {
    /// Takes a subnet that nothing on the host uses, and puts the gateway and the packet filter in place.
    pub(super) fn open(instance: &str, run: &Path) -> io::Result<Self> {
        Self::clear(instance, run)?;
        let netlink = Netlink::open()?;
        let note = run.join("gateway");
        let seed = u32::from_str_radix(instance, 16).unwrap_or(0);
        let taken = routes()?;
        let subnet = (0..POOL_SUBNETS)
            .map(|n| POOL + (((seed + n) % POOL_SUBNETS) << SUBNET_BITS))
            .find(|s| {
                !taken
                    .iter()
                    .any(|t| overlap(*s, 32 - SUBNET_BITS, t.0, t.1))
            })
            .ok_or_else(|| {
                io::Error::other("every subnet of 10.128.0.0/9 is in use on this host")
            })?;
        let mut network = Self {
            instance: instance.to_owned(),
            subnet,
            netlink,
            note,
            made: 0,
            next_address: 2,
            is_round: false,
        };
        // Machines of a launcher before this one had them.
        let last = subnet + (1 << SUBNET_BITS) - 1;
        forget_connections(subnet.into(), last.into());
        network.make_gateway()?;
        if let Err(error) = network.load_filter() {
            network.close();
            return Err(error);
        }
        Ok(network)
    }

    /// Removes what a killed launcher of the instance left: its packet filter, the gateway's address and
    /// links of machines that are dead, but that the kernel has not taken apart.
    pub(super) fn clear(instance: &str, run: &Path) -> io::Result<()> {
        let note = run.join("gateway");
        let left: Option<Ipv4Addr> = fs::read_to_string(&note)
            .ok()
            .and_then(|text| text.parse().ok());
        // The note is written first and removed last, so without it there is nothing; unless somebody removed the
        // whole directory. What is added to an old table would stand behind its rules, which let nothing through.
        let Some(left) = left.or_else(|| gateway_of(instance)) else {
            return Ok(());
        };
        remove(instance, left)?;
        let _ = fs::remove_file(note);
        Ok(())
    }

    pub(super) fn gateway(&self) -> Ipv4Addr {
        (self.subnet + 1).into()
    }

    fn make_gateway(&mut self) -> io::Result<()> {
        fs::write(&self.note, self.gateway().to_string())?;
        let mut batch = Batch::default();
        batch.add_address(self.netlink.index_of("lo")?, self.gateway());
        self.netlink.send(&batch)?;
        super::shared::raise();
        // Machines reach the internet through the host.
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")
    }

    fn load_filter(&self) -> io::Result<()> {
        let (table, gateway) = (table(&self.instance), self.gateway());
        let all = format!("{PREFIX}*");
        let mine = format!("{PREFIX}{}*", self.instance);
        let subnet = format!("{}/{}", Ipv4Addr::from(self.subnet), 32 - SUBNET_BITS);
        // Refused for everybody: this host's own scope, link-local (where clouds keep their metadata),
        // multicast and reserved ranges.
        let never = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3";
        nft(&format!(
            "table inet {table} {{
                map outward {{ type ifname : verdict; }}
                map inward {{ type ifname : verdict; }}
                map asking {{ type ifname : verdict; }}
                chain input {{
                    type filter hook input priority -10; policy accept;
                    iifname != \"{mine}\" accept
                    ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 iifname vmap @asking
                    ip saddr {subnet} ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept
                    ct state established ct direction reply accept
                    drop
                }}
                chain output {{
                    type filter hook output priority -10; policy accept;
                    oifname \"{mine}\" ct state new meta mark != {MARK} drop
                }}
                chain forward {{
                    type filter hook forward priority -10; policy accept;
                    iifname \"{mine}\" oifname \"{all}\" drop
                    iifname \"{mine}\" meta nfproto ipv6 drop
                    iifname \"{mine}\" ip saddr != {subnet} drop
                    iifname \"{mine}\" ip daddr {{ {never} }} drop
                    iifname vmap @outward
                    oifname vmap @inward
                    oifname \"{mine}\" ct state established,related accept
                    oifname \"{mine}\" drop
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat; policy accept;
                    ip saddr {subnet} oifname != \"{all}\" masquerade
                }}
            }}"
        ))
    }

    /// A name and an address for a link that [`Link::make`] makes.
    pub(super) fn reserve(&mut self, in_use: impl Fn(Ipv4Addr) -> bool) -> io::Result<Link> {
        let (address, was_used) = self.next_free(in_use)?;
        if was_used {
            forget_connections(address, address);
        }
        let name = format!("{PREFIX}{}{:x}", self.instance, self.made);
        self.made += 1;
        Ok(Link {
            name,
            group: group(&self.instance),
            address,
            gateway: self.gateway(),
        })
    }

    /// Round robin, so that an address comes back as late as can be: and whether somebody had it before.
    fn next_free(&mut self, in_use: impl Fn(Ipv4Addr) -> bool) -> io::Result<(Ipv4Addr, bool)> {
        let last = (1 << SUBNET_BITS) - 2;
        for _ in 2..=last {
            let address = Ipv4Addr::from(self.subnet + self.next_address);
            let was_used = self.is_round;
            self.next_address += 1;
            if self.next_address > last {
                (self.next_address, self.is_round) = (2, true);
            }
            if !in_use(address) {
                return Ok((address, was_used));
            }
        }
        Err(io::Error::other(format!(
            "all {} addresses are in use",
            last - 1
        )))
    }

    /// Removes what the launcher of this instance put on the host.
    pub(super) fn close(&mut self) {
        let _ = remove(&self.instance, self.gateway());
        let _ = fs::remove_file(&self.note);
    }
}

/// Takes out what the kernel still follows of the connections of these addresses, first and last: whoever had one may
/// have had connections, and what the other ends send is not for whoever gets it next.
fn forget_connections(first: Ipv4Addr, last: Ipv4Addr) {
    let forgotten = Netfilter::open().and_then(|mut n| n.forget_connections(first, last));
    told(first, last, forgotten);
}

/// Says when connections could not be forgotten: a kernel may show nobody which there are.
fn told(first: Ipv4Addr, last: Ipv4Addr, forgotten: io::Result<usize>) {
    if let Err(error) = forgotten {
        eprintln!("could not forget the connections of {first} to {last}: {error}");
    }
}

/// The packet filter's name.
pub(super) fn table(instance: &str) -> String {
    format!("nullspace_{instance}")
}

/// The interface group that holds the links of an instance, and nothing else.
fn group(instance: &str) -> u32 {
    const OURS: u32 = 0x6e00_0000;
    OURS | u32::from_str_radix(instance, 16).unwrap_or(0)
}

/// Takes a packet filter, a gateway's address and machines' links off the host; any may be gone already. A
/// link goes with its machine, but the kernel takes its time over that.
fn remove(instance: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let table = table(instance);
    nft(&format!(
        "table inet {table} {{}}\ndelete table inet {table}"
    ))?;
    let mut batch = Batch::default();
    let netlink = Netlink::open()?;
    batch.delete_address(netlink.index_of("lo")?, gateway);
    batch.delete_group(group(instance));
    let _ = netlink.send(&batch);
    Ok(())
}

/// The gateway that an old packet filter of the instance is for.
fn gateway_of(instance: &str) -> Option<Ipv4Addr> {
    let listed = Command::new("nft")
        .args(["list", "table", "inet", &table(instance)])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let rule = text.split_once("ip daddr ")?.1;
    rule.split_whitespace().next()?.parse().ok()
}

/// Settings of the machine's network; called in its namespace before there is a link. `proc` is a mount of
/// `/proc`.
pub(super) fn configure(proc: &Path) -> io::Result<()> {
    let net = proc.join("sys/net");
    // Any program may listen on any port: there is nobody else here to protect. The same for ping.
    fs::write(net.join("ipv4/ip_unprivileged_port_start"), "0")?;
    let _ = fs::write(net.join("ipv4/ping_group_range"), "0 2147483647");
    // For links to come; the loopback keeps its own.
    let _ = fs::write(net.join("ipv6/conf/default/disable_ipv6"), "1");
    Ok(())
}

/// Does something in the network of a process.
///
/// # Errors
/// Those of the work, and when the network cannot be entered.
pub(super) fn inside(pid: i32, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType::Network, move_into_link_name_space};
    let own = fs::File::open("/proc/self/ns/net")?;
    let theirs = namespace::open(pid, "net")?;
    move_into_link_name_space(theirs.as_fd(), Some(Network))?;
    let result = work();
    if move_into_link_name_space(own.as_fd(), Some(Network)).is_err() {
        // Whatever came next would be done to a machine instead of the host.
        std::process::abort();
    }
    result
}

impl Link {
    /// The host's end.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What tells it from the launcher's other links.
    pub(super) fn tag(&self) -> &str {
        let instance = PREFIX.len() + 6;
        self.name.get(instance..).unwrap_or_default()
    }

    /// Has the host lead nothing on that comes over the link, and forget the connections that were made over it. The
    /// host itself is still reached, as far as the packet filter lets it be.
    pub(super) fn fence(&self) -> io::Result<()> {
        self.lead_on(false)?;
        told(
            self.address,
            self.address,
            Netfilter::open().and_then(|mut n| n.forget_connections_from(self.address)),
        );
        Ok(())
    }

    /// Undoes [`Link::fence`].
    pub(super) fn unfence(&self) -> io::Result<()> {
        self.lead_on(true)
    }

    fn lead_on(&self, on: bool) -> io::Result<()> {
        let setting = format!("/proc/sys/net/ipv4/conf/{}/forwarding", self.name);
        fs::write(setting, if on { "1" } else { "0" })
    }

    /// Undoes [`cut`]; called in the machine's network.
    pub(super) fn join(&self) -> io::Result<()> {
        let netlink = Netlink::open()?;
        let eth0 = netlink.index_of("eth0")?;
        let mut batch = Batch::default();
        batch.set_up(eth0);
        batch.add_host_route(eth0, self.gateway);
        batch.add_default_route(eth0, self.gateway);
        netlink.send(&batch)
    }

    /// Makes the link and sets both ends up. Called in the machine's network namespace, with a socket that
    /// was opened in the host's: so the launcher does not wait for the kernel's locks, and when the process
    /// dies half-way the namespace takes everything with it.
    pub(super) fn make(&self, host: &Netlink) -> io::Result<()> {
        let own = fs::File::open("/proc/self/ns/net")?;
        let mut batch = Batch::default();
        batch.add_veth(&self.name, self.group, own.as_fd());
        host.send(&batch)?;
        let index = host.index_of(&self.name)?;
        let mut batch = Batch::default();
        batch.no_ipv6_address(index);
        // Refused where the kernel has no IPv6: just as well.
        let _ = host.send(&batch);
        let mut batch = Batch::default();
        batch.add_address(index, self.gateway);
        batch.set_up(index);
        batch.add_host_route(index, self.address);
        host.send(&batch)?;

        self.set_up()
    }

    /// Sets the machine's end up, also when somebody took its settings away. Called in the machine's network.
    pub(super) fn set_up(&self) -> io::Result<()> {
        let netlink = Netlink::open()?;
        let (lo, eth0) = (netlink.index_of("lo")?, netlink.index_of("eth0")?);
        let mut batch = Batch::default();
        batch.set_up(lo);
        batch.add_address(eth0, self.address);
        batch.set_up(eth0);
        batch.add_host_route(eth0, self.gateway);
        batch.add_default_route(eth0, self.gateway);
        netlink.send(&batch)
    }
}

/// Cuts the machine off; called in its network namespace, while that may still be changed.
pub(super) fn cut() -> io::Result<()> {
    let netlink = Netlink::open()?;
    let mut batch = Batch::default();
    batch.set_down(netlink.index_of("eth0")?);
    netlink.send(&batch)
}

/// Every network that the host has a route to, as (address, prefix length); default routes left out.
fn routes() -> io::Result<Vec<(u32, u32)>> {
    let mut taken = parse_routes(&fs::read_to_string("/proc/net/route")?);
    // The host's own addresses, another launcher's gateway among them, are in this table only.
    let own = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let addresses = own
        .lines()
        .filter_map(|l| l.trim().strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok());
    taken.extend(addresses.map(|a| (a.into(), 32)));
    Ok(taken)
}

fn parse_routes(table: &str) -> Vec<(u32, u32)> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // The file gives numbers in the host's byte order.
            let number = |at: usize| {
                u32::from_str_radix(fields.get(at)?, 16)
                    .ok()
                    .map(u32::from_be)
            };
            let (address, mask) = (number(1)?, number(7)?);
            (mask != 0).then_some((address, mask.leading_ones()))
        })
        .collect()
}

fn overlap(a: u32, a_bits: u32, b: u32, b_bits: u32) -> bool {
    let shift = 32 - a_bits.min(b_bits);
    a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
}

/// Runs nftables on a script.
pub(super) fn nft(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| {
            io::Error::new(
                e.kind(),
                format!("nft cannot be run ({e}): apt-get install nftables"),
            )
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "nft refused the rules: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// In a network namespace of its own, which ends with its thread.
    #[test]
    fn an_address_that_comes_back_has_no_connections() {
        std::thread::spawn(|| {
            namespace::unshare(namespace::Namespaces::NETWORK).expect("root");
            let run = tempfile::tempdir().expect("a directory");
            // Until something is followed nothing of the kernel's is there to be asked.
            let mut network = Network::open("a1b2c3", run.path()).expect("a network");
            let mut host = Batch::default();
            let lo = network.netlink.index_of("lo").expect("the loopback");
            host.set_up(lo);
            let address = |n: u32| Ipv4Addr::from(network.subnet + n);
            let (first, last) = (address(2), address((1 << SUBNET_BITS) - 2));
            host.add_address(lo, first);
            host.add_address(lo, last);
            network.netlink.send(&host).expect("addresses");
            for from in [first, last] {
                let socket = UdpSocket::bind((from, 0)).expect("a socket");
                socket.send_to(b"hello", (from, 9)).expect("sent");
            }
            let count = |address: Ipv4Addr| {
                fs::read_to_string("/proc/thread-self/net/nf_conntrack")
                    .expect("connections")
                    .lines()
                    .filter(|line| line.contains(&format!("src={address} ")))
                    .count()
            };
            assert_eq!((count(first), count(last)), (1, 1));
            network.next_address = (1 << SUBNET_BITS) - 2;
            let reserve =
                |network: &mut Network| network.reserve(|_| false).expect("an address").address;
            // The last of the first round, of which nobody had one, and the first of the second.
            assert_eq!(reserve(&mut network), last);
            assert_eq!((count(first), count(last)), (1, 1));
            assert_eq!(reserve(&mut network), first);
            assert_eq!((count(first), count(last)), (0, 1));
            // A launcher that comes later takes them all out.
            let mut network = Network::open("a1b2c3", run.path()).expect("a network");
            assert_eq!((count(first), count(last)), (0, 0));
            network.close();
        })
        .join()
        .expect("all well");
    }

    #[test]
    fn routes_are_read_in_the_hosts_byte_order() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n\
                     eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n";
        assert_eq!(
            parse_routes(table),
            [(u32::from_be_bytes([192, 0, 2, 0]), 24)]
        );
    }

    #[test]
    fn overlapping_networks_are_seen() {
        let net = |a, b, c, d| u32::from_be_bytes([a, b, c, d]);
        assert!(overlap(net(10, 128, 16, 0), 20, net(10, 0, 0, 0), 8));
        assert!(overlap(net(10, 128, 16, 0), 20, net(10, 128, 20, 1), 32));
        assert!(!overlap(net(10, 128, 16, 0), 20, net(10, 128, 32, 0), 20));
    }
}

//! What machines with rules may reach: their part of the packet filter, and the addresses that names open for them.
//!
//! ```text
//!  forward ─▶ outward[interface] ─▶ out_N ─▶ rate, open connection, pass_N, open_N ─▶ on
//!                                     └─────▶ no_N: counted in denied_N, refused
//!          ─▶ inward[interface]  ─▶ in_N  ─▶ the same from the other side
//!  input   ─▶ asking[interface]  ─▶ ask_N ─▶ questions to the resolver
//! ```
//! A machine without rules has nothing of this. One with rules is found by its interface, whose name no other machine
//! ever gets, so that rules cannot be inherited; N is the end of that name. A change is one transaction: packets see
//! the old rules or the new ones. Both directions are checked for each packet, so that a change ends connections too.
//!
//! Addresses that names lead to are in a set that the launcher fills and empties itself. A connection that was let
//! through by one goes on when the address is not open any more, until the rules change: it has a mark that means
//! this version of them.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use nullspace_engine::{
    Denial, DeniedTarget,
    egress::{Limit, Name, Rate, Rules},
};
use nullspace_sys::netfilter::Netfilter;

use super::network::{self, Link};

/// How long an address stays open after the answer that led to it is no longer good. Programs keep what they looked
/// up for longer than they should.
const GRACE: Duration = Duration::from_secs(600);
/// The longest time that an answer counts as good.
const MAX_SECONDS: u32 = 3600;
/// The most addresses that names hold open for one machine.
const MAX_OPEN: usize = 1024;
/// The most names that are remembered for one open address.
const MAX_NAMES: usize = 16;
/// Destinations that are counted for one machine at a time.
const MAX_DENIED: usize = 256;
/// Sets of counters that are read in one go.
const READ_AT_ONCE: usize = 32;
/// How often what was denied is looked at, and addresses are closed.
const UPKEEP: Duration = Duration::from_secs(1);
/// First bits of the marks of connections.
const MARKS: u32 = 0x6e00_0000;
/// The least that may be sent at once, in bytes: what a machine hands over in one piece.
const LEAST_BURST: u64 = 64 << 10;

/// The rules of all machines that have some.
pub(super) struct Egress {
    table: String,
    netfilter: Netfilter,
    machines: HashMap<u32, Machine>,
    by_source: HashMap<Ipv4Addr, u32>,
    /// What machines that are gone left in the filter.
    left: Vec<Objects>,
    version: u32,
    /// Machines whose counters are to be read next.
    turn: VecDeque<u32>,
    upkept: Instant,
}

struct Machine {
    id: String,
    source: Ipv4Addr,
    rules: Rules,
    objects: Objects,
    opened: HashMap<Ipv4Addr, HashMap<Name, Instant>>,
    /// How often each destination was denied when it was last looked at.
    denied: HashMap<Vec<u8>, u64>,
}

/// What one machine has in the filter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Objects {
    /// Its interface.
    interface: String,
    /// The end of that name.
    tag: String,
    /// Sets are made anew with each version of the rules.
    version: u32,
    has_pass: bool,
    has_open: bool,
}

impl Objects {
    fn new(link: &Link, version: u32, rules: &Rules) -> Self {
        Self {
            interface: link.name().to_owned(),
            tag: link.tag().to_owned(),
            version,
            has_pass: !passes_everything(rules) && !rules.reachable().is_empty(),
            has_open: rules.opens_by_name(),
        }
    }

    fn pass(&self) -> String {
        format!("pass_{}_{}", self.tag, self.version)
    }

    fn open(&self) -> String {
        format!("open_{}_{}", self.tag, self.version)
    }

    fn denied(&self) -> String {
        format!("denied_{}", self.tag)
    }

    fn chains(&self) -> [String; 4] {
        ["out", "in", "ask", "no"].map(|kind| format!("{kind}_{}", self.tag))
    }

    fn mark(&self) -> u32 {
        MARKS | (self.version & 0x00ff_ffff)
    }

    /// Statements that take the sets away that belong to one version; nothing may name them any more.
    fn remove_sets(&self, table: &str, script: &mut String) {
        for (has, set) in [(self.has_pass, self.pass()), (self.has_open, self.open())] {
            if has {
                let _ = writeln!(script, "delete set inet {table} {set}");
            }
        }
    }

    /// Statements that take everything away.
    fn remove(&self, table: &str) -> String {
        let mut script = String::new();
        let interface = &self.interface;
        for map in ["outward", "inward", "asking"] {
            let _ = writeln!(
                script,
                "delete element inet {table} {map} {{ \"{interface}\" }}"
            );
        }
        for chain in self.chains() {
            let _ = writeln!(script, "flush chain inet {table} {chain}");
        }
        for chain in self.chains() {
            let _ = writeln!(script, "delete chain inet {table} {chain}");
        }
        self.remove_sets(table, &mut script);
        let _ = writeln!(script, "delete set inet {table} {}", self.denied());
        script
    }
}

fn passes_everything(rules: &Rules) -> bool {
    rules.reachable() == [(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST)]
}

/// The transaction that puts rules in the place of others.
fn script(
    table: &str,
    source: Ipv4Addr,
    rules: &Rules,
    old: Option<&Objects>,
    new: &Objects,
    opened: &[Ipv4Addr],
) -> String {
    let mut script = String::new();
    let [out, inward, ask, no] = new.chains();
    let (pass, open, denied, mark) = (new.pass(), new.open(), new.denied(), new.mark());
    let everything = passes_everything(rules);

    let _ = writeln!(script, "table inet {table} {{");
    if new.has_pass {
        let ranges: Vec<String> = rules
            .reachable()
            .iter()
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            })
            .collect();
        let _ = writeln!(
            script,
            "set {pass} {{ type ipv4_addr; flags interval; elements = {{ {} }} }}",
            ranges.join(", ")
        );
    }
    if new.has_open {
        let elements = match opened {
            [] => String::new(),
            some => {
                let some: Vec<String> = some.iter().map(ToString::to_string).collect();
                format!(" elements = {{ {} }}", some.join(", "))
            }
        };
        let _ = writeln!(
            script,
            "set {open} {{ type ipv4_addr; size {MAX_OPEN};{elements} }}"
        );
    }
    if old.is_none() {
        let _ = writeln!(
            script,
            "set {denied} {{ type ipv4_addr . inet_proto . inet_service; size {MAX_DENIED}; flags dynamic,timeout; timeout 2m; }}"
        );
    }
    for chain in new.chains() {
        let _ = writeln!(script, "chain {chain} {{ }}");
    }
    let _ = writeln!(script, "}}");
    for chain in new.chains() {
        let _ = writeln!(script, "flush chain inet {table} {chain}");
    }

    let mut rule = |chain: &str, text: &str| {
        let _ = writeln!(script, "add rule inet {table} {chain} {text}");
    };
    rule(
        &no,
        &format!(
            "meta l4proto {{ tcp, udp }} add @{denied} {{ ip daddr . meta l4proto . th dport counter }}"
        ),
    );
    // Pings, and whatever else has no ports.
    rule(
        &no,
        &format!(
            "meta l4proto != {{ tcp, udp }} add @{denied} {{ ip daddr . meta l4proto . 0 counter }}"
        ),
    );
    rule(&no, "meta l4proto tcp reject with tcp reset");
    rule(&no, "reject with icmpx admin-prohibited");

    // A machine cannot send from another's address; should that ever fail, it gets nobody else's rights.
    rule(&out, &format!("ip saddr != {source} drop"));
    if let Some(rate) = rules.rate_limit {
        rule(&out, &format!("limit rate over {} drop", limit(rate)));
    }
    if other_name_servers_are_closed(rules) {
        rule(
            &out,
            &format!("meta l4proto {{ tcp, udp }} th dport {{ 53, 853 }} goto {no}"),
        );
    }
    // An error on the way of a connection: without them large packets would vanish.
    rule(&inward, "ct state related meta l4proto icmp return");
    if new.has_open {
        rule(&out, &format!("ct mark {mark:#x} return"));
        rule(&inward, &format!("ct mark {mark:#x} return"));
    }
    if everything {
        rule(&out, "return");
        rule(&inward, "return");
    }
    if new.has_pass {
        rule(&out, &format!("ip daddr @{pass} return"));
        rule(&inward, &format!("ip saddr @{pass} return"));
    }
    if new.has_open {
        rule(
            &out,
            &format!("ip daddr @{open} ct mark set {mark:#x} return"),
        );
        rule(&inward, &format!("ip saddr @{open} return"));
    }
    if !everything {
        rule(&out, &format!("goto {no}"));
        rule(&inward, "meta l4proto tcp reject with tcp reset");
        rule(&inward, "drop");
    }
    rule(&ask, &format!("ip saddr != {source} drop"));
    if rules.is_closed() {
        rule(&ask, "meta l4proto tcp reject with tcp reset");
        rule(&ask, "reject with icmpx admin-prohibited");
    }

    match old {
        None => {
            for (map, chain) in [("outward", out), ("inward", inward), ("asking", ask)] {
                let _ = writeln!(
                    script,
                    "add element inet {table} {map} {{ \"{}\" : jump {chain} }}",
                    new.interface
                );
            }
        }
        Some(old) => old.remove_sets(table, &mut script),
    }
    script
}

/// Whether the only thing between a machine and a denied name is which name server it asks.
fn other_name_servers_are_closed(rules: &Rules) -> bool {
    !rules.deny_domains.is_empty() && rules.allow_domains.is_empty() && rules.allow_cidrs.is_empty()
}

fn limit(rate: Rate) -> String {
    match rate.limit {
        Limit::KbitPerSec(kbit) => {
            let bytes = u64::from(kbit.get()) * 125;
            let burst = rate
                .burst
                .map_or(bytes / 4, |kb| u64::from(kb.get()) * 1000);
            format!(
                "{bytes} bytes/second burst {} bytes",
                burst.clamp(LEAST_BURST, u64::from(u32::MAX))
            )
        }
        Limit::Pps(packets) => {
            let burst = rate.burst.map_or(packets.get() / 4, |burst| burst.get());
            format!("{packets}/second burst {} packets", burst.max(5))
        }
    }
}

impl Egress {
    /// For a table that has the maps already.
    pub(super) fn open(instance: &str) -> io::Result<Self> {
        Ok(Self {
            table: network::table(instance),
            netfilter: Netfilter::open()?,
            machines: HashMap::new(),
            by_source: HashMap::new(),
            left: Vec::new(),
            version: 0,
            turn: VecDeque::new(),
            upkept: Instant::now(),
        })
    }

    /// Puts rules in force for the machine of a slot, in place of those that it has. On error the old ones are.
    pub(super) fn apply(&mut self, n: u32, id: &str, link: &Link, rules: &Rules) -> io::Result<()> {
        let table = self.table.clone();
        if rules.is_open() {
            if let Some(machine) = self.machines.get(&n) {
                network::nft(&machine.objects.remove(&table))?;
                self.take(n);
            }
            return Ok(());
        }
        self.version = self.version.wrapping_add(1);
        let new = Objects::new(link, self.version, rules);
        let old = self.machines.get(&n);
        // What names opened stays open if the names may still be resolved.
        let mut opened = old
            .map(|machine| machine.opened.clone())
            .unwrap_or_default();
        opened.retain(|address, names| {
            names.retain(|name, _| rules.name(name));
            !names.is_empty() && rules.may_open(*address)
        });
        if !new.has_open {
            opened.clear();
        }
        let addresses: Vec<Ipv4Addr> = opened.keys().copied().collect();
        network::nft(&script(
            &table,
            link.address,
            rules,
            old.map(|machine| &machine.objects),
            &new,
            &addresses,
        ))?;
        let denied = self.machines.remove(&n).map(|old| old.denied);
        if denied.is_none() {
            self.turn.push_back(n);
        }
        self.by_source.insert(link.address, n);
        self.machines.insert(
            n,
            Machine {
                id: id.to_owned(),
                source: link.address,
                rules: rules.clone(),
                objects: new,
                opened,
                denied: denied.unwrap_or_default(),
            },
        );
        Ok(())
    }

    fn take(&mut self, n: u32) -> Option<Machine> {
        let machine = self.machines.remove(&n)?;
        self.by_source.remove(&machine.source);
        self.turn.retain(|other| *other != n);
        Some(machine)
    }

    /// The machine is gone: whether it had rules. What it has in the filter is taken out later; nobody gets its
    /// interface.
    pub(super) fn forget(&mut self, n: u32) -> bool {
        match self.take(n) {
            Some(machine) => {
                self.left.push(machine.objects);
                true
            }
            None => false,
        }
    }

    /// The rules by machine's address, for the resolver.
    pub(super) fn policies(&self) -> Vec<(Ipv4Addr, &Rules)> {
        self.machines
            .values()
            .map(|machine| (machine.source, &machine.rules))
            .collect()
    }

    /// Opens addresses that a name leads to: which of them the machine can reach now.
    pub(super) fn open_addresses(
        &mut self,
        source: Ipv4Addr,
        name: &Name,
        addresses: &[Ipv4Addr],
        seconds: u32,
    ) -> Vec<Ipv4Addr> {
        let machine = self
            .by_source
            .get(&source)
            .and_then(|n| self.machines.get_mut(n));
        let Some(machine) = machine else {
            return Vec::new();
        };
        // The resolver has no rights: what it asks for is checked as if a machine had asked.
        if !machine.objects.has_open || !machine.rules.name(name) {
            return Vec::new();
        }
        let until = Instant::now() + Duration::from_secs(seconds.min(MAX_SECONDS).into()) + GRACE;
        let mut fine = Vec::new();
        let mut new = Vec::new();
        for address in addresses {
            if !machine.rules.may_open(*address) || fine.contains(address) {
                continue;
            }
            if !machine.opened.contains_key(address) {
                if machine.opened.len() + new.len() >= MAX_OPEN {
                    continue;
                }
                new.push(*address);
            }
            fine.push(*address);
        }
        if let Err(error) = self
            .netfilter
            .add_addresses(&self.table, &machine.objects.open(), &new)
        {
            complain("open addresses", &error);
            fine.retain(|address| !new.contains(address));
        }
        for address in &fine {
            let names = machine.opened.entry(*address).or_default();
            if names.len() < MAX_NAMES || names.contains_key(name) {
                let known = names.entry(name.clone()).or_insert(until);
                *known = until.max(*known);
            }
        }
        fine
    }

    /// What is done now and then: closes addresses, clears up, and tells what was denied.
    pub(super) fn upkeep(&mut self) -> Vec<Denial> {
        let now = Instant::now();
        if now.duration_since(self.upkept) < UPKEEP {
            return Vec::new();
        }
        self.upkept = now;
        self.clear_left();
        for machine in self.machines.values_mut() {
            let mut over = Vec::new();
            machine.opened.retain(|address, names| {
                names.retain(|_, until| *until > now);
                if names.is_empty() {
                    over.push(*address);
                }
                !names.is_empty()
            });
            if let Err(error) =
                self.netfilter
                    .delete_addresses(&self.table, &machine.objects.open(), &over)
            {
                complain("close addresses", &error);
            }
        }
        self.read_denied()
    }

    fn clear_left(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let all: String = self.left.iter().map(|o| o.remove(&self.table)).collect();
        match network::nft(&all) {
            Ok(()) => self.left.clear(),
            Err(error) => complain("clear the packet filter", &error),
        }
    }

    fn read_denied(&mut self) -> Vec<Denial> {
        let mut told = Vec::new();
        for _ in 0..READ_AT_ONCE.min(self.turn.len()) {
            let Some(n) = self.turn.pop_front() else {
                break;
            };
            self.turn.push_back(n);
            let Some(machine) = self.machines.get_mut(&n) else {
                continue;
            };
            let counted = match self
                .netfilter
                .counted(&self.table, &machine.objects.denied())
            {
                Ok(counted) => counted,
                Err(error) => {
                    complain("read what was denied", &error);
                    continue;
                }
            };
            let mut seen = HashMap::new();
            for element in counted {
                let before = machine.denied.get(&element.key).copied().unwrap_or(0);
                // One that ran out and came back counts from zero.
                let count = match element.packets >= before {
                    true => element.packets - before,
                    false => element.packets,
                };
                if let Some(target) = destination(&element.key).filter(|_| count > 0) {
                    told.push(Denial {
                        id: machine.id.clone(),
                        target,
                        count,
                    });
                }
                seen.insert(element.key, element.packets);
            }
            machine.denied = seen;
        }
        told
    }

    /// The machine that asks from an address, if it has rules.
    pub(super) fn id_of(&self, source: Ipv4Addr) -> Option<&str> {
        let machine = self.machines.get(self.by_source.get(&source)?)?;
        Some(&machine.id)
    }
}

/// Address, protocol and port, each in four bytes.
fn destination(key: &[u8]) -> Option<DeniedTarget> {
    let [a, b, c, d, protocol, _, _, _, high, low, ..] = *key else {
        return None;
    };
    Some(DeniedTarget::Address {
        address: Ipv4Addr::new(a, b, c, d),
        protocol,
        port: u16::from_be_bytes([high, low]),
    })
}

/// The launcher's output is its log.
fn complain(what: &str, error: &io::Error) {
    eprintln!("could not {what}: {error}");
}

#[cfg(test)]
mod tests;

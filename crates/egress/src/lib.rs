//! Rules for traffic out of a machine: what they are, and what they decide. No I/O.
//!
//! ```text
//!  request ──parse──▶ Rules ──┬─ address(1.2.3.4) ─▶ allow, deny, or as names say    (packet filter)
//!                             └─ name("example.com") ─▶ allow, deny                  (resolver)
//! ```
//! The same value is recorded, sent to the engine, compiled into its packet filter and asked by its resolver, so
//! that none of them reads an address or a name in its own way. [`control`] is what a launcher and its resolver say
//! to each other about it.
//!
//! **Of two rules that fit, the more specific decides**: a longer prefix, an exact name before a wildcard. For
//! networks that are in both lists the permission counts; names may not be in both.

// A test that cannot go on should say where it stopped.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod control;
mod name;
mod net;

pub use name::{Name, Pattern};
pub use net::Net;

use std::{net::Ipv4Addr, num::NonZeroU32};

use serde::{Deserialize, Serialize};

/// The most entries of one list.
pub const MAX_ENTRIES: usize = 256;
/// The most that a rate limit may say, in its unit. Above it a limit is none.
pub const MAX_RATE: u32 = 100_000_000;
/// The most burst, in its unit.
pub const MAX_BURST: u32 = 1_000_000;

/// Why rules cannot be taken. The text names the entry and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// What the lists are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything that machines may reach at all.
    #[default]
    AllowAll,
    /// Nothing, names neither.
    DenyAll,
    /// As the lists say.
    Custom,
}

/// Most traffic out in a second; what is over it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// How much.
    #[serde(flatten)]
    pub limit: Limit,
    /// What may be sent at once beyond it: kilobytes, or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
}

/// See [`Rate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Thousands of bits.
    KbitPerSec(NonZeroU32),
    /// Packets.
    Pps(NonZeroU32),
}

/// Checked rules. The default lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// What the lists are for; without [`Mode::Custom`] they are empty.
    pub mode: Mode,
    /// Networks that may be reached. If there are any, or any allowed names, all else may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_cidrs: Vec<Net>,
    /// Networks that may not be reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_cidrs: Vec<Net>,
    /// Names that may be resolved, and whose addresses may be reached. If there are any, no others may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_domains: Vec<Pattern>,
    /// Names that do not exist for the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny_domains: Vec<Pattern>,
    /// Most traffic out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<Rate>,
}

/// What rules say about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be reached.
    Allow,
    /// It may not.
    Deny,
    /// It may if an allowed name leads to it; see [`Rules::may_open`].
    ByName,
}

impl Rules {
    /// Nothing gets through.
    #[must_use]
    pub fn deny_all() -> Self {
        Self {
            mode: Mode::DenyAll,
            ..Self::default()
        }
    }

    /// Whether there is nothing to enforce.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.mode {
            Mode::AllowAll => true,
            Mode::DenyAll => false,
            Mode::Custom => {
                self.allow_cidrs.is_empty()
                    && self.deny_cidrs.is_empty()
                    && self.allow_domains.is_empty()
                    && self.deny_domains.is_empty()
                    && self.rate_limit.is_none()
            }
        }
    }

    /// Whether nothing gets through.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.mode == Mode::DenyAll
    }

    /// Checks what holds between the lists, and their lengths.
    ///
    /// # Errors
    /// [`Invalid`] with the field.
    pub fn checked(self) -> Result<Self, Invalid> {
        for (name, length) in [
            ("allow_cidrs", self.allow_cidrs.len()),
            ("deny_cidrs", self.deny_cidrs.len()),
            ("allow_domains", self.allow_domains.len()),
            ("deny_domains", self.deny_domains.len()),
        ] {
            if length > MAX_ENTRIES {
                return Err(Invalid(format!(
                    "{name}: {length} entries, at most {MAX_ENTRIES} are possible"
                )));
            }
        }
        if let Some(both) = self
            .allow_domains
            .iter()
            .find(|p| self.deny_domains.contains(p))
        {
            return Err(Invalid(format!(
                "deny_domains: {both} is in allow_domains too"
            )));
        }
        if let Some(Rate { limit, burst }) = self.rate_limit {
            let (Limit::KbitPerSec(rate) | Limit::Pps(rate)) = limit;
            if rate.get() > MAX_RATE {
                return Err(Invalid(format!("rate_limit: over {MAX_RATE}")));
            }
            if burst.is_some_and(|burst| burst.get() > MAX_BURST) {
                return Err(Invalid(format!("rate_limit.burst: over {MAX_BURST}")));
            }
        }
        Ok(self)
    }

    /// Whether names decide about addresses.
    #[must_use]
    pub fn opens_by_name(&self) -> bool {
        self.mode == Mode::Custom && !self.allow_domains.is_empty()
    }

    /// Whether some names do not exist for the machine.
    #[must_use]
    pub fn restricts_names(&self) -> bool {
        self.is_closed() || !self.allow_domains.is_empty() || !self.deny_domains.is_empty()
    }

    /// Whether an address may be reached.
    #[must_use]
    pub fn address(&self, address: Ipv4Addr) -> Verdict {
        match self.mode {
            Mode::AllowAll => return Verdict::Allow,
            Mode::DenyAll => return Verdict::Deny,
            Mode::Custom => {}
        }
        let longest = |list: &[Net]| {
            list.iter()
                .filter(|net| net.contains(address))
                .map(|net| net.prefix())
                .max()
        };
        match (longest(&self.allow_cidrs), longest(&self.deny_cidrs)) {
            (Some(allow), deny) if Some(allow) >= deny => Verdict::Allow,
            (_, Some(_)) => Verdict::Deny,
            _ if !self.allow_domains.is_empty() => Verdict::ByName,
            _ if self.allow_cidrs.is_empty() => Verdict::Allow,
            _ => Verdict::Deny,
        }
    }

    /// Whether an allowed name makes this address reachable. Not one of a private network: whoever owns the name
    /// could point it anywhere. Those are opened by `allow_cidrs` alone.
    #[must_use]
    pub fn may_open(&self, address: Ipv4Addr) -> bool {
        self.address(address) == Verdict::ByName && !net::is_private(address)
    }

    /// Whether a name may be resolved.
    #[must_use]
    pub fn name(&self, name: &Name) -> bool {
        match self.mode {
            Mode::AllowAll => return true,
            Mode::DenyAll => return false,
            Mode::Custom => {}
        }
        let best = |list: &[Pattern]| list.iter().filter_map(|p| p.fits(name)).max();
        match (best(&self.allow_domains), best(&self.deny_domains)) {
            (Some(allow), deny) if Some(allow) > deny => true,
            (_, Some(_)) => false,
            _ => self.allow_domains.is_empty(),
        }
    }

    /// Every address that may be reached without a name: ranges, first and last, in order and apart from each other.
    #[must_use]
    pub fn reachable(&self) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let nets = self.allow_cidrs.iter().chain(&self.deny_cidrs);
        let mut starts: Vec<u32> = nets
            .flat_map(|net| [Some(net.first()), net.last().checked_add(1)])
            .flatten()
            .chain([0])
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let mut ranges: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
        for (n, start) in starts.iter().enumerate() {
            // Between two starts no rule begins or ends.
            if self.address((*start).into()) != Verdict::Allow {
                continue;
            }
            let end = starts.get(n + 1).map_or(u32::MAX, |next| next - 1);
            match ranges.last_mut() {
                Some((_, last)) if u32::from(*last).checked_add(1) == Some(*start) => {
                    *last = end.into();
                }
                _ => ranges.push(((*start).into(), end.into())),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests;

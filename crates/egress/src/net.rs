//! IPv4 networks.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Invalid;

/// An IPv4 network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// Networks whose addresses mean something else on every side of a router: an allowed name may not lead there.
const PRIVATE: [Net; 9] = [
    net([0, 0, 0, 0], 8),
    net([10, 0, 0, 0], 8),
    net([100, 64, 0, 0], 10),
    net([127, 0, 0, 0], 8),
    net([169, 254, 0, 0], 16),
    net([172, 16, 0, 0], 12),
    net([192, 0, 0, 0], 24),
    net([192, 168, 0, 0], 16),
    net([224, 0, 0, 0], 3),
];

const fn net(octets: [u8; 4], prefix: u8) -> Net {
    let [a, b, c, d] = octets;
    Net {
        address: Ipv4Addr::new(a, b, c, d),
        prefix,
    }
}

pub(crate) fn is_private(address: Ipv4Addr) -> bool {
    PRIVATE.iter().any(|net| net.contains(address))
}

impl Net {
    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0)
    }

    /// Bits that its addresses share.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> u32 {
        self.address.into()
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> u32 {
        u32::from(self.address) | !self.mask()
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.address)
    }
}

impl FromStr for Net {
    type Err = Invalid;

    /// `192.0.2.0/24` or `192.0.2.7`. Bits behind the prefix must be zero: most who set them mean something else.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shown: String = text.chars().take(64).collect();
        let bad = |why: &str| Invalid(format!("{shown:?} {why}"));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if address.contains(':') {
            return Err(bad("is IPv6, which machines do not have"));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| {
            bad("is no IPv4 address or network such as 192.0.2.0/24; names go into allow_domains and deny_domains")
        })?;
        let prefix = match prefix {
            None => 32,
            Some(text) => text
                .parse()
                .ok()
                .filter(|n| *n <= 32 && text.bytes().all(|b| b.is_ascii_digit()))
                .ok_or_else(|| bad("has a prefix length that is not 0 to 32"))?,
        };
        let given = Self { address, prefix };
        let network = Ipv4Addr::from(u32::from(address) & given.mask());
        if network != address {
            return Err(bad(&format!(
                "has bits set behind its prefix: say {network}/{prefix} or {address}/32"
            )));
        }
        Ok(given)
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Net {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Net> for String {
    fn from(net: Net) -> Self {
        net.to_string()
    }
}

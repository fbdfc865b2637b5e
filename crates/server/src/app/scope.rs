//! What a key may be used for: areas of the API, each to read or to write.
//!
//! ```text
//!  read      ── every area of the tenant, to look at         <area>:read ── one of them
//!  write     ── and to change; not its keys                  <area>:write ── one of them, reading too
//!  admin     ── and its keys, and its audit log
//!  operator  ── and the server: tenants, numbers, garbage    server:read, server:write
//! ```
//! A key's scope is one or more of these words with spaces between, as in OAuth 2.0 (RFC 6749, 3.3). Who may do what to a route is
//! in `http::guard`.

use std::fmt;

use crate::error::{Error, Result};

/// A part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// Machines, what is in them, their snapshots and their events.
    Machines,
    /// Volumes and their files.
    Volumes,
    /// Templates, their builds, warm pools.
    Templates,
    /// Deployments, their versions, runs and services.
    Agents,
    /// Webhooks.
    Webhooks,
    /// Keys of the tenant, and its audit log.
    Keys,
    /// The server itself, and all tenants.
    Server,
}

const AREAS: [(Area, &str); 7] = [
    (Area::Machines, "machines"),
    (Area::Volumes, "volumes"),
    (Area::Templates, "templates"),
    (Area::Agents, "agents"),
    (Area::Webhooks, "webhooks"),
    (Area::Keys, "keys"),
    (Area::Server, "server"),
];

/// What is done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looked at.
    Read,
    /// Changed, or used: commands are run, files written, ways in opened.
    Write,
}

/// A need: one area and what is done there, as a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need(pub Area, pub Access);

impl Need {
    const fn bit(self) -> u16 {
        let Self(area, access) = self;
        1 << (2 * area as u16 + access as u16)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = AREAS.iter().find(|(area, _)| *area == self.0);
        let access = match self.1 {
            Access::Read => "read",
            Access::Write => "write",
        };
        write!(f, "{}:{access}", area.map_or("", |(_, word)| word))
    }
}

/// What a key may be used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    text: String,
    bits: u16,
}

/// The scope of a key that is made without one.
pub const DEFAULT: &str = "write";
/// The scope of the key that a new server makes.
pub const OPERATOR: &str = "operator";

impl Scope {
    /// Reads a scope.
    ///
    /// # Errors
    /// `invalid_request`.
    pub fn parse(text: &str) -> Result<Self> {
        let mut bits = 0;
        let mut words = Vec::new();
        for word in text.split_ascii_whitespace() {
            bits |= bits_of(word).ok_or_else(|| {
                let shown: String = word.chars().take(64).collect();
                Error::invalid(format!(
                    "scope: {shown:?} is none of read, write, admin, operator, and of AREA:read, AREA:write with one of the areas {}",
                    AREAS.map(|(_, area)| area).join(", ")
                ))
            })?;
            if !words.contains(&word) {
                words.push(word);
            }
        }
        if words.is_empty() {
            return Err(Error::invalid("scope: must not be empty"));
        }
        Ok(Self {
            text: words.join(" "),
            bits,
        })
    }

    /// Whether it is enough.
    #[must_use]
    pub const fn allows(&self, need: Need) -> bool {
        self.bits & need.bit() != 0
    }

    /// Whether it allows everything that the other one does.
    #[must_use]
    pub const fn covers(&self, other: &Self) -> bool {
        other.bits & !self.bits == 0
    }

    /// As it was said.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn bits_of(word: &str) -> Option<u16> {
    let all = |access: &[Access], with: &dyn Fn(Area) -> bool| {
        AREAS
            .iter()
            .filter(|(area, _)| with(*area))
            .flat_map(|(area, _)| access.iter().map(|access| Need(*area, *access).bit()))
            .fold(0, |all, bit| all | bit)
    };
    let (read, both) = ([Access::Read], [Access::Read, Access::Write]);
    let work = |area: Area| area != Area::Keys && area != Area::Server;
    Some(match word {
        "read" => all(&read, &work),
        "write" => all(&both, &work),
        "admin" => all(&both, &|area| area != Area::Server),
        OPERATOR => all(&both, &|_| true),
        _ => {
            let (area, access) = word.split_once(':')?;
            let (area, _) = AREAS.iter().find(|(_, name)| *name == area)?;
            let access: &[Access] = match access {
                "read" => &read,
                "write" => &both,
                _ => return None,
            };
            all(access, &|other| other == *area)
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    #[test]
    fn words_and_areas() {
        let can = |text: &str, area, access| scope(text).allows(Need(area, access));
        for (area, _) in AREAS {
            let is_work = area != Area::Keys && area != Area::Server;
            assert!(can("operator", area, Access::Write), "{area:?}");
            assert_eq!(can("write", area, Access::Write), is_work, "{area:?}");
            assert_eq!(can("read", area, Access::Read), is_work, "{area:?}");
            assert!(!can("read", area, Access::Write), "{area:?}");
            assert_eq!(can("admin", area, Access::Write), area != Area::Server);
        }
        assert!(can("machines:write", Area::Machines, Access::Read));
        assert!(!can("machines:read", Area::Machines, Access::Write));
        assert!(!can("machines:write", Area::Volumes, Access::Read));
        assert!(can("read  volumes:write", Area::Volumes, Access::Write));
        assert_eq!(scope(" read\tread ").as_str(), "read");
        assert_eq!(
            Need(Area::Agents, Access::Write).to_string(),
            "agents:write"
        );
    }

    #[test]
    fn more_than_another() {
        let all = ["operator", "admin", "write", "read", "machines:read"];
        for (at, more) in all.iter().enumerate() {
            for less in &all[at..] {
                assert!(scope(more).covers(&scope(less)), "{more} {less}");
            }
            for more_still in &all[..at] {
                assert!(
                    !scope(more).covers(&scope(more_still)),
                    "{more} {more_still}"
                );
            }
        }
        assert!(!scope("volumes:write").covers(&scope("machines:read")));
        assert!(scope("write keys:write").covers(&scope("admin")));
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            " ",
            "all",
            "machines",
            "machines:",
            "machines:exec",
            ":read",
            "Read",
        ] {
            assert!(Scope::parse(text).is_err(), "{text:?}");
        }
    }
}

//! What a launcher and its resolver say to each other: one JSON object a line, both ways.
//!
//! ```text
//!  launcher ── Policy (serial) ──▶ resolver      who may resolve what
//!           ◀─ Done (serial) ────                 from now on so
//!           ── Ready ──────────▶                  all that was known is said; answer machines
//!           ◀─ Open (serial) ────                 an allowed name leads here
//!           ── Opened (serial) ─▶                 these may be told to the machine
//!           ◀─ Denied ───────────                 names that were refused, now and then
//! ```
//! The resolver has no rights; it asks for every address that it wants opened, and the launcher looks at its own
//! copy of the rules.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Name, Rules};

/// The longest line, in bytes: rules with full lists of the longest names.
pub const MAX_LINE: usize = 1 << 20;
/// The most addresses of one question.
pub const MAX_ADDRESSES: usize = 64;

/// Said by the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToResolver {
    /// The rules of the machine at an address.
    Policy {
        /// Comes back in `Done`, but for 0.
        serial: u64,
        /// Where the machine asks from.
        source: Ipv4Addr,
        /// `None` for a machine without rules, or none at all.
        rules: Option<Box<Rules>>,
    },
    /// Machines may be answered.
    Ready,
    /// To `Open`.
    Opened {
        /// Of the question.
        serial: u64,
        /// Which of its addresses the machine can reach now.
        addresses: Vec<Ipv4Addr>,
    },
}

/// Said by the resolver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromResolver {
    /// A policy is in force.
    Done {
        /// The policy's.
        serial: u64,
    },
    /// An allowed name has addresses.
    Open {
        /// Comes back with the answer.
        serial: u64,
        /// The machine.
        source: Ipv4Addr,
        /// What it asked for.
        name: Name,
        /// Where that leads; at most [`MAX_ADDRESSES`].
        addresses: Vec<Ipv4Addr>,
        /// How long the answer is good for.
        seconds: u32,
    },
    /// A machine asked for a name that it may not have.
    Denied {
        /// The machine.
        source: Ipv4Addr,
        /// The name.
        name: Name,
        /// How often since it was last said.
        count: u64,
    },
}

/// A message as a line.
#[must_use]
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // Writing plain data to a Vec cannot fail.
    let mut bytes = serde_json::to_vec(message).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Takes the next message off a buffer; `None` when more bytes are needed.
///
/// # Errors
/// What is no message, or too long to be one.
pub fn take<T: for<'a> Deserialize<'a>>(buffer: &mut Vec<u8>) -> std::io::Result<Option<T>> {
    let Some(end) = buffer.iter().position(|b| *b == b'\n') else {
        return match buffer.len() > MAX_LINE {
            true => Err(std::io::Error::other("a line that does not end")),
            false => Ok(None),
        };
    };
    let message = serde_json::from_slice(&buffer[..end])?;
    buffer.drain(..=end);
    Ok(Some(message))
}

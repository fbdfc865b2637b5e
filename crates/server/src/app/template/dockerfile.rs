//! Dockerfiles: from their text to a program. What is not understood is refused by name, with its line.

mod flags;
mod lines;
mod stages;
mod words;

use std::collections::BTreeMap;

pub(super) use words::{MOST, expand, expand_plain};

use super::program::Program;
use crate::error::{Error, Result};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wrong {
    line: u32,
    why: String,
}

impl Wrong {
    fn at(line: u32, why: impl Into<String>) -> Self {
        Self {
            line,
            why: why.into(),
        }
    }
}

/// Reads a Dockerfile.
///
/// # Errors
/// `invalid_request` with the line.
pub(super) fn compile(
    text: &str,
    args: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Program> {
    let lines = lines::read(text);
    let program = lines.and_then(|lines| stages::read(&lines, args, target));
    program.map_err(|wrong| {
        Error::invalid(format!("dockerfile: line {}: {}", wrong.line, wrong.why))
            .with_action("correct the line and build again")
            .with_details(serde_json::json!({"reason": "dockerfile", "line": wrong.line}))
    })
}

#[cfg(test)]
mod check;
#[cfg(test)]
mod tests;

//! What happened, for the story of one thing when something is wrong with it.

use std::{cell::RefCell, collections::BTreeSet, time::Instant};

/// Lines of a story, at most.
const LONGEST: usize = 200;

pub(crate) struct History {
    began: Instant,
    lines: RefCell<Vec<String>>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            lines: RefCell::default(),
        }
    }
}

impl History {
    pub(crate) fn note(&self, line: impl AsRef<str>) {
        let now = self.began.elapsed();
        self.lines
            .borrow_mut()
            .push(format!("{:9.3}s {}", now.as_secs_f64(), line.as_ref()));
    }

    /// The lines with a name in them that is in the text too, and the last kill.
    pub(crate) fn about(&self, text: &str) -> String {
        let names: BTreeSet<&str> = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-')
            .filter(|word| is_name(word))
            .collect();
        let lines = self.lines.borrow();
        let last = lines.len().saturating_sub(40);
        let told: Vec<&str> = lines
            .iter()
            .enumerate()
            .filter(|(at, line)| {
                *at >= last
                    || line.contains(" kill ")
                    || names.iter().any(|name| line.contains(name))
            })
            .map(|(_, line)| line.as_str())
            .collect();
        told[told.len().saturating_sub(LONGEST)..].join("\n")
    }
}

/// Ids begin with what they are ids of; names of ours with `soak-`.
fn is_name(word: &str) -> bool {
    word.starts_with("soak-") || (word.len() > 12 && word.find('_').is_some_and(|at| at <= 5))
}

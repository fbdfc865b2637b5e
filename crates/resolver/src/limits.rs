//! How many things may happen at once, in all and for one source address.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Debug)]
struct Counts {
    total: usize,
    by_source: HashMap<Ipv4Addr, usize>,
}

/// Hands out permits and never waits: what is too much is turned away.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    counts: Arc<Mutex<Counts>>,
    most: usize,
    most_by_source: usize,
}

/// The right to do one thing, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Gate,
    source: Ipv4Addr,
}

impl Gate {
    pub(crate) fn new(most: usize, most_by_source: usize) -> Self {
        let counts = Counts {
            total: 0,
            by_source: HashMap::new(),
        };
        Self {
            counts: Arc::new(Mutex::new(counts)),
            most,
            most_by_source,
        }
    }

    pub(crate) fn enter(&self, source: Ipv4Addr) -> Option<Permit> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.total >= self.most || mine >= self.most_by_source {
            return None;
        }
        counts.total += 1;
        counts.by_source.insert(source, mine + 1);
        Some(Permit {
            gate: self.clone(),
            source,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self
            .gate
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        // Sources that are done are forgotten: machines come and go.
        if let Some(mine) = counts.by_source.get_mut(&self.source) {
            *mine -= 1;
            if *mine == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_does_not_take_all() {
        let gate = Gate::new(3, 2);
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let held = [gate.enter(a).unwrap(), gate.enter(a).unwrap()];
        assert!(gate.enter(a).is_none());
        let other = gate.enter(b).unwrap();
        assert!(gate.enter(b).is_none());
        drop(held);
        assert!(gate.enter(a).is_some());
        drop(other);
        assert!(gate.counts.lock().unwrap().by_source.is_empty());
    }
}

//! Snapshots that machines are being made of, which must stay meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Uses(Arc<Mutex<HashMap<String, usize>>>);

/// One of them; over when dropped.
#[derive(Debug)]
pub(crate) struct Use {
    all: Arc<Mutex<HashMap<String, usize>>>,
    id: String,
}

impl Uses {
    pub(super) fn begin(&self, id: &str) -> Use {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry(id.to_owned()).or_default() += 1;
        Use {
            all: self.0.clone(),
            id: id.to_owned(),
        }
    }

    pub(super) fn contain(&self, id: &str) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.contains_key(id)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.id);
            }
        }
    }
}

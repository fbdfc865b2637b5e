//! Proofs of checkpoints that are in use: machines that are made of one at the same time share one reading of it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OnceCell;

/// Set once the checkpoint was proven.
type Proof = OnceCell<()>;

/// By the checkpoint's directory and digest. A proof is forgotten with the last who holds it, so whoever comes later reads again
/// what is on the disk then.
#[derive(Debug, Default)]
pub(crate) struct Proofs(Mutex<HashMap<(PathBuf, String), Weak<Proof>>>);

impl Proofs {
    /// The proof of this checkpoint, which may be under way or done.
    pub(crate) fn of(&self, directory: &Path, digest: &str) -> Arc<Proof> {
        let key = (directory.to_owned(), digest.to_owned());
        let mut proofs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(proof) = proofs.get(&key).and_then(Weak::upgrade) {
            return proof;
        }
        proofs.retain(|_, proof| proof.strong_count() > 0);
        let proof = Arc::new(Proof::new());
        proofs.insert(key, Arc::downgrade(&proof));
        proof
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_lasts_as_long_as_somebody_needs_it() {
        let proofs = Proofs::default();
        let first = proofs.of(Path::new("a"), "1");
        first.set(()).unwrap();
        let second = proofs.of(Path::new("a"), "1");
        assert!(second.initialized());
        assert!(!proofs.of(Path::new("b"), "1").initialized());
        assert!(!proofs.of(Path::new("a"), "2").initialized());
        drop((first, second));
        assert!(!proofs.of(Path::new("a"), "1").initialized());
    }
}

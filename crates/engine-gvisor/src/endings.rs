//! Machines that were kept and are being ended. To everybody else they are gone already: nothing of them runs, and
//! whoever waits for the checkpoint does not wait for the host to take its processes, mounts and network down.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nullspace_engine::EngineError;
use nullspace_engine_native::Host;
use tokio::sync::watch;

/// Pause before an end that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// By machine; whoever holds a receiver hears when the sender is dropped, which is when nothing is left.
#[derive(Debug, Default)]
pub(crate) struct Endings(Mutex<HashMap<String, watch::Receiver<()>>>);

impl Endings {
    /// Ends a machine beside everything else, however often that takes. If this process dies first, the next one does it
    /// ([`crate::checkpoint::Source::is_left_kept`]).
    pub(crate) fn begin(self: &Arc<Self>, host: Host, id: &str) {
        let (done, waiting) = watch::channel(());
        self.lock().insert(id.to_owned(), waiting);
        let (endings, id) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            while let Err(error) = host.destroy(&id).await {
                tracing::error!(machine = id, %error, "a machine that was kept could not be ended; trying again");
                tokio::time::sleep(AGAIN).await;
            }
            endings.lock().remove(&id);
            drop(done);
        });
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    pub(crate) fn ids(&self) -> HashSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Waits until nothing is left of a machine, if it is being ended.
    pub(crate) async fn done(&self, id: &str, at_most: Duration) -> Result<(), EngineError> {
        let waiting = self.lock().get(id).cloned();
        if let Some(mut waiting) = waiting {
            // An error says that the sender is dropped.
            let done =
                tokio::time::timeout(at_most, async { while waiting.changed().await.is_ok() {} });
            done.await.map_err(|_| {
                EngineError::Unavailable(format!("machine {id} was kept and has not ended yet"))
            })?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

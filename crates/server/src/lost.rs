//! Noticing that a client's network is gone. Whoever only waits for its answer waits as long as for one that is stopped.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nullspace_sys::tcp;

/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(15);
/// A client whose system has not answered for this long is gone.
const LOST: Duration = Duration::from_secs(60);

/// A connection that is watched.
#[derive(Debug)]
pub(crate) struct Watched(Option<OwnedFd>);

impl Watched {
    /// This one. Its descriptor lives on until [`Watched::lost`] is dropped.
    pub(crate) fn new(stream: impl AsFd) -> Self {
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    /// Returns when the client's network is gone: its system, which answers even while the client itself is stopped, says
    /// nothing any more. The pings of the connection are what it owes an answer to.
    pub(crate) async fn lost(self) {
        let Some(stream) = self.0 else {
            return std::future::pending().await;
        };
        loop {
            tokio::time::sleep(LOOK).await;
            if tcp::is_lost(stream.as_fd(), LOST).unwrap_or(true) {
                return;
            }
        }
    }
}

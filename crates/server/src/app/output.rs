//! Files of machines that are gone.

use async_trait::async_trait;

/// A kept file: its size and its bytes.
#[derive(Debug)]
pub struct KeptFile {
    /// Bytes.
    pub size: u64,
    /// Open for reading, at the start.
    pub file: tokio::fs::File,
}

/// Where `GET …/file` looks when the machine is gone.
#[async_trait]
pub trait Outputs: Send + Sync + 'static {
    /// The file that was at `path` (absolute) in the machine, if it was kept.
    async fn open(&self, machine_id: &str, path: &str) -> std::io::Result<Option<KeptFile>>;
}

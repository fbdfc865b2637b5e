//! Files of machines that are gone.

use async_trait::async_trait;
use nullspace_api::file::FileInfo;

/// A kept file: its size and its bytes.
#[derive(Debug)]
pub struct KeptFile {
    /// Bytes.
    pub size: u64,
    /// Open for reading, at the start.
    pub file: tokio::fs::File,
}

/// Where files are looked for when the machine is gone. Paths are absolute, as they were in the machine.
#[async_trait]
pub trait Outputs: Send + Sync + 'static {
    /// Whether what the machine was for is over, and it will be ended if it is not ended yet. What is kept of it is all
    /// there.
    async fn is_leaving(&self, machine_id: &str) -> std::io::Result<bool>;

    /// The file that was at `path`, if it was kept.
    async fn open(&self, machine_id: &str, path: &str) -> std::io::Result<Option<KeptFile>>;

    /// What is known about a kept file or directory.
    async fn info(&self, machine_id: &str, path: &str) -> std::io::Result<Option<FileInfo>>;

    /// What a kept directory holds, sorted by path, to this depth.
    async fn list(
        &self,
        machine_id: &str,
        path: &str,
        depth: u32,
    ) -> std::io::Result<Option<Vec<FileInfo>>>;
}

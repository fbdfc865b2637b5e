//! How much of what a stranger sends is taken.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::error::LayerError;

/// Bounds on one image. What is over one of them is refused with its name; nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most layers of an image.
    pub layers: usize,
    /// Longest manifest or index in bytes.
    pub manifest_bytes: u64,
    /// Longest image configuration in bytes.
    pub config_bytes: u64,
    /// Most bytes that the compressed layers of an image may have together.
    pub compressed_bytes: u64,
    /// Most bytes that the layers of an image may have together as tar archives.
    pub unpacked_bytes: u64,
    /// How many times larger than its compressed form a layer may be, beyond its first 256 MiB. Zeros compress 1,000
    /// times with gzip; programs and text three to ten times.
    pub ratio: u64,
    /// Most members of all layers of an image together, headers that only extend others included.
    pub entries: u64,
    /// Longest path in bytes.
    pub path_bytes: usize,
    /// Most directories that a path may go down.
    pub depth: usize,
    /// How long a pull may take altogether.
    pub pull_time: Duration,
    /// How long a registry may say nothing.
    pub idle_time: Duration,
    /// How often one request is sent again when it fails without having brought anything.
    pub retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 127,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            compressed_bytes: 32 << 30,
            unpacked_bytes: 64 << 30,
            ratio: 200,
            entries: 4_000_000,
            path_bytes: 4095,
            depth: 256,
            pull_time: Duration::from_secs(3600),
            idle_time: Duration::from_secs(30),
            retries: 4,
        }
    }
}

/// Bytes that any layer may have, however small its compressed form is.
pub(crate) const FREE_OF_RATIO: u64 = 256 << 20;

/// The bounds on one image, and how much of them its layers have used up. They are unpacked at the same time.
#[derive(Debug)]
pub(crate) struct Allowance {
    pub(crate) limits: Limits,
    bytes: AtomicU64,
    headers: AtomicU64,
}

impl Allowance {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            limits: limits.clone(),
            bytes: AtomicU64::new(0),
            headers: AtomicU64::new(0),
        }
    }

    /// So many more bytes of tar archives.
    pub(crate) fn bytes(&self, more: u64) -> Result<(), LayerError> {
        take(&self.bytes, more, self.limits.unpacked_bytes, "bytes")
    }

    /// So many more headers of tar archives.
    pub(crate) fn headers(&self, more: u64) -> Result<(), LayerError> {
        take(&self.headers, more, self.limits.entries, "entries")
    }
}

fn take(used: &AtomicU64, more: u64, limit: u64, what: &'static str) -> Result<(), LayerError> {
    let before = used.fetch_add(more, Ordering::Relaxed);
    if before.saturating_add(more) > limit {
        Err(LayerError::Limit { what, limit })
    } else {
        Ok(())
    }
}

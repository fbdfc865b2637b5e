//! What fetching an image tells while it goes on.

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// It is known what the image is.
    Resolved {
        /// Digest of its manifest, `sha256:…`.
        digest: String,
        /// Its layers.
        layers: usize,
        /// Bytes of its layers as they are sent.
        bytes: u64,
    },
    /// More has come. Told for every few mebibytes.
    Received {
        /// Bytes of layers so far.
        bytes: u64,
        /// Bytes of the layers that are not kept yet.
        of: u64,
    },
    /// A layer is there.
    Layer {
        /// Its digest, 64 hex digits.
        digest: String,
        /// Layers that are there by now.
        done: usize,
        /// Layers of the image.
        of: usize,
        /// Whether it had been kept before.
        kept: bool,
    },
}

/// Hears the reports. Called from any thread, and never at once from two.
pub type Listener<'a> = &'a (dyn Fn(Progress) + Send + Sync);

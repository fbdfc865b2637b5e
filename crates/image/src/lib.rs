//! Images from outside: pulled from a registry, or read from an OCI layout, a docker archive or the archive of a root
//! file system, and unpacked into layers that machines can start from.
//!
//! [`Images`] is the entry. Each way in ends in an [`Image`]: directories that an overlay can have below it, each named
//! by its content and shared by all images that have it, and what the image says about how its programs are run.
//!
//! ```text
//! registry ─┐
//! layout ───┼─▶ manifest ─▶ config ─▶ layers ─▶ digest ─▶ decompress ─▶ digest ─▶ unpack ─▶ keep
//! archive ──┘                                     (layer)                         (unpack) (store)
//! ```
//!
//! Everything in an image is hostile, and so may the registry be: see [`Limits`] for what is bounded, `unpack` for what
//! a layer can and cannot do, `registry` for where credentials go. See `docs/design/images.md` for why it is so.

// A test that cannot go on should say where it stopped.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod beneath;
mod config;
mod credentials;
mod error;
mod implied;
mod layer;
mod limits;
mod manifest;
mod progress;
mod pull;
mod registry;
mod store;
mod tar;
mod unpack;

use std::path::{Path, PathBuf};

pub use archive::ArchiveKind;
pub use config::{Healthcheck, ImageConfig};
pub use credentials::Credentials;
pub use error::{Blame, ImageError, LayerError};
pub use limits::Limits;
pub use progress::{Listener, Progress};
pub use registry::{Registries, check_authorities};
pub use store::{Facts, LayerTree, Layers};

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What it is: `sha256:…` of its manifest, of its configuration if it came from a docker archive, or of its tar
    /// archive if it came as a root file system.
    pub digest: String,
    /// Its layers, base first. Layers with nothing in them, and those that a later one hides whole, are left out.
    pub layers: Vec<LayerTree>,
    /// How its programs are run.
    pub config: ImageConfig,
}

impl Image {
    /// The roots of its layers, topmost first, as an engine takes them.
    #[must_use]
    pub fn lower(&self) -> Vec<PathBuf> {
        self.layers
            .iter()
            .rev()
            .map(|tree| tree.path.clone())
            .collect()
    }
}

/// Fetches images and keeps their layers.
#[derive(Clone, Debug)]
pub struct Images {
    layers: Layers,
    registries: Registries,
    limits: Limits,
}

impl Images {
    /// Keeps layers in `directory`, which other things may be in too; see [`Layers::open`].
    ///
    /// # Errors
    /// If the directory cannot be made or cleaned.
    pub fn open(
        directory: &Path,
        registries: Registries,
        limits: Limits,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            layers: Layers::open(directory)?,
            registries,
            limits,
        })
    }

    /// The layers that are kept.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// What there is of an image, in the form for an engine. `trees` are base first.
    fn assemble(
        &self,
        digest: String,
        mut trees: Vec<LayerTree>,
        config: ImageConfig,
    ) -> Result<Image, ImageError> {
        let base = trees.iter().rposition(|tree| tree.facts.opaque);
        trees.drain(..base.unwrap_or(0));
        trees.retain(|tree| tree.facts.entries > 0);
        let on_top = self.settle_implied(&trees)?;
        trees.extend(on_top);
        Ok(Image {
            digest,
            layers: trees,
            config,
        })
    }
}

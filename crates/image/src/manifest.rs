//! Manifests: which layers an image has, and which image of several is ours.

use oci_spec::image::{Arch, Descriptor, DigestAlgorithm, ImageIndex, ImageManifest, Os, Platform};
use serde::Deserialize;

use crate::{
    error::{ImageError, shown},
    limits::Limits,
};

/// What is asked for, in this order.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// How a layer is compressed is seen from its first bytes: these say only that it is one.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Indexes in indexes that are followed.
pub(crate) const MAX_NESTED: usize = 3;

/// A document that a digest or a tag leads to.
#[derive(Debug)]
pub(crate) enum Document {
    /// Of one image.
    Manifest(Box<ImageManifest>),
    /// Of several.
    Index(Box<ImageIndex>),
}

/// A reference from one document to another part, checked as far as it can be without that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// 64 hex digits.
    pub(crate) digest: String,
    pub(crate) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: Option<u32>,
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
}

/// Reads a document. What the sender called it counts only if it does not say itself.
pub(crate) fn parse(bytes: &[u8], called: Option<&str>) -> Result<Document, ImageError> {
    let bad = |e: serde_json::Error| malformed(shown(e.to_string()));
    let kind: Kind = serde_json::from_slice(bytes).map_err(bad)?;
    if kind.schema_version != Some(2) {
        return Err(ImageError::MediaType {
            what: "the image's manifest".into(),
            found: match kind.schema_version {
                Some(1) => "application/vnd.docker.distribution.manifest.v1+json".into(),
                other => format!("schema version {other:?}"),
            },
        });
    }
    let is_index = match kind.media_type.as_deref().or(called) {
        Some(kind) if INDEXES.contains(&kind) => true,
        Some(kind) if MANIFESTS.contains(&kind) => false,
        // Registries and old tools that do not say.
        None | Some("application/json" | "application/octet-stream" | "text/plain") => {
            kind.manifests.is_some()
        }
        Some(other) => {
            return Err(ImageError::MediaType {
                what: "the image's manifest".into(),
                found: shown(other),
            });
        }
    };
    Ok(if is_index {
        Document::Index(Box::new(serde_json::from_slice(bytes).map_err(bad)?))
    } else {
        Document::Manifest(Box::new(serde_json::from_slice(bytes).map_err(bad)?))
    })
}

/// The manifest in the index that is for this host, and whether the index itself says so.
pub(crate) fn choose(index: &ImageIndex) -> Result<Part, ImageError> {
    let listed = index.manifests();
    let fits = |platform: &Platform| is_ours(platform.os(), platform.architecture());
    let found = listed
        .iter()
        .find(|entry| entry.platform().as_ref().is_some_and(fits))
        // One image whose platform only its configuration tells.
        .or_else(|| {
            listed
                .iter()
                .find(|_| listed.len() == 1)
                .filter(|one| one.platform().is_none())
        });
    let Some(found) = found else {
        let mut platforms: Vec<String> = listed
            .iter()
            .map(|entry| match entry.platform() {
                Some(p) => shown(format!("{}/{}", p.os(), p.architecture())),
                None => "one without a platform".into(),
            })
            .filter(|platform| platform != "unknown/unknown")
            .take(16)
            .collect();
        platforms.dedup();
        if platforms.is_empty() {
            platforms.push("nothing".into());
        }
        return Err(ImageError::Platform {
            wanted: ours(),
            found: platforms,
        });
    };
    let kind = found.media_type().to_string();
    if !INDEXES.contains(&&*kind) && !MANIFESTS.contains(&&*kind) {
        return Err(ImageError::MediaType {
            what: "the manifest in the image's index".into(),
            found: shown(kind),
        });
    }
    part(found, "a manifest")
}

/// Whether programs of that platform run here.
pub(crate) fn is_ours(os: &Os, arch: &Arch) -> bool {
    *os == Os::Linux && *arch == Arch::default()
}

/// Such as `linux/amd64`.
pub(crate) fn ours() -> String {
    format!("{}/{}", Os::Linux, Arch::default())
}

/// The configuration and the layers of a manifest, base first.
pub(crate) fn parts(
    manifest: &ImageManifest,
    limits: &Limits,
) -> Result<(Part, Vec<Part>), ImageError> {
    let refuse = |what: &str, kind: String| ImageError::MediaType {
        what: what.into(),
        found: shown(kind),
    };
    let kind = manifest.config().media_type().to_string();
    if !CONFIGS.contains(&&*kind) {
        return Err(refuse("the image's configuration", kind));
    }
    let config = part(manifest.config(), "the image's configuration")?;
    if config.size > limits.config_bytes {
        return Err(ImageError::TooLarge {
            what: "the image's configuration".into(),
            limit: limits.config_bytes,
        });
    }
    if manifest.layers().len() > limits.layers {
        return Err(malformed(format!(
            "it has {} layers, more than {}",
            manifest.layers().len(),
            limits.layers
        )));
    }
    let mut layers = Vec::new();
    let mut bytes = 0_u64;
    for layer in manifest.layers() {
        let kind = layer.media_type().to_string();
        if !LAYERS.contains(&&*kind) {
            return Err(refuse("a layer", kind));
        }
        let layer = part(layer, "a layer")?;
        bytes = bytes.saturating_add(layer.size);
        layers.push(layer);
    }
    if bytes > limits.compressed_bytes {
        return Err(ImageError::TooLarge {
            what: "the image's layers together".into(),
            limit: limits.compressed_bytes,
        });
    }
    Ok((config, layers))
}

pub(crate) fn part(descriptor: &Descriptor, what: &str) -> Result<Part, ImageError> {
    let digest = descriptor.digest();
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        return Err(malformed(format!(
            "{what} is named by a digest other than SHA-256"
        )));
    }
    Ok(Part {
        digest: digest.digest().to_owned(),
        size: descriptor.size(),
    })
}

fn malformed(why: String) -> ImageError {
    ImageError::Malformed {
        what: "the image's manifest".into(),
        why,
    }
}

#[cfg(test)]
mod tests;

//! Images in files: an OCI layout, a docker archive, the archive of a root file system.
//!
//! A layout is a directory, or an archive of one. Both it and a docker archive are parts with names; where a part is
//! comes from a look through the whole archive, once, and what it is from its digest.

mod parts;

use std::{fs::File, io::BufReader, path::Path};

use oci_spec::{
    distribution::Reference,
    image::{ImageIndex, ImageManifest},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{
    Image, ImageConfig, Images,
    config::{self, Parsed},
    error::{ImageError, shown},
    layer::with_decompressor,
    limits::{Allowance, Limits},
    manifest::{self, Document},
    progress::{Listener, Progress},
    pull::check_config,
    store::{Claim, Expected, LayerTree},
    tar::Members,
};
use parts::{Parts, bad, blob_name, of_archive, plain_name};

/// The annotation that names an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveKind {
    /// An OCI layout.
    OciLayout,
    /// What `docker save` writes.
    Docker,
    /// A root file system.
    RootFs,
}

impl Images {
    /// The image in an OCI layout, a directory or an archive of one, plain or compressed. `name` chooses among several.
    /// Blocks; files are read from where they are, and compressed archives are decompressed to a temporary file
    /// first.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn from_layout(
        &self,
        path: &Path,
        name: Option<&str>,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        let parts = Parts::open(path, &self.limits, &self.layers)?;
        let index = parts.read("index.json", self.limits.manifest_bytes)?;
        let index: ImageIndex = serde_json::from_slice(&index).map_err(|e| bad("index.json", e))?;
        let (manifest, digest) = self.find(&parts, &index, name)?;
        let (config, layers) = manifest::parts(&manifest, &self.limits)?;
        let config = parts.blob(&config, "the image's configuration")?;
        let sources = layers
            .into_iter()
            .map(|layer| Source {
                at: blob_name(&layer.digest),
                size: Some(layer.size),
                digest: Some(layer.digest),
            })
            .collect();
        self.unpack_all(&parts, digest, &config, sources, listener)
    }

    /// The image in what `docker save` or `skopeo copy … docker-archive:` wrote, plain or compressed. There must be
    /// one image in it, or one with that `name` (`repository:tag`). Blocks.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn from_docker_archive(
        &self,
        path: &Path,
        name: Option<&str>,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Entry {
            config: String,
            #[serde(default)]
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        const MANIFEST: &str = "manifest.json";
        let parts = Parts::open(path, &self.limits, &self.layers)?;
        let manifest = parts.read(MANIFEST, self.limits.manifest_bytes)?;
        let images: Vec<Entry> = serde_json::from_slice(&manifest).map_err(|e| bad(MANIFEST, e))?;
        let tags = |image: &Entry| image.repo_tags.clone().unwrap_or_default();
        let names = images.iter().map(|image| tags(image).join(" "));
        let chosen = one(MANIFEST, names, name, |name| {
            images
                .iter()
                .position(|image| tags(image).iter().any(|tag| is_same(tag, name)))
        })?;
        let image = &images[chosen];
        if image.layers.len() > self.limits.layers {
            return Err(too_many_layers(image.layers.len(), &self.limits));
        }
        let config = parts.read(&image.config, self.limits.config_bytes)?;
        let digest = hex::encode(Sha256::digest(&config));
        let sources = image
            .layers
            .iter()
            .map(|at| Source {
                at: at.clone(),
                size: None,
                digest: None,
            })
            .collect();
        self.unpack_all(&parts, digest, &config, sources, listener)
    }

    /// The archive of a root file system as an image of one layer, without a configuration. Plain, gzip, zstd or xz.
    /// Blocks.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn from_rootfs_archive(
        &self,
        path: &Path,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        let file = File::open(path).map_err(ImageError::file("open", path))?;
        let expected = Expected {
            name: "of the archive".into(),
            ..Expected::default()
        };
        let allowance = Allowance::new(&self.limits);
        let tree = self
            .layers
            .claim_unknown()?
            .unpack(file, &expected, &allowance)?;
        listener(Progress::Layer {
            digest: tree.digest.clone(),
            done: 1,
            of: 1,
            kept: false,
        });
        let digest = format!("sha256:{}", tree.digest);
        self.assemble(digest, vec![tree], ImageConfig::default())
    }

    /// What kind of archive it is, by the names in it. Reads it up to the first that tells, to the end for a root file
    /// system.
    ///
    /// # Errors
    /// If it cannot be read or is no archive.
    pub fn archive_kind(&self, path: &Path) -> Result<ArchiveKind, ImageError> {
        let file = File::open(path).map_err(ImageError::file("open", path))?;
        let allowance = Allowance::new(&self.limits);
        with_decompressor(&mut BufReader::new(file), |archive| {
            let mut members = Members::new(archive, &allowance);
            let mut kind = ArchiveKind::RootFs;
            while let Some(member) = members.next()? {
                match plain_name(&member.name).as_slice() {
                    // Newer versions of docker write both; its own says what the image is called.
                    b"manifest.json" => return Ok(ArchiveKind::Docker),
                    b"oci-layout" => kind = ArchiveKind::OciLayout,
                    _ => {}
                }
            }
            Ok(kind)
        })
        .map_err(of_archive)
    }

    fn find(
        &self,
        parts: &Parts,
        index: &ImageIndex,
        name: Option<&str>,
    ) -> Result<(ImageManifest, String), ImageError> {
        let listed = index.manifests();
        let called = |i: usize| {
            let annotations = listed[i].annotations().as_ref()?;
            annotations.get(REF_NAME).map(String::as_str)
        };
        let mut part = match (name, listed.len()) {
            (None, 2..) if (0..listed.len()).all(|i| called(i).is_none()) => {
                manifest::choose(index)?
            }
            _ => {
                let names = (0..listed.len()).map(|i| called(i).unwrap_or_default().to_owned());
                let chosen = one("index.json", names, name, |name| {
                    (0..listed.len()).find(|i| called(*i) == Some(name))
                })?;
                manifest::part(&listed[chosen], "a manifest")?
            }
        };
        for _ in 0..=manifest::MAX_NESTED {
            if part.size > self.limits.manifest_bytes {
                return Err(ImageError::TooLarge {
                    what: "the image's manifest".into(),
                    limit: self.limits.manifest_bytes,
                });
            }
            let bytes = parts.blob(&part, "the image's manifest")?;
            match manifest::parse(&bytes, None)? {
                Document::Manifest(manifest) => return Ok((*manifest, part.digest)),
                Document::Index(index) => part = manifest::choose(&index)?,
            }
        }
        Err(ImageError::Malformed {
            what: "the image's manifest".into(),
            why: "it is an index of indexes of indexes".into(),
        })
    }

    fn unpack_all(
        &self,
        parts: &Parts,
        digest: String,
        config: &[u8],
        sources: Vec<Source>,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        let Parsed {
            config, diff_ids, ..
        } = {
            let parsed = config::parse(config)?;
            check_config(&parsed, sources.len())?;
            parsed
        };
        let digest = format!("sha256:{digest}");
        listener(Progress::Resolved {
            digest: digest.clone(),
            layers: sources.len(),
            bytes: sources.iter().filter_map(|source| source.size).sum(),
        });
        let allowance = Allowance::new(&self.limits);
        let of = sources.len();
        let mut trees: Vec<LayerTree> = Vec::new();
        for (diff_id, source) in diff_ids.into_iter().zip(sources) {
            let (tree, kept) = match self.layers.claim_blocking(&diff_id)? {
                Claim::Kept(tree) => {
                    tree.count(&allowance)?;
                    (tree, true)
                }
                Claim::Mine(building) => {
                    let expected = Expected {
                        name: match &source.digest {
                            Some(digest) => format!("sha256:{digest}"),
                            None => shown(&source.at),
                        },
                        digest: source.digest.clone(),
                        diff_id: Some(diff_id),
                    };
                    let input = parts.open_part(&source.at)?;
                    (building.unpack(input, &expected, &allowance)?, false)
                }
            };
            listener(Progress::Layer {
                digest: tree.digest.clone(),
                done: trees.len() + 1,
                of,
                kept,
            });
            trees.push(tree);
        }
        self.assemble(digest, trees, config)
    }
}

/// Docker leaves the registry out of names of its own, other tools write it.
fn is_same(tag: &str, name: &str) -> bool {
    tag == name
        || tag
            .parse::<Reference>()
            .is_ok_and(|tag| name.parse::<Reference>().is_ok_and(|name| name == tag))
}

/// Where a layer is.
struct Source {
    at: String,
    size: Option<u64>,
    /// Of its compressed form, as hex digits, where that is known.
    digest: Option<String>,
}

/// The one that is asked for, or the only one.
fn one(
    file: &str,
    names: impl ExactSizeIterator<Item = String>,
    wanted: Option<&str>,
    find: impl Fn(&str) -> Option<usize>,
) -> Result<usize, ImageError> {
    let found = match wanted {
        Some(name) => find(name),
        None if names.len() == 1 => Some(0),
        None => None,
    };
    found.ok_or_else(|| {
        let mut all: Vec<String> = names.take(16).map(shown).collect();
        all.retain(|name| !name.is_empty());
        ImageError::Malformed {
            what: file.to_owned(),
            why: match wanted {
                Some(name) => format!(
                    "no image in it is called {:?}; there is {all:?}",
                    shown(name)
                ),
                None => format!("there is not one image in it; name one of {all:?}"),
            },
        }
    })
}

fn too_many_layers(found: usize, limits: &Limits) -> ImageError {
    ImageError::Malformed {
        what: "the image's manifest".into(),
        why: format!("it has {found} layers, more than {}", limits.layers),
    }
}

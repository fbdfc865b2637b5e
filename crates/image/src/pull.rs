//! An image from a registry.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_spec::{distribution::Reference, image::ImageManifest};
use tokio::sync::mpsc;

use crate::{
    Image, Images,
    config::{self, Parsed},
    credentials::Credentials,
    error::{ImageError, LayerError, shown},
    limits::Allowance,
    manifest::{self, Document, Part},
    progress::{Listener, Progress},
    registry::{Fed, Session},
    store::{Claim, Expected, LayerTree},
};

/// Layers that are fetched at the same time.
const AT_ONCE: usize = 3;
/// Pieces of a layer that may have come and not been unpacked yet.
const AHEAD: usize = 64;
/// Bytes between two reports.
const REPORT_EVERY: u64 = 4 << 20;

impl Images {
    /// The image that the reference leads to, in the form for this host. `reference` is
    /// `[REGISTRY/]NAME[:TAG][@sha256:DIGEST]`, docker.io and `latest` if not said.
    ///
    /// Layers that are kept are not fetched. If the future is dropped, or fails, the layers that were complete are
    /// kept and nothing else.
    ///
    /// # Errors
    /// See [`ImageError`]; [`ImageError::hint`] says what to do.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: &Credentials,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        let work = self.pull_in_time(reference, credentials, listener);
        match tokio::time::timeout(self.limits.pull_time, work).await {
            Ok(done) => done,
            Err(_) => Err(ImageError::Deadline {
                seconds: self.limits.pull_time.as_secs(),
            }),
        }
    }

    async fn pull_in_time(
        &self,
        reference: &str,
        credentials: &Credentials,
        listener: Listener<'_>,
    ) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse().map_err(|source| ImageError::Reference {
            reference: shown(reference),
            source,
        })?;
        let session = Session::new(&reference, credentials, &self.registries, &self.limits)?;
        let (manifest, digest) = find(&session, &reference).await?;
        let (config, layers) = manifest::parts(&manifest, &self.limits)?;
        let config = session
            .small_blob(&config, "the image's configuration")
            .await?;
        let config = config::parse(&config)?;
        check_config(&config, layers.len())?;
        listener(Progress::Resolved {
            digest: format!("sha256:{digest}"),
            layers: layers.len(),
            bytes: layers.iter().map(|layer| layer.size).sum(),
        });

        // One image may have a layer twice; it is fetched once.
        let wanted: BTreeMap<String, Part> =
            (config.diff_ids.iter().cloned()).zip(layers).collect();
        let missing: u64 = wanted
            .iter()
            .filter(|(diff_id, _)| self.layers.get(diff_id).is_none())
            .map(|(_, part)| part.size)
            .sum();
        let report = Report {
            listener,
            counts: Mutex::new(Counts {
                bytes: 0,
                told: 0,
                done: 0,
            }),
            missing,
            layers: wanted.len(),
        };
        let report = &report;
        let allowance = &Arc::new(Allowance::new(&self.limits));
        let session = &session;
        let trees: BTreeMap<String, LayerTree> = stream::iter(wanted)
            .map(|(diff_id, part)| async move {
                let tree = self
                    .fetch(session, &diff_id, &part, report, allowance)
                    .await?;
                Ok::<_, ImageError>((diff_id, tree))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let trees = (config.diff_ids.iter())
            .filter_map(|diff_id| trees.get(diff_id).cloned())
            .collect();
        let images = self.clone();
        let digest = format!("sha256:{digest}");
        let assembling =
            tokio::task::spawn_blocking(move || images.assemble(digest, trees, config.config));
        assembling.await.unwrap_or_else(|_| {
            Err(ImageError::Malformed {
                what: "the image".into(),
                why: "its layers could not be put together".into(),
            })
        })
    }

    async fn fetch(
        &self,
        session: &Session,
        diff_id: &str,
        part: &Part,
        report: &Report<'_>,
        allowance: &Arc<Allowance>,
    ) -> Result<LayerTree, ImageError> {
        let building = match self.layers.claim(diff_id).await? {
            Claim::Kept(tree) => {
                tree.count(allowance)?;
                report.layer(diff_id, true);
                return Ok(tree);
            }
            Claim::Mine(building) => building,
        };
        let expected = Expected {
            name: format!("sha256:{}", part.digest),
            digest: Some(part.digest.clone()),
            diff_id: Some(diff_id.to_owned()),
        };
        let (to, received) = mpsc::channel(AHEAD);
        let allowance = Arc::clone(allowance);
        let unpacking = tokio::task::spawn_blocking(move || {
            let input = Arriving {
                received,
                piece: Bytes::new(),
            };
            building.unpack(input, &expected, &allowance)
        });
        let fed = session
            .blob(part, &to, &|bytes| report.received(bytes))
            .await;
        drop(to);
        let unpacked = unpacking.await.unwrap_or_else(|_| {
            Err(ImageError::Layer {
                digest: format!("sha256:{}", part.digest),
                source: LayerError::malformed("its unpacking failed"),
            })
        });
        // If it did not come whole, then that is why it could not be unpacked.
        let tree = match fed {
            Ok(Fed::Whole | Fed::Stopped) => unpacked?,
            Err(error) => return Err(error),
        };
        report.layer(diff_id, false);
        Ok(tree)
    }
}

/// The manifest of the image for this host, and its digest as hex digits.
async fn find(
    session: &Session,
    reference: &Reference,
) -> Result<(ImageManifest, String), ImageError> {
    let mut at = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_owned(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    for _ in 0..=manifest::MAX_NESTED {
        let (bytes, digest, kind) = session.manifest(&at).await?;
        match manifest::parse(&bytes, kind.as_deref())? {
            Document::Manifest(manifest) => return Ok((*manifest, digest)),
            Document::Index(index) => {
                at = format!("sha256:{}", manifest::choose(&index)?.digest);
            }
        }
    }
    Err(ImageError::Malformed {
        what: "the image's manifest".into(),
        why: "it is an index of indexes of indexes".into(),
    })
}

/// What the configuration must be for this host and for that many layers.
pub(crate) fn check_config(config: &Parsed, layers: usize) -> Result<(), ImageError> {
    if !manifest::is_ours(&config.os, &config.arch) {
        return Err(ImageError::Platform {
            wanted: manifest::ours(),
            found: vec![shown(format!("{}/{}", config.os, config.arch))],
        });
    }
    if config.diff_ids.len() != layers {
        return Err(ImageError::Malformed {
            what: "the image's configuration".into(),
            why: format!(
                "it tells of {} layers, the manifest of {layers}",
                config.diff_ids.len()
            ),
        });
    }
    Ok(())
}

/// The reports of one pull, one after the other.
struct Report<'a> {
    listener: Listener<'a>,
    counts: Mutex<Counts>,
    missing: u64,
    layers: usize,
}

struct Counts {
    bytes: u64,
    told: u64,
    done: usize,
}

impl Report<'_> {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // A listener that panicked spoils no numbers.
        self.counts.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn received(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.bytes += bytes;
        if counts.bytes - counts.told >= REPORT_EVERY || counts.bytes == self.missing {
            counts.told = counts.bytes;
            (self.listener)(Progress::Received {
                bytes: counts.bytes,
                of: self.missing.max(counts.bytes),
            });
        }
    }

    fn layer(&self, digest: &str, kept: bool) {
        let mut counts = self.counts();
        counts.done += 1;
        (self.listener)(Progress::Layer {
            digest: digest.to_owned(),
            done: counts.done,
            of: self.layers,
            kept,
        });
    }
}

/// What arrives from the network, as a stream for a thread.
struct Arriving {
    received: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match self.received.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let most = buffer.len().min(self.piece.len());
        buffer[..most].copy_from_slice(&self.piece.split_to(most));
        Ok(most)
    }
}

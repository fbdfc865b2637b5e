//! What can go wrong with an image, and what to do about it.
//!
//! Neither an error nor its sources hold a credential, a token or the address that a registry redirected to, which may
//! be signed. What a stranger said is cut and made printable.

use std::{io, path::PathBuf};

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Its compressed form cannot be read.
    #[error("it cannot be decompressed")]
    Decompress(#[source] io::Error),
    /// It is compressed in a way that is not supported.
    #[error("it is compressed with {0}")]
    Compression(&'static str),
    /// It ends in the middle.
    #[error("it is cut short")]
    CutShort,
    /// It is not a tar archive as the standard has it.
    #[error("it is no proper tar archive: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// It holds something that is not supported.
    #[error("{name:?} is {what}, which is not supported")]
    Unsupported {
        /// The member.
        name: String,
        /// What it is.
        what: String,
    },
    /// A path that does not stay where it belongs, or goes through something that is no directory.
    #[error("{name:?} {why}")]
    Path {
        /// The member.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A hard link to nothing.
    #[error("{name:?} is a hard link to {target:?}, {why}")]
    HardLink {
        /// The member.
        name: String,
        /// What it links to.
        target: String,
        /// What is wrong with that.
        why: &'static str,
    },
    /// There is more of it than is taken.
    #[error("it has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most that is taken.
        limit: u64,
    },
    /// It is so much larger than its compressed form that it must be a trap.
    #[error("it is more than {limit} times larger than its compressed form")]
    Ratio {
        /// The most that is taken.
        limit: u64,
    },
    /// The host cannot hold it.
    #[error("cannot {step} {name:?}")]
    Write {
        /// What was tried.
        step: &'static str,
        /// The member.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be read from where it is.
    #[error("cannot read it")]
    Read(#[source] io::Error),
}

impl LayerError {
    pub(crate) fn malformed(what: &'static str) -> Self {
        Self::Malformed { what }
    }

    /// For `map_err` on a read: readers hand their own errors through `io::Error`.
    pub(crate) fn read(error: io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<Self>()) {
            let inner = error.into_inner().and_then(|e| e.downcast::<Self>().ok());
            return inner.map_or(Self::CutShort, |e| *e);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::CutShort,
            _ => Self::Decompress(error),
        }
    }

    /// For `map_err`: a failed file operation on `name`.
    pub(crate) fn write<E: Into<io::Error>>(
        step: &'static str,
        name: &[u8],
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Write {
            step,
            name: shown(name),
            source: source.into(),
        }
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The reference is none.
    #[error("{reference:?} is no image reference")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        source: oci_spec::distribution::ParseError,
    },
    /// The registry would be spoken to without encryption, and nobody allowed it.
    #[error(
        "registry {registry} wants plain http, which is for this host and those that are configured"
    )]
    Plain {
        /// The registry.
        registry: String,
    },
    /// The registry has no such image.
    #[error("registry {registry} has no image {name}")]
    NotFound {
        /// The registry.
        registry: String,
        /// Repository and tag or digest.
        name: String,
    },
    /// The registry does not let us.
    #[error("registry {registry} refuses access to {name} ({})", if *.anonymous { "no credentials were given" } else { "with the credentials given" })]
    Denied {
        /// The registry.
        registry: String,
        /// The repository.
        name: String,
        /// Whether it was asked without credentials.
        anonymous: bool,
    },
    /// The registry cannot be reached, or breaks off again and again.
    #[error("registry {registry} failed at {step}: {why}")]
    Unreachable {
        /// The registry, or the host that it named.
        registry: String,
        /// What was asked for.
        step: String,
        /// What happened, of the last attempt.
        why: String,
    },
    /// The registry, or a host that it named, has no certificate that is believed.
    #[error("registry {registry} is not trusted at {step}: {why}")]
    Certificate {
        /// The registry.
        registry: String,
        /// What was asked for.
        step: String,
        /// What is wrong with the certificate.
        why: String,
    },
    /// The file of authorities that the settings have for the registry cannot be used.
    #[error("the certificate authorities for registry {registry} cannot be read: {why}")]
    Authorities {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// The registry answers against the protocol.
    #[error("registry {registry} answered {step} with {what}")]
    Answer {
        /// The registry.
        registry: String,
        /// What was asked for.
        step: String,
        /// What came.
        what: String,
    },
    /// It took too long.
    #[error("it took longer than {seconds} seconds")]
    Deadline {
        /// The most that is waited.
        seconds: u64,
    },
    /// A part of the image is not what its digest says.
    #[error("{what} is not what its digest says: {expected} was announced, {found} came")]
    Digest {
        /// The part.
        what: String,
        /// The digest that was announced.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// A part of the image is larger than is taken.
    #[error("{what} has more than {limit} bytes")]
    TooLarge {
        /// The part.
        what: String,
        /// The most that is taken.
        limit: u64,
    },
    /// A part of the image is not understood.
    #[error("{what} is not understood: {why}")]
    Malformed {
        /// The part.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A part of the image is of a kind that is not supported.
    #[error("{what} is of type {found:?}, which is not supported")]
    MediaType {
        /// The part.
        what: String,
        /// Its media type.
        found: String,
    },
    /// The image is for other machines.
    #[error("it is not for {wanted}: there is {}", found.join(", "))]
    Platform {
        /// What is needed, such as `linux/amd64`.
        wanted: String,
        /// What there is.
        found: Vec<String>,
    },
    /// A layer cannot be used.
    #[error("layer {digest} is refused")]
    Layer {
        /// The layer, by the digest it was announced with, or its place in an archive.
        digest: String,
        /// Why.
        source: LayerError,
    },
    /// A file operation of the host failed.
    #[error("cannot {step} {}", path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// File ownership needs root.
    #[error("unpacking an image needs root")]
    NeedsRoot,
}

/// Whose matter an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// What was asked for is not there, or not a usable image.
    Image,
    /// Credentials are missing or wrong.
    Credentials,
    /// The registry or the way to it; it may work later, unless it is not believed to be the registry.
    Registry,
    /// This host: disk, rights.
    Host,
}

impl ImageError {
    /// Whose matter it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Denied { .. } => Blame::Credentials,
            Self::Unreachable { .. } | Self::Deadline { .. } | Self::Certificate { .. } => {
                Blame::Registry
            }
            Self::Authorities { .. } | Self::File { .. } | Self::NeedsRoot => Blame::Host,
            Self::Layer {
                source: LayerError::Write { .. },
                ..
            } => Blame::Host,
            _ => Blame::Image,
        }
    }

    /// A word for programs, which stays the same.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Reference { .. } => "image_reference",
            Self::Plain { .. } => "registry_insecure",
            Self::NotFound { .. } => "image_not_found",
            Self::Denied { .. } => "registry_denied",
            Self::Unreachable { .. } => "registry_unreachable",
            Self::Certificate { .. } => "registry_certificate",
            Self::Answer { .. } => "registry_protocol",
            Self::Deadline { .. } => "image_timeout",
            Self::Digest { .. } => "image_digest",
            Self::TooLarge { .. } => "image_too_large",
            Self::Malformed { .. } => "image_malformed",
            Self::MediaType { .. } => "image_media_type",
            Self::Platform { .. } => "image_platform",
            Self::Layer {
                source: LayerError::Write { source, .. },
                ..
            } if source.kind() == io::ErrorKind::StorageFull => "disk_full",
            Self::Layer {
                source: LayerError::Write { .. },
                ..
            }
            | Self::Authorities { .. }
            | Self::File { .. }
            | Self::NeedsRoot => "host",
            Self::Layer { .. } => "image_layer",
        }
    }

    /// Whether the same request may work later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self.blame(), Blame::Registry) && !matches!(self, Self::Certificate { .. })
    }

    /// What the caller can do about it, as one sentence to show after the error.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Reference { .. } => {
                "write [REGISTRY/]NAME[:TAG][@sha256:DIGEST], in lower case".into()
            }
            Self::Plain { registry } => format!(
                "serve {registry} with TLS, or have the operator allow it as an insecure registry"
            ),
            Self::NotFound { .. } => "check the name and the tag".into(),
            Self::Denied {
                anonymous: true, ..
            } => "give credentials for the registry, or check the name: many registries answer so for images that are not there".into(),
            Self::Denied { .. } => "check that the credentials may pull from this repository".into(),
            Self::Unreachable { .. } | Self::Deadline { .. } => {
                "try again later; what was complete is kept".into()
            }
            Self::Certificate { .. } => {
                "if it is yours, have the operator put the authority that signed its certificate among those that the server's host trusts, or into registry_authorities".into()
            }
            Self::Authorities { .. } => {
                "have the operator correct registry_authorities in the server's settings".into()
            }
            Self::Platform { wanted, .. } => format!("build the image for {wanted}"),
            Self::MediaType { .. } => {
                "push it as an OCI or Docker (schema 2) image with plain, gzip or zstd layers".into()
            }
            Self::Layer {
                source: LayerError::Write { source, .. },
                ..
            } if source.kind() == io::ErrorKind::StorageFull => {
                "free space on the disk that holds the data directory".into()
            }
            Self::Layer {
                source: LayerError::Limit { .. } | LayerError::Ratio { .. },
                ..
            }
            | Self::TooLarge { .. } => "use a smaller image".into(),
            Self::NeedsRoot => "run the server as root".into(),
            Self::File { .. } => "check the disk that holds the data directory".into(),
            _ => "build the image anew and push it again".into(),
        }
    }

    /// For `map_err`: a failed file operation on `path`.
    pub(crate) fn file<E: Into<io::Error>>(
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            step,
            path,
            source: source.into(),
        }
    }
}

/// What a stranger wrote, printable and at most 200 characters long.
pub(crate) fn shown(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let part = &bytes[..bytes.len().min(800)];
    let text: String = String::from_utf8_lossy(part)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(200)
        .collect();
    if text.len() < bytes.len() && text.chars().count() == 200 {
        text + "…"
    } else {
        text
    }
}

//! What can go wrong while a template is made, and what to do about it.

use std::path::PathBuf;

/// Why a template is not there. The text names the step that failed; [`TemplateError::hint`] says what
/// the operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A file operation failed.
    #[error("{step} {}", path.display())]
    File {
        /// What was tried, as a verb phrase: `cannot read`.
        step: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A record of a kept template cannot be written as JSON.
    #[error("cannot encode the record of template {name}")]
    Record {
        /// The template.
        name: &'static str,
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// Building `base` and using file ownership need root.
    #[error("building the base template needs root")]
    NeedsRoot,
    /// A program that the build runs is not installed.
    #[error("{tool} is not installed on this host")]
    MissingTool {
        /// The program.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The host's apt configuration names no Debian archive for the suite.
    #[error("this host's apt configuration names no debian archive with suite {suite}")]
    NoSources {
        /// The suite that was looked for.
        suite: String,
    },
    /// The build program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The build program ran and failed.
    #[error("mmdebstrap failed ({status}) while {phase}; its last lines:\n{tail}")]
    Build {
        /// How it ended.
        status: String,
        /// What it was doing.
        phase: crate::Phase,
        /// The last lines it printed, credentials removed.
        tail: String,
    },
    /// The host's file system is not laid out in a way the `host` template can show.
    #[error("this host cannot be used as a template: {reason}")]
    HostLayout {
        /// What is missing or different.
        reason: String,
    },
    /// A kept layer is not what its digest says.
    #[error("layer {digest} was altered: its files now hash to {found}")]
    Altered {
        /// The digest it was kept under.
        digest: String,
        /// What its files hash to now.
        found: String,
    },
}

impl TemplateError {
    /// What the operator can do about it, as one sentence to show after the error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NeedsRoot => Some("run as root, or use the `host` template".into()),
            Self::MissingTool { package, .. } => Some(format!("apt-get install {package}")),
            Self::NoSources { suite } => Some(format!(
                "write a Debian source for {suite} (deb822 format) to /{}, or use the `host` template",
                crate::OWN_SOURCES
            )),
            Self::Build {
                phase: crate::Phase::Downloading | crate::Phase::Preparing,
                ..
            } => Some(
                "check that `apt-get update` works on this host: the build uses the same archives"
                    .into(),
            ),
            Self::Altered { .. } => Some(
                "destroy the machines that use it and remove its directory; it is made again"
                    .into(),
            ),
            _ => None,
        }
    }

    /// For `map_err`: a failed file operation on `path`.
    pub(crate) fn file(
        step: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { step, path, source }
    }
}

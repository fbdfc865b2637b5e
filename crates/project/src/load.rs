//! The config of a project directory: what detection finds, overridden leaf by leaf by the project's file.

use crate::config::{AgentConfig, CONFIG_FILENAME, Completeness, ConfigError, toml_node};
use crate::detect::{Detection, NotAProject, detect};
use crate::node::Node;
use crate::text;
use std::path::Path;

/// Why a project has no usable config.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such directory.
    #[error(transparent)]
    NotAProject(#[from] NotAProject),
    /// The file is there but could not be read.
    #[error("{file}: could not read config: {error}")]
    Unreadable {
        /// The file, as messages show it.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file, or what detection found where there is no file, breaks a rule.
    #[error("{file}: {problem}")]
    Invalid {
        /// The file, or `detected agent config`.
        file: String,
        /// The rule.
        problem: ConfigError,
    },
}

/// The config of the project at `root`, complete and checked, with what detection found. `file` is the config file to
/// use instead of [`CONFIG_FILENAME`] at the root; one that does not exist, even a named one, leaves detection alone.
///
/// # Errors
/// See [`LoadError`]. The file is checked on its own first, so a file that says `mode = "service"` needs its own port
/// even where detection knows one.
pub fn load(root: &Path, file: Option<&Path>) -> Result<(AgentConfig, Detection), LoadError> {
    let detection = detect(root)?;
    let path = file.map_or_else(|| root.join(CONFIG_FILENAME), Path::to_path_buf);
    let mut node = Node::from(&detection.config.full_dict());
    let source;
    if path.exists() {
        source = text::shown_path(&path);
        let invalid = |problem| LoadError::Invalid {
            file: source.clone(),
            problem,
        };
        let text = std::fs::read(&path).map_err(|error| LoadError::Unreadable {
            file: source.clone(),
            error,
        })?;
        let text = String::from_utf8(text)
            .map_err(|_| invalid(ConfigError::Toml("not UTF-8".to_owned())))?;
        let explicit = toml_node(&text).map_err(invalid)?;
        AgentConfig::parse(&explicit, Completeness::Partial).map_err(invalid)?;
        overlay(&mut node, explicit);
    } else {
        source = "detected agent config".to_owned();
    }
    match AgentConfig::parse(&node, Completeness::Full) {
        Ok(config) => Ok((config, detection)),
        Err(problem) => Err(LoadError::Invalid {
            file: source,
            problem,
        }),
    }
}

/// Puts every leaf of `explicit` in place of the detected one. Sections are one level deep; `service.readiness` is a
/// leaf although it is a table.
fn overlay(detected: &mut Node, explicit: Node) {
    let (Node::Table(detected), Node::Table(explicit)) = (detected, explicit) else {
        return;
    };
    for (key, value) in explicit {
        match (detected.get_mut(&key), value) {
            (Some(Node::Table(section)), Node::Table(leaves)) => section.extend(leaves),
            (_, value) => {
                detected.insert(key, value);
            }
        }
    }
}

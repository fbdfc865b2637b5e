//! What kind of project a directory holds, and the config that follows from it.
//!
//! The signals are tried in a fixed order and the first wins; only files at the root are read, and one that cannot be
//! read or parsed counts as empty. The table, the reasons and the confidence are the published client's.

use crate::config::{AgentConfig, Mode, ServiceSpec};
use crate::text;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// How sure detection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The framework's own file or dependency, and an entrypoint.
    High,
    /// A dependency that says which library is used, not how it is started.
    Medium,
    /// A known language without an entrypoint.
    Low,
    /// Nothing known.
    None,
}

impl Confidence {
    /// The spelling in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::None => "none",
        }
    }
}

/// What was found. Serialises as `agent init --json` prints it under `detection`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detection {
    /// `langgraph`, `crewai`, `claude-agent-sdk`, `openai-agents-sdk`, `python`, `node`, or none.
    pub framework: Option<&'static str>,
    /// How sure.
    pub confidence: Confidence,
    /// One line per signal, for people.
    pub reasons: Vec<String>,
    /// Config keys the user has to fill in.
    pub unresolved: Vec<&'static str>,
    /// The config that follows; without an entrypoint when that is unresolved.
    pub config: AgentConfig,
}

/// The project directory is missing or something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("project directory does not exist: {path}")]
pub struct NotAProject {
    /// The path as given.
    pub path: String,
}

/// Looks at the directory `root`. Its last path component is the name of last resort, so `.` gives `agent`.
///
/// # Errors
/// Only when `root` is not a directory.
pub fn detect(root: &Path) -> Result<Detection, NotAProject> {
    if !root.is_dir() {
        return Err(NotAProject {
            path: text::shown_path(root),
        });
    }
    let project = Project::read(root);

    if project.has("langgraph.json") {
        return Ok(Detection {
            framework: Some("langgraph"),
            confidence: Confidence::High,
            reasons: vec!["found langgraph.json".to_owned()],
            unresolved: Vec::new(),
            config: AgentConfig {
                name: Some(project.name()),
                mode: Mode::Service,
                install: project.python_install().or_else(|| project.node_install()),
                entrypoint: Some("langgraph dev --host 0.0.0.0 --port 2024".to_owned()),
                service: ServiceSpec {
                    port: Some(2024),
                    readiness: None,
                },
                ..AgentConfig::default()
            },
        });
    }

    let python = project.python_dependencies();
    let node = project.node_dependencies();
    let needs = |name: &str| python.contains(name);
    if needs("crewai") || project.has_tool("crewai") {
        return Ok(Detection {
            framework: Some("crewai"),
            confidence: Confidence::High,
            reasons: vec!["detected CrewAI project".to_owned()],
            unresolved: Vec::new(),
            config: AgentConfig {
                name: Some(project.name()),
                install: project.python_install(),
                entrypoint: Some("crewai run".to_owned()),
                ..AgentConfig::default()
            },
        });
    }
    if needs("claude-agent-sdk")
        || node.contains("@anthropic-ai/claude-agent-sdk")
        || root.join(".claude").exists()
        || project.has("CLAUDE.md")
    {
        let reason = "detected Claude Agent SDK dependency or project files";
        return Ok(project.python_rule("claude-agent-sdk", Confidence::Medium, reason));
    }
    if needs("openai-agents") || needs("agents") || node.contains("@openai/agents") {
        let reason = "detected OpenAI Agents SDK dependency";
        return Ok(project.python_rule("openai-agents-sdk", Confidence::Medium, reason));
    }
    if project.has("pyproject.toml") || project.has("requirements.txt") {
        return Ok(project.python_rule("python", Confidence::High, "detected Python project"));
    }
    if let Some(package) = &project.package {
        return Ok(project.node_rule(package));
    }
    Ok(Detection {
        framework: None,
        confidence: Confidence::None,
        reasons: vec!["no supported project framework detected".to_owned()],
        unresolved: vec!["entrypoint"],
        config: AgentConfig {
            name: Some(project.name()),
            ..AgentConfig::default()
        },
    })
}

/// The files detection reads, read once.
struct Project<'a> {
    root: &'a Path,
    /// Empty when missing or broken.
    pyproject: toml::Table,
    requirements: String,
    /// The object in `package.json`; none when missing, broken or something else.
    package: Option<serde_json::Map<String, Value>>,
}

impl<'a> Project<'a> {
    fn read(root: &'a Path) -> Self {
        // A stray byte in one file should not keep the others from being looked at.
        let read = |name: &str| {
            let bytes = std::fs::read(root.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Self {
            root,
            pyproject: read("pyproject.toml").parse().unwrap_or_default(),
            requirements: read("requirements.txt"),
            package: match serde_json::from_str(&read("package.json")) {
                Ok(Value::Object(package)) => Some(package),
                _ => None,
            },
        }
    }

    fn has(&self, file: &str) -> bool {
        self.root.join(file).is_file()
    }

    fn has_tool(&self, name: &str) -> bool {
        self.pyproject
            .get("tool")
            .and_then(|tool| tool.get(name))
            .is_some()
    }

    /// `project.name`, else the name in `package.json`, else the directory's.
    fn name(&self) -> String {
        let python = self
            .pyproject
            .get("project")
            .and_then(|project| project.get("name")?.as_str());
        let node = || {
            self.package
                .as_ref()
                .and_then(|package| package.get("name")?.as_str())
        };
        if let Some(name) = python.or_else(node) {
            return clean_name(name);
        }
        match self.root.components().next_back() {
            Some(Component::Normal(name)) => clean_name(&name.to_string_lossy()),
            Some(Component::ParentDir) => clean_name(".."),
            _ => clean_name(""),
        }
    }

    fn python_install(&self) -> Option<String> {
        let command = if self.has("uv.lock") {
            "uv sync --frozen"
        } else if self.has("pyproject.toml") {
            "pip install -e ."
        } else if self.has("requirements.txt") {
            "pip install -r requirements.txt"
        } else {
            return None;
        };
        Some(command.to_owned())
    }

    fn node_install(&self) -> Option<String> {
        self.has("package.json").then(|| "npm install".to_owned())
    }

    fn python_rule(
        &self,
        framework: &'static str,
        confidence: Confidence,
        reason: &str,
    ) -> Detection {
        let entrypoint = self.has("main.py").then(|| "python main.py".to_owned());
        let mut reasons = vec![reason.to_owned()];
        for file in ["pyproject.toml", "requirements.txt", "uv.lock"] {
            if self.has(file) {
                reasons.push(format!("found {file}"));
            }
        }
        Detection {
            framework: Some(framework),
            confidence: if entrypoint.is_some() {
                confidence
            } else {
                Confidence::Low
            },
            reasons,
            unresolved: if entrypoint.is_some() {
                Vec::new()
            } else {
                vec!["entrypoint"]
            },
            config: AgentConfig {
                name: Some(self.name()),
                install: self.python_install(),
                entrypoint,
                ..AgentConfig::default()
            },
        }
    }

    fn node_rule(&self, package: &serde_json::Map<String, Value>) -> Detection {
        let script = ["start", "dev", "agent"].into_iter().find(|script| {
            let command = package
                .get("scripts")
                .and_then(|scripts| scripts.get(script)?.as_str());
            command.is_some_and(|command| !text::strip(command).is_empty())
        });
        let mut reasons = vec!["found package.json".to_owned()];
        reasons.extend(script.map(|script| format!("selected package.json script '{script}'")));
        Detection {
            framework: Some("node"),
            confidence: if script.is_some() {
                Confidence::High
            } else {
                Confidence::Low
            },
            reasons,
            unresolved: if script.is_some() {
                Vec::new()
            } else {
                vec!["entrypoint"]
            },
            config: AgentConfig {
                name: Some(self.name()),
                mode: Mode::Service,
                install: self.node_install(),
                entrypoint: script.map(|script| format!("npm run {script}")),
                service: ServiceSpec {
                    port: script.map(|_| 3000),
                    readiness: None,
                },
                ..AgentConfig::default()
            },
        }
    }

    fn python_dependencies(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        if let Some(toml::Value::Table(project)) = self.pyproject.get("project") {
            found.extend(project.get("dependencies").into_iter().flat_map(names_in));
            if let Some(toml::Value::Table(groups)) = project.get("optional-dependencies") {
                found.extend(groups.values().flat_map(names_in));
            }
        }
        let poetry = self
            .pyproject
            .get("tool")
            .and_then(|tool| tool.get("poetry")?.get("dependencies"));
        if let Some(toml::Value::Table(poetry)) = poetry {
            found.extend(poetry.keys().map(|name| dependency_name(name)));
        }
        for line in text::lines(&self.requirements) {
            let line = text::strip(line);
            if !line.starts_with('#') && !line.starts_with('-') {
                found.insert(dependency_name(line));
            }
        }
        found
    }

    fn node_dependencies(&self) -> BTreeSet<String> {
        ["dependencies", "devDependencies", "optionalDependencies"]
            .iter()
            .filter_map(|key| self.package.as_ref()?.get(*key)?.as_object())
            .flat_map(|group| group.keys().map(|name| dependency_name(name)))
            .collect()
    }
}

/// The names in a list of requirements; also the keys of a table, which some tools write there.
fn names_in(value: &toml::Value) -> Vec<String> {
    match value {
        toml::Value::Array(items) => items
            .iter()
            .filter_map(toml::Value::as_str)
            .map(dependency_name)
            .collect(),
        toml::Value::Table(table) => table.keys().map(|name| dependency_name(name)).collect(),
        _ => Vec::new(),
    }
}

/// The package a requirement is about, without versions, extras, markers or an address.
fn dependency_name(requirement: &str) -> String {
    let lower = text::strip(requirement).to_lowercase();
    let name = lower.split(" @ ").next().unwrap_or_default();
    let name = name
        .split(['<', '>', '=', '!', '~', ';', '\\', '['])
        .next()
        .unwrap_or_default();
    text::strip(name).to_owned()
}

/// A deployment name made from any text.
fn clean_name(text: &str) -> String {
    let mut name = String::new();
    for c in text::strip(text).chars() {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') {
            name.push(c.to_ascii_lowercase());
        } else if c == '-' {
            // Typed dashes stay as many as they are; only made ones are merged.
            name.push('-');
        } else if !name.ends_with('\0') {
            name.push('\0');
        }
    }
    let name = name.replace('\0', "-");
    let name = name.trim_matches('-');
    if name.is_empty() {
        "agent".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        for (given, name) in [
            ("My Agent!", "my-agent"),
            ("  a  b ", "a-b"),
            ("a--b- -c", "a--b---c"),
            ("---", "agent"),
            ("", "agent"),
            ("Ünï_x.Y", "n-_x.y"),
            ("@scope/pkg", "scope-pkg"),
        ] {
            assert_eq!(clean_name(given), name, "{given:?}");
        }
    }

    #[test]
    fn requirements_are_reduced_to_names() {
        for (given, name) in [
            ("CrewAI[tools]>=0.1 ; python_version > '3'", "crewai"),
            ("agents @ git+https://example.com/agents", "agents"),
            ("openai-agents ~= 1", "openai-agents"),
            ("crewai  # note", "crewai  # note"),
        ] {
            assert_eq!(dependency_name(given), name);
        }
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let error = detect(Path::new("/nonexistent/./project")).expect_err("no such directory");
        assert_eq!(
            error.to_string(),
            "project directory does not exist: /nonexistent/project"
        );
    }

    #[test]
    fn the_current_directory_has_no_name() {
        assert_eq!(
            detect(Path::new(".")).map(|found| found.config.name.is_some()),
            Ok(true)
        );
        assert_eq!(clean_name(""), "agent");
    }
}

//! The rules, section by section, over a tree that may have come from TOML or from the wire.

use super::{
    AgentConfig, BundleSpec, ConfigError, DEFAULT_TEMPLATE, DEFAULT_WORKDIR, DebugSpec, EnvSpec,
    Mode, OutputSpec, Permissions, Readiness, Resources, ServiceSpec,
};
use crate::node::Node;
use crate::text;
use std::collections::BTreeMap;

/// Which parts of a config must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Completeness {
    /// A file on its own: name and entrypoint may come from detection.
    Partial,
    /// What is deployed.
    Full,
}

impl AgentConfig {
    pub(crate) fn parse(node: &Node, completeness: Completeness) -> Result<Self, ConfigError> {
        let Node::Table(table) = node else {
            return Err(ConfigError::NotAConfig);
        };
        let top = Section {
            prefix: "",
            table: Some(table),
        };
        top.known(&[
            "name",
            "mode",
            "template",
            "workdir",
            "install",
            "entrypoint",
            "env",
            "bundle",
            "resources",
            "permissions",
            "service",
            "debug",
            "outputs",
        ])?;
        let full = completeness == Completeness::Full;

        let name = top.string("name")?;
        if full && name.is_none() {
            return Err(ConfigError::Required("name"));
        }
        let mode = match top.string("mode")? {
            None => Mode::Job,
            Some(mode) => {
                let lower = mode.to_lowercase();
                Mode::parse(&lower).ok_or(ConfigError::UnknownMode(lower))?
            }
        };
        let template = top
            .string("template")?
            .unwrap_or_else(|| DEFAULT_TEMPLATE.to_owned());
        let workdir = top
            .string("workdir")?
            .unwrap_or_else(|| DEFAULT_WORKDIR.to_owned());
        if !workdir.starts_with('/') {
            return Err(ConfigError::RelativeWorkdir);
        }
        let install = top.string("install")?;
        let entrypoint = top.string("entrypoint")?;
        if full && entrypoint.is_none() {
            return Err(ConfigError::Required("entrypoint"));
        }

        let section = top.section("env", "env", &["required", "optional"])?;
        let env = EnvSpec {
            required: section.strings("required")?,
            optional: section.strings("optional")?,
        };

        let section = top.section("bundle", "bundle", &["include", "exclude"])?;
        let mut bundle = BundleSpec {
            include: section.strings("include")?,
            exclude: section.strings("exclude")?,
        };
        if bundle.include.is_empty() {
            bundle.include = BundleSpec::default().include;
        }

        let section = top.section(
            "resources",
            "resources",
            &["vcpus", "memory_mb", "disk_mb", "timeout_seconds"],
        )?;
        let resources = Resources {
            vcpus: section.positive("vcpus")?,
            memory_mb: section.positive("memory_mb")?,
            disk_mb: section.positive("disk_mb")?,
            timeout_seconds: section.positive("timeout_seconds")?,
        };

        let section = top.section(
            "permissions",
            "permissions",
            &[
                "internet_access",
                "public_url",
                "allow_public_traffic",
                "allow_out",
                "deny_out",
                "volumes",
                "desktop",
                "pty",
                "debug",
                "retain_on_failure",
                "max_vcpus",
                "max_memory_mb",
                "max_disk_mb",
                "max_timeout_seconds",
            ],
        )?;
        let permissions = Permissions {
            internet_access: section.boolean("internet_access")?,
            public_url: section.boolean("public_url")?,
            allow_public_traffic: section.boolean("allow_public_traffic")?,
            allow_out: section.strings("allow_out")?,
            deny_out: section.strings("deny_out")?,
            volumes: section.boolean("volumes")?,
            desktop: section.boolean("desktop")?,
            pty: section.boolean("pty")?,
            debug: section.boolean("debug")?,
            retain_on_failure: section.boolean("retain_on_failure")?,
            max_vcpus: section.positive("max_vcpus")?,
            max_memory_mb: section.positive("max_memory_mb")?,
            max_disk_mb: section.positive("max_disk_mb")?,
            max_timeout_seconds: section.positive("max_timeout_seconds")?,
        };

        let section = top.section("service", "service", &["port", "readiness"])?;
        let port = match section.positive("port")? {
            None => None,
            Some(port) => Some(u16::try_from(port).map_err(|_| ConfigError::PortOutOfRange)?),
        };
        let given = section.get("readiness").is_some();
        let section = section.section(
            "readiness",
            "service.readiness",
            &["type", "path", "timeout_seconds"],
        )?;
        let readiness = Readiness {
            kind: section.string("type")?,
            path: section.string("path")?,
            timeout_seconds: section.positive("timeout_seconds")?,
        };
        let service = ServiceSpec {
            port,
            readiness: given.then_some(readiness),
        };

        let section = top.section("debug", "debug", &["retain_on_failure", "retain_seconds"])?;
        let debug = DebugSpec {
            retain_on_failure: section.boolean("retain_on_failure")?,
            retain_seconds: section.positive("retain_seconds")?,
        };

        let section = top.section("outputs", "outputs", &["paths"])?;
        let outputs = OutputSpec {
            paths: section.strings("paths")?,
        };
        for (index, path) in outputs.paths.iter().enumerate() {
            check_output_path(path, &format!("outputs.paths[{index}]"))?;
        }

        if mode == Mode::Service && service.port.is_none() {
            return Err(ConfigError::PortRequired);
        }
        Ok(Self {
            name,
            mode,
            template,
            workdir,
            install,
            entrypoint,
            env,
            bundle,
            resources,
            permissions,
            service,
            debug,
            outputs,
        })
    }
}

/// TOML text as a tree.
pub(crate) fn toml_node(text: &str) -> Result<Node, ConfigError> {
    match text.parse::<toml::Table>() {
        Ok(table) => Ok(table.into()),
        Err(error) => Err(ConfigError::Toml(error.to_string().trim_end().to_owned())),
    }
}

fn check_output_path(path: &str, field: &str) -> Result<(), ConfigError> {
    let relative = path.strip_prefix('/').unwrap_or(path);
    let relative = relative.strip_suffix('/').unwrap_or(relative);
    if path == "/" {
        return Err(ConfigError::OutputIsRoot(field.to_owned()));
    }
    if relative
        .split('/')
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return Err(ConfigError::OutputSegments(field.to_owned()));
    }
    Ok(())
}

/// A table being read, with the path to it.
struct Section<'a> {
    prefix: &'a str,
    table: Option<&'a BTreeMap<String, Node>>,
}

impl<'a> Section<'a> {
    fn path(&self, key: &str) -> String {
        if self.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.prefix)
        }
    }

    fn get(&self, key: &str) -> Option<&'a Node> {
        self.table?
            .get(key)
            .filter(|node| !matches!(node, Node::Null))
    }

    fn known(&self, keys: &[&str]) -> Result<(), ConfigError> {
        match self
            .table
            .into_iter()
            .flat_map(BTreeMap::keys)
            .find(|key| !keys.contains(&key.as_str()))
        {
            Some(key) => Err(ConfigError::UnknownKey(self.path(key))),
            None => Ok(()),
        }
    }

    fn section(
        &self,
        key: &str,
        path: &'static str,
        keys: &[&str],
    ) -> Result<Section<'a>, ConfigError> {
        let table = match self.get(key) {
            None => None,
            Some(Node::Table(table)) => Some(table),
            Some(_) => return Err(ConfigError::NotATable(path)),
        };
        let section = Section {
            prefix: path,
            table,
        };
        section.known(keys)?;
        Ok(section)
    }

    fn string(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Node::Str(value)) if !text::strip(value).is_empty() => {
                Ok(Some(text::strip(value).to_owned()))
            }
            Some(_) => Err(ConfigError::NotAString(self.path(key))),
        }
    }

    fn strings(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Node::List(items)) => items,
            Some(_) => return Err(ConfigError::NotAList(self.path(key))),
        };
        items
            .iter()
            .enumerate()
            .map(|(index, item)| match item {
                Node::Str(value) if !text::strip(value).is_empty() => {
                    Ok(text::strip(value).to_owned())
                }
                _ => Err(ConfigError::NotAString(format!(
                    "{}[{index}]",
                    self.path(key)
                ))),
            })
            .collect()
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Node::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(ConfigError::NotABoolean(self.path(key))),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Node::Int(value)) => match u64::try_from(*value) {
                Ok(value) if value > 0 => Ok(Some(value)),
                _ => Err(ConfigError::NotAPositiveInteger(self.path(key))),
            },
            Some(_) => Err(ConfigError::NotAPositiveInteger(self.path(key))),
        }
    }
}

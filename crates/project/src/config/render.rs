//! A config as the text of its file.

use super::{AgentConfig, DebugSpec, Permissions, Resources, ServiceSpec};
use crate::text;
use std::fmt;

impl AgentConfig {
    /// The text `agent init` writes. Reading it back gives the same config.
    pub fn to_toml(&self) -> String {
        let mut file = TomlText::default();
        file.string("name", self.name.as_deref());
        file.string("mode", Some(self.mode.as_str()));
        file.string("template", Some(&self.template));
        file.string("workdir", Some(&self.workdir));
        file.string("install", self.install.as_deref());
        file.string("entrypoint", self.entrypoint.as_deref());
        if !self.env.required.is_empty() || !self.env.optional.is_empty() {
            file.section("env");
            file.strings("required", &self.env.required);
            file.strings("optional", &self.env.optional);
        }
        file.section("bundle");
        file.strings("include", &self.bundle.include);
        file.strings("exclude", &self.bundle.exclude);
        if self.resources != Resources::default() {
            let resources = &self.resources;
            file.section("resources");
            file.plain("vcpus", resources.vcpus);
            file.plain("memory_mb", resources.memory_mb);
            file.plain("disk_mb", resources.disk_mb);
            file.plain("timeout_seconds", resources.timeout_seconds);
        }
        if self.permissions != Permissions::default() {
            let permissions = &self.permissions;
            file.section("permissions");
            file.plain("internet_access", permissions.internet_access);
            file.plain("public_url", permissions.public_url);
            file.plain("allow_public_traffic", permissions.allow_public_traffic);
            file.plain("volumes", permissions.volumes);
            file.plain("desktop", permissions.desktop);
            file.plain("pty", permissions.pty);
            file.plain("debug", permissions.debug);
            file.plain("retain_on_failure", permissions.retain_on_failure);
            for (key, list) in [
                ("allow_out", &permissions.allow_out),
                ("deny_out", &permissions.deny_out),
            ] {
                if !list.is_empty() {
                    file.strings(key, list);
                }
            }
            file.plain("max_vcpus", permissions.max_vcpus);
            file.plain("max_memory_mb", permissions.max_memory_mb);
            file.plain("max_disk_mb", permissions.max_disk_mb);
            file.plain("max_timeout_seconds", permissions.max_timeout_seconds);
        }
        if self.service != ServiceSpec::default() {
            file.section("service");
            file.plain("port", self.service.port);
            if let Some(readiness) = &self.service.readiness {
                let mut pairs = Vec::new();
                pairs.extend(
                    readiness
                        .kind
                        .iter()
                        .map(|kind| format!("type = {}", text::toml_string(kind))),
                );
                pairs.extend(
                    readiness
                        .path
                        .iter()
                        .map(|path| format!("path = {}", text::toml_string(path))),
                );
                pairs.extend(
                    readiness
                        .timeout_seconds
                        .iter()
                        .map(|seconds| format!("timeout_seconds = {seconds}")),
                );
                let table = if pairs.is_empty() {
                    "{}".to_owned()
                } else {
                    format!("{{ {} }}", pairs.join(", "))
                };
                file.plain("readiness", Some(table));
            }
        }
        if self.debug != DebugSpec::default() {
            file.section("debug");
            file.plain("retain_on_failure", self.debug.retain_on_failure);
            file.plain("retain_seconds", self.debug.retain_seconds);
        }
        if !self.outputs.paths.is_empty() {
            file.section("outputs");
            file.strings("paths", &self.outputs.paths);
        }
        file.text
    }
}

/// A config file being written.
#[derive(Default)]
struct TomlText {
    text: String,
}

impl TomlText {
    fn section(&mut self, name: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(&format!("[{name}]\n"));
    }

    fn plain(&mut self, key: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.text.push_str(&format!("{key} = {value}\n"));
        }
    }

    fn string(&mut self, key: &str, value: Option<&str>) {
        self.plain(key, value.map(text::toml_string));
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        let values: Vec<_> = values
            .iter()
            .map(|value| text::toml_string(value))
            .collect();
        self.plain(key, Some(format!("[{}]", values.join(", "))));
    }
}

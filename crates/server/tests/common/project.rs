//! Agent projects as clients send them.

use nullspace_project::{AgentConfig, Bundle};
use serde_json::{Value, json};

/// A project on disk and what is sent of it.
pub struct Project {
    pub dir: tempfile::TempDir,
    pub config: AgentConfig,
}

impl Project {
    /// A project whose `nullspace.agent.toml` has these lines, with a program that is its entry point.
    pub fn new(toml: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("name = 'worker'\nentrypoint = 'sh main.sh'\n{toml}");
        std::fs::write(dir.path().join("main.sh"), script).unwrap();
        Self {
            config: AgentConfig::from_toml(&text).unwrap(),
            dir,
        }
    }

    pub fn bundle(&self) -> Bundle {
        Bundle::build(self.dir.path(), &self.config).unwrap()
    }

    pub fn version_request(&self) -> Value {
        let bundle = self.bundle();
        json!({
            "bundle_digest": bundle.manifest().bundle_digest,
            "bundle_manifest": bundle.manifest(),
            "config": self.config.to_wire(),
            "cache_policy": "auto",
        })
    }

    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        self.bundle().write_archive(&mut archive).unwrap();
        archive
    }
}

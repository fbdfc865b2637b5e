//! `nullspace.agent.toml`: a config that is accepted survives the way over the wire with its digest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nullspace_project::AgentConfig;

fuzz_target!(|text: &str| {
    if let Ok(config) = AgentConfig::from_toml(text) {
        let again = AgentConfig::from_wire(&config.to_wire()).expect("what we write we read");
        assert_eq!(again.config_digest(), config.config_digest());
    }
});

//! The rules of an agent config, one row each; `published_cli.rs` holds the same texts against the published client.

use nullspace_project::{AgentConfig, ConfigError, Mode, load};
use serde_json::json;

const GOOD: &str = "name='n'\nentrypoint='e'\n";

#[test]
fn errors_name_the_field_and_come_in_order() {
    for (text, message, field) in [
        ("", "name is required", "name"),
        ("zz=1\naa.b=1", "unknown agent config key: aa", "aa"),
        ("name=' '", "name must be a non-empty string", "name"),
        ("name='n'", "entrypoint is required", "entrypoint"),
        (
            "name='n'\nmode='It'",
            "mode must be one of interactive, job, service, triggered, worker, workspace; got 'it'",
            "mode",
        ),
        (
            "name='n'\nworkdir='x'\nentrypoint=1",
            "workdir must be an absolute sandbox path",
            "workdir",
        ),
        ("env=1", "env must be a table", "env"),
        (
            "[env]\nvalues=[]",
            "unknown agent config key: env.values",
            "env.values",
        ),
        (
            "[env]\nrequired='A'",
            "env.required must be a list of strings",
            "env.required",
        ),
        (
            "[env]\noptional=['A','']",
            "env.optional[1] must be a non-empty string",
            "env.optional[1]",
        ),
        (
            "[resources]\nvcpus=true",
            "resources.vcpus must be a positive integer",
            "resources.vcpus",
        ),
        (
            "[permissions]\npty=1",
            "permissions.pty must be a boolean",
            "permissions.pty",
        ),
        (
            "service.port=70000",
            "service.port must be between 1 and 65535",
            "service.port",
        ),
        (
            "mode='service'",
            "service.port is required when mode is service",
            "service.port",
        ),
        (
            "[service]\nreadiness={kind='http'}",
            "unknown agent config key: service.readiness.kind",
            "service.readiness.kind",
        ),
        (
            "[debug]\nretain_seconds=0",
            "debug.retain_seconds must be a positive integer",
            "debug.retain_seconds",
        ),
        (
            "[outputs]\npaths=['a','/']",
            "outputs.paths[1] must point to a file or directory",
            "outputs.paths[1]",
        ),
        (
            "[outputs]\npaths=['a/../b']",
            "outputs.paths[0] must not contain empty, '.', or '..' segments",
            "outputs.paths[0]",
        ),
    ] {
        let text = if text.starts_with("name") || text.is_empty() || text.starts_with("zz") {
            text.to_owned()
        } else {
            format!("{GOOD}{text}")
        };
        let error = AgentConfig::from_toml(&text).expect_err(&text);
        assert_eq!(error.to_string(), message, "{text}");
        assert_eq!(error.field(), Some(field), "{text}");
    }
    let error = AgentConfig::from_toml("name =").expect_err("no TOML");
    assert!(error.to_string().starts_with("invalid TOML: "), "{error}");
    assert_eq!(error.field(), None);
}

#[test]
fn the_wire_has_the_same_rules_and_bare_names() {
    let config =
        AgentConfig::from_toml(&format!("{GOOD}[bundle]\nexclude=['x']")).expect("a config");
    let wire = config.to_wire();
    assert_eq!(
        wire,
        json!({
            "name": "n", "mode": "job", "template": "base", "workdir": "/workspace/project", "install": null,
            "entrypoint": "e", "env": {"required": [], "optional": []}, "resources": {}, "permissions": {},
            "service": {}, "debug": {}, "outputs": {"paths": []},
        })
    );
    let read = AgentConfig::from_wire(&wire).expect("the wire form");
    assert_eq!(read.mode, Mode::Job);
    assert_eq!(
        AgentConfig {
            bundle: config.bundle.clone(),
            ..read
        }
        .config_digest(),
        config.config_digest()
    );

    for (key, value, error) in [
        (
            "env",
            json!({"required": ["A=1"]}),
            ConfigError::NotAnEnvName("env.required[0]".to_owned()),
        ),
        (
            "env",
            json!({"optional": ["A", " B"]}),
            ConfigError::NotAnEnvName("env.optional[1]".to_owned()),
        ),
        (
            "resources",
            json!({"vcpus": 1.5}),
            ConfigError::NotAPositiveInteger("resources.vcpus".to_owned()),
        ),
        (
            "resources",
            json!({"vcpus": -1}),
            ConfigError::NotAPositiveInteger("resources.vcpus".to_owned()),
        ),
        (
            "extra",
            json!(1),
            ConfigError::UnknownKey("extra".to_owned()),
        ),
        ("name", json!(null), ConfigError::Required("name")),
        ("service", json!([]), ConfigError::NotATable("service")),
    ] {
        let mut wire = wire.clone();
        wire[key] = value;
        assert_eq!(AgentConfig::from_wire(&wire).expect_err(key), error);
    }
    assert_eq!(
        AgentConfig::from_wire(&json!([])),
        Err(ConfigError::NotAConfig)
    );
}

#[test]
fn only_jobs_and_services_can_be_deployed() {
    for (mode, deployable) in [
        ("job", true),
        ("SERVICE", true),
        ("worker", false),
        ("interactive", false),
    ] {
        let config = AgentConfig::from_toml(&format!("{GOOD}mode='{mode}'\nservice.port=1"))
            .expect("a config");
        assert_eq!(config.mode.is_deployable(), deployable, "{mode}");
    }
}

#[test]
fn a_file_overrides_leaf_by_leaf() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(
        dir.path().join("package.json"),
        r#"{"name":"Web App","scripts":{"start":"x"}}"#,
    )
    .expect("a file");
    let (config, detection) = load(dir.path(), None).expect("detected");
    assert_eq!(
        (config.mode, config.service.port),
        (Mode::Service, Some(3000))
    );
    assert_eq!(detection.framework, Some("node"));
    assert_eq!(config, detection.config);

    let file = dir.path().join("nullspace.agent.toml");
    std::fs::write(
        &file,
        "install = 'make'\n[service]\nreadiness = {type = 'tcp'}\n",
    )
    .expect("a file");
    let (config, _) = load(dir.path(), None).expect("merged");
    assert_eq!(config.name.as_deref(), Some("web-app"));
    assert_eq!(config.install.as_deref(), Some("make"));
    assert_eq!(config.service.port, Some(3000));
    assert!(config.service.readiness.is_some());

    // A file that is not there leaves detection alone, even when it was named.
    let (config, _) = load(dir.path(), Some(&dir.path().join("other.toml"))).expect("detected");
    assert_eq!(config.install.as_deref(), Some("npm install"));

    std::fs::write(&file, "mode = 'service'\n").expect("a file");
    let error = load(dir.path(), None).expect_err("its own port is missing");
    let expected = format!(
        "{}: service.port is required when mode is service",
        file.display()
    );
    assert_eq!(error.to_string(), expected);
}

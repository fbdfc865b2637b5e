//! What a version's config must keep on this server, beyond the rules that `nullspace-project` checks; and
//! what its machines are like.

use nullspace_engine::egress::Rules;
use nullspace_project::AgentConfig;
use serde_json::Value;

use super::{App, agent_deployment, egress, machine};
use crate::error::{Error, Result};

/// Seconds an entry point may take when the config does not say.
const DEFAULT_TIMEOUT_SECONDS: u64 = 3600;
/// Seconds an install command may take.
pub(super) const INSTALL_TIMEOUT_SECONDS: u64 = 1800;
/// Seconds the machine of a failed run is kept when nobody says how long.
const DEFAULT_RETENTION_SECONDS: u64 = 3600;

/// The longest input that is handed over in an environment variable, in bytes; Linux allows 128 KiB for one.
pub(super) const MAX_INPUT_IN_ENV: usize = 100 << 10;
/// Variables that say who a run is; a caller cannot set them.
pub(super) const IDENTITY: [&str; 5] = [
    "NULLSPACE_RUN_ID",
    "NULLSPACE_SERVICE_ID",
    "NULLSPACE_DEPLOYMENT_ID",
    "NULLSPACE_FUNCTION_ID",
    "NULLSPACE_VERSION_ID",
];

/// How a service can show that it is ready.
const READINESS: [&str; 3] = ["http", "tcp", "timeout"];

/// Directories that belong to the system: a bundle cannot be shown in or over them.
const SYSTEM: [&str; 14] = [
    "bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys",
    "usr", "var",
];
/// The most segments of a working directory.
const MAX_DEPTH: usize = 32;

/// Reads the config of a new version and checks it against this server.
///
/// # Errors
/// `invalid_request` with the field, `not_implemented` with the feature.
pub(super) fn read(app: &App, value: &Value) -> Result<AgentConfig> {
    let config =
        AgentConfig::from_wire(value).map_err(|e| Error::invalid(format!("config: {e}")))?;
    agent_deployment::check_mode(config.mode.as_str())
        .map_err(|e| Error::invalid(format!("config.{}", e.message)))?;
    if config
        .entrypoint
        .as_ref()
        .is_none_or(|line| line.trim().is_empty())
    {
        return Err(Error::invalid("config.entrypoint: is required"));
    }
    check_workdir(&config.workdir)?;
    check_resources(app, &config)?;
    check_permissions(&config)?;
    check_readiness(&config)?;
    if let Some(path) = config
        .outputs
        .paths
        .iter()
        .find(|path| path.contains('\0') || path.len() > 4095)
    {
        return Err(Error::invalid(format!(
            "config.outputs.paths: {path:?} is no path"
        )));
    }
    Ok(config)
}

fn check_workdir(workdir: &str) -> Result<()> {
    let bad = |why: &str| Err(Error::invalid(format!("config.workdir: {workdir:?} {why}")));
    // The bundle is a layer of the machine at this path; the characters are those that mount options allow.
    let clean = workdir.strip_prefix('/').is_some_and(|rest| {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        rest.is_empty()
            || (rest
                .split('/')
                .all(|s| !matches!(s, "" | "." | "..") && s.len() <= 255)
                && rest.split('/').count() <= MAX_DEPTH
                && rest.len() < 2048
                && !rest.contains('\0'))
    });
    if !clean {
        return bad("must be an absolute path without empty, '.' or '..' segments");
    }
    let path = trimmed(workdir);
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    if first.is_empty() {
        return bad("must be below the root");
    }
    if SYSTEM.contains(&first) {
        return bad("is in a directory of the system");
    }
    if machine::is_reserved("/", path) {
        return bad(&format!("is reserved ({})", machine::RESERVED));
    }
    Ok(())
}

/// The working directory without a slash at its end.
pub(super) fn trimmed(workdir: &str) -> &str {
    workdir.trim_end_matches('/')
}

fn check_resources(app: &App, config: &AgentConfig) -> Result<()> {
    let (asked, cap) = (&config.resources, &config.permissions);
    let limits = &app.config;
    let fields = [
        (
            "vcpus",
            asked.vcpus,
            cap.max_vcpus,
            1,
            u64::from(limits.max_vcpus),
        ),
        (
            "memory_mb",
            asked.memory_mb,
            cap.max_memory_mb,
            32,
            limits.max_memory_mb,
        ),
        ("disk_mb", asked.disk_mb, cap.max_disk_mb, 1, u64::MAX),
        (
            "timeout_seconds",
            asked.timeout_seconds,
            cap.max_timeout_seconds,
            1,
            limits.max_timeout_ms / 1000,
        ),
    ];
    for (name, asked, cap, least, most) in fields {
        let Some(asked) = asked else { continue };
        if let Some(cap) = cap.filter(|cap| asked > *cap) {
            return Err(Error::invalid(format!(
                "config.resources.{name}: {asked} is over permissions.max_{name}, which is {cap}"
            )));
        }
        if asked < least || asked > most {
            return Err(Error::invalid(format!(
                "config.resources.{name}: this server allows {least} to {most}"
            )));
        }
    }
    Ok(())
}

fn check_permissions(config: &AgentConfig) -> Result<()> {
    let permissions = &config.permissions;
    egress(config)?;
    if permissions.desktop == Some(true) {
        return Err(Error::not_implemented(
            "desktops (config.permissions.desktop)",
        ));
    }
    Ok(())
}

/// What the machines of an agent may reach.
///
/// # Errors
/// `invalid_request` with the field.
pub(super) fn egress(config: &AgentConfig) -> Result<Rules> {
    let permissions = &config.permissions;
    let rules = egress::from_lists(
        &permissions.allow_out,
        &permissions.deny_out,
        "config.permissions",
    )?;
    Ok(match permissions.internet_access {
        Some(false) => Rules::deny_all(),
        _ => rules,
    })
}

fn check_readiness(config: &AgentConfig) -> Result<()> {
    let Some(readiness) = &config.service.readiness else {
        return Ok(());
    };
    if let Some(kind) = &readiness.kind
        && !READINESS.contains(&kind.as_str())
    {
        return Err(Error::invalid(format!(
            "config.service.readiness.type: must be one of {}, not {kind:?}",
            READINESS.join(", ")
        )));
    }
    let bad = |path: &&String| !path.starts_with('/') || path.parse::<http::Uri>().is_err();
    if let Some(path) = readiness.path.as_ref().filter(bad) {
        return Err(Error::invalid(format!(
            "config.service.readiness.path: {path:?} is not a path of a URL that starts with /"
        )));
    }
    Ok(())
}

/// Seconds the entry point may take.
pub(super) fn timeout_seconds(config: &AgentConfig) -> u64 {
    config.resources.timeout_seconds.unwrap_or_else(|| {
        let cap = config.permissions.max_timeout_seconds.unwrap_or(u64::MAX);
        DEFAULT_TIMEOUT_SECONDS.min(cap)
    })
}

/// For how long the machine of a failed run is kept, in seconds; `None` for not at all. What the run says
/// comes before `debug`, and that before `permissions`.
pub(super) fn retain_seconds(
    config: &AgentConfig,
    asked: Option<bool>,
    seconds: Option<u64>,
) -> Option<u64> {
    asked
        .or(config.debug.retain_on_failure)
        .or(config.permissions.retain_on_failure)
        .unwrap_or(false)
        .then(|| seconds.unwrap_or_else(|| retention(config)))
}

/// For how long a machine is kept that somebody wants kept, in seconds.
pub(super) fn retention(config: &AgentConfig) -> u64 {
    config
        .debug
        .retain_seconds
        .unwrap_or(DEFAULT_RETENTION_SECONDS)
}

/// A declared output as an absolute path in the machine.
pub(super) fn output_path(config: &AgentConfig, declared: &str) -> String {
    let declared = declared.strip_suffix('/').unwrap_or(declared);
    if declared.starts_with('/') {
        declared.to_owned()
    } else {
        format!("{}/{declared}", trimmed(&config.workdir))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn working_directories() {
        for good in [
            "/workspace/project",
            "/app",
            "/home/agent/x/",
            "/workspace/.nullspaces",
            "/tmp/a",
        ] {
            assert!(check_workdir(good).is_ok(), "{good}");
        }
        for bad in [
            "/",
            "//",
            "/usr/local/app",
            "/etc",
            "/var/lib/x",
            "/a/../b",
            "/a//b",
            "/a/./b",
            "/workspace/.nullspace",
            "/workspace/.nullspace/x",
            "app",
        ] {
            assert!(check_workdir(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_word_about_retention_counts() {
        let config = |debug: Option<bool>, permission: Option<bool>| {
            let mut config =
                AgentConfig::from_wire(&json!({"name": "n", "entrypoint": "e"})).unwrap();
            config.debug.retain_on_failure = debug;
            config.debug.retain_seconds = Some(5);
            config.permissions.retain_on_failure = permission;
            config
        };
        assert_eq!(retain_seconds(&config(None, None), None, None), None);
        assert_eq!(
            retain_seconds(&config(None, Some(true)), None, None),
            Some(5)
        );
        assert_eq!(
            retain_seconds(&config(Some(false), Some(true)), None, None),
            None
        );
        assert_eq!(
            retain_seconds(&config(Some(false), None), Some(true), Some(9)),
            Some(9)
        );
        assert_eq!(
            retain_seconds(&config(Some(true), None), Some(false), Some(9)),
            None
        );
    }

    #[test]
    fn outputs_are_below_the_working_directory_unless_absolute() {
        let config =
            AgentConfig::from_wire(&json!({"name": "n", "entrypoint": "e", "workdir": "/app/"}))
                .unwrap();
        assert_eq!(output_path(&config, "result.json"), "/app/result.json");
        assert_eq!(output_path(&config, "reports/"), "/app/reports");
        assert_eq!(output_path(&config, "/var/log/x"), "/var/log/x");
    }
}

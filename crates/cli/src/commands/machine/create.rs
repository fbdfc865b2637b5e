//! `nullspace machine create`

use std::collections::BTreeMap;

use nullspace_api::machine::{
    CreateMachineRequest, Isolation, LifecyclePolicy, NetworkPolicy, VolumeMount, WarmPoolMode,
    WarmPoolRequest,
};
use serde_json::{Map, Value, json};

use super::timeout;
use crate::app::App;
use crate::error::{CliError, Outcome};
use crate::input;

/// Make a machine and wait until it runs. Always prints JSON.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace machine create
  nullspace machine create --template host --timeout 3600 --memory 2048
  id=$(nullspace machine create --template host | jq -r .id)")]
pub(super) struct Args {
    /// What to start from; `base` and `host` are always there. As the pool has it with --warm-pool.
    #[arg(long, conflicts_with = "snapshot_id")]
    template: Option<String>,
    /// Start from a snapshot instead.
    #[arg(long, value_name = "ID")]
    snapshot_id: Option<String>,
    /// Take a ready machine from this warm pool.
    #[arg(long, value_name = "ID")]
    warm_pool: Option<String>,
    /// What to do when none is ready: prefer (start cold), require (fail), or never take one.
    #[arg(long, value_parser = ["prefer", "require", "bypass"])]
    warm_pool_mode: Option<String>,
    /// Milliseconds to wait for a ready machine.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=30_000))]
    warm_pool_wait: Option<u64>,
    /// Whole CPUs.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB.
    #[arg(long, value_name = "MB")]
    memory: Option<u64>,
    /// The most that may be written in it, in MiB [default: the server's].
    #[arg(long, value_name = "MB")]
    disk: Option<u64>,
    /// What keeps it apart from the host [default: the template's, else the server's].
    #[arg(long, value_parser = ["native", "gvisor", "microvm", "strongest"])]
    isolation: Option<String>,
    /// Seconds after which the machine ends.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// Working directory of commands.
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// One entry of metadata; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,
    /// All metadata as a JSON object; single entries go over it.
    #[arg(long, value_name = "JSON")]
    metadata_json: Option<String>,
    /// A variable for every command; may be repeated. It is not stored.
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// All variables as a JSON object; single ones go over it.
    #[arg(long, value_name = "JSON")]
    env_json: Option<String>,
    /// Traffic rules as a JSON object.
    #[arg(long, value_name = "JSON")]
    network_json: Option<String>,
    /// Let the machine reach the internet (it may, unless told otherwise).
    #[arg(long, overrides_with = "no_internet_access")]
    internet_access: bool,
    /// Do not let it.
    #[arg(long, overrides_with = "internet_access")]
    no_internet_access: bool,
    /// Make it once, however often this is called with the same key.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// What happens when the time is over: destroy, or pause (keep the memory).
    #[arg(long, value_parser = ["destroy", "pause"])]
    on_timeout: Option<String>,
    /// The same, in another spelling.
    #[arg(long, value_parser = ["destroy", "hibernate"])]
    timeout_action: Option<String>,
    /// Wake a paused machine when it is used.
    #[arg(long, overrides_with = "no_auto_resume")]
    auto_resume: bool,
    /// Do not wake it.
    #[arg(long, overrides_with = "auto_resume")]
    no_auto_resume: bool,
    /// Mount a volume: ref=NAME,mount=PATH[,subpath=PATH][,ro=true]; may be repeated.
    #[arg(long, value_name = "SPEC")]
    volume: Vec<String>,
    /// Desktop size.
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    resolution: Option<String>,
    /// Desktop resolution.
    #[arg(long, value_name = "N")]
    dpi: Option<u32>,
    /// Desktop display.
    #[arg(long, value_name = ":N")]
    display: Option<String>,
}

pub(super) async fn run(args: &Args, app: &App) -> Outcome {
    let request = request(args)?;
    let machine = app
        .client()?
        .create_machine(&request, args.idempotency_key.as_deref())
        .await?;
    app.ui.json(&machine)?;
    Ok(0)
}

fn request(args: &Args) -> Result<CreateMachineRequest, CliError> {
    // A snapshot and a pool say what machines of them are.
    let is_said = args.snapshot_id.is_some() || args.warm_pool.is_some();
    let mut envs: BTreeMap<String, String> = BTreeMap::new();
    if let Some(json) = &args.env_json {
        for (name, value) in input::object("--env-json", json)? {
            let Value::String(value) = value else {
                return Err(CliError::usage(format!(
                    "--env-json: the value of {name} is not a string"
                )));
            };
            envs.insert(name, value);
        }
    }
    envs.extend(input::pairs("--env", &args.env)?);
    let network: Option<NetworkPolicy> = args
        .network_json
        .as_deref()
        .map(|json| {
            serde_json::from_value(Value::Object(input::object("--network-json", json)?))
                .map_err(|error| CliError::usage(format!("--network-json: {error}")))
        })
        .transpose()?;
    Ok(CreateMachineRequest {
        template: (args.template.clone()).or_else(|| (!is_said).then(|| "base".to_owned())),
        snapshot_id: args.snapshot_id.clone(),
        vcpus: args.vcpus,
        memory_mb: args.memory,
        disk_mb: args.disk,
        isolation: args.isolation.as_deref().and_then(Isolation::parse),
        timeout_ms: Some(args.timeout.saturating_mul(1000)),
        timeout_action: args.timeout_action.as_deref().map(timeout::action),
        lifecycle: args.on_timeout.as_deref().map(|word| LifecyclePolicy {
            on_timeout: Some(timeout::action(word)),
        }),
        auto_resume: args.auto_resume.then_some(true),
        envs: (!envs.is_empty()).then_some(envs),
        metadata: input::metadata(&args.metadata, args.metadata_json.as_deref())?,
        network,
        internet_access: args.no_internet_access.then_some(false),
        cwd: args.cwd.clone(),
        desktop: desktop(args)?,
        volumes: volumes(&args.volume)?,
        warm_pool: warm_pool(args)?,
        ..CreateMachineRequest::default()
    })
}

fn warm_pool(args: &Args) -> Result<Option<WarmPoolRequest>, CliError> {
    if args.warm_pool.is_none() && args.warm_pool_mode.is_none() && args.warm_pool_wait.is_none() {
        return Ok(None);
    }
    let mode = args.warm_pool_mode.as_deref().map(|mode| match mode {
        "require" => WarmPoolMode::Require,
        "bypass" => WarmPoolMode::Bypass,
        _ => WarmPoolMode::Prefer,
    });
    if args.warm_pool.is_none() && mode != Some(WarmPoolMode::Bypass) {
        return Err(CliError::usage(
            "--warm-pool-mode and --warm-pool-wait need --warm-pool",
        ));
    }
    Ok(Some(WarmPoolRequest {
        id: args.warm_pool.clone(),
        mode,
        wait_ms: args.warm_pool_wait,
    }))
}

fn desktop(args: &Args) -> Result<Option<Map<String, Value>>, CliError> {
    let mut desktop = Map::new();
    if let Some(resolution) = &args.resolution {
        let size = resolution
            .split_once('x')
            .and_then(|(w, h)| Some((w.parse::<u32>().ok()?, h.parse::<u32>().ok()?)));
        let (width, height) = size.ok_or_else(|| {
            CliError::usage("--resolution: expected WIDTHxHEIGHT")
                .hint("For example: --resolution 1280x800.")
        })?;
        desktop.insert(
            "resolution".to_owned(),
            json!({ "width": width, "height": height }),
        );
    }
    desktop.extend(args.dpi.map(|dpi| ("dpi".to_owned(), json!(dpi))));
    desktop.extend(
        args.display
            .as_ref()
            .map(|display| ("display".to_owned(), json!(display))),
    );
    Ok((!desktop.is_empty()).then_some(desktop))
}

fn volumes(specs: &[String]) -> Result<Option<Vec<VolumeMount>>, CliError> {
    let bad = |why: String| {
        CliError::usage(format!("--volume: {why}"))
            .hint("For example: --volume ref=data,mount=/data,ro=true.")
    };
    let mut mounts = Vec::new();
    for spec in specs {
        let mut mount = VolumeMount {
            reference: String::new(),
            mount_path: String::new(),
            read_only: Some(false),
            subpath: None,
        };
        for part in spec.split(',') {
            match part.split_once('=') {
                Some(("ref", value)) => mount.reference = value.to_owned(),
                Some(("mount", value)) => mount.mount_path = value.to_owned(),
                Some(("subpath", value)) => mount.subpath = Some(value.to_owned()),
                Some(("ro", "true" | "1")) => mount.read_only = Some(true),
                Some(("ro", "false" | "0")) => mount.read_only = Some(false),
                _ => return Err(bad(format!("cannot read {part:?}"))),
            }
        }
        if mount.reference.is_empty() || !mount.mount_path.starts_with('/') {
            return Err(bad("ref and an absolute mount are needed".to_owned()));
        }
        mounts.push(mount);
    }
    Ok((!mounts.is_empty()).then_some(mounts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn asked(line: &str) -> Result<Value, CliError> {
        let line = Line::parse_from(std::iter::once("x").chain(line.split_whitespace()));
        request(&line.args).map(|request| serde_json::to_value(request).expect("json"))
    }

    #[test]
    fn flags_become_the_request() {
        assert_eq!(
            asked("").expect("fine"),
            json!({"template": "base", "timeout_ms": 300_000})
        );
        assert_eq!(
            asked("--template t --vcpus 1 --memory 2 --disk 3 --isolation gvisor --timeout 4 --cwd /x --metadata a=b --env c=d \
                   --network-json {\"allow_out\":[\"1.1.1.1/32\"]} --no-internet-access --on-timeout pause --auto-resume \
                   --volume ref=v,mount=/m,ro=true --resolution 1x2 --warm-pool-mode bypass")
                .expect("fine"),
            json!({
                "template": "t", "vcpus": 1, "memory_mb": 2, "disk_mb": 3, "isolation": "gvisor", "timeout_ms": 4000, "cwd": "/x",
                "metadata": {"a": "b"}, "envs": {"c": "d"}, "network": {"allow_out": ["1.1.1.1/32"]},
                "internet_access": false, "lifecycle": {"on_timeout": "hibernate"}, "auto_resume": true,
                "volumes": [{"ref": "v", "mount_path": "/m", "read_only": true}],
                "desktop": {"resolution": {"width": 1, "height": 2}}, "warm_pool": {"mode": "bypass"},
            })
        );
        assert_eq!(
            asked("--snapshot-id s").expect("fine"),
            json!({"snapshot_id": "s", "timeout_ms": 300_000})
        );
        assert_eq!(
            asked("--warm-pool twp_1 --warm-pool-mode require --warm-pool-wait 9").expect("fine"),
            json!({"timeout_ms": 300_000, "warm_pool": {"id": "twp_1", "mode": "require", "wait_ms": 9}})
        );
        for bad in [
            "--warm-pool-wait 1",
            "--volume ref=a",
            "--resolution 1",
            "--env a",
            "--network-json {\"x\":1}",
        ] {
            assert_eq!(asked(bad).expect_err(bad).exit(), 2);
        }
    }
}

//! From what was asked to what is built: checks every field of a create request.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use nullspace_api::{
    error::code,
    machine::{CreateMachineRequest, Isolation, TimeoutAction},
};
use nullspace_engine::{Bind, MachineSpec, egress::Rules};
use nullspace_lifecycle::machine::State;
use nullspace_store::machine::MachineRow;
use nullspace_templates::{Layer, Runtime, derived::CODE_INTERPRETER};
use serde_json::{Map, Value};

use crate::{
    app::{
        App, Caller, egress, isolation, preview, snapshot,
        volume::mount::{self, Mount},
    },
    error::{Error, Kind, Result},
};

/// The platform's own folder in every machine.
pub const RESERVED: &str = "/workspace/.nullspace";
/// Variables that programs find certificate authorities by: OpenSSL, requests, pip, Node, curl, git.
const CA_VARIABLES: [&str; 6] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];
/// Memory of a machine with kernels, in MiB, unless it asks for another amount.
const CODE_MEMORY_MB: u64 = 2048;
/// The most metadata a machine carries, as JSON.
const MAX_METADATA: usize = 64 << 10;
/// The most environment a machine gets.
const MAX_ENVS: usize = 512 << 10;
/// The longest `NAME=value` with its end that Linux gives to a program (MAX_ARG_STRLEN), in bytes.
const MAX_ENV: usize = 128 << 10;

/// A machine to be made; what it asks for was checked.
#[derive(Clone, Debug)]
pub struct NewMachine {
    /// What it starts from.
    pub template: Arc<Layer>,
    /// Finished read-only trees above the template's, topmost first.
    pub layers: Vec<PathBuf>,
    /// Host paths shown inside, besides the template's.
    pub binds: Vec<Bind>,
    /// Volumes that it has from the beginning.
    pub volumes: Vec<Mount>,
    /// Whole CPUs.
    pub vcpus: u32,
    /// MiB.
    pub memory_mb: u64,
    /// The most that may be written in it, in MiB; `None` for this server's default.
    pub disk_mb: Option<u64>,
    /// What keeps it apart from the host, if that is said.
    pub isolation: Option<Isolation>,
    /// Whether what is written in it becomes a layer of others. Then it has no limit of its own: it is moved, not copied.
    pub becomes_layer: bool,
    /// Time limit; `None` for none.
    pub timeout_ms: Option<u64>,
    /// What happens then.
    pub timeout_action: TimeoutAction,
    /// Whether use wakes it, once it is hibernated.
    pub auto_resume: bool,
    /// What it may reach.
    pub egress: Rules,
    /// Whether previews are open to all.
    pub allow_public_traffic: bool,
    /// The host that previews tell programs; `${PORT}` stands for the port.
    pub mask_request_host: Option<String>,
    /// Environment of every command.
    pub envs: BTreeMap<String, String>,
    /// Default working directory.
    pub cwd: String,
    /// The caller's own words.
    pub metadata: Map<String, Value>,
    /// Whose it is.
    pub tenant_id: String,
    /// Who asked; `None` for the platform itself.
    pub key_id: Option<String>,
    /// The run or service it backs.
    pub owner: Option<String>,
    /// What it does before it runs, and whom its commands run as.
    pub runtime: Runtime,
}

impl NewMachine {
    /// A machine of a tenant of this template with this server's defaults and no time limit.
    #[must_use]
    pub fn from_template(app: &App, tenant_id: &str, template: Arc<Layer>) -> Self {
        Self {
            tenant_id: tenant_id.to_owned(),
            cwd: template.default_cwd.clone(),
            runtime: template.runtime.clone(),
            isolation: template.runtime.isolation,
            template,
            layers: Vec::new(),
            binds: Vec::new(),
            volumes: Vec::new(),
            vcpus: app.config.default_vcpus,
            memory_mb: app.config.default_memory_mb,
            disk_mb: None,
            becomes_layer: false,
            timeout_ms: None,
            timeout_action: TimeoutAction::Destroy,
            auto_resume: false,
            egress: Rules::default(),
            allow_public_traffic: true,
            mask_request_host: None,
            envs: BTreeMap::new(),
            metadata: Map::new(),
            key_id: None,
            owner: None,
        }
    }

    /// Splits it into what is recorded and what the engine gets. Values of environment variables go to
    /// the engine alone.
    ///
    /// # Errors
    /// `not_implemented` when it asks for an engine that is not here.
    pub(super) fn into_record(
        self,
        app: &App,
        id: String,
        now: i64,
    ) -> Result<(MachineRow, Box<MachineSpec>)> {
        let (engine, _) = isolation::engine(app, self.isolation)?;
        let mut row = MachineRow {
            template: self.template.name.clone(),
            layer_digest: self.template.digest.clone(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            disk_mb: self.disk_mb,
            isolation: Some(engine.to_owned()),
            auto_resume: self.auto_resume,
            allow_public_traffic: self.allow_public_traffic,
            mask_request_host: self.mask_request_host,
            cwd: self.cwd.clone(),
            metadata: Value::Object(self.metadata).to_string(),
            owner: self.owner,
            volumes: self
                .volumes
                .iter()
                .map(|mount| mount::row(mount, &id, now))
                .collect(),
            ..blank(
                id.clone(),
                self.tenant_id,
                self.timeout_ms,
                self.key_id,
                now,
            )
        };
        set_action(&mut row, self.timeout_action);
        egress::record(&mut row, &self.egress);
        let mut env: BTreeMap<String, String> = app
            .ca_file
            .iter()
            .flat_map(|file| CA_VARIABLES.map(|name| (name.to_owned(), (*file).to_owned())))
            .collect();
        env.extend(self.template.env.iter().cloned());
        env.extend(self.envs);
        let template_binds = self.template.binds.iter().map(|bind| Bind {
            source: bind.source.clone(),
            beneath: None,
            target: bind.target.clone(),
            read_only: bind.read_only,
        });
        let binds: Vec<Bind> = template_binds.chain(self.binds).collect();
        let volumes = row.volumes.iter().map(|volume| mount::bind(app, volume));
        let spec = MachineSpec {
            hostname: id.replace('_', "-"),
            id,
            lower: self
                .layers
                .into_iter()
                .chain(self.template.lower.iter().cloned())
                .collect(),
            binds: binds.iter().cloned().chain(volumes).collect(),
            env,
            cwd: self.cwd,
            cpu_millis: self.vcpus.saturating_mul(1000),
            memory_bytes: self.memory_mb << 20,
            pids_max: app.config.max_pids,
            disk_bytes: match self.becomes_layer {
                true => None,
                false => self.disk_mb.or_else(|| default_disk_mb(app)),
            }
            .map(|mb| mb << 20),
            egress: self.egress,
            engine: Some(engine.to_owned()),
        };
        // Volumes come and go; they have records of their own.
        row.spec = recorded(&MachineSpec {
            binds,
            ..spec.clone()
        });
        Ok((row, Box::new(spec)))
    }
}

/// The record of a machine that is nothing yet.
pub(super) fn blank(
    id: String,
    tenant_id: String,
    timeout_ms: Option<u64>,
    key_id: Option<String>,
    now: i64,
) -> MachineRow {
    MachineRow {
        seq: 0,
        id,
        state: State::Creating.as_str().to_owned(),
        template: String::new(),
        layer_digest: String::new(),
        vcpus: 0,
        memory_mb: 0,
        disk_mb: None,
        isolation: None,
        timeout_ms,
        timeout_action: "destroy".into(),
        timeout_at: None,
        auto_resume: false,
        internet_access: true,
        egress: None,
        allow_public_traffic: true,
        mask_request_host: None,
        cwd: String::new(),
        metadata: "{}".into(),
        tenant_id,
        key_id,
        owner: None,
        failure_reason: None,
        created_at: now,
        started_at: None,
        ended_at: None,
        spec: None,
        snapshot_id: None,
        volumes: Vec::new(),
    }
}

/// Records what happens at the time limit.
pub(super) fn set_action(row: &mut MachineRow, action: TimeoutAction) {
    row.timeout_action = match action {
        TimeoutAction::Destroy => "destroy",
        TimeoutAction::Hibernate => "hibernate",
    }
    .to_owned();
}

/// A spec as it is recorded: for machines that are made of this one later. The values of environment variables go to
/// the engine alone, and the rules have a place of their own.
pub(super) fn recorded(spec: &MachineSpec) -> Option<String> {
    let spec = MachineSpec {
        env: BTreeMap::new(),
        egress: Rules::default(),
        ..spec.clone()
    };
    serde_json::to_string(&spec).ok()
}

/// Checks a request for a machine that is made of a snapshot, which says what the machine is like; the request says how
/// long it lives. The record has what is its own.
///
/// # Errors
/// `invalid_request` with the field that the snapshot decides.
pub fn plan_from_snapshot(
    app: &App,
    request: CreateMachineRequest,
    caller: &Caller,
) -> Result<(String, MachineRow)> {
    let decided = [
        ("template", request.template.is_some()),
        ("vcpus", request.vcpus.is_some()),
        ("memory_mb", request.memory_mb.is_some()),
        ("disk_mb", request.disk_mb.is_some()),
        ("isolation", request.isolation.is_some()),
        ("cwd", request.cwd.is_some()),
        (
            "envs",
            request.envs.as_ref().is_some_and(|envs| !envs.is_empty()),
        ),
    ];
    if let Some((field, _)) = decided.iter().find(|(_, given)| *given) {
        return Err(Error::invalid(format!(
            "{field}: a machine that is made of a snapshot has that of the snapshot"
        )));
    }
    refuse_later_features(&request)?;
    let (action, auto_resume) = at_the_limit(app, &request, None)?;
    let timeout_ms = request.timeout_ms.unwrap_or(app.config.default_timeout_ms);
    check_timeout(app, timeout_ms)?;
    let mut row = blank(
        nullspace_api::id::new(nullspace_api::id::MACHINE),
        caller.tenant_id(),
        Some(timeout_ms),
        Some(caller.key_id.to_string()),
        nullspace_api::time::now(),
    );
    set_action(&mut row, action);
    row.auto_resume = auto_resume;
    row.metadata = checked_metadata(request.metadata)?;
    let snapshot = request.snapshot_id.unwrap_or_default();
    Ok((snapshot, row))
}

fn checked_metadata(metadata: Option<Map<String, Value>>) -> Result<String> {
    let text = Value::Object(metadata.unwrap_or_default()).to_string();
    if text.len() > MAX_METADATA {
        return Err(Error::invalid(format!(
            "metadata: over {MAX_METADATA} bytes"
        )));
    }
    Ok(text)
}

/// Checks a create request against this server.
///
/// # Errors
/// `invalid_request` with the field, `not_implemented` with the feature, `template_not_found`,
/// `no_eligible_runtime_host` when the disk is too full.
pub fn plan(app: &App, request: CreateMachineRequest, caller: &Caller) -> Result<NewMachine> {
    refuse_later_features(&request)?;
    let template = request.template.as_deref().unwrap_or("base");
    let template = app.templates.find(&caller.tenant.id, template)?;
    let isolation = request.isolation.or(template.runtime.isolation);
    let (timeout_action, auto_resume) = at_the_limit(app, &request, isolation)?;
    let vcpus = request.vcpus.unwrap_or(app.config.default_vcpus);
    check_vcpus(app, vcpus)?;
    let memory_mb = request
        .memory_mb
        .unwrap_or_else(|| default_memory_mb(app, &template.name));
    check_memory(app, memory_mb)?;
    if let Some(disk_mb) = request.disk_mb {
        check_disk(app, disk_mb)?;
    }
    let timeout_ms = request.timeout_ms.unwrap_or(app.config.default_timeout_ms);
    check_timeout(app, timeout_ms)?;
    let cwd = match request.cwd.filter(|cwd| !cwd.is_empty()) {
        Some(cwd) => check_cwd(&cwd)?,
        None => template.default_cwd.clone(),
    };
    let envs = request.envs.unwrap_or_default();
    check_envs(&envs)?;
    checked_metadata(request.metadata.clone())?;
    let metadata = request.metadata.clone().unwrap_or_default();
    let network = request.network.unwrap_or_default();
    let egress = egress::asked_for(&network, request.internet_access)?;
    let new = NewMachine {
        vcpus,
        memory_mb,
        disk_mb: request.disk_mb,
        isolation,
        timeout_ms: Some(timeout_ms),
        timeout_action,
        auto_resume,
        egress,
        allow_public_traffic: network.allow_public_traffic.unwrap_or(true),
        mask_request_host: network.mask_request_host.map(check_mask).transpose()?,
        envs,
        cwd,
        metadata,
        key_id: Some(caller.key_id.to_string()),
        ..NewMachine::from_template(app, &caller.tenant.id, template)
    };
    Ok(new)
}

/// What a machine gets that asks for none: kernels with their libraries need more than a shell.
fn default_memory_mb(app: &App, template: &str) -> u64 {
    if template == CODE_INTERPRETER.name {
        CODE_MEMORY_MB.min(app.config.max_memory_mb)
    } else {
        app.config.default_memory_mb
    }
}

/// What belongs to later pieces of work is refused by name, never ignored.
fn refuse_later_features(request: &CreateMachineRequest) -> Result<()> {
    if request.desktop.is_some() {
        return Err(Error::not_implemented("desktops (desktop)"));
    }
    if request.inactivity_timeout_ms.is_some() {
        return Err(Error::not_implemented(
            "ending a machine that is not used (inactivity_timeout_ms)",
        ));
    }
    if request.auto_delete_after_ms.is_some() {
        return Err(Error::not_implemented(
            "forgetting a hibernated machine (auto_delete_after_ms)",
        ));
    }
    Ok(())
}

/// What happens at the time limit, and whether use wakes the machine then.
fn at_the_limit(
    app: &App,
    request: &CreateMachineRequest,
    isolation: Option<Isolation>,
) -> Result<(TimeoutAction, bool)> {
    let on_timeout = request.lifecycle.as_ref().and_then(|l| l.on_timeout);
    if let (Some(a), Some(b)) = (request.timeout_action, on_timeout)
        && a != b
    {
        return Err(Error::invalid(
            "lifecycle.on_timeout: says another action than timeout_action",
        ));
    }
    let action = request.timeout_action.or(on_timeout).unwrap_or_default();
    check_action(app, isolation, action)?;
    let auto_resume = request.auto_resume.unwrap_or(false);
    if auto_resume && action != TimeoutAction::Hibernate {
        return Err(Error::invalid(
            "auto_resume: needs timeout_action hibernate",
        ));
    }
    Ok((action, auto_resume))
}

/// An engine that cannot hibernate machines is not asked to when their time is over.
pub(super) fn check_action(
    app: &App,
    isolation: Option<Isolation>,
    action: TimeoutAction,
) -> Result<()> {
    let (engine, can) = isolation::engine(app, isolation)?;
    if action == TimeoutAction::Hibernate && !can.hibernate && !can.pause {
        return Err(snapshot::cannot(engine, "hibernate machines"));
    }
    Ok(())
}

/// What is sent in a `Host` header must be one.
fn check_mask(mask: String) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let host = preview::masked(&mask, u16::MAX);
    if host.is_empty() || host.len() > 255 || !host.chars().all(plain) {
        return Err(Error::invalid(
            "network.mask_request_host: must be a host name, with a port if need be; ${PORT} is replaced",
        ));
    }
    Ok(mask)
}

pub(super) fn check_timeout(app: &App, ms: u64) -> Result<()> {
    if ms == 0 || ms > app.config.max_timeout_ms {
        return Err(Error::invalid(format!(
            "timeout_ms: must be 1 to {}",
            app.config.max_timeout_ms
        )));
    }
    Ok(())
}

pub(in crate::app) fn check_envs(envs: &BTreeMap<String, String>) -> Result<()> {
    // The messages name the variable, never its value.
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::invalid(format!(
                "envs: {name:?} cannot be the name of a variable"
            )));
        }
        if value.contains('\0') {
            return Err(Error::invalid(format!(
                "envs.{name}: the value holds a NUL byte"
            )));
        }
        if name.len() + value.len() + 2 > MAX_ENV {
            return Err(Error::invalid(format!(
                "envs.{name}: name and value have over {} bytes, which no program can be given",
                MAX_ENV - 2
            ))
            .with_action("put it into a file"));
        }
    }
    let size: usize = envs.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    if size > MAX_ENVS {
        return Err(Error::invalid(format!("envs: over {MAX_ENVS} bytes")));
    }
    Ok(())
}

/// A working directory as a machine gets it: absolute, without `.` and `..`, not in the platform's own
/// folder. A slash at the end is taken off.
///
/// # Errors
/// `invalid_request`.
pub fn check_cwd(cwd: &str) -> Result<String> {
    let path = match cwd.trim_end_matches('/') {
        "" if cwd.starts_with('/') => "/",
        path => path,
    };
    let clean = path == "/"
        || path.strip_prefix('/').is_some_and(|rest| {
            !rest.contains('\0') && rest.split('/').all(|s| !matches!(s, "" | "." | ".."))
        });
    if !clean {
        return Err(Error::invalid(format!(
            "cwd: {cwd:?} is not an absolute path without . and .."
        )));
    }
    if is_reserved("/", path) {
        return Err(Error::invalid(format!("cwd: {RESERVED} is reserved")));
    }
    Ok(path.to_owned())
}

/// A path that may start at a directory, without `.`, `..` and empty parts. Links are not followed.
#[must_use]
pub fn absolute(base: &str, path: &str) -> String {
    let base = if path.starts_with('/') { "" } else { base };
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Whether a path, started at `base` if it is relative, is the platform's own folder or in it.
#[must_use]
pub fn is_reserved(base: &str, path: &str) -> bool {
    std::path::Path::new(&absolute(base, path)).starts_with(RESERVED)
}

pub(in crate::app) fn check_vcpus(app: &App, vcpus: u32) -> Result<()> {
    if vcpus == 0 || vcpus > app.config.max_vcpus {
        return Err(Error::invalid(format!(
            "vcpus: must be 1 to {}",
            app.config.max_vcpus
        )));
    }
    Ok(())
}

pub(in crate::app) fn check_memory(app: &App, memory_mb: u64) -> Result<()> {
    if memory_mb < 32 || memory_mb > app.config.max_memory_mb {
        return Err(Error::invalid(format!(
            "memory_mb: must be 32 to {}",
            app.config.max_memory_mb
        )));
    }
    Ok(())
}

pub(in crate::app) fn check_disk(app: &App, disk_mb: u64) -> Result<()> {
    if disk_mb == 0 {
        return Err(Error::invalid("disk_mb: must be at least 1"));
    }
    let free_mb =
        free_mb(app).map_err(|e| Error::internal(format!("reading free disk space: {e}")))?;
    if disk_mb > free_mb {
        return Err(Error::new(
            Kind::Unavailable,
            code::NO_ELIGIBLE_RUNTIME_HOST,
            format!("disk_mb: {free_mb} MiB are free, {disk_mb} were asked for"),
        ));
    }
    Ok(())
}

fn free_mb(app: &App) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statvfs(&app.data_dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

/// The most that may be written in a machine that asks for no amount, in MiB. Not more than there is, in whole GiB so that one machine
/// gets what the one before got; on a disk that has less than that the disk is the limit.
fn default_disk_mb(app: &App) -> Option<u64> {
    let free_mb = free_mb(app).unwrap_or_default();
    let limit = app.config.default_disk_mb.min(free_mb >> 10 << 10);
    Some(limit).filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_folder_is_seen_through_dots() {
        for (base, path) in [
            ("/", "/workspace/.nullspace"),
            ("/", "//workspace/./.nullspace/a"),
            ("/workspace", ".nullspace/a"),
            ("/workspace/src", "../.nullspace"),
        ] {
            assert!(is_reserved(base, path), "{base} {path}");
        }
        for path in [
            "/workspace",
            "/workspace/.nullspace/..",
            "/a/.nullspace",
            "/",
        ] {
            assert!(!is_reserved("/", path), "{path}");
        }
    }

    #[test]
    fn paths_start_at_a_directory() {
        assert_eq!(absolute("/app", "src/../x"), "/app/x");
        assert_eq!(absolute("/app", "/etc//./x"), "/etc/x");
        assert_eq!(absolute("/", "../.."), "/");
    }

    #[test]
    fn working_directories() {
        for good in ["/", "/workspace", "/a/b/", "/workspace/.nullspaces"] {
            assert!(check_cwd(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "work",
            "/a/../b",
            "/a//b",
            "/./a",
            "/workspace/.nullspace",
            "/workspace/.nullspace/x",
        ] {
            assert!(check_cwd(bad).is_err(), "{bad}");
        }
    }
}

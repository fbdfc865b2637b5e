//! Settings of the server. The CLI reads them from defaults, file, environment and flags.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Limits and habits. Every field has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Machines alive at once.
    pub max_machines: usize,
    /// The most CPUs one machine may ask for.
    pub max_vcpus: u32,
    /// The most memory one machine may ask for.
    pub max_memory_mb: u64,
    /// The longest time limit of a machine.
    pub max_timeout_ms: u64,
    /// CPUs of a machine that asks for none.
    pub default_vcpus: u32,
    /// Memory of a machine that asks for none.
    pub default_memory_mb: u64,
    /// The most that may be written in a machine that asks for no amount, in MiB; 0 for no limit but the disk's. Volumes do not count.
    pub default_disk_mb: u64,
    /// Time limit of a machine that asks for none.
    pub default_timeout_ms: u64,
    /// Processes and threads of one machine.
    pub max_pids: u32,
    /// How long machines that ended can be read, in seconds.
    pub ended_retention_secs: u64,
    /// How long idempotency keys are remembered, in seconds.
    pub idempotency_retention_secs: u64,
    /// How long a foreground command runs before its answer is begun, in milliseconds. Clients give up
    /// after 30 s of silence; once the answer is begun a time limit can only be an exit code.
    pub exec_patience_ms: u64,
    /// The most that results of install commands take on disk together, in MiB.
    pub agent_cache_mb: u64,
    /// Builds of templates at once.
    pub template_builds: usize,
    /// How long one may take, in seconds.
    pub template_build_secs: u64,
    /// The most that one step may write, in MiB, unless the build says another amount.
    pub template_disk_mb: u64,
    /// The most that layers of builds take on disk that no template needs, in MiB.
    pub template_cache_mb: u64,
    /// Registries of images, as `HOST[:PORT]`, that are spoken to over plain HTTP. Those on this host always are.
    pub insecure_registries: Vec<String>,
    /// Where images of a registry are fetched in its place, both as `HOST[:PORT]`. One without TLS has to be among
    /// `insecure_registries` too.
    pub registry_mirrors: BTreeMap<String, String>,
    /// Files with certificate authorities (PEM) that are believed about a registry, as `HOST[:PORT]`, besides those that
    /// this host trusts. Read for each image. Such a registry is spoken to over TLS, also on this host.
    pub registry_authorities: BTreeMap<String, PathBuf>,
    /// How often in a row the entry point of a service is started again after it ended by itself.
    pub service_restarts: u32,
    /// Pause before the first of these, in milliseconds; each next is twice as long.
    pub service_restart_pause_ms: u64,
    /// How long a preview can be opened when nobody says, in seconds; brought into the range from a minute to a day.
    pub preview_ttl_secs: u64,
    /// How long a program may take to answer a request to a preview, in seconds, while nothing of the request moves.
    pub preview_answer_secs: u64,
    /// The first of the ports that services and previews are opened at.
    pub gateway_first_port: u16,
    /// The last of them.
    pub gateway_last_port: u16,
    /// How long events are remembered, in seconds. At most a million are; one that is still to be delivered stays.
    pub event_retention_secs: u64,
    /// How long a webhook's receiver may take to answer, in milliseconds.
    pub webhook_timeout_ms: u64,
    /// Pause before a failed delivery is tried again, in milliseconds; each next is twice as long, up to five minutes.
    pub webhook_retry_pause_ms: u64,
    /// How long an event is tried to be delivered, in seconds.
    pub webhook_give_up_secs: u64,
    /// Whether webhooks may be sent to loopback and private addresses.
    pub webhook_private_receivers: bool,
    /// Machines that `/metrics` has numbers of each, the oldest ones first.
    pub metrics_machines: usize,
    /// The most that the audit log takes on disk, in MiB; at least 16 are kept.
    pub audit_mb: u64,
    /// Volumes at once.
    pub max_volumes: u64,
    /// The most a volume may have that was made without a limit, in MiB; 0 for no limit but the disk's.
    pub volume_max_mb: u64,
    /// The most files, directories and links of such a volume; 0 for no limit.
    pub volume_max_files: u64,
    /// How long requests under way may take when the server is told to stop, in seconds.
    pub drain_secs: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_machines: 4096,
            max_vcpus: 64,
            max_memory_mb: host_memory_mb().max(2048),
            max_timeout_ms: 30 * 24 * 3600 * 1000,
            default_vcpus: 1,
            default_memory_mb: 512,
            default_disk_mb: 10 << 10,
            default_timeout_ms: 300_000,
            max_pids: 4096,
            ended_retention_secs: 7 * 24 * 3600,
            idempotency_retention_secs: 24 * 3600,
            exec_patience_ms: 15_000,
            agent_cache_mb: 20 << 10,
            template_builds: 2,
            template_build_secs: 3600,
            template_disk_mb: 10 << 10,
            template_cache_mb: 20 << 10,
            insecure_registries: Vec::new(),
            registry_mirrors: BTreeMap::new(),
            registry_authorities: BTreeMap::new(),
            service_restarts: 5,
            service_restart_pause_ms: 500,
            preview_ttl_secs: 3600,
            preview_answer_secs: 60,
            // Below what the system takes for connections that go out.
            gateway_first_port: 20_000,
            gateway_last_port: 29_999,
            event_retention_secs: 30 * 24 * 3600,
            webhook_timeout_ms: 10_000,
            webhook_retry_pause_ms: 1000,
            webhook_give_up_secs: 3 * 24 * 3600,
            webhook_private_receivers: false,
            metrics_machines: 200,
            audit_mb: 256,
            max_volumes: 10_000,
            volume_max_mb: 0,
            volume_max_files: 0,
            drain_secs: 10,
        }
    }
}

impl Config {
    /// Checks what a wrong value of would only be felt later.
    ///
    /// # Errors
    /// The setting and what is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        let mirrors = self.registry_mirrors.iter();
        let names = (mirrors.flat_map(|(name, mirror)| [name, mirror]))
            .map(|name| ("registry_mirrors", name))
            .chain((self.insecure_registries.iter()).map(|name| ("insecure_registries", name)))
            .chain((self.registry_authorities.keys()).map(|name| ("registry_authorities", name)));
        for (setting, name) in names {
            let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
            if name.is_empty() || !name.chars().all(plain) {
                return Err(format!(
                    "{setting}: {name:?} is no registry: HOST or HOST:PORT, without http:// and without a path"
                ));
            }
        }
        for (name, file) in &self.registry_authorities {
            if let Err(why) = nullspace_image::check_authorities(file) {
                let file = file.display();
                return Err(format!("registry_authorities: {name}: {file}: {why}"));
            }
        }
        Ok(())
    }
}

/// What the host has; 0 when it does not say.
fn host_memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| {
            rest.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .ok()
        })
        .map_or(0, |kb| kb / 1024)
}

//! Settings of the server: flags over environment over file over defaults.

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nullspace_server::{PreviewDomain, SshOptions};
use nullspace_templates::{DEFAULT_CACHE_DIR, Progress};
use serde::Deserialize;

use super::{Args, engines::Isolation};
use crate::app::App;
use crate::commands::quickstart::default_data_dir;
use crate::error::CliError;
use crate::ui::Ui;

/// The environment variables that `serve` reads.
pub(crate) mod env_vars {
    /// Address and port to listen on.
    pub(crate) const NULLSPACE_LISTEN: &str = "NULLSPACE_LISTEN";
    /// Address and port to listen on for SSH, or `off`.
    pub(crate) const NULLSPACE_SSH_ADDR: &str = "NULLSPACE_SSH_ADDR";
    /// What SSH clients are told to connect to.
    pub(crate) const NULLSPACE_SSH_HOST: &str = "NULLSPACE_SSH_HOST";
    /// The domain below which ports of machines have names.
    pub(crate) const NULLSPACE_PREVIEW_DOMAIN: &str = "NULLSPACE_PREVIEW_DOMAIN";
    /// Address and port of `/metrics` without a key.
    pub(crate) const NULLSPACE_METRICS_ADDR: &str = "NULLSPACE_METRICS_ADDR";
    /// Where traces are sent to, exactly.
    pub(crate) const OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: &str =
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    /// A collector; traces go to `/v1/traces` there.
    pub(crate) const OTEL_EXPORTER_OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    /// `true` turns traces off, whatever else is set.
    pub(crate) const OTEL_SDK_DISABLED: &str = "OTEL_SDK_DISABLED";
    /// Where everything is kept.
    pub(crate) const NULLSPACE_DATA_DIR: &str = "NULLSPACE_DATA_DIR";
    /// The settings file.
    pub(crate) const NULLSPACE_CONFIG: &str = "NULLSPACE_CONFIG";
    /// Where `base` is shared between data directories; empty for nowhere.
    pub(crate) const NULLSPACE_TEMPLATE_CACHE_DIR: &str = "NULLSPACE_TEMPLATE_CACHE_DIR";
    /// Whether to make `base` if it is not there: `true` or `false`.
    pub(crate) const NULLSPACE_MAKE_BASE: &str = "NULLSPACE_MAKE_BASE";
    /// Whether machines trust the certificate authorities that the host trusts: `true` or `false`.
    pub(crate) const NULLSPACE_TRUST_HOST_CERTIFICATES: &str = "NULLSPACE_TRUST_HOST_CERTIFICATES";
    /// Machines prepared ahead.
    pub(crate) const NULLSPACE_SPARE_MACHINES: &str = "NULLSPACE_SPARE_MACHINES";
    /// What machines are made of that ask for nothing else: `native`, `gvisor` or `auto`.
    pub(crate) const NULLSPACE_ISOLATION: &str = "NULLSPACE_ISOLATION";
    /// Machines of gVisor prepared ahead.
    pub(crate) const NULLSPACE_SPARE_GVISOR: &str = "NULLSPACE_SPARE_GVISOR";
    /// Whether webhooks may be sent to loopback and private addresses: `true` or `false`.
    pub(crate) const NULLSPACE_WEBHOOK_PRIVATE_RECEIVERS: &str =
        "NULLSPACE_WEBHOOK_PRIVATE_RECEIVERS";
    /// What is logged.
    pub(crate) const NULLSPACE_LOG: &str = "NULLSPACE_LOG";
    /// A key that is let in. Only from the environment, so that it is in no file and no process list.
    pub(crate) const NULLSPACE_BOOTSTRAP_API_KEY: &str = "NULLSPACE_BOOTSTRAP_API_KEY";
}

/// The address that published clients ask when nothing says otherwise.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3000);
/// Enough for the bursts that one developer makes; each costs about half a megabyte.
const DEFAULT_SPARE: usize = 4;
/// Enough for one after the other; each costs about 40 MB, once a machine of the kind was asked for.
const DEFAULT_SPARE_GVISOR: usize = 1;

/// What `serve` works with. It holds a key, so it cannot be printed.
pub(super) struct Settings {
    pub(super) listen: SocketAddr,
    pub(super) ssh: SshOptions,
    pub(super) preview_domain: Option<PreviewDomain>,
    pub(super) metrics_addr: Option<SocketAddr>,
    /// Where spans are sent to, exactly.
    pub(super) otlp_address: Option<String>,
    pub(super) data_dir: PathBuf,
    pub(super) template_cache_dir: Option<PathBuf>,
    pub(super) make_base: bool,
    pub(super) trust_host_certificates: bool,
    pub(super) spare_machines: usize,
    pub(super) isolation: Isolation,
    pub(super) spare_gvisor: usize,
    pub(super) log: String,
    pub(super) bootstrap_key: Option<String>,
    pub(super) limits: nullspace_server::Config,
    /// Keys of the file that mean nothing.
    pub(super) unknown: Vec<String>,
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SettingsFile {
    listen: Option<SocketAddr>,
    ssh_addr: Option<String>,
    ssh_host: Option<String>,
    preview_domain: Option<String>,
    metrics_addr: Option<SocketAddr>,
    otlp_endpoint: Option<String>,
    data_dir: Option<PathBuf>,
    template_cache_dir: Option<PathBuf>,
    make_base: Option<bool>,
    trust_host_certificates: Option<bool>,
    spare_machines: Option<usize>,
    isolation: Option<String>,
    spare_gvisor: Option<usize>,
    log: Option<String>,
    limits: nullspace_server::Config,
}

impl Settings {
    pub(super) fn resolve(args: &Args, app: &App) -> Result<Self, CliError> {
        let var = |name: &str| app.var(name).map(|value| value.trim().to_owned());
        let path = args.config.clone().or_else(|| {
            var(env_vars::NULLSPACE_CONFIG)
                .filter(|p| !p.is_empty())
                .map(PathBuf::from)
        });
        let (file, unknown) = match &path {
            Some(path) => read(path)?,
            None => (SettingsFile::default(), Vec::new()),
        };
        file.limits.check().map_err(CliError::usage)?;
        let ssh_addr = match &file.ssh_addr {
            Some(text) => Some(
                text.parse()
                    .map_err(|error| CliError::usage(format!("ssh_addr = {text:?}: {error}")))?,
            ),
            None => None,
        };
        let preview_domain =
            match &file.preview_domain {
                Some(text) => Some(text.parse().map_err(|error| {
                    CliError::usage(format!("preview_domain = {text:?}: {error}"))
                })?),
                None => None,
            };
        let isolation = match &file.isolation {
            Some(text) => Some(
                text.parse()
                    .map_err(|error| CliError::usage(format!("isolation = {text:?}: {error}")))?,
            ),
            None => None,
        };
        let otlp_address = otlp_address(args, file.otlp_endpoint.as_deref(), &var)?;
        let cache_dir = match var(env_vars::NULLSPACE_TEMPLATE_CACHE_DIR) {
            Some(dir) => Some(PathBuf::from(dir)),
            None => file.template_cache_dir,
        };
        // Only root can write to the shared place; everybody else keeps templates with the data.
        let default_cache = || {
            PathBuf::from(if rustix::process::geteuid().is_root() {
                DEFAULT_CACHE_DIR
            } else {
                ""
            })
        };
        let cache_dir = cache_dir.unwrap_or_else(default_cache);
        let data_dir = args
            .data_dir
            .clone()
            .or_else(|| {
                var(env_vars::NULLSPACE_DATA_DIR)
                    .filter(|dir| !dir.is_empty())
                    .map(PathBuf::from)
            })
            .or(file.data_dir)
            .unwrap_or_else(|| default_data_dir(app));
        let data_dir = std::path::absolute(&data_dir).map_err(|error| {
            CliError::local(
                format!("cannot use the data directory {}", data_dir.display()),
                &error,
            )
        })?;
        Ok(Self {
            listen: args
                .listen
                .or(parsed(env_vars::NULLSPACE_LISTEN, &var)?)
                .or(file.listen)
                .unwrap_or(DEFAULT_LISTEN),
            ssh: SshOptions {
                listen: args
                    .ssh_addr
                    .or(parsed(env_vars::NULLSPACE_SSH_ADDR, &var)?)
                    .or(ssh_addr)
                    .unwrap_or_default(),
                host: args
                    .ssh_host
                    .clone()
                    .or_else(|| var(env_vars::NULLSPACE_SSH_HOST))
                    .or(file.ssh_host)
                    .filter(|host| !host.is_empty()),
            },
            preview_domain: args
                .preview_domain
                .clone()
                .or(parsed(env_vars::NULLSPACE_PREVIEW_DOMAIN, &var)?)
                .or(preview_domain),
            metrics_addr: args
                .metrics_addr
                .or(parsed(env_vars::NULLSPACE_METRICS_ADDR, &var)?)
                .or(file.metrics_addr),
            otlp_address,
            data_dir,
            template_cache_dir: (!cache_dir.as_os_str().is_empty()).then_some(cache_dir),
            make_base: parsed(env_vars::NULLSPACE_MAKE_BASE, &var)?
                .or(file.make_base)
                .unwrap_or(true),
            trust_host_certificates: parsed(env_vars::NULLSPACE_TRUST_HOST_CERTIFICATES, &var)?
                .or(file.trust_host_certificates)
                .unwrap_or(true),
            spare_machines: parsed(env_vars::NULLSPACE_SPARE_MACHINES, &var)?
                .or(file.spare_machines)
                .unwrap_or(DEFAULT_SPARE),
            isolation: args
                .isolation
                .or(parsed(env_vars::NULLSPACE_ISOLATION, &var)?)
                .or(isolation)
                .unwrap_or_default(),
            spare_gvisor: parsed(env_vars::NULLSPACE_SPARE_GVISOR, &var)?
                .or(file.spare_gvisor)
                .unwrap_or(DEFAULT_SPARE_GVISOR),
            log: var(env_vars::NULLSPACE_LOG)
                .filter(|log| !log.is_empty())
                .or(file.log)
                .unwrap_or_else(|| "info".to_owned()),
            bootstrap_key: var(env_vars::NULLSPACE_BOOTSTRAP_API_KEY).filter(|key| !key.is_empty()),
            limits: nullspace_server::Config {
                webhook_private_receivers: parsed(
                    env_vars::NULLSPACE_WEBHOOK_PRIVATE_RECEIVERS,
                    &var,
                )?
                .unwrap_or(file.limits.webhook_private_receivers),
                ..file.limits
            },
            unknown,
        })
    }
}

/// Where spans are sent to: flag, the usual variables, file. The names of collectors are without the path.
fn otlp_address(
    args: &Args,
    file: Option<&str>,
    var: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<String>, CliError> {
    let given = |name| var(name).filter(|value| !value.is_empty());
    if given(env_vars::OTEL_SDK_DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let below = |base: String| format!("{}/v1/traces", base.trim_end_matches('/'));
    let address = args
        .otlp_endpoint
        .clone()
        .filter(|base| !base.is_empty())
        .map(below)
        .or_else(|| given(env_vars::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT))
        .or_else(|| given(env_vars::OTEL_EXPORTER_OTLP_ENDPOINT).map(below))
        .or_else(|| {
            let base = file.filter(|base| !base.is_empty())?;
            Some(below(base.to_owned()))
        });
    let is_http = |address: &String| {
        reqwest::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
    };
    match address {
        Some(address) if !is_http(&address) => {
            let error = CliError::usage(format!("{address} is no address of a collector"));
            Err(error.hint("For example: http://127.0.0.1:4318."))
        }
        address => Ok(address),
    }
}

/// A variable's value as what it should be; an empty one counts as absent.
fn parsed<T: std::str::FromStr>(
    name: &str,
    var: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<T>, CliError>
where
    T::Err: std::fmt::Display,
{
    let Some(value) = var(name).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match value.parse() {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(CliError::usage(format!("{name}={value}: {error}"))
            .hint(format!("Correct {name} or unset it."))),
    }
}

fn read(path: &Path) -> Result<(SettingsFile, Vec<String>), CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!("cannot read {}: {error}", path.display()))
            .hint("Correct --config or NULLSPACE_CONFIG.")
    })?;
    let wrong = |error: &dyn std::fmt::Display| {
        CliError::usage(format!("{}: {error}", path.display()))
            .hint("`nullspace serve --help` shows the settings.")
    };
    let mut unknown = Vec::new();
    let document = toml::Deserializer::new(&text);
    let file = serde_ignored::deserialize(document, |key| unknown.push(key.to_string()))
        .map_err(|error| wrong(&error))?;
    unknown.sort();
    Ok((file, unknown))
}

/// Shows how the making of `base` goes: a bar on a terminal, otherwise a line for each phase and now and then.
pub(super) fn progress(ui: Ui, bars: MultiProgress) -> Arc<dyn Fn(Progress) + Send + Sync> {
    if std::io::stderr().is_terminal() && !ui.json {
        let bar = Mutex::new(None::<ProgressBar>);
        return Arc::new(move |progress| {
            let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = bar.get_or_insert_with(|| bars.add(new_bar()));
            bar.set_position((progress.fraction.unwrap_or(0.0) * 1000.0) as u64);
            bar.set_message(format!(
                "template base: {} {}",
                progress.phase, progress.line
            ));
            if progress.phase == nullspace_templates::Phase::Keeping {
                bar.finish_and_clear();
            }
        });
    }
    let last = Mutex::new(None);
    Arc::new(move |progress| {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = last.is_some_and(|(phase, at): (_, Instant)| {
            phase == progress.phase && at.elapsed() < Duration::from_secs(2)
        });
        if quiet {
            return;
        }
        *last = Some((progress.phase, Instant::now()));
        let done = progress
            .fraction
            .map(|done| format!(" {:.0}%", done * 100.0))
            .unwrap_or_default();
        let line = progress.line;
        ui.note(format!("template base: {}{done} {line}", progress.phase).trim_end());
    })
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::new(1000);
    match ProgressStyle::with_template("{spinner} {percent:>3}% {bar:20} {wide_msg} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_of_the_file_are_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nullspace.toml");
        std::fs::write(
            &path,
            "listen = '127.0.0.1:1'\nlistne = 1\n[limits]\nmax_machines = 7\nmax_machine = 8\n",
        )
        .expect("written");
        let (file, unknown) = read(&path).expect("read");
        assert_eq!(
            file.listen,
            Some("127.0.0.1:1".parse().expect("an address"))
        );
        assert_eq!(file.limits.max_machines, 7);
        assert_eq!(unknown, ["limits.max_machine", "listne"]);
        std::fs::write(&path, "listen = 3\n").expect("written");
        assert_eq!(read(&path).expect_err("no address").exit(), 2);
    }

    #[test]
    fn variables_are_checked() {
        let var = |value: &str| {
            let value = value.to_owned();
            parsed::<usize>("N", &move |_| Some(value.clone()))
        };
        assert_eq!(var("3").expect("a number"), Some(3));
        assert_eq!(var("").expect("absent"), None);
        assert_eq!(var("x").expect_err("no number").exit(), 2);
    }
}

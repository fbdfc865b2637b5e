//! `nullspace serve`: the composition root. Only here are concrete engines named.

mod engines;
mod key;
mod settings;
mod trace;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::MultiProgress;
use nullspace_server::{
    PreviewDomain, ServeError, ServeOptions, Server, SshListen, TemplateSource,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::app::App;
use crate::commands::doctor::{self, attack::PROBE};
use crate::error::{CliError, Outcome};
use crate::ui::Ui;

use engines::Isolation;
pub(crate) use key::own_key;
use settings::Settings;
use trace::Traces;

/// Name of the helper process that builds machines.
const LAUNCHER: &str = "launcher";
/// What this program is called as inside machines with a kernel of their own.
const GUEST: &str = "guest";
/// Name of the helper process that answers the machines' name queries.
const RESOLVER: &str = "resolver";
/// Name of the helper process that works on the files of a volume.
const KEEPER: &str = "keeper";

/// Freed memory of each of a few arenas that is not given back to the kernel: what goes through comes in pieces of 64 KiB
/// and more, and each would be taken from the kernel anew.
const KEEP_FREED: u32 = 4 << 20;

/// Bundles of certificate authorities, by distribution; the first that is there is placed in machines.
const CA_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Run the server. Machines go on while it is stopped or upgraded; it finds them again when it starts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace serve
  nullspace serve --listen 0.0.0.0:3000 --data-dir /srv/nullspace
  NULLSPACE_BOOTSTRAP_API_KEY=ns_live_… nullspace serve --config /etc/nullspace.toml

Settings come from flags, then the environment (NULLSPACE_LISTEN, NULLSPACE_SSH_ADDR,
NULLSPACE_SSH_HOST, NULLSPACE_METRICS_ADDR, NULLSPACE_PREVIEW_DOMAIN, NULLSPACE_DATA_DIR,
NULLSPACE_CONFIG, NULLSPACE_TEMPLATE_CACHE_DIR, NULLSPACE_MAKE_BASE,
NULLSPACE_TRUST_HOST_CERTIFICATES, NULLSPACE_ISOLATION, NULLSPACE_SPARE_MACHINES,
NULLSPACE_SPARE_GVISOR, NULLSPACE_WEBHOOK_PRIVATE_RECEIVERS, NULLSPACE_LOG,
OTEL_EXPORTER_OTLP_ENDPOINT), then the file, then defaults. NULLSPACE_BOOTSTRAP_API_KEY lets a key in; without it and without any key, one is made
at the first start and put into this user's configuration, so that the command line works at once.

The file:
  listen = \"127.0.0.1:3000\"
  ssh_addr = \"127.0.0.1:3001\"                  # or \"off\"
  ssh_host = \"ssh.example.com\"                 # what clients are told to connect to
  preview_domain = \"https://p.example.com\"     # ports are PORT-MACHINE.p.example.com, behind a TLS proxy
  metrics_addr = \"127.0.0.1:9464\"              # /metrics for everybody who reaches it
  otlp_endpoint = \"http://127.0.0.1:4318\"      # a collector of OpenTelemetry traces
  data_dir = \"/var/lib/nullspace\"
  template_cache_dir = \"/var/cache/nullspace\"   # `base` is shared between data directories here
  make_base = true                              # make `base` if it is not there
  trust_host_certificates = true                # machines trust the authorities that this host trusts
  isolation = \"auto\"                            # what machines are made of: native, gvisor or auto
  spare_machines = 4                            # machines prepared ahead
  spare_gvisor = 1                              # the same of gVisor, once one was asked for; 40 MB each
  log = \"info\"                                  # or a filter such as info,nullspace_server=debug
  [limits]                                      # max_machines, max_memory_mb, default_timeout_ms, …
  webhook_private_receivers = false             # webhooks to loopback and private addresses
  insecure_registries = [\"registry.lan:5000\"]  # images come from these over plain HTTP
  registry_mirrors = { \"docker.io\" = \"mirror.lan\" }  # and from these instead
  registry_authorities = { \"registry.lan:5000\" = \"/etc/ca.pem\" }  # who signs for a registry of your own")]
pub(crate) struct Args {
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address and port to listen on for SSH, or `off` [default: beside the other].
    #[arg(long, value_name = "ADDRESS")]
    ssh_addr: Option<SshListen>,
    /// What SSH clients are told to connect to, if that is not the address.
    #[arg(long, value_name = "NAME")]
    ssh_host: Option<String>,
    /// Ports of machines have names below this domain: PORT-MACHINE.DOMAIN. With https:// and a port as a
    /// proxy in front has them [default: none, each has a port of this host].
    #[arg(long, value_name = "DOMAIN")]
    preview_domain: Option<PreviewDomain>,
    /// Address and port of `/metrics` for Prometheus without a key; on the other address it needs one.
    #[arg(long, value_name = "ADDRESS")]
    metrics_addr: Option<SocketAddr>,
    /// Where traces are sent to, a collector that takes OTLP over HTTP.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What machines are made of that ask for nothing else: namespaces of this host (`native`), a kernel of their own
    /// (`gvisor`), or the stronger of the two that works here (`auto`) [default: auto].
    #[arg(long, value_name = "KIND")]
    isolation: Option<Isolation>,
    /// Settings, TOML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave the terminal's session, for whoever starts it in the background.
    #[arg(long, hide = true)]
    detached: bool,
}

/// Runs as one of the helper processes, if the arguments say so. They are started by the engines and the launcher, which
/// need them small: nothing of the command line is set up for them.
pub(crate) fn helper_process(argv: &[OsString]) -> Option<ExitCode> {
    let argument = || {
        argv.get(2)
            .and_then(|argument| argument.to_str())
            .unwrap_or_default()
    };
    let result = match argv.get(1)?.to_str()? {
        LAUNCHER => nullspace_engine_native::launcher_main().map_err(|error| error.to_string()),
        RESOLVER => resolver(argument()),
        GUEST => nullspace_guest::main().map_err(|error| error.to_string()),
        PROBE => {
            let what = argv.get(3).and_then(|what| what.to_str());
            doctor::attack::probe(argument(), what.unwrap_or_default())
        }
        KEEPER => {
            nullspace_keeper::main(Path::new(argv.get(2)?)).map_err(|error| error.to_string())
        }
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Ui::new(false).note(error);
            ExitCode::FAILURE
        }
    })
}

/// Answers name queries at `address` for as long as the launcher lives, which says on standard input who may ask what.
fn resolver(address: &str) -> Result<(), String> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|error| error.to_string())?;
    if getppid() != parent {
        return Ok(());
    }
    let address = address
        .parse()
        .map_err(|error| format!("{address:?}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let launcher = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let control =
            nullspace_resolver::Control::new(launcher.into()).map_err(|error| error.to_string())?;
        let mut config =
            nullspace_resolver::Config::new(vec![nullspace_resolver::Listen::Address(address)]);
        config.policy = Arc::new(control.clone());
        // Questions wait in the sockets until all rules are known.
        let resolver =
            nullspace_resolver::Resolver::bind(config).map_err(|error| error.to_string())?;
        control.ready().await;
        resolver.serve(control.over()).await;
        Ok(())
    })
}

pub(crate) fn run(args: &Args, app: &App) -> Outcome {
    if args.detached {
        // Fails only for the leader of a session, which is detached already.
        let _ = rustix::process::setsid();
    }
    let settings = Settings::resolve(args, app)?;
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::new(
            "permission_denied",
            "the server needs root to make machines",
        )
        .hint("Run it with sudo or as a system service; everything else works without."));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::local("cannot start", &error))?;
    let traces = match &settings.otlp_address {
        Some(address) => Some(Traces::start(address, runtime.handle())?),
        None => None,
    };
    let bars = MultiProgress::new();
    log_to_stderr(&settings.log, bars.clone(), traces.as_ref())?;
    for key in &settings.unknown {
        app.ui
            .warn(format!("unknown setting {key} in the configuration file"));
    }
    allow_many_files();
    nullspace_sys::memory::keep_freed(KEEP_FREED);
    let outcome = runtime.block_on(async {
        let outcome = serve(&settings, app, bars).await;
        if let Some(traces) = traces {
            traces.finish().await;
        }
        outcome
    });
    // The thread that makes `base` and reads that hang must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn serve(settings: &Settings, app: &App, bars: MultiProgress) -> Outcome {
    let program = std::env::current_exe()
        .map_err(|error| CliError::local("cannot find this program", &error))?;
    let program = program
        .to_str()
        .ok_or_else(|| CliError::usage("the path of this program is not UTF-8"))?;
    std::fs::create_dir_all(&settings.data_dir)
        .and_then(|()| settings.data_dir.canonicalize())
        .map_err(|error| {
            CliError::local(
                format!(
                    "cannot use the data directory {}",
                    settings.data_dir.display()
                ),
                &error,
            )
            .hint("Give another one with --data-dir.")
        })?;
    refuse_second(&settings.data_dir)?;
    let stop = stop_signal()?;
    let ca_bundle = settings.trust_host_certificates.then(ca_bundle).flatten();
    let ca_file = ca_bundle
        .is_some()
        .then_some(nullspace_engine_native::CA_BUNDLE);
    let engine = engines::start(settings, program, ca_bundle, app.ui)
        .await
        .map_err(|error| {
            CliError::new("engine_unavailable", error.to_string())
                .hint("See what this host lacks with `nullspace doctor`.")
        })?;
    let options = ServeOptions {
        listen: settings.listen,
        data_dir: settings.data_dir.clone(),
        bootstrap_key: settings.bootstrap_key.clone(),
        on_minted_key: key::sink(app.ui, app.surroundings.clone(), settings),
        config: settings.limits.clone(),
        metrics_listen: settings.metrics_addr,
        ssh: settings.ssh.clone(),
        preview_domain: settings.preview_domain.clone(),
        templates: TemplateSource::Builtin {
            cache_dir: settings.template_cache_dir.clone(),
            make_base: settings.make_base,
            progress: settings::progress(app.ui, bars),
        },
        volume_keeper: vec![program.to_owned(), KEEPER.to_owned()],
        ca_file,
    };
    let server = Server::start(options, engine)
        .await
        .map_err(|error| start_error(&error))?;
    let data_dir = settings.data_dir.display();
    app.ui.note(format!(
        "Nullspace {} listens on http://{} (data in {data_dir})",
        env!("CARGO_PKG_VERSION"),
        server.address()
    ));
    if let Some(address) = server.metrics_address() {
        app.ui.note(format!("Metrics: http://{address}/metrics"));
    }
    if let Some(address) = server.ssh_address() {
        app.ui.note(format!("SSH to machines: {address}"));
    }
    stop.await;
    app.ui
        .note("Stopping: requests under way may finish, machines stay.");
    server.stop().await;
    Ok(0)
}

/// Refuses a data directory that another server uses, before the engine looks at it: what the other is just making would
/// look like remains to it. The server takes the lock for good when it starts.
fn refuse_second(data_dir: &Path) -> Result<(), CliError> {
    use rustix::fs::{FlockOperation, flock};
    let Ok(lock) = std::fs::File::open(data_dir.join("serve.lock")) else {
        return Ok(());
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(start_error(&ServeError::InUse(data_dir.to_owned())))
        }
        _ => Ok(()),
    }
}

/// Completes when the process is asked to end.
fn stop_signal() -> Result<impl Future<Output = ()>, CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error| CliError::local("cannot listen for signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn start_error(error: &ServeError) -> CliError {
    use std::error::Error as _;
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    let (code, hint) = match error {
        ServeError::InUse(_) => (
            "conflict",
            "Stop the other server, or give another --data-dir.",
        ),
        ServeError::Listen { .. } => (
            "local_error",
            "Something else listens there, or it is no address of this host: give another --listen, --ssh-addr or --metrics-addr.",
        ),
        ServeError::DataDir { .. } => ("local_error", "Give another --data-dir."),
        ServeError::Key(_) => (
            "local_error",
            "Set NULLSPACE_BOOTSTRAP_API_KEY to a key of your own.",
        ),
        _ => ("internal_error", "The log above may say more."),
    };
    CliError::new(code, message).hint(hint)
}

fn ca_bundle() -> Option<PathBuf> {
    CA_BUNDLES
        .into_iter()
        .map(Path::new)
        .find(|path| path.is_file())
        .map(Path::to_path_buf)
}

/// Log lines on stderr, without tearing a progress bar; and the server's spans to where traces go.
fn log_to_stderr(
    filter: &str,
    bars: MultiProgress,
    traces: Option<&Traces>,
) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        CliError::usage(format!("log: {error}"))
            .hint("For example: info, or info,nullspace_server=debug.")
    })?;
    let writer = move || AroundBars(bars.clone());
    let set = match traces {
        None => tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(false)
            .with_writer(writer)
            .finish()
            .try_init(),
        Some(traces) => {
            let lines = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(writer);
            // Only what the server says on purpose: no log lines, and nobody else's spans.
            let ours = filter_fn(|it| it.is_span() && it.target().starts_with("nullspace_server"))
                .with_max_level_hint(LevelFilter::DEBUG);
            let spans = tracing_opentelemetry::layer()
                .with_tracer(traces.tracer())
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false);
            tracing_subscriber::registry()
                .with(lines.with_filter(filter))
                .with(spans.with_filter(ours))
                .try_init()
        }
    };
    set.map_err(|error| CliError::new("internal_error", error.to_string()))
}

struct AroundBars(MultiProgress);

impl std::io::Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Each machine and each follower holds a few files open; the usual limit of 1024 is soon reached.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Raising to what is allowed anyway: if it fails, the old limit still serves.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

//! Start, accept, drain.
//!
//! ```text
//!  lock ─▶ open record ─▶ keys ─▶ listen ─▶ templates ─▶ adopt ─▶ previews ─▶ agents ─▶ accept … stop ─▶ drain
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::body::Body;
use http::Request;
use hyper::{
    body::Incoming,
    service::{Service, service_fn},
};
use hyper_util::service::TowerToHyperService;
use nullspace_engine::Engine;
use nullspace_gateway::{Addressee, NOBODY, PreviewDomain, pass, refuse};
use nullspace_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::{self, App, AppState, key, machine, preview, template, upload},
    config::Config,
    error::Error,
};

/// How long a server that ends may keep the data directory from the next one.
const HANDOVER: Duration = Duration::from_secs(1);
/// How often old records are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// Takes the key that was minted at the first start. It is called before anything is kept, so that a key
/// that could not be handed over does not count.
pub type KeySink = Box<dyn FnOnce(&str) -> std::io::Result<()> + Send>;

/// What `serve` needs to know.
pub struct ServeOptions {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where everything is kept; made if missing.
    pub data_dir: PathBuf,
    /// A key that is let in, from `NULLSPACE_BOOTSTRAP_API_KEY`.
    pub bootstrap_key: Option<String>,
    /// Gets the minted key when there is none at all.
    pub on_minted_key: KeySink,
    /// Limits and habits.
    pub config: Config,
    /// Where `/metrics` is for everybody, besides where a key is needed for it; port 0 takes a free one.
    pub metrics_listen: Option<SocketAddr>,
    /// Logging in to machines.
    pub ssh: SshOptions,
    /// The domain below which ports of machines have names; without one each has a port of this host.
    pub preview_domain: Option<PreviewDomain>,
    /// What machines start from.
    pub templates: template::Source,
    /// The program and first arguments that run `nullspace_keeper::main`; a directory follows.
    pub volume_keeper: Vec<String>,
    /// Where machines have the bundle of certificate authorities that they trust; the usual variables of
    /// their environment point at it.
    pub ca_file: Option<&'static str>,
}

/// Logging in to machines over SSH.
#[derive(Clone, Debug, Default)]
pub struct SshOptions {
    /// Where to listen.
    pub listen: SshListen,
    /// What clients are told to connect to, if that is not the address.
    pub host: Option<String>,
}

/// Where the SSH server listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SshListen {
    /// At the address of the API, one port above its own if that is free, else at any.
    #[default]
    Beside,
    /// Here; port 0 takes a free one.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl std::str::FromStr for SshListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| "neither an address with a port nor `off`".to_owned()),
        }
    }
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeOptions")
            .field("listen", &self.listen)
            .field("data_dir", &self.data_dir)
            .field("config", &self.config)
            .field("metrics_listen", &self.metrics_listen)
            .field("ssh", &self.ssh)
            .field("preview_domain", &self.preview_domain)
            .field("templates", &self.templates)
            .finish_non_exhaustive()
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another server has it.
    #[error("another server uses the data directory {}", .0.display())]
    InUse(PathBuf),
    /// The record cannot be opened.
    #[error("cannot open the record")]
    Store(#[from] StoreError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The minted key could not be handed over.
    #[error("cannot keep the new api key for the local user")]
    Key(#[source] std::io::Error),
    /// A later step failed.
    #[error("cannot {step}: {reason}")]
    Step {
        /// The step, as a verb phrase.
        step: &'static str,
        /// The reason.
        reason: String,
    },
}

fn step(step: &'static str) -> impl FnOnce(Error) -> ServeError {
    move |error| ServeError::Step {
        step,
        reason: match error.context {
            Some(context) => format!("{}: {context}", error.message),
            None => error.message,
        },
    }
}

/// Serves until `stop` is done, then drains. Machines stay.
///
/// # Errors
/// [`ServeError`] when it cannot start.
pub async fn serve(
    options: ServeOptions,
    engine: Arc<dyn Engine>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let server = Server::start(options, engine).await?;
    stop.await;
    server.stop().await;
    Ok(())
}

/// A server that accepts requests.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    app: AppState,
    connections: TaskTracker,
    accepting: tokio::task::JoinHandle<()>,
    /// Held for as long as the data directory is ours.
    _lock: std::fs::File,
}

impl Server {
    /// Starts; when this returns requests are answered.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn start(options: ServeOptions, engine: Arc<dyn Engine>) -> Result<Self, ServeError> {
        let lock = take(&options.data_dir).await?;
        let store = Store::open(&database(&options.data_dir)?)?;
        let (listener, address) = bind(options.listen).await?;
        let metrics_listener = match options.metrics_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let ssh_listener = listen_for_ssh(address, options.ssh.listen).await?;
        let ssh = match &ssh_listener {
            Some((_, address)) => {
                let opened = app::ssh::Ssh::open(&options.data_dir, *address, options.ssh.host);
                Some(opened.map_err(|source| ServeError::DataDir {
                    path: options.data_dir.join("keys"),
                    source,
                })?)
            }
            None => None,
        };
        let seal =
            app::seal::Seal::open(&options.data_dir).map_err(|source| ServeError::DataDir {
                path: options.data_dir.join("keys"),
                source,
            })?;
        let audit = app::audit::Log::open(&options.data_dir, options.config.audit_mb).map_err(
            |source| ServeError::DataDir {
                path: options.data_dir.join("audit"),
                source,
            },
        )?;
        let app: AppState = Arc::new(App {
            audit,
            config: options.config,
            data_dir: options.data_dir,
            ca_file: options.ca_file,
            counts: app::count::Counts::new(&store),
            store,
            engine,
            templates: template::Registry::default(),
            keys: key::Ring::default(),
            machines: machine::Live::default(),
            outputs: OnceLock::new(),
            seal: Arc::new(seal),
            previews: preview::Previews::new(options.preview_domain),
            doors: app::Doors {
                address,
                connections: TaskTracker::new(),
            },
            agents: app::agent::Agents::default(),
            ssh,
            volumes: app::volume::State::new(options.volume_keeper),
            pools: app::pool::Pools::default(),
            snapshots: app::snapshot::Uses::default(),
            spelling: app::key::Spelling::default(),
            uploads: app::upload::Uploads::default(),
            webhooks: app::webhook::Webhooks::default(),
            code: app::code::State::default(),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        keys(&app, options.bootstrap_key, options.on_minted_key).await?;
        template::start(&app, options.templates)
            .await
            .map_err(step("open the templates"))?;
        app::volume::start(&app)
            .await
            .map_err(step("open the volumes"))?;
        app::snapshot::open(&app).map_err(step("make the place for snapshots"))?;
        // Subscribed first: what ends while the record is compared is not missed.
        let exits = app.engine.exits();
        let denials = app.engine.denials();
        machine::adopt(&app)
            .await
            .map_err(step("compare the record with the engine"))?;
        app::snapshot::sweep(&app)
            .await
            .map_err(step("remove unfinished snapshots"))?;
        tokio::spawn(machine::watch_exits(app.clone(), exits));
        tokio::spawn(app::egress::watch_denials(app.clone(), denials));
        preview::restore(&app)
            .await
            .map_err(step("open previews again"))?;
        template::restore(&app)
            .await
            .map_err(step("end what made templates"))?;
        app::agent::start(&app)
            .await
            .map_err(step("carry on with agent runs"))?;
        app::webhook::start(&app)
            .await
            .map_err(step("carry on with webhooks"))?;
        app::code::start(&app)
            .await
            .map_err(step("carry on with code runs"))?;
        tokio::spawn(forget(app.clone()));
        app.tasks.spawn(preview::keep_up(app.clone()));
        app.tasks.spawn(app::volume::keep_up(app.clone()));
        app.tasks.spawn(app::pool::keep_up(app.clone()));
        app.tasks.spawn(app::share::keep_up(app.clone()));
        let connections = TaskTracker::new();
        let accepting = accept(&app, listener, connections.clone());
        let metrics_address = metrics_listener.as_ref().map(|(_, address)| *address);
        if let Some((listener, address)) = metrics_listener {
            let router = crate::http::metrics_alone(app.clone());
            app.tasks.spawn(nullspace_gateway::accept(
                listener,
                move |_| TowerToHyperService::new(router.clone()),
                app.stopping.clone(),
                connections.clone(),
            ));
            tracing::info!(%address, "listening for prometheus");
        }
        if let Some((listener, address)) = ssh_listener {
            app.tasks.spawn(crate::ssh::accept(app.clone(), listener));
            tracing::info!(%address, "listening for ssh");
        }
        tracing::info!(%address, engine = app.engine.name(), "listening");
        Ok(Self {
            address,
            metrics_address,
            app,
            connections,
            accepting,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics` is for everybody.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where it listens for SSH.
    #[must_use]
    pub fn ssh_address(&self) -> Option<SocketAddr> {
        self.app.ssh.as_ref().map(|ssh| ssh.address)
    }

    /// The application behind it.
    #[must_use]
    pub fn app(&self) -> &AppState {
        &self.app
    }

    /// Stops accepting, lets requests under way finish for a while, and ends. Machines stay.
    pub async fn stop(self) {
        let limit = Duration::from_secs(self.app.config.drain_secs);
        self.app.stopping.cancel();
        self.connections.close();
        self.app.tasks.close();
        self.app.doors.connections.close();
        let drained = async {
            let _ = self.accepting.await;
            self.connections.wait().await;
            self.app.doors.connections.wait().await;
            self.app.tasks.wait().await;
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!("requests were still under way when the time to finish was over");
        }
        preview::flush(&self.app).await;
        preview::close_all(&self.app);
        self.app.volumes.close();
        // Whatever else was queued is on disk when this comes back.
        let _ = self.app.store.write(|_| Ok::<_, StoreError>(())).await;
        tracing::info!("stopped");
    }
}

/// Takes the connections of the API's listener: those of requests for the API, and for ports of machines if these have
/// names.
/// A request of the API, with where it comes from.
fn from(client: IpAddr, mut request: Request<Incoming>) -> Request<Incoming> {
    request.extensions_mut().insert(crate::http::Remote(client));
    request
}

fn accept(
    app: &AppState,
    listener: TcpListener,
    connections: TaskTracker,
) -> tokio::task::JoinHandle<()> {
    let router = crate::http::router(app.clone());
    let stopping = app.stopping.clone();
    if app.previews.domain.is_none() {
        let api = move |client| {
            let api = TowerToHyperService::new(router.clone());
            service_fn(move |request: Request<Incoming>| api.call(from(client, request)))
        };
        return tokio::spawn(nullspace_gateway::accept(
            listener,
            api,
            stopping,
            connections,
        ));
    }
    let app = app.clone();
    let by_name = move |client| {
        let (app, api) = (app.clone(), TowerToHyperService::new(router.clone()));
        service_fn(move |request: Request<Incoming>| {
            let (app, api) = (app.clone(), api.clone());
            async move {
                let named =
                    |domain: &PreviewDomain| domain.addressee(request.uri(), request.headers());
                let (machine, port) = match app.previews.domain.as_ref().map(named) {
                    None | Some(Ok(Addressee::Api)) => {
                        return api.call(from(client, request)).await;
                    }
                    Some(Ok(Addressee::Port(machine, port))) => (machine, port),
                    Some(Err(refusal)) => return Ok(refuse(&refusal).map(Body::new)),
                };
                Ok(match app.previews.route(&machine, port) {
                    Some(route) => pass(&route, client, request).await,
                    None => refuse(&NOBODY),
                }
                .map(Body::new))
            }
        })
    };
    tokio::spawn(nullspace_gateway::accept(
        listener,
        by_name,
        stopping,
        connections,
    ))
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let bound = TcpListener::bind(address).await;
    bound
        .and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        })
        .map_err(|source| ServeError::Listen { address, source })
}

/// Opens the port of the SSH server, if it is to have one. Where nobody has said which, one that is taken is no reason
/// not to start: clients are told the port each time.
async fn listen_for_ssh(
    api: SocketAddr,
    listen: SshListen,
) -> Result<Option<(TcpListener, SocketAddr)>, ServeError> {
    let beside = SocketAddr::new(api.ip(), api.port().checked_add(1).unwrap_or(0));
    let (wanted, bound) = match listen {
        SshListen::Off => return Ok(None),
        SshListen::At(address) => (address, TcpListener::bind(address).await),
        SshListen::Beside => match TcpListener::bind(beside).await {
            Err(_) => {
                let any = SocketAddr::new(api.ip(), 0);
                (any, TcpListener::bind(any).await)
            }
            bound => (beside, bound),
        },
    };
    let with_address = |listener: TcpListener| Ok((listener.local_addr()?, listener));
    match bound.and_then(with_address) {
        Ok((address, listener)) => Ok(Some((listener, address))),
        Err(source) => Err(ServeError::Listen {
            address: wanted,
            source,
        }),
    }
}

/// Makes the data directory and locks it: two servers on one record would undo each other's work. One that is ending
/// is waited for a moment: so is a command that it is just starting, which has the lock open until it runs.
async fn take(data_dir: &Path) -> Result<std::fs::File, ServeError> {
    let fail = |source| ServeError::DataDir {
        path: data_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(data_dir).map_err(fail)?;
    let file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("serve.lock"))
        .map_err(fail)?;
    let start = tokio::time::Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < HANDOVER => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ServeError::InUse(data_dir.to_owned()));
            }
            Err(error) => return Err(fail(error.into())),
        }
    }
}

/// The database's path; the file is made for its owner only, and its journals follow it.
fn database(data_dir: &Path) -> Result<PathBuf, ServeError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = data_dir.join("nullspace.db");
    std::fs::File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ServeError::DataDir {
            path: path.clone(),
            source,
        })?;
    Ok(path)
}

async fn keys(app: &App, bootstrap: Option<String>, on_minted: KeySink) -> Result<(), ServeError> {
    let fail = || step("read the api keys");
    if let Some(key) = bootstrap
        .as_deref()
        .map(str::trim)
        .filter(|k| !k.is_empty())
    {
        app.keys
            .register(&app.store, key, "bootstrap")
            .await
            .map_err(fail())?;
    }
    if !app.keys.load(&app.store).await.map_err(fail())? {
        let key = key::mint();
        on_minted(&key).map_err(ServeError::Key)?;
        app.keys
            .register(&app.store, &key, "first")
            .await
            .map_err(fail())?;
    }
    Ok(())
}

async fn forget(app: AppState) {
    loop {
        match machine::forget_old(&app).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "forgot machines that ended long ago"),
            Err(error) => {
                tracing::warn!(context = ?error.context, "old records could not be removed");
            }
        }
        if let Err(error) = app::ssh::forget_old(&app).await {
            tracing::warn!(context = ?error.context, "old ssh grants could not be removed");
        }
        if let Err(error) = preview::forget_old(&app).await {
            tracing::warn!(context = ?error.context, "old grants of previews could not be removed");
        }
        if let Err(error) = app::webhook::forget_old(&app).await {
            tracing::warn!(context = ?error.context, "old events and deliveries could not be removed");
        }
        if let Err(error) = upload::sweep(&app).await {
            tracing::warn!(context = ?error.context, "uploads that are over could not be removed");
        }
        if let Err(error) = template::forget_old(&app).await {
            tracing::warn!(context = ?error.context, "what is left of templates could not be removed");
        }
        if let Err(error) = app::pool::forget_old(&app).await {
            tracing::warn!(context = ?error.context, "what is left of warm pools could not be removed");
        }
        if let Err(error) = app::code::sweep(&app).await {
            tracing::warn!(context = ?error.context, "what is left of code could not be removed");
        }
        tokio::select! {
            () = tokio::time::sleep(FORGET_EVERY) => {}
            () = app.stopping.cancelled() => return,
        }
    }
}

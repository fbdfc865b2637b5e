//! The guest: what answers inside a machine.
//!
//! In a real machine it is process number 1: it reaps, runs commands, moves files and forwards ports, all
//! over `nullspace-protocol` on connections that the host dials. It has no configuration of its own and
//! keeps no state that the host could not lose. `nullspace-engine-native` forks into [`run_as_init`], or starts
//! [`main`] where a machine has a kernel of its own; the fake engine serves [`Guest::serve`] from an ordinary process.
//!
//! What it must not do: load code or data of the machine into itself (no NSS, no locale, no dlopen), die
//! because of anything a process in the machine does, or grow without bound.

#![cfg(target_os = "linux")]

mod alone;
mod error;
mod files;
mod http;
mod listen;
mod login;
mod memory;
mod open;
mod output;
mod pids;
mod process;
mod reaper;
mod search;
mod sftp;
mod shown;
mod staging;
mod terminal;
mod tunnel;
mod unpack;
mod users;
mod watch;

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::net::UnixListener as StdListener},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, atomic::AtomicBool},
};

pub use alone::main;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nullspace_protocol::{CONNECTION_WINDOW, Io, MAX_FRAME, STREAM_WINDOW};
use nullspace_sys::stream::LocalStream;

/// What a guest must know of its machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Environment of every command unless it sets the name itself. Holds secrets: not printed.
    pub env: BTreeMap<String, String>,
    /// Default working directory.
    pub cwd: String,
    /// Where the machine's `/` is: `/` in a real machine, a folder under the fake engine.
    pub root: PathBuf,
    /// Whether this process is the machine's process 1 and reaps orphans.
    pub init: bool,
}

/// One machine's guest. Cheap to clone.
#[derive(Clone)]
pub struct Guest {
    inner: Arc<Inner>,
    /// What connections must begin with, where others could make them.
    secret: Option<alone::Secret>,
}

struct Inner {
    root: PathBuf,
    init: bool,
    defaults: RwLock<Arc<Defaults>>,
    has_own_defaults: AtomicBool,
    processes: process::Table,
    watches: watch::Count,
    publishing: staging::Publishing,
    ports: listen::Ports,
    sftp: sftp::Count,
}

/// What commands have unless they say otherwise.
struct Defaults {
    env: BTreeMap<String, String>,
    cwd: String,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest")
            .field("root", &self.inner.root)
            .finish_non_exhaustive()
    }
}

impl Guest {
    /// Makes a guest and starts its reaper. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the signal handler cannot be installed.
    pub fn new(config: Config) -> io::Result<Self> {
        let processes = process::Table::default();
        reaper::start(processes.clone(), config.init)?;
        let defaults = Defaults {
            env: config.env,
            cwd: config.cwd,
        };
        Ok(Self {
            secret: None,
            inner: Arc::new(Inner {
                root: config.root,
                init: config.init,
                defaults: RwLock::new(Arc::new(defaults)),
                has_own_defaults: AtomicBool::new(false),
                processes,
                watches: watch::Count::default(),
                publishing: staging::Publishing::default(),
                ports: listen::Ports::default(),
                sftp: sftp::Count::default(),
            }),
        })
    }

    fn with_secret(mut self, secret: alone::Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    fn defaults(&self) -> Arc<Defaults> {
        let defaults = self.inner.defaults.read();
        defaults.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For commands that start from now on.
    fn set_defaults(&self, env: BTreeMap<String, String>, cwd: String) {
        let defaults = self.inner.defaults.write();
        *defaults.unwrap_or_else(PoisonError::into_inner) = Arc::new(Defaults { env, cwd });
    }

    /// Answers one host connection until it closes.
    pub async fn serve<S: Io + 'static>(&self, stream: S) {
        let guest = self.clone();
        let service = hyper::service::service_fn(move |request| {
            let guest = guest.clone();
            async move { Ok::<_, std::convert::Infallible>(http::route(&guest, request).await) }
        });
        // A broken connection is the host's business: it dials again.
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .max_concurrent_streams(1024)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    /// Kills every process that was started through this guest (the fake engine's end of a machine).
    pub fn kill_all(&self) {
        self.inner.processes.kill_all();
    }

    /// Where a path of the machine is for this process.
    fn host_path(&self, path: &str) -> PathBuf {
        let root = &self.inner.root;
        if root == Path::new("/") {
            PathBuf::from(path)
        } else {
            root.join(path.trim_start_matches('/'))
        }
    }
}

/// Becomes the machine's process 1: answers connections on `listener` until killed.
///
/// The caller has already entered the machine for good (namespaces, root, identity, limits) and has only
/// one thread.
///
/// # Errors
/// Only when the runtime cannot start or the listener breaks; the machine ends with this process.
pub fn run_as_init(listener: OwnedFd, config: Config) -> io::Result<()> {
    runtime()?.block_on(async move {
        let guest = Guest::new(config)?;
        let listener = StdListener::from(listener);
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let guest = guest.clone();
                    // Not watched for want of memory, say: the host sees it close and dials again.
                    if let Ok(stream) = stream.into_std().and_then(LocalStream::new) {
                        tokio::spawn(async move { guest.serve(stream).await });
                    }
                }
                // Out of descriptors or memory: the machine did that; wait for it to pass.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        }
    })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Threads are for file work that may block; few are enough, idle ones go soon.
        .max_blocking_threads(16)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_stack_size(256 << 10)
        .build()
}

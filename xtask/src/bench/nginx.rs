//! nginx as the reverse proxy of the same upstream.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::wire::Connection;

/// How long it may take to start and to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both processes end with their value.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
    server: Child,
    _way: Way,
}

impl Nginx {
    /// Starts it on a port of its own and waits until it passes a request on.
    pub(crate) fn start(upstream: SocketAddr) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("nullspace-bench-nginx-")
            .tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = config(directory.path(), address, upstream);
        fs::write(directory.path().join("nginx.conf"), config)?;
        let way = Way::open(upstream)?;
        let server = nginx(directory.path()).spawn().context("nginx")?;
        let mut nginx = Self {
            address,
            directory,
            server,
            _way: way,
        };
        nginx.wait()?;
        Ok(nginx)
    }

    fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let error = match Connection::open(self.address).and_then(|mut c| c.get("/")) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let ended = self.server.try_wait()?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.directory.path().join("log"));
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!("{error:#} {last}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Nginx {
    /// Its workers would outlive it if it were killed.
    fn drop(&mut self) {
        let stopped = nginx(self.directory.path()).args(["-s", "stop"]).status();
        let start = Instant::now();
        while stopped.as_ref().is_ok_and(|status| status.success())
            && start.elapsed() < PATIENCE
            && matches!(self.server.try_wait(), Ok(None))
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn nginx(directory: &Path) -> Command {
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(directory)
        .args(["-e", "log", "-c", "nginx.conf"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// What one would write for a proxy that keeps its connections.
fn config(directory: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let own = directory.display();
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {own}/{name};\n"))
        .collect();
    format!(
        "daemon off; user root; worker_processes auto; pid {own}/pid;
         events {{ worker_connections 4096; }}
         http {{
             access_log off;
             {folders}
             keepalive_requests 100000000;
             upstream service {{
                 server {upstream};
                 keepalive 64;
                 keepalive_requests 100000000;
             }}
             server {{
                 listen {address};
                 proxy_http_version 1.1;
                 location / {{
                     proxy_pass http://service;
                     proxy_set_header Connection \"\";
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                     proxy_set_header X-Forwarded-Host $http_host;
                     proxy_set_header X-Forwarded-Proto $scheme;
                 }}
                 location /stream {{
                     proxy_pass http://service;
                     proxy_set_header Connection \"\";
                     proxy_buffering off;
                 }}
                 location /socket {{
                     proxy_pass http://service;
                     proxy_set_header Connection upgrade;
                     proxy_set_header Upgrade $http_upgrade;
                 }}
             }}
         }}"
    )
}

/// Lets other programs than the server connect to one port of one machine. The rule belongs to the process that made
/// it: the kernel removes it when that ends, however that comes about.
pub(crate) struct Way {
    nft: Child,
    /// `nft` ends when this is closed.
    _rules: ChildStdin,
}

impl Way {
    pub(crate) fn open(upstream: SocketAddr) -> Result<Self> {
        /// What the server's packet filter lets through.
        const MARK: u32 = 0x6e73;
        let mut nft = Command::new("nft")
            .arg("--interactive")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nft")?;
        let mut rules = nft.stdin.take().context("nft has no input")?;
        // One line, and before the server's filter, which has priority -10.
        writeln!(
            rules,
            "add table inet nullspace_bench_{} {{ flags owner; chain output {{ \
             type filter hook output priority -150; policy accept; \
             ip daddr {} tcp dport {} ct state new meta mark set {MARK}; }}; }}",
            std::process::id(),
            upstream.ip(),
            upstream.port(),
        )?;
        Ok(Self { nft, _rules: rules })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = self.nft.kill();
        let _ = self.nft.wait();
    }
}

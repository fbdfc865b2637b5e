//! The part that runs in a machine: makes attempts, each in a process of its own, and says how they went.
//!
//! ```text
//!  attack-probe all [ {name, try}, … ]  ──▶  attack-probe one {name, try}  (some at once, each for a while)
//!                                   [ {name, said}, … ]  ◀──  said
//! ```
//! What it says is a machine's word: the other side does not take it for more.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nullspace_sys::attempt;
use serde::{Deserialize, Serialize};

/// How long one attempt may take.
const EACH: Duration = Duration::from_secs(15);
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(3);
/// Attempts at once.
const AT_ONCE: usize = 6;
/// The most of a file that is looked at, in bytes.
const LOOK: u64 = 1 << 20;

/// Something to try.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Try {
    /// One of [`attempt::ALL`].
    Call(String),
    /// Something is in the file.
    Read(PathBuf),
    /// There is an address other than 0 in it.
    ReadAddresses(PathBuf),
    /// The file can be written.
    Write { path: PathBuf, text: String },
    /// The directory can be listed, and something is in it.
    List(PathBuf),
    /// The file has this text in it.
    Find { path: PathBuf, text: String },
    /// The same, through a link that is made first.
    FindThroughLink { path: PathBuf, text: String },
    /// Something takes a connection there.
    Connect(SocketAddr),
    /// The name leads into this host, or to where only hosts should get.
    Resolve(String),
    /// The name leads anywhere.
    ResolveAtAll(String),
}

/// An attempt on its way to the machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) r#try: Try,
}

/// How it went, on its way back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// With what was answered.
    Refused(String),
    /// With what came of it.
    LetThrough(String),
    /// It did not come to an end, or could not be tried.
    Broke(String),
}

/// The whole life of the process in the machine.
pub(super) fn main(kind: &str, what: &str) -> Result<(), String> {
    let said = match kind {
        "serve" => return serve(what).map_err(|error| error.to_string()),
        "address" => own_address().map_err(|e| e.to_string())?,
        "one" => {
            let asked: Asked = serde_json::from_str(what).map_err(|e| e.to_string())?;
            serde_json::to_string(&one(&asked.r#try)).map_err(|e| e.to_string())?
        }
        _ => {
            let asked: Vec<Asked> = serde_json::from_str(what).map_err(|e| e.to_string())?;
            serde_json::to_string(&all(asked)).map_err(|e| e.to_string())?
        }
    };
    std::io::stdout()
        .write_all(said.as_bytes())
        .map_err(|e| e.to_string())
}

/// Port of what [`serve`] answers.
pub(super) const PORT: u16 = 8080;

/// Where this machine is on the host's network: a datagram socket that is connected knows its own end.
fn own_address() -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip().to_string())
}

/// A web server that tells everybody the same, until it is ended.
fn serve(text: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    let length = text.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(answer.as_bytes());
    }
    Ok(())
}

struct Running {
    name: String,
    child: Child,
    until: Instant,
}

fn all(asked: Vec<Asked>) -> Vec<(String, Said)> {
    let mut left = asked.into_iter();
    let mut running: Vec<Running> = Vec::new();
    let mut said = Vec::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(next) = left.next()
        {
            match start(&next) {
                Ok(child) => running.push(Running {
                    name: next.name,
                    child,
                    until: Instant::now() + EACH,
                }),
                Err(error) => said.push((next.name, Said::Broke(error.to_string()))),
            }
        }
        if running.is_empty() {
            return said;
        }
        let mut on = Vec::new();
        for mut one in running {
            match how_it_went(&mut one) {
                Some(how) => said.push((one.name, how)),
                None => on.push(one),
            }
        }
        running = on;
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// `None` while it goes on.
fn how_it_went(one: &mut Running) -> Option<Said> {
    match one.child.try_wait() {
        Ok(None) if Instant::now() < one.until => None,
        Ok(None) => {
            let _ = one.child.kill();
            let _ = one.child.wait();
            Some(Said::Broke("it did not come to an end".into()))
        }
        Ok(Some(status)) => {
            let mut text = String::new();
            if let Some(out) = &mut one.child.stdout {
                let _ = out.take(LOOK).read_to_string(&mut text);
            }
            // One that was ended for what it did was refused.
            let ended = |_| Said::Refused(format!("ended with {status}"));
            Some(serde_json::from_str(&text).unwrap_or_else(ended))
        }
        Err(error) => Some(Said::Broke(error.to_string())),
    }
}

fn start(asked: &Asked) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args([super::PROBE, "one"])
        .arg(serde_json::to_string(asked)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

fn one(attempt: &Try) -> Said {
    let tried = match attempt {
        Try::Call(name) => match attempt::ALL.iter().find(|one| one.name == name) {
            Some(call) => call.make().map(|()| "the kernel did it".to_owned()),
            None => return Said::Broke("there is no such attempt".into()),
        },
        Try::Read(path) => beginning(path).and_then(|bytes| match bytes.is_empty() {
            true => Err(std::io::Error::other("nothing is in it")),
            false => Ok("it can be read".to_owned()),
        }),
        Try::ReadAddresses(path) => beginning(path).and_then(|bytes| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let known = text.lines().any(|line| {
                let address = line.split(' ').next().unwrap_or_default();
                address.chars().any(|digit| digit != '0')
            });
            match known {
                true => Ok("it says where things are".to_owned()),
                false => Err(std::io::Error::other("it says nothing")),
            }
        }),
        Try::Write { path, text } => fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map(|()| "it was written".to_owned()),
        Try::List(path) => fs::read_dir(path).and_then(|mut entries| match entries.next() {
            Some(entry) => entry.map(|entry| format!("{:?} is there", entry.file_name())),
            None => Err(std::io::Error::other("nothing is in it")),
        }),
        Try::Find { path, text } => find(path, text),
        Try::FindThroughLink { path, text } => {
            let link = std::env::temp_dir().join(format!("link-{}", std::process::id()));
            std::os::unix::fs::symlink(path, &link).and_then(|()| find(&link, text))
        }
        Try::Connect(address) => TcpStream::connect_timeout(address, CONNECT)
            .map(|_| "something took the connection".to_owned()),
        Try::Resolve(name) => addresses(name).and_then(|all| {
            match all.iter().find(|address| !is_elsewhere(address)) {
                Some(address) => Ok(format!("it leads to {address}")),
                None => Err(std::io::Error::other("it leads nowhere near")),
            }
        }),
        Try::ResolveAtAll(name) => addresses(name).map(|all| format!("it leads to {all:?}")),
    };
    match tried {
        Ok(what) => Said::LetThrough(what),
        Err(error) => Said::Refused(short(&error)),
    }
}

/// The kernel's words, without the number.
fn short(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn beginning(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn find(path: &Path, text: &str) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LOOK).read_to_end(&mut bytes)?;
    match String::from_utf8_lossy(&bytes).contains(text) {
        true => Ok("it is there".to_owned()),
        false => Err(std::io::Error::other("it is not in there")),
    }
}

fn addresses(name: &str) -> std::io::Result<Vec<IpAddr>> {
    let all: Vec<IpAddr> = (name, 80).to_socket_addrs()?.map(|a| a.ip()).collect();
    match all.is_empty() {
        true => Err(std::io::Error::other("it leads nowhere")),
        false => Ok(all),
    }
}

fn is_elsewhere(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()),
        IpAddr::V6(v6) => {
            let is_link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            let as_v4 = v6.to_ipv4_mapped().map(IpAddr::V4);
            !(v6.is_loopback() || v6.is_unspecified() || is_link_local)
                && as_v4.is_none_or(|v4| is_elsewhere(&v4))
        }
    }
}

//! An internet of a test's own: a network namespace behind a link, with addresses of the range that is kept for tests
//! of networks (198.18.0.0/15), servers on all of them, and a name server whose names the test makes up.
//!
//! It ends with the test program, however that ends: a process in the namespace waits for it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::host::run;

/// Ports with a server that says hello and repeats what it is told.
pub const PORTS: [u16; 4] = [80, 443, 853, 53];
/// The port where datagrams are counted.
pub const COUNTED: u16 = 9000;

pub struct Internet {
    holder: Child,
    link: String,
    n: u8,
    pub names: Names,
    datagrams: Arc<Mutex<BTreeMap<SocketAddr, usize>>>,
}

/// What the name server answers, and how often it was asked for each name.
#[derive(Clone, Default)]
pub struct Names {
    records: Arc<Mutex<BTreeMap<String, Vec<Record>>>>,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

#[derive(Clone)]
enum Record {
    Address(Ipv4Addr),
    Alias(String),
}

impl Names {
    /// The name has these addresses.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        let records = addresses.iter().map(|a| Record::Address(*a)).collect();
        self.records
            .lock()
            .unwrap()
            .insert(name.to_owned(), records);
    }

    /// The name stands for another.
    pub fn alias(&self, name: &str, target: &str) {
        let records = vec![Record::Alias(target.to_owned())];
        self.records
            .lock()
            .unwrap()
            .insert(name.to_owned(), records);
    }

    /// How often the name server was asked for a name.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }

    /// The reply to a question of one name, for its addresses alone.
    fn reply(&self, question: &[u8]) -> Option<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while *question.get(at)? != 0 {
            let length = usize::from(question[at]);
            labels
                .push(String::from_utf8_lossy(question.get(at + 1..=at + length)?).to_lowercase());
            at += 1 + length;
        }
        let end = at + 5;
        let kind = u16::from_be_bytes([*question.get(at + 1)?, *question.get(at + 2)?]);
        let name = labels.join(".");
        *self.asked.lock().unwrap().entry(name.clone()).or_default() += 1;
        let records = self.records.lock().unwrap();
        let known = records.get(&name);
        let mut answers = Vec::new();
        let mut count = 0u16;
        let mut owner = name;
        while let Some(found) = records.get(&owner).filter(|_| kind == 1) {
            let mut next = None;
            for record in found {
                write_name(&mut answers, &owner);
                let (kind, data) = match record {
                    Record::Address(address) => (1u16, address.octets().to_vec()),
                    Record::Alias(target) => {
                        next = Some(target.clone());
                        let mut data = Vec::new();
                        write_name(&mut data, target);
                        (5, data)
                    }
                };
                answers.extend(kind.to_be_bytes());
                answers.extend([0, 1, 0, 0, 0, 30]);
                answers.extend((data.len() as u16).to_be_bytes());
                answers.extend(data);
                count += 1;
            }
            match next {
                Some(next) => owner = next,
                None => break,
            }
        }
        let code = if known.is_some() { 0 } else { 3 };
        let mut reply = question.get(..2)?.to_vec();
        reply.extend([0x81, 0x80 | code, 0, 1]);
        reply.extend(count.to_be_bytes());
        reply.extend([0, 0, 0, 0]);
        reply.extend(question.get(12..end)?);
        reply.extend(answers);
        Some(reply)
    }
}

fn write_name(to: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        to.push(label.len() as u8);
        to.extend(label.as_bytes());
    }
    to.push(0);
}

impl Internet {
    pub fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        // Test programs that run at the same time keep out of each other's way.
        let first = (std::process::id() % 16) as u8 * 16;
        let n = first + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
        let link = format!("nsi{n}");
        // Of a program that was killed at the wrong moment.
        let _ = Command::new("ip")
            .args(["link", "delete", &link])
            .stderr(Stdio::null())
            .status();
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo here; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let pid = holder.id().to_string();
        let (near, far) = (format!("198.19.{n}.1/30"), format!("198.19.{n}.2/30"));
        let peer = [
            "link", "add", &link, "type", "veth", "peer", "name", "wan", "netns", &pid,
        ];
        run("ip", &peer);
        run("ip", &["address", "add", &near, "dev", &link]);
        run("ip", &["link", "set", &link, "up"]);
        let inside = |arguments: &[&str]| {
            let command = ["--target", &pid, "--net", "ip"];
            run("nsenter", &[&command, arguments].concat());
        };
        inside(&["link", "set", "lo", "up"]);
        inside(&["address", "add", &far, "dev", "wan"]);
        inside(&["link", "set", "wan", "up"]);
        inside(&["route", "add", "default", "via", &format!("198.19.{n}.1")]);
        let internet = Self {
            holder,
            link,
            n,
            names: Names::default(),
            datagrams: Arc::default(),
        };
        // Public ones, and private ones that only a router should lead to.
        let link_local = format!("{}/32", internet.link_local());
        for net in [
            format!("198.18.{n}.0/24"),
            internet.private_net(),
            link_local,
        ] {
            inside(&["route", "add", "local", &net, "dev", "lo"]);
            run(
                "ip",
                &["route", "add", &net, "via", &format!("198.19.{n}.2")],
            );
        }
        internet.serve();
        internet
    }

    /// One of its addresses.
    pub fn at(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.n, last)
    }

    /// One of its addresses that looks like one of somebody's own network.
    pub fn private(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.n, last)
    }

    /// One of its addresses in the range where clouds keep their metadata.
    pub fn link_local(&self) -> Ipv4Addr {
        Ipv4Addr::new(169, 254, self.n, 77)
    }

    fn private_net(&self) -> String {
        format!("192.168.{}.0/24", self.n)
    }

    pub fn net(&self) -> String {
        format!("198.18.{}.0/24", self.n)
    }

    /// A file that makes a host ask this internet's name server.
    pub fn resolv_conf(&self, directory: &Path) -> std::path::PathBuf {
        let path = directory.join("resolv.conf");
        std::fs::write(&path, format!("nameserver {}\n", self.at(53))).unwrap();
        path
    }

    /// How many datagrams came from anywhere to the counting port.
    pub fn datagrams(&self) -> usize {
        self.datagrams.lock().unwrap().values().sum()
    }

    /// Sockets belong to the network that their thread was in when it made them.
    fn serve(&self) {
        let path = format!("/proc/{}/ns/net", self.holder.id());
        let (names, datagrams) = (self.names.clone(), self.datagrams.clone());
        let name_server = self.at(53);
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            let network = File::open(path).unwrap();
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            for port in PORTS {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        std::thread::spawn(move || greet(stream));
                    }
                });
            }
            let counted = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, COUNTED)).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((_, from)) = counted.recv_from(&mut buffer) {
                    *datagrams.lock().unwrap().entry(from).or_default() += 1;
                }
            });
            // Who asks an address wants the reply from there.
            let questions = UdpSocket::bind((name_server, 53)).unwrap();
            ready.send(()).unwrap();
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = questions.recv_from(&mut buffer) {
                if let Some(reply) = names.reply(&buffer[..length]) {
                    let _ = questions.send_to(&reply, from);
                }
            }
        });
        is_ready.recv().unwrap();
    }
}

fn greet(mut stream: TcpStream) {
    let hello = format!("hello from {}\n", stream.local_addr().unwrap().ip());
    if stream.write_all(hello.as_bytes()).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["link", "delete", &self.link])
            .status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

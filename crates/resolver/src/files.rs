//! The host's `/etc/hosts` and `/etc/resolv.conf`, read again when they change.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::Ipv4Net;

/// What is read of a file at most, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Addresses of one name that are used at most.
const MAX_ADDRESSES: usize = 16;

/// Name servers that are used at most.
const MAX_SERVERS: usize = 8;

/// The DNS port.
const PORT: u16 = 53;

/// A file and what it says. Looking whether it changed is one `stat`.
pub(crate) struct Watched<T> {
    path: PathBuf,
    parse: Box<dyn Fn(&str) -> T + Send + Sync>,
    state: Mutex<(Option<Stamp>, Arc<T>)>,
}

/// Device, inode, size, and the times of content and inode to the nanosecond.
type Stamp = (u64, u64, u64, [i64; 4]);

impl<T> Watched<T> {
    pub(crate) fn new(path: PathBuf, parse: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        let empty = Arc::new(parse(""));
        Self {
            path,
            parse: Box::new(parse),
            state: Mutex::new((None, empty)),
        }
    }

    /// What the file says now; a file that cannot be read says nothing.
    pub(crate) fn get(&self) -> Arc<T> {
        let stamp = fs::metadata(&self.path).ok().map(|m| {
            (
                m.dev(),
                m.ino(),
                m.size(),
                [m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()],
            )
        });
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != stamp {
            let text = match stamp.map(|_| self.read()) {
                Some(Ok(text)) => text,
                Some(Err(error)) => {
                    tracing::warn!(path = %self.path.display(), %error, "name file not read");
                    String::new()
                }
                None => String::new(),
            };
            *state = (stamp, Arc::new((self.parse)(&text)));
        }
        Arc::clone(&state.1)
    }

    fn read(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        fs::File::open(&self.path)?
            .take(MAX_FILE)
            .read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The host's own names, without those that only mean something on the host itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Hosts {
    names: HashMap<String, Vec<Ipv4Addr>>,
}

impl Hosts {
    pub(crate) fn parse(text: &str, hidden: &[Ipv4Net]) -> Self {
        let mut names: HashMap<String, Vec<Ipv4Addr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(Ok(address)) = words.next().map(str::parse::<Ipv4Addr>) else {
                continue;
            };
            if hidden.iter().any(|net| net.contains(address)) {
                continue;
            }
            for name in words {
                let found = names
                    .entry(name.trim_end_matches('.').to_ascii_lowercase())
                    .or_default();
                if found.len() < MAX_ADDRESSES && !found.contains(&address) {
                    found.push(address);
                }
            }
        }
        Self { names }
    }

    /// The addresses of a lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&[Ipv4Addr]> {
        self.names.get(name).map(Vec::as_slice)
    }
}

/// The name servers in a `resolv.conf`.
pub(crate) fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next()? == "nameserver").then(|| words.next())?
        })
        .filter_map(server)
        .take(MAX_SERVERS)
        .collect()
}

/// An address, or a link-local IPv6 address with its interface number after `%`.
fn server(word: &str) -> Option<SocketAddr> {
    match word.split_once('%') {
        None => Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, PORT)),
        Some((address, scope)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            let index = scope.parse().ok().or_else(|| {
                let index = format!("/sys/class/net/{scope}/ifindex");
                if scope.contains('/') {
                    None
                } else {
                    fs::read_to_string(index).ok()?.trim().parse().ok()
                }
            })?;
            Some(SocketAddrV6::new(address, PORT, 0, index).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hidden_by_default;
    use proptest::prelude::*;

    #[test]
    fn the_hosts_own_names_are_left_out() {
        let hosts = Hosts::parse(
            "127.0.0.1 localhost thishost\n127.0.1.1 thishost.corp.example\n0.0.0.0 blocked.example\n\
             169.254.169.254 metadata\n::1 ip6-localhost\n10.0.0.5\tGit.corp.example git # 10.0.0.6 x\n\
             10.0.0.7 git\nnonsense git\n10.0.0.8\n",
            &hidden_by_default(),
        );
        assert_eq!(hosts.names.len(), 2);
        assert_eq!(
            hosts.get("git.corp.example"),
            Some([Ipv4Addr::new(10, 0, 0, 5)].as_slice())
        );
        assert_eq!(hosts.get("git").unwrap().len(), 2);
    }

    #[test]
    fn name_servers() {
        let servers = parse_resolv_conf(
            "# x\nsearch corp.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n nameserver fe80::1%3\n\
             nameserver\nnameserver bad\nnameserver fe80::1%../x\noptions edns0\n",
        );
        let text: Vec<_> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%3]:53"]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let watched = Watched::new(path.clone(), str::to_owned);
        assert_eq!(*watched.get(), "");
        fs::write(&path, "one").unwrap();
        assert_eq!(*watched.get(), "one");
        assert!(Arc::ptr_eq(&watched.get(), &watched.get()));
        // As editors and network managers do it.
        fs::write(dir.path().join("new"), "two").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(*watched.get(), "two");
        fs::remove_file(&path).unwrap();
        assert_eq!(*watched.get(), "");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(?s).{0,300}", line in "(nameserver|10.0.0.1|::1|[a-z.%0-9: ]){0,20}") {
            Hosts::parse(&text, &[]);
            Hosts::parse(&line, &[]);
            parse_resolv_conf(&text);
            parse_resolv_conf(&line);
        }
    }
}

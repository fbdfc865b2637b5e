//! How ports of machines are called from outside: by a port of this host, or by a name.

use std::{net::Ipv6Addr, str::FromStr};

use http::{HeaderMap, StatusCode, Uri, header, uri::Authority};
use nullspace_api::{error::code, id};

use crate::Refusal;

/// The longest domain; a name below it has up to 35 more.
const MAX_DOMAIN: usize = 200;

/// The domain below which ports of machines have names: `8080-mch-….preview.example.com`.
///
/// As text: the domain alone is reached at the port of the API, by plain HTTP. With a scheme, and a port if it is not
/// the scheme's own, it is what a proxy in front makes of that: `https://preview.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewDomain {
    name: String,
    https: bool,
    port: Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    /// That of the API.
    Ours,
    /// That of the scheme.
    Default,
    /// This one.
    Is(u16),
}

impl FromStr for PreviewDomain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().trim_end_matches('/').to_ascii_lowercase();
        let (https, rest, default) = match text.split_once("://") {
            None => (false, text.as_str(), Port::Ours),
            Some(("https", rest)) => (true, rest, Port::Default),
            Some(("http", rest)) => (false, rest, Port::Default),
            Some((scheme, _)) => return Err(format!("not http or https: {scheme:?}")),
        };
        let (name, port) = match rest.split_once(':') {
            None => (rest, default),
            Some((name, port)) => match port.parse() {
                Ok(port) if port > 0 => (name, Port::Is(port)),
                _ => return Err(format!("not a port: {port:?}")),
            },
        };
        let label = |label: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_number = |label: &str| label.chars().all(|c| c.is_ascii_digit());
        let is_name = name.len() <= MAX_DOMAIN
            && name.split('.').all(label)
            && !name.rsplit('.').next().is_some_and(is_number);
        if !is_name {
            return Err("not the name of a domain, such as preview.example.com".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            https,
            port,
        })
    }
}

/// Whom a request is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Addressee {
    /// The API.
    Api,
    /// A port of a machine, which may not be there.
    Port(String, u16),
}

impl PreviewDomain {
    /// `http` or `https`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// The name of a port, with a port if its users have to say one. `api` is the port of the API.
    #[must_use]
    pub fn authority(&self, machine: &str, port: u16, api: u16) -> String {
        let name = format!("{port}-{}.{}", machine.replacen('_', "-", 1), self.name);
        match self.port {
            Port::Default => name,
            Port::Is(port) => format!("{name}:{port}"),
            Port::Ours => format!("{name}:{api}"),
        }
    }

    /// Whom a request is for, by the one host that it names.
    ///
    /// # Errors
    /// For one that names none or several, or a name under the domain that no machine can have.
    pub fn addressee(&self, uri: &Uri, headers: &HeaderMap) -> Result<Addressee, Refusal> {
        let invalid = |message| Refusal {
            status: StatusCode::BAD_REQUEST,
            code: code::INVALID_REQUEST,
            message,
        };
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(invalid("host: one is needed, and no more"));
        };
        let host: Authority = host
            .to_str()
            .ok()
            .filter(|host| !host.contains('@'))
            .and_then(|host| host.parse().ok())
            // What stands behind it may be anything to the parser.
            .filter(
                |host: &Authority| match host.as_str().strip_prefix(host.host()) {
                    Some("") => true,
                    Some(rest) => rest
                        .strip_prefix(':')
                        .is_some_and(|port| port.parse::<u16>().is_ok()),
                    None => false,
                },
            )
            .filter(|host| is_name_or_address(host.host()))
            .ok_or_else(|| invalid("host: is not the name of a host"))?;
        if uri.authority().is_some_and(|named| *named != host) {
            return Err(invalid("host: the request names two"));
        }
        let name = host.host().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let Some(label) = name.strip_suffix(&self.name) else {
            return Ok(Addressee::Api);
        };
        let Some(label) = label.strip_suffix('.') else {
            // The domain itself, or another that ends like it.
            return Ok(Addressee::Api);
        };
        let (machine, port) = parse(label).ok_or(NOBODY)?;
        Ok(Addressee::Port(machine, port))
    }
}

/// Nobody has this name.
pub const NOBODY: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: code::NOT_FOUND,
    message: "no preview has this name: its machine has ended, or the port was never previewed",
};

/// In brackets there is an address, and not what the parser takes for one.
fn is_name_or_address(host: &str) -> bool {
    match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => true,
    }
}

/// `8080-mch-…`.
fn parse(label: &str) -> Option<(String, u16)> {
    let (port, machine) = label.split_once('-')?;
    if port.starts_with('0') || !port.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let prefix = id::MACHINE.trim_end_matches('_');
    let rest = machine.strip_prefix(prefix)?.strip_prefix('-')?;
    let is_id = !rest.is_empty()
        && rest.len() <= 60
        && rest
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    is_id.then_some((format!("{}{rest}", id::MACHINE), port.parse().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn domain(text: &str) -> PreviewDomain {
        text.parse().unwrap()
    }

    #[test]
    fn domains_say_how_they_are_reached() {
        for (text, authority, https) in [
            (
                "preview.example.com",
                "80-mch-a1.preview.example.com:3000",
                false,
            ),
            (
                "https://Preview.Example.com/",
                "80-mch-a1.preview.example.com",
                true,
            ),
            ("https://p.example:8443", "80-mch-a1.p.example:8443", true),
            ("http://p.example", "80-mch-a1.p.example", false),
            ("localhost", "80-mch-a1.localhost:3000", false),
        ] {
            let domain = domain(text);
            assert_eq!(domain.authority("mch_a1", 80, 3000), authority, "{text}");
            assert_eq!(domain.is_https(), https, "{text}");
        }
        for text in [
            "",
            "127.0.0.1",
            "ftp://p.example",
            "a..b",
            "-a.b",
            "a b",
            "p.example:0",
            "p.example:x",
            "p.example/path",
            "user@p.example",
            "*.p.example",
            "[::1]",
            "https://",
        ] {
            assert!(text.parse::<PreviewDomain>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_host_name_decides() {
        let domain = domain("p.example");
        let ask = |uri: &str, hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().unwrap());
            }
            domain.addressee(&uri.parse().unwrap(), &headers)
        };
        let port = |machine: &str, port| Ok(Addressee::Port(machine.into(), port));
        for host in [
            "8080-mch-a1.p.example",
            "8080-mch-a1.p.example:3000",
            "8080-MCH-A1.P.Example.",
        ] {
            assert_eq!(ask("/", &[host]), port("mch_a1", 8080), "{host}");
        }
        for host in [
            "p.example",
            "127.0.0.1:3000",
            "[::1]:3000",
            "[::1]",
            "xp.example",
            "8080-mch-a1.p.example.org",
            "localhost",
        ] {
            assert_eq!(ask("/", &[host]), Ok(Addressee::Api), "{host}");
        }
        // Nothing below the domain is the API.
        for host in [
            "api.p.example",
            "a.8080-mch-a1.p.example",
            "8080.p.example",
            "0-mch-a1.p.example",
            "08080-mch-a1.p.example",
            "80800-mch-a1.p.example",
            "8080-mch-.p.example",
            "8080-mch-a_1.p.example",
            "8080-mch-a1-b.p.example",
            "-mch-a1.p.example",
            "+80-mch-a1.p.example",
            ".p.example",
            "..p.example",
        ] {
            assert!(ask("/", &[host]).is_err(), "{host}");
        }
        for hosts in [
            vec![],
            vec!["a", "b"],
            vec!["8080-mch-a1.p.example", "8080-mch-a1.p.example"],
            vec![""],
            vec!["a b"],
            vec!["a/b"],
            vec!["user@8080-mch-a1.p.example"],
            vec!["8080-mch-a1.p.example:x"],
            vec!["8080-mch-a1.p.example:"],
            vec!["[].p.example"],
            vec!["[]8080-mch-a1.p.example:80"],
            vec!["[::1]:80.p.example"],
            vec!["[8080-mch-a1.p.example:80]"],
            vec!["[v1.p.example]"],
        ] {
            let refused = ask("/", &hosts).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{hosts:?}");
        }
        // A request with a whole address must not name another host in it.
        let uri = "http://8080-mch-a1.p.example/";
        assert_eq!(ask(uri, &["8080-mch-a1.p.example"]), port("mch_a1", 8080));
        assert!(ask(uri, &["127.0.0.1"]).is_err());
        assert!(ask("http://127.0.0.1/", &["8080-mch-a1.p.example"]).is_err());
    }
}

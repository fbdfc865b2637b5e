//! Which receivers are talked to: the server must not be a way to what its callers cannot reach.
//!
//! A host name is parsed once, resolved once for each connection, and the addresses that passed are the ones that are
//! dialled.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// The setting that lets private receivers be.
pub(super) const SETTING: &str = "webhook_private_receivers";
/// The longest URL, in bytes.
const MAX_URL: usize = 2048;

/// Why an address is not talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    /// Only with the setting.
    Private,
    /// Never.
    Never,
}

/// Reads the URL of a receiver.
///
/// # Errors
/// Says what is wrong with it.
pub(super) fn parse(text: &str) -> Result<Url, &'static str> {
    if text.len() > MAX_URL {
        return Err("is over 2048 bytes");
    }
    let url = Url::parse(text).map_err(|_| "is not a URL")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with https:// or http://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("has no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or a password: use the signing secret");
    }
    if url.fragment().is_some() {
        return Err("must not have a fragment");
    }
    if url.port() == Some(0) {
        return Err("port 0 cannot be reached");
    }
    Ok(url)
}

/// A receiver that is not talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is {}", self.what())]
pub(super) struct Refused {
    host: String,
    never: bool,
}

impl Refused {
    fn what(&self) -> String {
        if self.never {
            "a link-local, multicast or machine's address, which webhooks are never sent to".into()
        } else {
            format!("a private address; the server's setting `{SETTING}` would allow it")
        }
    }
}

/// The addresses of a host that may be dialled.
///
/// # Errors
/// [`Refused`] when it has others only.
pub(super) fn allowed(
    host: &str,
    addresses: impl IntoIterator<Item = IpAddr>,
    private: bool,
) -> Result<Vec<IpAddr>, Refused> {
    let mut never = false;
    let mut open = Vec::new();
    for address in addresses {
        match verdict(address) {
            Verdict::Open => open.push(address),
            Verdict::Private if private => open.push(address),
            Verdict::Private => {}
            Verdict::Never => never = true,
        }
    }
    if open.is_empty() {
        return Err(Refused {
            host: host.to_owned(),
            never,
        });
    }
    Ok(open)
}

/// Checks a host that is an address: those are dialled without asking [`Checked`].
///
/// # Errors
/// [`Refused`].
pub(super) fn check_literal(url: &Url, private: bool) -> Result<(), Refused> {
    let host = url.host_str().unwrap_or_default();
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => allowed(host, [address], private).map(drop),
        Err(_) => Ok(()),
    }
}

fn verdict(address: IpAddr) -> Verdict {
    match address {
        IpAddr::V4(v4) => verdict_v4(v4),
        IpAddr::V6(v6) => verdict_v6(v6),
    }
}

fn verdict_v4(address: Ipv4Addr) -> Verdict {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        // "This network", multicast, broadcast; link-local, where clouds keep credentials.
        (0, ..) | (224..=239, ..) | (169, 254, _) => Verdict::Never,
        _ if address.is_broadcast() => Verdict::Never,
        // Machines.
        (10, 128..=255, _) => Verdict::Never,
        (127 | 10 | 240..=255, ..)
        | (172, 16..=31, _)
        | (192, 168, _)
        | (100, 64..=127, _)
        | (192, 0, 0 | 2)
        | (198, 18 | 19, _)
        | (198, 51, 100)
        | (203, 0, 113) => Verdict::Private,
        _ => Verdict::Open,
    }
}

fn verdict_v6(address: Ipv6Addr) -> Verdict {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 =
        |high: u16, low: u16| verdict_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b, c, d, e, f) {
        _ if address.is_loopback() => Verdict::Private,
        _ if address.is_unspecified() => Verdict::Never,
        // Addresses of version 4 in other clothes: mapped, compatible, translated, 6to4.
        (0, 0, 0, 0, 0, 0 | 0xffff) => v4(g, h),
        (0x64, 0xff9b, ..) => v4(g, h),
        (0x2002, ..) => v4(b, c),
        // Teredo says its server, not its end.
        (0x2001, 0, ..) => Verdict::Never,
        (0xff00.., ..) => Verdict::Never,
        (0xfe80..=0xfebf, ..) => Verdict::Never,
        (0xfc00..=0xfdff, ..)
        | (0xfec0..=0xfeff, ..)
        | (0x2001, 0xdb8, ..)
        | (0x100, 0, 0, 0, ..) => Verdict::Private,
        _ => Verdict::Open,
    }
}

/// Resolves names for the HTTP client, and lets through what may be dialled.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    /// Whether private receivers are talked to.
    pub(super) private: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let found = lookup(name.as_str()).await?;
            let addresses = allowed(name.as_str(), found, private)?;
            let addresses: Addrs = Box::new(addresses.into_iter().map(|ip| SocketAddr::new(ip, 0)));
            Ok(addresses)
        })
    }
}

/// Every address of a name.
pub(super) async fn lookup(name: &str) -> std::io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// As the HTTP client wants it.
pub(super) fn resolver(private: bool) -> Arc<Checked> {
    Arc::new(Checked { private })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, verdict_there) in [
            ("93.184.216.34", Verdict::Open),
            ("10.127.255.255", Verdict::Private),
            ("10.128.0.1", Verdict::Never),
            ("10.255.255.255", Verdict::Never),
            ("127.0.0.1", Verdict::Private),
            ("127.9.9.9", Verdict::Private),
            ("172.16.0.1", Verdict::Private),
            ("172.32.0.1", Verdict::Open),
            ("192.168.1.1", Verdict::Private),
            ("100.64.0.1", Verdict::Private),
            ("100.128.0.1", Verdict::Open),
            ("169.254.169.254", Verdict::Never),
            ("0.0.0.0", Verdict::Never),
            ("224.0.0.1", Verdict::Never),
            ("255.255.255.255", Verdict::Never),
            ("240.0.0.1", Verdict::Private),
            ("198.18.0.1", Verdict::Private),
            ("::1", Verdict::Private),
            ("::", Verdict::Never),
            ("::ffff:127.0.0.1", Verdict::Private),
            ("::ffff:169.254.169.254", Verdict::Never),
            ("::ffff:8.8.8.8", Verdict::Open),
            ("64:ff9b::a9fe:a9fe", Verdict::Never),
            ("2002:7f00:1::", Verdict::Private),
            ("fe80::1", Verdict::Never),
            ("fd00:ec2::254", Verdict::Private),
            ("ff02::1", Verdict::Never),
            ("2606:4700::1111", Verdict::Open),
        ] {
            assert_eq!(
                verdict(address.parse().unwrap()),
                verdict_there,
                "{address}"
            );
        }
    }

    #[test]
    fn urls() {
        for wrong in [
            "",
            "example.com/hook",
            "ftp://example.com",
            "file:///etc/passwd",
            "https://",
            "https://user@example.com/",
            "https://:pw@example.com/",
            "https://example.com/#x",
            "https://example.com:0/",
            &format!("https://example.com/{}", "x".repeat(2048)),
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        // However an address is written, it is one address.
        for written in [
            "127.0.0.1",
            "0x7f.1",
            "2130706433",
            "[::1]",
            "[::ffff:7f00:1]",
            "127.1",
        ] {
            let url = parse(&format!("http://{written}/")).unwrap();
            assert!(check_literal(&url, false).is_err(), "{written}");
            assert!(check_literal(&url, true).is_ok(), "{written}");
        }
        let url = parse("http://169.254.169.254/").unwrap();
        assert!(check_literal(&url, true).is_err());
    }

    #[tokio::test]
    async fn names_are_checked_where_they_are_resolved() {
        let resolve = async |private: bool| {
            let name: Name = "localhost".parse().unwrap();
            Checked { private }.resolve(name).await
        };
        let Err(refused) = resolve(false).await else {
            panic!("it was let through");
        };
        assert!(refused.to_string().contains(SETTING), "{refused}");
        assert!(resolve(true).await.unwrap().all(|a| a.ip().is_loopback()));
    }
}

//! Addresses of repositories.

use crate::error::{Error, Result};

/// The longest address.
const MAX_URL: usize = 4096;

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remote {
    /// As git is given it.
    pub(super) url: String,
    pub(super) transport: Transport,
}

/// How it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// `http` or `https`.
    Http {
        /// Scheme, host and port, as git spells them when it asks for a credential.
        origin: String,
    },
    /// OpenSSH.
    Ssh,
    /// Git's own, which knows no users.
    Git,
    /// A directory of the machine.
    Local,
}

impl Transport {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Ssh => "ssh",
            Self::Git => "git's own protocol",
            Self::Local => "a path in the machine",
        }
    }
}

impl Remote {
    /// Understands an address as git does, and refuses what git would take for an option or run as a program.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let refuse = |what: &str| {
            Err(Error::invalid(format!("url: {what}")).with_action(
                "give https://host/path, ssh://user@host/path, user@host:path, or an absolute path in the machine",
            ))
        };
        if url.is_empty() || url.len() > MAX_URL || url.chars().any(char::is_control) {
            return refuse("must be one line of text, not longer than 4096 bytes");
        }
        if url.starts_with('-') {
            return refuse("must not begin with -");
        }
        let transport = match url.split_once("://") {
            Some((scheme, rest)) => {
                let authority = rest.split('/').next().unwrap_or_default();
                let (userinfo, host) = match authority.rsplit_once('@') {
                    Some((userinfo, host)) => (Some(userinfo), host),
                    None => (None, authority),
                };
                // A host that begins so would be an option of ssh.
                if host.starts_with('-') || userinfo.is_some_and(|user| user.starts_with('-')) {
                    return refuse("the host must not begin with -");
                }
                let has_password = userinfo.is_some_and(|user| user.contains(':'));
                match scheme {
                    "http" | "https" if userinfo.is_some() => {
                        return refuse(
                            "holds a name or a password, which would stay in the machine; give it as auth",
                        );
                    }
                    _ if has_password => {
                        return refuse("holds a password, which would stay in the machine");
                    }
                    _ if host.is_empty() && scheme != "file" => return refuse("names no host"),
                    "http" | "https" => Transport::Http {
                        origin: format!("{scheme}://{host}"),
                    },
                    "ssh" | "git+ssh" | "ssh+git" => Transport::Ssh,
                    "git" => Transport::Git,
                    "file" => Transport::Local,
                    _ => return refuse("is of a kind that is not allowed"),
                }
            }
            None if url.starts_with('/') => Transport::Local,
            // `ext::program` runs one.
            None => match scp_like(url) {
                Some((host, path))
                    if !host.is_empty()
                        && !host.contains('/')
                        && !path.is_empty()
                        && !path.starts_with(':')
                        && !host.contains("@-") =>
                {
                    Transport::Ssh
                }
                _ => return refuse("is not an address that is understood"),
            },
        };
        Ok(Self {
            url: url.to_owned(),
            transport,
        })
    }

    /// The address that a repository has for a remote. It may hold a name and a password; ours are given all the same.
    ///
    /// # Errors
    /// `invalid_request`.
    pub(super) fn of_repository(url: &str) -> Result<Self> {
        let bare = match url.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let host = authority.rsplit('@').next().unwrap_or_default();
                format!("{scheme}://{host}/{path}")
            }
            _ => url.to_owned(),
        };
        // What it says of the address may not quote it.
        Self::parse(&bare)
    }
}

/// The two sides of `user@host:path`. An IPv6 address is in brackets, so that its own colons are not taken for that one.
fn scp_like(url: &str) -> Option<(&str, &str)> {
    let bracket = url.find('[').filter(|at| !url[..*at].contains([':', '/']));
    let from = match bracket {
        Some(at) => at + url[at..].find(']')?,
        None => 0,
    };
    let colon = from + url[from..].find(':')?;
    Some((&url[..colon], &url[colon + 1..]))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        let transport = |url| Remote::parse(url).unwrap().transport;
        let http = |origin: &str| Transport::Http {
            origin: origin.into(),
        };
        assert_eq!(
            transport("https://h.example/a/b.git"),
            http("https://h.example")
        );
        assert_eq!(transport("http://[::1]:8080/a"), http("http://[::1]:8080"));
        for ssh in ["ssh://git@h:22/a", "git@h:a/b", "h:a", "git@[::1]:a"] {
            assert_eq!(transport(ssh), Transport::Ssh, "{ssh}");
        }
        for local in ["/srv/a", "file:///srv/a"] {
            assert_eq!(transport(local), Transport::Local);
        }
        assert_eq!(transport("git://h/a"), Transport::Git);
    }

    #[test]
    fn addresses_that_are_refused() {
        for url in [
            "",
            "-oProxyCommand=x",
            "--upload-pack=x",
            "ext::sh -c touch% /x",
            "fd::17",
            "ftp://h/a",
            "https://u:p@h/a",
            "https://u@h/a",
            "ssh://u:p@h/a",
            "ssh://-oProxyCommand=x/a",
            "ssh://-x@h/a",
            "u@-h:a",
            "https:///a",
            "relative/path",
            "../up",
            "https://h/a\nb",
            "a::b",
        ] {
            let error = Remote::parse(url).unwrap_err();
            assert_eq!(error.code, "invalid_request", "{url:?}");
        }
    }

    #[test]
    fn what_a_repository_has_may_hold_a_name() {
        let remote = Remote::of_repository("https://old:secret@h:1/a").unwrap();
        assert_eq!(remote.url, "https://h:1/a");
        let error = Remote::of_repository("foo://old:secret@h").unwrap_err();
        assert!(!error.message.contains("secret"));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_is_an_option(url in "\\PC{0,60}") {
            if let Ok(remote) = Remote::parse(&url) {
                prop_assert!(!remote.url.starts_with('-'));
            }
        }
    }
}

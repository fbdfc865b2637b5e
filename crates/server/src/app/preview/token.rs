//! Tokens of grants: what one says, and that this server has said it.
//!
//! `grant.machine.port.kind.end.signature`, with an HMAC-SHA256 of all before. A token alone lets nobody in: its grant is
//! looked up each time.

use crate::app::seal::Seal;

/// The longest text that can be one.
const MAX_TOKEN: usize = 512;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Requests, in their query.
    Http,
    /// WebSockets, in their query.
    Websocket,
    /// Requests of a proxy, in a header.
    ProxyHttp,
    /// WebSockets of a proxy, in a header.
    ProxyWebsocket,
    /// Both, in the cookie of a browser that came with a token of the first kind.
    Session,
}

impl Kind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Http, "http"),
        (Self::Websocket, "ws"),
        (Self::ProxyHttp, "proxy-http"),
        (Self::ProxyWebsocket, "proxy-ws"),
        (Self::Session, "session"),
    ];

    fn word(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(kind, _)| *kind == self)
            .map_or("", |(_, word)| word)
    }

    fn parse(word: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, known)| *known == word)
            .map(|(kind, _)| kind)
    }
}

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claims<'a> {
    pub(super) grant: &'a str,
    pub(super) machine: &'a str,
    pub(super) port: u16,
    pub(super) kind: Kind,
    /// When it is over, in microseconds since 1970.
    pub(super) expires_at: i64,
}

impl<'a> Claims<'a> {
    /// The token that says this.
    pub(super) fn token(&self, seal: &Seal) -> String {
        let Self {
            grant,
            machine,
            port,
            kind,
            expires_at,
        } = self;
        let said = format!("{grant}.{machine}.{port}.{}.{expires_at}", kind.word());
        let signature = seal.token(&signed(&said));
        format!("{said}.{signature}")
    }

    /// What a token says, if this server has made it.
    pub(super) fn read(seal: &Seal, token: &'a str) -> Option<Self> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (said, signature) = token.rsplit_once('.')?;
        if !seal.is_token(&signed(said), signature) {
            return None;
        }
        let mut parts = said.split('.');
        let claims = Self {
            grant: parts.next()?,
            machine: parts.next()?,
            port: parts.next()?.parse().ok()?,
            kind: Kind::parse(parts.next()?)?,
            expires_at: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(claims)
    }
}

/// What is signed: tokens for other things have other words before them.
fn signed(said: &str) -> String {
    format!("preview {said}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_for_and_nothing_else() {
        let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let seal = Seal::open(directory.path()).unwrap();
        for (kind, _) in Kind::ALL {
            let claims = Claims {
                grant: "pvg_1",
                machine: "mch_1",
                port: 8080,
                kind,
                expires_at: 1_790_000_000_000_000,
            };
            let token = claims.token(&seal);
            assert_eq!(Claims::read(&seal, &token), Some(claims));
            // Another server's key, and every single character changed.
            assert!(Claims::read(&Seal::open(other.path()).unwrap(), &token).is_none());
            for at in 0..token.len() {
                let mut bytes = token.clone().into_bytes();
                bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(Claims::read(&seal, &changed).is_none(), "{changed}");
            }
            assert!(Claims::read(&seal, &token[..token.len() - 1]).is_none());
            assert!(Claims::read(&seal, &format!("{token}0")).is_none());
        }
        for text in ["", ".", "a.b", ".....", &"x".repeat(4096)] {
            assert!(Claims::read(&seal, text).is_none(), "{text}");
        }
    }

    #[test]
    fn tokens_for_other_things_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let seal = Seal::open(directory.path()).unwrap();
        let said = "pvg_1.mch_1.80.http.1790000000000000";
        let token = format!("{said}.{}", seal.token(said));
        assert!(Claims::read(&seal, &token).is_none());
    }
}

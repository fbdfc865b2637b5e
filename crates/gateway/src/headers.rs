//! What a request and an answer must not carry over from one connection to the next (RFC 9110, 7.6.1), and what is
//! added on the way.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{PROXY_TOKEN_HEADER, TOKEN_HEADER, guard::SESSION_COOKIE_PREFIX};

/// Always about one connection alone.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
];
/// The same, without a constant of their own.
const MORE_HOP_BY_HOP: [&str; 2] = ["keep-alive", "proxy-connection"];
/// What the gateway reads is none of the application's business.
const OURS: [&str; 2] = [TOKEN_HEADER, PROXY_TOKEN_HEADER];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The protocol that a request wants to change to, or an answer changes to.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wants = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| wants).cloned()
}

/// Takes off what belongs to one connection alone.
pub(crate) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|word| word.trim().parse().ok())
            // How long the body is cannot be declared a matter of one connection.
            .filter(|name| name != header::CONTENT_LENGTH && name != header::HOST)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in MORE_HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Makes an answer's headers those of the answer to the client.
pub(crate) fn answer(headers: &mut HeaderMap) {
    strip(headers);
    let is_ours = |value: &HeaderValue| {
        let name = value.as_bytes().trim_ascii_start();
        name.starts_with(SESSION_COOKIE_PREFIX.as_bytes())
    };
    if headers.get_all(header::SET_COOKIE).iter().any(is_ours) {
        let kept: Vec<HeaderValue> = headers
            .get_all(header::SET_COOKIE)
            .iter()
            .filter(|value| !is_ours(value))
            .cloned()
            .collect();
        headers.remove(header::SET_COOKIE);
        for value in kept {
            headers.append(header::SET_COOKIE, value);
        }
    }
}

/// Takes the sessions of previews out of the cookies: a browser sends those of one port to every other.
fn without_sessions(headers: &mut HeaderMap) {
    let contains = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        bytes
            .windows(SESSION_COOKIE_PREFIX.len())
            .any(|part| part == SESSION_COOKIE_PREFIX.as_bytes())
    };
    if !headers.get_all(header::COOKIE).iter().any(contains) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| {
            let cookies: Vec<&[u8]> = value
                .as_bytes()
                .split(|byte| *byte == b';')
                .map(<[u8]>::trim_ascii)
                .filter(|cookie| !cookie.starts_with(SESSION_COOKIE_PREFIX.as_bytes()))
                .collect();
            HeaderValue::from_bytes(&cookies.join(b"; ".as_slice())).ok()
        })
        .filter(|value| !value.is_empty())
        .collect();
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
}

/// Makes a client's headers those of the request to the machine.
pub(crate) fn forward(headers: &mut HeaderMap, client: IpAddr) {
    for name in OURS {
        headers.remove(name);
    }
    without_sessions(headers);
    // Whether the body is wanted is settled here: it is sent along.
    headers.remove(header::EXPECT);
    let list = match headers.get(&FORWARDED_FOR).and_then(|v| v.to_str().ok()) {
        Some(before) => format!("{before}, {client}"),
        None => client.to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&list) {
        headers.insert(FORWARDED_FOR, value);
    }
    if !headers.contains_key(&FORWARDED_HOST)
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(FORWARDED_HOST, host);
    }
    headers
        .entry(FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static("http"));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        headers
    }

    #[test]
    fn what_belongs_to_one_connection_is_taken_off() {
        let mut seen = headers(&[
            ("connection", "close, x-mine, content-length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-length", "3"),
            ("x-other", "2"),
        ]);
        strip(&mut seen);
        assert_eq!(seen, headers(&[("content-length", "3"), ("x-other", "2")]));
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        let both = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(upgrade(&both).unwrap(), "websocket");
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&headers(&[("connection", "upgrade")])).is_none());
    }

    #[test]
    fn sessions_of_previews_are_between_browser_and_door() {
        let all = |headers: &HeaderMap, name| -> Vec<String> {
            let values = headers.get_all(name).iter();
            values.map(|v| v.to_str().unwrap().to_owned()).collect()
        };
        let mut asked = headers(&[
            (
                "cookie",
                "a=1; nullspace_preview_x_80=secret;b=nullspace_preview_",
            ),
            ("cookie", "nullspace_preview_y_81=secret"),
            ("cookie", "c=3"),
        ]);
        forward(&mut asked, "127.0.0.1".parse().unwrap());
        assert_eq!(all(&asked, "cookie"), ["a=1; b=nullspace_preview_", "c=3"]);
        let mut answered = headers(&[
            ("set-cookie", "mine=1; Path=/"),
            ("set-cookie", " nullspace_preview_x_80=forged"),
        ]);
        answer(&mut answered);
        assert_eq!(all(&answered, "set-cookie"), ["mine=1; Path=/"]);
    }

    #[test]
    fn the_application_learns_who_asked_and_not_the_token() {
        let mut seen = headers(&[
            ("host", "there:80"),
            ("x-forwarded-for", "10.0.0.1"),
            (TOKEN_HEADER, "secret"),
        ]);
        forward(&mut seen, "127.0.0.1".parse().unwrap());
        assert_eq!(seen["x-forwarded-for"], "10.0.0.1, 127.0.0.1");
        assert_eq!(seen["x-forwarded-host"], "there:80");
        assert_eq!(seen["x-forwarded-proto"], "http");
        assert!(!seen.contains_key(TOKEN_HEADER));
    }
}

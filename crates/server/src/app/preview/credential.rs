//! Where a request carries what lets it in, and taking that out of it.

use gateway::{PROXY_TOKEN_HEADER, SESSION_COOKIE_PREFIX};
use http::{
    HeaderMap, HeaderValue, Method, Uri, header,
    uri::{Authority, PathAndQuery},
};
use nullspace_gateway as gateway;

/// The parameter that carries a token.
pub(super) const TOKEN: &str = "edge_token";
/// The parameter that says that the token is in a header.
pub(super) const MARKER: &str = "__ns_preview_transport";

/// What a request came with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    /// Tokens in the query.
    pub(super) query: Vec<String>,
    /// Whether it says that there is one in a header.
    pub(super) marker: bool,
    /// Tokens in the header for proxies; `None` for one that is no text.
    pub(super) proxy: Vec<Option<String>>,
    /// What the door's own cookie holds, if it may count.
    pub(super) session: Option<String>,
}

/// The name of the cookie of a door. Browsers send cookies to every port of a host, so it names machine and port.
pub(super) fn cookie_name(machine: &str, port: u16) -> String {
    format!("{SESSION_COOKIE_PREFIX}{machine}_{port}")
}

impl Given {
    /// Takes the tokens out of a request's query and of where it says that it comes from. Headers that are the
    /// gateway's own it takes off itself.
    ///
    /// # Errors
    /// When there is no way to write what is left; then nothing must pass.
    pub(super) fn take(
        method: &Method,
        uri: &mut Uri,
        headers: &mut HeaderMap,
        cookie: &str,
    ) -> Result<Self, ()> {
        let mut given = Self::default();
        if let Some(query) = uri.query() {
            let rest = given.take_query(query);
            if let Some(rest) = rest {
                let whole = match rest.is_empty() {
                    true => uri.path().to_owned(),
                    false => format!("{}?{rest}", uri.path()),
                };
                let path = PathAndQuery::try_from(whole).map_err(drop)?;
                *uri = Uri::from(path);
            }
        }
        // A page that was opened with a token names its whole address to its own server.
        if let Some(from) = headers.get(header::REFERER)
            && let Some((before, query)) = from.to_str().ok().and_then(|text| text.split_once('?'))
            && let Some(rest) = Self::default().take_query(query)
        {
            let whole = match rest.is_empty() {
                true => before.to_owned(),
                false => format!("{before}?{rest}"),
            };
            let value = HeaderValue::try_from(whole).map_err(drop)?;
            headers.insert(header::REFERER, value);
        }
        let proxies = headers.get_all(PROXY_TOKEN_HEADER).iter();
        given.proxy = proxies
            .map(|value| value.to_str().ok().map(|text| text.trim().to_owned()))
            .collect();
        given.session = session(headers, cookie)
            .filter(|_| is_own_page(method, headers))
            .map(str::to_owned);
        Ok(given)
    }

    /// Notes what is ours in a query; the rest of it, if anything was.
    fn take_query(&mut self, query: &str) -> Option<String> {
        // Almost all have none, and are left as they are.
        if !query.contains(TOKEN) && !query.contains(MARKER) {
            return None;
        }
        let mut found = false;
        let mut rest: Vec<&str> = Vec::new();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                TOKEN => self.query.push(value.to_owned()),
                MARKER => self.marker = true,
                _ => {
                    rest.push(pair);
                    continue;
                }
            }
            found = true;
        }
        found.then(|| rest.join("&"))
    }
}

fn session<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|cookie| cookie.trim().split_once('='))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value)
}

/// Whether a browser says that this comes from the preview's own pages, or from nobody's. Cookies ignore ports: without
/// this, the page of one machine could use the session of another, and read what its WebSockets say.
fn is_own_page(method: &Method, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text("sec-fetch-site")
        && !matches!(site, "same-origin" | "none")
    {
        // A link on another page may lead here; what it leads to, that page does not see.
        let is_link = matches!(*method, Method::GET | Method::HEAD)
            && text("sec-fetch-mode") == Some("navigate");
        if !is_link {
            return false;
        }
    }
    let Some(origin) = text("origin") else {
        return true;
    };
    let host = text("host").and_then(|host| host.parse::<Authority>().ok());
    let origin = origin
        .strip_prefix("http://")
        .map(|rest| (rest, 80))
        .or_else(|| origin.strip_prefix("https://").map(|rest| (rest, 443)))
        .and_then(|(rest, port)| Some((rest.parse::<Authority>().ok()?, port)));
    let (Some(host), Some((origin, default))) = (host, origin) else {
        return false;
    };
    host.host().eq_ignore_ascii_case(origin.host())
        && host.port_u16().unwrap_or(default) == origin.port_u16().unwrap_or(default)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn take(uri: &str, list: &[(&'static str, &str)]) -> (Given, String, HeaderMap) {
        let mut uri: Uri = uri.parse().unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        let given = Given::take(
            &Method::GET,
            &mut uri,
            &mut headers,
            "nullspace_preview_m_80",
        );
        (given.unwrap(), uri.to_string(), headers)
    }

    #[test]
    fn queries_lose_what_is_ours_and_nothing_else() {
        for (uri, left, tokens, marker) in [
            ("/", "/", vec![], false),
            ("/a?b=%20c&&d", "/a?b=%20c&&d", vec![], false),
            ("/?edge_token=t", "/", vec!["t"], false),
            (
                "/a?x=1&edge_token=t&y=%2f",
                "/a?x=1&y=%2f",
                vec!["t"],
                false,
            ),
            ("/?edge_token=t&edge_token=u", "/", vec!["t", "u"], false),
            ("/?__ns_preview_transport=header&a", "/?a", vec![], true),
            ("/?edge_token", "/", vec![""], false),
            ("/?my_edge_token=t", "/?my_edge_token=t", vec![], false),
            ("http://h:1/p?edge_token=t", "/p", vec!["t"], false),
        ] {
            let (given, rest, _) = take(uri, &[]);
            assert_eq!((rest.as_str(), given.marker), (left, marker), "{uri}");
            assert_eq!(given.query, tokens, "{uri}");
        }
    }

    #[test]
    fn the_application_does_not_learn_the_token_from_where_a_request_comes_from() {
        let (given, _, headers) = take("/x.css", &[("referer", "http://h:1/?edge_token=t&a=b")]);
        assert_eq!(given, Given::default());
        assert_eq!(headers["referer"], "http://h:1/?a=b");
        let (_, _, headers) = take("/x.css", &[("referer", "http://h:1/?a=b#edge_token")]);
        assert_eq!(headers["referer"], "http://h:1/?a=b#edge_token");
    }

    #[test]
    fn a_session_counts_on_pages_of_its_own() {
        let cookie = (
            "cookie",
            "a=b; nullspace_preview_m_80=s; nullspace_preview_m_8=no",
        );
        for (more, counts) in [
            (vec![], true),
            (vec![("origin", "http://127.0.0.1:20000")], true),
            (vec![("origin", "http://127.0.0.1:20001")], false),
            (vec![("origin", "http://localhost:20000")], false),
            (vec![("origin", "null")], false),
            (vec![("sec-fetch-site", "same-origin")], true),
            (vec![("sec-fetch-site", "none")], true),
            (vec![("sec-fetch-site", "same-site")], false),
            (
                vec![
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "no-cors"),
                ],
                false,
            ),
            (
                vec![
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                ],
                true,
            ),
        ] {
            let list: Vec<_> = [cookie, ("host", "127.0.0.1:20000")]
                .into_iter()
                .chain(more.clone())
                .collect();
            let session = take("/", &list).0.session;
            assert_eq!(session.is_some(), counts, "{more:?}");
            assert!(session.is_none_or(|session| session == "s"));
        }
        // The port that a scheme has by itself may be said or not.
        let same = [
            cookie,
            ("host", "8-mch-1.example"),
            ("origin", "https://8-mch-1.example:443"),
        ];
        assert!(take("/", &same).0.session.is_some());
        assert_eq!(
            take("/", &[("cookie", "nullspace_preview_m_8=no")])
                .0
                .session,
            None
        );
    }
}

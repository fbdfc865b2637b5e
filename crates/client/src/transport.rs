//! One request: address, headers, time limits, retries, and what the answer means.
//!
//! Time limits are on silence, not on the whole: a body of any length may take as long as it needs while bytes flow.
//! What is retried, how often and how long apart is the published clients' table, see [`Retry`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{ApiError, Error};

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence allowed while files and bundles travel.
pub(crate) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Silence allowed while a machine is made.
pub(crate) const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

/// A client of one server. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
    key: Option<Secret>,
    pub(crate) timeout: Duration,
}

/// An API key that does not show itself.
#[derive(Clone)]
struct Secret(Arc<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// Which failures are worth another attempt with the same idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Never.
    Never,
    /// When the server says "too many requests": 4 attempts, as far apart as it says.
    Busy,
    /// That, and a network that failed: 6 attempts, 0.25 s doubling to 4 s apart.
    Upload,
    /// Making a machine: also while the first attempt is still under way or its answer was lost; 30 attempts, 0.5 s
    /// doubling to 10 s apart.
    Create,
}

/// A request under construction.
pub(crate) struct Call<'a> {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Body<'a>,
    limit: Option<Duration>,
    retry: Retry,
    authorised: bool,
}

enum Body<'a> {
    None,
    Json(Bytes),
    /// Made anew for each attempt; reports its progress on the pulse.
    Stream(Box<dyn Fn(Pulse) -> reqwest::Body + Send + Sync + 'a>),
}

/// When something last moved.
#[derive(Clone)]
pub(crate) struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `future` until it is done or nothing moved for `limit`.
    async fn watch<F: Future>(&self, future: F, limit: Duration) -> Option<F::Output> {
        tokio::pin!(future);
        loop {
            let deadline = self.last() + limit;
            tokio::select! {
                output = &mut future => return Some(output),
                () = tokio::time::sleep_until(deadline) => {
                    if self.last() + limit <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Body::None,
            limit: None,
            retry: Retry::Busy,
            authorised: true,
        }
    }

    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query
            .extend(value.map(|value| (name, value.to_string())));
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends the caller's idempotency key, or a fresh one.
    pub(crate) fn idempotent(self, key: Option<&str>) -> Self {
        let key = key.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        self.header("idempotency-key", key)
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Result<Self, Error> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Error::Local(format!("cannot write JSON: {error}")))?;
        self.body = Body::Json(body.into());
        Ok(self)
    }

    pub(crate) fn stream(
        mut self,
        body: impl Fn(Pulse) -> reqwest::Body + Send + Sync + 'a,
    ) -> Self {
        self.body = Body::Stream(Box::new(body));
        self
    }

    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    pub(crate) fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    pub(crate) fn unauthorised(mut self) -> Self {
        self.authorised = false;
        self
    }

    fn transport_error(&self, reason: impl Into<String>, unsent: bool) -> Error {
        Error::Transport {
            method: self.method.clone(),
            path: self.path.clone(),
            reason: reason.into(),
            unsent,
        }
    }

    fn decode_error(&self, reason: impl Into<String>) -> Error {
        Error::Decode {
            method: self.method.clone(),
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Download {
    response: reqwest::Response,
    method: Method,
    path: String,
    limit: Duration,
}

impl Download {
    /// For a body that is not what it should be.
    pub(crate) fn decode_error(&self, reason: String) -> Error {
        Error::Decode {
            method: self.method.clone(),
            path: self.path.clone(),
            reason,
        }
    }

    /// The connection itself, after an answer that says that it is now something else.
    pub(crate) async fn upgraded(self) -> Result<reqwest::Upgraded, Error> {
        let refused = |reason: String| Error::Decode {
            method: self.method.clone(),
            path: self.path.clone(),
            reason,
        };
        let status = self.response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(format!(
                "status {status}, which opens no WebSocket"
            )));
        }
        let upgraded = self.response.upgrade().await;
        upgraded.map_err(|error| refused(root_cause(&error)))
    }

    /// Length of the body, if the server said it.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.response
            .headers()
            .get(header::CONTENT_LENGTH)?
            .to_str()
            .ok()?
            .parse()
            .ok()
    }

    /// A header, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The whole body as JSON, of the answer to `call`.
    pub(crate) async fn json<T: DeserializeOwned>(self, call: &Call<'_>) -> Result<T, Error> {
        let body = self.bytes().await?;
        serde_json::from_slice(&body).map_err(|error| call.decode_error(error.to_string()))
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Transport`] if the connection broke or fell silent.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let failed = |reason| Error::Transport {
            method: self.method.clone(),
            path: self.path.clone(),
            reason,
            unsent: false,
        };
        match tokio::time::timeout(self.limit, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| failed(root_cause(&error))),
            Err(_) => Err(failed(silence(self.limit))),
        }
    }

    /// The body as a stream of pieces.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures_util::stream::unfold(Some(self), |download| async {
            let mut download = download?;
            match download.chunk().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(download))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn bytes(mut self) -> Result<Bytes, Error> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

/// A failed attempt and how long the server wants the next one to wait.
struct Failed {
    error: Error,
    /// Set when the server said "too many requests" about the rate.
    busy: Option<Option<Duration>>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, busy: None }
    }
}

impl Client {
    /// A client of the server and with the key that `config` names. Nothing is sent.
    ///
    /// # Errors
    /// [`Error::Address`] if the address is no `http` or `https` URL with a host.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let url = config.base_url.value.trim_end_matches('/');
        let bad = |reason: String| Error::Address {
            url: url.to_owned(),
            reason,
        };
        let parsed = reqwest::Url::parse(url).map_err(|error| bad(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad("it must start with http:// or https://".to_owned()));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(bad("it must not have a query or a fragment".to_owned()));
        }
        Ok(Self {
            http: built(builder(&parsed))?,
            base: url.into(),
            key: config
                .api_key
                .as_ref()
                .map(|key| Secret(key.value.as_str().into())),
            timeout: config.timeout,
        })
    }

    /// The same client for connections that become something else than HTTP.
    pub(crate) fn upgrading(&self) -> Result<Self, Error> {
        let mut client = self.clone();
        // A server with TLS may choose HTTP/2, which has no such upgrade.
        if let Some(url) = reqwest::Url::parse(&self.base)
            .ok()
            .filter(|url| url.scheme() == "https")
        {
            client.http = built(builder(&url).http1_only())?;
        }
        Ok(client)
    }

    /// The server's address, without a slash at the end.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base
    }

    /// Whether the server's address is this host's own loopback.
    #[must_use]
    pub fn is_local(&self) -> bool {
        reqwest::Url::parse(&self.base).is_ok_and(|url| is_loopback(&url))
    }

    /// `GET /healthz`, without a key: the status and the body of whatever answers.
    ///
    /// # Errors
    /// [`Error::Transport`] if nothing answers within `limit`.
    pub async fn health(&self, limit: Duration) -> Result<(u16, String), Error> {
        let call = Call::get("/healthz")
            .unauthorised()
            .retry(Retry::Never)
            .limit(limit);
        let answer = self.attempt(&call).await.map_err(|failed| failed.error)?;
        let status = answer.response.status().as_u16();
        let body = answer.bytes().await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Sends, and reads the answer as JSON.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let body = self.send(&call).await?.bytes().await?;
        let body = if body.is_empty() {
            &b"null"[..]
        } else {
            &body[..]
        };
        serde_json::from_slice(body).map_err(|error| call.decode_error(error.to_string()))
    }

    /// Like [`Client::fetch`], of an answer that may have begun as a success before it went wrong: its body is then an error
    /// and breaks off.
    pub(crate) async fn fetch_late<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let mut answer = self.send(&call).await?;
        let mut body = BytesMut::new();
        loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(broken) => {
                    let error = ApiError::from_body(answer.response.status().as_u16(), &body, None);
                    return Err(match error.code.as_str() {
                        "unknown" => broken,
                        _ => error.into(),
                    });
                }
            }
        }
        serde_json::from_slice(&body).map_err(|error| call.decode_error(error.to_string()))
    }

    /// Sends, and does not look at the answer's body.
    pub(crate) async fn discard(&self, call: Call<'_>) -> Result<(), Error> {
        self.send(&call).await?.bytes().await.map(drop)
    }

    /// Sends with retries; an answer that is returned is a success.
    pub(crate) async fn send(&self, call: &Call<'_>) -> Result<Download, Error> {
        let mut attempt = 1;
        loop {
            let failed = match self.refused(call).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            match pause(call.retry, attempt, &failed) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(failed.error),
            }
            attempt += 1;
        }
    }

    /// One attempt; an answer that is no success is an error.
    async fn refused(&self, call: &Call<'_>) -> Result<Download, Failed> {
        let answer = self.attempt(call).await?;
        let status = answer.response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        if !status.is_client_error() && !status.is_server_error() {
            let reason = format!("status {status}; is the address complete?");
            return Err(call.decode_error(reason).into());
        }
        let headers = answer.response.headers();
        let text = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let (request_id, retry_after) = (text("x-request-id"), text("retry-after"));
        // The status is what counts; a body that breaks off is shown as far as it came.
        let body = answer.bytes().await.unwrap_or_default();
        let mut error = ApiError::from_body(status.as_u16(), &body, request_id.as_deref());
        let mut busy = None;
        if status == StatusCode::TOO_MANY_REQUESTS && is_about_rate(&body) {
            error.code = "rate_limit_exceeded".to_owned();
            let seconds = retry_after.and_then(|text| text.trim().parse::<f64>().ok());
            busy = Some(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()));
        }
        Err(Failed {
            error: error.into(),
            busy,
        })
    }

    /// One exchange, whatever the answer.
    async fn attempt(&self, call: &Call<'_>) -> Result<Download, Failed> {
        let limit = call.limit.unwrap_or(self.timeout);
        let pulse = Pulse::new();
        let mut request = self
            .http
            .request(call.method.clone(), format!("{}{}", self.base, call.path));
        if call.authorised {
            let key = self.key.as_ref().ok_or(Error::MissingApiKey)?;
            request = request.bearer_auth(&key.0);
        }
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        request = match &call.body {
            Body::None => request,
            Body::Json(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(body.clone()),
            Body::Stream(make) => request.body(make(pulse.clone())),
        };
        match pulse.watch(request.send(), limit).await {
            Some(Ok(response)) => Ok(Download {
                response,
                method: call.method.clone(),
                path: call.path.clone(),
                limit,
            }),
            Some(Err(error)) if error.is_builder() => {
                Err(Error::Local(format!("cannot make the request: {}", root_cause(&error))).into())
            }
            Some(Err(error)) if is_unreadable(&error) => {
                Err(Error::Local(root_cause(&error)).into())
            }
            Some(Err(error)) => Err(call
                .transport_error(root_cause(&error), error.is_connect())
                .into()),
            None => Err(call.transport_error(silence(limit), false).into()),
        }
    }
}

fn builder(url: &reqwest::Url) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("nullspace/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(16)
        .redirect(reqwest::redirect::Policy::none());
    if is_loopback(url) {
        // A proxy cannot reach this host's own loopback, whatever the environment says.
        builder.no_proxy()
    } else {
        builder
    }
}

fn built(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, Error> {
    builder.build().map_err(|error| {
        Error::Local(format!(
            "cannot make an HTTP client: {}",
            root_cause(&error)
        ))
    })
}

/// How long to wait before another attempt; `None` for no other attempt.
fn pause(retry: Retry, attempt: u32, failed: &Failed) -> Option<Duration> {
    let doubling = |first: f64, most: f64| {
        Duration::from_secs_f64((first * f64::from(1_u32 << (attempt - 1).min(16))).min(most))
    };
    let (lost, unsent) = match &failed.error {
        Error::Transport { unsent, .. } => (true, *unsent),
        _ => (false, false),
    };
    match (retry, failed.busy) {
        (Retry::Never, _) => None,
        (Retry::Busy, Some(after)) if attempt < 4 => Some(after.unwrap_or(Duration::from_secs(1))),
        (Retry::Upload, Some(after)) if attempt < 6 => Some(jittered(
            after
                .filter(|after| !after.is_zero())
                .unwrap_or_else(|| doubling(0.25, 4.0)),
        )),
        (Retry::Upload, None) if lost && attempt < 6 => Some(jittered(doubling(0.25, 4.0))),
        (Retry::Create, Some(after)) if attempt < 30 => {
            Some(after.unwrap_or(Duration::from_secs(1)))
        }
        (Retry::Create, None) if attempt < 30 => {
            let under_way = matches!(
                failed.error.code(),
                "transition_in_progress" | "transition_recovery_required"
            );
            (under_way || lost && !unsent).then(|| doubling(0.5, 10.0))
        }
        _ => None,
    }
}

/// Up to a quarter longer, so that many clients do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(1.0..1.25))
}

/// Whether a 429 is about the rate of requests; one with another code (a quota, say) does not pass by waiting.
fn is_about_rate(body: &[u8]) -> bool {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match body.get("code").and_then(serde_json::Value::as_str) {
        Some(code) => code.eq_ignore_ascii_case("rate_limit_exceeded"),
        None => true,
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

fn silence(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs_f64())
}

/// The innermost error: the outer ones of the HTTP stack only say that something failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// A path segment: everything that is not plain is percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    // A segment of dots alone would walk up the path.
    if encoded.chars().all(|c| c == '.') {
        encoded.replace('.', "%2E")
    } else {
        encoded
    }
}

/// A request body from a stream of pieces; each piece counts as a sign of life.
pub(crate) fn body_from<S, E>(stream: S, pulse: Pulse) -> reqwest::Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let stream = stream.inspect(move |_| pulse.beat());
    reqwest::Body::wrap_stream(stream.map_err(|error| Unreadable(error.into())))
}

/// Why what was to be sent could not be read: no fault of the network, and the same the next time.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unreadable(Box<dyn std::error::Error + Send + Sync>);

fn is_unreadable(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<Unreadable>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(code: &str, busy: Option<Option<Duration>>) -> Failed {
        let body = format!(r#"{{"error": "x", "code": "{code}"}}"#);
        Failed {
            error: ApiError::from_body(400, body.as_bytes(), None).into(),
            busy,
        }
    }

    fn lost(unsent: bool) -> Failed {
        Call::get("/").transport_error("x", unsent).into()
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_sent_again() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let server = server.expect("a port");
        let address = server.local_addr().expect("an address");
        let router = axum::Router::new().fallback(async |_: Bytes| ());
        let serving = tokio::spawn(axum::serve(server, router).into_future());
        let client = Client {
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
            base: format!("http://{address}").into(),
            key: None,
            timeout: Duration::from_secs(60),
        };
        let attempts = std::sync::atomic::AtomicU32::new(0);
        let call = Call::new(Method::PUT, "/")
            .stream(|pulse| {
                attempts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let pieces = [
                    Ok(Bytes::from("a piece")),
                    Err(std::io::Error::other("the file changed")),
                ];
                body_from(futures_util::stream::iter(pieces), pulse)
            })
            .unauthorised()
            .retry(Retry::Upload);
        let error = client.send(&call).await.expect_err("half a body");
        assert!(
            matches!(&error, Error::Local(text) if text == "the file changed"),
            "{error:?}"
        );
        assert_eq!(attempts.load(std::sync::atomic::Ordering::Relaxed), 1);
        serving.abort();
    }

    #[test]
    fn attempts_and_pauses_are_those_of_the_wire() {
        let second = Duration::from_secs(1);
        let busy = || failed("rate_limit_exceeded", Some(Some(second * 7)));
        assert_eq!(pause(Retry::Busy, 3, &busy()), Some(second * 7));
        assert_eq!(pause(Retry::Busy, 4, &busy()), None);
        assert_eq!(
            pause(Retry::Busy, 1, &failed("rate_limit_exceeded", Some(None))),
            Some(second)
        );
        assert_eq!(pause(Retry::Never, 1, &busy()), None);
        assert_eq!(pause(Retry::Busy, 1, &lost(true)), None);
        let upload = pause(Retry::Upload, 5, &lost(true)).expect("a retry");
        assert!(upload >= second * 4 && upload < second * 5, "{upload:?}");
        assert_eq!(pause(Retry::Upload, 6, &lost(true)), None);
        assert_eq!(
            pause(Retry::Create, 1, &lost(true)),
            None,
            "nothing listens"
        );
        assert_eq!(pause(Retry::Create, 1, &lost(false)), Some(second / 2));
        assert_eq!(
            pause(Retry::Create, 29, &failed("transition_in_progress", None)),
            Some(second * 10)
        );
        assert_eq!(
            pause(Retry::Create, 30, &failed("transition_in_progress", None)),
            None
        );
        assert_eq!(
            pause(Retry::Create, 1, &failed("invalid_request", None)),
            None
        );
    }

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(segment("mch_1-a.b"), "mch_1-a.b");
        assert_eq!(segment("../x?y"), "..%2Fx%3Fy");
        assert_eq!(segment(".."), "%2E%2E");
        assert_eq!(segment("é"), "%C3%A9");
    }

    #[test]
    fn a_429_with_a_code_of_its_own_is_not_about_the_rate() {
        assert!(is_about_rate(b"slow down"));
        assert!(is_about_rate(br#"{"error": {"code": "x"}}"#));
        assert!(is_about_rate(br#"{"code": "rate_limit_exceeded"}"#));
        assert!(!is_about_rate(br#"{"code": "capacity_exceeded"}"#));
    }
}

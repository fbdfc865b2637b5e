//! One request to the server under test, and what may have become of it.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// The operator's key.
pub(crate) const KEY: &str = "ns_live_soak";
/// The longest that anything takes here, many times over.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why something did not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The server went away: whether it was done is not known.
    Cut,
    /// What must not be.
    Wrong(String),
}

pub(crate) fn wrong<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Wrong(what.into()))
}

/// The way to the server with one key.
#[derive(Clone)]
pub(crate) struct Api {
    address: String,
    key: String,
    /// What the server needs was hit: errors of the server's own are what comes of that. The same for all keys.
    is_disturbed: Rc<Cell<bool>>,
}

/// What is sent besides method and path.
struct Sent<'a> {
    headers: Vec<(&'a str, &'a str)>,
    bytes: Bytes,
}

impl<'a> Sent<'a> {
    fn json(key: Option<&'a str>, body: Option<Value>) -> Self {
        let mut headers = Vec::new();
        if let Some(key) = key {
            headers.push(("idempotency-key", key));
        }
        let mut bytes = Bytes::new();
        if let Some(body) = body {
            headers.push(("content-type", "application/json"));
            bytes = Bytes::from(body.to_string());
        }
        Self { headers, bytes }
    }
}

/// What the server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// What was asked.
    what: String,
    /// Whether anything may come of it, because of what was hit.
    is_disturbed: bool,
}

impl Answer {
    /// A text that must be there.
    pub(crate) fn text(&self, field: &str) -> Result<String, Stop> {
        match self.body[field].as_str() {
            Some(text) => Ok(text.to_owned()),
            None if self.is_disturbed => Err(Stop::Cut),
            None => wrong(format!(
                "{}: no {field} in {} {}",
                self.what, self.status, self.body
            )),
        }
    }

    /// The same answer, if its status is one of these.
    pub(crate) fn expect(self, statuses: &[u16]) -> Result<Self, Stop> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        if self.is_disturbed {
            return Err(Stop::Cut);
        }
        wrong(format!("{}: {} {}", self.what, self.status, self.body))
    }

    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Api {
    /// The operator's.
    pub(crate) fn new(address: String) -> Self {
        Self {
            address,
            key: KEY.to_owned(),
            is_disturbed: Rc::default(),
        }
    }

    /// Another's, who is disturbed by the same.
    pub(crate) fn with_key(&self, key: String) -> Self {
        Self {
            key,
            ..self.clone()
        }
    }

    pub(crate) fn disturb(&self) {
        self.is_disturbed.set(true);
    }

    pub(crate) fn calm(&self) {
        self.is_disturbed.set(false);
    }

    /// Whether something else than the server was hit in this round.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.is_disturbed.get()
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer, Stop> {
        self.ask(Method::GET, path, None, None).await
    }

    /// Asks for what may fail in any way.
    pub(crate) async fn try_to(&self, method: Method, path: &str, body: Value) -> Option<Answer> {
        let sent = Sent::json(None, Some(body));
        self.send(method, path, sent, true).await.ok()
    }

    /// Asks. Errors of the server's own are wrong at any time, but after something else was hit that it needs.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> Result<Answer, Stop> {
        self.send(method, path, Sent::json(key, body), false).await
    }

    /// Sends what is no JSON.
    pub(crate) async fn upload(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        bytes: Vec<u8>,
    ) -> Result<Answer, Stop> {
        let sent = Sent {
            headers: headers.to_vec(),
            bytes: Bytes::from(bytes),
        };
        self.send(Method::PUT, path, sent, false).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        sent: Sent<'_>,
        may_fail: bool,
    ) -> Result<Answer, Stop> {
        let what = format!("{method} {path}");
        let exchanged = tokio::time::timeout(PATIENCE, self.exchange(method, path, sent));
        let Ok(exchanged) = exchanged.await else {
            return wrong(format!("{what}: no answer in {PATIENCE:?}"));
        };
        let Ok((status, bytes)) = exchanged else {
            return Err(Stop::Cut);
        };
        let body = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into()),
        };
        let is_disturbed = may_fail || self.is_disturbed();
        if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED && !is_disturbed {
            return wrong(format!("{what}: {status} {body}"));
        }
        if status.is_server_error() && is_disturbed {
            return Err(Stop::Cut);
        }
        Ok(Answer {
            status: status.as_u16(),
            body,
            what,
            is_disturbed,
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        sent: Sent<'_>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = tokio::net::TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.address)
            .header("authorization", format!("Bearer {}", self.key));
        for (name, value) in sent.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(sent.bytes))?;
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::pin!(answered);
        tokio::select! {
            answered = &mut answered => answered,
            _ = connection => answered.await,
        }
    }
}

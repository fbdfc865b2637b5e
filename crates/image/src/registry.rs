//! The pulling half of the OCI distribution protocol, against registries that may be hostile, slow or dying.
//!
//! Every answer is read up to a bound. Redirects are followed here and not by the HTTP library: the registry's
//! authorization goes to its own origin only, and nothing that began with TLS goes on without. What is said about
//! failures names hosts, never whole addresses, which may be signed.

mod access;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use oci_spec::distribution::Reference;
use reqwest::{
    Certificate, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, mpsc};

use crate::{
    credentials::Credentials,
    error::{ImageError, shown},
    limits::Limits,
    manifest::{self, Part},
    store::is_digest,
};

const CONNECT_TIME: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 5;
/// The longest that a registry may have us wait before we ask again.
const MAX_WAIT: Duration = Duration::from_secs(20);
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How often one blob is asked for, however much each answer brings.
const MAX_BLOB_REQUESTS: u32 = 1000;

/// What the operator says about registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registries {
    /// Registries, as `HOST[:PORT]`, that are spoken to over plain HTTP. Those on this host always are.
    pub insecure: Vec<String>,
    /// Where images of a registry are fetched from in its place, both as `HOST[:PORT]`: `docker.io` from a mirror of
    /// your own. Credentials for the registry go to the mirror.
    pub mirrors: BTreeMap<String, String>,
    /// Files with certificate authorities (PEM) that are believed about a registry, `HOST[:PORT]`, besides those that the
    /// host believes. Read for each image, so that they can be replaced at any time. A registry that is named here is
    /// spoken to over TLS, also on this host.
    pub authorities: BTreeMap<String, PathBuf>,
}

impl Registries {
    /// Where the images of the reference come from, as it is named in settings.
    fn host<'a>(&'a self, reference: &'a Reference) -> &'a str {
        match self.mirrors.get(reference.registry()) {
            Some(mirror) => mirror,
            None => reference.resolve_registry(),
        }
    }

    /// The same as an address, and whether that is spoken to over plain HTTP.
    fn origin(&self, host: &str) -> Result<(Url, bool), ImageError> {
        let parse = |scheme: &str| Url::parse(&format!("{scheme}://{host}/"));
        let url = parse("http").map_err(|e| ImageError::Answer {
            registry: shown(host),
            step: "its name".into(),
            what: e.to_string(),
        })?;
        let is_plain = is_this_host(&url) || self.insecure.iter().any(|one| one == host);
        if is_plain && !self.authorities.contains_key(host) {
            return Ok((url, true));
        }
        match parse("https") {
            Ok(url) => Ok((url, false)),
            Err(_) => Ok((url, true)),
        }
    }
}

/// Whether a file of authorities (PEM) can be used: see [`Registries::authorities`].
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_authorities(file: &Path) -> Result<(), String> {
    authorities(file).map(drop)
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, String> {
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    match Certificate::from_pem_bundle(&text) {
        Ok(found) if found.is_empty() => Err("it has no certificate".into()),
        Ok(found) => Ok(found),
        Err(error) => Err(said(&error)),
    }
}

fn is_this_host(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// One repository of one registry, with whatever it took to be let in.
pub(crate) struct Session {
    http: reqwest::Client,
    origin: Url,
    plain: bool,
    repository: String,
    /// Repository with tag or digest, as errors call it.
    name: String,
    credentials: Credentials,
    authorization: Mutex<Option<HeaderValue>>,
    limits: Limits,
}

/// Why an attempt failed, and whether another may do better.
enum Failure {
    /// It may work at the next attempt, perhaps after the time that was asked for.
    Passing(String, Option<Duration>),
    /// Whoever answers cannot prove to be who was asked.
    Stranger(String),
    Final(ImageError),
}

/// The start of an answer to a request for a part of a blob.
pub(crate) enum Fed {
    /// All of it was handed on.
    Whole,
    /// The other end did not want more.
    Stopped,
}

impl Session {
    pub(crate) fn new(
        reference: &Reference,
        credentials: &Credentials,
        registries: &Registries,
        limits: &Limits,
    ) -> Result<Self, ImageError> {
        let named = registries.host(reference);
        let (origin, plain) = registries.origin(named)?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("nullspace/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIME)
            .read_timeout(limits.idle_time);
        if is_this_host(&origin) {
            // A proxy's own loopback is not ours.
            http = http.no_proxy();
        }
        if let Some(file) = registries.authorities.get(named) {
            let read = authorities(file).map_err(|why| ImageError::Authorities {
                registry: shown(named),
                why,
            })?;
            for certificate in read {
                http = http.add_root_certificate(certificate);
            }
        }
        let repository = reference.repository().to_owned();
        let tag = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        Ok(Self {
            http: http.build().map_err(|e| ImageError::Unreachable {
                registry: host(&origin),
                step: "the start".into(),
                why: said(&e.without_url()),
            })?,
            name: format!("{repository}{tag}"),
            repository,
            origin,
            plain,
            credentials: credentials.clone(),
            authorization: Mutex::new(None),
            limits: limits.clone(),
        })
    }

    /// The document that a tag or a digest (`sha256:…`) leads to: its bytes, its digest as hex digits, and the media
    /// type it was sent with. What was asked for by digest has that digest.
    pub(crate) async fn manifest(
        &self,
        reference: &str,
    ) -> Result<(Vec<u8>, String, Option<String>), ImageError> {
        let what = "the image's manifest";
        let limit = self.limits.manifest_bytes;
        let path = format!("v2/{}/manifests/{reference}", self.repository);
        let (bytes, headers) = self
            .small(&path, Some(manifest::ACCEPT), what, limit)
            .await?;
        let digest = hex::encode(Sha256::digest(&bytes));
        if let Some(expected) = reference.strip_prefix("sha256:").filter(|d| is_digest(d)) {
            check(what, expected, &digest)?;
        }
        let kind = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(|value| value.trim().to_owned());
        Ok((bytes, digest, kind))
    }

    /// A small blob, whole.
    pub(crate) async fn small_blob(&self, part: &Part, what: &str) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(part);
        let (bytes, _) = self.small(&path, None, what, part.size).await?;
        check(what, &part.digest, &hex::encode(Sha256::digest(&bytes)))?;
        Ok(bytes)
    }

    fn blob_path(&self, part: &Part) -> String {
        format!("v2/{}/blobs/sha256:{}", self.repository, part.digest)
    }

    /// An answer of at most `limit` bytes, asked for again while it fails in passing.
    async fn small(
        &self,
        path: &str,
        accept: Option<&'static str>,
        what: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, HeaderMap), ImageError> {
        let mut attempts = Attempts::new(&self.limits);
        loop {
            let attempt = async {
                let mut headers = HeaderMap::new();
                if let Some(accept) = accept {
                    headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
                }
                let response = self.get(path, headers, what).await?;
                let headers = response.headers().clone();
                Ok((self.whole(response, what, limit).await?, headers))
            };
            match attempt.await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.failed(self, what, failure).await?,
            }
        }
    }

    /// Sends a blob's bytes to `to`, from whichever byte on a broken connection ended with.
    pub(crate) async fn blob(
        &self,
        part: &Part,
        to: &mpsc::Sender<Bytes>,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<Fed, ImageError> {
        let what = format!("layer sha256:{}", part.digest);
        let path = self.blob_path(part);
        let mut at = 0;
        let mut attempts = Attempts::new(&self.limits);
        for _ in 0..MAX_BLOB_REQUESTS {
            let before = at;
            match self
                .blob_from(&path, &what, part.size, &mut at, to, arrived)
                .await
            {
                Ok(fed) => return Ok(fed),
                Err(failure) => {
                    if at > before {
                        attempts = Attempts::new(&self.limits);
                    }
                    attempts.failed(self, &what, failure).await?;
                }
            }
        }
        Err(self.unreachable(&what, "it breaks off all the time".into()))
    }

    /// One request for the rest of a blob.
    async fn blob_from(
        &self,
        path: &str,
        what: &str,
        size: u64,
        at: &mut u64,
        to: &mpsc::Sender<Bytes>,
        arrived: &(dyn Fn(u64) + Sync),
    ) -> Result<Fed, Failure> {
        let mut headers = HeaderMap::new();
        if *at > 0 {
            let range = HeaderValue::from_str(&format!("bytes={at}-"));
            headers.extend(range.ok().map(|range| (header::RANGE, range)));
        }
        let mut response = self.get(path, headers, what).await?;
        // A registry that cannot send a part sends it all again.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, *at) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.answered(what, "a part that was not asked for"));
            }
            _ => *at,
        };
        let wrong_size = |found: u64| {
            self.answered(
                what,
                &format!("{found} bytes, where its manifest says {size}"),
            )
        };
        if let Some(length) = response.content_length()
            && length != size - *at + skip
        {
            return Err(wrong_size(length + *at - skip));
        }
        loop {
            let chunk = response.chunk().await.map_err(passing)?;
            let Some(mut chunk) = chunk else { break };
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            if chunk.is_empty() {
                continue;
            }
            if chunk.len() as u64 > size - *at {
                return Err(wrong_size(*at + chunk.len() as u64));
            }
            *at += chunk.len() as u64;
            arrived(chunk.len() as u64);
            if to.send(chunk).await.is_err() {
                return Ok(Fed::Stopped);
            }
        }
        if *at == size {
            Ok(Fed::Whole)
        } else {
            Err(Failure::Passing(
                format!("it broke off after {at} of {size} bytes"),
                None,
            ))
        }
    }

    /// One request, let in and redirected as needed, to an answer that is not an error.
    async fn get(&self, path: &str, headers: HeaderMap, what: &str) -> Result<Response, Failure> {
        let url = self
            .origin
            .join(path)
            .map_err(|_| self.answered(what, "no address"))?;
        let mut asked = false;
        loop {
            let authorization = self.authorization.lock().await.clone();
            let response = self
                .follow(url.clone(), &headers, authorization.as_ref(), what)
                .await?;
            let status = response.status();
            match status {
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    self.authorize(&response, authorization.as_ref(), what)
                        .await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
                StatusCode::NOT_FOUND => {
                    return Err(Failure::Final(if path.contains("/manifests/") {
                        ImageError::NotFound {
                            registry: host(&self.origin),
                            name: self.name.clone(),
                        }
                    } else {
                        self.answer(what, "that it has no such thing")
                    }));
                }
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                    return Err(Failure::Passing(
                        format!("status {status}"),
                        wait_asked(&response),
                    ));
                }
                _ if status.is_server_error() => {
                    return Err(Failure::Passing(
                        format!("status {status}"),
                        wait_asked(&response),
                    ));
                }
                _ => return Err(self.answered(what, &format!("status {status}"))),
            }
        }
    }

    /// One request through redirects.
    async fn follow(
        &self,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        what: &str,
    ) -> Result<Response, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.get(url.clone()).headers(headers.clone());
            if let Some(value) = authorization.filter(|_| url.origin() == self.origin.origin()) {
                request = request.header(header::AUTHORIZATION, value.clone());
            }
            let response = request.send().await.map_err(passing)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let next = response
                .headers()
                .get(header::LOCATION)
                .and_then(|value| value.to_str().ok())
                .and_then(|value| url.join(value).ok())
                .ok_or_else(|| self.answered(what, "a redirect to nowhere"))?;
            self.may_go(&next, what)?;
            url = next;
        }
        Err(self.answered(what, "redirects without end"))
    }

    /// TLS is never left; what began without may go anywhere.
    fn may_go(&self, to: &Url, what: &str) -> Result<(), Failure> {
        match to.scheme() {
            "https" => Ok(()),
            "http" if self.plain => Ok(()),
            _ => Err(self.answered(what, "a redirect that is not to https")),
        }
    }

    /// The body of an answer, at most `limit` bytes of it.
    async fn whole(
        &self,
        mut response: Response,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let too_large = || {
            Failure::Final(ImageError::TooLarge {
                what: what.to_owned(),
                limit,
            })
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit)
        {
            return Err(too_large());
        }
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(passing)? {
                if (bytes.len() + chunk.len()) as u64 > limit {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        };
        match tokio::time::timeout(self.limits.idle_time, read).await {
            Ok(read) => read,
            Err(_) => Err(Failure::Passing("it is too slow".into(), None)),
        }
    }

    fn denied(&self) -> Failure {
        Failure::Final(ImageError::Denied {
            registry: host(&self.origin),
            name: self.name.clone(),
            anonymous: self.credentials.is_anonymous(),
        })
    }

    fn answer(&self, step: &str, what: &str) -> ImageError {
        ImageError::Answer {
            registry: host(&self.origin),
            step: step.to_owned(),
            what: what.to_owned(),
        }
    }

    fn answered(&self, step: &str, what: &str) -> Failure {
        Failure::Final(self.answer(step, what))
    }

    fn unreachable(&self, step: &str, why: String) -> ImageError {
        ImageError::Unreachable {
            registry: host(&self.origin),
            step: step.to_owned(),
            why,
        }
    }
}

/// How often something failed in passing, one after the other.
struct Attempts {
    left: u32,
    wait: Duration,
}

impl Attempts {
    fn new(limits: &Limits) -> Self {
        Self {
            left: limits.retries,
            wait: FIRST_WAIT,
        }
    }

    /// Waits before the next attempt, or says that there is none.
    async fn failed(
        &mut self,
        session: &Session,
        what: &str,
        failure: Failure,
    ) -> Result<(), ImageError> {
        let (why, asked) = match failure {
            Failure::Passing(why, asked) => (why, asked),
            Failure::Stranger(why) => {
                return Err(ImageError::Certificate {
                    registry: host(&session.origin),
                    step: what.to_owned(),
                    why,
                });
            }
            Failure::Final(error) => return Err(error),
        };
        if self.left == 0 {
            return Err(session.unreachable(what, why));
        }
        self.left -= 1;
        tracing::debug!(registry = %host(&session.origin), step = what, why, "registry failed, asked again");
        tokio::time::sleep(asked.unwrap_or(self.wait).min(MAX_WAIT)).await;
        self.wait = (self.wait * 2).min(MAX_WAIT);
        Ok(())
    }
}

fn check(what: &str, expected: &str, found: &str) -> Result<(), ImageError> {
    if expected == found {
        return Ok(());
    }
    Err(ImageError::Digest {
        what: what.to_owned(),
        expected: format!("sha256:{expected}"),
        found: format!("sha256:{found}"),
    })
}

fn starts_at(response: &Response, at: u64) -> bool {
    response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("bytes "))
        .and_then(|value| value.split('-').next())
        .is_some_and(|start| start.parse() == Ok(at))
}

fn wait_asked(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.parse().ok().map(Duration::from_secs)
}

fn passing(error: reqwest::Error) -> Failure {
    let is_stranger = has_bad_certificate(&error);
    let why = said(&error.without_url());
    match is_stranger {
        true => Failure::Stranger(why),
        false => Failure::Passing(why, None),
    }
}

/// Whether a connection was given up because of the other end's certificate.
fn has_bad_certificate(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // What an I/O error was made of is not among its sources.
    let inner = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| has_bad_certificate(inner))
        || error.source().is_some_and(has_bad_certificate)
}

/// An error of the HTTP library with its causes; the address was taken out of it.
fn said(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    shown(text)
}

fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

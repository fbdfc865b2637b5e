//! One request, from a door to a machine and back.

use std::{
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery,
};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{Either, Empty, Full};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use crate::{
    Access, Route, TOKEN_HEADER, headers,
    upstream::{Link, RequestBody, Visit, drive},
};

/// Seconds after which a client should ask again when nothing answers now.
const RETRY_AFTER: u32 = 1;

/// The body of an answer: the machine's, or our own word.
pub(crate) enum Body {
    Relayed(Relay),
    Text(Full<Bytes>),
}

/// The machine's body, driven by whoever reads it.
pub(crate) struct Relay {
    body: Incoming,
    /// Until the body has ended; a connection that a task of its own drives is not in here.
    lease: Option<(Visit, Option<Link>)>,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Relayed(relay) => relay.poll_frame(context),
            Self::Text(text) => {
                let frame = ready!(Pin::new(text).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(|never| match never {})))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relayed(relay) => relay.lease.is_none() || relay.body.is_end_stream(),
            Self::Text(text) => text.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relayed(relay) => relay.body.size_hint(),
            Self::Text(text) => text.size_hint(),
        }
    }
}

impl Relay {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending()
            && let Some((_, Some(link))) = &mut self.lease
        {
            link.drive(context);
            frame = Pin::new(&mut self.body).poll_frame(context);
        }
        let frame = ready!(frame);
        match &frame {
            None => self.end(),
            Some(Ok(_)) if self.body.is_end_stream() => self.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
        }
        Poll::Ready(frame)
    }

    fn end(&mut self) {
        if let Some((visit, Some(link))) = self.lease.take() {
            visit.leave(link);
        }
    }
}

impl Drop for Relay {
    /// Answers without a body are not read at all.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }
}

/// Why a request did not get an answer from a machine.
#[derive(Debug)]
enum Failure {
    /// Nothing is there now.
    NotReady,
    /// The token is missing or another's.
    Token,
    /// No connection could be made.
    Unreachable(std::io::Error),
    /// The connection broke before an answer.
    Broken(hyper::Error),
    /// The request cannot be passed on.
    Invalid(&'static str),
}

/// Passes a request on to where the route leads, and the answer back.
pub(crate) async fn pass(
    route: &Route,
    client: IpAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    match try_pass(route, client, request).await {
        Ok(response) => response,
        Err(failure) => refuse(&failure),
    }
}

async fn try_pass(
    route: &Route,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    if let Access::Token(token) = route.access()
        && !request
            .headers()
            .get(TOKEN_HEADER)
            .is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
    {
        return Err(Failure::Token);
    }
    if request.method() == Method::CONNECT {
        return Err(Failure::Invalid("method: CONNECT is not passed on"));
    }
    let upstream = route.upstream().ok_or(Failure::NotReady)?;
    let visit = upstream.enter();
    let upgrade = headers::upgrade(request.headers());
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    headers::strip(request.headers_mut());
    headers::forward(request.headers_mut(), client);
    // As programs expect it; some clients name the whole address.
    *request.uri_mut() = path_only(request.uri());
    *request.version_mut() = Version::HTTP_11;
    match (upgrade, client_side) {
        (Some(protocol), Some(client_side)) => switch(visit, request, protocol, client_side).await,
        _ => exchange(visit, request).await,
    }
}

fn path_only(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// An ordinary request.
async fn exchange(visit: Visit, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let mut request = request.map(Either::Left);
    // A machine may close a kept connection at the very moment it is used. Then a request that has not been sent, or
    // that may be sent twice, is sent again; each kept connection that fails is one less, and a new one comes last.
    while let Some(link) = visit.upstream().kept() {
        let again = repeatable(&request);
        match send(link, request).await {
            Ok((response, link)) => return Ok(relay(visit, link, response)),
            Err((_, Some(unsent))) => request = unsent,
            Err((error, None)) => match again {
                Some(again) => request = again,
                None => return Err(Failure::Broken(error)),
            },
        }
    }
    let link = (visit.upstream().connect().await).map_err(Failure::Unreachable)?;
    match send(link, request).await {
        Ok((response, link)) => Ok(relay(visit, link, response)),
        Err((error, _)) => Err(Failure::Broken(error)),
    }
}

/// The same request once more, if it has no body and means the same when it comes twice (RFC 9110, 9.2.2).
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(Either::Right(Empty::new()));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

type Sent = Result<(Response<Incoming>, Link), (hyper::Error, Option<Request<RequestBody>>)>;

/// Sends a request and waits for the head of the answer, with both ends of the connection in this task.
async fn send(mut link: Link, request: Request<RequestBody>) -> Sent {
    let Link { sender, connection } = &mut link;
    let mut answer = std::pin::pin!(sender.try_send_request(request));
    let answered = std::future::poll_fn(|context| {
        if let Poll::Ready(answered) = answer.as_mut().poll(context) {
            return Poll::Ready(answered);
        }
        drive(connection, context);
        answer.as_mut().poll(context)
    })
    .await;
    match answered {
        Ok(response) => Ok((response, link)),
        Err(mut error) => {
            let unsent = error.take_message();
            Err((error.into_error(), unsent))
        }
    }
}

fn relay(visit: Visit, link: Link, mut response: Response<Incoming>) -> Response<Body> {
    headers::strip(response.headers_mut());
    response.map(|body| {
        Body::Relayed(Relay {
            body,
            lease: Some((visit, Some(link))),
        })
    })
}

/// A request that wants to speak another protocol from now on, such as a WebSocket.
async fn switch(
    visit: Visit,
    mut request: Request<Incoming>,
    protocol: HeaderValue,
    client_side: OnUpgrade,
) -> Result<Response<Body>, Failure> {
    let upgrade = HeaderValue::from_static("upgrade");
    request.headers_mut().insert(header::CONNECTION, upgrade);
    request.headers_mut().insert(header::UPGRADE, protocol);
    let io = (visit.upstream().dial().await).map_err(Failure::Unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(Failure::Broken)?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender
        .send_request(request)
        .await
        .map_err(Failure::Broken)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // An ordinary answer after all. Its connection is not used again.
        headers::strip(response.headers_mut());
        return Ok(response.map(|body| {
            Body::Relayed(Relay {
                body,
                lease: Some((visit, None)),
            })
        }));
    }
    let protocol = headers::upgrade(response.headers());
    let machine_side = hyper::upgrade::on(&mut response);
    headers::strip(response.headers_mut());
    let upgrade = HeaderValue::from_static("upgrade");
    response.headers_mut().insert(header::CONNECTION, upgrade);
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    tokio::spawn(async move {
        let (client, machine) = match tokio::try_join!(client_side, machine_side) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "a connection ended while it changed its protocol");
                return;
            }
        };
        let (mut client, mut machine) = (TokioIo::new(client), TokioIo::new(machine));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut machine).await {
            tracing::debug!(%error, "a tunnel ended early");
        }
        drop(visit);
    });
    Ok(response.map(|_| Body::Text(Full::default())))
}

/// Says what is wrong, in the shape that the API's errors have.
fn refuse(failure: &Failure) -> Response<Body> {
    let (status, code, message) = match failure {
        Failure::NotReady => (
            StatusCode::SERVICE_UNAVAILABLE,
            "service_not_ready",
            "the service takes no requests now; ask again in a moment",
        ),
        Failure::Token => (
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this service takes no public traffic: send its token in x-nullspace-traffic-access-token",
        ),
        Failure::Unreachable(_) => (
            StatusCode::BAD_GATEWAY,
            "service_unreachable",
            "nothing answers on the service's port",
        ),
        Failure::Broken(_) => (
            StatusCode::BAD_GATEWAY,
            "service_unreachable",
            "the service closed the connection without an answer",
        ),
        Failure::Invalid(why) => (StatusCode::BAD_REQUEST, "invalid_request", *why),
    };
    match failure {
        Failure::Unreachable(error) => {
            tracing::debug!(%error, "a machine's port could not be reached")
        }
        Failure::Broken(error) => tracing::debug!(%error, "a machine broke a connection"),
        _ => {}
    }
    let text = serde_json::json!({"error": message, "code": code}).to_string();
    let mut response = Response::new(Body::Text(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"a"));
    }

    #[test]
    fn only_the_path_goes_on() {
        for (given, passed) in [
            ("http://there:80/a?b=c", "/a?b=c"),
            ("/x", "/x"),
            ("http://there", "/"),
        ] {
            assert_eq!(path_only(&Uri::from_static(given)), passed);
        }
    }
}

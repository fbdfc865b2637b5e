//! One request, from a door to a machine and back.

use std::{net::IpAddr, sync::Arc, task::Poll, time::Duration};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery,
};
use http_body::Body as _;
use http_body_util::{BodyExt, Either, Empty};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use crate::{
    Access, Route, TOKEN_HEADER,
    body::{Body, Counted, Sending, Tally},
    guard::{Pass, Visitor},
    headers,
    refusal::Failure,
    upstream::{Link, RequestBody, Visit, drive},
};

/// The most of a refused request's body that is read and thrown away, so that its client gets to read the answer.
const MOST_LEFT: usize = 64 << 20;
/// How long that may take.
const LEFT_PATIENCE: Duration = Duration::from_secs(10);

/// Passes a request on to where the route leads, and the answer back.
pub async fn pass(route: &Route, client: IpAddr, request: Request<Incoming>) -> Response<Body> {
    match try_pass(route, client, request).await {
        Ok(response) => response,
        Err(failure) => failure.answer(route.what()),
    }
}

async fn try_pass(
    route: &Route,
    client: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Failure> {
    let upgrade = headers::upgrade(request.headers());
    let admitted = match admit(route, &mut request, upgrade.as_ref()) {
        Ok(admitted) => admitted,
        Err(failure) => {
            discard(request.into_body());
            return Err(failure);
        }
    };
    let client_side = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    headers::strip(request.headers_mut());
    headers::forward(request.headers_mut(), client);
    // As programs expect it; some clients name the whole address.
    *request.uri_mut() = path_only(request.uri());
    *request.version_mut() = Version::HTTP_11;
    let Admitted { visit, pass } = admitted;
    let Some(pass) = pass else {
        return forward(visit, request, upgrade, client_side, None).await;
    };
    if let Some(host) = pass.host.clone() {
        request.headers_mut().insert(header::HOST, host);
    }
    let tally = Arc::new(Tally::new(pass.account.clone()));
    let guarded = Guarded {
        pass: &pass,
        tally: &tally,
    };
    let forwarding = forward(visit, request, upgrade, client_side, Some(&guarded));
    let answered = tokio::select! {
        answered = within(&guarded, forwarding) => answered,
        () = pass.cut.cancelled() => Err(Failure::Cut),
    };
    match answered {
        Ok(mut response) => {
            if let Some(cookie) = pass.set_cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            Ok(response)
        }
        Err(failure) => {
            if let Some(account) = &pass.account {
                account.failed(failure.code());
            }
            Err(failure)
        }
    }
}

/// A request that may pass, and where to.
struct Admitted {
    visit: Visit,
    pass: Option<Pass>,
}

/// A request that a guard has let pass.
struct Guarded<'a> {
    pass: &'a Pass,
    tally: &'a Arc<Tally>,
}

fn admit(
    route: &Route,
    request: &mut Request<Incoming>,
    upgrade: Option<&HeaderValue>,
) -> Result<Admitted, Failure> {
    let mut pass = None;
    match route.access() {
        Access::Public => {}
        Access::Token(token) => {
            let given = request.headers().get(TOKEN_HEADER);
            if !given.is_some_and(|given| same(given.as_bytes(), token.as_bytes())) {
                return Err(Failure::Token);
            }
        }
        Access::Guarded(guard) => {
            let websocket =
                upgrade.is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
            let method = request.method().clone();
            let mut uri = std::mem::take(request.uri_mut());
            let admitted = guard.admit(Visitor {
                method: &method,
                uri: &mut uri,
                headers: request.headers_mut(),
                websocket,
            });
            *request.uri_mut() = uri;
            pass = Some(admitted.map_err(Failure::Refused)?);
        }
    }
    if request.method() == Method::CONNECT {
        return Err(Failure::Invalid("method: CONNECT is not passed on"));
    }
    let upstream = route.upstream().ok_or(Failure::NotReady)?;
    Ok(Admitted {
        visit: upstream.enter(),
        pass,
    })
}

async fn forward(
    visit: Visit,
    request: Request<Incoming>,
    upgrade: Option<HeaderValue>,
    client_side: Option<OnUpgrade>,
    guarded: Option<&Guarded<'_>>,
) -> Result<Response<Body>, Failure> {
    match (upgrade, client_side) {
        (Some(protocol), Some(client_side)) => {
            switch(visit, request, protocol, client_side, guarded).await
        }
        _ => exchange(visit, request, guarded).await,
    }
}

/// Waits for an answer for as long as the request moves, and a while longer.
async fn within(
    guarded: &Guarded<'_>,
    answer: impl Future<Output = Result<Response<Body>, Failure>>,
) -> Result<Response<Body>, Failure> {
    tokio::pin!(answer);
    loop {
        let moved = guarded.tally.moved();
        match tokio::time::timeout(guarded.pass.patience, answer.as_mut()).await {
            Ok(answer) => return answer,
            Err(_) if guarded.tally.moved() == moved => return Err(Failure::Slow),
            Err(_) => {}
        }
    }
}

/// Reads what a refused client still sends, beside its answer: dropped, the body would make the server close the
/// connection and the kernel reset it, and a client that sends first and reads later would never see the answer.
fn discard(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(LEFT_PATIENCE, async move {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if read > MOST_LEFT {
                return;
            }
        }
    }));
}

fn path_only(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned();
    Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")))
}

/// Compares in a time that does not depend on where they differ.
#[must_use]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// An ordinary request.
async fn exchange(
    visit: Visit,
    request: Request<Incoming>,
    guarded: Option<&Guarded<'_>>,
) -> Result<Response<Body>, Failure> {
    let mut request = request.map(|body| sending(body, guarded));
    // A machine may close a kept connection at the very moment it is used. Then a request that has not been sent, or
    // that may be sent twice, is sent again; each kept connection that fails is one less, and a new one comes last.
    while let Some(link) = visit.upstream().kept() {
        let again = repeatable(&request);
        match send(link, request).await {
            Ok((response, link)) => return Ok(relay(visit, link, response, guarded)),
            Err((_, Some(unsent))) => request = unsent,
            Err((error, None)) => match again {
                Some(again) => request = again,
                None => return Err(Failure::Broken(error)),
            },
        }
    }
    let link = match visit.upstream().connect().await {
        Ok(link) => link,
        Err(error) => {
            if let Either::Left(unsent) = request.into_body() {
                discard(unsent.body);
            }
            return Err(Failure::dialling(error));
        }
    };
    match send(link, request).await {
        Ok((response, link)) => Ok(relay(visit, link, response, guarded)),
        Err((error, _)) => Err(Failure::Broken(error)),
    }
}

/// The client's body as it is sent on.
fn sending(body: Incoming, guarded: Option<&Guarded<'_>>) -> RequestBody {
    let tally = guarded
        .filter(|_| !body.is_end_stream())
        .map(|guarded| guarded.tally.clone());
    Either::Left(Sending { body, tally })
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

fn relay(
    visit: Visit,
    link: Link,
    mut response: Response<Incoming>,
    guarded: Option<&Guarded<'_>>,
) -> Response<Body> {
    headers::answer(response.headers_mut());
    response.map(|body| Body::relayed(body, visit, Some(link), watched(guarded)))
}

type Watch = Option<(
    Option<Arc<dyn crate::guard::Account>>,
    tokio_util::sync::CancellationToken,
)>;

fn watched(guarded: Option<&Guarded<'_>>) -> Watch {
    guarded.map(|guarded| (guarded.pass.account.clone(), guarded.pass.cut.clone()))
}

/// A request that wants to speak another protocol from now on, such as a WebSocket.
async fn switch(
    visit: Visit,
    mut request: Request<Incoming>,
    protocol: HeaderValue,
    client_side: OnUpgrade,
    guarded: Option<&Guarded<'_>>,
) -> Result<Response<Body>, Failure> {
    let upgrade = HeaderValue::from_static("upgrade");
    request.headers_mut().insert(header::CONNECTION, upgrade);
    request.headers_mut().insert(header::UPGRADE, protocol);
    let io = (visit.upstream().dial().await).map_err(Failure::dialling)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
        .await
        .map_err(Failure::Broken)?;
    tokio::spawn(connection.with_upgrades());
    let mut response = sender
        .send_request(request.map(|body| sending(body, guarded)))
        .await
        .map_err(Failure::Broken)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // An ordinary answer after all. Its connection is not used again.
        headers::answer(response.headers_mut());
        return Ok(response.map(|body| Body::relayed(body, visit, None, watched(guarded))));
    }
    let protocol = headers::upgrade(response.headers());
    let machine_side = hyper::upgrade::on(&mut response);
    headers::answer(response.headers_mut());
    let upgrade = HeaderValue::from_static("upgrade");
    response.headers_mut().insert(header::CONNECTION, upgrade);
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    let (account, cut) = watched(guarded).unwrap_or_default();
    tokio::spawn(async move {
        let tunnel = async {
            let (client, mut machine) = match tokio::try_join!(client_side, machine_side) {
                Ok((client, machine)) => (TokioIo::new(client), TokioIo::new(machine)),
                Err(error) => {
                    tracing::debug!(%error, "a connection ended while it changed its protocol");
                    return;
                }
            };
            let mut client = Counted {
                io: client,
                account,
            };
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut machine).await {
                tracing::debug!(%error, "a tunnel ended early");
            }
        };
        tokio::select! {
            () = tunnel => {}
            () = cut.cancelled() => {}
        }
        drop(visit);
    });
    Ok(response.map(|_| Body::text("")))
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

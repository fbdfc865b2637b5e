//! Answers that take long: clients give up after 30 s of silence, so the answer begins before it is known.

use std::{pin::Pin, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::{IntoResponse, Response},
};
use http::header;

/// Between two signs of life in a long answer.
const TRICKLE: Duration = Duration::from_secs(10);

/// Work that becomes the body of an answer.
pub(super) type Work = Pin<Box<dyn Future<Output = Ending> + Send>>;

/// The last bytes of an answer.
pub(super) enum Ending {
    /// That is all.
    Whole(Vec<u8>),
    /// That, and then the connection breaks: the only way to say that it went wrong to whoever was told that all is well.
    Broken(Vec<u8>),
}

/// 200, spaces until `work` is done, and what came of it. A client that goes away drops the stream, and with it the work.
pub(super) fn answer(work: Work) -> Response {
    enum Next {
        Begin(Work),
        Wait(Work),
        Break,
    }
    let stream = futures_util::stream::unfold(Some(Next::Begin(work)), |next| async move {
        let space = Ok(Bytes::from_static(b" "));
        match next? {
            Next::Begin(work) => Some((space, Some(Next::Wait(work)))),
            Next::Wait(mut work) => match tokio::time::timeout(TRICKLE, &mut work).await {
                Err(_) => Some((space, Some(Next::Wait(work)))),
                Ok(Ending::Whole(bytes)) => Some((Ok(bytes.into()), None)),
                Ok(Ending::Broken(bytes)) => Some((Ok(bytes.into()), Some(Next::Break))),
            },
            Next::Break => {
                // What was said before is sent only when there is nothing more for now.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("it went wrong")), None))
            }
        }
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(stream),
    )
        .into_response()
}

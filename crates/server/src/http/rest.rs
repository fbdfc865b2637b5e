//! What is left of a request's body when its answer is ready.
//!
//! A request may be refused before its body was read: the key is wrong, the machine is not there, the body is too
//! large. Dropped then, the body would make hyper close the connection, and the kernel reset it over what is still
//! on its way: a client that sends first and reads later would never see the answer. So what is left is read and
//! thrown away beside the answer, within bounds.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// The most that is thrown away. A client that sends more finds the connection closed.
const MOST: usize = 64 << 20;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A body of which one end is with the handler and one here.
struct Shared(Arc<Mutex<Body>>);

impl http_body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.size_hint()
    }
}

/// The other end of a request's body.
pub(super) struct Rest(Option<Arc<Mutex<Body>>>);

/// Keeps hold of a request's body.
pub(super) fn keep(request: Request) -> (Request, Rest) {
    if http_body::Body::is_end_stream(request.body()) {
        return (request, Rest(None));
    }
    let (parts, body) = request.into_parts();
    let shared = Arc::new(Mutex::new(body));
    let body = Body::new(Shared(shared.clone()));
    (Request::from_parts(parts, body), Rest(Some(shared)))
}

impl Rest {
    /// Reads what the handler has left, unless something still reads on.
    pub(super) fn discard(self) {
        let Some(body) = self.0.and_then(Arc::into_inner) else {
            return;
        };
        let mut body = body.into_inner().unwrap_or_else(PoisonError::into_inner);
        if http_body::Body::is_end_stream(&body) {
            return;
        }
        tokio::spawn(tokio::time::timeout(PATIENCE, async move {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > MOST {
                    return;
                }
            }
        }));
    }
}

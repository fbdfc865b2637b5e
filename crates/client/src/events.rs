//! Lifecycle events: lists, and following them as they happen.

use nullspace_api::event::{
    EventInfo, EventPage, ListEventsQuery, StreamMessage, StreamRequest, Subscribe,
};

use crate::error::{ApiError, Error};
use crate::socket::Frames;
use crate::transport::{Call, Client};

const STREAM: &str = "/v1/lifecycle/ws";

/// Events as they happen, over one connection.
#[derive(Debug)]
pub struct EventStream(Frames);

impl Client {
    /// A page of the log of all machines.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_events(&self, query: &ListEventsQuery) -> Result<EventPage, Error> {
        let call = Call::get("/v1/lifecycle/events")
            .query("offset", query.offset)
            .query("limit", query.limit)
            .query("order", query.order.as_ref())
            .query("operation", query.operation.as_ref())
            .query("status", query.status.as_ref())
            .query("from", query.from.as_ref())
            .query("to", query.to.as_ref())
            .query("audience", query.audience.as_ref())
            .query("machine_id", query.machine_id.as_ref())
            .query("snapshot_id", query.snapshot_id.as_ref())
            .query("source_machine_id", query.source_machine_id.as_ref())
            .query("target_machine_id", query.target_machine_id.as_ref());
        self.fetch(call).await
    }

    /// Follows the log of all machines. When the connection ends, ask again after the last event that came.
    ///
    /// # Errors
    /// See [`Error`]; `invalid_request` when the server does not understand what is asked for.
    pub async fn follow_events(&self, subscribe: Subscribe) -> Result<EventStream, Error> {
        let mut stream = EventStream(self.frames(STREAM.to_owned()).await?);
        let said = StreamRequest::Subscribe(Box::new(subscribe));
        stream.0.send(&said).await?;
        match stream.0.next().await? {
            Some(StreamMessage::Subscribed { .. }) => Ok(stream),
            Some(StreamMessage::Event { .. }) => {
                Err(lost("an event came before the answer".into()))
            }
            Some(StreamMessage::Error { message, code }) => Err(refused(code, message)),
            None => Err(lost("the server closed the stream".into())),
        }
    }
}

impl EventStream {
    /// The next event; `None` when the server has closed the connection.
    ///
    /// # Errors
    /// [`Error::Transport`] when the connection breaks, or nothing is heard from the server for a minute.
    pub async fn next(&mut self) -> Result<Option<EventInfo>, Error> {
        loop {
            match self.0.next().await? {
                Some(StreamMessage::Event { event }) => return Ok(Some(*event)),
                Some(StreamMessage::Subscribed { .. }) => {}
                Some(StreamMessage::Error { message, code }) => return Err(refused(code, message)),
                None => return Ok(None),
            }
        }
    }
}

fn lost(reason: String) -> Error {
    Error::Transport {
        method: http::Method::GET,
        path: STREAM.to_owned(),
        reason,
        unsent: false,
    }
}

fn refused(code: String, message: String) -> Error {
    Error::Api(Box::new(ApiError {
        status: 0,
        code,
        message,
        request_id: None,
        retryable: None,
        suggested_action: None,
        error_detail: None,
        details: None,
    }))
}

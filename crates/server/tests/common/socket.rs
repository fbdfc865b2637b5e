//! A client of machines' WebSockets.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, client::IntoClientRequest, handshake::client::Response},
};

use super::World;

/// How long anything may take: far more than it ever does.
pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Client(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub async fn open(world: &World, id: &str) -> Self {
        Self::at(world, &format!("/v1/sandboxes/{id}/ws?channel=exec")).await
    }

    /// A client of the WebSocket at this path.
    pub async fn at(world: &World, path: &str) -> Self {
        let key = format!("Bearer {}", super::KEY);
        Self::with(world, path, &[("authorization", &key)])
            .await
            .unwrap()
            .0
    }

    /// The same with these headers; and what the server answers, or its refusal.
    pub async fn with(
        world: &World,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Self, Response), Error> {
        let address = world.url(path).replacen("http", "ws", 1);
        let mut request = address.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, response) = tokio_tungstenite::connect_async(request).await?;
        Ok((Self(socket), response))
    }

    pub async fn say(&mut self, message: Value) {
        let frame = Message::text(message.to_string());
        self.0.send(frame).await.unwrap();
    }

    /// The next message.
    pub async fn hear(&mut self) -> Value {
        loop {
            let frame = tokio::time::timeout(LIMIT, self.0.next()).await;
            match frame.unwrap().unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything of one request up to its end: standard output, standard error and the last message.
    pub async fn finish(&mut self, id: &str) -> (String, String, Value) {
        let (mut out, mut err) = (String::new(), String::new());
        loop {
            let message = self.hear().await;
            assert_eq!(message["id"], id, "{message}");
            let data = message["data"].as_str().unwrap_or_default();
            match message["type"].as_str().unwrap() {
                "exec_started" => {}
                "exec_stdout" => out.push_str(data),
                "exec_stderr" => err.push_str(data),
                _ => return (out, err, message),
            }
        }
    }

    pub async fn started(&mut self, id: &str) -> u64 {
        let message = self.hear().await;
        assert_eq!(
            (&message["type"], &message["id"]),
            (&json!("exec_started"), &json!(id))
        );
        message["pid"].as_u64().unwrap()
    }
}

//! A server of its own for each test: the fake engine, a temporary data directory, port 0.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../../../tests/ports.rs"]
mod ports;
pub mod project;
pub mod receiver;
pub mod socket;
pub mod ssh;

use std::{sync::Arc, time::Duration};

use nullspace_engine::{Engine, fake::FakeEngine};
use nullspace_server::{
    Config, PreviewDomain, ServeOptions, Server, SshListen, SshOptions, TemplateSource,
};
use nullspace_templates::Layer;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

pub const KEY: &str = "ns_live_test_key_0123456789abcdef";

pub struct World {
    pub data: tempfile::TempDir,
    pub layer: tempfile::TempDir,
    pub engine: Arc<FakeEngine>,
    pub config: Config,
    pub server: Option<Server>,
    pub client: reqwest::Client,
    pub preview_domain: Option<PreviewDomain>,
    _ports: ports::Ports,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let mut world = Self::new_with(config, None);
        world.start().await;
        world
    }

    /// On an engine that says that it keeps memory.
    pub async fn with_memory() -> Self {
        let mut world = Self::new_with(Config::default(), None);
        world.engine = Arc::new(FakeEngine::with_memory().unwrap());
        world.start().await;
        world
    }

    /// A server whose previews have names under this domain.
    pub async fn with_domain(config: Config, domain: &str) -> Self {
        let mut world = Self::new_with(config, Some(domain.parse().unwrap()));
        world.start().await;
        world
    }

    fn new_with(mut config: Config, preview_domain: Option<PreviewDomain>) -> Self {
        let ports = ports::Ports::take();
        config.gateway_first_port = ports.first;
        config.gateway_last_port = ports.last;
        Self {
            data: tempfile::tempdir().unwrap(),
            layer: tempfile::tempdir().unwrap(),
            engine: Arc::new(FakeEngine::new().unwrap()),
            config,
            server: None,
            client: reqwest::Client::new(),
            preview_domain,
            _ports: ports,
        }
    }

    pub fn options(&self) -> ServeOptions {
        ServeOptions {
            listen: ([127, 0, 0, 1], 0).into(),
            data_dir: self.data.path().to_owned(),
            bootstrap_key: Some(KEY.into()),
            on_minted_key: Box::new(|_| Ok(())),
            config: self.config.clone(),
            metrics_listen: Some(([127, 0, 0, 1], 0).into()),
            ssh: SshOptions {
                listen: SshListen::At(([127, 0, 0, 1], 0).into()),
                host: None,
            },
            templates: TemplateSource::Fixed(vec![Layer {
                name: "base".into(),
                digest: "0".repeat(64),
                lower: vec![self.layer.path().to_owned()],
                default_cwd: "/workspace".into(),
                env: vec![("FROM_TEMPLATE".into(), "yes".into())],
                binds: Vec::new(),
                runtime: nullspace_templates::Runtime::default(),
            }]),
            preview_domain: self.preview_domain.clone(),
            volume_keeper: vec![env!("CARGO_BIN_EXE_nullspace-keeper").to_owned()],
            ca_file: None,
        }
    }

    pub async fn start(&mut self) {
        let engine: Arc<dyn Engine> = self.engine.clone();
        self.server = Some(Server::start(self.options(), engine).await.unwrap());
    }

    /// Stops the server; the engine and its machines stay.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.as_ref().unwrap().address())
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path)).bearer_auth(KEY)
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn delete(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::DELETE, path)).await
    }

    /// A running machine's id.
    pub async fn machine(&self) -> String {
        let (status, body) = self.post("/v1/machines", json!({})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    pub async fn exec(&self, id: &str, body: Value) -> Value {
        let (status, body) = self.post(&format!("/v1/machines/{id}/exec"), body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub async fn status(&self, id: &str) -> String {
        let (_, body) = self.get(&format!("/v1/machines/{id}")).await;
        body["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until a machine has this status.
    pub async fn until(&self, id: &str, status: &str) {
        for _ in 0..200 {
            if self.status(id).await == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{id} did not become {status}: {}", self.status(id).await);
    }

    /// The events of a machine, oldest first, as `operation/status`.
    pub async fn events(&self, id: &str) -> Vec<String> {
        let (_, body) = self
            .get(&format!("/v1/machines/{id}/lifecycle?order=asc"))
            .await;
        body["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| {
                format!(
                    "{}/{}",
                    e["operation"].as_str().unwrap(),
                    e["status"].as_str().unwrap()
                )
            })
            .collect()
    }
}

pub async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let bytes = response.bytes().await.unwrap();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    (status, body)
}

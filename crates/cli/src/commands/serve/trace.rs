//! Spans for OpenTelemetry, when somebody wants them: exported over OTLP/HTTP, behind the requests' backs.
//!
//! ```text
//!  spans ──▶ queue (2048; what does not fit is dropped) ──▶ a thread ──every 5 s or 512──▶ the collector
//! ```
//! A collector that is slow or gone costs spans, never requests.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tokio::runtime::Handle;

use crate::error::CliError;

/// How long a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last spans may take when the server stops.
const LAST: Duration = Duration::from_secs(5);
/// Bytes of an answer that are looked at.
const ANSWER: usize = 64 << 10;

/// Where spans go.
pub(super) struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Exports to the address from now on, with connections that `runtime` drives. The usual variables (`OTEL_…`) say
    /// the rest: headers, name of the service, how much is sampled.
    pub(super) fn start(address: &str, runtime: &Handle) -> Result<Self, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            CliError::usage(format!("cannot export spans: {error}"))
                .hint("Correct --otlp-endpoint or the OTEL_… variables.")
        };
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(&error))?;
        let sender = Sender {
            http,
            runtime: runtime.clone(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_endpoint(address)
            .build()
            .map_err(|error| failed(&error))?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("nullspace");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        Ok(Self { provider })
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.provider.tracer("nullspace")
    }

    /// Sends what is left. The runtime must still run.
    pub(super) async fn finish(self) {
        let last = move || self.provider.shutdown_with_timeout(LAST);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(last).await {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

/// The exporter's thread has no runtime of its own: what it sends is handed to ours.
#[derive(Debug)]
struct Sender {
    http: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let mut answer = http.execute(request).await?;
            let mut body = BytesMut::new();
            while body.len() < ANSWER
                && let Some(chunk) = answer.chunk().await?
            {
                body.extend_from_slice(&chunk);
            }
            let response = Response::builder().status(answer.status());
            Ok::<_, HttpError>(response.body(body.freeze())?)
        });
        sent.await?
    }
}

//! Requests as parts of traces that began at their callers (W3C Trace Context). Where spans go, if anywhere, is the
//! composition root's business.

use http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes a request's span go on with what its caller began, if the caller says so. What cannot be read is as if it were
/// not there.
pub(crate) fn go_on(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() || !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Refused where spans are only for the log.
    let _ = span.set_parent(context);
}

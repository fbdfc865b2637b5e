//! What the server counts about itself, for Prometheus.
//!
//! ```text
//!  requests, commands, commits ──add──▶ counters (atomics) ─┐
//!  machines, process, event log ──read at each scrape───────┴─▶ text
//! ```
//! Counting is a look-up and a few additions; nothing is allocated for a request once its route was met. Names, labels
//! and how many there can be are in `docs/monitoring.md`.

mod histogram;
mod process;
mod scrape;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nullspace_store::Store;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

pub(crate) use self::histogram::Histogram;
pub(crate) use self::scrape::{CONTENT_TYPE, scrape};

/// The label of what matched no route.
const NO_ROUTE: &str = "none";

/// The counters.
#[derive(Debug)]
pub(crate) struct Counts {
    registry: Registry,
    routes: RwLock<HashSet<&'static str>>,
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Histogram>,
    /// Machines that were made, from the request to the answer.
    pub(crate) created: Histogram,
    /// Machines that could not be made.
    pub(crate) create_failures: Counter,
    /// Commands that were run to their end.
    pub(crate) commands: Histogram,
    /// WebSockets that are open.
    pub(crate) sockets: Gauge,
    /// One scrape at a time: whoever may ask must not make more work than that.
    scraping: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}

impl Counts {
    /// Counts from now on, what is committed to the record too.
    pub(crate) fn new(store: &Store) -> Self {
        let mut registry = Registry::with_prefix("nullspace");
        let requests = Family::default();
        registry.register(
            "http_requests",
            "Requests to the API that were answered",
            requests.clone(),
        );
        let durations = Family::default();
        let mut seconds = |name: &str, help: &str| {
            let histogram = Histogram::default();
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let created = seconds(
            "machine_create",
            "From the request for a machine to its answer",
        );
        let commands = seconds("exec", "Commands that were run to their end");
        let commits = seconds(
            "store_commit",
            "Transactions of the record, each of one or more writes",
        );
        registry.register_with_unit(
            "http_request",
            "From a request to the head of its answer",
            Unit::Seconds,
            durations.clone(),
        );
        let create_failures = Counter::default();
        registry.register(
            "machine_create_failures",
            "Machines that could not be made",
            create_failures.clone(),
        );
        let writes: Counter = Counter::default();
        registry.register("store_writes", "Writes to the record", writes.clone());
        let sockets = Gauge::default();
        registry.register("websockets", "Open WebSockets of the API", sockets.clone());
        store.on_commit(Arc::new(move |took, count| {
            commits.observe(took);
            writes.inc_by(count as u64);
        }));
        Self {
            registry,
            routes: RwLock::default(),
            requests,
            durations,
            created,
            create_failures,
            commands,
            sockets,
            scraping: tokio::sync::Mutex::default(),
        }
    }

    /// A request was answered. `route` is its template, never what a client wrote.
    pub(crate) fn answered(
        &self,
        route: Option<&str>,
        method: &http::Method,
        status: http::StatusCode,
        took: Duration,
    ) {
        let route = route.map_or(NO_ROUTE, |route| self.known(route));
        let method = known_method(method);
        let labels = RouteLabels { route, method };
        self.durations.get_or_create(&labels).observe(took);
        let labels = RequestLabels {
            route,
            method,
            status: status.as_u16(),
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// The one copy of a route's template; there are as many as the router has.
    fn known(&self, route: &str) -> &'static str {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = routes.get(route) {
            return known;
        }
        drop(routes);
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = routes.get(route) {
            return known;
        }
        let new: &'static str = Box::leak(route.into());
        routes.insert(new);
        new
    }
}

/// A client may make methods up.
fn known_method(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Counts one more for as long as it is held.
pub(crate) struct Held(Gauge);

impl Held {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

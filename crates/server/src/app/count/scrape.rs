//! One scrape: what was counted, and what is read only now.

use std::{collections::BTreeMap, sync::atomic::AtomicU64, time::Duration};

use futures_util::StreamExt;
use nullspace_engine::Usage;
use nullspace_store::event;
use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::process;
use crate::{
    app::{App, machine},
    error::{Error, Result},
};

pub(crate) use prometheus_text::CONTENT_TYPE;

/// Machines that are measured together.
const TOGETHER: usize = 16;
/// How long a machine may take to be measured; it is left out then.
const PATIENCE: Duration = Duration::from_secs(3);

/// One number of a machine.
type Number = fn(&Usage) -> u64;
type Seconds = Counter<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMachine {
    machine_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: &'static str,
}

/// Everything, in Prometheus' text format.
///
/// # Errors
/// When the record cannot be read.
pub(crate) async fn scrape(app: &App) -> Result<String> {
    let _alone = app.counts.scraping.lock().await;
    let mut now = Registry::with_prefix("nullspace");
    let build = Info::new([
        ("version", env!("CARGO_PKG_VERSION")),
        ("engine", app.engine.name()),
    ]);
    now.register("build", "What runs here", build);
    machines(app, &mut now).await;
    traffic(&mut now);
    let events: Counter = Counter::default();
    events.inc_by(app.store.read(event::count).await?);
    now.register("events", "Lifecycle events that were ever recorded", events);
    let mut own = Registry::default();
    process::register(&mut own);
    let mut text = String::new();
    for registry in [&app.counts.registry, &now, &own] {
        prometheus_text::encode(&mut text, registry)
            .map_err(|_| Error::internal("writing metrics as text"))?;
    }
    Ok(text)
}

/// How many live, by state, and what those that run use.
async fn machines(app: &App, registry: &mut Registry) {
    let mut states = BTreeMap::from([("creating", 0), ("paused", 0), ("running", 0)]);
    let mut running = Vec::new();
    for handle in app.machines.all() {
        let row = handle.row();
        if let Some(count) = states.get_mut(row.state.as_str()) {
            *count += 1;
        }
        if row.state == machine::RUNNING {
            running.push((row.seq, handle));
        }
    }
    let by_state: Family<ByState, Gauge> = Family::default();
    for (state, count) in states {
        by_state.get_or_create(&ByState { state }).set(count);
    }
    registry.register("machines", "Machines that live", by_state);

    // The oldest ones, so that it is the same ones each time.
    running.sort_by_key(|(seq, _)| *seq);
    running.truncate(app.config.metrics_machines);
    let measured: Vec<(String, Usage)> = futures_util::stream::iter(running)
        .map(|(_, handle)| async move {
            let usage = app.engine.usage(&handle.id);
            let usage = tokio::time::timeout(PATIENCE, usage).await.ok()?.ok()?;
            Some((handle.id.clone(), usage))
        })
        .buffered(TOGETHER)
        .filter_map(std::future::ready)
        .collect()
        .await;
    if measured.is_empty() {
        return;
    }
    let cpu: Family<ByMachine, Seconds> = Family::default();
    let rx: Family<ByMachine, Counter> = Family::default();
    let tx: Family<ByMachine, Counter> = Family::default();
    let gauges: [(&str, &str, Number); 4] = [
        (
            "machine_memory_used",
            "Memory that a machine uses, without files that are only kept at hand",
            |usage| usage.memory_bytes,
        ),
        (
            "machine_memory_limit",
            "The most memory that a machine may have",
            |usage| usage.memory_limit_bytes,
        ),
        (
            "machine_disk_used",
            "What was written in a machine takes on disk",
            |usage| usage.disk_used_bytes,
        ),
        (
            "machine_disk_limit",
            "That and what is free on the disk",
            |usage| usage.disk_total_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        let family: Family<ByMachine, Gauge> = Family::default();
        for (machine_id, usage) in &measured {
            let labels = ByMachine {
                machine_id: machine_id.clone(),
            };
            let value = i64::try_from(value(usage)).unwrap_or(i64::MAX);
            family.get_or_create(&labels).set(value);
        }
        registry.register_with_unit(name, help, Unit::Bytes, family);
    }
    for (machine_id, usage) in measured {
        let labels = ByMachine { machine_id };
        let spent = usage.cpu_micros as f64 / 1e6;
        cpu.get_or_create(&labels).inc_by(spent);
        rx.get_or_create(&labels).inc_by(usage.network_rx_bytes);
        tx.get_or_create(&labels).inc_by(usage.network_tx_bytes);
    }
    let help = "Processor time of a machine since it was made";
    registry.register_with_unit("machine_cpu", help, Unit::Seconds, cpu);
    let help = "Bytes that came to a machine over its link";
    registry.register_with_unit("machine_network_receive", help, Unit::Bytes, rx);
    let help = "Bytes that went out of a machine over its link";
    registry.register_with_unit("machine_network_transmit", help, Unit::Bytes, tx);
}

/// What went through the doors into machines.
fn traffic(registry: &mut Registry) {
    let (received, sent) = nullspace_gateway::traffic();
    let bytes: Family<ByDirection, Counter> = Family::default();
    for (direction, count) in [("in", received), ("out", sent)] {
        bytes
            .get_or_create(&ByDirection { direction })
            .inc_by(count);
    }
    let help =
        "Bytes through the ports that lead into machines, as clients sent (in) and got them (out)";
    registry.register_with_unit("gateway", help, Unit::Bytes, bytes);
}

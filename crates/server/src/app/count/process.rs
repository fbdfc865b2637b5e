//! The server's own process, by the names that Prometheus' clients give these numbers everywhere.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

/// Adds what can be read; on a host that does not say, it is left out.
pub(super) fn register(registry: &mut Registry) {
    let gauge = |registry: &mut Registry, name: &str, help: &str, value: Option<u64>| {
        if let Some(value) = value.and_then(|value| i64::try_from(value).ok()) {
            let gauge: Gauge = Gauge::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
    };
    let text = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
    let stat = text("stat");
    // The second field may hold spaces and parentheses; what follows it does not.
    let fields: Vec<u64> = stat
        .as_deref()
        .and_then(|stat| stat.rsplit_once(") "))
        .map(|(_, rest)| rest.split(' ').map(|n| n.parse().unwrap_or(0)).collect())
        .unwrap_or_default();
    let tick = rustix::param::clock_ticks_per_second() as f64;
    if let (Some(user), Some(system)) = (fields.get(11), fields.get(12)) {
        let spent: Counter<f64, std::sync::atomic::AtomicU64> = Counter::default();
        spent.inc_by((user + system) as f64 / tick);
        let help = "Processor time of the server";
        registry.register_with_unit("process_cpu", help, Unit::Seconds, spent);
    }
    let page = rustix::param::page_size() as u64;
    gauge(
        registry,
        "process_resident_memory_bytes",
        "Memory of the server",
        fields.get(21).map(|pages| pages * page),
    );
    gauge(
        registry,
        "process_open_fds",
        "Descriptors that the server has open",
        std::fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| entries.count() as u64),
    );
    let limits = text("limits").unwrap_or_default();
    let most = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    gauge(
        registry,
        "process_max_fds",
        "Descriptors that the server may have open",
        most,
    );
    let boot = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot: Option<u64> = boot
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok());
    if let (Some(boot), Some(ticks)) = (boot, fields.get(19)) {
        let start: Gauge<f64, std::sync::atomic::AtomicU64> = Gauge::default();
        start.set(boot as f64 + *ticks as f64 / tick);
        let help = "When the server started, in seconds since 1970";
        registry.register("process_start_time_seconds", help, start);
    }
}

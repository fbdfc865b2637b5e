//! What machines use: the engine's readings, two of which make a load.
//!
//! Each live machine has a [`Meter`] with its last reading, shared by all who ask: however many they are, a machine is
//! read at most a few times a second.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nullspace_api::{metrics::MachineMetrics, time};
use nullspace_engine::Usage;

use super::{
    App,
    machine::{self, Handle},
};
use crate::error::{Error, Result};

/// How far two readings are apart at least: the kernel counts processor time in steps.
const SPAN: Duration = Duration::from_millis(200);
/// A reading that is older says little of now.
const OLD: Duration = Duration::from_secs(10);

/// The last reading of one machine.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Option<Reading>>);

#[derive(Clone, Copy, Debug)]
struct Reading {
    usage: Usage,
    /// Microseconds since 1970.
    taken_at: i64,
    /// Load since the reading before; `None` when there was none.
    cpu_percent: Option<f64>,
}

/// How old what is told may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    /// A reading that is not older is told again.
    pub(crate) fresh: Duration,
    /// One that is older is no beginning for a load.
    pub(crate) old: Duration,
}

impl Age {
    /// For who asks once.
    pub(crate) const NOW: Self = Self {
        fresh: SPAN,
        old: OLD,
    };
}

/// What a running machine uses now. The first time this takes a fifth of a second: a load is between two readings.
///
/// # Errors
/// `machine_not_found`, `machine_not_ready`; those of the engine.
pub async fn current(app: &App, id: &str) -> Result<MachineMetrics> {
    let Some(handle) = app.machines.get(id) else {
        let row = machine::get(app, id).await?;
        return Err(Error::not_ready(id, &row.state));
    };
    loop {
        let row = handle.row();
        if row.state != machine::RUNNING {
            return Err(Error::not_ready(id, &row.state));
        }
        if let Some(metrics) = sample(app, &handle, Age::NOW).await? {
            return Ok(metrics);
        }
        tokio::time::sleep(SPAN).await;
    }
}

/// What a machine uses; `None` when this was the first reading that counts, so that there is no load yet.
///
/// # Errors
/// Those of the engine.
pub(crate) async fn sample(app: &App, handle: &Handle, age: Age) -> Result<Option<MachineMetrics>> {
    let last = handle.meter.last();
    let told = last
        .filter(|last| last.cpu_percent.is_some() && last.usage.at.elapsed() < age.fresh.max(SPAN));
    let reading = match told {
        Some(told) => told,
        None => {
            let usage = app.engine.usage(&handle.id).await?;
            let before = last.filter(|last| last.usage.at.elapsed() < age.old);
            handle.meter.keep(before, usage)
        }
    };
    let Reading {
        usage, taken_at, ..
    } = reading;
    Ok(reading.cpu_percent.map(|cpu_percent| MachineMetrics {
        timestamp: time::rfc3339(taken_at),
        cpu_percent,
        cpu_count: handle.row().vcpus,
        mem_used_bytes: usage.memory_bytes,
        mem_total_bytes: usage.memory_limit_bytes,
        disk_used_bytes: usage.disk_used_bytes,
        disk_total_bytes: usage.disk_total_bytes,
        network_rx_bytes: usage.network_rx_bytes,
        network_tx_bytes: usage.network_tx_bytes,
    }))
}

impl Meter {
    fn last(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a reading if it is worth more than the one before.
    fn keep(&self, before: Option<Reading>, usage: Usage) -> Reading {
        let cpu_percent = before.and_then(|before| load(&before.usage, &usage));
        let reading = Reading {
            usage,
            taken_at: time::now(),
            cpu_percent,
        };
        if cpu_percent.is_some() || before.is_none() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reading);
        }
        reading
    }
}

/// Processor time between two readings, 100 being one core; `None` when they are too close together.
fn load(before: &Usage, after: &Usage) -> Option<f64> {
    let span = after.at.checked_duration_since(before.at)?;
    if span < SPAN {
        return None;
    }
    let spent = after.cpu_micros.saturating_sub(before.cpu_micros);
    let percent = spent as f64 / span.as_micros() as f64 * 100.0;
    Some((percent * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn usage(at: Instant, cpu_micros: u64) -> Usage {
        Usage {
            at,
            cpu_micros,
            memory_bytes: 0,
            memory_limit_bytes: 0,
            disk_used_bytes: 0,
            disk_total_bytes: 0,
            network_rx_bytes: 0,
            network_tx_bytes: 0,
        }
    }

    #[test]
    fn a_load_is_between_two_readings() {
        let start = Instant::now();
        let (first, half) = (usage(start, 500), usage(start + SPAN * 2, 200_500));
        assert_eq!(load(&first, &half), Some(50.0));
        assert_eq!(load(&first, &usage(start + SPAN, 400_500)), Some(200.0));
        assert_eq!(load(&first, &usage(start + SPAN / 2, 900_000)), None);
        assert_eq!(load(&half, &first), None);
    }

    #[test]
    fn readings_that_are_too_close_do_not_take_the_place_of_the_first() {
        let (meter, start) = (Meter::default(), Instant::now());
        assert_eq!(meter.keep(None, usage(start, 0)).cpu_percent, None);
        for n in 1..10 {
            let close = usage(start + SPAN / 10 * n, 0);
            assert_eq!(meter.keep(meter.last(), close).cpu_percent, None);
        }
        let third = usage(start + SPAN, 50_000);
        assert_eq!(meter.keep(meter.last(), third).cpu_percent, Some(25.0));
        assert_eq!(meter.last().map(|last| last.usage), Some(third));
    }
}

//! A histogram of seconds that is only added to: no lock is taken, so that requests do not wait for each other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper ends of the buckets, in seconds: from a read of memory to a long command.
const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The last is for what is over all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.partition_point(|bound| *bound < seconds);
        self.0.buckets[at].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.0.buckets.iter();
        let buckets: Vec<(f64, u64)> = bounds
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
            .collect();
        // Of the buckets as they were read, so that all of it agrees.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::prometheus_text::encode, registry::Registry};

    use super::*;

    #[test]
    fn what_is_counted_is_in_its_bucket_and_all_above() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 700, 100_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut registry = Registry::default();
        registry.register("took", "Time", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        for line in [
            "took_bucket{le=\"0.0005\"} 1",
            "took_bucket{le=\"0.001\"} 2",
            "took_bucket{le=\"0.0025\"} 3",
            "took_bucket{le=\"0.5\"} 3",
            "took_bucket{le=\"1\"} 4",
            "took_bucket{le=\"60\"} 4",
            "took_bucket{le=\"+Inf\"} 5",
            "took_sum 100.703",
            "took_count 5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        let buckets = text.lines().filter(|l| l.starts_with("took_bucket"));
        assert_eq!(buckets.count(), BOUNDS.len() + 1, "{text}");
    }
}

//! What was measured, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

/// The rows whose slowest samples have a goal too.
const TAILS: [&str; 2] = ["create → result of true", "true in a live machine"];

#[derive(Default, Serialize)]
pub(crate) struct Table {
    rows: Vec<Row>,
    rates: Vec<Rate>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    samples: usize,
    p50_ms: f64,
    p99_ms: f64,
    /// `"crun run": 0.4` and so on: our median over theirs.
    ratios: Vec<Ratio>,
}

#[derive(Serialize)]
struct Ratio {
    to: String,
    ratio: f64,
    /// The most it may be; absent for orientation.
    goal: Option<f64>,
}

/// How often something was done in a second.
#[derive(Serialize)]
struct Rate {
    name: String,
    rounds: Vec<f64>,
    /// The median of the rounds.
    per_second: f64,
    /// To what, our rate over theirs, the least that it may be.
    ratio: Option<(String, f64, f64)>,
}

/// Sorted samples.
#[derive(Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn new(mut samples: Vec<Duration>) -> Self {
        samples.sort();
        Self(samples)
    }

    fn ms(&self, quantile: f64) -> f64 {
        let at = ((self.0.len() as f64 * quantile) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.ms(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.ms(0.99)
    }
}

impl Table {
    /// Adds a row. Each comparison is (to what, its milliseconds, the most that the ratio may be).
    pub(crate) fn row(
        &mut self,
        name: &str,
        samples: &Samples,
        against: &[(&str, Option<f64>, Option<f64>)],
    ) {
        let mut ratios: Vec<Ratio> = against
            .iter()
            .filter_map(|(to, ms, goal)| {
                Some(Ratio {
                    to: (*to).to_owned(),
                    ratio: samples.p50() / (*ms)?,
                    goal: *goal,
                })
            })
            .collect();
        if samples.0.len() >= 50 {
            let goal = TAILS.contains(&name).then_some(4.0);
            ratios.push(Ratio {
                to: "own p50 (p99)".into(),
                ratio: samples.p99() / samples.p50(),
                goal,
            });
        }
        self.push(name, samples, ratios);
    }

    /// Adds a row whose slowest samples may take so many milliseconds.
    pub(crate) fn row_within(&mut self, name: &str, samples: &Samples, p99_ms: f64) {
        let ratio = Ratio {
            to: format!("{p99_ms} ms (p99)"),
            ratio: samples.p99() / p99_ms,
            goal: Some(1.0),
        };
        self.push(name, samples, vec![ratio]);
    }

    fn push(&mut self, name: &str, samples: &Samples, ratios: Vec<Ratio>) {
        let (samples, p50_ms, p99_ms) = (samples.0.len(), samples.p50(), samples.p99());
        let row = Row {
            name: name.to_owned(),
            samples,
            p50_ms,
            p99_ms,
            ratios,
        };
        print_row(&row);
        self.rows.push(row);
    }

    /// Adds rounds of a rate, compared with (whose, their rate, the least that the ratio may be); returns the median.
    pub(crate) fn rate(
        &mut self,
        name: &str,
        mut rounds: Vec<f64>,
        against: Option<(&str, f64, f64)>,
    ) -> f64 {
        rounds.sort_by(f64::total_cmp);
        let per_second = rounds.get(rounds.len() / 2).copied().unwrap_or(f64::NAN);
        let ratio = against.map(|(to, theirs, goal)| (to.to_owned(), per_second / theirs, goal));
        let rate = Rate {
            name: name.to_owned(),
            rounds,
            per_second,
            ratio,
        };
        print_rate(&rate);
        self.rates.push(rate);
        per_second
    }

    /// A fact that is as it should be, or not.
    pub(crate) fn check(&mut self, good: bool, text: String) {
        let met = if good { "ok" } else { "MISSED" };
        self.note(format!("{text} {met}"));
    }

    /// A fact that is not a time.
    pub(crate) fn note(&mut self, text: String) {
        println!("  {text}");
        self.notes.push(text);
    }

    pub(crate) fn print(&self) {
        println!(
            "\n{:44} {:>7} {:>10} {:>10}  ratios (goal)",
            "what", "samples", "p50 ms", "p99 ms"
        );
        self.rows.iter().for_each(print_row);
        self.rates.iter().for_each(print_rate);
        self.notes.iter().for_each(|note| println!("{note}"));
    }
}

fn print_row(row: &Row) {
    let ratios: Vec<String> = row
        .ratios
        .iter()
        .map(|r| match r.goal {
            Some(goal) => {
                let met = if r.ratio <= goal { "ok" } else { "MISSED" };
                format!("{:.3} × {} (≤ {goal} {met})", r.ratio, r.to)
            }
            None => format!("{:.3} × {}", r.ratio, r.to),
        })
        .collect();
    println!(
        "{:44} {:>7} {:>10.3} {:>10.3}  {}",
        row.name,
        row.samples,
        row.p50_ms,
        row.p99_ms,
        ratios.join("; ")
    );
}

fn print_rate(rate: &Rate) {
    let ratio = rate.ratio.as_ref().map(|(to, ratio, goal)| {
        let met = if ratio >= goal { "ok" } else { "MISSED" };
        format!("{ratio:.3} × {to} (≥ {goal} {met})")
    });
    println!(
        "{:44} {:>7} {:>10.0} /s           {}",
        rate.name,
        rate.rounds.len(),
        rate.per_second,
        ratio.unwrap_or_default()
    );
}

//! Taking more than one's share, while another machine goes on with its work.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{How, Row, place::Place, probes::Group};
use crate::error::CliError;

/// How long each goes on.
const WHILE: Duration = Duration::from_secs(4);
/// Commands in the other machine beforehand.
const BEFORE: usize = 20;

/// What is run in a shell of a machine that is made for it, what it takes, and why that is no harm.
const ALL: [(&str, &str, &str); 6] = [
    ("processes", "f() { f & f & wait; }; f", "processes"),
    (
        "memory",
        "head -c 100G /dev/zero | tail > /dev/null",
        "memory",
    ),
    (
        "disk",
        "while :; do cat /dev/zero > /flood; done",
        "room on the disk",
    ),
    (
        "inodes",
        "i=0; while :; do : > /flood-$i; i=$((i+1)); done",
        "files on the disk",
    ),
    ("log", "yes", "the server's memory, by what is printed"),
    (
        "processors",
        "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait",
        "processors",
    ),
];

/// Runs all of them beside a machine.
pub(super) async fn all(place: &Place, beside: &str) -> Result<Vec<Row>, CliError> {
    let mut rows = Vec::new();
    for (name, line, what) in ALL {
        let how = match one(place, beside, line).await {
            Ok((before, during)) => How::Contained(format!(
                "another machine's command: {:.1} ms, {:.1} ms meanwhile",
                before * 1e3,
                during * 1e3
            )),
            Err(error) => How::Open(format!("another machine: {}", error.message)),
        };
        rows.push(Row {
            group: Group::Floods,
            name: name.to_owned(),
            what: what.to_owned(),
            how,
        });
    }
    Ok(rows)
}

/// How long a command takes in the other machine, before and meanwhile: the middle one, in seconds.
async fn one(place: &Place, beside: &str, line: &str) -> Result<(f64, f64), CliError> {
    let flooded = place.machine(json!({})).await?;
    let mut before = Vec::new();
    for _ in 0..BEFORE {
        before.push(command(place, beside).await?);
    }
    let body = json!({"command": line, "shell": true, "background": true});
    place
        .post(&format!("/v1/machines/{flooded}/exec"), body)
        .await?;
    let begun = Instant::now();
    let mut during = Vec::new();
    let went_on = loop {
        match command(place, beside).await {
            Ok(took) => during.push(took),
            Err(error) => break Err(error),
        }
        if begun.elapsed() > WHILE {
            break Ok(());
        }
    };
    place.delete(&format!("/v1/machines/{flooded}")).await;
    went_on?;
    Ok((middle(before), middle(during)))
}

async fn command(place: &Place, machine: &str) -> Result<f64, CliError> {
    let begun = Instant::now();
    let path = format!("/v1/machines/{machine}/exec");
    let answer = place.post(&path, json!({"command": "true"})).await?;
    match answer["exit_code"] == 0 {
        true => Ok(begun.elapsed().as_secs_f64()),
        false => Err(CliError::new("local_error", answer.to_string())),
    }
}

fn middle(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

//! In what two runs differ.

use nullspace_api::agent::Run;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Left, Side};
use crate::fields;

/// Path of the time from queued to end.
pub(super) const TOTAL: &str = "total";

/// What a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Version,
    Input,
    Status,
    ExitCode,
    FailureReason,
    /// In milliseconds.
    Duration,
    Output,
}

/// Something that is not the same in both runs; null where it is not there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    pub(super) kind: Kind,
    pub(super) path: String,
    pub(super) a: Value,
    pub(super) b: Value,
}

/// Whether nothing differs but durations, which always do a little.
pub(super) fn is_same(differences: &[Difference]) -> bool {
    differences
        .iter()
        .all(|difference| difference.kind == Kind::Duration)
}

/// All differences, kind by kind.
pub(super) fn sides(a: &Side, b: &Side) -> Vec<Difference> {
    let mut found = Found(Vec::new());
    found.text(
        Kind::Version,
        "deployment_id",
        Some(&a.run.deployment_id),
        Some(&b.run.deployment_id),
    );
    found.text(
        Kind::Version,
        "id",
        Some(&a.run.version_id),
        Some(&b.run.version_id),
    );
    if let (Some(a), Some(b)) = (&a.version, &b.version) {
        let (digest_a, digest_b) = (&a.bundle_digest, &b.bundle_digest);
        found.text(
            Kind::Version,
            "bundle_digest",
            Some(digest_a),
            Some(digest_b),
        );
        found.fields(Kind::Version, "config.", json!(a.config), json!(b.config));
    }
    found.fields(Kind::Input, "", json!(a.run.input), json!(b.run.input));
    found.text(
        Kind::Status,
        "status",
        Some(&a.run.status),
        Some(&b.run.status),
    );
    let (code_a, code_b) = (json!(a.run.exit_code), json!(b.run.exit_code));
    found.add(Kind::ExitCode, "exit_code", code_a, code_b);
    found.text(
        Kind::FailureReason,
        "failure_reason",
        a.run.failure_reason.as_ref(),
        b.run.failure_reason.as_ref(),
    );
    found.durations(&a.run, &b.run);
    found.outputs(&a.outputs, &b.outputs);
    found.0
}

struct Found(Vec<Difference>);

impl Found {
    fn add(&mut self, kind: Kind, path: &str, a: Value, b: Value) {
        if a != b {
            self.0.push(Difference {
                kind,
                path: path.to_owned(),
                a,
                b,
            });
        }
    }

    fn text(&mut self, kind: Kind, path: &str, a: Option<&String>, b: Option<&String>) {
        self.add(kind, path, json!(a), json!(b));
    }

    fn fields(&mut self, kind: Kind, prefix: &str, a: Value, b: Value) {
        // Here also a null on one side and nothing on the other are told: a program may see the difference.
        for changed in fields::changed(&a, &b) {
            self.0.push(Difference {
                kind,
                path: format!("{prefix}{}", changed.path),
                a: changed.a.unwrap_or_default(),
                b: changed.b.unwrap_or_default(),
            });
        }
    }

    fn durations(&mut self, a: &Run, b: &Run) {
        self.add(Kind::Duration, TOTAL, json!(total(a)), json!(total(b)));
        let mut steps: Vec<&str> = Vec::new();
        for step in a.timeline.iter().chain(&b.timeline) {
            if !steps.contains(&step.step.as_str()) {
                steps.push(&step.step);
            }
        }
        for step in steps {
            let took = |run: &Run| {
                let all = run.timeline.iter();
                all.filter(|other| other.step == step)
                    .map(|step| step.duration_ms)
                    .reduce(|a, b| a + b)
            };
            self.add(Kind::Duration, step, json!(took(a)), json!(took(b)));
        }
    }

    fn outputs(&mut self, a: &[Left], b: &[Left]) {
        let mut paths: Vec<&str> = Vec::new();
        for left in a.iter().chain(b) {
            if !paths.contains(&left.output.configured_path.as_str()) {
                paths.push(&left.output.configured_path);
            }
        }
        for path in paths {
            let of = |side: &[Left]| {
                side.iter()
                    .find(|left| left.output.configured_path == path)
                    .map_or(Value::Null, summary)
            };
            self.add(Kind::Output, path, of(a), of(b));
        }
    }
}

/// Milliseconds from queued to end, once it has ended.
fn total(run: &Run) -> Option<u64> {
    if let Some(end) = run.timeline.iter().find(|step| step.step == "end") {
        return Some(end.elapsed_ms);
    }
    let created: jiff::Timestamp = run.created_at.parse().ok()?;
    let completed: jiff::Timestamp = run.completed_at.as_ref()?.parse().ok()?;
    u64::try_from(completed.duration_since(created).as_millis()).ok()
}

/// What is compared of an output. The paths in the machine are not: they say where it was, not what.
fn summary(left: &Left) -> Value {
    let output = &left.output;
    json!({
        "status": output.status,
        "kind": output.kind,
        "size_bytes": output.size_bytes,
        "file_count": output.file_count,
        "error": output.error,
        "sha256": left.content.digest,
    })
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::*;
    use nullspace_api::agent::Output;

    fn run(id: &str, more: &Value) -> Run {
        let mut run = json!({
            "id": id, "deployment_id": "d", "version_id": "v", "mode": "job", "status": "succeeded", "input": {"x": 1},
            "exit_code": 0, "created_at": "2026-01-01T00:00:00Z", "completed_at": "2026-01-01T00:00:02Z",
            "updated_at": "2026-01-01T00:00:02Z",
        });
        if let (Some(run), Some(more)) = (run.as_object_mut(), more.as_object()) {
            run.extend(more.clone());
        }
        serde_json::from_value(run).expect("a run")
    }

    fn side(id: &str, more: &Value) -> Side {
        Side {
            run: run(id, more),
            version: None,
            outputs: Vec::new(),
        }
    }

    fn left(path: &str, digest: &str) -> Left {
        Left {
            output: Output {
                configured_path: path.to_owned(),
                path: format!("/somewhere/{digest}"),
                status: "available".to_owned(),
                ..Output::default()
            },
            content: Content {
                digest: Some(digest.to_owned()),
                text: None,
            },
        }
    }

    #[test]
    fn runs_that_differ_in_time_only_are_the_same() {
        let steps = |ms: u64| {
            json!({"timeline": [
                {"step": "queued", "at": "", "duration_ms": 0, "elapsed_ms": 0},
                {"step": "end", "at": "", "duration_ms": ms, "elapsed_ms": ms},
            ]})
        };
        let (mut a, mut b) = (side("a", &steps(5)), side("b", &steps(7)));
        a.outputs.push(left("out", "1"));
        b.outputs.push(Left {
            output: Output {
                path: "/elsewhere".to_owned(),
                ..left("out", "1").output
            },
            content: left("out", "1").content,
        });
        let found = sides(&a, &b);
        assert!(is_same(&found));
        let paths: Vec<_> = found.iter().map(|found| found.path.as_str()).collect();
        assert_eq!(paths, ["total", "end"]);
        assert_eq!((&found[0].a, &found[0].b), (&json!(5), &json!(7)));
        assert_eq!(sides(&a, &a), []);
    }

    #[test]
    fn differences_come_kind_by_kind() {
        let mut a = side("a", &json!({}));
        let mut b = side(
            "b",
            &json!({
                "version_id": "w", "input": {"x": 2, "y": {"z": null}}, "status": "failed", "exit_code": 3,
                "failure_reason": "entrypoint exited with 3", "completed_at": null,
            }),
        );
        a.outputs = vec![left("same", "1"), left("other", "1"), left("gone", "1")];
        b.outputs = vec![left("same", "1"), left("other", "2")];
        let found = sides(&a, &b);
        assert!(!is_same(&found));
        let shown: Vec<_> = found
            .iter()
            .map(|found| {
                let kind = serde_json::to_value(found.kind).expect("json");
                format!("{} {}", kind.as_str().unwrap_or_default(), found.path)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "version id",
                "input x",
                "input y",
                "status status",
                "exit_code exit_code",
                "failure_reason failure_reason",
                "duration total",
                "output other",
                "output gone",
            ]
        );
        assert_eq!(
            (&found[6].a, &found[6].b),
            (&json!(2000), &Value::Null),
            "without a timeline the times of the run count"
        );
        assert_eq!(found[8].b, Value::Null);
    }
}

//! The comparison for people: a section for each kind that differs.

use serde_json::Value;

use super::compare::{Difference, Kind, is_same};
use super::lines::{Line, lines};
use super::{Left, Side};
use crate::ui::{Ui, span, tame};

/// Lines of a text that are shown.
const MAX_LINES: usize = 40;
/// Characters of a value that are shown.
const MAX_VALUE: usize = 160;

/// Prints it.
pub(super) fn show(
    ui: Ui,
    a: &Side,
    b: &Side,
    differences: &[Difference],
    not_compared: &[String],
) {
    ui.line(format!("a: {} {}", a.run.id, a.run.status));
    ui.line(format!("b: {} {}", b.run.id, b.run.status));
    for (title, kinds) in [
        ("Version", &[Kind::Version][..]),
        ("Input", &[Kind::Input]),
        (
            "Result",
            &[Kind::Status, Kind::ExitCode, Kind::FailureReason],
        ),
        ("Duration", &[Kind::Duration]),
        ("Outputs", &[Kind::Output]),
    ] {
        let of_kind: Vec<_> = differences
            .iter()
            .filter(|difference| kinds.contains(&difference.kind))
            .collect();
        if of_kind.is_empty() {
            continue;
        }
        ui.line("");
        ui.line(format!("{title}:"));
        for difference in of_kind {
            match difference.kind {
                Kind::Duration => ui.line(format!("  {}", duration(difference))),
                Kind::Output => output(ui, a, b, difference),
                _ => ui.line(format!(
                    "  {}: {} -> {}",
                    tame(&difference.path),
                    value(&difference.a),
                    value(&difference.b)
                )),
            }
        }
    }
    for path in not_compared {
        ui.note(format!("The content of {path} is not compared."));
    }
    if differences.is_empty() {
        ui.line("no differences");
    } else if is_same(differences) {
        ui.line("");
        ui.line("no differences but in duration");
    }
}

/// A value as JSON, cut when it is long.
fn value(value: &Value) -> String {
    let text = tame(&value.to_string());
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn duration(difference: &Difference) -> String {
    let (a, b) = (difference.a.as_u64(), difference.b.as_u64());
    let shown = |millis: Option<u64>| millis.map_or_else(|| "-".to_owned(), span);
    let by = match (a, b) {
        (Some(a), Some(b)) if b > a => format!(" (+{})", span(b - a)),
        (Some(a), Some(b)) => format!(" (-{})", span(a - b)),
        _ => String::new(),
    };
    format!(
        "{}: {} -> {}{by}",
        tame(&difference.path),
        shown(a),
        shown(b)
    )
}

/// What differs of one output, and its lines if it is a small text.
fn output(ui: Ui, a: &Side, b: &Side, difference: &Difference) {
    let path = &difference.path;
    ui.line(format!("  {}:", tame(path)));
    for (key, name) in [
        ("status", "status"),
        ("kind", "kind"),
        ("size_bytes", "bytes"),
        ("file_count", "files"),
        ("error", "error"),
    ] {
        let (of_a, of_b) = (&difference.a[key], &difference.b[key]);
        if of_a != of_b {
            ui.line(format!("    {name}: {} -> {}", value(of_a), value(of_b)));
        }
    }
    if difference.a["sha256"] == difference.b["sha256"] {
        return;
    }
    ui.line("    the content differs");
    let text = |side: &Side| text_of(&side.outputs, path);
    let (Some(of_a), Some(of_b)) = (text(a), text(b)) else {
        return;
    };
    let told = lines(&of_a, &of_b);
    for line in told.iter().take(MAX_LINES) {
        ui.line(match line {
            Line::At(number) => format!("    @ line {number}"),
            Line::Gone(line) => format!("    - {}", tame(line)),
            Line::Come(line) => format!("    + {}", tame(line)),
        });
    }
    if told.len() > MAX_LINES {
        ui.line(format!("    … and {} more lines", told.len() - MAX_LINES));
    }
}

fn text_of(outputs: &[Left], path: &str) -> Option<String> {
    let left = outputs
        .iter()
        .find(|left| left.output.configured_path == path)?;
    left.content.text.clone()
}

//! The terminal: data to stdout, everything else to stderr.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::error::CliError;

/// How this process talks.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Machine-readable output was asked for.
    pub json: bool,
    /// Whether stderr shows colours.
    color: bool,
    /// Whether stderr is a terminal that a bar can move on.
    live: bool,
}

impl Ui {
    /// Looks at the terminal and at `NO_COLOR`.
    #[must_use]
    pub fn new(json: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json,
            color: terminal && !plain,
            live: terminal && !json,
        }
    }

    /// A line of data.
    pub fn line(&self, line: impl AsRef<str>) {
        let line = line.as_ref();
        self.data(format!("{line}\n").as_bytes());
    }

    /// Data as it is.
    pub fn data(&self, bytes: &[u8]) {
        let mut out = io::stdout().lock();
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            // Whoever read our output has gone: there is nobody left to work for, or to tell.
            std::process::exit(i32::from(crate::exit::GENERAL));
        }
    }

    /// Data as JSON, indented by two.
    ///
    /// # Errors
    /// If the value has no JSON form.
    pub fn json(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::new("internal_error", error.to_string()))?;
        self.line(text);
        Ok(())
    }

    /// Data as one line of JSON.
    ///
    /// # Errors
    /// If the value has no JSON form.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value)
            .map_err(|error| CliError::new("internal_error", error.to_string()))?;
        self.line(text);
        Ok(())
    }

    /// Rows of data, each below its name.
    pub fn table<const N: usize>(
        &self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(header);
        for row in rows {
            // A row is one line, whatever somebody named.
            table.add_row(row.map(|cell| tame(&cell).replace(['\t', '\n'], " ")));
        }
        for line in table.lines() {
            self.line(line.trim_end());
        }
    }

    /// A line for people.
    pub fn note(&self, line: impl AsRef<str>) {
        // A stderr that is gone must not end a command that works.
        let _ = writeln!(io::stderr(), "{}", line.as_ref());
    }

    /// A line for people that may be overlooked.
    pub fn dim(&self, line: impl AsRef<str>) {
        self.note(self.paint("2", line.as_ref()));
    }

    /// A line for people that should not be overlooked.
    pub fn warn(&self, line: impl AsRef<str>) {
        self.note(format!(
            "{} {}",
            self.paint("33", "warning:"),
            line.as_ref()
        ));
    }

    /// Text in bold.
    #[must_use]
    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A status word in the colour of what it means.
    #[must_use]
    pub fn status(&self, status: &str) -> String {
        let color = match status {
            "succeeded" | "ready" | "pass" | "running" | "available" => "32",
            "failed" | "timed_out" | "error" | "fail" => "31",
            "cancelled" | "warn" | "unhealthy" | "missing" => "33",
            _ => "36",
        };
        self.paint(color, status)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A failure: message, hint and request id on stderr, or the envelope on stdout.
    pub fn failure(&self, error: &CliError) {
        if self.json {
            if let Ok(text) = serde_json::to_string_pretty(&error.envelope()) {
                self.line(text);
            }
            return;
        }
        // The text may repeat what a machine named, a file for instance.
        let message = tame(&error.message);
        self.note(format!("{} {message}", self.paint("31", "error:")));
        if let Some(action) = &error.suggested_action {
            self.note(format!("{} {action}", self.paint("36", "hint:")));
        } else if let Some(hint) = &error.hint {
            self.note(format!("{} {hint}", self.paint("36", "hint:")));
        }
        if let Some(id) = &error.request_id {
            self.dim(format!("request id: {id}"));
        }
    }

    /// A bar over bytes; shows only on a terminal.
    #[must_use]
    pub fn byte_bar(&self, what: &str, length: Option<u64>) -> ProgressBar {
        let bar = match length {
            Some(length) => self.bar(
                ProgressBar::new(length),
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            ),
            None => self.bar(
                ProgressBar::no_length(),
                "{spinner} {msg} {bytes} {bytes_per_sec}",
            ),
        };
        bar.with_message(what.to_owned())
    }

    /// A spinner with a message; shows only on a terminal.
    #[must_use]
    pub fn spinner(&self, what: impl Into<String>) -> ProgressBar {
        let bar = self.bar(ProgressBar::new_spinner(), "{spinner} {wide_msg} {elapsed}");
        bar.set_message(what.into());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    fn bar(&self, bar: ProgressBar, template: &str) -> ProgressBar {
        if !self.live {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// A time as people read it: `2026-01-31 12:00:00.5+00:00`; text that is no time stays as it is.
#[must_use]
pub fn time(text: Option<&str>) -> String {
    let Some(text) = text else {
        return "-".to_owned();
    };
    let Ok(time) = text.parse::<jiff::Timestamp>() else {
        return text.to_owned();
    };
    let micros = time.as_microsecond().rem_euclid(1_000_000);
    let seconds = time.strftime("%Y-%m-%d %H:%M:%S");
    if micros == 0 {
        format!("{seconds}+00:00")
    } else {
        format!("{seconds}.{micros:06}+00:00")
    }
}

/// The time between two times, for people.
#[must_use]
pub fn between(start: Option<&str>, end: Option<&str>) -> Option<String> {
    let start: jiff::Timestamp = start?.parse().ok()?;
    let end: jiff::Timestamp = end?.parse().ok()?;
    let millis = end.duration_since(start).as_millis();
    Some(span(u64::try_from(millis).unwrap_or(0)))
}

/// A time span, for people.
#[must_use]
pub fn span(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        // Rounded as they are shown: 59.96 s would be 60.0 s.
        1000..59_950 => format!("{:.1} s", millis as f64 / 1000.0),
        _ => {
            let seconds = (millis + 500) / 1000;
            format!("{} min {:02} s", seconds / 60, seconds % 60)
        }
    }
}

/// Text from a machine without what could play with a terminal: control characters, and whole escape sequences, so that
/// no `[31m` is left of a colour.
#[must_use]
pub fn tame(text: &str) -> String {
    let mut tamed = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.peek() {
                // Parameters, and the letter that ends them.
                Some('[') => {
                    chars.next();
                    while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                    chars.next_if(|c| matches!(c, '@'..='~'));
                }
                // Titles and links: up to a bell, or to an escape and a backslash.
                Some(']') => {
                    let end = chars.by_ref().find(|c| matches!(c, '\x07' | '\x1b'));
                    if end == Some('\x1b') {
                        chars.next_if_eq(&'\\');
                    }
                }
                _ => {}
            },
            '\t' | '\n' => tamed.push(c),
            c if c.is_control() => {}
            c => tamed.push(c),
        }
    }
    tamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_machines_cannot_play_with_the_terminal() {
        for (given, tamed) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[1;31mred\x1b[0m.", "red."),
            ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
            ("\x1b[2J\x1b[Hgone\r\x08\u{9b}31m", "gone31m"),
            ("cut \x1b[31", "cut "),
            ("cut \x1b]0;t", "cut "),
            ("cut \x1b", "cut "),
        ] {
            assert_eq!(tame(given), tamed, "{given:?}");
        }
    }

    #[test]
    fn times_are_shown_as_the_published_cli_shows_them() {
        assert_eq!(
            time(Some("2026-01-01T00:00:00Z")),
            "2026-01-01 00:00:00+00:00"
        );
        assert_eq!(
            time(Some("2026-01-01T02:00:00.5+02:00")),
            "2026-01-01 00:00:00.500000+00:00"
        );
        assert_eq!(time(Some("soon")), "soon");
        assert_eq!(time(None), "-");
        assert_eq!(
            between(Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:02:03.4Z")),
            Some("2 min 03 s".to_owned())
        );
        for (millis, shown) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1.0 s"),
            (59_949, "59.9 s"),
            (59_950, "1 min 00 s"),
            (3_599_500, "60 min 00 s"),
        ] {
            assert_eq!(span(millis), shown);
        }
    }
}

//! Where the options of `machine exec`, `machine process stream` and `ssh` end and the command begins.
//!
//! The published CLI takes its own options of these wherever they stand before a `--`, and hands everything else to the
//! command: `exec ID ls -la --json` is `ls -la`, printed as JSON. No parser we have does that, so the arguments are put
//! in order before parsing: options, `--`, the rest.

use std::ffi::OsString;

/// A command that takes another.
#[derive(Clone, Copy)]
struct Taker {
    /// Its options that take a value.
    with_value: &'static [&'static str],
    /// Those that take none.
    without: &'static [&'static str],
}

const EXEC: Taker = Taker {
    with_value: &["--timeout", "--cwd", "--env", "--api-url"],
    without: &["--json", "--background", "--shell"],
};
const SSH: Taker = Taker {
    with_value: &[
        "--user",
        "--ttl",
        "--public-key",
        "--identity-file",
        "--api-url",
    ],
    without: &["--json", "--print-command"],
};

/// The arguments with the options of a command that takes another before that. All others stay as they are.
pub(crate) fn options_first(argv: Vec<OsString>) -> Vec<OsString> {
    let Some((taker, start)) = start_of_command(&argv) else {
        return argv;
    };
    let (before, after) = argv.split_at(start);
    let mut ordered = before.to_vec();
    let mut rest = Vec::new();
    let mut after = after.iter();
    while let Some(argument) = after.next() {
        let text = argument.to_str().unwrap_or_default();
        let name = text.split_once('=').map_or(text, |(name, _)| name);
        if text == "--" {
            rest.extend(after.by_ref().cloned());
        } else if taker.without.contains(&text)
            || rest.is_empty() && matches!(text, "--help" | "-h")
        {
            ordered.push(argument.clone());
        } else if taker.with_value.contains(&name) {
            ordered.push(argument.clone());
            if name == text {
                ordered.extend(after.next().cloned());
            }
        } else if rest.is_empty() && text.starts_with('-') {
            // Before the machine's id nothing can be meant for the command: let the parser say what it is.
            ordered.push(argument.clone());
        } else {
            rest.push(argument.clone());
        }
    }
    if !rest.is_empty() {
        ordered.push("--".into());
        ordered.append(&mut rest);
    }
    ordered
}

/// What is asked for, if it takes a command, and the index after its name.
fn start_of_command(argv: &[OsString]) -> Option<(Taker, usize)> {
    let mut words = argv.iter().enumerate().skip(1);
    let mut word = || {
        loop {
            let (index, argument) = words.next()?;
            let text = argument.to_str()?;
            if matches!(text, "--api-url" | "--output-version") {
                words.next();
            } else if !text.starts_with('-') {
                return Some((index, text));
            }
        }
    };
    let (index, group) = word()?;
    if group == "ssh" {
        return Some((SSH, index + 1));
    }
    if !matches!(group, "machine" | "sandbox") {
        return None;
    }
    let (index, verb) = match word()? {
        (_, "process") => word().map(|(index, verb)| (index, verb == "stream"))?,
        (index, verb) => (index, verb == "exec"),
    };
    verb.then_some((EXEC, index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(line: &str) -> String {
        let argv = line.split(' ').map(OsString::from).collect();
        options_first(argv)
            .into_iter()
            .map(|a| a.into_string().expect("text"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn options_of_exec_are_found_wherever_they_stand() {
        for (given, expected) in [
            (
                "n machine exec i ls -la --json",
                "n machine exec --json -- i ls -la",
            ),
            (
                "n sandbox exec i /bin/bash --shell",
                "n sandbox exec --shell -- i /bin/bash",
            ),
            (
                "n machine exec --timeout 5 i ls --env=A=b",
                "n machine exec --timeout 5 --env=A=b -- i ls",
            ),
            (
                "n machine exec i -- ls --json -- x",
                "n machine exec -- i ls --json -- x",
            ),
            (
                "n --api-url machine machine exec i ls --help",
                "n --api-url machine machine exec -- i ls --help",
            ),
            ("n machine exec --help", "n machine exec --help"),
            ("n machine exec --bad i", "n machine exec --bad -- i"),
            (
                "n sandbox process stream i ls -la --shell",
                "n sandbox process stream --shell -- i ls -la",
            ),
            (
                "n machine process logs i 7 --json",
                "n machine process logs i 7 --json",
            ),
            (
                "n ssh i ls -l --user u --ttl=1h -T",
                "n ssh --user u --ttl=1h -- i ls -l -T",
            ),
            ("n machine list --json", "n machine list --json"),
            ("n agent run exec --json", "n agent run exec --json"),
        ] {
            assert_eq!(ordered(given), expected);
        }
    }
}

//! What holds of every text that somebody sends as a Dockerfile.

use std::collections::BTreeMap;

use super::{compile, expand, expand_plain};
use crate::app::template::program::{Action, CopyFrom, From};

/// Reads a text, and does to its words what a build would.
///
/// # Panics
/// When what comes of it is not what a build can rely on.
pub(super) fn check(text: &str, target: Option<&str>) {
    let args = BTreeMap::from([("A".to_owned(), "given".to_owned())]);
    let lines = u32::try_from(text.lines().count().max(1)).unwrap_or(u32::MAX);
    let program = match compile(text, &args, target) {
        Ok(program) => program,
        Err(error) => {
            let line = error
                .details
                .as_ref()
                .and_then(|details| details["line"].as_u64());
            assert!(
                line.is_some_and(|line| (1..=lines.into()).contains(&line)),
                "{line:?} of {lines}: {error:?}"
            );
            return;
        }
    };
    assert!(!program.stages.is_empty());
    let look_up = |name: &str| args.get(name).cloned();
    for (number, stage) in program.stages.iter().enumerate() {
        assert!(
            !matches!(stage.from, From::Stage(other) if other >= number),
            "{stage:?}"
        );
        for instruction in &stage.instructions {
            let line = instruction.line;
            assert!(
                line.is_some_and(|line| (1..=lines).contains(&line)),
                "{line:?} of {lines}"
            );
            match &instruction.action {
                Action::Copy(copy) => {
                    assert!(
                        !matches!(copy.from, CopyFrom::Stage(other) if other >= number),
                        "{copy:?}"
                    );
                    for word in copy.sources.iter().chain([&copy.to]).chain(&copy.owner) {
                        let _ = expand(word, &look_up);
                    }
                    for file in &copy.inline {
                        let _ = expand_plain(&file.content, &look_up);
                    }
                }
                Action::Env(pairs) | Action::Label(pairs) => {
                    for (_, value) in pairs {
                        let _ = expand(value, &look_up);
                    }
                }
                Action::Arg(_, Some(word)) | Action::Workdir(word) | Action::User(word) => {
                    let _ = expand(word, &look_up);
                }
                _ => {}
            }
        }
    }
}

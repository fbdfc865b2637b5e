//! Makes the `base` template, or says where it is: `build_base [DATA_DIR [CACHE_DIR]]`.

use std::{cell::RefCell, path::PathBuf, time::Instant};

use nullspace_templates::{DEFAULT_CACHE_DIR, Progress, TemplateError, Templates};

fn main() {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let data = args
        .next()
        .unwrap_or_else(|| "/tmp/nullspace-build-base".into());
    let cache = args.next().unwrap_or_else(|| DEFAULT_CACHE_DIR.into());
    if let Err(error) = build(data, cache) {
        let hint = error.hint();
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            eprintln!("error: {error}");
            cause = error.source();
        }
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
        }
        std::process::exit(1);
    }
}

fn build(data: PathBuf, cache: PathBuf) -> Result<(), TemplateError> {
    let start = Instant::now();
    let templates = Templates::open(&data, Some(&cache))?;
    let last = RefCell::new(String::new());
    templates.ensure_base(&|Progress {
                                 phase,
                                 fraction,
                                 line,
                             }| {
        // One line for each tenth of a phase is enough to see that it moves.
        let shown = match fraction {
            Some(fraction) => format!("{phase} {:3.0} %", (fraction * 10.0).floor() * 10.0),
            None => phase.to_string(),
        };
        if *last.borrow() != shown {
            eprintln!("{:6.1} s  {shown}  {line}", start.elapsed().as_secs_f32());
            last.replace(shown);
        }
    })?;
    if let Some(record) = templates.base_record() {
        eprintln!(
            "{:6.1} s  ready, {} MB",
            start.elapsed().as_secs_f32(),
            record.size_bytes / 1_000_000
        );
        println!("{}", record.path.display());
    }
    Ok(())
}

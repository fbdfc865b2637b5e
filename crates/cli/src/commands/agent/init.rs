//! `nullspace agent init`

use std::path::PathBuf;

use nullspace_project::{AgentConfig, CONFIG_FILENAME, Detection, detect};
use serde::Serialize;

use crate::app::App;
use crate::error::{CliError, Outcome};

/// Write a nullspace.agent.toml from what the project looks like. Nothing is sent.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nullspace agent init
  nullspace agent init --project-dir my-agent --force")]
pub(super) struct Args {
    /// The project.
    #[arg(long, default_value = ".", value_name = "DIR")]
    project_dir: PathBuf,
    /// Replace the file that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Created<'a> {
    created: bool,
    path: &'a str,
    detection: &'a Detection,
    config: &'a AgentConfig,
}

pub(super) fn run(args: &Args, app: &App) -> Outcome {
    let detection = detect(&args.project_dir).map_err(|error| {
        CliError::usage(error.to_string()).hint("Name the project with --project-dir.")
    })?;
    if !detection.unresolved.is_empty() {
        let keys = detection.unresolved.join(" and ");
        return Err(CliError::usage(format!("could not tell the {keys} of this project"))
            .hint(format!("Write {CONFIG_FILENAME} by hand, with the line: entrypoint = \"python your_program.py\"")));
    }
    let path = args.project_dir.join(CONFIG_FILENAME);
    let shown = path
        .strip_prefix(".")
        .unwrap_or(&path)
        .display()
        .to_string();
    let mut options = std::fs::File::options();
    options.write(true);
    if args.force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let written = options.open(&path).and_then(|mut file| {
        std::io::Write::write_all(&mut file, detection.config.to_toml().as_bytes())
    });
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(CliError::usage(format!("{shown} is there already"))
                .hint("Edit it, or replace it with --force."));
        }
        Err(error) => return Err(CliError::local(format!("cannot write {shown}"), &error)),
        Ok(()) => {}
    }
    if app.ui.json {
        app.ui.json(&Created {
            created: true,
            path: &shown,
            detection: &detection,
            config: &detection.config,
        })?;
        return Ok(0);
    }
    app.ui.line(format!("Created {shown}"));
    app.ui.line(format!(
        "Detected: {} ({})",
        detection.framework.unwrap_or("none"),
        detection.confidence.as_str()
    ));
    for reason in &detection.reasons {
        app.ui.line(format!("- {reason}"));
    }
    app.ui.dim("Next: nullspace agent deploy .");
    Ok(0)
}

//! Builds: where they stand, what they say, again.

use nullspace_api::template_build::{
    BuildLogEntry, BuildSecret, BuildStatus, ListBuildsQuery, RetryBuildRequest, Secret,
};

use crate::app::App;
use crate::error::{CliError, Outcome};

#[derive(Debug, clap::Args)]
pub(super) struct BuildsArgs {
    /// The template.
    #[arg(value_name = "TEMPLATE_REF", value_parser = crate::input::named)]
    template: String,
    /// Only with this status.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only of this way: native or buildkit.
    #[arg(long, value_name = "BACKEND")]
    backend: Option<String>,
    /// Only of this source: declarative, dockerfile, oci_import or template_base.
    #[arg(long, value_name = "SOURCE")]
    source_type: Option<String>,
    /// The most builds, up to 200.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// Go on behind the page before.
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// The first entry of the log to show.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogsArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// Go on until the build ends.
    #[arg(long)]
    follow: bool,
    /// The first entry to show.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// Only what was said since this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

/// How entries are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object per line.
    Jsonl,
    /// Not at all.
    Quiet,
}

#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// The first entry of the log to show.
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: u64,
    /// Not needed: the server says when there is more.
    #[arg(long, value_name = "MS", hide = true)]
    poll_interval_ms: Option<u64>,
    /// How the log is shown, on standard error.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, clap::Args)]
pub(super) struct CancelArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// Why; kept with the build.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RetryArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// Other tags; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A secret that the build had, as ID=VALUE; may be repeated.
    #[arg(long = "build-secret", value_name = "ID=VALUE")]
    secrets: Vec<String>,
    /// The same from a variable, as ID or ID=VARIABLE.
    #[arg(long = "build-secret-env", value_name = "ID=VARIABLE")]
    secret_envs: Vec<String>,
    /// The same from a file, as ID=PATH.
    #[arg(long = "build-secret-file", value_name = "ID=PATH")]
    secret_files: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PromoteArgs {
    /// The build's id.
    #[arg(value_name = "BUILD_ID", value_parser = crate::input::named)]
    build: String,
    /// The tag that is to mean it.
    #[arg(long, value_name = "TAG")]
    tag: String,
}

pub(super) async fn builds(args: BuildsArgs, app: &App) -> Outcome {
    let query = ListBuildsQuery {
        status: args.status,
        backend: args.backend,
        source_type: args.source_type,
        limit: args.limit,
        cursor: args.cursor,
    };
    let client = app.client()?;
    app.ui
        .json(&client.list_template_builds(&args.template, &query).await?)?;
    Ok(0)
}

pub(super) async fn status(args: &StatusArgs, app: &App) -> Outcome {
    let client = app.client()?;
    app.ui
        .json(&client.get_template_build(&args.build, args.offset).await?)?;
    Ok(0)
}

pub(super) async fn logs(args: &LogsArgs, app: &App) -> Outcome {
    let since = match &args.since {
        Some(text) => Some(nullspace_api::time::parse(text).ok_or_else(|| {
            CliError::usage(format!("--since {text}: is no time"))
                .hint("Write it as 2026-01-31T12:00:00Z.")
        })?),
        None => None,
    };
    let client = app.client()?;
    let mut log = client
        .template_build_log(&args.build, args.offset, args.follow)
        .await?;
    while let Some(entry) = log.next().await? {
        let at = nullspace_api::time::parse(&entry.timestamp);
        if since.is_some_and(|since| at.is_some_and(|at| at < since)) {
            continue;
        }
        match app.ui.json {
            true => app.ui.json_line(&entry)?,
            false => app.ui.line(line(&entry)),
        }
    }
    Ok(0)
}

/// An entry for people.
pub(super) fn line(entry: &BuildLogEntry) -> String {
    let step = match (entry.step_index, entry.total_steps) {
        (Some(step), Some(total)) => format!("[{step}/{total}] "),
        _ => String::new(),
    };
    format!("{step}{}", crate::ui::tame(&entry.message))
}

/// Tells what a build says from an entry on until its end; answers how it ended.
pub(super) async fn follow(
    app: &App,
    build: &str,
    offset: u64,
    format: LogFormat,
) -> Result<Option<BuildLogEntry>, CliError> {
    let client = app.client()?;
    let mut log = client.template_build_log(build, offset, true).await?;
    let mut last = None;
    while let Some(entry) = log.next().await? {
        match format {
            LogFormat::Quiet => {}
            LogFormat::Jsonl => {
                let text = serde_json::to_string(&entry).unwrap_or_default();
                app.ui.note(text);
            }
            LogFormat::Text if entry.level == "debug" => {}
            LogFormat::Text => app.ui.note(line(&entry)),
        }
        last = Some(entry);
    }
    Ok(last)
}

pub(super) async fn wait(args: &WaitArgs, app: &App) -> Outcome {
    follow(app, &args.build, args.offset, args.log_format).await?;
    finished(app, &args.build).await
}

/// Shows a build that is over; one that failed is an error.
pub(super) async fn finished(app: &App, build: &str) -> Outcome {
    let snapshot = app
        .client()?
        .get_template_build(build, u64::from(u32::MAX))
        .await?;
    if snapshot.build.status == BuildStatus::Error {
        let failure = snapshot.build.error_detail.unwrap_or_default();
        let message = format!(
            "build {build} failed in {}: {}",
            failure.phase, failure.message
        );
        return Err(CliError::new(failure.code, message).hint(failure.suggested_action));
    }
    app.ui.json(&snapshot.build)?;
    Ok(0)
}

pub(super) async fn cancel(args: CancelArgs, app: &App) -> Outcome {
    let client = app.client()?;
    app.ui.json(
        &client
            .cancel_template_build(&args.build, args.reason)
            .await?,
    )?;
    Ok(0)
}

pub(super) async fn retry(args: RetryArgs, app: &App) -> Outcome {
    let secrets = secrets(app, &args.secrets, &args.secret_envs, &args.secret_files)?;
    let request = RetryBuildRequest {
        tags: (!args.tags.is_empty()).then_some(args.tags),
        build_secrets: (!secrets.is_empty()).then_some(secrets),
        ..RetryBuildRequest::default()
    };
    let client = app.client()?;
    app.ui
        .json(&client.retry_template_build(&args.build, &request).await?)?;
    Ok(0)
}

pub(super) async fn promote(args: PromoteArgs, app: &App) -> Outcome {
    let client = app.client()?;
    app.ui
        .json(&client.promote_template_build(&args.build, args.tag).await?)?;
    Ok(0)
}

/// Secrets as they were given. No message has a value in it.
pub(super) fn secrets(
    app: &App,
    values: &[String],
    envs: &[String],
    files: &[String],
) -> Result<Vec<BuildSecret>, CliError> {
    let mut found = Vec::new();
    let mut add = |id: &str, value: String, source: &str| {
        found.push(BuildSecret {
            id: id.to_owned(),
            value: Secret(value),
            source: Some(source.to_owned()),
        });
    };
    for pair in values {
        let (id, value) = pair
            .split_once('=')
            .ok_or_else(|| CliError::usage("--build-secret: must be ID=VALUE"))?;
        add(id, value.to_owned(), "value");
    }
    for pair in envs {
        let (id, name) = pair.split_once('=').unwrap_or((pair, pair));
        let value = app.var(name).ok_or_else(|| {
            CliError::usage(format!(
                "--build-secret-env: the variable {name} is not set"
            ))
        })?;
        add(id, value, "env");
    }
    for pair in files {
        let (id, path) = pair
            .split_once('=')
            .ok_or_else(|| CliError::usage("--build-secret-file: must be ID=PATH"))?;
        let value = std::fs::read_to_string(path)
            .map_err(|error| CliError::local(format!("cannot read {path}"), &error))?;
        add(id, value, "file");
    }
    Ok(found)
}
